"""The processes: a prefill pod and a decode pod of eight ranks, their sidecars, a router per gate, an engine that does not split."""

import json
import os
import pathlib
import shutil

from harness import free_ports
from processes import Failure, Kvgate, wait

TREE = pathlib.Path(__file__).resolve().parents[1]
WORK = TREE / "target" / "bench" / "seed"
KVGATE = pathlib.Path(os.environ.get("KVGATE_BIN") or TREE / "target" / "release" / "kvgate").resolve()
# Caches and staging of eight ranks are touched at start, and drained at the end.
PATIENCE = 180
ENDS_WITHIN = 40
BLOCK = 16
# A prefill with its wait in the queue must take less.
LEASE = "60s"


class Deployment:
    """Everything, from the first engine to the last router; ends what it started."""

    def __init__(self, options, scale, ranks, layers):
        self.options, self.ranks, self.running = options, ranks, []
        self.layers = layers // scale
        if not KVGATE.exists():
            raise Failure(f"no {KVGATE}: run make build, or set KVGATE_BIN")
        shutil.rmtree(WORK, ignore_errors=True)
        WORK.mkdir(parents=True)

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in reversed(self.running):
            process.end(ENDS_WITHIN)
        self.running.clear()

    def run(self, name, words):
        process = Kvgate(name, KVGATE, words, WORK, PATIENCE)
        self.running.append(process)
        return process

    def start(self):
        options, ranks = self.options, self.ranks
        prompt, whole = (-(-tokens // BLOCK) for tokens in (options.input, options.input + options.output))
        # A rank's share of the requests, and what an uneven choice may add.
        seats = -(-options.concurrency // ranks) * 2
        token_bytes = self.layers * 2 * 8 * 128 * 2
        model = f"--model llama-3.1-8b-shape --layers {self.layers} --kv-heads 8 --head-size 128 --block-size {BLOCK} --prefix-caching off"
        lease = f"--kv-lease-ms {int(LEASE[:-1]) * 1000}"
        pace = f"--prefill-tokens-per-s {options.prefill_tokens_per_s} --tpot-ms {options.tpot_ms}"
        sides = {"prefill": free_ports(ranks), "decode": free_ports(ranks)}
        engines = {}
        for role, base in sides.items():
            # P's blocks outlive a request until they have been read.
            blocks = (prompt if role == "prefill" else whole) * seats + 64
            engines[role] = self.run(
                role,
                f"sim --role {role} --listen 127.0.0.1:0 --side-channel 127.0.0.1:{base} --data-parallel-size {ranks}"
                f" --num-blocks {blocks} {model} {pace} {lease}",
            )
        reference = self.run(
            "reference",
            f"sim --listen 127.0.0.1:0 --side-channel 127.0.0.1:{free_ports()} --num-blocks {whole * options.concurrency + 64} {model}",
        )
        self.engines = {role: engine.port for role, engine in engines.items()}
        self.reference = ("127.0.0.1", reference.port)
        sidecars = {}
        for role, base in sides.items():
            staging = prompt * BLOCK * token_bytes * seats
            sidecars[role] = self.run(
                f"{role}-sidecar",
                f"sidecar --role {role} --engine http://127.0.0.1:{self.engines[role]} --engine-side-channel 127.0.0.1:{base}"
                f" --data-parallel-size {ranks} --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0"
                f" --staging-bytes {staging} --kv-lease {LEASE}",
            )
        self.sidecars = {role: sidecar.port for role, sidecar in sidecars.items()}
        self.routers = {}

    def router(self, gate):
        """(host, port) of a router with this gate, with every rank of both sides ready."""
        if gate not in self.routers:
            targets = " ".join(
                f"--{role} http://127.0.0.1:{self.engines[role]},sidecar=http://127.0.0.1:{self.sidecars[role]}" for role in self.engines
            )
            process = self.run(
                f"router-{gate}",
                f"router --pd-disaggregation {targets} --intra-node-data-parallel-size {self.ranks} --host 127.0.0.1 --port 0"
                f" --gate {gate} --kv-lease {LEASE}",
            )
            self.routers[gate] = process.port
            wait(f"{2 * self.ranks} ready ranks behind {process.name}", lambda: self.ready(process) == 2 * self.ranks, PATIENCE)
        return "127.0.0.1", self.routers[gate]

    def ready(self, router):
        """Ranks of both sides that a router takes for ready."""
        router.check()
        targets = json.loads(router.get("/readyz") or "{}").get("targets", [])
        return sum(bool(target.get("ready")) for target in targets)
