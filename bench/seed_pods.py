"""The processes: a prefill pod and a decode pod of eight ranks, their sidecars, a router per gate, an engine that does not split."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.request

TREE = pathlib.Path(__file__).resolve().parents[1]
WORK = TREE / "target" / "bench" / "seed"
KVGATE = pathlib.Path(os.environ.get("KVGATE_BIN") or TREE / "target" / "release" / "kvgate")
PATIENCE = 180
BLOCK = 16
# A prefill with its wait in the queue must take less.
LEASE = "60s"


class Failure(SystemExit):
    """The bench cannot measure."""


class Process:
    """One child with its ports, ended by its pid."""

    def __init__(self, name, words):
        self.name, self.file = name, WORK / f"{name}.ports.json"
        self.file.unlink(missing_ok=True)
        with open(WORK / f"{name}.log", "wb") as log:
            command = [str(KVGATE), *words.split(), "--ports-file", str(self.file)]
            self.child = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def check(self):
        if self.child.poll() is not None:
            raise Failure(f"seed: {self.name} ended: see {WORK / self.name}.log")

    def port(self):
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            self.check()
            if self.file.exists():
                return json.loads(self.file.read_text())["http"]
            time.sleep(0.05)
        raise Failure(f"seed: {self.name} has not started within {PATIENCE} s: see {WORK / self.name}.log")

    def end(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(40)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()


# Ports given out but perhaps not bound yet.
GIVEN = set()


def neighbouring(count):
    """The first of so many neighbouring free ports, below the range that the kernel gives to clients."""
    for base in range(21000 + os.getpid() % 500 * 16, 32000, count):
        held = []
        try:
            for port in range(base, base + count):
                held.append(socket.create_server(("127.0.0.1", port)))
            if GIVEN.isdisjoint(range(base, base + count)):
                GIVEN.update(range(base, base + count))
                return base
        except OSError:
            continue
        finally:
            for one in held:
                one.close()
    raise Failure(f"seed: no {count} neighbouring free ports")


class Deployment:
    """Everything, from the first engine to the last router; ends what it started."""

    def __init__(self, options, scale, ranks, layers):
        self.options, self.ranks, self.running = options, ranks, []
        self.layers = layers // scale
        if not KVGATE.exists():
            raise Failure(f"seed: no {KVGATE}: run make build, or set KVGATE_BIN")
        WORK.mkdir(parents=True, exist_ok=True)

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in reversed(self.running):
            process.end()
        self.running.clear()

    def run(self, name, words):
        process = Process(name, words)
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
        sides = {"prefill": neighbouring(ranks), "decode": neighbouring(ranks)}
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
            f"sim --listen 127.0.0.1:0 --side-channel 127.0.0.1:{neighbouring(1)} --num-blocks {whole * options.concurrency + 64} {model}",
        )
        self.engines = {role: engine.port() for role, engine in engines.items()}
        self.reference = ("127.0.0.1", reference.port())
        sidecars = {}
        for role, base in sides.items():
            staging = prompt * BLOCK * token_bytes * seats
            sidecars[role] = self.run(
                f"{role}-sidecar",
                f"sidecar --role {role} --engine http://127.0.0.1:{self.engines[role]} --engine-side-channel 127.0.0.1:{base}"
                f" --data-parallel-size {ranks} --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0"
                f" --staging-bytes {staging} --kv-lease {LEASE}",
            )
        self.sidecars = {role: sidecar.port() for role, sidecar in sidecars.items()}
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
            self.routers[gate] = process.port()
            self.wait_ready(process, self.routers[gate])
        return "127.0.0.1", self.routers[gate]

    def wait_ready(self, process, port):
        until = time.monotonic() + PATIENCE
        ready = 0
        while time.monotonic() < until:
            process.check()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                    targets = json.load(answer).get("targets", [])
            except OSError:
                targets = []
            ready = sum(bool(target.get("ready")) for target in targets)
            if ready >= 2 * self.ranks:
                return
            time.sleep(0.2)
        raise Failure(f"seed: {ready} of {2 * self.ranks} ranks are ready after {PATIENCE} s: see {WORK}")
