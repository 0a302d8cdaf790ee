#!/usr/bin/env python3
"""`make profile-router` and `make profile-sidecar`: where the time goes, as a flame graph and as a list.

  profile.py router [direct|stage|stream]    target/bench/profile/router-….svg and .txt (stage by default)
  profile.py sidecar                         target/bench/profile/sidecar.svg and .txt
  PROFILE_SECONDS                            how long is sampled (10)
  KVGATE_BIN, BENCH_SIDECAR_BIN              the binaries (target/release/kvgate, target/release/bench-sidecar)

perf samples the one process (Debian: apt-get install linux-perf) while the load of `make bench-router` or `make bench-sidecar` runs;
inferno, which cargo installs below target/inferno, draws the graph. What the kernel does for the process is in it where the machine lets
perf look there (kernel.perf_event_paranoid at most 1).
"""

import os
import pathlib
import shutil
import subprocess
import sys
import time

sys.dont_write_bytecode = True
from processes import PATIENCE, Failure, Kvgate, Process, end_with_signals, free_port, speaker

TREE = pathlib.Path(__file__).resolve().parents[1]
OUT = TREE / "target" / "bench" / "profile"
RELEASE = TREE / "target" / "release"
CLIENTS = pathlib.Path(os.environ.get("BENCH_SIDECAR_BIN") or RELEASE / "bench-sidecar").resolve()
KVGATE = pathlib.Path(os.environ.get("KVGATE_BIN") or RELEASE / "kvgate").resolve()
INFERNO = "0.12.8"
SECONDS = float(os.environ.get("PROFILE_SECONDS") or 10)
say = speaker("profile")


def inferno():
    """The programs that fold stacks and draw them."""
    root = TREE / "target" / "inferno"
    stamp = root / ".installed"
    if not (stamp.exists() and stamp.read_text() == INFERNO):
        say(f"installing inferno {INFERNO} below target/inferno")
        command = [os.environ.get("CARGO", "cargo"), "install", "--quiet", "--locked", "--root", root, "--version", INFERNO, "inferno"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        stamp.write_text(INFERNO)
    return root / "bin" / "inferno-collapse-perf", root / "bin" / "inferno-flamegraph"


def sample(process, name, title):
    """Samples it for a while; writes the graph and the list."""
    collapse, draw = inferno()
    data = OUT / f"{name}.data"
    # Frame pointers are not kept in release builds: stacks are unwound afterwards.
    command = ["perf", "record", "--quiet", "--freq", "499", "--call-graph", "dwarf,16384", "--output", data, "--pid", process.child.pid]
    say(f"sampling {name} for {SECONDS:.0f} s")
    recorder = Process("perf", [*command, "--", "sleep", SECONDS], OUT)
    if recorder.child.wait(SECONDS + PATIENCE):
        raise Failure(f"perf cannot sample; see {OUT / 'perf.log'}")
    say("unwinding stacks")
    script = OUT / f"{name}.stacks"
    with open(script, "wb") as stacks:
        subprocess.run(["perf", "script", "--no-inline", "--input", data], stdout=stacks, stderr=subprocess.DEVNULL, check=True, timeout=600)
    folded = subprocess.run([collapse, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
    with open(OUT / f"{name}.svg", "wb") as graph:
        subprocess.run([draw, "--title", title], input=folded, stdout=graph, check=True)
    (OUT / f"{name}.txt").write_text(listed(folded.decode(errors="replace")))
    for large in (data, script):
        large.unlink()
    print((OUT / f"{name}.txt").read_text())
    say(f"wrote {OUT / name}.svg and .txt")


def listed(folded):
    """Functions by the share of samples that they are at the top of, and that they are anywhere in."""
    alone, within, total = {}, {}, 0
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        frames, count = stack.split(";"), int(count)
        total += count
        alone[frames[-1]] = alone.get(frames[-1], 0) + count
        for frame in set(frames):
            within[frame] = within.get(frame, 0) + count
    if not total:
        raise Failure("the process used no CPU while it was sampled")
    said = []
    for what, counts in (("by itself", alone), ("with what it calls", within)):
        said += [f"share of CPU time, {what}"]
        most = sorted(counts.items(), key=lambda entry: -entry[1])[:40]
        said += [f"{count / max(total, 1):7.1%}  {name[:150]}" for name, count in most] + [""]
    return "\n".join(said)


def router(kind="stage"):
    import router as bench

    if kind not in ("direct", "stage", "stream"):
        raise Failure(f"no such load: {kind} (direct, stage, stream)")
    bench.WORK.mkdir(parents=True, exist_ok=True)
    stub = bench.Stub(prefill=1, decode=1, sidecar=2)
    under = bench.Router("direct" if kind == "stream" else kind, stub.prefill, stub.decode[0], stub.sidecar)
    stream = {"stream": True, "tokens": 2000} if kind == "stream" else {}
    options = {"connections": 16, "seconds": int(SECONDS) + 5, **stream}
    words = [word for key, value in options.items() for word in ([f"--{key}"] if value is True else [f"--{key}", str(value)])]
    Process("load", [bench.TOOL, "load", "--to", under.address, *words], OUT)
    time.sleep(2)
    sample(under, f"router-{kind}", f"kvgate router, {kind}")


def sidecar():
    sides = free_port(), free_port()
    engine = "--listen 127.0.0.1:0 --model m --layers 2 --kv-heads 2 --head-size 16 --num-blocks 8192 --max-num-seqs 256"
    prefill = Kvgate("prefill", KVGATE, f"sim --role prefill {engine} --side-channel 127.0.0.1:{sides[0]}", OUT)
    decode = Kvgate("decode", KVGATE, f"sim --role decode {engine} --side-channel 127.0.0.1:{sides[1]}", OUT)
    under = Kvgate("sidecar", KVGATE, f"sidecar --role decode --engine http://127.0.0.1:{decode.port} "
                   f"--engine-side-channel 127.0.0.1:{sides[1]} --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0 "
                   "--staging-bytes 16MiB --kv-lease 1s --log warn", OUT)
    time.sleep(3)
    load = [CLIENTS, "--prefill", f"127.0.0.1:{prefill.port}", "--sidecar", f"127.0.0.1:{under.port}", "--clients", 16]
    Process("load", [*load, "--transfers", 1_000_000, "--warm", 0], OUT)
    time.sleep(2)
    sample(under, "sidecar", "kvgate sidecar, decode pod, 16 clients")


def main():
    what = {"router": router, "sidecar": sidecar}.get(sys.argv[1] if len(sys.argv) > 1 else "")
    if not what:
        sys.exit(__doc__)
    if not shutil.which("perf"):
        sys.exit("profile: needs perf (Debian: apt-get install linux-perf)")
    end_with_signals()
    OUT.mkdir(parents=True, exist_ok=True)
    try:
        # Before there is a load: it does not wait.
        inferno()
        what(*sys.argv[2:])
    except (Failure, subprocess.SubprocessError, OSError, ValueError) as failure:
        sys.exit(f"profile: {failure}")
    finally:
        Process.end_all()


if __name__ == "__main__":
    main()
