"""What a run of many machines is computed on: as the devices of this machine are, or as somebody states."""

from typing import NamedTuple

from virnuc_async.engine.kinds import GpuKind, budget_within, has_fp8, is_cpu_kind, native_precision
from virnuc_async.engine.known_cards import CARDS, find_card
from virnuc_async.errors import MixedDevices, UnsuitablePrecision, UsageError
from virnuc_async.networks.shapes import Shapes
from virnuc_async.runs.hardware import Hardware, choose_devices, decide_hardware
from virnuc_async.runs.plan import Plan
from virnuc_async.settings import Precision, Settings
from virnuc_async.text import did_you_mean

CPU = "cpu"  # that of this machine


class PlannedDevices(NamedTuple):
    """The devices of all shards."""

    kind: str
    precision: Precision
    tokens_per_batch: int


def devices_here(plan: Plan) -> PlannedDevices:
    """
    Return what a run of *plan* would compute with on this machine.

    Raises:
        UnknownDevice, MixedDevices, UnsuitablePrecision, NoDevicesLeft: as for a run
    """
    hardware: Hardware = decide_hardware(plan, choose_devices(plan), {})
    if not hardware.is_uniform:
        # A precision was chosen, but each shard is computed on devices of the planned kind.
        raise MixedDevices(sorted({device.kind for device in hardware.devices}))
    return PlannedDevices(hardware.kind, hardware.precision, hardware.budget)


def stated_devices(name: str, settings: Settings, shapes: Shapes) -> PlannedDevices:
    """
    Return what a run computes with on devices that are called *name*, of which this machine need have none.

    Their precision and the size of batches are decided as a run does on a card that nobody else uses.

    Raises:
        UsageError: they are not known, or how large batches may be on them is not
        UnsuitablePrecision: they do not have the precision of *settings*
    """
    card = find_card(name)
    kind = card.kind if card else GpuKind.parse(name)
    if kind is None and not is_cpu_kind(name):
        known = [*CARDS, CPU]
        hint = did_you_mean(name, known)
        raise UsageError(
            f"no kind of device is known as {name!r}.{hint} Known: {', '.join(known)}, or a whole kind, as "
            "'virnuc-async devices --kinds' prints it where that device is"
        )
    capability = kind.capability if kind else None
    precision = settings.precision
    if precision is Precision.AUTO:
        precision = native_precision(capability)
    if precision is Precision.FP8 and not has_fp8(capability):
        reason = f"it needs a GPU of capability 8.9 or higher, and that is not {name}"
        raise UnsuitablePrecision(precision.upper(), reason, native_precision(capability))
    tokens = settings.tokens_per_batch
    if tokens is None and kind and not card:
        raise UsageError(f"the memory of {name} is not known here: choose --tokens-per-batch")
    tokens = tokens or budget_within(card.memory if card else None, precision, shapes)
    return PlannedDevices(str(kind or name), precision, tokens)
