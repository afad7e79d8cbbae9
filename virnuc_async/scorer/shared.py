"""
Small requests that are scored as one: formed into one window, packed into shared batches.

A read alone fills no batch, and preparing it costs as much as preparing a hundred. While the devices are
busy, small requests gather; when they are not, or the first has waited long enough, they go together.
"""

import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from virnuc_async.errors import VirnucError
from virnuc_async.sequences.fastx import Contig

from .predictions import Prediction

# Scores contigs as one request.
ScoreTogether = Callable[[Sequence[Contig]], Awaitable[list[Prediction]]]


@dataclass(eq=False, slots=True)
class _Caller:
    contigs: Sequence[Contig]
    since: float
    is_gone: bool = False
    found: list[Prediction] | None = None
    error: VirnucError | None = None
    done: anyio.Event = field(default_factory=anyio.Event)


class SharedRequests:
    """
    Gathers small requests, and lets *score_together* score up to *most_bases* of them as one.

    The first to come waits at most *max_wait* seconds for others, and not at all while none is scored.
    *most_groups* are scored at a time.
    """

    def __init__(
        self,
        score_together: ScoreTogether,
        *,
        most_bases: int,
        most_groups: int,
        max_wait: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._score_together = score_together
        self._most_bases = most_bases
        self._most_groups = most_groups
        self._max_wait = max_wait
        self._clock = clock
        self._callers: deque[_Caller] = deque()
        self._groups = 0
        self._changed = anyio.Event()
        self.gathered = 0  # records that wait to be formed

    async def score(self, contigs: Sequence[Contig]) -> list[Prediction]:
        """
        Return the predictions of *contigs*.

        Raises:
            what ended the scoring
        """
        caller = _Caller(contigs, self._clock())
        self._callers.append(caller)
        self.gathered += len(contigs)
        self._changed.set()
        try:
            await caller.done.wait()
        finally:
            caller.is_gone = True
        if caller.error is not None:
            raise caller.error
        assert caller.found is not None
        return caller.found

    async def run(self) -> None:
        """Form groups, and let each be scored in a task of its own, until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                with anyio.move_on_after(self._seconds_to_wait()):
                    await self._changed.wait()
                self._changed = anyio.Event()
                while self._callers and self._groups < self._most_groups and self._is_due():
                    self._start(tasks)

    def fail(self, error: VirnucError) -> None:
        """Let every caller that still waits have *error*."""
        while self._callers:
            caller = self._callers.popleft()
            self.gathered -= len(caller.contigs)
            caller.error = error
            caller.done.set()

    def _start(self, tasks: TaskGroup) -> None:
        group, bases = list[_Caller](), 0
        while self._callers and (not group or bases + _bases(self._callers[0]) <= self._most_bases):
            caller = self._callers.popleft()
            self.gathered -= len(caller.contigs)
            if not caller.is_gone:
                group.append(caller)
                bases += _bases(caller)
        if group:
            self._groups += 1
            tasks.start_soon(self._score, group, name="score small requests")

    async def _score(self, group: list[_Caller]) -> None:
        contigs = [contig for caller in group for contig in caller.contigs]
        try:
            found = iter(await self._score_together(contigs))
            for caller in group:
                caller.found = [next(found) for _ in caller.contigs]
        except VirnucError as error:
            for caller in group:
                caller.error = error
        finally:
            self._groups -= 1
            self._changed.set()
        for caller in group:
            caller.done.set()

    def _is_due(self) -> bool:
        is_full = sum(map(_bases, self._callers)) >= self._most_bases
        return is_full or not self._groups or self._clock() >= self._callers[0].since + self._max_wait

    def _seconds_to_wait(self) -> float:
        if not self._callers or self._groups >= self._most_groups:
            return float("inf")
        return max(0.0, self._callers[0].since + self._max_wait - self._clock())


def _bases(caller: _Caller) -> int:
    return sum(len(contig.bases) for contig in caller.contigs)
