"""What a person sees: the log of a run, progress, status lines and tables."""

import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from virnuc_async.text import escape_control_chars

if TYPE_CHECKING:
    from loguru import Record
    from rich.console import Console

    from virnuc_async.downloads.fetch import ProgressCallback

_STATUS_INTERVAL = 10.0  # seconds after which a status line is repeated
_WARNING = 30  # loguru's number of the level


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print *rows* in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(escape_control_chars("  ".join(map(str.ljust, row, widths)).rstrip()))


@contextmanager
def run_log(options: Namespace, may_draw: bool = True) -> Iterator[None]:
    """Show the log of a run on standard error: bars on a terminal, if it *may_draw*, and lines elsewhere."""
    from rich.console import Console

    from virnuc_async.log import logger

    from .progress_bars import Bars, Lines

    level = "WARNING" if options.quiet else "DEBUG" if options.verbose else "INFO"
    console = Console(stderr=True)
    with ExitStack() as stack:
        if may_draw and draws_bars(console) and not options.quiet:
            sink: Bars | Lines = stack.enter_context(Bars(console))
        else:
            sink = Lines(sys.stderr, has_colors=bool(console.color_system) and not console.no_color)
        added = logger.add(sink, format=_log_format, filter=_is_shown, level=level, catch=False)
        stack.callback(logger.remove, added)
        yield


def note(line: str) -> None:
    """Show *line*, unless it is empty, as a message of the run."""
    from virnuc_async.log import logger

    if line:
        logger.info("{}", line)


def draws_bars(console: "Console") -> bool:
    """Return whether bars can be drawn: on a terminal that moves its cursor, not into a notebook or a log."""
    # FORCE_COLOR makes rich take a log for a terminal: it gets the colours, and no bars.
    return console.is_interactive and not console.is_jupyter and sys.stderr.isatty()


def _is_shown(record: "Record") -> bool:
    """Return False for what ends a run: it is printed as the last message of the command."""
    return "is_end" not in record["extra"]


def _log_format(record: "Record") -> str:
    level = record["level"]
    return "{level.name}: {message}\n" if level.no >= _WARNING else "{message}\n"


@contextmanager
def download_progress(quiet: bool) -> "Iterator[ProgressCallback]":
    """Show the progress of downloads on standard error: bars on a terminal, lines elsewhere."""
    from rich.console import Console

    from .progress_bars import TransferBars, TransferLines

    console = Console(stderr=True)
    if quiet:
        yield lambda _: None
    elif draws_bars(console):
        with TransferBars(console) as bars:
            yield bars
    else:
        yield TransferLines(sys.stderr)


@contextmanager
def status_lines(
    quiet: bool, interval: float = _STATUS_INTERVAL, at_once: bool = True
) -> Iterator[Callable[[str], None]]:
    """
    Yield a function that prints a status, and repeat the last one every *interval* seconds.

    Unless *at_once*, it is printed when it has lasted until then.
    """
    status, since, is_over = "", time.monotonic(), threading.Event()

    def report_status(text: str) -> None:
        nonlocal status, since
        status, since = text, time.monotonic()
        if text and at_once and not quiet:
            print(text, file=sys.stderr, flush=True)

    def repeat_status() -> None:
        while not is_over.wait(interval):
            if status:
                print(f"{status} ({time.monotonic() - since:.0f} s)", file=sys.stderr, flush=True)

    thread = threading.Thread(target=repeat_status, daemon=True)
    if not quiet:
        thread.start()
    try:
        yield report_status
    finally:
        is_over.set()
        if not quiet:
            thread.join()
