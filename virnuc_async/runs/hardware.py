"""What a run computes with: its devices, its precision, the size of its batches."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from virnuc_async import engine
from virnuc_async.errors import DeviceLost, PlanMismatch
from virnuc_async.settings import Precision

from .plan import Plan, PlannedPart

if TYPE_CHECKING:
    from virnuc_async.engine.devices import Device

_KIND, _PRECISION, _BUDGET = "devices", "precision", "tokens per batch"
_SEVERAL = "of several kinds"


@dataclass(frozen=True, slots=True)
class Hardware:
    """The devices of a session, and what decides their last digits."""

    devices: "tuple[Device, ...]"  # none if nothing is left to compute
    kind: str  # of the devices that the run is computed on
    precision: Precision
    budget: int  # residue tokens per batch
    left_out: tuple[DeviceLost, ...] = ()  # devices that failed before the session

    @property
    def is_uniform(self) -> bool:
        """Whether all devices compute identical results."""
        return self.kind != _SEVERAL

    def as_identity(self) -> dict[str, Any]:
        """Return its part of a run's identity."""
        return {_KIND: self.kind, _PRECISION: self.precision, _BUDGET: self.budget}


def choose_devices(plan: Plan) -> "tuple[Device, ...]":
    """
    Return the devices of *plan*, or those that its settings name.

    Raises:
        UnknownDevice: the settings name a device that this process cannot see
        UnsuitablePrecision: one of them does not have the precision that they name
        PlanMismatch: one is of another kind than was planned
    """
    devices = plan.devices or tuple(engine.choose(plan.settings))
    if plan.part is not None:
        _require_planned(devices, plan.part)
    if plan.settings.precision is not Precision.AUTO:
        engine.decide_precision(devices, plan.settings.precision)
    return devices


def _require_planned(devices: "Iterable[Device]", part: PlannedPart) -> None:
    kinds = {device.kind for device in devices if not device.failure} - {part.devices}
    if kinds:
        found = " and ".join(sorted(kinds))
        hint = "last digits would differ: run it on that kind, or plan the run for the other"
        raise PlanMismatch(part.run, [f"devices: {part.devices} -> {found} ({hint})"])


def decide_hardware(plan: Plan, devices: "tuple[Device, ...]", known: Mapping[str, Any]) -> Hardware:
    """
    Return what *plan* computes with on *devices*; what its settings leave open is as in the identity *known*.

    Raises:
        MixedDevices: the devices would compute different results and no precision was requested
        NoDevicesLeft: none of the devices can be used
    """
    devices, left_out = engine.leave_out_failed(devices)
    precision = engine.decide_precision(devices, _precision(plan, known))
    requested = plan.settings.tokens_per_batch or known.get(_BUDGET)
    budget = engine.decide_budget(devices, precision, requested, plan.bundle.shapes)
    kinds = sorted({device.kind for device in devices})
    kind = kinds[0] if len(kinds) == 1 else _SEVERAL
    return Hardware(devices, kind, precision, budget, left_out)


def recorded_hardware(plan: Plan, known: Mapping[str, Any]) -> Hardware:
    """Return what the finished run of the identity *known* was computed with, or is now asked for."""
    # Whatever devices there are now, nothing will be computed.
    budget = plan.settings.tokens_per_batch or known[_BUDGET]
    return Hardware((), known[_KIND], _precision(plan, known), budget)


def _precision(plan: Plan, known: Mapping[str, Any]) -> Precision:
    wanted = plan.settings.precision
    return Precision(known[_PRECISION]) if wanted is Precision.AUTO and known else wanted


def devices_used(
    before: Mapping[str, Mapping[str, Any]], devices: Iterable["Device"], peak_memory: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Return kind and peak memory in bytes, by their names, of the devices used *before* and of *devices*."""
    used = {name: dict(facts) for name, facts in before.items()}
    for device in devices:
        peak = max(peak_memory.get(device.name, 0), used.get(device.name, {}).get("peak_memory_bytes", 0))
        used[device.name] = {"kind": device.model, "peak_memory_bytes": peak}
    return used
