"""Errors of devices, and of those who wait for them."""

from collections.abc import Iterable, Sequence

from virnuc_async.text import did_you_mean, plural

from .base import Stage, VirnucError


class DeviceError(VirnucError):
    """One device failed, or does not exist."""


class UnknownDevice(DeviceError):
    """The machine has no such device."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(name)
        self.name, self.known = name, tuple(known)

    def __str__(self) -> str:
        # Another number is no better guess than the number that was given.
        kinds = {name.rstrip("0123456789") for name in self.known if name[-1:].isdecimal()}
        is_number = self.name.rstrip("0123456789") in kinds
        hint = "" if is_number else did_you_mean(self.name, self.known)
        return f"no device {self.name!r} here.{hint} There are: {', '.join(self.known)}"


class DeviceOutOfMemory(DeviceError):
    """A batch of *tokens* tokens did not fit, at *stage*; half of it may fit."""

    def __init__(self, device: str, tokens: int, stage: Stage = Stage.PROTEIN) -> None:
        super().__init__(device, tokens, stage)
        self.device, self.tokens, self.stage = device, tokens, stage

    def __str__(self) -> str:
        return f"{self.device} ran out of memory on a batch of {self.tokens:,} tokens"


class DeviceLost(DeviceError):
    """The device failed, and cannot be used again in this process."""

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(device, reason)
        self.device, self.reason = device, reason

    def __str__(self) -> str:
        return f"{self.device} failed: {self.reason}"


class NoDevicesLeft(VirnucError):
    """Too many devices failed to continue; finished work is kept."""

    def __init__(self, lost: Sequence[DeviceLost]) -> None:
        super().__init__(tuple(lost))
        self.lost = tuple(lost)

    def __str__(self) -> str:
        reasons = "; ".join(map(str, self.lost))
        return f"too many devices failed ({reasons}). Finished work is kept: rerun the same command to resume"


class MixedDevices(VirnucError):
    """The devices compute differently, and no precision was chosen."""

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__(tuple(kinds))
        self.kinds = tuple(kinds)

    def __str__(self) -> str:
        return (
            f"these devices compute differently ({', '.join(self.kinds)}): "
            "name devices of one kind, or choose --precision fp32, bf16 or fp16 to mix them"
        )


class ClusterError(VirnucError):
    """The Ray cluster at *address* cannot be used, or has no worker that can; *reason* says why."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address, self.reason = address, reason

    def __str__(self) -> str:
        return f"Ray ({self.address}): {self.reason}"


class ScorerBusy(VirnucError):
    """As much as a scorer takes is waiting already: *waiting* ORFs."""

    def __init__(self, waiting: int) -> None:
        super().__init__(waiting)
        self.waiting = waiting

    def __str__(self) -> str:
        waiting = plural(self.waiting, "ORF")
        return f"too much waits already ({waiting}): try again in a moment, or let score() wait"


class ScorerClosed(VirnucError):
    """A scorer is used before it is entered or after it is left: ``async with Scorer(...) as scorer``."""

    def __str__(self) -> str:
        return "the scorer is not open: use it within 'async with Scorer(...) as scorer'"


class UnsuitablePrecision(DeviceError):
    """A model or a device does not give the right scores in *precision*, but does in *instead*."""

    def __init__(self, precision: str, reason: str, instead: str) -> None:
        super().__init__(precision, reason, instead)
        self.precision, self.reason, self.instead = precision, reason, instead

    def __str__(self) -> str:
        return f"cannot compute in {self.precision}: {self.reason}. Use --precision {self.instead}"
