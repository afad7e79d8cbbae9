"""
What a run says while it works: counts and lines, through loguru sinks.

``logger`` is this package's own loguru logger, apart from the one that a host program may use: a
host's sinks see nothing of ours unless it adds one here, and nothing is printed by itself.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING

from virnuc_async.fileio import open_nofollow
from virnuc_async.text import escape_control_chars

if TYPE_CHECKING:
    from loguru import Logger, Record

PROGRESS = "PROGRESS"
EVERY_SECONDS = 10.0  # between two lines where there are no bars


def _own_logger() -> "Logger":
    """Load a second, private copy of loguru's module, whose logger shares no sink with the first."""
    spec = find_spec("loguru")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    own: Logger = module.logger
    own.remove()
    own.level(PROGRESS, no=22)
    return own


logger = _own_logger()


@dataclass(slots=True)
class DeviceCounts:
    """What one device has done in this session."""

    name: str
    started: float = 0.0
    batches: int = 0
    orfs: int = 0
    tokens: int = 0

    def rate(self, now: float) -> tuple[float, float]:
        """Give ORFs and tokens per second since it was ready."""
        seconds = max(now - self.started, 1e-9) if self.started else float("inf")
        return self.orfs / seconds, self.tokens / seconds


@dataclass(slots=True)
class Counts:
    """What a run has done so far; *doing* says what it waits for before the first batch."""

    devices: dict[str, DeviceCounts] = field(default_factory=dict)
    doing: str = "reading"
    read: int = 0  # ORFs
    is_all_read: bool = False
    done: int = 0  # ORFs, those of earlier sessions too
    started: float = field(default_factory=time.monotonic)

    def ready(self, device: str) -> None:
        """Begin to count what *device* does."""
        self.doing = "scoring"
        self.devices[device] = DeviceCounts(device, time.monotonic())

    def finished(self, device: str, orfs: int, tokens: int) -> None:
        """Count a batch."""
        count = self.devices[device]
        count.batches += 1
        count.orfs += orfs
        count.tokens += tokens
        self.done += orfs

    @property
    def is_all_done(self) -> bool:
        """Whether every ORF is: what is left is in *doing*."""
        return self.is_all_read and self.done == self.read

    def seconds_left(self, now: float) -> float | None:
        """Estimate the rest by the rate so far; None before all is read or anything is done."""
        rate = sum(device.rate(now)[0] for device in self.devices.values())
        return (self.read - self.done) / rate if self.is_all_read and rate else None

    def line(self, now: float) -> str:
        """Say it all in one line."""
        if self.is_all_done or not any(device.batches for device in self.devices.values()):
            return f"{self.doing} ({now - self.started:.0f} s)"
        total = f"{self.read:,}" if self.is_all_read else f"{self.read:,} so far"
        left = self.seconds_left(now)
        eta = "" if left is None else f", {duration(left)} left"
        each = "; ".join(_rates(device, now) for device in self.devices.values())
        return f"{self.done:,} of {total} ORFs{eta} ({each})"


@dataclass(slots=True)
class ThrottledProgress:
    """Says how far something is that takes long, now and then."""

    what: str  # with a place for a number
    clock: Callable[[], float] = time.monotonic
    _done: int = 0
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._last = self.clock()

    def advance(self, count: int) -> None:
        """Count what is done."""
        self._done += count
        if self.clock() - self._last >= EVERY_SECONDS:
            self._last = self.clock()
            logger.info(self.what, f"{self._done:,}")


@contextmanager
def run_log_files(run: str, directory: Path, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Write what run *run* says into ``run.log``, and its failures as they come into theirs."""
    log = _appended(directory / "run.log")
    failed = _appended(directory / "failed_files.txt")
    last = -EVERY_SECONDS

    def is_of_run(record: "Record") -> bool:
        nonlocal last
        if record["extra"].get("run") != run:
            return False
        if record["level"].name != PROGRESS:
            return True
        now = clock()
        last, is_due = (now, True) if now - last >= EVERY_SECONDS else (last, False)
        return is_due

    def is_failure_of_run(record: "Record") -> bool:
        return record["extra"].get("run") == run and "failure" in record["extra"]

    sinks = [
        logger.add(
            lambda line: log(escape_control_chars(line)),
            format=_log_format,
            filter=is_of_run,
            level="DEBUG",
            catch=False,
        ),
        logger.add(failed, format=_failure_format, filter=is_failure_of_run, catch=False),
    ]
    try:
        yield
    finally:
        for sink in sinks:
            logger.remove(sink)


def _appended(path: Path) -> Callable[[str], None]:
    """Give a sink that adds to *path*, which is made by the first line."""

    def write(line: str) -> None:
        # A log that cannot be written must not stop the run that it tells of: what counts is
        # in the store, and a full disk is said there.
        with suppress(OSError), open(path, "ab", opener=open_nofollow) as file:
            file.write(line.encode("utf-8", "surrogateescape"))

    return write


def _log_format(_: "Record") -> str:
    return "{time:YYYY-MM-DD HH:mm:ss} {level: <8} {message}\n"


def _failure_format(_: "Record") -> str:
    return "{extra[failure]}"


def _rates(device: DeviceCounts, now: float) -> str:
    orfs, tokens = device.rate(now)
    return f"{device.name} {orfs:,.0f} ORFs/s, {tokens:,.0f} tokens/s"


def duration(seconds: float) -> str:
    """Format seconds as 1:02 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
