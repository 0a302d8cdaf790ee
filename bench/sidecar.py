#!/usr/bin/env python3
"""`make bench-sidecar`: what a decode pod's sidecar adds to a transfer, and its memory; writes target/bench/sidecar.json.

  sidecar.py [ROW…]                 rows: one many memory (all by default)
  KVGATE_BIN, BENCH_SIDECAR_BIN     the binaries (target/release/kvgate, target/release/bench-sidecar)
  BENCH_TRANSFERS                   transfers of each row instead of 2000, 20000 and 100000

Two engines (`kvgate sim`, KV in real NIXL memory), both sidecars, real NIXL between them, clients that prefill one block each and ask
for its transfer: all on this machine, sharing its cores. Overhead is the time from `POST /v1/transfers` to the receipt at the client, less
the wire stage that the receipt tells. Memory is the sidecar's resident set less that of its staging arena.
Each row says met or short of its goal; exit 0 when everything could be measured.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

sys.dont_write_bytecode = True
from processes import Failure, Kvgate, Process, end_with_signals, free_port, speaker, wait

TREE = pathlib.Path(__file__).resolve().parents[1]
OUT = TREE / "target" / "bench"
WORK = OUT / "sidecar"
KVGATE = pathlib.Path(os.environ.get("KVGATE_BIN") or TREE / "target" / "release" / "kvgate").resolve()
TOOL = pathlib.Path(os.environ.get("BENCH_SIDECAR_BIN") or TREE / "target" / "release" / "bench-sidecar").resolve()
STAGING = 16 << 20
ROWS = {"one": (1, 2_000), "many": (64, 20_000), "memory": (16, 100_000)}
say = speaker("bench-sidecar")
MODEL = "--model m --layers 2 --kv-heads 2 --head-size 16 --num-blocks 8192 --max-num-seqs 256"


def memory(process):
    """Resident bytes: of the whole process, and of its staging arena, the mapping whose size is the arena's."""
    whole = arena = size = 0
    for line in pathlib.Path(f"/proc/{process.child.pid}/smaps").read_text().splitlines():
        if match := re.match(r"(Size|Rss): +(\d+) kB", line):
            amount = int(match[2]) * 1024
            if match[1] == "Size":
                size = amount
            else:
                whole += amount
                if STAGING <= size <= STAGING + (4 << 20):
                    arena = max(arena, amount)
    return whole, arena


def load(prefill, sidecar, clients, transfers):
    command = [str(TOOL), "--prefill", f"127.0.0.1:{prefill.port}", "--sidecar", f"127.0.0.1:{sidecar.port}"]
    command += ["--clients", str(clients), "--transfers", str(transfers), "--warm", str(min(500, transfers))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    if done.returncode != 0:
        raise Failure(f"the clients ended with {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def row(name, what, value, unit, goal, figures):
    verdict = "met" if value <= goal else "short"
    print(f"{name:<8} {what:<46} {value:>10.1f} {unit:<4} goal ≤ {goal:g} {unit:<4} {verdict}", flush=True)
    figures.append({"row": name, "what": what, "value": value, "unit": unit, "goal": goal, "verdict": verdict})


def measure(rows):
    sides = [free_port(), free_port()]
    engine = f"--listen 127.0.0.1:0 {MODEL} --side-channel 127.0.0.1:"
    prefill = Kvgate("prefill", KVGATE, f"sim --role prefill {engine}{sides[0]}", WORK)
    decode = Kvgate("decode", KVGATE, f"sim --role decode {engine}{sides[1]}", WORK)
    # The decode engine's lease decides how soon a transfer that was let go is free: a third of it.
    sidecar = Kvgate("decode-sidecar", KVGATE, f"sidecar --role decode --engine http://127.0.0.1:{decode.port} "
                     f"--engine-side-channel 127.0.0.1:{sides[1]} --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0 "
                     f"--staging-bytes {STAGING} --kv-lease 1s --log warn", WORK)
    wait("readiness of the sidecar", lambda: sidecar.get("/readyz"))
    figures, runs = [], []
    for name in rows:
        clients, transfers = ROWS[name]
        transfers = int(os.environ.get("BENCH_TRANSFERS") or transfers)
        say(f"{name}: {transfers} transfers by {clients} client{'s' * (clients > 1)}")
        run = load(prefill, sidecar, clients, transfers)
        whole, arena = memory(sidecar)
        runs.append({"row": name, **run, "rss_bytes": whole, "arena_rss_bytes": arena})
        say(f"{name}: {run['transfers'] / run['seconds']:.0f} transfers/s; overhead {run['overhead']}; wire {run['wire']}")
        say(f"{name}: stages p50 {run['stages_p50_us']} µs")
        if name == "one":
            row(name, "overhead p50, 1 client", run["overhead"]["p50_us"], "µs", 300, figures)
        elif name == "many":
            row(name, "overhead p99, 64 clients", run["overhead"]["p99_us"] / 1000, "ms", 3, figures)
        else:
            what = f"memory without staging after {transfers} transfers"
            row(name, what, (whole - arena) / (1 << 20), "MiB", 64, figures)
    return {"figures": figures, "runs": runs}


def main():
    rows = sys.argv[1:] or list(ROWS)
    if unknown := set(rows) - set(ROWS):
        sys.exit(f"bench-sidecar: no row {sorted(unknown)}; there are {list(ROWS)}")
    end_with_signals()
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        if missing := [str(binary) for binary in (KVGATE, TOOL) if not binary.is_file()]:
            raise Failure(f"not built: {', '.join(missing)}")
        report = measure(rows)
    except (Failure, subprocess.SubprocessError, OSError, ValueError) as failure:
        sys.exit(f"bench-sidecar: {failure}")
    finally:
        Process.end_all()
    (OUT / "sidecar.json").write_text(json.dumps(report, indent=1) + "\n")
    say(f"wrote {OUT / 'sidecar.json'}")


if __name__ == "__main__":
    main()
