#!/usr/bin/env python3
"""How often the router asks for memory: per request and per streamed chunk; writes target/bench/allocations.json. Part of `make bench`.

  BENCH_HOT_BIN              a router that counts (target/hot/bench-hot, `bench-hot router`)
  BENCH_ROUTER_BIN           stubs and load generator (target/release/bench-router)

The router runs as in the binary, over real connections, before stub engines in a process of their own. Counted are calls of Rust's global
allocator, new ones and such that make a piece larger; what one request takes is the difference of two counts with 2,000 requests between them.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

sys.dont_write_bytecode = True
from processes import Failure, Process, end_with_signals, free_port, speaker, versions
from router import WORK, Stub, clean, health, load

TREE = pathlib.Path(__file__).resolve().parents[1]
OUT = TREE / "target" / "bench"
TOOL = pathlib.Path(os.environ.get("BENCH_HOT_BIN") or TREE / "target" / "hot" / "bench-hot").resolve()
REQUESTS = 2000
TOKENS = 20000
STREAMS = 4
# Timers and health checks ask for memory now and then.
NOTHING = 0.01
say = speaker("bench-allocations")


class Counting(Process):
    """A router that tells its allocations."""

    def __init__(self, gate, stub):
        port = free_port()
        command = [TOOL, "router", "--pd-disaggregation", "--port", port, "--gate", gate]
        for side, engine, sidecar in (("prefill", stub.prefill[0], stub.sidecar[0]), ("decode", stub.decode[0], stub.sidecar[1])):
            command += [f"--{side}", f"http://{engine},sidecar=http://{sidecar}"]
        super().__init__(f"counting-{gate}", command, WORK, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        until = time.monotonic() + 30
        while not health(port):
            if time.monotonic() > until or self.child.poll() is not None:
                raise Failure(f"the router does not become ready; see {WORK / self.name}.log")
            time.sleep(0.01)
        self.address = f"127.0.0.1:{port}"

    def so_far(self):
        self.child.stdin.write("\n")
        self.child.stdin.flush()
        told = json.loads(self.child.stdout.readline())
        return told["allocations"] + told["reallocations"]

    def during(self, **options):
        """Allocations while this load runs, which must be without errors."""
        before = self.so_far()
        result = clean(load(self.address, **options), self.name)
        # What a request leaves to be done after its answer.
        time.sleep(0.2)
        return self.so_far() - before, result


def measure():
    stub = Stub(prefill=1, decode=1, sidecar=2)
    found = {}
    for gate in ("direct", "stage"):
        router = Counting(gate, stub)
        router.during(connections=1, requests=200)
        count, _ = router.during(connections=1, requests=REQUESTS)
        found[f"per_request_{gate}"] = count / REQUESTS
        router.during(connections=1, requests=1, stream=True, tokens=TOKENS)
        few, _ = router.during(connections=1, requests=STREAMS, stream=True, tokens=16)
        many, result = router.during(connections=1, requests=STREAMS, stream=True, tokens=TOKENS)
        found[f"per_chunk_{gate}"] = max(0, (many - few) / (result["events"] - STREAMS * 17))
        router.end()
    return found


def judge(found):
    request = max(found["per_request_direct"], found["per_request_stage"])
    chunk = max(found["per_chunk_direct"], found["per_chunk_stage"])
    yield {"name": "allocations per request in the router (the worse gate)", "target": "≤ 60", "value": request, "met": request <= 60}
    yield {"name": "allocations per streamed chunk in the router", "target": "0", "value": round(chunk, 3), "met": chunk < NOTHING}


def main():
    end_with_signals()
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        found = measure()
    except (Failure, subprocess.SubprocessError, OSError, ValueError) as failure:
        sys.exit(f"bench-allocations: {failure}")
    finally:
        Process.end_all()
    targets = list(judge(found))
    for name, value in found.items():
        print(f"{name:24} {value:10.2f}")
    for target in targets:
        print(f"{target['name']:60} {target['target']:>6} {target['value']:10.2f}  {'met' if target['met'] else 'short'}")
    result = {"machine": versions(TREE), "targets": targets, "figures": found}
    (OUT / "allocations.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
