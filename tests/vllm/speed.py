"""Figures that the report records and nothing asserts: time to first token and how long P's blocks stay pinned."""

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


def ttft(routers, tokens=500):
    """Medians in ms, the gates alternating so that the machine's noise falls on both."""
    seen = {gate: [] for gate in routers}
    for _ in range(REQUESTS + 2):
        for gate, router in routers.items():
            seen[gate].append(web.complete(router, prompt(tokens), stream=True).ttft * 1e3)
    return {gate: statistics.median(values[2:]) for gate, values in seen.items()}


class Occupancy:
    """Integrates P's KV use over time: block-seconds, as vLLM's own gauge shows it."""

    def __init__(self, p, blocks):
        self.p, self.blocks, self.total, self.over = p, blocks, 0.0, threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        last = time.monotonic()
        while not self.over.is_set():
            usage = self.p.load()[2]
            now = time.monotonic()
            self.total += usage * self.blocks * (now - last)
            last = now
            self.over.wait(0.05)

    def close(self):
        self.over.set()
        self.thread.join()
        return self.total


def pinned(routers, p, blocks):
    """Block-seconds of P per gate: 32 clients, 64 output tokens, D takes 8 requests per rank at a time."""
    seen = {}
    for gate, router in routers.items():
        texts = [prompt(500) for _ in range(LOAD)]
        occupancy = Occupancy(p, blocks)
        try:
            with ThreadPoolExecutor(CLIENTS) as pool:
                answers = list(pool.map(lambda text: web.complete(router, text, max_tokens=64), texts))
            end = time.monotonic() + 10
            while p.load()[2] > 0 and time.monotonic() < end:
                time.sleep(0.1)
        finally:
            seen[gate] = occupancy.close()
        progress(f"pinned, {gate}: {seen[gate]:.0f} block-seconds, {sum(a.good for a in answers)} of {LOAD} answered")
    return seen


def record(report, routers, p, blocks):
    """Ratios gated / direct; below 1 the gate is better."""
    times = ttft(routers)
    held = pinned(routers, p, blocks)
    report.data["ttft_ms"] = {gate: round(ms, 1) for gate, ms in times.items()}
    report.data["ttft_ratio"] = round(times["stage"] / times["direct"], 3)
    report.data["pinned_block_seconds"] = {gate: round(value, 1) for gate, value in held.items()}
    report.data["pinned_ratio"] = round(held["stage"] / held["direct"], 3) if held["direct"] else None
    progress(f"time to first token: {report.data['ttft_ms']} ms, ratio {report.data['ttft_ratio']}; pinned ratio {report.data['pinned_ratio']}")
