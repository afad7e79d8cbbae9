"""All that a run is asked to do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from virnuc_async.engine.device_state import DeviceState, device_state
from virnuc_async.models.bundle import Bundle
from virnuc_async.models.verdict_rule import VerdictRule, rule_for
from virnuc_async.sequences.listing import Notice
from virnuc_async.sequences.segments import ALL, SEGMENT_BASES, InputSpan
from virnuc_async.sequences.windows import WINDOW_ORFS
from virnuc_async.settings import Settings

from .lock import HEARTBEAT_INTERVAL, LEASE_DURATION
from .run_progress import RunProgress

if TYPE_CHECKING:
    from virnuc_async.engine.devices import Device


@dataclass(frozen=True, slots=True)
class Intervals:
    """How often a run does what it repeats, in seconds."""

    progress: float = 0.5
    progress_file: float = 10.0
    devices: float = 10.0  # between two looks at their memory and their speed
    heartbeat: float = HEARTBEAT_INTERVAL
    lease: float = LEASE_DURATION  # after which an owner without a heartbeat is taken for dead


@dataclass(frozen=True, slots=True)
class PlannedInput:
    """What an input was when a run of several shards was planned."""

    fingerprint: list[int | str] | None  # of InputVersion
    size: int  # bytes, as it lies on the disk
    contigs: int  # records
    failure: str | None  # why there are no more, if it could not be read to its end


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """The part of a run that a shard is, and what was planned for all shards of it."""

    run: str  # directory of the plan
    plan: str  # digest
    shard: str  # its number, and of how many
    span: InputSpan  # what it reads
    inputs: tuple[PlannedInput, ...]  # of the whole run
    devices: str  # their kind


@dataclass(frozen=True, slots=True)
class Plan:
    """The inputs, the model, the devices and the settings of a run."""

    paths: tuple[str, ...]  # files, or "-"; directories are expanded
    settings: Settings
    bundle: Bundle
    devices: "tuple[Device, ...]" = ()  # empty: those of the settings, when there is something to compute
    window: int = WINDOW_ORFS  # ORFs
    device_state: Callable[["Device"], DeviceState] = device_state
    intervals: Intervals = Intervals()
    on_progress: Callable[[RunProgress], None] | None = None  # called while the run proceeds, and at its end
    notices: tuple[Notice, ...] = ()  # of what is left out of the directories that were named
    segment: int = SEGMENT_BASES  # bases
    names: tuple[str, ...] = ()  # of *paths* in tables, if they are other ones
    part: PlannedPart | None = None  # that this is of a run of several shards

    @property
    def named(self) -> tuple[str, ...]:
        """What tables call the inputs."""
        return self.names or self.paths

    @property
    def span(self) -> InputSpan:
        """What is read of the inputs."""
        return ALL if self.part is None else self.part.span

    @property
    def verdict_rule(self) -> VerdictRule:
        """What the verdicts depend on; raise NoThreshold if the model has none for what the settings ask."""
        asked = self.settings
        return rule_for(self.bundle, asked.verdict_score, asked.threshold, asked.fpr, asked.calibrated)
