"""Work that writes files instead of scoring, for everything that is about which worker does which shard."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import anyio

from virnuc_async.distributed.dealing import Ending, Task
from virnuc_async.distributed.ray_worker import Answer, OnProgress
from virnuc_async.errors import PlanMismatch, UnreadableInput
from virnuc_async.runs.run_progress import DeviceProgress, RunProgress


@dataclass
class FakeWork:
    """
    Each shard is a file of *place*; a process that does one locks it, as a store is locked.

    What goes wrong is said by files there: ``kill-3``, ``fail-3``, ``bug-3``, ``unusable-3`` and ``stop-3``
    are for shard 3; with ``unfit``, no node can do any.
    """

    place: Path
    seconds: float = 0.0

    async def open(self) -> None:
        if (self.place / "unfit").exists():
            raise PlanMismatch(str(self.place), ["version: 1 -> 2"])

    async def do(self, task: Task, on_progress: OnProgress) -> Answer:
        number = task.shard.number
        with (self.place / "begun").open("a") as file:
            file.write(f"{number} {os.getpid()} {os.getppid()}\n")
        lock = self.place / f"lock-{number}"
        if not task.is_patient and self._is_locked(lock):
            return Answer(Ending.LOCKED, f"{lock} is locked")
        lock.write_text(str(os.getpid()))
        try:
            return await self._do_locked(number, on_progress)
        finally:
            lock.unlink()

    async def _do_locked(self, number: int, on_progress: OnProgress) -> Answer:
        if (self.place / f"kill-{number}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if (self.place / f"fail-{number}").exists():
            raise UnreadableInput(f"{number}.fa", "stale file handle")
        if (self.place / f"bug-{number}").exists():
            raise KeyError(number)
        if (unusable := self.place / f"unusable-{number}").exists():
            unusable.unlink()
            return Answer(Ending.FAILED, "cuda:0 failed", is_unusable=True)
        steps = 10
        for step in range(1, steps + 1):
            await anyio.sleep(self.seconds / steps)
            on_progress(progress(step / steps))
            while (self.place / f"stop-{number}").exists():  # noqa: ASYNC110 (it is of another process)
                await anyio.sleep(0.05)
        done = self.place / f"done-{number}"
        with done.open("x") as file:
            file.write(f"result {number}")
        return Answer(Ending.DONE)

    async def close(self) -> None:
        (self.place / f"closed-{os.getpid()}").touch()

    @staticmethod
    def _is_locked(lock: Path) -> bool:
        try:
            os.kill(int(lock.read_text() or 0), 0)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return False
        return True


def progress(share: float) -> RunProgress:
    device = DeviceProgress("cpu:0", "scoring", round(10 * share), 5.0, 50.0)
    return RunProgress("scoring", "scoring", share, 1.0, round(10 * share), 10, 0, 1, (device,))
