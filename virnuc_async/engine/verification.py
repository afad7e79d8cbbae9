"""A model on one device, held against its reference."""

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
    """How a device did in one precision; *failure* says why there is no deviation."""

    device: Device
    precision: Precision
    tolerance: Tolerance
    deviation: Deviation | None
    failure: DeviceError | None = None

    @property
    def is_right(self) -> bool:
        """Whether everything is within the tolerance."""
        return self.deviation is not None and self.deviation.is_within(self.tolerance)


def precisions_of(device: Device, wanted: Precision) -> tuple[Precision, ...]:
    """Give the precisions to verify *device* in: the one that is *wanted*, or all that it has."""
    if wanted is not Precision.AUTO:
        return (wanted,)
    return (Precision.FP32, Precision.BF16) if device.has_bf16 else (Precision.FP32,)


async def verify(
    bundle: Bundle, reference: Reference, device: Device, precision: Precision
) -> VerificationResult:
    """
    Have *device* compute the ORFs of *reference* in *precision*, and compare.

    Raises:
        BadBundle: the files are not what the bundle says
    """
    tolerance = reference.tolerance(precision)
    try:
        found = await compute(bundle, reference, device, precision)
    except DeviceError as failure:
        return VerificationResult(device, precision, tolerance, None, failure)
    return VerificationResult(device, precision, tolerance, compare(reference, found, tolerance))


async def record(bundle: Bundle) -> Bundle:
    """
    Give *bundle* a reference of what it gives here, on a CPU in FP32, for the published ORFs.

    Raises:
        BadBundle: the files are not what the bundle says
        DeviceOutOfMemory, DeviceLost: there is not the memory for it
    """
    (cpu,) = choose(Settings(devices=("cpu",)))
    return set_reference(
        bundle, await compute(bundle, published_reference(bundle.length), cpu, Precision.FP32)
    )


async def compute(bundle: Bundle, reference: Reference, device: Device, precision: Precision) -> Reference:
    """
    Give what *bundle* says on *device* of the ORFs of *reference*: a reference itself.

    Raises:
        BadBundle: the files are not what the bundle says
        DeviceOutOfMemory, DeviceLost: the device cannot
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
    """Give the ORFs of *reference* as a batch for *bundle*."""
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
