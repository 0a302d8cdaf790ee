"""P's lease is over before D reads: unmodified vLLM answers 200 with wrong text; behind the gate that must not happen.

P's lease is 2 s (D's is 30 s) and D's requests come 2.5 s late (a proxy before D, in both gates), while other prompts fill P's cache.
Second variant: the sidecar's own pull comes 2.5 s late and its heartbeats are off.
"""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import gate as gates
import web
from delay_proxy import DelayProxy
from pair import DP
from prompts import prompt
from say import Failure, progress

LEASE = 2
LATE = 2.5
TRIES = 50
WAVE = 10
FILLERS = 40
TOKENS = 300


class Filler:
    """Other prompts on P, on all its ranks: at least FILLERS of them, and until it is closed."""

    def __init__(self, p):
        self.p, self.sent, self.failed, self.over = p, itertools.count(1), 0, threading.Event()
        self.last = 0
        self.threads = [threading.Thread(target=self.run, args=(rank,)) for rank in range(DP) for _ in range(2)]
        for thread in self.threads:
            thread.start()

    def run(self, rank):
        while not self.over.is_set() or self.last < FILLERS:
            answer = web.complete(self.p.url, prompt(TOKENS), headers={"X-data-parallel-rank": str(rank)}, max_tokens=1)
            self.last = next(self.sent)
            self.failed += not answer.good
            if not answer.good and self.over.is_set():
                return

    def close(self):
        self.over.set()
        for thread in self.threads:
            thread.join()


def tries(router, p, count):
    """`count` answers, in waves, each wave beside a busy P; [(prompt, answer)]."""
    done = []
    for first in range(0, count, WAVE):
        texts = [prompt(TOKENS) for _ in range(min(WAVE, count - first))]
        filler = Filler(p)
        try:
            with ThreadPoolExecutor(WAVE) as pool:
                done += zip(texts, pool.map(lambda text: web.complete(router, text), texts))
        finally:
            filler.close()
    return done


def judge(d, done):
    """Counts right, wrong and clear errors, and keeps one example of a wrong text and of an error."""
    counted = {"right": 0, "wrong": 0, "error": 0}
    for text, answer in done:
        reference = web.complete(d.url, text)
        if not reference.good:
            raise Failure(f"D does not answer by itself: {reference.brief()}")
        if not answer.good:
            counted["error"] += 1
            counted.setdefault("error_example", f"HTTP {answer.status} {answer.error}"[:300])
        elif answer.text == reference.text:
            counted["right"] += 1
        else:
            counted["wrong"] += 1
            counted.setdefault("wrong_example", {"got": answer.text, "wanted": reference.text, "status": answer.status})
    return counted


def run(report, gate, p, d, prefill_sidecar, decode_sidecar):
    """The three modes, one after another, on the same pair."""
    lease = f"{LEASE}s"
    proxy = DelayProxy(d.url, LATE)
    hold = ("--fault", f"hold-pull={LATE * 1000:.0f}")
    held = gate.sidecar("d-sidecar-held", d, *hold)
    mute = gate.sidecar("d-sidecar-mute", d, *hold, "--fault", "no-heartbeat")
    more = ("--max-attempts", "2")
    flags = {
        "direct": (decode_sidecar, proxy.url, "--gate", "direct"),
        "gated": (decode_sidecar, proxy.url),
        "pull_late": (mute, d.url, *more),
        "pull_late_heartbeats": (held, d.url, *more),
    }
    routers = {
        mode: gate.router(f"router-lease-{mode}", prefill_sidecar, sidecar, *words, lease=lease, decode_url=url)
        for mode, (sidecar, url, *words) in flags.items()
    }
    counted = {}
    try:
        for mode, router in routers.items():
            gate.wait_ready(router)
            for _ in range(2 * DP):
                web.complete(router, prompt(40))  # Handshakes are done before the clock matters.
            count = 2 * WAVE if mode == "pull_late_heartbeats" else TRIES
            counted[mode] = judge(d, tries(router, p, count))
            progress(f"lease, {mode}: {counted[mode]}")
    finally:
        proxy.close()
        gate.end(*(f"router-lease-{mode}" for mode in flags), "d-sidecar-mute", "d-sidecar-held")
    page = web.metrics(p.url)
    names = ("nixl_num_kv_expired_reqs_total", "nixl_num_notifications_after_expiry_total")
    expired = {name: web.total(page, name) for name in names}
    shown = {rank: said["load"].get("nixl_expired") for rank, said in gates.ranks(prefill_sidecar).items()}
    gated_wrong = sum(counted[mode]["wrong"] for mode in counted if mode != "direct")
    wrong = {"direct_wrong": counted["direct"]["wrong"], "gated_wrong": gated_wrong}
    report.data["lease"] = {**wrong, "tries": TRIES, "modes": counted, "p": expired}
    seen = sum(count or 0 for count in shown.values())
    report.check("P's sidecar shows the leases that P let expire", seen > 0, f"by rank {shown}")
    direct = counted["direct"]
    name = "lease: --gate direct gives wrong text with HTTP 200 (the control)"
    report.check(name, direct["wrong"] > 0, f"{direct['wrong']} of {TRIES}, {direct.get('wrong_example')}")
    report.check("lease: no wrong text behind the gate", gated_wrong == 0, f"{gated_wrong} of {2 * TRIES + 2 * WAVE}")
    # A starved machine may miss a lease of 2 s now and then; that is a clear error then, and counted as one.
    for mode, story in (("gated", "D late by 2.5 s, gated"), ("pull_late_heartbeats", "pull late by 2.5 s, heartbeats on")):
        right, count = counted[mode]["right"], counted[mode]["right"] + counted[mode]["error"]
        report.check(f"lease: {story}: the right text", right * 2 > count, f"{right} of {count} right")
    late = counted["pull_late"]
    told = late["error"] + late["right"] == TRIES and late["error"] > 0
    report.check("lease: pull late by 2.5 s, no heartbeats: a clear error", told, f"{late['error']} of {TRIES}")
