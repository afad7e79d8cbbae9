"""
A bundle on one device, and the one thread that ever touches it there.

What torch raises becomes our own failures here and nowhere else.
"""

import asyncio
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from .batches import Batch
from .bundles import Bundle
from .devices import Device
from .failures import DeviceLost, DeviceOutOfMemory, Stage
from .networks.classifier import Classifier
from .networks.dnabert_s import DnabertS
from .networks.esm2 import Esm2
from .networks.loading import load
from .networks.packing import Packed, pack
from .settings import Precision
from .tokens import Ragged

# What a fault number stands for; the first network whose numbers are not finite is at fault.
FAULTS = (Stage.NUCLEOTIDE, Stage.PROTEIN, Stage.CLASSIFIER)

_DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Scores:
    """What a device made of a batch; row i is the batch's ORF i."""

    batch: Batch
    probabilities: NDArray[np.float32]  # (B, 2): others, virus
    faults: NDArray[np.int64]  # (B,): 0, or 1 + the number of the network at fault
    embeddings: NDArray[np.float32] | None  # (B, C): bases' first, then residues'; if asked for
    seconds: float  # that the device was busy with it


class Replica:
    """
    The three networks on *device*, in *precision*.

    All work happens on one permanent thread: its current device and stream are set once, and
    batches run in the order of the calls.
    """

    def __init__(
        self, device: Device, bundle: Bundle, precision: Precision, embeddings: bool = False
    ) -> None:
        self.device = device
        self.name = device.name
        self._bundle = bundle
        self._dtype = _DTYPES[precision]
        self._embeddings = embeddings
        self._thread = ThreadPoolExecutor(1, f"replica {device.name}", initializer=self._enter)
        self._batches = 0

    def __repr__(self) -> str:
        return f"<Replica {self.name} [{self._batches} batches done]>"

    async def load(self) -> None:
        """
        Bring the weights onto the device.

        Raises:
            BadBundle: the files are not what the bundle says
            DeviceLost: the device cannot hold them, or failed
        """
        try:
            await self._run(self._load)
        except DeviceOutOfMemory as error:
            raise DeviceLost(self.name, "not enough memory for the model") from error

    async def score(self, batch: Batch) -> Scores:
        """
        Score every ORF of *batch*.

        Raises:
            DeviceOutOfMemory: it did not fit; halve it and try again
            DeviceLost: the device will not score anything any more
        """
        return await self._run(self._score, batch)

    def peak_memory(self) -> int:
        """Give the most bytes in use at once: of the GPU, or of the whole process on the CPU."""
        if self.device.capability is None:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return torch.cuda.max_memory_allocated(self.device.torch_device)

    async def close(self) -> None:
        """Wait for the batch that is running, and free the device."""
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)
        self.__dict__.pop("_networks", None)

    async def _run(
        self,
        work: Callable[_Arguments, _Result],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Result:
        return await asyncio.wrap_future(self._thread.submit(work, *args, **kwargs))

    def _enter(self) -> None:
        """Set what belongs to the thread, once."""
        if self.device.capability is None:
            torch.set_num_threads(self.device.threads)
        else:
            torch.cuda.set_device(self.device.torch_device)
            torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]

    def _load(self) -> None:
        shapes, place, files = self._bundle.shapes, self.device.torch_device, self._bundle.directory
        with torch.device("meta"):
            nucleotide, protein = DnabertS(shapes.nucleotide), Esm2(shapes.protein)
            classifier = Classifier(shapes.classifier)
        with self._failures(0, Stage.PROTEIN):
            self._networks = (
                load(nucleotide, files / "nucleotide.safetensors", place, self._dtype),
                load(protein, files / "protein.safetensors", place, self._dtype),
                load(classifier, files / "classifier.safetensors", place, torch.float32),
            )

    @torch.inference_mode()
    def _score(self, batch: Batch) -> Scores:
        started = time.perf_counter()
        nucleotide, protein, classifier = self._networks
        with self._failures(batch.tokens, Stage.NUCLEOTIDE):
            bases = nucleotide.embeddings(self._packed(batch.nucleotides))
        with self._failures(batch.tokens, Stage.PROTEIN):
            residues = protein.embeddings(self._packed(batch.residues))
        with self._failures(batch.tokens, Stage.CLASSIFIER):
            features = torch.cat((bases, residues), 1)
            scores = classifier(features)
            sound = torch.stack([part.isfinite().all(1) for part in (bases, residues, scores)])
            wanted = (scores, sound, features) if self._embeddings else (scores, sound)
            # The first copy to the host waits for all of the batch: the scores are made last.
            host = [part.cpu().numpy() for part in wanted]
        self._batches += 1
        return Scores(
            batch=batch,
            probabilities=host[0],
            faults=np.where(host[1].all(0), 0, 1 + host[1].argmin(0)),
            embeddings=host[2] if self._embeddings else None,
            seconds=time.perf_counter() - started,
        )

    def _packed(self, rows: Ragged) -> Packed:
        packed = pack(rows)
        return packed if self.device.capability is None else packed.pinned().to(self.device.torch_device)

    @contextmanager
    def _failures(self, tokens: int, stage: Stage) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise DeviceOutOfMemory(self.name, tokens, stage) from error
        except torch.AcceleratorError as error:
            raise DeviceLost(self.name, str(error).splitlines()[0]) from error
