"""
Which batch is scored next: requests take turns.

What a caller sends is cut into windows as a run cuts its input, and a window is packed by itself, so that
its batches are those of a run. Nobody waits for the whole of another's request: after each batch it is the
next one's turn.
"""

from collections import deque
from collections.abc import AsyncGenerator, Iterator

import anyio
import numpy as np

from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.sequences.batches import Batch, pack_rows

from .request import Request, ScoredWindow


class _Parcel:
    """A window of *request* that is packed into batches of at most *budget* tokens."""

    def __init__(self, number: int, request: Request, window: ScoredWindow, budget: int) -> None:
        self.number = number
        self.request = request
        self.window = window
        self._begun = 0  # ORFs in a batch
        self._batches = self._pack(budget)

    @property
    def is_over(self) -> bool:
        """Whether all is scored, or will never be."""
        return not self.window.left

    def next_batch(self) -> Batch | None:
        """Return its next batch; None if there is none."""
        batch = next(self._batches, None)
        self._begun += len(batch or ())
        return batch

    def drop_unwanted(self) -> int:
        """If nobody waits for it, give up what is in no batch yet; return how many ORFs that are."""
        if not self.request.is_cancelled:
            return 0
        dropped = len(self.window.window.origins) - self._begun
        self._begun += dropped
        self.window.left -= dropped
        self._batches = iter(())
        return dropped

    def _pack(self, budget: int) -> Iterator[Batch]:
        window = self.window.window
        for part, rows in enumerate(pack_rows(window.residues.lengths, budget)):
            tokens = (window.nucleotides.take(rows), window.residues.take(rows))
            yield Batch(self.number, part, "", rows.astype(np.int64), window.origins[rows], *tokens)


class Schedule:
    """The batches of all requests, of at most *budget* tokens, in the order in which they are scored."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._numbers = 0
        self._turns: deque[Request] = deque()  # those with batches to come, in turn
        self._parcels: dict[Request, deque[_Parcel]] = {}  # of these
        self._running: dict[int, _Parcel] = {}  # by their numbers, until all is scored
        self._changed = anyio.Condition()
        self.waiting = 0  # ORFs without a result

    async def add(self, request: Request, window: ScoredWindow) -> None:
        """Add the next window of *request*."""
        async with self._changed:
            self._numbers += 1
            parcel = _Parcel(self._numbers, request, window, self._budget)
            self._running[parcel.number] = parcel
            self.waiting += window.left
            if request not in self._parcels:
                self._parcels[request] = deque()
                self._turns.append(request)
            self._parcels[request].append(parcel)
            self._changed.notify_all()

    async def drop_unwanted(self) -> None:
        """Forget what nobody waits for any more."""
        async with self._changed:
            for parcel in [one for parcels in self._parcels.values() for one in parcels]:
                self._count(parcel, parcel.drop_unwanted())

    async def room(self, most: int) -> None:
        """Wait until fewer than *most* ORFs are waiting."""
        async with self._changed:
            while self.waiting >= most:
                await self._changed.wait()

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Yield the next batch whenever the devices have room for it, without end."""
        while True:
            async with self._changed:
                while (batch := self._take()) is None:
                    await self._changed.wait()
            yield batch

    async def put(self, scored: ScoredBatch) -> None:
        """Hand on the scores of a batch."""
        parcel = self._running[scored.batch.window]
        parcel.window.put(scored)
        async with self._changed:
            self._count(parcel, len(scored.batch))
        parcel.request.notify()

    def _take(self) -> Batch | None:
        """Return the next batch in turn, if there is one."""
        while self._turns:
            request = self._turns.popleft()
            parcels = self._parcels[request]
            while parcels:
                if batch := parcels[0].next_batch():
                    self._turns.append(request)
                    return batch
                parcels.popleft()
            del self._parcels[request]
        return None

    def _count(self, parcel: _Parcel, orfs: int) -> None:
        """Count *orfs* of *parcel* as done, and let go of it when all are."""
        self.waiting -= orfs
        if parcel.is_over:
            self._running.pop(parcel.number, None)
        if orfs:
            self._changed.notify_all()
