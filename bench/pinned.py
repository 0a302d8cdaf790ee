#!/usr/bin/env python3
"""`make bench-pinned`: what a prefill pod with a small KV cache gets done while decode is the bottleneck; writes target/bench/pinned.json.

  pinned.py              rounds of one burst, gated and direct in turn
  KVGATE_BIN             the binary (target/release/kvgate)
  BENCH_ROUNDS           rounds instead of 5

Two engines (`kvgate sim`, KV in real NIXL memory) with a pace of their own: P computes a prompt in 20 ms, D has four seats and needs 0.3 s for
an answer. P's cache holds eight prompts. 48 requests come at once. P's throughput is what P's own counter says: prefills done, by the time of the
last one. With the direct gate a prompt's blocks are pinned until D has a seat for it; gated, until they have landed in staging, which holds all
48. The paces are sleeps: a machine with two cores shows it as well as a large one, which real engines on its CPUs would not, where P's work takes
D's time. In the long run P can do no more than D takes, with either gate: what is shown is how far it gets ahead.
"""

import asyncio
import json
import os
import pathlib
import re
import shutil
import statistics
import sys
import threading
import time
import types

sys.dont_write_bytecode = True
import seed_load
from processes import Failure, Kvgate, Process, end_with_signals, free_port, speaker, versions, wait

TREE = pathlib.Path(__file__).resolve().parents[1]
OUT = TREE / "target" / "bench"
WORK = OUT / "pinned"
KVGATE = pathlib.Path(os.environ.get("KVGATE_BIN") or TREE / "target" / "release" / "kvgate").resolve()
ROUNDS = int(os.environ.get("BENCH_ROUNDS") or 5)
GATES = ("stage", "direct")
REQUESTS, PROMPT, ANSWER, FIT, SEATS = 48, 500, 64, 8, 4
BLOCKS = -(-(PROMPT + 1) // 16)
MODEL = "--model llama-3.1-8b-shape --layers 4 --kv-heads 2 --head-size 64 --block-size 16 --prefix-caching off --max-num-seqs"
DONE = re.compile(r"^vllm:request_success_total\{[^}]*\} ([0-9.]+)$", re.MULTILINE)
say = speaker("bench-pinned")


class Done(threading.Thread):
    """When P had done how much, looked at every 10 ms."""

    def __init__(self, engine):
        super().__init__()
        self.engine, self.over, self.seen = engine, threading.Event(), []
        self.before = self.count()
        self.begun = time.monotonic()
        self.start()

    def count(self):
        page = (self.engine.get("/metrics") or b"").decode()
        return sum(float(number) for number in DONE.findall(page))

    def run(self):
        while not self.over.wait(0.01):
            self.seen.append((time.monotonic() - self.begun, self.count() - self.before))

    def stop(self):
        self.over.set()
        self.join()

    def all_after(self, count):
        found = next((at for at, done in self.seen if done >= count), None)
        if found is None:
            raise Failure(f"P's counter stays below {count}: {self.seen[-1:]}")
        return found


def deployment():
    sides = [free_port(), free_port()]
    engines, sidecars = {}, {}
    size = {"prefill": (FIT * BLOCKS + 1, 64, "--prefill-tokens-per-s 25000"), "decode": (REQUESTS * 2 * BLOCKS, SEATS, "--tpot-ms 5")}
    for side, (role, (blocks, seats, pace)) in zip(sides, size.items()):
        engines[role] = Kvgate(role, KVGATE, f"sim --role {role} --listen 127.0.0.1:0 --side-channel 127.0.0.1:{side} {MODEL} {seats} "
                               f"--num-blocks {blocks} {pace}", WORK)
        sidecars[role] = Kvgate(f"{role}-sidecar", KVGATE, f"sidecar --role {role} --engine http://127.0.0.1:{engines[role].port} "
                                f"--engine-side-channel 127.0.0.1:{side} --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0 "
                                "--staging-bytes 128MiB --log warn", WORK)
    targets = " ".join(f"--{role} http://127.0.0.1:{engines[role].port},sidecar=http://127.0.0.1:{sidecars[role].port}" for role in engines)
    routers = {gate: Kvgate(f"router-{gate}", KVGATE, f"router --pd-disaggregation {targets} --host 127.0.0.1 --port 0 --gate {gate} --log warn",
                            WORK) for gate in GATES}
    for gate, router in routers.items():
        wait(f"readiness of the router, {gate}", lambda: router.get("/readyz"))
    return engines["prefill"], routers


def burst(prefill, router):
    """Prefills per second, and seconds until the last answer."""
    texts = [os.urandom(PROMPT // 2).hex() for _ in range(REQUESTS)]
    counting = Done(prefill)
    try:
        options = types.SimpleNamespace(concurrency=REQUESTS, output=ANSWER)
        answers = asyncio.run(seed_load.run(("127.0.0.1", router.port), texts, options))
        whole = time.monotonic() - counting.begun
        time.sleep(0.05)
    finally:
        counting.stop()
    if bad := [answer.error for answer in answers if answer.error]:
        raise Failure(f"{len(bad)} of {REQUESTS} requests failed, the first with {bad[0]}")
    return REQUESTS / counting.all_after(REQUESTS), whole


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main():
    end_with_signals()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    try:
        if not KVGATE.is_file():
            raise Failure(f"not built: {KVGATE}")
        prefill, routers = deployment()
        found = {gate: [] for gate in GATES}
        for number in range(1 + ROUNDS):
            for gate in GATES if number % 2 else reversed(GATES):
                rate, whole = burst(prefill, routers[gate])
                say(f"{gate}: {rate:.1f} prefills/s, all answered after {whole:.2f} s")
                # The first round makes the acquaintances.
                found[gate] += [(rate, whole)] * (number > 0)
        pairs = list(zip(found["stage"], found["direct"]))
    except (Failure, OSError, ValueError) as failure:
        sys.exit(f"bench-pinned: {failure}")
    finally:
        Process.end_all()
    faster = spread([gated[0] / direct[0] for gated, direct in pairs])
    longer = spread([gated[1] / direct[1] for gated, direct in pairs])
    target = {"name": "P's prefills per second with a small KV cache while D is the bottleneck, gated / direct", "target": "≥ 1.2 ×", "unit": "×",
              "value": faster, "met": faster["median"] >= 1.2}
    rates = {gate: spread([rate for rate, _ in rounds]) for gate, rounds in found.items()}
    result = {"machine": versions(TREE, KVGATE), "targets": [target], "prefills_per_s": rates, "whole_load": longer, "requests": REQUESTS,
              "prompts_in_cache": FIT, "rounds": found}
    (OUT / "pinned.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"P's prefills/s: {rates['stage']['median']:.1f} gated, {rates['direct']['median']:.1f} direct: {faster['median']:.2f} × "
          f"({faster['min']:.2f}–{faster['max']:.2f}), goal ≥ 1.2 ×, {'met' if target['met'] else 'short'}; "
          f"all answered after {longer['median']:.2f} × the time")


if __name__ == "__main__":
    main()
