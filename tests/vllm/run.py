#!/usr/bin/env python3
"""`make test-vllm`: kvgate beside an unmodified vLLM prefill/decode pair; writes target/vllm/report.json.

  run.py [PHASE…]       phases: base lease cache (all by default)
  VLLM_VERSION=0.32.0   which pinned list below requirements/ is installed
  KVGATE_BIN=PATH       the binary under test (target/debug/kvgate)
  REQUIRE=vllm          a machine that cannot run vLLM is a failure, not a skip
"""

import json
import os
import pathlib
import shutil
import signal
import sys
import time
import traceback

sys.dont_write_bytecode = True  # For this program's own modules only; the engines need theirs.

import checks
import controls
import gate as gates
import install
import kills
import lease
import speed
from pair import Server, wait_up
from groups import wait_for
from report import Report
from say import START, Failure, grumbles, problem, progress

TREE = pathlib.Path(__file__).resolve().parents[2]
ROOT = TREE / "target" / "vllm"
PHASES = ("base", "lease", "cache")
D_SEATS = 4  # Requests that each rank of D takes at a time: with 16 clients some must queue.


class Bench:
    """The pair, kvgate's processes and the report, for the phases."""

    def __init__(self, python, model, folder, report):
        self.python, self.model, self.folder, self.report = python, model, folder, report
        self.p, self.d = (Server(side, python, model, folder) for side in "pd")
        binary = pathlib.Path(os.environ.get("KVGATE_BIN") or TREE / "target" / "debug" / "kvgate")
        if not binary.is_file():
            raise Failure(f"{binary} is not there: run `cargo build`, or set KVGATE_BIN")
        # A copy: a build meanwhile must not put two versions into one run.
        self.gate = gates.Gate(shutil.copy2(binary, folder / "kvgate"), folder, self.p, self.d)
        self.sidecars = {}

    def beside(self, lease="30s"):
        """The two sidecars that stay for all phases of one lease of P."""
        self.sidecars["p"] = self.gate.sidecar("p-sidecar", self.p, lease=lease)
        self.sidecars["d"] = self.gate.sidecar("d-sidecar", self.d)

    def end(self):
        self.gate.end()
        self.p.stop()
        self.d.stop()


def engine_ids(sidecar):
    """Each rank's engine id; empty while one is not known."""
    ids = {rank: shown.get("engine_id") for rank, shown in gates.ranks(sidecar).items()}
    return ids if all(ids.values()) else {}


def base(bench):
    """Prefix caching off: every check and control that needs a fresh load on D, then P is killed before a transfer."""
    report, gate, p, d = bench.report, bench.gate, bench.p, bench.d
    p.start()
    d.start(max_seqs=D_SEATS)
    wait_up(p, d)
    bench.beside()
    ps, ds = bench.sidecars["p"], bench.sidecars["d"]
    anyway = gate.router("router-any", ps, ds, "--rank-pairing", "any", "--allow-rank-headers")
    same = gate.router("router-same", ps, ds)
    direct = gate.router("router-direct", ps, ds, "--gate", "direct")
    for router in (anyway, same, direct):
        gate.wait_ready(router)
    checks.rank_pairs(report, anyway, ds, d)
    checks.same_rank(report, same, d)
    checks.many_clients(report, same, d)
    checks.openai_client(report, same, d, bench.python)
    checks.client_leaves(report, same, ds, p, d)
    checks.bench_serve(report, same, bench.python, bench.model, bench.folder)
    controls.direct_baseline(report, direct, d)
    controls.other_bytes(report, gate, ps, d)
    controls.other_library(report, gate, p, d, install.other_nixl_library(TREE))
    speed.record(report, {"stage": same, "direct": direct}, p, d, bench.folder)
    controls.load_is_shown(report, ds)
    gate.end("router-any", "router-same", "router-direct")
    kills.before_transfer(report, gate, p, d, ps)


def short_lease(bench):
    """P with a lease of 2 s and a small cache, so that its blocks are reused soon; then P is killed during a transfer."""
    report, gate, p, d = bench.report, bench.gate, bench.p, bench.d
    before = engine_ids(bench.sidecars["p"]) if bench.sidecars else {}
    p.stop()
    p.start(lease=lease.LEASE, kv_mib=16)
    if not d.process:
        d.start()
    wait_up(p, d)
    if before:
        kills.restarted(report, "P", bench.sidecars["p"], before)
    gate.end()
    bench.beside(f"{lease.LEASE}s")
    lease.run(report, gate, p, d, bench.sidecars["p"], bench.sidecars["d"])
    kills.during_transfer(report, gate, p, d, bench.sidecars["p"], f"{lease.LEASE}s")


def cache(bench):
    """Prefix caching on, both engines restarted beside running sidecars, D's on another build of NIXL than its sidecar and
    P; then P is killed after its KV has landed."""
    report, gate, p, d = bench.report, bench.gate, bench.p, bench.d
    before = {}
    if d.process:
        gate.end()
        bench.sidecars = {"d": gate.sidecar("d-sidecar", d)}
        before = wait_for("the sidecar to know D", lambda: engine_ids(bench.sidecars["d"]), 30)
        d.stop()
    p.stop()
    p.start(prefix_cache=True)
    other = install.other_nixl_package(ROOT, bench.python)
    d.start(prefix_cache=True, other_nixl=other)
    wait_up(p, d)
    controls.engine_library(report, d, other)
    if before:
        kills.restarted(report, "D", bench.sidecars["d"], before)
        bench.sidecars["p"] = gate.sidecar("p-sidecar", p)
    else:
        bench.beside()
    ps, ds = bench.sidecars["p"], bench.sidecars["d"]
    anyway = gate.router("router-any", ps, ds, "--rank-pairing", "any", "--allow-rank-headers")
    gate.wait_ready(anyway)
    checks.cached_prefixes(report, anyway, ds, p, d)
    gate.end("router-any")
    kills.after_landing(report, gate, p, d, ps, ds)


def on_signal(number, frame):
    raise Failure(f"ended by signal {number}")


def main():
    signal.signal(signal.SIGTERM, on_signal)
    wanted = [phase for phase in PHASES if not sys.argv[1:] or phase in sys.argv[1:]]
    report = Report(install.version())
    (ROOT / "report.json").unlink(missing_ok=True)
    try:
        install.fits()
        python = install.environment(ROOT)
        model = install.model(ROOT, python)
    except install.Missing as missing:
        required = "vllm" in os.environ.get("REQUIRE", "").replace(",", " ").split()
        (problem if required else print)(f"{'FAILED' if required else 'SKIPPED'}: {missing}")
        return 1 if required else 0
    except Failure as failure:
        problem(f"FAILED: {failure}")
        return 1
    folder = ROOT / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    bench = None
    try:
        bench = Bench(python, model, folder, report)
        for phase in wanted:
            progress(f"phase {phase}")
            {"base": base, "lease": short_lease, "cache": cache}[phase](bench)
    except Failure as failure:
        report.check("run", False, str(failure))
    except KeyboardInterrupt:
        report.check("run", False, "interrupted")
    except Exception:
        report.check("run", False, traceback.format_exc())
    finally:
        if bench:
            progress("ending everything")
            bench.end()
    good = report.write(ROOT / "report.json", time.monotonic() - START)
    if not good:
        for log in sorted(folder.glob("*.log")):
            complaints = grumbles(log)
            if complaints:
                problem(f"{log}:\n{complaints}")
        problem("failed:\n" + "\n".join(f"  {line}" for line in report.failures))
    keys = ("vllm", "requests", "equal", "rank_pairs", "ttft_ratio", "pinned_ratio", "ok", "seconds")
    shown = {key: report.data[key] for key in keys}
    print(f"test-vllm: {json.dumps(shown)}\ntest-vllm: {ROOT / 'report.json'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
