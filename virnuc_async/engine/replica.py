"""A model on one device, with the permanent threads that alone use it there."""

import asyncio
import resource
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from anyio import CancelScope
from numpy.typing import NDArray

from virnuc_async.errors import DeviceLost, DeviceOutOfMemory, Stage
from virnuc_async.models.bundle import Bundle
from virnuc_async.networks.model import Encoder, Model, similarity
from virnuc_async.networks.packing import Packed, dummy_batch, pack
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.tokens import Ragged
from virnuc_async.settings import Precision

from .devices import Device
from .lost_devices import keep_until_exit
from .torch_errors import TorchErrors, call_and_free, is_responsive
from .transfers import GpuTransfers, HostTransfers, Transfers, release_cached

# The networks in the order of the stage codes: code 1 is the first of them.
STAGE_CODES = (Stage.NUCLEOTIDE, Stage.PROTEIN, Stage.CLASSIFIER)

_DTYPES = {
    Precision.FP32: torch.float32,
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
    Precision.FP8: torch.bfloat16,
}
_Result = TypeVar("_Result")
_Array = TypeVar("_Array", NDArray[np.float32], NDArray[np.int64])


@dataclass(frozen=True, slots=True)
class Scores:
    """The results of a batch; row i is the batch's ORF i."""

    batch: Batch
    probabilities: NDArray[np.float32]  # (B, 2): others, virus
    stage_codes: NDArray[np.int64]  # (B,): 0, or 1 + the index of the first network without finite output
    embeddings: NDArray[np.float32] | None  # (B, C): the bases', then the residues'; if requested
    seconds: float  # that the device was busy with it
    similarity: NDArray[np.float32]  # (S, 2): of the spot-checked embeddings to the computed ones
    recomputed: int = 0  # ORFs that were computed again in FP32

    @property
    def not_finite(self) -> NDArray[np.int64]:
        """The rows of which a number is not finite."""
        has_failed = self.stage_codes != 0
        checked = [check.row for check in self.batch.known.compared]
        has_failed[checked] |= ~np.isfinite(self.similarity).all(1)
        return np.flatnonzero(has_failed)

    def replace(self, rows: NDArray[np.int64], others: "Scores") -> "Scores":
        """Return the scores with *rows* computed again: *others*."""
        compared = [check.row in set(rows.tolist()) for check in self.batch.known.compared]
        embeddings = self.embeddings
        if embeddings is not None and others.embeddings is not None:
            embeddings = _with_rows(embeddings, rows, others.embeddings)
        return Scores(
            batch=self.batch,
            probabilities=_with_rows(self.probabilities, rows, others.probabilities),
            stage_codes=_with_rows(self.stage_codes, rows, others.stage_codes),
            embeddings=embeddings,
            seconds=self.seconds + others.seconds,
            similarity=_with_rows(self.similarity, np.flatnonzero(compared), others.similarity),
            recomputed=len(rows),
        )


def _with_rows(array: _Array, rows: NDArray[np.int64], others: _Array) -> _Array:
    """Return a copy of *array* with other *rows*."""
    copied = array.copy()
    copied[rows] = others
    return copied


class _Embedded(NamedTuple):
    embeddings: torch.Tensor  # (B, C)
    similarity: torch.Tensor  # (S,): of the spot checks


class Replica:
    """
    The networks of *bundle* on *device*, in *precision*.

    All work is done on one permanent thread, whose current device and stream are set once: batches
    run in the order of the calls.
    """

    depth = 2  # batches to keep queued: when one is finished, the next has already been submitted

    def __init__(
        self,
        device: Device,
        bundle: Bundle,
        precision: Precision,
        embeddings: bool = False,
    ) -> None:
        self.device = device
        self.name = device.name
        self._bundle = bundle
        self.precision = precision
        self._dtype = _DTYPES[precision]
        self._embeddings = embeddings
        self._model: Model | None = None
        self._thread = ThreadPoolExecutor(1, f"replica {device.name}")
        # A second thread waits for a GPU's batch, while the first one submits the next.
        is_cpu = device.capability is None
        self._collecting = None if is_cpu else ThreadPoolExecutor(1, f"replica {device.name} waits")
        self._errors = TorchErrors(device.name, self._is_responsive)
        self._transfers: list[Transfers] = []  # one for each batch that was queued at the same time
        self._idle: deque[Transfers] = deque()  # those of them that no batch is using
        self._batches = 0
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Replica {self.name} [{self._batches} batches done]>"

    async def load(self) -> str | None:
        """
        Load the weights onto the device and prepare them; return a warning if not all could be done.

        Raises:
            BadBundle: the files do not match the bundle's description
            DeviceLost: the device has not enough memory for them, or failed
        """
        if self.device.failure:
            raise DeviceLost(self.name, self.device.failure)
        try:
            warning = await asyncio.wrap_future(self._thread.submit(self._guarded, self._load))
            if self._collecting is not None:
                await asyncio.wrap_future(self._collecting.submit(self._guarded, self._select_device))
        except DeviceOutOfMemory as error:
            raise DeviceLost(self.name, "not enough memory for the model") from error
        return warning

    async def warm_up(self, tokens: int) -> None:
        """
        Check that a GPU has the memory for a batch of *tokens* residue tokens, and keep it reserved.

        Raises:
            DeviceOutOfMemory: the GPU does not have it
            DeviceLost: the device failed and cannot be used any more
        """
        if self._collecting is not None:
            await self._score(largest_batch(tokens, self._bundle.length), self._submit)

    async def score(self, batch: Batch) -> Scores:
        """
        Score every ORF of *batch*. A call that is cancelled before the work has begun does no work.

        ORFs with a number that is not finite in half precision are computed again, in FP32.

        Raises:
            DeviceOutOfMemory: the batch did not fit; split it and try again
            DeviceLost: the device failed and cannot be used any more
        """
        scores = await self._score(batch, self._submit)
        self._batches += 1
        rows = scores.not_finite
        if self.precision is Precision.FP32 or not len(rows):
            return scores
        return scores.replace(rows, await self._score(batch.take(rows), self._submit_in_fp32))

    async def _score(self, batch: Batch, submit: Callable[[Batch], Transfers]) -> Scores:
        transfers = await _result_or_cancel(self._thread.submit(self._guarded, submit, batch))
        if self._collecting is None:
            return self._collect(batch, transfers)
        collected = asyncio.wrap_future(
            self._collecting.submit(self._guarded, self._collect, batch, transfers)
        )
        with CancelScope(shield=True):
            await asyncio.wait([collected])
        try:
            return collected.result()
        finally:
            del collected, transfers  # as in _result_or_cancel

    def peak_memory(self) -> int:
        """Return the most bytes in use at the same time: of the GPU, or of this process on the CPU."""
        if self.device.capability is None:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        # Numbers that torch keeps: CUDA is not asked, so that this thread needs no context.
        return torch.cuda.max_memory_allocated(self.device.torch_device)

    async def close(self) -> None:
        """Wait for the running batch and free the device; a model that is being loaded is dropped."""
        if self._is_closed:
            return
        self._is_closed = True
        with CancelScope(shield=True):
            # What is submitted is collected, and what is not yet begun gives up.
            await asyncio.wrap_future(self._thread.submit(lambda: None))
            if self._collecting is not None:
                await asyncio.to_thread(self._collecting.shutdown)
            await asyncio.wrap_future(self._thread.submit(self._free))
            await asyncio.to_thread(self._thread.shutdown)

    # On the replica's own threads

    def _guarded(self, work: Callable[..., _Result], *args: Any) -> _Result:
        """Return what *work* returns; nothing of it is left in the device's memory if it does not fit."""
        try:
            return call_and_free(work, *args)
        except DeviceOutOfMemory:
            # Libraries and Triton allocate beside torch, and have nothing of what torch keeps for later.
            release_cached(self.device.torch_device)
            raise
        finally:
            del work, args  # as in call_and_free

    def _load(self) -> str | None:
        bundle, device = self._bundle, self.device.torch_device
        with self._errors.translated(0, Stage.PROTEIN):
            self._init_thread()
            fp8 = self.precision is Precision.FP8
            self._model = Model.load(
                bundle.directory, bundle.shapes, device, self._dtype, self._check_not_closed, fp8
            )
            return None if self.device.capability is None else self._model.use_gpu_kernels()

    def _init_thread(self) -> None:
        """Set what belongs to the thread, once."""
        if self.device.capability is None:
            torch.set_num_threads(self.device.threads)
        else:
            self._select_device()
            torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]

    def _select_device(self) -> None:
        """Make the GPU the thread's own: CUDA would otherwise make a context on the first one."""
        with self._errors.translated(0, Stage.PROTEIN):
            torch.cuda.set_device(self.device.torch_device)

    def _check_not_closed(self) -> None:
        """Raise DeviceLost if the replica was closed: loading takes minutes, and nobody waits for it."""
        if self._is_closed:
            raise DeviceLost(self.name, "it was closed")

    def _submit(self, batch: Batch) -> Transfers:
        """Queue the work of *batch* on the device; on the CPU, do it."""
        self._check_not_closed()
        assert self._model is not None, "not loaded"
        return self._submit_to(self._model, batch)

    def _submit_in_fp32(self, batch: Batch) -> Transfers:
        """Do the same in FP32, with the weights that are there."""
        self._check_not_closed()
        assert self._model is not None, "not loaded"
        with self._errors.translated(batch.tokens, Stage.PROTEIN):
            model = self._model.in_fp32()
        return self._submit_to(model, batch)

    @torch.inference_mode()
    def _submit_to(self, model: Model, batch: Batch) -> Transfers:
        with self._errors.translated(batch.tokens, Stage.NUCLEOTIDE):
            transfers = self._take_transfers()
        try:
            self._queue(model, batch, transfers)
        except DeviceOutOfMemory:
            # The device may still be reading what it was given.
            with self._errors.translated(batch.tokens, Stage.PROTEIN):
                transfers.abandon()
            self._idle.append(transfers)
            raise
        return transfers

    def _queue(self, model: Model, batch: Batch, transfers: Transfers) -> None:
        known, checked = batch.known, [check.row for check in batch.known.compared]
        with self._errors.translated(batch.tokens, Stage.NUCLEOTIDE):
            transfers.begin()
            bases = _embed(model.nucleotide, batch.nucleotides, known.bases, checked, transfers)
        with self._errors.translated(batch.tokens, Stage.PROTEIN):
            residues = _embed(model.protein, batch.residues, known.residues, checked, transfers)
        with self._errors.translated(batch.tokens, Stage.CLASSIFIER):
            outputs = model.classify(bases.embeddings, residues.embeddings)
            results = [outputs.probabilities, outputs.is_finite]
            results.append(torch.stack((bases.similarity, residues.similarity), 1))
            if self._embeddings:
                results.append(outputs.features)
            transfers.end(results)

    def _take_transfers(self) -> Transfers:
        if self._idle:
            return self._idle.popleft()
        is_cpu = self.device.capability is None
        made: Transfers = HostTransfers() if is_cpu else GpuTransfers(self.device.torch_device)
        self._transfers.append(made)
        return made

    def _collect(self, batch: Batch, transfers: Transfers) -> Scores:
        """Wait until *batch* has finished, so that the device's own thread is free to submit more."""
        with self._errors.translated(batch.tokens, Stage.CLASSIFIER):
            seconds, (probabilities, is_finite, compared, *features) = transfers.wait()
        self._idle.append(transfers)
        return Scores(
            batch=batch,
            probabilities=probabilities,
            stage_codes=np.where(is_finite.all(0), 0, 1 + is_finite.argmin(0)),
            embeddings=features[0] if features else None,
            seconds=seconds,
            similarity=compared,
        )

    def _free(self) -> None:
        """Free the device's memory; of a lost device, nothing may be freed."""
        if self.device.failure:
            return  # it was never used
        if self._errors.has_lost_device or not self._is_responsive():
            keep_until_exit(self._model, *self._transfers)
            return
        self._model = None
        self._transfers.clear()
        self._idle.clear()
        release_cached(self.device.torch_device)

    def _is_responsive(self) -> bool:
        return is_responsive(self.device.torch_device)


def largest_batch(tokens: int, length: int) -> Batch:
    """Return a made-up batch of *tokens* residue tokens, the largest of fragments of *length* bases."""
    residues = length // 3
    count = max(1, tokens // (residues + 2))
    # At most one token for each base, where letters are unknown; one row is shorter, so that masks are made.
    shorter = np.arange(count) == count - 1
    bases, proteins = (dummy_batch(*(longest + 2 - shorter)) for longest in (3 * residues + 1, residues))
    return Batch(0, 0, "", np.arange(count), np.zeros((count, 3), np.int64), bases, proteins)


def _embed(
    encoder: Encoder,
    rows: Ragged,
    known: NDArray[np.float32] | None,
    checked: list[int],
    transfers: Transfers,
) -> _Embedded:
    """Return the embeddings of *rows*, *known* or computed, and the similarity of the *checked* ones."""
    if known is None:
        embeddings = encoder.embeddings(_packed(rows, transfers))
        return _Embedded(embeddings, embeddings.new_ones(len(checked)))
    embeddings, reused = transfers.to_device(*map(torch.from_numpy, (known, known[checked])))
    if not checked:
        return _Embedded(embeddings, embeddings.new_ones(0))
    computed = encoder.embeddings(_packed(rows.take(np.array(checked)), transfers))
    return _Embedded(embeddings, similarity(reused, computed))


def _packed(rows: Ragged, transfers: Transfers) -> Packed:
    """Return *rows* packed on the device."""
    packed = pack(rows)
    return packed.with_tensors(*transfers.to_device(*packed.tensors))


async def _result_or_cancel(work: Future[_Result]) -> _Result:
    """Wait for *work*. If this is cancelled: cancel the work too, or wait on if it has begun."""
    waiting = asyncio.wrap_future(work)
    try:
        await asyncio.wait([waiting])
    except asyncio.CancelledError:
        if work.cancel():
            raise
        with CancelScope(shield=True):
            await asyncio.wait([waiting])
    try:
        return waiting.result()
    finally:
        # An error has this frame in its traceback: with the futures in it, it would be part of a cycle.
        del work, waiting
