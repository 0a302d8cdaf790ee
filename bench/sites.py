#!/usr/bin/env python3
"""Who asks for memory while the router serves: allocations per request by call site; prints a table, writes nothing.

  sites.py [direct|stage|stream] [ROWS]     each row is a place in kvgate's code with what is allocated there or for it (stage, 40 rows);
                                            `stream` counts the chunks of a streamed answer instead of requests
  BENCH_HOT_BIN, BENCH_ROUTER_BIN    as for allocations.py

The router of `bench/allocations.py` runs under valgrind's DHAT twice, with so many and three times so many requests: what the second run asks
for beyond the first is what the requests take. An allocation belongs to the innermost function on its stack that is kvgate's; which crate's
code called the allocator is told beside. A piece of memory that is made larger counts as one here, however often.
"""

import collections
import json
import re
import subprocess
import sys
import time

sys.dont_write_bytecode = True
from allocations import TOOL, TREE
from processes import Failure, Process, end_with_signals, free_port, speaker
from router import WORK, Stub, clean, health, load

REQUESTS = 300
CHUNKS = 5000
FOLDERS = ("router/", "vllm/", "serving/", "kv/", "telemetry/")
# What allocates for others.
PLUMBING = {"library", "bytes", "stats_alloc", "hashbrown", "futures-util", "tokio-util"}
say = speaker("sites")


def watched(what, stub, count):
    """Blocks by stack, of a router that has served so many."""
    port, out = free_port(), WORK / f"dhat-{what}-{count}.json"
    gate = "direct" if what == "stream" else what
    command = ["valgrind", "--tool=dhat", f"--dhat-out-file={out}", "--num-callers=200", f"--fullpath-after={TREE}/", TOOL, "router", "--pd-disaggregation",
               "--port", port, "--gate", gate]
    for side, engine, sidecar in (("prefill", stub.prefill[0], stub.sidecar[0]), ("decode", stub.decode[0], stub.sidecar[1])):
        command += [f"--{side}", f"http://{engine},sidecar=http://{sidecar}"]
    router = Process(f"watched-{what}", command, WORK, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not health(port):
        if time.monotonic() > until or router.child.poll() is not None:
            raise Failure(f"the router does not become ready; see {WORK / router.name}.log")
        time.sleep(0.1)
    amount = {"requests": 1, "stream": True, "tokens": count} if what == "stream" else {"requests": count}
    clean(load(f"127.0.0.1:{port}", connections=1, **amount), router.name)
    router.child.stdin.close()
    router.child.wait(60)
    Process.running.remove(router)
    profile = json.loads(out.read_text())
    frames = [re.sub(r"^0x[0-9A-F]+: ", "", frame) for frame in profile["ftbl"]]
    blocks = collections.Counter()
    for point in profile["pps"]:
        blocks[tuple(frames[at] for at in point["fs"])] += point["tbk"]
    return blocks


def place(frame):
    """Function, file and line."""
    name, _, where = frame.rpartition(" (")
    name = re.sub(r"::h[0-9a-f]{16}$", "", name)
    return name, where.rstrip(")")


def crate(where):
    """Whose code it is by its file's path: a folder of this tree, a crate of the registry, the standard library."""
    if found := re.search(r"/registry/src/[^/]+/(.+?)-\d", where):
        return found[1]
    return "library" if "/library/" in where or where.startswith(("library/", "in ")) else where.partition("/")[0]


def told(stack):
    """Who it is for, and whose code asked."""
    ours, who = None, None
    for name, where in map(place, stack):
        of = crate(where)
        if of in PLUMBING or where.startswith("bench/hot/src/counting.rs"):
            continue
        who = who or of
        if "/registry/" not in where and where.startswith(FOLDERS):
            ours = f"{where}  {name}"
            break
    return ours or "(outside of kvgate's code)", who or "?"


def main():
    what = sys.argv[1] if len(sys.argv) > 1 else "stage"
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    if what not in ("direct", "stage", "stream"):
        sys.exit(__doc__)
    count, each = (CHUNKS, "chunk") if what == "stream" else (REQUESTS, "request")
    end_with_signals()
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        stub = Stub(prefill=1, decode=1, sidecar=2)
        few, many = (watched(what, stub, number) for number in (count, 3 * count))
    except (Failure, subprocess.SubprocessError, OSError, ValueError) as failure:
        sys.exit(f"sites: {failure}")
    finally:
        Process.end_all()
    places, crates = collections.Counter(), collections.Counter()
    for stack, blocks in many.items():
        share = (blocks - few.get(stack, 0)) / (2 * count)
        ours, who = told(stack)
        places[ours, who] += share
        crates[who] += share
    least = 0.0005 if what == "stream" else 0.05
    print(f"{what}: {sum(crates.values()):.3f} allocations per {each}\n\nby the crate that asked")
    for who, share in crates.most_common():
        if share >= least:
            print(f"{share:9.3f}  {who}")
    print("\nby the innermost function of kvgate's, and the crate that asked")
    for (ours, who), share in places.most_common(rows):
        if share >= least:
            print(f"{share:9.3f}  {who:16} {ours[:170]}")


if __name__ == "__main__":
    main()
