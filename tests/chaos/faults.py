"""What goes wrong, and when: a deck of all faults, shuffled by the seed and dealt at random moments."""

import asyncio
import collections
import contextlib
import os
import pathlib
import signal

from say import Failure, say

SHM = pathlib.Path("/dev/shm")


class Faults:
    """Deals faults until it is told to stop, or each kill and each freeze once; two at a time may be on."""

    def __init__(self, topology, dice, disk, is_private, once):
        self.topology, self.dice, self.disk, self.once = topology, dice, disk, once
        self.made = collections.Counter()
        self.bad_ends = []
        self.deck = [
            *((self.kill, kind) for kind in KINDS),
            *((self.freeze, kind) for kind in KINDS),
        ]
        if once:
            return
        self.deck += [
            (self.roll, "prefill sidecar"),
            (self.roll, "decode sidecar"),
            (self.roll_router, "router"),
            *((self.no_files, kind) for kind in ("router", "prefill sidecar", "decode sidecar")),
        ]
        if is_private:
            self.deck += [(self.full_shm, "/dev/shm"), (self.full_disk, "the disk of the logs")]

    async def run(self, stop, gap):
        """`gap`: the shortest and the longest time between the beginnings of two faults, in seconds."""
        tasks, room = set(), asyncio.Semaphore(2)
        dealt = self.dice.sample(self.deck, len(self.deck))
        while not stop.is_set() and dealt:
            fault, kind = dealt.pop()
            if not dealt and not self.once:
                dealt = self.dice.sample(self.deck, len(self.deck))
            await room.acquire()
            task = asyncio.create_task(self.one(fault, kind, room))
            tasks.add(task)
            for task in [task for task in tasks if task.done()]:
                tasks.remove(task)
                task.result()
            try:
                await asyncio.wait_for(stop.wait(), self.dice.uniform(*gap))
            except TimeoutError:
                pass
        await asyncio.gather(*tasks)

    async def one(self, fault, kind, room):
        try:
            await fault(kind)
        except ProcessLookupError:
            say(f"{kind}: it has just ended by itself")
        finally:
            room.release()

    def counted(self, what, on):
        self.made[what] += 1
        say(f"{what}: {on}")

    def pick(self, kind):
        return self.topology.router if kind == "router" else self.dice.choice(self.members(kind))

    def members(self, kind):
        role, _, what = kind.partition(" ")
        return (self.topology.engines if what == "engine" else self.topology.sidecars)[role]

    # === The faults ===

    async def kill(self, kind):
        """SIGKILL; it comes back at the same address as another process."""
        pause, process = self.dice.uniform(0.05, 3), self.pick(kind)
        async with process.busy:
            self.counted(f"kill {kind}", process.name)
            await process.kill()
            await asyncio.sleep(pause)
            await process.start()

    async def freeze(self, kind):
        """SIGSTOP, and SIGCONT after a while: longer than P's lease now and then."""
        pause, process = self.dice.uniform(0.2, 6), self.pick(kind)
        async with process.busy:
            self.counted(f"freeze {kind}", f"{process.name} for {pause:.1f} s")
            process.signal(signal.SIGSTOP)
            await asyncio.sleep(pause)
            process.signal(signal.SIGCONT)

    async def roll(self, kind):
        """A rolling restart: each in turn is told to end, which it must do well, and started anew; the next one when it is ready."""
        for process in self.members(kind):
            async with process.busy:
                self.counted(f"roll {kind}", process.name)
                self.ended_well(process, await process.terminate())
                await process.start()
                await self.topology.ready_again(process)

    async def roll_router(self, kind):
        """Another router takes over; the old one has the time to end its streams."""
        old = self.topology.router
        async with old.busy:
            new = self.topology.new_router()
            async with new.busy:
                self.counted("roll router", old.name)
                await new.start()
                await self.topology.ready(new)
                self.topology.router = new
                self.ended_well(old, await old.terminate())
                old.retire()

    async def no_files(self, kind):
        """Not one more file or connection can be opened by it."""
        pause, process = self.dice.uniform(1, 4), self.pick(kind)
        async with process.busy:
            self.counted(f"no files {kind}", f"{process.name} for {pause:.1f} s")
            before = process.limit_files(process.open_files())
            await asyncio.sleep(pause)
            process.limit_files(before)

    async def full_shm(self, kind):
        """UCX finds no room for shared memory; a process of a pod starts meanwhile."""
        pause, process = self.dice.uniform(1, 4), self.dice.choice(self.topology.split())
        async with process.busy:
            self.counted("full /dev/shm", f"{process.name} starts in it")
            with Full(SHM):
                await process.kill()
                start = asyncio.create_task(process.start())
                await asyncio.sleep(pause)
            await start

    async def full_disk(self, kind):
        """Neither a log line nor a receipt can be written. Nobody is killed who has receipts to write once there is room."""
        pause = self.dice.uniform(1, 4)
        async with contextlib.AsyncExitStack() as busy:
            for sidecar in self.topology.sidecars["decode"]:
                await busy.enter_async_context(sidecar.busy)
            self.counted("full disk", f"for {pause:.1f} s")
            with Full(self.disk):
                await asyncio.sleep(pause)
            # What the disk did not take is written within a second.
            await asyncio.sleep(1.5)

    def ended_well(self, process, code):
        if code != 0:
            self.bad_ends.append(f"{process.name} ended with {code} after SIGTERM")


KINDS = [f"{role} {what}" for role in ("prefill", "decode") for what in ("engine", "sidecar")] + ["router"]


class Full:
    """No room in a file system of our own, until the end of the block."""

    def __init__(self, folder):
        self.file = folder / "full"

    def __enter__(self):
        free = os.statvfs(self.file.parent)
        if free.f_blocks * free.f_frsize > 1 << 30:
            raise Failure(f"{self.file.parent} is too large to be ours")
        # Without a buffer: what is left in one when there is no room any more fails again when the file is closed.
        with open(self.file, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                pass

    def __exit__(self, *_):
        self.file.unlink()
