"""NIXL's Python package with its defaults, in a process of its own: what a user runs instead. Started by bench/nixl.py.

  peer.py source BYTES ERROR_HANDLING       serves memory, in ordinary pages
  peer.py reader BYTES ERROR_HANDLING       reads; commands and answers are those of bench/nixl/src/main.rs

Reads go the way that vLLM's connector takes: both sides' blocks are prepared once, a read names them by number, its state is asked for without
a pause. Blocks land in the order of the prompt. Nothing of NIXL is set but error handling, and that only where the row is about it.
numpy asks for huge pages of its own accord, torch, whose memory vLLM's cache is, does not: here it is told not to.
"""

import json
import os
import sys
import time

os.environ["NUMPY_MADVISE_HUGEPAGE"] = "0"

import numpy as np
from nixl_cu13._api import nixl_agent, nixl_agent_config

PAGE = 4096


def say(answer):
    print(json.dumps(answer), flush=True)


def agent(role, error_handling):
    name = f"bench-python-{role}-{os.getpid()}"
    if error_handling == "peer":
        return nixl_agent(name)
    made = nixl_agent(name, nixl_agent_config(backends=[]))
    made.create_backend("UCX", {"ucx_error_handling_mode": error_handling})
    return made


def address(memory):
    return memory.ctypes.data


def source(size, error_handling):
    served = agent("source", error_handling)
    memory = np.zeros(size, dtype=np.uint8)
    memory.view(np.uint64)[:: PAGE // 8] = np.arange(0, size, PAGE, dtype=np.uint64)
    served.register_memory([(address(memory), size, 0, "")], "DRAM")
    say({"base": address(memory), "bytes": size, "metadata": served.get_agent_metadata().hex()})
    sys.stdin.read()


class Reader:
    def __init__(self, size, error_handling):
        self.agent = agent("reader", error_handling)
        self.memory = np.zeros(size, dtype=np.uint8)
        self.memory[::PAGE] = 1
        self.agent.register_memory([(address(self.memory), size, 0, "")], "DRAM")
        self.prepared = {}

    def peer(self, base, size, metadata):
        self.base, self.size = int(base), int(size)
        self.name = self.agent.add_remote_agent(bytes.fromhex(metadata))

    def prepare(self, block):
        """Every block of this size, on both sides."""
        if block not in self.prepared:
            sides = ("NIXL_INIT_AGENT", address(self.memory), self.memory.size), (self.name, self.base, self.size)
            lists = [[(base + at, block, 0) for at in range(0, size - block + 1, block)] for _, base, size in sides]
            self.prepared[block] = [
                self.agent.prep_xfer_dlist(name, descs, "DRAM") for (name, _, _), descs in zip(sides, lists)
            ]

    def blocks(self, block, *ids):
        self.block, self.ids = int(block), np.array(ids, dtype=np.int32)
        self.prepare(self.block)
        self.here = np.arange(len(ids), dtype=np.int32)

    def once(self):
        local, remote = self.prepared[self.block]
        handle = self.agent.make_prepped_xfer("READ", local, self.here, remote, self.ids)
        state = self.agent.transfer(handle)
        while state != "DONE":
            if state == "ERR":
                sys.exit("peer.py: the read fails")
            state = self.agent.check_xfer_state(handle)
        self.agent.release_xfer_handle(handle)

    def run(self, within, most):
        heads = self.memory[: len(self.ids) * self.block].view(np.uint64)[:: self.block // 8]
        heads[:] = 2**64 - 1
        within, most = int(float(within) * 1e9), int(most)
        took, begun = [], time.perf_counter_ns()
        last = begun
        while len(took) < most and (not took or last - begun < within):
            self.once()
            end = time.perf_counter_ns()
            took.append(end - last)
            last = end
        wrong = int((heads != self.ids.astype(np.uint64) * np.uint64(self.block)).sum())
        return {"ns": took, "wrong": wrong, "runs": len(took), "pieces": len(self.ids)}


def reader(size, error_handling):
    work = Reader(size, error_handling)
    say({"ready": True})
    for line in sys.stdin:
        command, *words = line.split()
        say(getattr(work, command)(*words) or {"ok": True})


if __name__ == "__main__":
    {"source": source, "reader": reader}[sys.argv[1]](int(sys.argv[2]), sys.argv[3])
