"""Compare what a model computes on a device with its reference."""

from dataclasses import dataclass, replace

import numpy as np

from virnuc_async._version import __version__
from virnuc_async.errors import DeviceError
from virnuc_async.models.bundle import Bundle
from virnuc_async.models.reference import (
    Deviation,
    Reference,
    Tolerance,
    compare,
    published_reference,
    set_reference,
    sketch,
)
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.settings import Precision, Settings

from .devices import Device, choose
from .replica import Replica


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """The result of a device in one precision; if there is no deviation, *failure* is the reason."""

    device: Device
    precision: Precision
    tolerance: Tolerance
    deviation: Deviation | None
    failure: DeviceError | None = None

    @property
    def is_right(self) -> bool:
        """Whether the whole deviation is within the tolerance."""
        return self.deviation is not None and self.deviation.is_within(self.tolerance)


def precisions_of(device: Device, requested: Precision) -> tuple[Precision, ...]:
    """Return the precisions to verify *device* in: the *requested* one, or all that it supports."""
    if requested is not Precision.AUTO:
        return (requested,)
    capability = device.capability or (0, 0)
    lowest = {Precision.FP32: (0, 0), Precision.BF16: (8, 0), Precision.FP16: (7, 0)}
    return tuple(precision for precision, needed in lowest.items() if capability >= needed)


async def verify(
    bundle: Bundle, reference: Reference, device: Device, precision: Precision
) -> VerificationResult:
    """
    Return how far the results of *device* in *precision* are from *reference*.

    Raises:
        BadBundle: the files do not match the bundle's description
    """
    tolerance = reference.tolerance(precision)
    try:
        found = await compute(bundle, reference, device, precision)
    except DeviceError as failure:
        return VerificationResult(device, precision, tolerance, None, failure)
    return VerificationResult(device, precision, tolerance, compare(reference, found, tolerance))


async def record(bundle: Bundle) -> Bundle:
    """
    Compute the published ORFs here, on a CPU in FP32, and write the results into *bundle* as its reference.

    Raises:
        BadBundle: the files do not match the bundle's description
        DeviceOutOfMemory, DeviceLost: there is not enough memory
    """
    (cpu,) = choose(Settings(devices=("cpu",)))
    return set_reference(
        bundle, await compute(bundle, published_reference(bundle.length), cpu, Precision.FP32)
    )


async def compute(bundle: Bundle, reference: Reference, device: Device, precision: Precision) -> Reference:
    """
    Return what *bundle* computes on *device* for the ORFs of *reference*, as a reference.

    Raises:
        BadBundle: the files do not match the bundle's description
        DeviceOutOfMemory, DeviceLost: the device has not enough memory, or failed
    """
    replica = Replica(device, bundle, precision, embeddings=True)
    try:
        await replica.load()
        scores = await replica.score(batch_of(bundle, reference))
    finally:
        await replica.close()
    assert scores.embeddings is not None
    width = bundle.shapes.nucleotide.width
    return replace(
        reference,
        source=f"virnuc-async {__version__} on {device.model} in {precision.upper()}",
        is_ours=True,
        scores=scores.probabilities.astype(np.float64),
        nucleotide=sketch(scores.embeddings[:, :width]),
        protein=sketch(scores.embeddings[:, width:]),
    )


def batch_of(bundle: Bundle, reference: Reference) -> Batch:
    """Return the ORFs of *reference* as a batch for *bundle*."""
    tokenizer, count = OrfTokenizer(bundle.tokenizer()), len(reference)
    return Batch(
        window=0,
        number=0,
        split_path="",
        orfs=np.arange(count),
        origins=np.zeros((count, 3), np.int64),
        nucleotides=tokenizer.nucleotides(reference.bases),
        residues=tokenizer.residues(reference.proteins),
    )
