"""One device at work: it loads, warms up, and scores batches or their halves."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import anyio
import numpy as np
from anyio import CancelScope
from anyio.streams.memory import MemoryObjectSendStream
from numpy.typing import NDArray

from virnuc_async.errors import DeviceLost, DeviceOutOfMemory, Stage
from virnuc_async.sequences.batches import Batch

from .batch_queue import BatchQueue
from .replica import STAGE_CODES, Scores

if TYPE_CHECKING:
    from loguru import Logger


class BatchScorer(Protocol):
    """What a worker needs of a device; :class:`virnuc_async.engine.replica.Replica` is the real one."""

    name: str
    depth: int  # batches that it takes at once: one that runs, others that are ready when it is done

    def peak_memory(self) -> int:
        """Return the most bytes of device memory that were in use at once."""

    async def load(self) -> str | None:
        """Load the model; return a warning, or None. Raises DeviceLost or BadBundle."""

    async def warm_up(self, tokens: int) -> None:
        """Run a batch of *tokens*, so that its memory is reserved; raises DeviceOutOfMemory or DeviceLost."""

    async def score(self, batch: Batch) -> Scores:
        """
        Score a batch; raises DeviceOutOfMemory or DeviceLost.

        When cancelled, it drops the batch, or finishes it if the device has begun.
        """

    async def close(self) -> None:
        """Free the device."""


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """The scores of a batch; row i is the batch's ORF i."""

    batch: Batch
    device: str
    seconds: float
    probabilities: NDArray[np.float32]  # (B, 2): others, virus
    embeddings: NDArray[np.float32] | None  # (B, C)
    failures: Mapping[int, tuple[Stage, str]]  # row -> where and why this ORF has no score
    # (S, 2): of the spot checks of batch.known to what the model gives; None where nothing was computed
    similarity: NDArray[np.float32] | None = None
    recomputed: int = 0  # ORFs that were computed again in FP32


class Worker:
    """
    Scores batches on one device, split in halves where they do not fit.

    *max_tokens* is the largest batch to expect; it falls where the device has not the memory for it.
    """

    def __init__(self, scorer: BatchScorer, max_tokens: int, log: "Logger") -> None:
        self.name = scorer.name
        self.depth = scorer.depth
        self._scorer = scorer
        self._max_tokens = max_tokens
        self._log = log

    def __repr__(self) -> str:
        return f"<Worker {self.name} [at most {self._max_tokens:,} tokens]>"

    async def load(self) -> str | None:
        """
        Load the model onto the device; return a warning if something is not as requested.

        Raises:
            DeviceLost: the device cannot hold the model, or failed
            BadBundle: the model's files are damaged
        """
        return await self._scorer.load()

    async def warm_up(self) -> None:
        """
        Find the largest batch that fits, by halving; better now than in the middle of the run.

        Raises:
            DeviceLost: not even a single token fits, or the device failed
        """
        tokens = self._max_tokens
        while True:
            try:
                await self._scorer.warm_up(tokens)
                return
            except DeviceOutOfMemory:
                tokens //= 2
                if not tokens:
                    raise DeviceLost(self.name, "not enough memory for a single token") from None
            self._log.warning(
                "{} has not enough memory for batches of {:,} tokens; its batches are split. "
                "--tokens-per-batch {} would give every device the same batches",
                self.name,
                2 * tokens,
                tokens,
            )
            self._max_tokens = tokens

    async def run(self, queue: BatchQueue, send: MemoryObjectSendStream[ScoredBatch]) -> None:
        """
        Score what *queue* has until it ends; what is not scored when this fails is requeued.

        Raises:
            DeviceLost: the device does not respond any more
        """
        while (batch := await queue.get()) is not None:
            pending = deque([batch])
            try:
                while pending:
                    await self._score_or_split(pending, send)
            finally:
                with CancelScope(shield=True):
                    await queue.requeue(*pending)
                    await queue.task_done()

    async def close(self) -> int:
        """Free the device, and return the most bytes of its memory that were in use."""
        with CancelScope(shield=True):
            peak = self._scorer.peak_memory()
            await self._scorer.close()
        return peak

    async def _score_or_split(self, pending: deque[Batch], send: MemoryObjectSendStream[ScoredBatch]) -> None:
        """Score the first of *pending*, or put its halves there if the device has no memory for it."""
        batch = pending[0]
        if len(batch) > 1 and batch.tokens > self._max_tokens:
            pending.popleft()
            pending.extendleft(reversed(batch.halves()))
            return
        try:
            scored = _scored_batch(self.name, await self._scorer.score(batch))
        except DeviceOutOfMemory as error:
            self._log.warning("{}; it is split in halves" if len(batch) > 1 else "{}", error)
            scored, reason = None, (error.stage, str(error))
        # Not inside the handler: its traceback would keep the failed batch's tensors alive.
        if scored is None and len(batch) > 1:
            self._max_tokens = batch.tokens // 2
            return
        # Shielded: what was scored is kept, also when cancelled.
        with CancelScope(shield=True):
            try:
                await send.send(scored or _failed_single(self.name, batch, *reason))
            except anyio.BrokenResourceError:
                # Whoever receives the scores has failed, and the reason is raised there.
                pending.clear()
                return
        pending.popleft()


def _scored_batch(device: str, scores: Scores) -> ScoredBatch:
    failures = {
        int(row): (STAGE_CODES[scores.stage_codes[row] - 1], "its score is not finite")
        for row in scores.stage_codes.nonzero()[0]
    }
    return ScoredBatch(
        batch=scores.batch,
        device=device,
        seconds=scores.seconds,
        probabilities=scores.probabilities,
        embeddings=scores.embeddings,
        failures=failures,
        similarity=scores.similarity,
        recomputed=scores.recomputed,
    )


def _failed_single(device: str, batch: Batch, stage: Stage, reason: str) -> ScoredBatch:
    """Return the result of a batch of one ORF that no batch of this device is small enough for."""
    probabilities = np.zeros((1, 2), dtype=np.float32)
    return ScoredBatch(batch, device, 0.0, probabilities, None, {0: (stage, reason)})
