"""
The log of a run and its log files, through loguru.

``logger`` is a loguru logger of this package alone, separate from the one that a host program may
use: the sinks of the host receive nothing from it, and nothing is printed unless a sink is added.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING

from virnuc_async.fileio import Directory
from virnuc_async.text import escape_control_chars

if TYPE_CHECKING:
    from loguru import Logger, Record

PROGRESS = "PROGRESS"
EVERY_RUN = "every run"  # in the place of a run's id: the record is of all runs of this process
EVERY_SECONDS = 10.0  # between two lines of progress


def _own_logger() -> "Logger":
    """Load a private copy of the module loguru, whose logger shares no sinks with the public one."""
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

# Says why the runs of this context are cancelled, if their caller knows: a signal, for example.
why_cancelled: ContextVar[Callable[[], str]] = ContextVar("why_cancelled", default=lambda: "cancelled")


@dataclass(slots=True)
class ThrottledProgress:
    """Logs the progress of a long task every ten seconds."""

    message: str  # with a placeholder for the count
    clock: Callable[[], float] = time.monotonic
    _done: int = 0
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._last = self.clock()

    def advance(self, count: int) -> None:
        """Add *count*, and log the sum if it is time."""
        self._done += count
        if self.clock() - self._last >= EVERY_SECONDS:
            self._last = self.clock()
            logger.info(self.message, f"{self._done:,}")


@contextmanager
def run_log_files(
    run: str, directory: Directory, clock: Callable[[], float] = time.monotonic
) -> Iterator[None]:
    """Write the log of the run *run* to ``run.log``, and its failures to ``failed_files.txt``."""
    log = _append_sink(directory, "run.log")
    failed = _append_sink(directory, "failed_files.txt")
    last = -EVERY_SECONDS

    def is_of_run(record: "Record") -> bool:
        nonlocal last
        if record["extra"].get("run") not in (run, EVERY_RUN):
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


def _append_sink(directory: Directory, name: str) -> Callable[[str], None]:
    """Return a sink that appends to the file *name*, which the first line creates."""

    def write(line: str) -> None:
        # A log that cannot be written must not stop the run: the results are in the store, and a
        # full disk is reported there.
        with suppress(OSError, UnicodeError), open(name, "ab", opener=directory.opener) as file:
            file.write(line.encode("utf-8", "surrogateescape"))

    return write


def _log_format(_: "Record") -> str:
    return "{time:YYYY-MM-DD HH:mm:ss} {level: <8} {message}\n"


def _failure_format(_: "Record") -> str:
    return "{extra[failure]}"


def duration(seconds: float) -> str:
    """Format seconds as 1:02 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
