#!/usr/bin/env python3
"""`make bench`: every bench, one after another, within BENCH_MINUTES (30); writes target/bench/results.json and the tables of the docs.

  run.py [AREA…]       areas: nixl router allocations sidecar pinned scale vllm (all by default)
  BENCH_MINUTES        the time for all of them; an area that does not get done in its time is given up, and said to be

Prints one table per area, each target beside its figure, met or short. Exit 0 when every area was measured, whatever the figures are; an area
that fails is named with why, and the others go on.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True
import report
from processes import end_with_signals, speaker, versions

TREE = pathlib.Path(__file__).resolve().parents[1]
PLOTS = pathlib.Path(os.environ.get("BENCH_PLOTS_BIN") or TREE / "target" / "release" / "bench-plots")
# Script and arguments, the minutes that are kept for it, and the minutes that it gets at most. vLLM comes last: installing it takes what is left.
AREAS = {
    "nixl": (["nixl.py"], 5, 9),
    "router": (["router.py"], 6, 8),
    "allocations": (["allocations.py"], 1, 2),
    "sidecar": (["sidecar.py"], 2, 5),
    "pinned": (["pinned.py"], 1, 2),
    "scale": (["scale.py"], 4, 6),
    "vllm": (["vllm.py", "tiny", "seats-8"], 7, 15),
}
say = speaker("bench")


def run(area, minutes):
    """Nothing when all went well, else why not."""
    command = [sys.executable, TREE / "bench" / AREAS[area][0][0], *AREAS[area][0][1:]]
    # A group of its own: what it leaves behind when it is given up can be ended by the group's number.
    child = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
    try:
        code = child.wait(minutes * 60)
        return None if code == 0 else f"bench/{AREAS[area][0][0]} ended with {code}"
    except subprocess.TimeoutExpired:
        return f"it takes more than the {minutes:.0f} minutes that it had"
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def main():
    known = [area for area, (command, _, _) in AREAS.items() if (TREE / "bench" / command[0]).exists()]
    wanted = sys.argv[1:] or known
    if unknown := [area for area in wanted if area not in known]:
        sys.exit(f"bench: no such area: {', '.join(unknown)} (areas: {' '.join(known)})")
    end_with_signals()
    until = time.monotonic() + float(os.environ.get("BENCH_MINUTES") or 30) * 60
    areas, not_run = {}, {}
    for place, area in enumerate(wanted):
        left = (until - time.monotonic()) / 60
        kept = sum(AREAS[later][1] for later in wanted[place + 1:])
        minutes = min(AREAS[area][2], max(left - kept, min(left, AREAS[area][1])))
        if minutes < 0.5:
            not_run[area] = "no time was left"
            continue
        say(f"{area}: at most {minutes:.0f} minutes")
        began, load = time.time(), os.getloadavg()[0]
        if why := run(area, minutes):
            say(f"{area}: {why}")
            not_run[area] = why
        else:
            areas[area] = {**versions(TREE), "load": load, "date": time.strftime("%Y-%m-%d", time.gmtime(began))}
    results, changed = report.write(areas, not_run)
    report.show(results)
    for page in changed:
        say(f"wrote {page}")
    if PLOTS.is_file():
        plotted = subprocess.run([PLOTS, report.OUT, TREE / "docs" / "benchmarks"])
        if plotted.returncode:
            not_run["plots"] = f"bench-plots ended with {plotted.returncode}"
            say(not_run["plots"])
    say(f"wrote {report.OUT / 'results.json'}")
    sys.exit(1 if not_run else 0)


if __name__ == "__main__":
    main()
