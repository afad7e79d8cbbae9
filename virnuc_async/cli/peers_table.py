"""The comparison of ``models verify --peers``: run it on each device, and format the results."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from virnuc_async.errors import DeviceLost, NoReference, PeerUnavailable, Stage

if TYPE_CHECKING:
    from virnuc_async.engine.devices import Device
    from virnuc_async.models.bundle import Bundle
    from virnuc_async.models.peers import PeerResult
    from virnuc_async.models.reference import Reference

HEADER = ("device", "peer", "embeddings", "cosine", "peer's tokens/s", "our tokens/s", "result")


def compare_on_devices(
    bundle: "Bundle", devices: "Sequence[Device]", report_status: Callable[[str], None]
) -> "list[tuple[Device, PeerResult]]":
    """
    Return how fair-esm's and transformers' ESM-2 agree with ours on each of *devices*, in FP32.

    Raises:
        PeerUnavailable: a package is missing, or does not have the ESM-2 that is known here
        DeviceError: a device has not enough memory, or failed
    """
    from virnuc_async.engine.torch_errors import TorchErrors, is_responsive

    try:
        from virnuc_async.models import peers
    except ImportError as error:
        raise PeerUnavailable("fair-esm or transformers", str(error)) from error

    reference = _reference(bundle)
    tokens = sum(len(protein) + 2 for protein in reference.proteins)
    report_status(
        f"{bundle.name}: {len(reference)} ORFs, compared with other programs' ESM-2 in FP32. "
        f"They agree if the cosine is at least {peers.MIN_COSINE} and no number of an embedding differs by "
        f"more than {peers.MAX_DEVIATION:.0e}, relative to the largest if that is above 1"
    )
    report_status("DNABERT-S is not compared: its published network needs remote code, which is never run")
    results = []
    for device in _distinct(devices):
        if device.failure:
            raise DeviceLost(device.name, device.failure)
        is_alive = partial(is_responsive, device.torch_device)
        report_peer = partial(_report_peer, report_status, device.name)
        with TorchErrors(device.name, is_alive).translated(tokens, Stage.PROTEIN):
            on_device = peers.compare_with_peers(bundle, reference.proteins, device.torch_device, report_peer)
        results += [(device, result) for result in on_device]
    return results


def _distinct(devices: "Sequence[Device]") -> "list[Device]":
    """Return *devices* without further replicas on the same one, which would compute the same."""
    first: dict[object, Device] = {}
    for device in devices:
        first.setdefault(device.torch_device, device)
    return list(first.values())


def _report_peer(report_status: Callable[[str], None], device: str, network: str) -> None:
    report_status(f"ESM-2 of {network} on {device}")


def _reference(bundle: "Bundle") -> "Reference":
    """Return the reference of *bundle*, or the published one: only its ORFs are used."""
    from virnuc_async.models.reference import published_reference, reference_of

    try:
        return reference_of(bundle)
    except NoReference:
        return published_reference(bundle.length)


def format_rows(results: "Sequence[tuple[Device, PeerResult]]") -> list[tuple[str, ...]]:
    """Format the table of *results*, its header first."""
    return [HEADER, *(_row(device, result) for device, result in results)]


def _row(device: "Device", result: "PeerResult") -> tuple[str, ...]:
    return (
        device.name if device.capability is None else f"{device.name} ({device.model})",
        result.peer,
        f"{result.deviation:.1e} ({result.max_deviation:.0e})",
        f"{result.cosine:.7f}",
        f"{result.tokens_per_second:,.0f}",
        f"{result.our_tokens_per_second:,.0f}",
        "agrees" if result.agrees else "DIFFERS",
    )


def format_disagreements(name: str, results: "Sequence[tuple[Device, PeerResult]]") -> Iterator[str]:
    """Yield a message for each peer that does not agree on the embeddings of the model called *name*."""
    for device, result in results:
        if not result.agrees:
            yield (
                f"{name}: the embeddings of {result.peer} differ from ours on {device.name}. If this is the "
                "only peer that differs, suspect that package and its version; if all differ, suspect the "
                "device, the build of torch, or this program"
            )
