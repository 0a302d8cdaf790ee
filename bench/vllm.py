#!/usr/bin/env python3
"""`make bench-vllm`: what the gate costs and what it saves beside an unmodified vLLM pair; writes target/bench/vllm.json.

  vllm.py [ROW…]     rows: tiny tiny-tcp seed seed-tcp seats-8 seats-4 (all by default)
  KVGATE_BIN=PATH    the binary under test (target/release/kvgate)

The seed rows' prompts begin with the same 1,984 tokens, which P has in its prefix cache and D has not: a CPU without
matrix units needs half a minute for the attention of such a prefill. What is left is nearly all transfer, the gate's worst case.

Rows that are not named keep what an earlier run wrote. Every figure is a ratio within one row: the same pair, the same
routers, gated and direct requests in turn (A B A B), so that the machine's noise falls on both.
"""

import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import time

sys.dont_write_bytecode = True
TREE = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(TREE / "tests" / "vllm"))

import gate as gates
import install
import speed
import web
from pair import BLOCK, DP, Server, wait_up
from processes import cpu_of, end_with_signals
from prompts import prompt
from say import Failure, grumbles, problem, progress

VLLM = TREE / "target" / "vllm"
OUT = TREE / "target" / "bench"
GATES = ("stage", "direct")
PAIRS = 30
WARM_UP = 2
IDLE_SECONDS = 10
# Answers of the seats rows, in tokens: so long that D's seats stay taken, and so different that they do not end together. (With 64 each both engines,
# on the same two cores, are as busy and D hardly queues; with 256 each P gets its prompts in bursts, and what is measured is how long it takes for them.)
LENGTHS = [random.Random(number).randint(64, 448) for number in range(96)]
# 2 (K and V) × 32 layers × 8 heads × 128 × 2 bytes = 128 KiB per token, and next to nothing to compute besides attention.
SEED = "--layers 32 --heads 8 --kv-heads 8 --head-dim 128 --hidden 64 --dtype bfloat16".split()
MODELS = {
    "tiny": {"shape": (), "dtype": "float32", "token_bytes": 4 << 10, "tokens": 500, "cached": 0, "kv_mib": 64,
             "staging": "64MiB"},
    "seed": {"shape": SEED, "dtype": "bfloat16", "token_bytes": 128 << 10, "tokens": 2000, "cached": 1984,
             "kv_mib": 768, "staging": "768MiB"},
}
# `cached` is a multiple of the block with less than a block to follow: then the second of two equal prompts finds no more of
# itself cached than the first did, and both compute the same, to the last bit.
# The pair of one start serves neighbouring rows: {row: (model, UCX_TLS, D's seats per rank, what is measured)}.
ROWS = {
    "tiny": ("tiny", None, 8, "ttft"),
    "seats-8": ("tiny", None, 8, "pinned"),
    "seats-4": ("tiny", None, 4, "pinned"),
    "tiny-tcp": ("tiny", "tcp", 8, "ttft"),
    "seed": ("seed", None, 8, "ttft"),
    "seed-tcp": ("seed", "tcp", 8, "ttft"),
}


class Pair:
    """The engines, two sidecars and one router per gate, for the rows that want the same of them."""

    def __init__(self, python, binary, folder, model, tls, seats):
        kind = MODELS[model]
        env = {"UCX_TLS": tls} if tls else {}
        path = install.model(VLLM, python, *kind["shape"])
        self.p, self.d = (Server(side, python, path, folder, kind["dtype"], env) for side in "pd")
        self.gate = gates.Gate(binary, folder, self.p, self.d)
        self.kind, self.env, self.seats = kind, env, seats

    def start(self):
        self.p.start(kv_mib=self.kind["kv_mib"], prefix_cache=self.kind["cached"] > 0)
        self.d.start(kv_mib=self.kind["kv_mib"], max_seqs=self.seats)
        wait_up(self.p, self.d)
        self.sidecars = {
            server.side: self.gate.sidecar(f"{server.side}-sidecar", server, staging=self.kind["staging"], env=self.env)
            for server in (self.p, self.d)
        }
        both = self.sidecars["p"], self.sidecars["d"]
        self.routers = {name: self.gate.router(f"router-{name}", *both, "--gate", name) for name in GATES}
        for router in self.routers.values():
            self.gate.wait_ready(router)

    def process(self, name):
        return next(process for process in self.gate.processes if process.name == name)

    def end(self):
        self.gate.end()
        self.d.stop()
        self.p.stop()


def spread(values):
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}


def idle(pair):
    """Cores that both sidecars use while no request runs."""
    watched = [pair.process(f"{side}-sidecar") for side in "pd"]
    time.sleep(2)
    before, start = [cpu_of(process.pid) for process in watched], time.monotonic()
    time.sleep(IDLE_SECONDS)
    seconds = time.monotonic() - start
    used = [round((cpu_of(process.pid) - was) / seconds, 4) for process, was in zip(watched, before)]
    return {"prefill_sidecar_cores": used[0], "decode_sidecar_cores": used[1], "seconds": round(seconds, 1)}


def shared(pair):
    """How all prompts of the row begin, computed once by each rank of P."""
    text = prompt(pair.kind["cached"]) if pair.kind["cached"] else ""
    if text:
        progress("P computes the shared beginning of the prompts")
        for rank in range(DP):
            answer = web.complete(pair.p.url, text, timeout=300, max_tokens=1, headers={"X-data-parallel-rank": str(rank)})
            if not answer.good:
                raise Failure(f"P's rank {rank} alone: {answer.brief()}")
    return text


# What D's sidecar says of a transfer until its receipt. `collect`, which follows, is D's own read.
STAGES = ("queued", "handshake", "post", "wire", "verify")


def way(pair, gate, answer):
    """Where the time to the first token went, in ms, part after part: their sum is that time."""
    told = {leg: float(answer.headers.get(f"x-kvgate-{leg}-ms") or 0) for leg in ("prefill", "transfer")}
    parts = {"P": told["prefill"]}
    if gate == "stage":
        found = web.get_json(pair.sidecars["d"], f"/v1/transfers/{answer.headers.get('x-kvgate-transfer')}") or {}
        stages = {stage: us / 1e3 for stage, us in found.get("stages_us", {}).items()}
        parts |= {stage: stages.get(stage, 0.0) for stage in STAGES}
        parts["asking for it"] = told["transfer"] - sum(parts[stage] for stage in STAGES)
    parts["D and the router"] = answer.ttft * 1e3 - sum(parts.values())
    return parts


def ttft(pair):
    """Each prompt once through the gate and once direct; D's sidecar's CPU time is taken around each gated request."""
    tokens, sidecar = pair.kind["tokens"], pair.process("d-sidecar")
    resting, head = idle(pair), shared(pair)
    seen, equal, cpu = {name: [] for name in GATES}, 0, 0.0
    ways, first = {name: [] for name in GATES}, []
    begun = time.monotonic()
    for number in range(WARM_UP + PAIRS):
        text, texts = head + prompt(tokens - len(head)), []
        for name, router in pair.routers.items():
            before = cpu_of(sidecar.pid)
            answer = web.complete(router, text, stream=True, max_tokens=4)
            if not answer.good or not answer.ttft:
                raise Failure(f"{name}, request {number}: {answer.brief()}")
            texts.append(answer.text)
            if number >= WARM_UP:
                seen[name].append(answer.ttft * 1e3)
                if name == "stage":
                    cpu += cpu_of(sidecar.pid) - before
            took = way(pair, name, answer)
            (ways[name] if number >= WARM_UP else first).append({"gate": name, **{part: round(ms, 3) for part, ms in took.items()}})
        equal += number >= WARM_UP and texts[0] == texts[1]
    moved = PAIRS * -(-tokens // BLOCK) * BLOCK * pair.kind["token_bytes"]
    ratio = statistics.median(seen["stage"]) / statistics.median(seen["direct"])
    progress(f"ttft ratio {ratio:.3f}, {time.monotonic() - begun:.0f} s")
    return {
        "ttft_ratio": round(ratio, 3),
        "ttft_ms": {name: spread(values) for name, values in seen.items()},
        "ttft_difference_ms": spread([a - b for a, b in zip(seen["stage"], seen["direct"])]),
        "parts_ms": {name: {part: spread([way[part] for way in of]) for part in of[0] if part != "gate"} for name, of in ways.items()},
        "first_contacts": first,
        "pairs": PAIRS,
        "tokens": tokens,
        "request_mib": round(-(-tokens // BLOCK) * BLOCK * pair.kind["token_bytes"] / (1 << 20), 1),
        "equal_texts": equal,
        "tokens_cached_on_p": len(head),
        "decode_sidecar_cpu_seconds_per_gib": round(cpu / (moved / (1 << 30)), 3),
        "decode_sidecar_cpu_ms_per_request": round(cpu / PAIRS * 1e3, 2),
        "idle": resting,
    }


def pinned(pair, folder):
    """Block-seconds that P's cache is occupied under load: stage, direct, stage, direct."""
    held, said = {name: [] for name in GATES}, {name: [] for name in GATES}
    for turn in range(2):
        for name, router in pair.routers.items():
            inside = folder / f"seats-{pair.seats}-{turn}"
            inside.mkdir(exist_ok=True)
            total, good, seconds = speed.pinned_by(name, router, pair.p, pair.d, inside, LENGTHS)
            if good != len(LENGTHS):
                raise Failure(f"{name}: {good} of {len(LENGTHS)} requests answered")
            held[name].append(round(total, 1))
            said[name].append(round(seconds, 1))
    return {
        "pinned_ratio": round(sum(held["stage"]) / sum(held["direct"]), 3),
        "block_seconds": held,
        "load_seconds": said,
        "requests_per_turn": len(LENGTHS),
        "clients": speed.CLIENTS,
        "output_tokens": [min(LENGTHS), max(LENGTHS)],
    }


def measure(rows, python, binary, folder, data):
    """Runs the rows, those of one pair after another; the JSON is written after each."""
    wanted = {}
    for row in ROWS:
        if row in rows:
            wanted.setdefault(ROWS[row][:3], []).append(row)
    for number, ((model, tls, seats), names) in enumerate(wanted.items()):
        here = folder / str(number)
        here.mkdir()
        pair = Pair(python, binary, here, model, tls, seats)
        try:
            progress(f"rows {', '.join(names)}: starting the pair")
            pair.start()
            for row in names:
                begin = os.getloadavg()
                figures = ttft(pair) if ROWS[row][3] == "ttft" else pinned(pair, here)
                data["rows"][row] = {
                    **figures,
                    "ucx_tls": tls or "default",
                    "d_max_num_seqs_per_rank": seats,
                    "staging_per_rank": pair.kind["staging"],
                    **data["run"],
                    "load_average": {"before": begin[0], "after": os.getloadavg()[0]},
                }
                write(data)
        except Failure as failure:
            logs = "\n".join(f"{log}:\n{said}" for log in sorted(here.glob("*.log")) if (said := grumbles(log)))
            raise Failure(f"rows {', '.join(names)}: {failure}\n{logs}") from failure
        finally:
            pair.end()


def write(data):
    """Keeps what is measured so far."""
    OUT.mkdir(parents=True, exist_ok=True)
    shown = {key: value for key, value in data.items() if key != "run"}
    (OUT / "vllm.json").write_text(json.dumps(shown, indent=1) + "\n")


def earlier():
    """The rows of earlier runs."""
    try:
        return json.loads((OUT / "vllm.json").read_text())["rows"]
    except (OSError, ValueError, KeyError):
        return {}


def said(row, figures):
    """One line of the printed table."""
    where = f"UCX {figures['ucx_tls']}, load {figures['load_average']['before']:.1f}"
    if "pinned_ratio" in figures:
        seats = f"D takes {figures['d_max_num_seqs_per_rank']} per rank, staging {figures['staging_per_rank']} per rank"
        return f"{row:9} block-seconds on P  gated/direct {figures['pinned_ratio']:.2f}   ({seats}, {where})"
    ms = {name: figures["ttft_ms"][name]["median"] for name in GATES}
    cost = f"D's sidecar {figures['decode_sidecar_cpu_seconds_per_gib']:.2f} CPU s/GiB"
    idle_cores = figures["idle"]["prefill_sidecar_cores"] + figures["idle"]["decode_sidecar_cores"]
    return (
        f"{row:9} time to first token  gated/direct {figures['ttft_ratio']:.2f}   ({ms['stage']:.0f} / {ms['direct']:.0f} ms,"
        f" {figures['request_mib']} MiB, {cost}, both idle {idle_cores:.3f} cores, {where})"
    )


def main():
    end_with_signals()
    rows = sys.argv[1:] or list(ROWS)
    if unknown := set(rows) - set(ROWS):
        problem(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
        return 2
    folder = OUT / "vllm-run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source = pathlib.Path(os.environ.get("KVGATE_BIN") or TREE / "target" / "release" / "kvgate")
    try:
        if not source.is_file():
            raise Failure(f"{source} is not there: run `cargo build --release`, or set KVGATE_BIN")
        install.fits()
        python = install.environment(VLLM)
        # A copy: a build meanwhile must not put two versions into one run.
        binary = shutil.copy2(source, folder / "kvgate")
        version = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout.strip()
        run = {"vllm": install.version(), "kvgate": version, "profile": source.resolve().parent.name, "cores": os.cpu_count()}
        data = {"rows": earlier(), "run": run}
        measure(rows, python, binary, folder, data)
    except (Failure, KeyboardInterrupt) as failure:
        problem(f"FAILED: {failure or 'interrupted'}")
        return 1
    print("\n".join(said(row, data["rows"][row]) for row in ROWS if row in rows))
    print(OUT / "vllm.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
