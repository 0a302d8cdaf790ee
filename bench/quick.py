#!/usr/bin/env python3
"""`make bench-quick`: instructions of the hot paths, beside the stored ones of bench/quick.json; fails where a path takes over 5 % more.

  quick.py [WORD…]          only paths whose name has one of these words
  quick.py --record [WORD…] takes what is counted as the new baseline
  BENCH_HOT_BIN             the paths (target/hot/bench-hot)

Instructions do not depend on how busy a machine is, so this can be asked of every change; what they cost in time is asked by `make bench`. Each
path is gone twice, N and 2 N times, under valgrind's callgrind: the difference is what N times cost, without start and end. The baseline belongs
to one architecture and one compiler; on another architecture nothing is judged, with another compiler it is, and the line says so.
"""

import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys

sys.dont_write_bytecode = True
from processes import Failure, speaker

TREE = pathlib.Path(__file__).resolve().parents[1]
TOOL = pathlib.Path(os.environ.get("BENCH_HOT_BIN") or TREE / "target" / "hot" / "bench-hot").resolve()
BASELINE = TREE / "bench" / "quick.json"
MOST = 1.05
# Without these, whoever counts depends on what the processor offers, and the router on who looks on.
ENV = {**{key: value for key, value in os.environ.items() if not key.startswith(("RUST_LOG", "KVGATE_"))}, "LC_ALL": "C"}
say = speaker("bench-quick")


def instructions(path, times):
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", TOOL, "run", path, str(times)]
    ran = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=600)
    collected = re.search(r"Collected : (\d+)", ran.stderr)
    if ran.returncode or not collected:
        raise Failure(f"{path}: {ran.stderr.strip()[-2000:]}")
    return int(collected[1])


def count(path, times):
    """Of going it once."""
    return (instructions(path, 2 * times) - instructions(path, times)) / times


def environment():
    rustc = subprocess.run([os.environ.get("RUSTC", "rustc"), "--version"], capture_output=True, text=True).stdout.strip()
    return {"architecture": platform.machine(), "rustc": rustc}


def main():
    words = sys.argv[1:]
    record = "--record" in words
    words = [word for word in words if word != "--record"]
    if not shutil.which("valgrind"):
        why = "bench-quick: needs valgrind (Debian: apt-get install valgrind)"
        if "valgrind" in os.environ.get("REQUIRE", "").split(","):
            sys.exit(why)
        print(f"SKIPPED: {why}")
        return
    here = environment()
    known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {"instructions": {}}
    before = known["instructions"]
    judged = known.get("architecture", here["architecture"]) == here["architecture"]
    if not judged:
        say(f"SKIPPED: the baseline is of {known['architecture']}, this is {here['architecture']}: nothing is judged")
    elif known.get("rustc", here["rustc"]) != here["rustc"]:
        say(f"the baseline is of {known['rustc']}, this is {here['rustc']}: if that is the cause of a difference, record it anew")
    counted, more = {}, []
    try:
        paths = json.loads(subprocess.run([TOOL, "list"], capture_output=True, check=True, text=True).stdout)
        for path in paths:
            name = path["name"]
            if words and not any(word in name for word in words):
                continue
            counted[name] = round(count(name, path["times"]))
            was = before.get(name)
            ratio = counted[name] / was if was else None
            over = judged and not record and ratio is not None and ratio > MOST
            more += [name] if over else []
            beside = f"{ratio:6.3f} × {was:>10,}" if ratio else "no baseline"
            print(f"{name:45} {counted[name]:>10,} instructions  {beside}{'  MORE' if over else ''}", flush=True)
    except (Failure, subprocess.SubprocessError, OSError, ValueError) as failure:
        sys.exit(f"bench-quick: {failure}")
    if record:
        kept = {**before, **counted} if words else counted
        BASELINE.write_text(json.dumps({**here, "instructions": kept}, indent=1, ensure_ascii=False) + "\n")
        say(f"wrote {BASELINE.relative_to(TREE)}")
    elif missing := [name for name in counted if name not in before]:
        sys.exit(f"bench-quick: no baseline for {', '.join(missing)}: make bench-quick RECORD=1")
    elif more:
        sys.exit(f"bench-quick: over {MOST - 1:.0%} more instructions: {', '.join(more)}. If that is meant: make bench-quick RECORD=1")


if __name__ == "__main__":
    main()
