"""Processes that a bench starts: each is ended by its pid, never by a name; what they use is read from /proc."""

import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

TICK = os.sysconf("SC_CLK_TCK")
PATIENCE = 60


class Failure(Exception):
    """The bench cannot measure."""


def speaker(bench):
    """A `say` that names the bench."""

    def say(text):
        print(f"{bench}: {text}", file=sys.stderr, flush=True)

    return say


class Process:
    """One child. `folder` takes its log; standard output goes there too unless an option says otherwise."""

    running = []

    def __init__(self, name, command, folder, **options):
        self.name, self.folder, self.started = name, folder, time.monotonic()
        with open(folder / f"{name}.log", "ab") as log:
            command = [str(word) for word in command]
            self.child = subprocess.Popen(command, stderr=log, cwd=folder, **{"stdout": log, **options})
        Process.running.append(self)

    def pids(self):
        """The process and its children: nginx works in those."""
        pids = [self.child.pid]
        for task in pathlib.Path(f"/proc/{self.child.pid}/task").iterdir():
            pids += [int(pid) for pid in (task / "children").read_text().split()]
        return pids

    def cpu(self):
        """Seconds of CPU so far, in steps of a clock tick."""
        return sum(cpu_of(pid) for pid in self.pids())

    def cpu_of_threads(self):
        """Seconds of CPU of its threads so far, to the nanosecond; what threads used that have ended is not in it."""
        total = 0
        for pid in self.pids():
            for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def rss(self):
        """Resident memory in MB."""
        total = 0
        for pid in self.pids():
            for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1])
        return total * 1024 / 1e6

    def check(self):
        """Fails when it has ended by itself."""
        if self.child.poll() is not None:
            raise Failure(f"{self.name} ended: see {self.folder / self.name}.log")

    def end(self, within=5):
        """Tells it to end, and kills what has not after so many seconds."""
        if self in Process.running:
            Process.running.remove(self)
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGCONT)
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(within)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()

    @classmethod
    def end_all(cls):
        for process in reversed(list(cls.running)):
            process.end()


class Kvgate(Process):
    """One of kvgate's own on ports that the kernel gives."""

    def __init__(self, name, binary, arguments, folder, patience=PATIENCE):
        self.ports, self.patience = folder / f"{name}.ports.json", patience
        self.ports.unlink(missing_ok=True)
        super().__init__(name, [binary, *arguments.split(), "--ports-file", self.ports], folder)

    @functools.cached_property
    def port(self):
        """Where it answers HTTP; waits until it can be talked to."""

        def bound():
            self.check()
            return self.ports.exists() and json.loads(self.ports.read_text())

        return wait(f"ports of {self.name}", bound, self.patience)["http"]

    def get(self, path):
        """What it answers, or None when it does not, or not with 200."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.read()
        except OSError:
            return None


def cpu_of(pid):
    """Seconds of CPU of all threads of one process so far, in steps of a clock tick."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def wait(what, look, patience=PATIENCE):
    """What `look` finds, once it finds something."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise Failure(f"no {what} within {patience} s")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end_with_signals():
    """SIGTERM ends the bench as an exception does, so that it ends its children."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def versions(tree, binary=None):
    """What a figure must be read with: machine and commit."""
    model = next((line.partition(":")[2].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith(("model name", "Model"))), "unknown CPU")
    commit = subprocess.run(["git", "-C", tree, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    said = {"cpu": model, "cores": os.cpu_count(), "kernel": os.uname().release, "commit": commit}
    if binary:
        said["kvgate"] = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout.strip()
    return said
