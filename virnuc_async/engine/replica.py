"""A model on one device, with the permanent threads that alone use it there."""

import asyncio
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar, cast

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
from .torch_errors import call_and_free, is_responsive, translate_torch_errors

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


@dataclass(slots=True)
class _InFlight:
    """A batch whose work is queued on the device; *host* is valid once that work has finished."""

    batch: Batch
    started: float | torch.cuda.Event
    finished: float | torch.cuda.Event = 0.0
    host: list[torch.Tensor] = field(default_factory=list)

    def wait(self) -> float:
        """Wait until the work has finished; return the seconds that it took."""
        if isinstance(self.started, torch.cuda.Event) and isinstance(self.finished, torch.cuda.Event):
            self.finished.synchronize()
            return float(self.started.elapsed_time(self.finished)) / 1000
        return cast(float, self.finished) - cast(float, self.started)


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
        try:
            return await asyncio.wrap_future(self._thread.submit(call_and_free, self._load))
        except DeviceOutOfMemory as error:
            raise DeviceLost(self.name, "not enough memory for the model") from error

    async def warm_up(self, tokens: int) -> None:
        """
        Check that a GPU has the memory for a batch of *tokens* residue tokens, and keep it reserved.

        Raises:
            DeviceOutOfMemory: the GPU does not have it
            DeviceLost: the device failed and cannot be used any more
        """
        if self._collecting is not None:
            length = self._bundle.length // 3 + 2
            count = max(1, tokens // length)
            rows = dummy_batch(*[length] * count)
            batch = Batch(0, 0, "", np.arange(count), np.zeros((count, 3), np.int64), rows, rows)
            await self._score(batch, self._submit)

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

    async def _score(self, batch: Batch, submit: Callable[[Batch], _InFlight]) -> Scores:
        in_flight = await _result_or_cancel(self._thread.submit(call_and_free, submit, batch))
        if self._collecting is None:
            return self._collect(in_flight)
        collected = asyncio.wrap_future(self._collecting.submit(call_and_free, self._collect, in_flight))
        with CancelScope(shield=True):
            await asyncio.wait([collected])
        try:
            return collected.result()
        finally:
            del collected  # as in _result_or_cancel

    def peak_memory(self) -> int:
        """Return the most bytes in use at the same time: of the GPU, or of this process on the CPU."""
        if self.device.capability is None:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return torch.cuda.max_memory_allocated(self.device.torch_device)

    async def close(self) -> None:
        """Wait for the running batch and free the device; a model that is being loaded is dropped."""
        self._is_closed = True
        for thread in (self._thread, self._collecting):
            if thread is not None:
                await asyncio.to_thread(thread.shutdown, wait=True, cancel_futures=True)
        self._model = None

    # On the replica's own thread

    def _init_thread(self) -> None:
        """Set what belongs to the thread, once."""
        if self.device.capability is None:
            torch.set_num_threads(self.device.threads)
        else:
            torch.cuda.set_device(self.device.torch_device)
            torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
            self._copies = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def _load(self) -> str | None:
        bundle, device = self._bundle, self.device.torch_device
        with self._translated_errors(0, Stage.PROTEIN):
            self._init_thread()
            fp8 = self.precision is Precision.FP8
            self._model = Model.load(
                bundle.directory, bundle.shapes, device, self._dtype, self._check_not_closed, fp8
            )
            return None if self.device.capability is None else self._model.use_gpu_kernels()

    def _check_not_closed(self) -> None:
        """Raise DeviceLost if the replica was closed: loading takes minutes, and nobody waits for it."""
        if self._is_closed:
            raise DeviceLost(self.name, "it was closed while it was loading")

    def _submit(self, batch: Batch) -> _InFlight:
        """Queue the work of *batch* on the device; on the CPU, do it."""
        assert self._model is not None, "not loaded"
        return self._submit_to(self._model, batch)

    def _submit_in_fp32(self, batch: Batch) -> _InFlight:
        """Do the same in FP32, with the weights that are there."""
        assert self._model is not None, "not loaded"
        with self._translated_errors(batch.tokens, Stage.PROTEIN):
            model = self._model.in_fp32()
        return self._submit_to(model, batch)

    @torch.inference_mode()
    def _submit_to(self, model: Model, batch: Batch) -> _InFlight:
        in_flight, known = _InFlight(batch, self._timestamp()), batch.known
        with self._translated_errors(batch.tokens, Stage.NUCLEOTIDE):
            bases, bases_similarity = self._embed(model.nucleotide, batch, batch.nucleotides, known.bases)
        with self._translated_errors(batch.tokens, Stage.PROTEIN):
            residues, residues_similarity = self._embed(model.protein, batch, batch.residues, known.residues)
        with self._translated_errors(batch.tokens, Stage.CLASSIFIER):
            outputs = model.classify(bases, residues)
            results = [outputs.probabilities, outputs.is_finite]
            results.append(torch.stack((bases_similarity, residues_similarity), 1))
            if self._embeddings:
                results.append(outputs.features)
            # To pinned memory, which torch does not reuse before the copy has finished.
            in_flight.host = [tensor.to("cpu", non_blocking=True) for tensor in results]
        in_flight.finished = self._timestamp()
        return in_flight

    def _timestamp(self) -> float | torch.cuda.Event:
        """Return the time now, or an event that gets its time when the GPU's stream reaches it."""
        if self.device.capability is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _embed(
        self, encoder: Encoder, batch: Batch, rows: Ragged, known: NDArray[np.float32] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings of *rows*, *known* or computed, and the similarity of the spot checks."""
        checked = [check.row for check in batch.known.compared]
        if known is None:
            embeddings = encoder.embeddings(self._packed(rows))
            return embeddings, embeddings.new_ones(len(checked))
        embeddings, reused = (self._to_device(torch.from_numpy(part)) for part in (known, known[checked]))
        if not checked:
            return embeddings, embeddings.new_ones(0)
        computed = encoder.embeddings(self._packed(rows.take(np.array(checked))))
        return embeddings, similarity(reused, computed)

    def _packed(self, rows: Ragged) -> Packed:
        """Return *rows* packed on the device."""
        packed = pack(rows)
        return packed if self.device.capability is None else self._to_gpu(packed)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return *tensor* on the device."""
        if self.device.capability is None:
            return tensor
        return tensor.pin_memory().to(self.device.torch_device, non_blocking=True)

    def _to_gpu(self, packed: Packed) -> Packed:
        """Copy *packed* to the GPU while it still computes the previous batch."""
        with torch.cuda.stream(self._copies):
            copied = packed.pinned().to(self.device.torch_device)
        computing = torch.cuda.current_stream()
        computing.wait_stream(self._copies)
        for tensor in copied.tensors:
            tensor.record_stream(computing)
        return copied

    # On either thread

    def _collect(self, in_flight: _InFlight) -> Scores:
        """Wait until *in_flight* has finished, so that the device's own thread is free to submit more."""
        with self._translated_errors(in_flight.batch.tokens, Stage.CLASSIFIER):
            seconds = in_flight.wait()
        probabilities, is_finite, compared, *features = (part.numpy() for part in in_flight.host)
        return Scores(
            batch=in_flight.batch,
            probabilities=probabilities,
            stage_codes=np.where(is_finite.all(0), 0, 1 + is_finite.argmin(0)),
            embeddings=features[0] if features else None,
            seconds=seconds,
            similarity=compared,
        )

    @contextmanager
    def _translated_errors(self, tokens: int, stage: Stage) -> Iterator[None]:
        with translate_torch_errors(self.name, tokens, stage, self._is_responsive):
            yield

    def _is_responsive(self) -> bool:
        return is_responsive(self.device.torch_device)


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
