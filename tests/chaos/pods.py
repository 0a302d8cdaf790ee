"""Who is there: two prefill pods, two decode pods with two ranks each, a sidecar beside each, a router, and an engine that never splits."""

import asyncio

import web
from processes import Process, free_ports
from say import Failure

RANKS = 2
MODEL = "sim"
LEASE_S = 4
REQUEST_DEADLINE_S = 20
IDLE_DEADLINE_S = 5
READY_WITHIN = 60
# 4 layers of 2 heads of 64 elements of 2 bytes, keys and values: 32 KiB for a block of 16 tokens.
SHAPE = "--layers 4 --kv-heads 2 --head-size 64"
STAGING = "8MiB"


class Pods:
    """The deployment. `folder` stays; `disk` may be full for a while, and has the logs and the receipt logs."""

    def __init__(self, binary, folder, disk, control):
        self.binary, self.folder, self.disk, self.control = binary, folder, disk, control
        self.routers = 0
        self.engines = {"prefill": [], "decode": []}
        self.sidecars = {"prefill": [], "decode": []}
        self.pods = []
        self.receipt_logs, self.request_logs = [], []
        for role in ("prefill", "decode"):
            for number in range(2):
                self.pod(role, number)
        self.reference = self.process("reference", f"sim --listen 127.0.0.1:{free_ports()} {SHAPE} --num-blocks 4096 "
                                      f"--side-channel 127.0.0.1:{free_ports()}")
        self.router = self.new_router()

    def process(self, name, line, *more):
        process = Process(self.binary, name, self.disk, [*line.split(), *more])
        process.url = f"http://127.0.0.1:{next((w for w in line.split() if w.startswith('127.0.0.1:')), ':0').split(':')[1]}"
        return process

    def pod(self, role, number):
        side_channel = free_ports(RANKS)
        log = self.folder / f"{role}-{number}.requests.jsonl"
        engine = self.process(
            f"{role}-{number}",
            f"sim --listen 127.0.0.1:{free_ports()} --role {role} --side-channel 127.0.0.1:{side_channel} --data-parallel-size {RANKS} "
            f"{SHAPE} --num-blocks 768 --kv-lease-ms {LEASE_S * 1000} --max-num-seqs 32 --prefill-tokens-per-s 20000 --tpot-ms 15 "
            "--fragile-listener --request-log", log,
        )
        receipts = self.disk / f"{role}-{number}.receipts.jsonl"
        broken = ["--fault", self.control] if role == "decode" and self.control == "corrupt-staging" else []
        sidecar = self.process(
            f"{role}-{number}-sidecar",
            f"sidecar --listen 127.0.0.1:{free_ports()} --role {role} --engine {engine.url} "
            f"--engine-side-channel 127.0.0.1:{side_channel} --data-parallel-size {RANKS} --side-channel-listen 127.0.0.1:{free_ports(RANKS)} "
            f"--staging-bytes {STAGING} --kv-lease {LEASE_S}s --receipt-log", receipts, *broken,
        )
        self.engines[role].append(engine)
        self.sidecars[role].append(sidecar)
        self.pods.append(f"--{role} {engine.url},sidecar={sidecar.url}")
        if role == "decode":
            self.request_logs.append(log)
            self.receipt_logs.append(receipts)

    def new_router(self):
        """Another router process, not started yet."""
        self.routers += 1
        port = free_ports()
        broken = ["--fault", self.control] if self.control == "skip-gate" else []
        router = self.process(
            f"router-{self.routers}",
            f"router --pd-disaggregation {' '.join(self.pods)} --intra-node-data-parallel-size {RANKS} --host 127.0.0.1 --port {port} "
            f"--prefill-deadline-ms 6000 --transfer-deadline-ms 6000 --decode-deadline-ms 10000 --connect-deadline-ms 1000 "
            f"--idle-deadline-ms {IDLE_DEADLINE_S * 1000} --request-deadline-ms {REQUEST_DEADLINE_S * 1000} --queue-deadline-ms 5000 "
            f"--cb-timeout-duration-secs 4 --kv-lease {LEASE_S}s", *broken,
        )
        router.url = f"http://127.0.0.1:{port}"
        return router

    def split(self):
        """All engines and sidecars of the pods."""
        return [process for side in (self.engines, self.sidecars) for role in side.values() for process in role]

    async def start(self):
        await asyncio.gather(self.reference.start(), *(engine.start() for role in self.engines.values() for engine in role))
        await asyncio.gather(*(sidecar.start() for role in self.sidecars.values() for sidecar in role))
        await self.router.start()
        await self.ready(self.router)

    async def ready(self, router):
        """Until that router sees every rank of every pod ready."""
        until = asyncio.get_running_loop().time() + READY_WITHIN
        while True:
            page = await web.get(router.url, "/readyz") or {}
            targets = page.get("targets") or []
            if len([target for target in targets if target.get("ready")]) == 4 * RANKS:
                return
            if asyncio.get_running_loop().time() > until:
                unready = [target for target in targets if not target.get("ready")]
                raise Failure(f"not every rank is ready after {READY_WITHIN} s: {unready or page}")
            await asyncio.sleep(0.1)

    async def ready_again(self, sidecar):
        """Until the router sees the pod of a sidecar ready; not for ever, since its engine may be in trouble just now."""
        until = asyncio.get_running_loop().time() + 10
        while asyncio.get_running_loop().time() < until:
            targets = (await web.get(self.router.url, "/readyz") or {}).get("targets") or []
            name = sidecar.name.removesuffix("-sidecar")
            ready = [target.get("ready") for target in targets if str(target.get("target", "")).startswith(name)]
            if ready and all(ready):
                return
            await asyncio.sleep(0.1)

    async def held(self):
        """What is in use though nobody uses it, by name: slots and pulls of sidecars, handles, and requests and pins of engines."""
        held = {}
        for sidecar in (process for role in self.sidecars.values() for process in role):
            page = await web.get(sidecar.url, "/v1/ranks") or {"ranks": [{}]}
            for rank in page["ranks"]:
                staging = rank.get("staging", {})
                for what, count in (
                    ("slots", staging.get("used_blocks", 1) + staging.get("zeroing_blocks", 1)),
                    ("pulls", rank.get("in_flight", 1)),
                    ("handles", rank.get("handles", 1)),
                ):
                    held[f"{what} of {sidecar.name}@{rank.get('dp_rank')}"] = count
        for engine in (process for role in self.engines.values() for process in role):
            gauges = await web.gauges(engine.url)
            for name in ("sim:pinned_requests", "vllm:num_requests_running", "vllm:num_requests_waiting"):
                held[f"{name.partition(':')[2]} of {engine.name}"] = int(gauges.get(name, 1))
        return {what: count for what, count in held.items() if count}

    async def quarantined(self):
        pages = [await web.get(sidecar.url, "/v1/ranks") or {"ranks": []} for sidecar in self.sidecars["decode"]]
        return sum(rank["staging"]["quarantined_blocks"] for page in pages for rank in page["ranks"])
