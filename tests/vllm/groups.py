"""Processes of the test: each in its own process group, ended by id, never by name; ports taken from the kernel."""

import ctypes
import os
import pathlib
import signal
import subprocess
import time

from say import Failure, free_ports, tail  # noqa: F401  free_ports goes on to who starts processes

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


def end_with_parent():
    """Runs in the child: the kernel ends it with the harness, even when that is killed."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Process:
    """A started program and everything that it starts itself."""

    def __init__(self, name, command, log, env=None):
        self.name, self.log = name, pathlib.Path(log)
        with open(self.log, "ab") as out:
            self.popen = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    @property
    def pid(self):
        return self.popen.pid

    def members(self):
        """Ids of the group's processes that are not zombies."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == self.pid and fields[0] != "Z":
                found.append(int(entry.name))
        return found

    def check(self):
        """Fails when it has ended by itself."""
        status = self.popen.poll()
        if status is not None:
            raise Failure(f"{self.name} ended by itself (status {status}), {self.log}:\n{tail(self.log, 40)}")

    def signal_all(self, number):
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass

    def kill(self):
        """SIGKILL for the whole group, without waiting for anything to be tidied."""
        self.signal_all(signal.SIGKILL)
        self.wait_gone(10)

    def wait_gone(self, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.popen.poll() is not None and not self.members():
                return True
            time.sleep(0.05)
        return False

    def stop(self):
        """SIGTERM to the leader, which ends its own children; SIGKILL for what is left after a while."""
        if self.popen.poll() is None:
            self.popen.terminate()
        if not self.wait_gone(20):
            self.kill()


def listening(port):
    """Whether a TCP port is bound, without connecting: a bare connection is noise on a ZMQ socket."""
    wanted = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = pathlib.Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        if any(row.split()[1].endswith(wanted) and row.split()[3] == "0A" for row in rows):
            return True
    return False


def wait_for(what, condition, seconds, processes=()):
    """Until `condition()` is truthy, which is returned; a process that ends meanwhile is the better message."""
    until = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        for process in processes:
            process.check()
        if time.monotonic() > until:
            raise Failure(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.1)
