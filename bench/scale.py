#!/usr/bin/env python3
"""`make bench-scale`: what a request costs while something grows; writes target/bench/scale.json. Part of `make bench`.

  scale.py [ROW…]     rows: router-ranks router-rate router-connections sidecar-ranks sidecar-handles prefill-handles sidecar-rate
                      sidecar-subscribers (all by default); rows that are not named keep what an earlier run wrote
  KVGATE_BIN, BENCH_ROUTER_BIN, BENCH_SCALE_BIN     the binaries (target/release/kvgate, bench-router, bench-scale)

The router is `kvgate router` (gate stage) before stub engines and stub sidecars in a process of their own, which answer from bytes made beforehand.
The sidecar is the real one, core and HTTP API, between engines and NIXL agents that are made up in memory (`bench-scale sidecar`), so that what is
counted is its control path. Loads come from a further process. All share this machine's cores.

CPU is what the process under test uses, by its threads' clocks, less what it uses at rest in the same time, over the requests. Sizes take turns,
round by round (1, 8, 64, 512, 1, 8, …), and a ratio is taken within its round; handles only become more, so their sizes follow one another. Loads by
the clock (`-rate`) count a request from when it was due. Memory is the resident set, a slope the one of a straight line through all sizes.
"""

import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time
import urllib.request

sys.dont_write_bytecode = True
import scale_report
from processes import Failure, Process, end_with_signals, free_port, speaker, versions
from router import KVGATE, TOOL as LOAD, clean, health

TREE = pathlib.Path(__file__).resolve().parents[1]
OUT = TREE / "target" / "bench"
WORK = OUT / "scale"
TOOL = pathlib.Path(os.environ.get("BENCH_SCALE_BIN") or TREE / "target" / "release" / "bench-scale").resolve()
PATIENCE = 60
RANKS = (1, 8, 64, 512)
PER_POD = 8
RATES = (10, 100, 1000, 2500, 5000)
HANDLES = (1, 10, 100, 1000, 4000, 7000, 10_000)
ROWS = ("router-ranks", "router-rate", "router-connections", "sidecar-ranks", "sidecar-handles", "prefill-handles", "sidecar-rate",
        "sidecar-subscribers")
say = speaker("bench-scale")


def run(command, what):
    """A load to its end: its results."""
    ran = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)
    if ran.returncode:
        raise Failure(f"{what}: {ran.stderr.strip()}")
    return json.loads(ran.stdout)


def page(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return json.load(answer)


def words(options):
    return [word for name, value in options.items() for word in ([f"--{name.replace('_', '-')}"] + ([] if value is True else [value]))]


class Steered(Process):
    """A child that says when it is ready, and ends with its standard input."""

    def __init__(self, name, command):
        super().__init__(name, command, WORK, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self.child.stdout.readline()
        if not line:
            raise Failure(f"{name} does not become ready; see {WORK / name}.log")
        self.told = json.loads(line)


class Stubs(Process):
    """Pods of engines and sidecars that answer at once."""

    def __init__(self, pods, ranks):
        command = [LOAD, "stub", "--prefill", pods, "--decode", pods, "--sidecar", 2 * pods, "--ranks", ranks]
        super().__init__(f"stubs-{pods}x{ranks}", command, WORK, stdout=subprocess.PIPE)
        addresses = json.loads(self.child.stdout.readline() or "{}")
        if not addresses:
            raise Failure(f"the stubs do not start; see {WORK / self.name}.log")
        sides = zip(["prefill"] * pods + ["decode"] * pods, addresses["prefill"] + addresses["decode"], addresses["sidecar"])
        self.flags = [word for side, engine, sidecar in sides for word in (f"--{side}", f"http://{engine},sidecar=http://{sidecar}")]


class Router(Process):
    """The router before so many ranks a side."""

    def __init__(self, ranks):
        self.stubs = Stubs(max(1, ranks // PER_POD), min(ranks, PER_POD))
        self.port = free_port()
        command = [KVGATE, "router", "--pd-disaggregation", "--port", self.port, "--max-connections", 16384, *self.stubs.flags]
        super().__init__(f"router-{ranks}", [*command, "--intra-node-data-parallel-size", min(ranks, PER_POD)], WORK)
        until = time.monotonic() + PATIENCE
        while not health(self.port) or self.ready() < 2 * ranks:
            if time.monotonic() > until or self.child.poll() is not None:
                raise Failure(f"{self.name} does not become ready; see {WORK / self.name}.log")
            time.sleep(0.02)

    def ready(self):
        return sum(target["ready"] for target in page(self.port, "/readyz")["targets"])

    def load(self, **options):
        return clean(run([LOAD, "load", "--to", f"127.0.0.1:{self.port}", *words(options)], self.name), self.name)

    def inside(self):
        return page(self.port, "/readyz")["inside"]


class Sidecar(Steered):
    """The sidecar of a pod with so many ranks."""

    def __init__(self, role, ranks, slots=256):
        command = [TOOL, "sidecar", "--role", role, "--ranks", ranks, "--slots", slots]
        super().__init__(f"sidecar-{role}-{ranks}x{slots}", command)
        self.ranks, self.names = ranks, 0
        self.port = int(self.told["http"].rpartition(":")[2])

    def fresh(self):
        """Begins names that nobody has used."""
        self.names += 1
        return f"{self.child.pid}-{self.names}"

    def transfers(self, **options):
        p = self.told["prefill"]
        command = [TOOL, "transfers", "--sidecar", self.told["http"], "--collect", self.told["collect"], "--ranks", self.ranks, "--prefill",
                   f"{p['engine']}@{p['host']}:{p['port']}", "--name", self.fresh(), *words(options)]
        return run(command, self.name)

    def handles(self, **options):
        command = [TOOL, "handles", "--sidecar", self.told["http"], "--ranks", self.ranks, "--name", self.fresh(), *words(options)]
        return run(command, self.name)

    def inside(self):
        return sum(rank["in_flight"] for rank in page(self.port, "/v1/ranks")["ranks"])


class Held:
    """Connections that are held while the block runs."""

    def __init__(self, port, connections, path):
        self.command = [TOOL, "hold", "--to", f"127.0.0.1:{port}", "--connections", connections, "--path", path]

    def __enter__(self):
        self.process = Steered("held", self.command)

    def __exit__(self, *_):
        self.process.child.stdin.close()
        self.process.child.wait(PATIENCE)
        self.process.end()


def resting(processes, seconds=2):
    """CPU that each uses at rest, per second."""
    time.sleep(1)
    before = [process.cpu_of_threads() for process in processes]
    began = time.monotonic()
    time.sleep(seconds)
    return [(process.cpu_of_threads() - cpu) / (time.monotonic() - began) for process, cpu in zip(processes, before)]


def cost(process, rest, load):
    """One load: what a request costs the process, and how long it takes."""
    began, cpu = time.monotonic(), process.cpu_of_threads()
    result = load()
    # What a request leaves to be done after its answer.
    time.sleep(0.1)
    used = process.cpu_of_threads() - cpu - rest * (time.monotonic() - began)
    return {"cpu_us": max(0.0, used) / max(1, result["requests"]) * 1e6, "p50_us": result["whole_us"]["p50"], "p99_us": result["whole_us"]["p99"],
            "rate": result["requests"] / result["seconds"], "halves_p50_us": result["halves_p50_us"]}


class Bench:
    def __init__(self):
        self.found = {}

    def note(self, row, size, **figures):
        of = self.found.setdefault(row, {}).setdefault(str(size), {})
        for name, value in figures.items():
            of.setdefault(name, []).append(value)

    def router_ranks(self):
        routers = [Router(ranks) for ranks in RANKS]
        for router, ranks in zip(routers, RANKS):
            router.load(connections=4, requests=2000)
        rests = resting(routers)
        for router, ranks, rest in zip(routers, RANKS, rests):
            self.note("router-ranks", ranks, rss_mb=router.rss(), rest_us_per_s=rest * 1e6)
        for _ in range(5):
            for router, ranks, rest in zip(routers, RANKS, rests):
                self.note("router-ranks", ranks, **cost(router, rest, lambda: router.load(connections=4, seconds=1)))
        for router in routers:
            router.end()
            router.stubs.end()

    def by_the_clock(self, row, process, load):
        """Rates up to the first one that is not reached."""
        rest, = resting([process])
        load(seconds=1)
        reached = list(RATES)
        for _ in range(3):
            for rate in list(reached):
                result = cost(process, rest, lambda: load(rate=rate, seconds=max(2, min(4, 60 / rate))))
                self.note(row, rate, **result)
                if result["rate"] < 0.97 * rate:
                    reached = [lower for lower in reached if lower < rate]
                    break
        time.sleep(0.5)
        self.note(row, "after", inside=process.inside(), rss_mb=process.rss())

    def router_rate(self):
        router = Router(16)
        self.by_the_clock("router-rate", router, lambda **options: router.load(connections=64, **options))
        router.end()
        router.stubs.end()

    def router_connections(self):
        router = Router(8)
        router.load(connections=16, requests=3000)
        for held in (1, 500, 1000, 2000):
            with Held(router.port, held, "/livez"):
                time.sleep(0.5)
                self.note("router-connections", held, rss_mb=router.rss())
        router.end()
        # What streams leave behind would be counted with the next ones: each number of them meets a fresh router.
        for streams in (1, 250, 500, 1000):
            router = Router(8)
            # They begin one after the other, within two seconds: a burst of beginnings would be measured instead.
            command = [LOAD, "load", "--to", f"127.0.0.1:{router.port}", "--connections", streams, "--requests", streams, "--rate", streams / 2,
                       "--stream", "--tokens", 20, "--pace-us", 200_000]
            client = Process("streams", command, WORK, stdout=subprocess.PIPE)
            highest = 0
            while client.child.poll() is None:
                highest = max(highest, router.rss())
                time.sleep(0.1)
            clean(json.loads(client.child.stdout.read()), "streams")
            client.end()
            self.note("router-streams", streams, rss_mb=highest)
            router.end()
            router.stubs.end()

    def sidecar_ranks(self):
        sidecars = [Sidecar("decode", ranks) for ranks in RANKS]
        rests = resting(sidecars)
        for sidecar, ranks, rest in zip(sidecars, RANKS, rests):
            self.note("sidecar-ranks", ranks, rss_mb=sidecar.rss(), rest_us_per_s=rest * 1e6)
            sidecar.transfers(requests=max(1000, 2 * ranks))
        for _ in range(3):
            for sidecar, ranks, rest in zip(sidecars, RANKS, rests):
                self.note("sidecar-ranks", ranks, **cost(sidecar, rest, lambda: sidecar.transfers(connections=4, seconds=1)))
        for sidecar in sidecars:
            sidecar.end()

    def sidecar_handles(self):
        sidecar = Sidecar("decode", PER_POD, slots=2048)
        # Until what is remembered of ended transfers is full, 1,024 records a rank and 65,536 fingerprints: it must not be taken for handles.
        before = sidecar.rss()
        sidecar.transfers(requests=1100 * PER_POD, connections=32)
        self.note("sidecar-records", "kept", bytes_each=(sidecar.rss() - before) * 1e6 / (1024 * PER_POD))
        sidecar.transfers(requests=70_000, connections=32)
        self.more_handles("sidecar-handles", sidecar, sidecar.transfers)

    def prefill_handles(self):
        sidecar = Sidecar("prefill", PER_POD)
        # Few at a time: what a burst of them leaves behind would be used by the first thousand handles, which would seem to cost nothing.
        sidecar.handles(requests=30_000, connections=4)
        self.more_handles("prefill-handles", sidecar, sidecar.handles)

    def more_handles(self, row, sidecar, load):
        rest, kept = resting([sidecar])[0], 0
        for handles in HANDLES:
            claims = cost(sidecar, rest, lambda: load(requests=handles - kept, keep=True))
            kept = handles
            self.note(row, handles, keep_p99_us=claims["p99_us"])
            for _ in range(2):
                self.note(row, handles, **cost(sidecar, rest, lambda: load(connections=4, seconds=1)))
            # Behind the steady load: what a burst took, the allocator gives back while it is asked again.
            self.note(row, handles, rss_mb=sidecar.rss())
        sidecar.end()

    def sidecar_rate(self):
        sidecar = Sidecar("decode", PER_POD)
        self.by_the_clock("sidecar-rate", sidecar, lambda **options: sidecar.transfers(connections=64, **options))
        sidecar.end()

    def sidecar_subscribers(self):
        sidecar = Sidecar("decode", PER_POD)
        sidecar.transfers(requests=1100 * PER_POD, connections=32)
        for routers in (1, 16, 64, 256):
            with Held(sidecar.port, routers, "/v1/ranks/events"):
                rest, = resting([sidecar], 1.5)
                loaded = cost(sidecar, rest, lambda: sidecar.transfers(connections=16, rate=500, seconds=2))
                self.note("sidecar-subscribers", routers, rss_mb=sidecar.rss(), rest_us_per_s=rest * 1e6, **loaded)
        sidecar.end()


def main():
    wanted = sys.argv[1:] or ROWS
    if unknown := [row for row in wanted if row not in ROWS]:
        sys.exit(f"bench-scale: no such row: {', '.join(unknown)} (rows: {' '.join(ROWS)})")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    end_with_signals()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    began, bench = time.monotonic(), Bench()
    try:
        for row in wanted:
            since = time.monotonic()
            getattr(bench, row.replace("-", "_"))()
            say(f"{row}: {time.monotonic() - since:.0f} s")
    except (Failure, subprocess.SubprocessError, OSError, ValueError) as failure:
        sys.exit(f"bench-scale: {failure}")
    finally:
        Process.end_all()
    figures = bench.found
    if sys.argv[1:] and (OUT / "scale.json").exists():
        figures = {**json.loads((OUT / "scale.json").read_text())["figures"], **figures}
    result = {"machine": versions(TREE, KVGATE), "seconds": round(time.monotonic() - began), **scale_report.of(figures), "figures": figures}
    scale_report.show(result)
    (OUT / "scale.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
