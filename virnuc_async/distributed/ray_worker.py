"""
What runs on the nodes of a Ray cluster: an actor that does one shard after the other.

Its methods answer with values and never raise an error of ours: what went wrong is told in words, since an
error of one version of this program may mean nothing to another.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import anyio

from virnuc_async._version import __version__
from virnuc_async.errors import VirnucError
from virnuc_async.runs.run_progress import RunProgress

from .dealing import Ending, Task

OnProgress = Callable[[RunProgress], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """How an actor has ended with a shard."""

    ending: Ending
    reason: str = ""  # why it is not done
    is_unusable: bool = False  # whether the actor can do no other shard, and must be started anew
    progress: RunProgress | None = None  # the last of the shard
    error: VirnucError | None = None  # of work that is done when it fails


class ShardWork(Protocol):
    """What an actor does; it is pickled by the one who asks, and used in the actor alone."""

    async def open(self) -> None:
        """Check that this node can do shards of the run; raises VirnucError if not."""

    async def do(self, task: Task, on_progress: OnProgress) -> Answer:
        """Do a shard; when cancelled, end soon and leave what can be resumed. Raises VirnucError."""

    async def close(self) -> None:
        """Free the devices."""


class ShardWorker:
    """
    The actor: *work* is a pickled :class:`ShardWork`, of the *version* of this program that pickled it.

    Its methods are called at the same time as each other.
    """

    def __init__(self, version: str, work: bytes) -> None:
        self._version = version
        self._pickled = work
        self._work: ShardWork | None = None
        self._progress: RunProgress | None = None
        self._scope = anyio.CancelScope()
        self._is_stopped = False
        self._idle = anyio.Event()
        self._idle.set()

    async def open(self) -> str:
        """Return why this node can do no shard; "" if it can."""
        if self._version != __version__:
            return f"it has version {__version__} of this program, and the run is of {self._version}"
        try:
            if self._work is None:
                self._work = pickle.loads(self._pickled)
            await self._work.open()
        except VirnucError as error:
            return str(error)
        return ""

    async def do(self, task: Task) -> Answer:
        """Do a shard."""
        assert self._work is not None, "it is not open"
        if self._is_stopped:
            return Answer(Ending.STOPPED)
        self._idle, self._progress = anyio.Event(), None
        try:
            with anyio.CancelScope() as self._scope:
                return replace(await self._work.do(task, self._see), progress=self._progress)
        except VirnucError as error:
            return Answer(Ending.FAILED, str(error))
        finally:
            self._idle.set()
        return Answer(Ending.STOPPED)

    async def progress(self) -> RunProgress | None:
        """Return how far the current shard is, or the last one was."""
        return self._progress

    async def stop(self) -> None:
        """End with the current shard within a batch, and free the devices."""
        self._is_stopped = True
        self._scope.cancel()
        await self._idle.wait()
        if self._work is not None:
            await self._work.close()

    def _see(self, progress: RunProgress) -> None:
        self._progress = progress
