"""Figures that the report records and nothing asserts: time to first token and how long P's blocks stay pinned."""

import json
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import web
from prompts import prompt
from say import progress

REQUESTS = 30
CLIENTS = 32
LOAD = 64
BLOCKS_PER_RANK = 512  # 64 MiB of 128 KiB blocks.


def ttft(routers, tokens=500):
    """Medians in ms, the gates alternating so that the machine's noise falls on both."""
    seen = {gate: [] for gate in routers}
    for _ in range(REQUESTS + 2):
        for gate, router in routers.items():
            seen[gate].append(web.complete(router, prompt(tokens), stream=True).ttft * 1e3)
    return {gate: statistics.median(values[2:]) for gate, values in seen.items()}


class Occupancy:
    """Integrates P's KV use over time: block-seconds, as vLLM's own gauge shows it. Keeps a timeline of both sides."""

    def __init__(self, p, d):
        self.p, self.d, self.total, self.over, self.timeline = p, d, 0.0, threading.Event(), []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        start = last = time.monotonic()
        while not self.over.is_set():
            here, there = self.p.load(), self.d.load()
            now = time.monotonic()
            # The gauge is a rank's share of its own blocks; `load` sums the ranks.
            self.total += here[2] * BLOCKS_PER_RANK * (now - last)
            self.timeline.append([round(now - start, 2), *here, *there])
            last = now
            self.over.wait(0.05)

    def close(self):
        self.over.set()
        self.thread.join()
        return self.total


def pinned(routers, p, d, folder):
    """Block-seconds of P per gate: 32 clients, 64 output tokens, D takes few requests at a time and so has a queue."""
    return {gate: pinned_by(gate, router, p, d, folder)[0] for gate, router in routers.items()}


def pinned_by(gate, router, p, d, folder, lengths=(64,) * LOAD):
    """(block-seconds of P, requests answered, seconds) of one load through one router; a request for each length of answer, in tokens."""
    texts = [prompt(500) for _ in lengths]
    occupancy = Occupancy(p, d)
    start = time.monotonic()
    try:
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(lambda text, length: web.complete(router, text, max_tokens=length), texts, lengths))
        end = time.monotonic()
        while p.load()[2] > 0 and time.monotonic() < end + 10:
            time.sleep(0.1)
    finally:
        total = occupancy.close()
    (folder / f"pinned-{gate}.json").write_text(json.dumps(occupancy.timeline))
    good = sum(answer.good for answer in answers)
    progress(f"pinned, {gate}: {total:.0f} block-seconds, {good} of {len(texts)} answered in {end - start:.1f} s")
    return total, good, end - start


def gauge(report, p, d):
    """Whether P's gauge follows at all: after a prefill that nobody has read, and after D has read it."""
    text, rank = prompt(500), {"X-data-parallel-rank": "0"}
    body = web.body_of(text, max_tokens=1, kv_transfer_params={"do_remote_decode": True})
    _, _, raw = web.request("POST", p.url, "/v1/completions", body, rank)
    params = json.loads(raw)["kv_transfer_params"]
    time.sleep(1)
    held = p.load()[2]
    web.request("POST", d.url, "/v1/completions", web.body_of(text, kv_transfer_params=params), rank)
    time.sleep(1)
    report.data["p_gauge"] = {"held": round(held, 4), "after_read": round(p.load()[2], 4)}
    progress(f"P's KV gauge: {report.data['p_gauge']}")


def record(report, routers, p, d, folder):
    """Ratios gated / direct; below 1 the gate is better."""
    gauge(report, p, d)
    times = ttft(routers)
    held = pinned(routers, p, d, folder)
    report.data["ttft_ms"] = {gate: round(ms, 1) for gate, ms in times.items()}
    report.data["ttft_ratio"] = round(times["stage"] / times["direct"], 3)
    report.data["pinned_block_seconds"] = {gate: round(value, 1) for gate, value in held.items()}
    report.data["pinned_ratio"] = round(held["stage"] / held["direct"], 3) if held["direct"] else None
    ratios = f"ratios {report.data['ttft_ratio']} and, of blocks pinned on P, {report.data['pinned_ratio']}"
    progress(f"time to first token {report.data['ttft_ms']} ms; {ratios}")
