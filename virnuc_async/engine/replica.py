"""
A bundle on one device, and the one thread that ever touches it there.

What torch raises becomes our own failures here and nowhere else.
"""

import asyncio
import resource
import time
from collections.abc import Iterator
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
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.compiling import compile_layers
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.loading import load
from virnuc_async.networks.packing import Packed, dummy_batch, pack
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.tokens import Ragged
from virnuc_async.settings import Precision

from .devices import Device

# What a fault number stands for; the first network whose numbers are not finite is at fault.
STAGE_CODES = (Stage.NUCLEOTIDE, Stage.PROTEIN, Stage.CLASSIFIER)

_DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}
_SAMPLE = (7, 5)  # tokens of two sequences, to compile for
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Scores:
    """What a device made of a batch; row i is the batch's ORF i."""

    batch: Batch
    probabilities: NDArray[np.float32]  # (B, 2): others, virus
    stage_codes: NDArray[np.int64]  # (B,): 0, or 1 + the number of the network at fault
    embeddings: NDArray[np.float32] | None  # (B, C): bases' first, then residues'; if asked for
    seconds: float  # that the device was busy with it
    similarity: NDArray[np.float32]  # (S, 2): of the known embeddings that were compared, to those computed


@dataclass(slots=True)
class _Flight:
    """A batch whose work is queued on the device; *host* is whole once that has ended."""

    batch: Batch
    began: float | torch.cuda.Event
    ended: float | torch.cuda.Event = 0.0
    host: list[torch.Tensor] = field(default_factory=list)

    def seconds(self) -> float:
        """Wait for the end, and give the time that it took."""
        if isinstance(self.began, torch.cuda.Event) and isinstance(self.ended, torch.cuda.Event):
            self.ended.synchronize()
            return float(self.began.elapsed_time(self.ended)) / 1000
        return cast(float, self.ended) - cast(float, self.began)


class Replica:
    """
    The three networks on *device*, in *precision*.

    All work happens on one permanent thread: its current device and stream are set once, and
    batches run in the order of the calls.
    """

    depth = 2  # batches that it takes at once: when one is done, the next is there already

    def __init__(
        self,
        device: Device,
        bundle: Bundle,
        precision: Precision,
        embeddings: bool = False,
        compiled: bool = False,
    ) -> None:
        self.device = device
        self.name = device.name
        self._bundle = bundle
        self._dtype = _DTYPES[precision]
        self._embeddings = embeddings
        self._compiled = compiled
        self._thread = ThreadPoolExecutor(1, f"replica {device.name}")
        # A GPU's batch is waited for on a second thread, while the first launches the next one.
        is_cpu = device.capability is None
        self._waiting = None if is_cpu else ThreadPoolExecutor(1, f"replica {device.name} waits")
        self._batches = 0
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Replica {self.name} [{self._batches} batches done]>"

    async def load(self) -> str | None:
        """
        Bring the weights onto the device and make them ready; say what could not be done as wanted.

        Raises:
            BadBundle: the files are not what the bundle says
            DeviceLost: the device cannot hold them, or failed
        """
        try:
            return await asyncio.wrap_future(self._thread.submit(self._load))
        except DeviceOutOfMemory as error:
            raise DeviceLost(self.name, "not enough memory for the model") from error

    async def warm_up(self, tokens: int) -> None:
        """
        See that a GPU has the memory for a batch of *tokens* residue tokens, and leave it reserved.

        Raises:
            DeviceOutOfMemory: it has not
            DeviceLost: the device will not score anything any more
        """
        if self._waiting is not None:
            length = self._bundle.length // 3 + 2
            count = max(1, tokens // length)
            rows = dummy_batch(*[length] * count)
            batch = Batch(0, 0, "", np.arange(count), np.zeros((count, 3), np.int64), rows, rows)
            await self.score(batch)

    async def score(self, batch: Batch) -> Scores:
        """
        Score every ORF of *batch*. What is cancelled before it has begun is not done, and no later.

        Raises:
            DeviceOutOfMemory: it did not fit; halve it and try again
            DeviceLost: the device will not score anything any more
        """
        flight = await _outcome(self._thread.submit(self._launch, batch))
        self._batches += 1
        if self._waiting is None:
            return self._land(flight)
        landing = asyncio.wrap_future(self._waiting.submit(self._land, flight))
        with CancelScope(shield=True):
            await asyncio.wait([landing])
        return landing.result()

    def peak_memory(self) -> int:
        """Give the most bytes in use at once: of the GPU, or of the whole process on the CPU."""
        if self.device.capability is None:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return torch.cuda.max_memory_allocated(self.device.torch_device)

    async def close(self) -> None:
        """Wait for the batch that is running, and free the device; loading is given up."""
        self._is_closed = True
        for thread in (self._thread, self._waiting):
            if thread is not None:
                await asyncio.to_thread(thread.shutdown, wait=True, cancel_futures=True)
        self.__dict__.pop("_networks", None)

    def _enter(self) -> None:
        """Set what belongs to the thread, once."""
        if self.device.capability is None:
            torch.set_num_threads(self.device.threads)
        else:
            torch.cuda.set_device(self.device.torch_device)
            torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
            self._copies = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def _load(self) -> str | None:
        shapes, place, files = self._bundle.shapes, self.device.torch_device, self._bundle.directory
        with self._failures(0, Stage.PROTEIN):
            self._enter()
        with torch.device("meta"):
            nucleotide, protein = DnabertS(shapes.nucleotide), Esm2(shapes.protein)
            classifier = Classifier(shapes.classifier)
        with self._failures(0, Stage.PROTEIN):
            self._networks = (
                load(nucleotide, files / "nucleotide.safetensors", place, self._dtype, self._go_on),
                load(protein, files / "protein.safetensors", place, self._dtype, self._go_on),
                load(classifier, files / "classifier.safetensors", place, torch.float32, self._go_on),
            )
            return self._speed_up(nucleotide, protein)

    def _go_on(self) -> None:
        """Give up what takes minutes when nobody waits for it any more."""
        if self._is_closed:
            raise DeviceLost(self.name, "it was given up while it was loading")

    def _speed_up(self, *encoders: DnabertS | Esm2) -> str | None:
        """Prepare for this device; say what could not be compiled, and then try no further."""
        if self.device.capability is None:
            for network in self._networks:
                network.prepack()
            return None
        for encoder in encoders:
            encoder.use_fastest_attention()
        if not self._compiled:
            return None
        rows = self._packed(dummy_batch(*_SAMPLE))
        return next(filter(None, (compile_layers(encoder, rows) for encoder in encoders)), None)

    @torch.inference_mode()
    def _launch(self, batch: Batch) -> _Flight:
        """Queue all work of *batch* on the device; on the CPU that is to do it."""
        flight = _Flight(batch, self._mark())
        nucleotide, protein, classifier = self._networks
        with self._failures(batch.tokens, Stage.NUCLEOTIDE):
            bases, bases_alike = self._embedded(nucleotide, batch, batch.nucleotides, batch.known.bases)
        with self._failures(batch.tokens, Stage.PROTEIN):
            residues, residues_alike = self._embedded(protein, batch, batch.residues, batch.known.residues)
        with self._failures(batch.tokens, Stage.CLASSIFIER):
            features = torch.cat((bases, residues), 1)
            scores = classifier(features)
            sound = torch.stack([part.isfinite().all(1) for part in (bases, residues, scores)])
            wanted = [scores, sound, torch.stack((bases_alike, residues_alike), 1)]
            if self._embeddings:
                wanted.append(features)
            # Into pinned memory, which torch gives to nobody else before the copy is done.
            flight.host = [part.to("cpu", non_blocking=True) for part in wanted]
        flight.ended = self._mark()
        return flight

    def _mark(self) -> float | torch.cuda.Event:
        """Take the time: on the host, or of the device's stream when it gets there."""
        if self.device.capability is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _land(self, flight: _Flight) -> Scores:
        """Wait until *flight* has been done, which leaves the device's own thread free to launch."""
        with self._failures(flight.batch.tokens, Stage.CLASSIFIER):
            seconds = flight.seconds()
        scores, sound, similarity, *features = (part.numpy() for part in flight.host)
        return Scores(
            batch=flight.batch,
            probabilities=scores,
            stage_codes=np.where(sound.all(0), 0, 1 + sound.argmin(0)),
            embeddings=features[0] if features else None,
            seconds=seconds,
            similarity=similarity,
        )

    def _embedded(
        self, encoder: DnabertS | Esm2, batch: Batch, rows: Ragged, known: NDArray[np.float32] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give what is *known* of *rows*, or compute it; and how alike both are where they are compared."""
        compared = [one.row for one in batch.known.compared]
        if known is None:
            embeddings = encoder.embeddings(self._packed(rows))
            return embeddings, embeddings.new_ones(len(compared))
        embeddings, reused = (self._there(torch.from_numpy(part)) for part in (known, known[compared]))
        if not compared:
            return embeddings, embeddings.new_ones(0)
        return embeddings, _similarity(
            reused, encoder.embeddings(self._packed(rows.take(np.array(compared))))
        )

    def _there(self, tensor: torch.Tensor) -> torch.Tensor:
        """Bring *tensor* onto the device."""
        if self.device.capability is None:
            return tensor
        return tensor.pin_memory().to(self.device.torch_device, non_blocking=True)

    def _packed(self, rows: Ragged) -> Packed:
        """Bring *rows* onto the device, on a GPU while it still computes the batch before."""
        packed = pack(rows)
        if self.device.capability is None:
            return packed
        with torch.cuda.stream(self._copies):
            there = packed.pinned().to(self.device.torch_device)
        computing = torch.cuda.current_stream()
        computing.wait_stream(self._copies)
        for tensor in there.tensors:
            tensor.record_stream(computing)
        return there

    @contextmanager
    def _failures(self, tokens: int, stage: Stage) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise DeviceOutOfMemory(self.name, tokens, stage) from error
        except torch.AcceleratorError as error:
            raise DeviceLost(self.name, str(error).splitlines()[0]) from error
        except RuntimeError as error:
            # cuBLAS and others raise no type of their own: whether it is a bug of ours or the
            # device's death is for the device to say.
            if self._answers():
                raise
            raise DeviceLost(self.name, str(error).splitlines()[0]) from error

    def _answers(self) -> bool:
        """Whether the device still does what it is asked."""
        try:
            if self.device.capability is not None:
                torch.cuda.synchronize(self.device.torch_device)
            return bool(torch.ones(1, device=self.device.torch_device).sum().item() == 1)
        except RuntimeError:
            return False


def _similarity(some: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Give the cosine of each pair of rows, or less where one is longer than the other."""
    return 2 * (some * others).sum(1) / (some * some + others * others).sum(1)


async def _outcome(work: Future[_Result]) -> _Result:
    """Wait for *work*. Where that is cancelled: take it back, or wait on if it has begun."""
    waiting = asyncio.wrap_future(work)
    try:
        await asyncio.wait([waiting])
    except asyncio.CancelledError:
        if work.cancel():
            raise
        with CancelScope(shield=True):
            await asyncio.wait([waiting])
    return waiting.result()
