"""A bounded queue of batches whose items can be given back, in the words of :class:`asyncio.Queue`."""

from collections import deque

import anyio

from virnuc_async.sequences.batches import Batch


class BatchQueue:
    """
    Batches for whichever device is free, in order; a batch that was requeued comes first.

    Holds at most *capacity* batches, requeued ones not counted.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._ready: deque[Batch] = deque()
        self._in_progress = 0  # taken by get, and not task_done
        self._is_closed = False
        self._changed = anyio.Condition()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<BatchQueue [{len(self._ready)} ready, {self._in_progress} in progress, {state}]>"

    async def put(self, batch: Batch) -> None:
        """Add *batch* at the end; waits while the queue is full."""
        async with self._changed:
            while len(self._ready) >= self._capacity:
                await self._changed.wait()
            self._ready.append(batch)
            self._changed.notify_all()

    async def close(self) -> None:
        """Announce that no batch will be put any more."""
        async with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    async def get(self) -> Batch | None:
        """Return the next batch; None once the queue is closed and every batch is done."""
        async with self._changed:
            # An idle device waits for the others' last batches: one may be requeued.
            while not self._ready:
                if self._is_closed and not self._in_progress:
                    return None
                await self._changed.wait()
            self._in_progress += 1
            self._changed.notify_all()
            return self._ready.popleft()

    async def requeue(self, *batches: Batch) -> None:
        """Put *batches* first in the queue, in their order; before the task_done of what they are from."""
        async with self._changed:
            self._ready.extendleft(reversed(batches))
            self._changed.notify_all()

    async def task_done(self) -> None:
        """End what :meth:`get` began."""
        async with self._changed:
            self._in_progress -= 1
            self._changed.notify_all()
