"""P, with all its ranks, is killed: before the transfer, in the middle of it, and after its KV has landed."""

import json
import signal
import threading
import time

import gate as gates
import web
from groups import wait_for
from prompts import prompt
from say import progress

# A request must be over within this, whatever happens to P: the transfer deadline of these routers and a margin.
TRANSFER_DEADLINE_MS = 8000
OVER_WITHIN = 30


class Asked:
    """One request on its own thread."""

    def __init__(self, router, text, **more):
        self.text, self.answer = text, None
        self.thread = threading.Thread(target=self.run, args=(router, more))
        self.thread.start()

    def run(self, router, more):
        self.answer = web.complete(router, self.text, timeout=120, **more)

    def wait(self):
        self.thread.join()
        return self.answer


def transfers(sidecar, *states):
    """Recent transfers of a sidecar in one of the states."""
    page = web.get_json(sidecar, "/v1/transfers") or {}
    listed = page if isinstance(page, list) else page.get("transfers", [])
    return [transfer for transfer in listed if transfer["state"] in states]


def outcome(report, case, asked, d, path, want_error, prefill_dead_at):
    """Judges one request whose P has died."""
    answer = asked.wait()
    over = time.monotonic() - prefill_dead_at
    reference = web.complete(d.url, asked.text)
    if want_error:
        try:
            code = json.loads(answer.raw)["error"]["code"]
        except (ValueError, KeyError, TypeError):
            code = None
        good = answer.status >= 500 and isinstance(code, str) and over < OVER_WITHIN
        result = f"HTTP {answer.status} {code}"
    else:
        good = answer.same_as(reference) and answer.headers.get("x-kvgate-path") == path and over < OVER_WITHIN
        result = f"{answer.brief()} by {answer.headers.get('x-kvgate-path')}"
    report.check(f"P killed {case}", good, f"{result}, {over:.1f} s after the kill; {answer.error[:200]}")
    entry = {"case": case, "ok": good, "outcome": result, "seconds_after_kill": round(over, 2)}
    report.data["kill_cases"].append(entry)


def routers(gate, prefill_sidecar, sidecar, lease):
    """One that tells the error and one that saves the request."""
    more = ("--transfer-deadline-ms", str(TRANSFER_DEADLINE_MS))
    plain = gate.router("router-kill", prefill_sidecar, sidecar, *more, lease=lease)
    saving = gate.router("router-kill-saving", prefill_sidecar, sidecar, *more, "--fallback", "local-prefill", lease=lease)
    gate.wait_ready(plain)
    gate.wait_ready(saving)
    for router in (plain, saving):
        for _ in range(2):
            web.complete(router, prompt(40))  # Both ranks have shaken hands.
    return plain, saving


def before_transfer(report, gate, p, d, prefill_sidecar, lease="30s"):
    """P has answered, the pull waits; then P is gone. Then two more requests, which find no P at all."""
    sidecar = gate.sidecar("d-sidecar-kill", d, "--fault", "hold-pull=2500")
    plain, saving = routers(gate, prefill_sidecar, sidecar, lease)
    asked = [Asked(router, prompt(500)) for router in (plain, saving)]
    wait_for("both transfers to be asked for", lambda: len(running(sidecar)) == 2, 20)
    p.process.kill()
    dead = time.monotonic()
    outcome(report, "before the transfer", asked[0], d, "pd", True, dead)
    outcome(report, "before the transfer, --fallback local-prefill", asked[1], d, "fallback", False, dead)
    dead = time.monotonic()
    asked = [Asked(router, prompt(500)) for router in (plain, saving)]
    outcome(report, "before the request", asked[0], d, "pd", True, dead)
    outcome(report, "before the request, --fallback local-prefill", asked[1], d, "fallback", False, dead)
    gate.end("router-kill", "router-kill-saving", "d-sidecar-kill")


ENDED = ("landed", "done", "failed", "cancelled")


def running(sidecar):
    page = web.get_json(sidecar, "/v1/transfers") or {}
    listed = page if isinstance(page, list) else page.get("transfers", [])
    return [transfer for transfer in listed if transfer["state"] not in ENDED]


def during_transfer(report, gate, p, d, prefill_sidecar, lease="30s"):
    """P is frozen while the pull waits, so the READ over TCP hangs in flight; then P is killed."""
    sidecar = gate.sidecar("d-sidecar-kill", d, "--fault", "hold-pull=1500", env={"UCX_TLS": "tcp"})
    plain, saving = routers(gate, prefill_sidecar, sidecar, lease)
    asked = [Asked(router, prompt(1500)) for router in (plain, saving)]
    wait_for("both transfers to be asked for", lambda: len(running(sidecar)) == 2, 20)
    p.process.signal_all(signal.SIGSTOP)
    wait_for("both READs to be in flight", lambda: len(transfers(sidecar, "in_flight")) == 2, 10)
    time.sleep(0.5)
    still = len(transfers(sidecar, "in_flight"))
    p.process.kill()
    dead = time.monotonic()
    report.check("P was killed while READs were in flight", still == 2, f"{still} of 2 in flight")
    outcome(report, "during the transfer", asked[0], d, "pd", True, dead)
    outcome(report, "during the transfer, --fallback local-prefill", asked[1], d, "fallback", False, dead)
    gate.end("router-kill", "router-kill-saving", "d-sidecar-kill")


def after_landing(report, gate, p, d, prefill_sidecar, sidecar):
    """The KV has landed, the decode has not gone out yet; P's end must not matter. D must not have the prompt cached."""
    router = gate.router("router-kill", prefill_sidecar, sidecar, "--fault", "delay-decode=2500")
    gate.wait_ready(router)
    asked = Asked(router, prompt(500))
    wait_for("the KV to land", lambda: transfers(sidecar, "landed"), 20)
    p.process.kill()
    dead = time.monotonic()
    outcome(report, "after landing", asked, d, "pd", False, dead)
    gate.end("router-kill")


def restarted(report, name, sidecar, before):
    """A restarted engine is noticed and ready again, with the same sidecar process."""

    def ready():
        now = gates.ranks(sidecar)
        fresh = [
            shown.get("engine_id") not in (None, before[rank]) and shown["state"] == "ready" for rank, shown in now.items()
        ]
        return now if len(fresh) == len(before) and all(fresh) else None

    now = wait_for(f"{name}'s sidecar to see the restarted engine", ready, 60)
    ids = {rank: shown["engine_id"] for rank, shown in now.items()}
    report.check(f"{name} restarted: new engine ids, ready again without a restart of its sidecar", True, str(ids))
    progress(f"{name}'s ranks: {ids}")
