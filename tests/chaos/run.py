#!/usr/bin/env python3
"""`make chaos`: the demo's deployment, doubled, as real processes over real NIXL, under load, while its processes are killed, frozen,
drained and starved; writes target/chaos/report.json and ends with 1 when a promise was broken.

  run.py [--seed N] [--seconds N] [--once] [--least REQUESTS] [--control skip-gate|corrupt-staging] [--binary FILE] [--into FOLDER]

The seed decides which faults come, on whom and when; what they meet is for the machine to say.
"""

import argparse
import asyncio
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import traceback

sys.dont_write_bytecode = True

import evidence
from faults import Faults
from load import Load
from pods import Pods
from processes import Process
from say import Failure, say

TREE = pathlib.Path(__file__).resolve().parents[2]
DISK_MIB, SHM_MIB = 48, 256
STREAMS = 64
# Between the beginnings of two faults, in seconds.
GAPS, GAPS_ONCE = (0.5, 3.5), (0.2, 1.0)
RECOVERED_WITHIN = 40
# A slot is free once its read has ended; what nobody collects, after two leases.
FREE_WITHIN = 60


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=220, help="how long faults are made")
    parser.add_argument("--once", action="store_true", help="only SIGKILL and SIGSTOP, each kind of process once each, and no longer than that takes")
    parser.add_argument("--binary", type=pathlib.Path, default=TREE / "target" / "debug" / "kvgate")
    parser.add_argument("--into", type=pathlib.Path, default=TREE / "target" / "chaos", help="the report and the logs; what is there goes")
    parser.add_argument("--least", type=int, default=2000, help="fewer requests are a failure")
    parser.add_argument("--control", choices=["skip-gate", "corrupt-staging"], help="a fault that must be found out")
    parser.add_argument("--private", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def enter_own_mounts():
    """Starts this program anew where what it mounts is seen by nobody else, if the machine lets it."""
    command = ["unshare", "--mount", "--propagation", "private", *(["--map-root-user"] if os.getuid() else [])]
    try:
        allowed = subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/dev/shm"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if allowed:
        os.execvp(command[0], [*command, sys.executable, *sys.argv, "--private"])
    say("SKIPPED: full /dev/shm and full disk, as this user may not mount a file system of its own")


def mount(folder, mib):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", folder], check=True)


async def run(args, folder):
    dice = random.Random(args.seed)
    disk = args.into / "disk"
    disk.mkdir()
    if args.private:
        mount(disk, DISK_MIB)
        mount("/dev/shm", SHM_MIB)
    if not args.binary.is_file():
        raise Failure(f"{args.binary} is not there: run `cargo build`")
    # A copy: a build meanwhile must not put two versions into one run.
    pods = Pods(shutil.copy2(args.binary, folder / "kvgate"), folder, disk, args.control)
    load = Load(pods, random.Random(dice.random()))
    faults = Faults(pods, random.Random(dice.random()), disk, args.private, args.once)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    broken = []
    try:
        await pods.start()
        await load.learn()
        say(f"every rank is ready; {STREAMS} streams, {'each fault once' if args.once else f'faults for {args.seconds:.0f} s'}")
        await exercise(args, pods, load, faults, stop, broken)
    except Failure as failure:
        broken.append(str(failure))
    except Exception:
        broken.append(traceback.format_exc())
    finally:
        await Process.end_all()
        shutil.copytree(disk, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("full"))
    found = evidence.judge(pods.request_logs, [folder / log.name for log in pods.receipt_logs])
    return report(args, load, faults, found, broken)


async def exercise(args, pods, load, faults, stop, broken):
    under_load = asyncio.create_task(load.run(STREAMS, stop))
    over = asyncio.Event()
    made = asyncio.create_task(faults.run(over, GAPS_ONCE if args.once else GAPS))
    watch = asyncio.create_task(look_after(broken))
    try:
        done, _ = await asyncio.wait({under_load, made}, timeout=args.seconds, return_when=asyncio.FIRST_COMPLETED)
        over.set()
        await made
        stop.set()
        await under_load
        say("no more faults")
        await pods.ready(pods.router)
        await recovers(load)
        load.held = await leaked(pods)
        load.quarantined = await pods.quarantined()
    finally:
        for task in (under_load, made, watch):
            task.cancel()


async def look_after(broken):
    """Nobody ends unless he is told to; whoever does is started again, so that the run goes on."""
    while True:
        for process in Process.all:
            if process.has_ended_by_itself():
                broken.append(f"{process.name} ended by itself with {process.child.returncode}")
                say(broken[-1])
                async with process.busy:
                    await process.start()
        await asyncio.sleep(0.1)


async def recovers(load):
    """Everything that can be right is, soon after the last fault."""
    until = asyncio.get_running_loop().time() + RECOVERED_WITHIN
    while set(await asyncio.gather(*(load.send() for _ in range(STREAMS)))) != {"right"}:
        if asyncio.get_running_loop().time() > until:
            raise Failure(f"requests still fail {RECOVERED_WITHIN} s after the faults: {dict(load.errors)}")
    say("everything works again")


async def leaked(pods):
    """What is still held when everything has had the time to be given back."""
    until = asyncio.get_running_loop().time() + FREE_WITHIN
    while held := await pods.held():
        if asyncio.get_running_loop().time() > until:
            break
        await asyncio.sleep(0.5)
    say(f"still held: {held or 'nothing'}")
    return held


def report(args, load, faults, found, broken):
    """Prints the table, writes the report, and says whether every promise was kept."""
    panics = [log.name for log in args.into.glob("run/*.log") if b"panicked at" in log.read_bytes()]
    held = getattr(load, "held", None)
    broken += Process.crashes + faults.bad_ends + load.broken + [f"a panic in {name}" for name in panics]
    broken += [f"decode without receipt: {line}" for line in found["uncovered"][:20]]
    if held:
        broken.append(f"leaked: {held}")
    data = {
        "seed": args.seed,
        "requests": sum(load.ended.values()),
        "right": load.ended["right"],
        "clear_errors": load.ended["error"],
        "client_left": load.ended["left"],
        "wrong": load.ended["wrong"],
        "hung": load.ended["hung"],
        "leaked_slots": None if held is None else sum(held.values()),
        "decodes": found["decodes"],
        "decodes_without_receipt": len(found["uncovered"]),
        "faults_injected": sum(faults.made.values()),
        "quarantined_slots": getattr(load, "quarantined", None),
        "unreadable_lines": found["unreadable_lines"],
        "starts_repeated": sum(process.failed_starts for process in Process.all),
    }
    if data["requests"] < args.least:
        broken.append(f"only {data['requests']} requests were sent, {args.least} are due")
    print()
    for name, value in data.items():
        print(f"{name.replace('_', ' '):<26} {value}")
    for title, counts in (("faults", faults.made), ("clear errors", load.errors)):
        print(f"{title}: {', '.join(f'{what} {count}' for what, count in sorted(counts.items()))}")
    data |= {"faults": dict(faults.made), "errors": dict(load.errors), "broken": broken, "ok": not broken}
    (args.into / "report.json").write_text(json.dumps(data, indent=1) + "\n")
    for line in broken[:20]:
        print(f"BROKEN: {line}")
    print(f"chaos: seed {args.seed}: {'every promise was kept' if data['ok'] else f'{len(broken)} promises were broken'}; "
          f"{args.into / 'report.json'}, logs in {args.into / 'run'}")
    return data["ok"]


def main():
    args = arguments()
    if not args.private:
        if args.seed is None:
            args.seed = int.from_bytes(os.urandom(4))
            sys.argv += ["--seed", str(args.seed)]
        say(f"seed {args.seed}")
        enter_own_mounts()
    shutil.rmtree(args.into, ignore_errors=True)
    folder = args.into / "run"
    folder.mkdir(parents=True)
    return 0 if asyncio.run(run(args, folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
