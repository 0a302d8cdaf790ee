"""kvgate's own processes beside the pair: sidecars and routers, on ports that the kernel gives."""

import json
import os
import pathlib

import web
from pair import DP
from groups import Process, wait_for
from say import Failure, tail

READY_WITHIN = 60


class Gate:
    """All sidecars and routers that were started; ended in reverse order."""

    def __init__(self, binary, folder, p, d):
        self.binary, self.folder, self.p, self.d = binary, pathlib.Path(folder), p, d
        self.processes = []

    def start(self, name, *words, env=None):
        """Starts `kvgate <words>` and returns its address."""
        ports, log = self.folder / f"{name}.ports.json", self.folder / f"{name}.log"
        ports.unlink(missing_ok=True)
        command = [self.binary, *words, "--ports-file", ports, "--log-format", "text"]
        command += ["--end-with-parent", os.getpid()]
        process = Process(name, command, log, {"UCX_NET_DEVICES": "lo", **(env or {})})
        self.processes.append(process)

        def bound():
            try:
                return json.loads(ports.read_text())
            except (OSError, ValueError):
                return None

        return f"http://127.0.0.1:{wait_for(f'{name} to bind its ports', bound, 30, [process])['http']}"

    def sidecar(self, name, server, *more, lease="30s", staging="64MiB", env=None):
        role = {"p": "prefill", "d": "decode"}[server.side]
        words = f"""sidecar --role {role} --engine {server.url} --engine-side-channel 127.0.0.1:{server.side_channel}
            --data-parallel-size {DP} --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0 --staging-bytes {staging}
            --kv-lease {lease}""".split()
        return self.start(name, *words, *more, env=env)

    def router(self, name, prefill_sidecar, decode_sidecar, *more, lease="30s", decode_url=None):
        words = f"""router --pd-disaggregation --prefill {self.p.url},sidecar={prefill_sidecar}
            --decode {decode_url or self.d.url},sidecar={decode_sidecar} --intra-node-data-parallel-size {DP}
            --host 127.0.0.1 --port 0 --debug-headers --kv-lease {lease}""".split()
        return self.start(name, *words, *more)

    def wait_ready(self, router):
        """Until the router calls every rank of both pods ready."""
        page = {}

        def ready():
            page["last"] = web.get_json(router, "/readyz")
            targets = (page["last"] or {}).get("targets", [])
            return sum(target["ready"] for target in targets) == 2 * DP

        try:
            wait_for("all ranks to be ready", ready, READY_WITHIN, self.processes)
        except Failure as failure:
            logs = "\n".join(f"{process.name}:\n{tail(process.log, 8)}" for process in self.processes)
            raise Failure(f"{failure}; the router says {json.dumps(page['last'])}\n{logs}") from failure

    def end(self, *names):
        """Ends the named processes, or all."""
        for process in reversed(self.processes):
            if not names or process.name in names:
                process.stop()
        self.processes = [process for process in self.processes if process.popen.poll() is None]


def ranks(sidecar):
    """{rank: what the sidecar says of it}"""
    page = web.get_json(sidecar, "/v1/ranks") or {}
    listed = page if isinstance(page, list) else page.get("ranks", [])
    return {rank["dp_rank"]: rank for rank in listed}


def staging_used(sidecar):
    return sum(rank["staging"]["used_blocks"] for rank in ranks(sidecar).values())


def collected_by(sidecar, transfer, seconds=10):
    """The rank that D's notification named; None if it did not come in time."""
    try:
        return wait_for(
            "the collection of a transfer",
            lambda: [found["collected_by"]]
            if "collected_by" in (found := web.get_json(sidecar, f"/v1/transfers/{transfer}") or {})
            else None,
            seconds,
        )[0]
    except Failure:
        return None
