"""How far a run is, as a program is told it while it waits."""

from dataclasses import dataclass

from .progress import Counts, State


@dataclass(frozen=True, slots=True)
class DeviceProgress:
    """What one device does."""

    name: str
    stage: str  # loading, scoring or stopped
    orfs: int  # scored in this session
    orfs_per_second: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class RunProgress:
    """
    How far a run is.

    The whole is estimated from the bytes that are read; it is None before the first window, and of
    standard input until its end.
    """

    state: str  # reading, loading, scoring, writing
    stage: str  # the same in words, such as the file that is written
    share: float | None  # done, 0 to 1; it never falls
    seconds_left: float | None
    orfs: int  # scored, those of earlier sessions included
    orfs_total: int | None
    files_done: int
    files: int
    devices: tuple[DeviceProgress, ...]

    @classmethod
    def of(cls, counts: Counts, now: float) -> "RunProgress":
        """Return how far *counts* are at *now*, a time of the monotonic clock."""
        total = counts.total()
        rates = ((device, device.rate(now)) for device in counts.devices.values())
        return cls(
            state=str(counts.state),
            stage=str(State.SCORING) if counts.is_scoring else counts.status,
            share=counts.share,
            seconds_left=counts.seconds_left(now),
            orfs=round(counts.done.orfs),
            orfs_total=None if total is None else round(total.orfs),
            files_done=counts.files_done,
            files=counts.files,
            devices=tuple(
                DeviceProgress(device.name, str(device.stage), device.orfs, rate.orfs, rate.tokens)
                for device, rate in rates
            ),
        )
