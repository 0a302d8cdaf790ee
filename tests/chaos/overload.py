#!/usr/bin/env python3
"""`make overload`: ten times of what a deployment can take, for a minute; writes target/chaos/overload.json and ends with 1 when goodput,
refusals, memory or recovery are not as promised.

  overload.py [--seconds N]

Clients come at a fixed rate, whatever becomes of those before them, as the public does. One prefill and one decode pod of two ranks
each; the decode engines take eight requests each and 40 ms for a token, so that the pods are the limit and not this machine.
"""

import argparse
import asyncio
import collections
import json
import pathlib
import random
import shutil
import sys

sys.dont_write_bytecode = True

import web
from load import Ask, read
from processes import Process, free_ports
from say import Failure, say, tail

TREE = pathlib.Path(__file__).resolve().parents[2]
FOLDER = TREE / "target" / "chaos" / "overload"
TIMES = 10
RANKS, SEATS = 2, 8
IN_FLIGHT, QUEUE, CONNECTIONS = 24, 24, 600
BODIES_MIB, STAGING_MIB, SIDECAR_BODIES_MIB = 16, 8, 64
# Of a connection: the longest head, and what is read ahead of a slow client.
CONNECTION_KIB = 128
PAD = "x" * (32 << 10)
PEAK_FOR, RECOVERED_WITHIN = 12, 5
SHAPE = "--layers 4 --kv-heads 2 --head-size 64 --num-blocks 1024"


class Deployment:
    def __init__(self, binary):
        self.binary, self.lines = binary, []

    async def start(self):
        pods = ""
        for role in ("prefill", "decode"):
            side_channel, engine_port, port = free_ports(RANKS), free_ports(), free_ports()
            pace = f"--tpot-ms 40 --max-num-seqs {SEATS}" if role == "decode" else ""
            await self.run(role, f"sim --role {role} --listen 127.0.0.1:{engine_port} --side-channel 127.0.0.1:{side_channel} "
                           f"--data-parallel-size {RANKS} {SHAPE} {pace}")
            sidecar = await self.run(
                f"{role}-sidecar", f"sidecar --role {role} --listen 127.0.0.1:{port} --engine http://127.0.0.1:{engine_port} "
                f"--engine-side-channel 127.0.0.1:{side_channel} --data-parallel-size {RANKS} --side-channel-listen 127.0.0.1:{free_ports(RANKS)} "
                f"--staging-bytes {STAGING_MIB}MiB")
            pods += f" --{role} http://127.0.0.1:{engine_port},sidecar=http://127.0.0.1:{port}"
            if role == "decode":
                self.sidecar = sidecar
            else:
                self.reference = f"http://127.0.0.1:{engine_port}"
        port = free_ports()
        self.router = await self.run(
            "router", f"router --pd-disaggregation{pods} --intra-node-data-parallel-size {RANKS} --host 127.0.0.1 --port {port} "
            f"--max-in-flight {IN_FLIGHT} --max-queue {QUEUE} --queue-deadline-ms 2000 --max-connections {CONNECTIONS} "
            f"--max-bodies-bytes {BODIES_MIB << 20}")
        self.url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            page = await web.get(self.url, "/readyz") or {}
            if sum(bool(target.get("ready")) for target in page.get("targets", [])) == 2 * RANKS:
                return
            await asyncio.sleep(0.1)
        raise Failure(f"not ready: {page}\n{tail(self.router.log)}")

    async def run(self, name, line):
        process = Process(self.binary, name, FOLDER, line.split())
        await process.start()
        return process


class Clients:
    """Requests, and what became of them."""

    def __init__(self, url, asks):
        self.url, self.asks, self.ended, self.bad = url, asks, collections.Counter(), []

    async def one(self):
        ask, said = random.choice(self.asks), web.Said()
        try:
            async with asyncio.timeout(30):
                await web.send(said, "POST", self.url, ask.path, {**ask.body(stream=True), "x_pad": PAD})
        except (OSError, EOFError, TimeoutError) as error:
            return self.became("broken", repr(error))
        text, complete, code = read(said, stream=True)
        if said.status == 429:
            return self.became("refused" if said.headers.get("retry-after") else "refused without retry-after", code)
        if complete and code is None and text == ask.expected:
            return self.became("right", "")
        return self.became("wrong", f"HTTP {said.status} {code} {text!r}")

    def became(self, what, why):
        self.ended[what] += 1
        if what not in ("right", "refused"):
            self.bad.append(f"{what}: {why}")
        return what

    async def closed(self, clients, seconds):
        """So many at a time; right answers per second, the first two seconds aside."""
        until = asyncio.get_running_loop().time() + seconds
        counted_from, before = until - seconds + 2, None

        async def client():
            nonlocal before
            while (now := asyncio.get_running_loop().time()) < until:
                if before is None and now >= counted_from:
                    before = self.ended["right"]
                if await self.one() != "right":
                    await asyncio.sleep(0.1)

        await asyncio.gather(*(client() for _ in range(clients)))
        return (self.ended["right"] - (before or 0)) / (seconds - 2)

    async def open(self, rate, seconds):
        """So many a second, whatever becomes of them."""
        loop, tasks = asyncio.get_running_loop(), set()
        start = loop.time()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0, start + number / rate - loop.time()))
            task = asyncio.create_task(self.one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        took, right = loop.time() - start, self.ended["right"]
        return tasks, took, right

    async def recovers(self):
        """Seconds until as many requests as the engines take at a time all have their text."""
        start = asyncio.get_running_loop().time()
        while set(await asyncio.gather(*(self.one() for _ in range(RANKS * SEATS)))) != {"right"}:
            if asyncio.get_running_loop().time() - start > 60:
                break
        return asyncio.get_running_loop().time() - start


def rss_mib(process):
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) / 1024


async def watch(processes, most):
    while True:
        for name, process in processes.items():
            most[name] = max(most[name], rss_mib(process))
        await asyncio.sleep(0.25)


async def run(seconds):
    binary = TREE / "target" / "debug" / "kvgate"
    if not binary.is_file():
        raise Failure(f"{binary} is not there: run `cargo build`")
    deployment = Deployment(shutil.copy2(binary, FOLDER / "kvgate"))
    await deployment.start()
    dice = random.Random(1)
    asks = [Ask(dice, number) for number in range(64)]
    for ask in asks:
        ask.tokens = 16
    await asyncio.gather(*(ask.learn(deployment.reference) for ask in asks))
    processes = {"router": deployment.router, "decode_sidecar": deployment.sidecar}
    clients = Clients(deployment.url, asks)
    say(f"the peak: {IN_FLIGHT} clients, {PEAK_FOR} s")
    peak = await clients.closed(IN_FLIGHT, PEAK_FOR)
    idle = {name: rss_mib(process) for name, process in processes.items()}
    most = dict(idle)
    watching = asyncio.create_task(watch(processes, most))
    clients.ended.clear()
    say(f"{peak:.1f} right answers a second at the peak; now {TIMES * peak:.0f} requests a second, {seconds:.0f} s")
    tasks, took, right = await clients.open(TIMES * peak, seconds)
    say("no more than the peak")
    ended = dict(clients.ended)
    recovered = await clients.recovers()
    await asyncio.gather(*tasks)
    watching.cancel()
    bounds = {
        "router": idle["router"] + BODIES_MIB + CONNECTIONS * CONNECTION_KIB / 1024,
        "decode_sidecar": idle["decode_sidecar"] + RANKS * STAGING_MIB + SIDECAR_BODIES_MIB,
    }
    return {
        "peak_per_second": round(peak, 2),
        "offered_per_second": round(sum(ended.values()) / took, 2),
        "goodput_per_second": round(right / took, 2),
        "goodput_of_peak": round(right / took / peak, 3),
        "requests": sum(ended.values()),
        "right": ended.get("right", 0),
        "refused_with_429": ended.get("refused", 0),
        "refused_without_retry_after": clients.ended["refused without retry-after"],
        "otherwise": clients.ended["wrong"] + clients.ended["broken"],
        "recovered_after_s": round(recovered, 2),
        "rss_mib": {name: {"before": round(idle[name], 1), "most": round(most[name], 1), "bound": round(bounds[name], 1)} for name in most},
        "bad": clients.bad[:20],
    }


def judged(data):
    """What is not as promised."""
    broken = []
    for name, good in (
        ("goodput_of_peak", data["goodput_of_peak"] >= 0.9),
        ("refused_without_retry_after", data["refused_without_retry_after"] == 0),
        ("otherwise", data["otherwise"] == 0),
        ("recovered_after_s", data["recovered_after_s"] <= RECOVERED_WITHIN),
        ("offered_per_second", data["offered_per_second"] >= 0.9 * TIMES * data["peak_per_second"]),
        ("rss_mib", all(one["most"] <= one["bound"] for one in data["rss_mib"].values())),
    ):
        if not good:
            broken.append(f"{name} is {data[name]}")
    return broken


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        data = await run(args.seconds)
    except Failure as failure:
        print(f"overload: {failure}")
        return 1
    finally:
        await Process.end_all()
    broken = judged(data)
    data["ok"] = not broken
    (FOLDER.parent / "overload.json").write_text(json.dumps(data, indent=1) + "\n")
    for name, value in data.items():
        print(f"{name.replace('_', ' '):<28} {value}")
    for line in broken:
        print(f"BROKEN: {line}")
    return 0 if not broken else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
