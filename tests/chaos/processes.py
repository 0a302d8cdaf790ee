"""The processes under test: started on fixed ports so that they come back at the same address, ended by pid, never by name."""

import asyncio
import json
import math
import os
import resource
import signal

from say import Failure, free_ports, tail  # noqa: F401  free_ports goes on to who starts processes

UP_WITHIN = 40
# Above the sidecar's own budget for draining and closing, and the router's drain timeout.
ENDS_WITHIN = 45


class Process:
    """One `kvgate` process under a name, over all its restarts."""

    all = []
    # Ends that nobody asked for and that nobody else notices: crashes while a process starts, and just before it is killed.
    crashes = []

    def __init__(self, binary, name, folder, line):
        self.binary, self.name, self.line = binary, name, [str(word) for word in line]
        self.log = folder / f"{name}.log"
        self.ports = folder / f"{name}.ports.json"
        self.child, self.failed_starts = None, 0
        # When it was not there because it had been killed: [from, until].
        self.gone = []
        # One fault at a time may have it.
        self.busy = asyncio.Lock()
        self.is_retired = False
        Process.all.append(self)

    @property
    def pid(self):
        return self.child.pid

    async def spawn(self):
        self.ports.unlink(missing_ok=True)
        line = [*self.line, "--ports-file", self.ports, "--log-format", "text", "--end-with-parent", os.getpid()]
        with open(self.log, "ab") as log:
            self.child = await asyncio.create_subprocess_exec(
                self.binary, *map(str, line), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    async def start(self):
        """Starts it and waits until it can be talked to; one that cannot start just now is started again, as a supervisor does."""
        until = asyncio.get_running_loop().time() + UP_WITHIN
        while True:
            await self.spawn()
            while self.child.returncode is None:
                try:
                    json.loads(self.ports.read_text())
                    if self.gone:
                        self.gone[-1][1] = asyncio.get_running_loop().time()
                    return
                except (OSError, ValueError):
                    await asyncio.sleep(0.02)
                if asyncio.get_running_loop().time() > until:
                    await self.kill()
                    raise Failure(f"{self.name} is not up after {UP_WITHIN} s:\n{tail(self.log)}")
            if self.child.returncode < 0:
                Process.crashes.append(f"{self.name} was ended by signal {-self.child.returncode} while it started")
            if asyncio.get_running_loop().time() > until:
                raise Failure(f"{self.name} cannot start (status {self.child.returncode}):\n{tail(self.log)}")
            self.failed_starts += 1
            await asyncio.sleep(0.5)

    def signal(self, number):
        if self.child.returncode is None:
            self.child.send_signal(number)

    async def kill(self):
        self.gone.append([asyncio.get_running_loop().time(), math.inf])
        if self.child.returncode is not None:
            Process.crashes.append(f"{self.name} had ended with {self.child.returncode} before it was killed")
        self.signal(signal.SIGKILL)
        await self.child.wait()

    async def terminate(self):
        """SIGTERM; its exit code, or None when it had to be killed."""
        self.signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self.child.wait(), ENDS_WITHIN)
        except TimeoutError:
            await self.kill()
            return None

    def retire(self):
        """Its end is no news any more."""
        self.is_retired = True

    def has_ended_by_itself(self):
        started = self.child is not None and not self.is_retired and not self.busy.locked()
        return started and self.child.returncode is not None

    def was_gone_since(self, moment):
        return any(until >= moment for _, until in self.gone)

    def open_files(self):
        try:
            return len(os.listdir(f"/proc/{self.pid}/fd"))
        except FileNotFoundError as gone:
            raise ProcessLookupError(self.name) from gone

    def limit_files(self, soft):
        """Sets how many files it may have open; returns the limit of before."""
        before, hard = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (soft, hard))
        return before

    @classmethod
    async def end_all(cls):
        """Ends what is left, whatever state it is in."""
        for process in cls.all:
            if process.child is not None and process.child.returncode is None:
                process.signal(signal.SIGCONT)
                process.signal(signal.SIGKILL)
                await process.child.wait()
