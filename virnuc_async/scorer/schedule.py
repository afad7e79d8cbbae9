"""
Which batch is scored next: small requests share batches, large ones take turns.

What a caller sends is cut into windows as a run cuts its input. A window that fills a batch is packed by
itself, and its batches are those of a run; smaller ones wait a little for each other and share a batch.
Nobody waits for the whole of another's request: after each batch it is the next one's turn.
"""

import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import anyio
import numpy as np
from anyio import CancelScope
from numpy.typing import NDArray

from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.sequences.batches import Batch, pack_rows
from virnuc_async.sequences.tokens import Ragged

from .request import Request, ScoredWindow


class Parcel:
    """Windows that are packed as one; their ORFs are its rows, one after the other."""

    def __init__(self, number: int, parts: list[tuple[Request, ScoredWindow]], budget: int) -> None:
        self.number = number
        self.parts = parts
        windows = [part.window for _, part in parts]
        self._starts = np.cumsum([0, *(len(window.origins) for window in windows)])
        self.left = int(self._starts[-1])  # rows without a result
        self._begun = 0  # rows in a batch
        self._batches = self._pack(number, budget)

    def next_batch(self) -> Batch | None:
        """Return its next batch; None if there is none."""
        batch = next(self._batches, None)
        self._begun += len(batch or ())
        return batch

    def drop_unwanted(self) -> int:
        """If nobody waits for it, give up what is in no batch yet; return how many rows that are."""
        if not all(request.is_cancelled for request, _ in self.parts):
            return 0
        dropped = int(self._starts[-1]) - self._begun
        self._begun += dropped
        self.left -= dropped
        self._batches = iter(())
        return dropped

    def put(self, scored: ScoredBatch) -> list[Request]:
        """Hand on the scores of one of its batches; return whose they are."""
        rows = scored.batch.orfs
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        self.left -= len(rows)
        reached = np.unique(owners).tolist()
        for owner in reached:
            places = np.flatnonzero(owners == owner)
            self.parts[owner][1].put(rows[places] - self._starts[owner], scored, places)
        return [self.parts[owner][0] for owner in reached]

    def _pack(self, number: int, budget: int) -> Iterator[Batch]:
        windows = [part.window for _, part in self.parts]
        nucleotides, residues = (
            _concatenated([getattr(window, name) for window in windows])
            for name in ("nucleotides", "residues")
        )
        origins: NDArray[np.int64] = np.concatenate([window.origins for window in windows])
        for part, rows in enumerate(pack_rows(residues.lengths, budget)):
            yield Batch(number, part, "", rows, origins[rows], nucleotides.take(rows), residues.take(rows))


class Schedule:
    """
    The batches of all requests, of at most *budget* tokens, in the order in which they are scored.

    A window that does not fill a batch waits for others at most *max_wait* seconds.
    """

    def __init__(self, budget: int, max_wait: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget = budget
        self._max_wait = max_wait
        self._clock = clock
        self._numbers = 0
        # Whose turn it is: the parcels of each request with batches to come; a shared one stands alone.
        self._turns: deque[deque[Parcel]] = deque()
        self._large: dict[Request, deque[Parcel]] = {}  # those of them that are of one request
        self._small: deque[tuple[float, Request, ScoredWindow]] = deque()  # since when it waits
        self._running: dict[int, Parcel] = {}  # with batches that are being scored
        self._changed = anyio.Condition()
        self.waiting = 0  # ORFs without a result
        self._forming = 0  # windows: worth waiting for

    async def add(self, request: Request, window: ScoredWindow) -> None:
        """Add the next window of *request*."""
        async with self._changed:
            self.waiting += window.left
            if window.tokens < self._budget:
                self._small.append((self._clock(), request, window))
            else:
                self._add_large(request, self._parcel([(request, window)]))
            self._changed.notify_all()

    @asynccontextmanager
    async def forming(self) -> AsyncIterator[None]:
        """Count a window as being formed while the body runs: small ones wait for it."""
        self._forming += 1
        try:
            yield
        finally:
            self._forming -= 1
            with CancelScope(shield=True):
                await self.notify()

    async def notify(self) -> None:
        """Look again at what waits: somebody has given up, or nothing is being formed."""
        async with self._changed:
            self._changed.notify_all()

    async def room(self, most: int) -> None:
        """Wait until fewer than *most* ORFs are waiting."""
        async with self._changed:
            while self.waiting >= most:
                await self._changed.wait()

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Yield the next batch whenever the devices have room for it, without end."""
        while True:
            yield await self._next()

    async def put(self, scored: ScoredBatch) -> list[Request]:
        """Hand on the scores of a batch; return whose they are."""
        parcel = self._running[scored.batch.window]
        requests = parcel.put(scored)
        async with self._changed:
            self._forget(parcel, len(scored.batch))
        return requests

    async def _next(self) -> Batch:
        async with self._changed:
            while True:
                if batch := self._take():
                    return batch
                with anyio.move_on_after(self._seconds_to_wait()):
                    await self._changed.wait()

    def _take(self) -> Batch | None:
        """Return the next batch in turn, if there is one."""
        self._form_shared()
        while self._turns:
            parcels = self._turns.popleft()
            parcel = parcels[0]
            self._forget(parcel, parcel.drop_unwanted())
            if batch := parcel.next_batch():
                self._turns.append(parcels)
                return batch
            parcels.popleft()
            if parcels:
                self._turns.appendleft(parcels)
            elif self._large.get(parcel.parts[0][0]) is parcels:
                del self._large[parcel.parts[0][0]]
        return None

    def _add_large(self, request: Request, parcel: Parcel) -> None:
        if request in self._large:
            self._large[request].append(parcel)
        else:
            self._large[request] = deque([parcel])
            self._turns.append(self._large[request])

    def _forget(self, parcel: Parcel, orfs: int) -> None:
        """Count *orfs* of *parcel* as done, and let go of it when all are."""
        self.waiting -= orfs
        if orfs:
            self._changed.notify_all()
        if not parcel.left:
            self._running.pop(parcel.number, None)

    def _form_shared(self) -> None:
        """Let the small windows that have waited long enough, or fill a batch, take their turn."""
        while self._small and self._is_due():
            parts, room = [], self._budget
            while self._small and (tokens := self._small[0][2].tokens) <= room:
                _, request, window = self._small.popleft()
                if request.is_cancelled:
                    self.waiting -= window.left
                    continue
                parts.append((request, window))
                room -= tokens
            if parts:
                # In front: it is small, and has waited.
                self._turns.appendleft(deque([self._parcel(parts)]))

    def _is_due(self) -> bool:
        tokens = sum(window.tokens for _, _, window in self._small)
        is_idle = not self._running and not self._forming
        return is_idle or tokens >= self._budget or self._seconds_to_wait() <= 0

    def _seconds_to_wait(self) -> float:
        if not self._small:
            return float("inf")
        return self._small[0][0] + self._max_wait - self._clock()

    def _parcel(self, parts: list[tuple[Request, ScoredWindow]]) -> Parcel:
        self._numbers += 1
        parcel = Parcel(self._numbers, parts, self._budget)
        self._running[self._numbers] = parcel
        return parcel


def _concatenated(parts: list[Ragged]) -> Ragged:
    if len(parts) == 1:
        return parts[0]
    return Ragged(
        np.concatenate([part.ids for part in parts]), np.concatenate([part.lengths for part in parts])
    )
