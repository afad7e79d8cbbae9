"""Compare what a model computes on a device with its reference."""

from dataclasses import dataclass, replace

import numpy as np

from virnuc_async._version import __version__
from virnuc_async.errors import DeviceError, DeviceLost, DeviceOutOfMemory, UnsuitablePrecision
from virnuc_async.models.bundle import Bundle
from virnuc_async.models.reference import (
    Deviation,
    Reference,
    Tolerance,
    compare,
    published_reference,
    reference_of,
    set_reference,
    sketch,
)
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.settings import Precision, Settings

from .devices import Device, choose, require_precision
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
    def is_fp8(self) -> bool:
        """Whether it is of FP8, which is not exact enough for every model."""
        return self.precision is Precision.FP8

    @property
    def is_right(self) -> bool:
        """Whether the whole deviation is within the tolerance."""
        return self.deviation is not None and self.deviation.is_within(self.tolerance)


def precisions_of(device: Device, requested: Precision) -> tuple[Precision, ...]:
    """Return the precisions to verify *device* in: the *requested* one, or all that it supports."""
    if requested is not Precision.AUTO:
        return (requested,)
    capability = device.capability or (0, 0)
    lowest = {
        Precision.FP32: (0, 0),
        Precision.BF16: (8, 0),
        Precision.FP16: (7, 0),
        Precision.FP8: (8, 9),
    }
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
        require_precision(device, precision)
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
        return await compute_with(replica, bundle, reference)
    finally:
        await replica.close()


async def compute_with(replica: Replica, bundle: Bundle, reference: Reference) -> Reference:
    """Do the same with a *replica* of *bundle* that is loaded, and gives embeddings."""
    scores = await replica.score(batch_of(bundle, reference))
    assert scores.embeddings is not None
    width, device = bundle.shapes.nucleotide.width, replica.device
    return replace(
        reference,
        source=f"virnuc-async {__version__} on {device.model} in {replica.precision.upper()}",
        is_ours=True,
        scores=scores.probabilities.astype(np.float64),
        nucleotide=sketch(scores.embeddings[:, :width]),
        protein=sketch(scores.embeddings[:, width:]),
    )


class VerifiedReplica(Replica):
    """A replica that is only used if it gives the reference's results."""

    async def load(self) -> str | None:
        """
        Load the weights, and verify what is computed with them.

        Raises:
            NoReference, BadReference: there is nothing to compare with
            UnsuitablePrecision: the results are not within the tolerance
            what the plain replica raises
        """
        reference = reference_of(self._bundle)
        warning = await super().load()
        tolerance = reference.tolerance(self.precision)
        # Embeddings are compared, too, whether the run wants them or not.
        gives_embeddings, self._embeddings = self._embeddings, True
        try:
            found = await compute_with(self, self._bundle, reference)
        except DeviceOutOfMemory as error:
            raise DeviceLost(self.name, "not enough memory to verify the model") from error
        finally:
            self._embeddings = gives_embeddings
        deviation = compare(reference, found, tolerance)
        if not deviation.is_within(tolerance):
            reason = (
                f"{self.name} does not give {self._bundle.name}'s reference: {deviation.excess(tolerance)}"
            )
            raise UnsuitablePrecision(self.precision.upper(), reason, self.device.native_precision)
        return warning


def replica_class(precision: Precision) -> type[Replica]:
    """Return the kind of replica to score with: FP8 is exact enough for some models and cards only."""
    return VerifiedReplica if precision is Precision.FP8 else Replica


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
