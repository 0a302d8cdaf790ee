#!/usr/bin/env python3
"""`make bench-nixl`: reads between two processes, kvgate beside what a user would run instead; writes target/bench/nixl.json.

  nixl.py [ROW…]             rows: default tcp posix idle (all by default)
  KVGATE_BIN, BENCH_NIXL_BIN the binaries (target/release/kvgate, target/release/bench-nixl)
  BENCH_ROUNDS               rounds instead of 5
  BENCH_BESIDE               more readers that take their turns, to see what a change does: NAME=PROGRAM[ OPTION…][;…], as in
                             "before=/tmp/before/bench-nixl;one agent=target/release/bench-nixl --cores 1"

| who       | reads                                                                    | from                                |
|-----------|--------------------------------------------------------------------------|-------------------------------------|
| kvgate    | as the sidecar does: plan, descriptors, `pull` agent, huge pages         | kvgate's `serve` agent              |
| kvgate←python | the same                                                             | NIXL's Python package, as in vLLM   |
| python    | NIXL's Python package with its defaults, prepared lists as vLLM has them | NIXL's Python package               |
| c         | the C API alone in its best known setting (bench/nixl/raw.c)             | kvgate's `serve` agent              |
| memcpy    | the same bytes within one process, one core                              | its own memory                      |

Sources hold their memory in ordinary pages, as vLLM does. A row is one UCX_TLS: all participants are up together and take turns, round by
round; whoever has no turn is stopped (SIGSTOP), since a NIXL agent with Python's defaults uses a core while it waits. A figure is the median
of the rounds with the lowest and the highest; a ratio is taken within each round. Every read begins with the list of block ids and ends with
the last byte in place, and what landed is compared after each turn. CPU time is that of reader and source together.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time

sys.dont_write_bytecode = True
from processes import Failure, Kvgate, Process, end_with_signals, free_port, speaker, versions, wait

TREE = pathlib.Path(__file__).resolve().parents[1]
OUT = TREE / "target" / "bench"
WORK = OUT / "nixl"
KVGATE = pathlib.Path(os.environ.get("KVGATE_BIN") or TREE / "target" / "release" / "kvgate").resolve()
TOOL = pathlib.Path(os.environ.get("BENCH_NIXL_BIN") or TREE / "target" / "release" / "bench-nixl").resolve()
PACKAGE = "nixl-cu13==1.5.1"
ROUNDS = int(os.environ.get("BENCH_ROUNDS") or 5)
MOST = 256 << 20
# UCX_TLS and NIXL's error handling of each row. Shared memory works without error handling only (docs/nixl-ffi.md §3.2).
ROWS = {"default": (None, "peer"), "tcp": ("tcp", "peer"), "posix": ("posix,self", "none")}
SHAPES = {
    "1 × 4 KiB": (4 << 10, 1, False),
    "1 × 64 KiB": (64 << 10, 1, False),
    "128 × 2 MiB": (2 << 20, 128, False),
    "128 × 2 MiB scattered": (2 << 20, 128, True),
    "8192 × 32 KiB": (32 << 10, 8192, False),
    "8192 × 32 KiB scattered": (32 << 10, 8192, True),
}
# Reader and source of each.
WHO = {"kvgate": ("ours", "ours"), "kvgate←python": ("ours2", "python"), "python": ("python", "python"), "c": ("c", "ours"),
       "memcpy": ("memcpy", None)}
BESIDE = dict(reader.split("=", 1) for reader in (os.environ.get("BENCH_BESIDE") or "").split(";") if reader)
WHO |= {name: (name, "ours") for name in BESIDE}
TURN_S = 0.25
IDLE_S = 10
say = speaker("bench-nixl")


class Participant(Process):
    """One that takes commands on standard input and answers each with a line of JSON."""

    def __init__(self, name, command, tls):
        env = {key: value for key, value in os.environ.items() if not key.startswith(("UCX_", "NIXL_LOG"))}
        env.update({"UCX_TLS": tls} if tls else {})
        env["NIXL_CAPI_LIBRARY"] = str(library())
        super().__init__(name, command, WORK, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hello = None

    def answer(self):
        line = self.child.stdout.readline()
        while line and not line.startswith("{"):
            line = self.child.stdout.readline()
        if not line:
            raise Failure(f"{self.name} ended: see {WORK / self.name}.log")
        return json.loads(line)

    def ask(self, *words):
        self.child.stdin.write(" ".join(str(word) for word in words) + "\n")
        self.child.stdin.flush()
        return self.answer()

    def stop(self):
        self.child.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.child.send_signal(signal.SIGCONT)


# What is compared with ------------------------------------------------------------------------------------------------


def install_python():
    """NIXL's Python package without what it wants for GPUs: importing it needs numpy alone."""
    venv = OUT / "nixl-venv"
    stamp = venv / ".installed"
    python = venv / "bin" / "python"
    if not (python.exists() and stamp.exists() and stamp.read_text() == PACKAGE):
        say(f"installing {PACKAGE} below target/bench/nixl-venv")
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        command = [python, "-m", "pip", "install", "--quiet", "--no-deps", PACKAGE, "numpy"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        stamp.write_text(PACKAGE)
    return python


def build_raw():
    program = OUT / "nixl-raw"
    command = [os.environ.get("CC", "cc"), "-std=gnu11", "-O2", "-Wall", "-Wextra", "-I", TREE / "nixl-sys" / "include",
               TREE / "bench" / "nixl" / "raw.c", "-o", program, "-ldl"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return program


def library():
    found = os.environ.get("NIXL_CAPI_LIBRARY")
    found = [found] if found else sorted((TREE / "target" / "nixl").glob("nixl-cu13-*/.nixl_cu13.mesonpy.libs/libnixl_capi.so"))
    if not found:
        raise Failure("no NIXL: run `make setup`, or set NIXL_CAPI_LIBRARY")
    return pathlib.Path(found[-1]).resolve()


# Measurements ---------------------------------------------------------------------------------------------------------


class Row:
    """All participants of one UCX_TLS."""

    def __init__(self, name, python, raw):
        tls, errors = ROWS[name]
        peer = TREE / "bench" / "nixl" / "peer.py"
        ours = [TOOL, "--error-handling", errors]
        sources = {"ours": [*ours, "source", "--bytes", 2 * MOST], "python": [python, peer, "source", 2 * MOST, errors]}
        self.sources = {kind: Participant(f"{name}-source-{kind}", command, tls) for kind, command in sources.items()}
        readers = {
            "ours": [*ours, "reader", "--bytes", MOST], "ours2": [*ours, "reader", "--bytes", MOST],
            "python": [python, peer, "reader", MOST, errors], "c": [raw, library(), MOST, errors],
            "memcpy": [TOOL, "copy", "--source-bytes", 2 * MOST, "--bytes", MOST],
        }
        for beside, words in BESIDE.items():
            program, *options = words.split()
            readers[beside] = [pathlib.Path(program).resolve(), *options, "--error-handling", errors, "reader", "--bytes", MOST]
        self.readers = {kind: Participant(f"{name}-reader-{kind}", command, tls) for kind, command in readers.items()}
        served = {kind: source.answer() for kind, source in self.sources.items()}
        for reader in self.readers.values():
            reader.answer()
        for reader, source in WHO.values():
            if source:
                told = served[source]
                self.readers[reader].ask("peer", told["base"], told["bytes"], told["metadata"])
        self.all = [*self.sources.values(), *self.readers.values()]
        for process in self.all:
            process.stop()

    def turn(self, who, seconds, most):
        """One participant's reads; nobody else runs."""
        reader, source = WHO[who]
        awake = [self.readers[reader], *([self.sources[source]] if source else [])]
        for process in awake:
            process.go_on()
        before = [process.cpu_of_threads() for process in awake]
        answer = self.readers[reader].ask("run", seconds, most)
        answer["cpu_s"] = [process.cpu_of_threads() - was for process, was in zip(awake, before)]
        for process in awake:
            process.stop()
        if answer["wrong"]:
            raise Failure(f"{who}: {answer['wrong']} blocks hold wrong bytes")
        return answer

    def shape(self, shape):
        block, count, scattered = SHAPES[shape]
        rng = random.Random(1)
        # Scattered: what a pool hands out after some hours, any blocks in any order.
        ids = rng.sample(range(2 * MOST // block), count) if scattered else list(range(count))
        for who, (reader, source) in WHO.items():
            for process in (self.readers[reader], self.sources.get(source)):
                process and process.go_on()
            self.readers[reader].ask("blocks", block, *ids)
            self.turn(who, 0.05, 3)
        found = {who: [] for who in WHO}
        for number in range(ROUNDS):
            order = list(WHO)
            for who in order[number % len(order):] + order[:number % len(order)]:
                answer = self.turn(who, TURN_S, 50_000)
                moved = block * count * answer["runs"]
                figures = {"p50_us": statistics.median(answer["ns"]) / 1e3, "runs": answer["runs"], "pieces": answer["pieces"],
                           "cpu_s_per_gib": sum(answer["cpu_s"]) / moved * (1 << 30),
                           "reader_cpu_s_per_gib": answer["cpu_s"][0] / moved * (1 << 30)}
                figures["gb_per_s"] = block * count / figures["p50_us"] / 1e3
                if any(answer.get("wire_ns", [])):
                    figures["wire_p50_us"] = statistics.median(answer["wire_ns"]) / 1e3
                    figures["allocations"] = answer["allocations"] / answer["runs"]
                found[who].append(figures)
        return found

    def end(self):
        for process in self.all:
            process.end()


def idle(python):
    """Cores that a decode pod's sidecar with 8 ranks uses while nothing is asked of it, and one agent with Python's defaults."""
    agent = Participant("idle-python", [python, TREE / "bench" / "nixl" / "peer.py", "source", 1 << 20, "peer"], None)
    agent.answer()
    alone = used(agent)
    agent.end()
    side = free_port()
    model = "--model m --layers 2 --kv-heads 2 --head-size 16 --num-blocks 1024"
    engine = Kvgate("idle-engine", KVGATE, f"sim --role decode --data-parallel-size 8 {model} --listen 127.0.0.1:0 "
                    f"--side-channel 127.0.0.1:{side}", WORK)
    sidecar = Kvgate("idle-sidecar", KVGATE, f"sidecar --role decode --engine http://127.0.0.1:{engine.port} "
                     f"--engine-side-channel 127.0.0.1:{side} --data-parallel-size 8 --listen 127.0.0.1:0 "
                     "--side-channel-listen 127.0.0.1:0 --staging-bytes 16MiB --log warn", WORK)
    wait("the sidecar's eight ranks", lambda: eight_ready(sidecar))
    # Until first contacts are over.
    time.sleep(3)
    whole = used(sidecar)
    sidecar.end()
    engine.end()
    return {"sidecar_dp8_cores": whole, "python_agent_cores": alone, "seconds": IDLE_S}


def eight_ready(sidecar):
    ranks = json.loads(sidecar.get("/v1/ranks") or "{}").get("ranks", [])
    return len(ranks) == 8 and all(rank["state"] == "ready" for rank in ranks)


def used(process):
    before, since = process.cpu(), time.monotonic()
    time.sleep(IDLE_S)
    return (process.cpu() - before) / (time.monotonic() - since)


# Tables ---------------------------------------------------------------------------------------------------------------


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(found, figure, one, other):
    """Round by round."""
    return spread([mine[figure] / theirs[figure] for mine, theirs in zip(found[one], found[other])])


def targets(rows):
    """(name, target, ratio's spread, met) of what the rows at hand can tell."""

    def judge(name, spreads, least=None, most=None, unit=" ×"):
        """The worst of several decides."""
        worst = min(spreads, key=lambda of: of["median"]) if least is not None else max(spreads, key=lambda of: of["median"])
        target = f"≥ {least}{unit}" if least is not None else f"≤ {most}{unit}"
        met = worst["median"] >= least if least is not None else worst["median"] <= most
        return {"name": name, "target": target, "unit": unit.strip(), "value": worst, "met": met}

    def faster(row, shape, peer, who):
        return ratios(rows[row][shape], "p50_us", peer, who)

    ours = ("kvgate", "kvgate←python")
    for row in ("default", "tcp"):
        if row not in rows:
            continue
        large, many = (("128 × 2 MiB", "128 × 2 MiB scattered"), ("8192 × 32 KiB", "8192 × 32 KiB scattered"))
        if row == "default":
            # A source of Python's keeps a core busy all the time, which on a small machine is one that the reader has not.
            for who, source in zip(ours, ("a source that sleeps", "a source with NIXL's defaults")):
                yield judge(f"128 × 2 MiB from {source}: times NIXL's Python", [faster(row, shape, "python", who) for shape in large], least=2)
                yield judge(f"128 × 2 MiB from {source}: of memcpy", [faster(row, shape, "memcpy", who) for shape in large], least=0.75)
            yield judge("1 × 64 KiB, p50: times raw C", [ratios(rows[row]["1 × 64 KiB"], "p50_us", "kvgate", "c")], most=1.1)
        yield judge(f"8192 × 32 KiB, {row}: times NIXL's Python", [faster(row, shape, "python", who) for shape in many for who in ours],
                    least=1.4)
        cpu = [ratios(rows[row][shape], "cpu_s_per_gib", "kvgate", "python") for shape in (*large, *many)]
        yield judge(f"CPU seconds per GiB, {row}: of NIXL's Python", cpu, most=0.6)
    if "idle" in rows:
        cores = {key: rows["idle"]["sidecar_dp8_cores"] for key in ("median", "min", "max")}
        yield judge("idle sidecar, 8 ranks, 16 agents", [cores], most=0.05, unit=" core")
    if "tcp" in rows:
        # A read of 256 MiB is polled for a thousand times, one of 4 KiB hardly at all; both have one descriptor.
        long, short = (statistics.median(turn["allocations"] for turn in rows["tcp"][shape]["kvgate"]) for shape in ("128 × 2 MiB", "1 × 4 KiB"))
        more = {key: max(0, long - short) for key in ("median", "min", "max")}
        yield judge("allocations per poll", [more], most=0, unit="")


def show(row, found):
    print(f"\nUCX_TLS {row}" + (", without error handling" if ROWS[row][1] == "none" else ""))
    lines = [("", *WHO, *(f"kvgate / {peer}" for peer in ("python", "memcpy", *BESIDE)))]
    for shape, turns in found.items():
        small = SHAPES[shape][1] == 1
        figure, digits = ("p50_us", 0) if small else ("gb_per_s", 2)
        cells = [shape + (", µs" if small else ", GB/s")]
        for who in WHO:
            of = spread([turn[figure] for turn in turns[who]])
            cells.append(f"{of['median']:.{digits}f} ({of['min']:.{digits}f}–{of['max']:.{digits}f})")
        for peer in ("python", "memcpy", *BESIDE):
            of = ratios(turns, "p50_us", peer, "kvgate")
            cells.append(f"{of['median']:.2f} × ({of['min']:.2f}–{of['max']:.2f})")
        lines.append(cells)
        if not small:
            cpu = [statistics.median(turn["cpu_s_per_gib"] for turn in turns[who]) for who in WHO]
            ratio = [f"{cpu[0] / cpu[list(WHO).index(peer)]:.2f} ×" for peer in ("python", "memcpy", *BESIDE)]
            lines.append(["  CPU s/GiB", *(f"{value:.3f}" for value in cpu), *ratio])
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def main():
    known = (*ROWS, "idle")
    wanted = sys.argv[1:] or known
    if unknown := [row for row in wanted if row not in known]:
        sys.exit(f"bench-nixl: no such row: {', '.join(unknown)} (rows: {' '.join(known)})")
    end_with_signals()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    rows, began = {}, time.monotonic()
    try:
        if missing := [str(binary) for binary in (KVGATE, TOOL) if not binary.is_file()]:
            raise Failure(f"not built: {', '.join(missing)}")
        python, raw = install_python(), build_raw()
        probe = Participant("machine", [TOOL, "machine"], None)
        machine = {**probe.answer(), "python": PACKAGE, **versions(TREE, KVGATE)}
        probe.end()
        for name in wanted:
            say(f"{name} (load {os.getloadavg()[0]:.1f})")
            if name == "idle":
                rows[name] = idle(python)
                continue
            row = Row(name, python, raw)
            rows[name] = {shape: row.shape(shape) for shape in SHAPES}
            row.end()
    except (Failure, subprocess.SubprocessError, OSError, ValueError) as failure:
        sys.exit(f"bench-nixl: {failure}")
    finally:
        Process.end_all()
    for name, found in rows.items():
        if name != "idle":
            show(name, found)
    judged = list(targets(rows))
    print()
    for target in judged:
        of = target["value"]
        print(f"{target['name']:70} {target['target']:>10}  {of['median']:8.3f} ({of['min']:.3f}–{of['max']:.3f})  "
              f"{'met' if target['met'] else 'short'}")
    result = {"machine": machine, "rounds": ROUNDS, "seconds": round(time.monotonic() - began), "targets": judged, "rows": rows}
    (OUT / "nixl.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
