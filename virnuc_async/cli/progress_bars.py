"""The progress of a run or of downloads: bars on a terminal, lines elsewhere."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, zip_longest
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from virnuc_async.downloads.fetch import Transfer, TransferState
from virnuc_async.log import EVERY_SECONDS, PROGRESS, duration
from virnuc_async.runs.progress import Counts, device_facts
from virnuc_async.text import escape_control_chars

from .streams import write_or_give_up

if TYPE_CHECKING:
    from loguru import Message

_STYLES = {"WARNING": "yellow", "ERROR": "red"}
_CODES = {"WARNING": "33", "ERROR": "31"}  # the same as the numbers of a terminal
_SHORTEST_BAR = 10


@dataclass(slots=True)
class Lines:
    """
    A sink for what is no terminal: every line, and the progress every ten seconds.

    Warnings and errors have a colour if it *has_colors*: a log that is asked for them.
    """

    stream: TextIO
    has_colors: bool = False
    clock: Callable[[], float] = time.monotonic
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._last = self.clock()

    def __call__(self, message: "Message") -> None:
        """Write one record."""
        if message.record["level"].name == PROGRESS:
            now = self.clock()
            if now - self._last < EVERY_SECONDS:
                return
            self._last = now
        text, code = escape_control_chars(message), _CODES.get(message.record["level"].name)
        if self.has_colors and code:
            text = f"\x1b[{code}m{text.removesuffix(chr(10))}\x1b[0m\n"
        write_or_give_up(self.stream, text)


class Bars:
    """A sink for terminals: how far the run is, a line for each device, and messages above that."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._view = RunView(clock)
        self._live = Live(self._view, console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> "Bars":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, message: "Message") -> None:
        """Draw one record."""
        counts = message.record["extra"].get("counts")
        if counts is not None:
            self._view.counts = counts
            return
        # A path that is cut in two lines cannot be copied.
        self._console.print(styled(message, message.record["level"].name), soft_wrap=True)


def styled(message: str, level: str) -> Text:
    """Return a message of a *level* in the colour of that, without what a terminal would obey."""
    return Text(escape_control_chars(message).rstrip("\n"), _STYLES.get(level, ""))


class RunView:
    """What a terminal shows of a run; it is drawn for the width that there is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counts | None = None
        self._clock = clock

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self.counts is not None:
            yield from _drawn(self.counts, self._clock(), options.max_width)


def _drawn(counts: Counts, now: float, width: int) -> Iterator[RenderableType]:
    """Yield the lines for a terminal of *width* columns."""
    elapsed = duration(now - counts.started)
    if not counts.is_scoring:
        done = f"{counts.done.orfs:,.0f} ORFs are done" if counts.done.orfs and not counts.is_all_done else ""
        yield from _folded([counts.status, done, elapsed], width)
    else:
        yield _bar(counts.share, counts.left_text(now), width)
        yield from _folded([counts.amount(), counts.files_text(), f"{elapsed} so far"], width)
    rows = [[one.name, *device_facts(counts, one, now)] for one in counts.devices.values()]
    for line in _aligned(rows, width) if not counts.is_all_done else ():
        yield Text(line, no_wrap=True, overflow="ellipsis")


def _bar(share: float | None, left: str, width: int) -> Table:
    """Return a bar, the part that is done, and the time left; without a known end the bar pulses."""
    text = "  ".join(filter(None, ["" if share is None else f"{share:.0%}", left]))
    line = Table.grid(padding=(0, 2, 0, 0))
    bar = ProgressBar(1.0, share or 0.0, width=max(_SHORTEST_BAR, width - len(text) - 3), pulse=share is None)
    line.add_row(bar, Text(text, no_wrap=True, overflow="ellipsis"))
    return line


def _folded(facts: Iterable[str], width: int) -> Iterator[Text]:
    """Yield *facts*, as many in a line as there is room for."""
    line = ""
    for fact in filter(None, facts):
        if line and len(line) + 2 + len(fact) > width:
            yield Text(line, no_wrap=True, overflow="ellipsis")
            line = fact
        else:
            line = f"{line}, {fact}" if line else fact
    yield Text(line, no_wrap=True, overflow="ellipsis")


def _aligned(rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Yield *rows* in aligned columns, the first ones that there is room for."""
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    ends = [end - 2 for end in accumulate(one + 2 for one in widths)]
    count = max(2, sum(end <= width for end in ends))
    for name, *facts in rows:
        cells = [name.ljust(widths[0])] + [
            fact.rjust(one) for fact, one in zip(facts[: count - 1], widths[1:], strict=False)
        ]
        yield "  ".join(cells)


@dataclass(slots=True)
class TransferLines:
    """Writes the progress of downloads every ten seconds, where there is no terminal."""

    stream: TextIO
    clock: Callable[[], float] = time.monotonic
    _last: float = field(init=False)
    _before: int = 0  # bytes at the last line

    def __post_init__(self) -> None:
        self._last = self.clock()

    def __call__(self, transfers: Sequence[Transfer]) -> None:
        """Write a line, if ten seconds have passed."""
        seconds = self.clock() - self._last
        if seconds < EVERY_SECONDS:
            return
        done = sum(transfer.done for transfer in transfers)
        each = "; ".join(
            _of_transfer(transfer) for transfer in transfers if transfer.state is not TransferState.DONE
        )
        rate = max(done - self._before, 0) / seconds
        write_or_give_up(self.stream, f"{rate / 1e6:.1f} MB/s: {each}\n")
        self._last, self._before = self.clock(), done


class TransferBars:
    """Draws a bar for each download, on a terminal."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        what = TextColumn("{task.fields[doing]}", markup=False)
        self._progress = Progress(*columns, TimeRemainingColumn(), what, console=console, transient=True)
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> "TransferBars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, transfers: Sequence[Transfer]) -> None:
        """Draw the bars."""
        for transfer in transfers:
            name = transfer.source.name
            if name not in self._bars:
                self._bars[name] = self._progress.add_task(name, total=None, doing="")
            bar = self._bars[name]
            self._progress.update(bar, completed=transfer.done, total=transfer.total, doing=transfer.status)
        if all(transfer.state is TransferState.DONE for transfer in transfers):
            self._progress.stop()  # what is said from now on is not written among bars


def _of_transfer(transfer: Transfer) -> str:
    total = "" if transfer.total is None else f" of {transfer.total / 1e6:,.1f}"
    doing = "" if transfer.state is TransferState.RECEIVING else f", {transfer.status}"
    return f"{transfer.source.name} {transfer.done / 1e6:,.1f}{total} MB{doing}"
