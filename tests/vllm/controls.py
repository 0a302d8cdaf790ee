"""Controls: what must come out differently, so that the checks are known to check something."""

import os

import gate as gates
import web
from pair import DP
from groups import wait_for
from prompts import prompt


def direct_baseline(report, router, d, requests=8):
    """The same pair without the gate, as other routers do it: it works when nothing goes wrong."""
    good = 0
    for number in range(requests):
        text = prompt(100 + 40 * number)
        answer = web.complete(router, text, stream=number % 2 == 1)
        good += answer.same_as(web.complete(d.url, text)) and answer.headers.get("x-kvgate-path") == "direct"
    report.check("--gate direct on the same pair", good == requests, f"{good} of {requests} equal")
    report.data["direct_equal"] = f"{good}/{requests}"


def other_bytes(report, gate, prefill_sidecar, d):
    """Sidecars that change what has landed: D's text must differ, or the KV was not what the text came from."""
    zeroed = _differing(report, gate, prefill_sidecar, d, "zero-staging")
    report.data["control_zeroed_differs"] = zeroed
    _differing(report, gate, prefill_sidecar, d, "corrupt-staging")


def _differing(report, gate, prefill_sidecar, d, fault, requests=6):
    sidecar = gate.sidecar(f"d-sidecar-{fault}", d, "--fault", fault)
    router = gate.router(f"router-{fault}", prefill_sidecar, sidecar)
    gate.wait_ready(router)
    differs, shown = 0, ""
    for _ in range(requests):
        text = prompt(500)
        answer = web.complete(router, text)
        reference = web.complete(d.url, text)
        differs += answer.good and reference.good and answer.text != reference.text
        shown = f"{answer.brief()} instead of {reference.brief()}"
    gate.end(f"router-{fault}", f"d-sidecar-{fault}")
    report.check(f"{fault} gives another text", differs == requests, f"{differs} of {requests}: {shown}")
    return differs == requests


def load_is_shown(report, sidecar):
    """The sidecar shows what each rank's engine says about itself."""
    def shown():
        ranks = gates.ranks(sidecar)
        return ranks if ranks and all("kv_usage" in rank["load"] for rank in ranks.values()) else None
    loads = {rank: said["load"] for rank, said in wait_for("load figures", shown, 10).items()}
    report.check("the sidecar shows each rank's load", len(loads) == 2, str(loads))


def other_library(report, gate, p, d, library, requests=4):
    """Sidecars on NIXL's CUDA 12 build beside engines on its CUDA 13 build: another wheel, the same release."""
    if library is None:
        report.data["cu12_beside_cu13"] = _no_wheel(report)
        return
    more = ("--nixl-library", library)
    sidecars = [gate.sidecar(f"{server.side}-sidecar-cu12", server, *more) for server in (p, d)]
    router = gate.router("router-cu12", *sidecars)
    gate.wait_ready(router)
    good = 0
    for number in range(requests):
        text = prompt(200 + number)
        good += web.complete(router, text, stream=number % 2 == 1).same_as(web.complete(d.url, text))
    gate.end("router-cu12", "d-sidecar-cu12", "p-sidecar-cu12")
    report.data["cu12_beside_cu13"] = f"{good}/{requests} equal"
    report.check("sidecars with nixl-cu12 beside engines with nixl-cu13", good == requests, f"{good} of {requests} equal")


def engine_library(report, d, package):
    """D's engines run on NIXL's CUDA 12 build in this phase, its sidecar and P on the CUDA 13 build."""
    if package is None:
        report.data["cu13_beside_cu12"] = _no_wheel(report)
        return
    right, wrong = set(), set()
    for pid in d.process.members():
        try:
            with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
                mapped = [line for line in maps if "libnixl.so" in line]
        except OSError:
            continue  # It has ended.
        for line in mapped:
            (right if str(package) in line else wrong).add(pid)
    # An engine that is just forking a helper is seen twice: what counts is that no process has another build.
    good = len(right) >= DP and not wrong
    found = f"{len(right)} processes for {DP} ranks have it, {len(wrong)} have another"
    report.data["cu13_beside_cu12"] = "run" if good else f"not run: {found}"
    report.check("D's engines have loaded nixl-cu12 for this phase", good, found)


def _no_wheel(report):
    required = "vllm" in os.environ.get("REQUIRE", "")
    report.check("nixl-cu12 could be fetched", not required)
    return "not run: the wheel could not be fetched"
