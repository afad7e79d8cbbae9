"""How far a run is: what its devices have done, what is left, and until when."""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from virnuc_async.engine.device_state import DeviceState
from virnuc_async.log import duration
from virnuc_async.text import plural

from .work_ahead import Work, WorkAhead

if TYPE_CHECKING:
    from virnuc_async.sequences.windows import Window

_SPEED_SECONDS = 300.0  # that a speed is the mean of: a window takes a slow card a minute or two
_MARK_SECONDS = 5.0
_NEARLY_ALL = 0.999  # is done, as long as something may come


class State(StrEnum):
    """What a run does, in one word."""

    READING = "reading"  # before there is something to load a model for; also waiting for a lock
    LOADING = "loading"
    SCORING = "scoring"
    WRITING = "writing"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class DeviceStage(StrEnum):
    """What a device does."""

    LOADING = "loading"
    SCORING = "scoring"
    STOPPED = "stopped"  # at the end, or lost


class _Mark(NamedTuple):
    """How far a device was at a time."""

    time: float
    work: Work


@dataclass(slots=True)
class DeviceCounts:
    """The work that one device has done in this session, and how it is doing."""

    name: str
    stage: DeviceStage = DeviceStage.LOADING
    batches: int = 0
    orfs: int = 0
    tokens: int = 0
    state: DeviceState = DeviceState()
    _marks: deque[_Mark] = field(default_factory=deque)

    def start(self, now: float) -> None:
        """Count its work from *now* on."""
        self.stage = DeviceStage.SCORING
        self._marks.append(_Mark(now, Work()))

    def mark(self, now: float) -> None:
        """Remember how far it is *now*, for its speed."""
        marks = self._marks
        if marks and now - marks[-1].time >= _MARK_SECONDS:
            marks.append(_Mark(now, Work(self.orfs, self.tokens)))
            while len(marks) > 1 and now - marks[1].time >= _SPEED_SECONDS:
                marks.popleft()

    def rate(self, now: float) -> Work:
        """Return its ORFs and tokens per second, of the last five minutes; none if it does not score."""
        if self.stage is not DeviceStage.SCORING:
            return Work()
        seconds, before = max(now - self._marks[0].time, 1e-9), self._marks[0].work
        return Work((self.orfs - before.orfs) / seconds, (self.tokens - before.tokens) / seconds)


class Counts:
    """
    How far a run is. ``status`` is what it does when it does not score, in words.

    ``share``, the part of the work that is done, never becomes less, whatever the estimate of the whole.
    """

    def __init__(self, started: float | None = None) -> None:
        self.devices: dict[str, DeviceCounts] = {}  # in the order in which they are shown
        self.status = "reading"
        self.is_loading = False
        self.is_all_read = False
        self.done = Work()  # including what earlier sessions have done
        self.before = Work()  # what of it they have
        self.files = 0
        self.files_done = 0  # read, and all that was in them scored
        self.started = time.monotonic() if started is None else started
        self.ahead = WorkAhead()
        self._share: float | None = None
        self._windows: dict[int, list[int]] = {}  # of those that are not done: ORFs left, and files that end

    def begin(self, inputs: Iterable[tuple[str, int | None]]) -> None:
        """Begin to count the work of *inputs*, each a path and a size, None if that is not known."""
        files = list(inputs)
        self.files, self.ahead = len(files), WorkAhead(files)

    def expect(self, devices: Iterable[str]) -> None:
        """Show these devices, in this order."""
        self.devices = {name: DeviceCounts(name) for name in devices}

    def load(self) -> None:
        """Note that the devices load the model, unless one has already."""
        if self.state is not State.SCORING:
            self.status, self.is_loading = "loading the model", True

    def ready(self, device: str, now: float | None = None) -> None:
        """Count the work of *device* from now on."""
        self.status, self.is_loading = "scoring", False
        self.devices.setdefault(device, DeviceCounts(device)).start(time.monotonic() if now is None else now)

    def stopped(self, device: str) -> None:
        """Note that *device* does nothing any more."""
        if device in self.devices:
            self.devices[device].stage = DeviceStage.STOPPED

    def add_window(self, window: "Window", left: Sequence[int]) -> None:
        """Count a *window* that was read, of which so many ORFs and tokens are *left* to score."""
        orfs, tokens = len(window.origins), len(window.residues.ids)
        broken = [file.number for file in window.files if file.failure]
        self.ahead.add(Work(orfs, tokens), window.place, broken)
        done = Work(orfs - left[0], tokens - left[1])
        self.done, self.before = self.done.plus(done), self.before.plus(done)
        self._windows[window.number] = [left[0], len(window.files)]
        self._update()

    def all_read(self) -> None:
        """Note that no window comes any more."""
        self.is_all_read = True
        self.ahead.end()
        self._update()

    def finished_before(self, orfs: int) -> None:
        """Count a run as done that an earlier session has finished, with so many *orfs*."""
        self.done = self.before = Work(orfs, 0)
        self.ahead.add(self.done, self.ahead.place)
        self.files_done = self.files
        self.all_read()

    def finished(self, device: str, orfs: int, tokens: int, window: int | None = None) -> None:
        """Count a batch of a *window*."""
        count = self.devices[device]
        count.batches += 1
        count.orfs += orfs
        count.tokens += tokens
        self.done = self.done.plus(Work(orfs, tokens))
        if window in self._windows:
            self._windows[window][0] -= orfs
        self._update()

    def mark(self, now: float) -> None:
        """Remember how far the devices are *now*, for their speed."""
        for device in self.devices.values():
            device.mark(now)

    @property
    def read(self) -> int:
        """The ORFs that were read so far."""
        return round(self.ahead.read.orfs)

    @property
    def is_all_done(self) -> bool:
        """Whether every ORF is scored; *status* is what is left to do."""
        return self.is_all_read and self.done.orfs >= self.ahead.read.orfs

    @property
    def is_scoring(self) -> bool:
        """Whether batches are being scored: else *status* is what happens."""
        return not self.is_all_done and any(device.batches for device in self.devices.values())

    @property
    def state(self) -> State:
        """What the run does, until it ends."""
        if self.is_all_done:
            return State.WRITING
        if any(device.stage is not DeviceStage.LOADING for device in self.devices.values()):
            return State.SCORING
        return State.LOADING if self.is_loading else State.READING

    @property
    def share(self) -> float | None:
        """The part of the work that is done, 0 to 1; None where nobody knows what is ahead."""
        return self._share

    def total(self) -> Work | None:
        """Return the estimate of the whole work; it is what was read if that is all."""
        return self.ahead.total()

    def seconds_left(self, now: float) -> float | None:
        """Estimate the time to the last score; None if it is not known yet what is ahead, or how fast."""
        total, rate = self.ahead.total(), sum(device.rate(now).tokens for device in self.devices.values())
        if total is None or not rate:
            return None
        return max(0.0, total.tokens - self.done.tokens) / rate

    def work_of(self, device: DeviceCounts) -> float:
        """Return the part of this session's work that *device* has done, 0 to 1."""
        tokens = sum(one.tokens for one in self.devices.values())
        return device.tokens / tokens if tokens else 0.0

    def amount(self) -> str:
        """Format what is done of what there is: 12 of about 30 ORFs."""
        total = self.total()
        if total is None:
            return f"{self.done.orfs:,.0f} ORFs, {self.read:,} read so far"
        about = "" if self.is_all_read else "about "
        return f"{self.done.orfs:,.0f} of {about}{_rounded(total.orfs, self.is_all_read):,} ORFs"

    def files_text(self) -> str:
        """Format how many of several files are done, else nothing."""
        return f"{self.files_done:,} of {self.files:,} files" if self.files > 1 else ""

    def left_text(self, now: float) -> str:
        """Format the time to the end, or why there is none."""
        if self.ahead.has_unknown:
            return "time left unknown: the input has no size"
        left = self.seconds_left(now)
        return "" if left is None else f"{duration(left)} left"

    def kept(self) -> str:
        """Format what is kept of a run that ends now."""
        orfs, share = round(self.done.orfs), self.share
        of_work = f" ({share:.0%} of the work)" if share and not self.is_all_done else ""
        return f"{plural(orfs, 'ORF')} {'is' if orfs == 1 else 'are'} kept{of_work}"

    def line(self, now: float) -> str:
        """Format the progress as one line."""
        if not self.is_scoring:
            before = (
                f"; {self.done.orfs:,.0f} ORFs are done" if self.done.orfs and not self.is_all_done else ""
            )
            return f"{self.status} ({now - self.started:.0f} s{before})"
        share = self.share
        facts = [
            self.amount(),
            "" if share is None else f"{share:.0%}",
            self.files_text(),
            self.left_text(now),
        ]
        each = "; ".join(
            ", ".join([device.name, *device_facts(self, device, now)]) for device in self.devices.values()
        )
        return f"{', '.join(filter(None, facts))} ({each})"

    def _update(self) -> None:
        """Count the files that are done, and find the share of the work that is."""
        while self._windows and not (first := next(iter(self._windows.items())))[1][0]:
            self.files_done += self._windows.pop(first[0])[1]
        total = self.ahead.total()
        if self.is_all_done:
            self._share = 1.0
        elif total is not None and total.tokens:
            self._share = max(self._share or 0.0, min(_NEARLY_ALL, self.done.tokens / total.tokens))


def device_facts(counts: Counts, device: DeviceCounts, now: float) -> list[str]:
    """Format what is known of *device*: its share of the work, ORFs/s, tokens/s, memory, use, temperature."""
    if device.stage is not DeviceStage.SCORING:
        return [device.stage]
    rate, state = device.rate(now), device.state
    facts = [f"{counts.work_of(device):.0%}", f"{rate.orfs:,.0f} ORFs/s", f"{rate.tokens:,.0f} tokens/s"]
    if state.memory is not None:
        facts.append(f"{state.memory.used / 2**30:.1f} GiB")
    if state.utilization is not None:
        facts.append(f"{state.utilization:.0f}% busy")
    if state.temperature is not None:
        facts.append(f"{state.temperature:.0f} C")
    return facts


def _rounded(number: float, is_exact: bool) -> int:
    """Return an estimate with three digits, or the exact number."""
    if is_exact or number < 1000:
        return round(number)
    return int(float(f"{number:.3g}"))
