"""An unmodified vLLM prefill server and decode server on this machine's CPU, DP=2 each.

No installed file is changed; three settings depart from a stock start, see docs/vllm.md: the executor, the sleep of
NIXL's progress threads (engine/shim), and all cores for all threads after the start.
"""

import json
import os
import pathlib
import time

import web
from groups import Process, free_ports, listening
from say import Failure, progress, tail

HERE = pathlib.Path(__file__).resolve().parent
DP = 2
BLOCK = 32
MAX_LEN = 2048
HEALTHY_WITHIN = 300


class Server:
    """One vLLM API server with its engines."""

    def __init__(self, side, python, model, folder, dtype="float32", env=None):
        self.side, self.python, self.model, self.folder = side, python, model, folder
        self.dtype, self.env = dtype, env or {}
        self.port, self.side_channel = free_ports(), free_ports(DP)
        self.url = f"http://127.0.0.1:{self.port}"
        self.process, self.starts = None, 0

    def command(self, lease, prefix_cache, kv_mib, max_seqs):
        role = {"p": "kv_producer", "d": "kv_consumer"}[self.side]
        transfer = {
            "kv_connector": "NixlConnector",
            "kv_role": role,
            "kv_load_failure_policy": "fail",
            "kv_connector_extra_config": {"kv_lease_duration": lease},
        }
        flags = f"""--served-model-name tiny --host 127.0.0.1 --port {self.port} --data-parallel-size {DP}
            --dtype {self.dtype} --enforce-eager --max-model-len {MAX_LEN} --max-num-seqs {max_seqs}
            --max-num-batched-tokens {MAX_LEN} --block-size {BLOCK} --kv-cache-memory-bytes {kv_mib << 20}
            --distributed-executor-backend vllm.v1.executor.uniproc_executor.UniProcExecutor
            --disable-uvicorn-access-log --{"" if prefix_cache else "no-"}enable-prefix-caching""".split()
        module = [self.python, "-W", "ignore", "-m", "vllm.entrypoints.openai.api_server", "--model", self.model]
        return [*module, *flags, "--kv-transfer-config", json.dumps(transfer)]

    def environment(self):
        return {
            "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(self.side_channel),
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "UCX_NET_DEVICES": "lo",
            "GLOO_SOCKET_IFNAME": "lo",
            "KVGATE_TEST_NIXL_DELAY_US": "1000",
            "PYTHONPATH": str(HERE / "engine" / "shim"),
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "",  # Each of eight processes would compile what the install has not.
            **self.env,
        }

    def start(self, lease=30, prefix_cache=False, kv_mib=64, max_seqs=8, other_nixl=None):
        """Starts it and returns at once; see wait_up. `other_nixl` is the folder of a NIXL build to take instead of its own."""
        self.starts += 1
        log = self.folder / f"{self.side}.{self.starts}.log"
        command = self.command(lease, prefix_cache, kv_mib, max_seqs)
        environment = self.environment()
        if other_nixl:
            environment["PYTHONPATH"] += os.pathsep + str(other_nixl)
            environment["KVGATE_TEST_NIXL_BUILD"] = "nixl_cu12"
        self.process = Process(f"vLLM {self.side.upper()}", command, log, environment)

    def lacks(self):
        """What is missing until it can serve, or an empty text."""
        silent = [str(port) for port in range(self.side_channel, self.side_channel + DP) if not listening(port)]
        if silent:
            return f"side channel {', '.join(silent)}"
        if not listening(self.port) or web.request("GET", self.url, "/health", timeout=5)[0] != 200:
            return f"{self.url}/health"
        return ""

    def unpin(self):
        """NixlConnector pins each engine's main thread to the last core, so that all engines would share one."""
        for pid in self.process.members():
            for thread in pathlib.Path(f"/proc/{pid}/task").glob("*"):
                try:
                    os.sched_setaffinity(int(thread.name), os.sched_getaffinity(0))
                except OSError:
                    continue

    def load(self):
        """(running, waiting, KV usage), summed over the ranks."""
        page = web.metrics(self.url)
        return tuple(web.total(page, name) for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"))

    def stop(self):
        if self.process:
            self.process.stop()
            self.process = None


def wait_up(*servers):
    """Until all can serve; says what it waits for."""
    start = said = time.monotonic()
    while True:
        lacking = {server.side: server.lacks() for server in servers}
        missing = ", ".join(f"{side} lacks {what}" for side, what in lacking.items() if what)
        if not missing:
            break
        for server in servers:
            server.process.check()
        now = time.monotonic()
        if now - start > HEALTHY_WITHIN:
            logs = "\n".join(tail(server.process.log) for server in servers if lacking[server.side])
            raise Failure(f"not healthy after {HEALTHY_WITHIN} s: {missing}\n{logs}")
        if now - said > 15:
            progress(f"waiting for vLLM: {missing}")
            said = now
        time.sleep(0.5)
    for server in servers:
        server.unpin()
    progress(f"vLLM {' and '.join(server.side.upper() for server in servers)} up after {time.monotonic() - start:.0f} s")
