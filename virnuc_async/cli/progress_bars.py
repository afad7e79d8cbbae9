"""The progress of a run or of downloads: bars on a terminal, lines elsewhere."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from virnuc_async.downloads.fetch import Transfer, TransferState
from virnuc_async.log import EVERY_SECONDS, PROGRESS, Counts, duration
from virnuc_async.text import escape_control_chars

from .streams import write_or_give_up

if TYPE_CHECKING:
    from loguru import Message


@dataclass(slots=True)
class Lines:
    """A sink for streams that are not terminals: every line, and the progress every ten seconds."""

    stream: TextIO
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
        write_or_give_up(self.stream, escape_control_chars(message))


class Bars:
    """A sink for terminals: a bar for each device, one for all of them, and lines above the bars."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"))
        self._progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, message: "Message") -> None:
        """Draw one record."""
        counts = message.record["extra"].get("counts")
        if counts is None:
            self._progress.console.print(
                escape_control_chars(message).rstrip("\n"), markup=False, highlight=False
            )
        else:
            self._draw(counts, self._clock())

    def _draw(self, counts: Counts, now: float) -> None:
        for device in counts.devices.values():
            orfs, tokens = device.rate(now)
            facts = f"{device.orfs:,} ORFs  {orfs:,.0f} ORFs/s  {tokens:,.0f} tokens/s"
            self._bar(device.name, device.orfs, counts.read, facts)
        left = counts.seconds_left(now)
        eta = "" if left is None else f"  {duration(left)} left"
        so_far = "" if counts.is_all_read else " so far"
        facts = f"{counts.done:,} of {counts.read:,} ORFs{so_far}{eta}"
        if counts.is_all_done or not counts.done:
            facts = counts.status
        self._bar("all", counts.done, counts.read, facts)

    def _bar(self, name: str, done: int, total: int, facts: str) -> None:
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, facts="")
        self._progress.update(self._bars[name], completed=done, total=total or None, facts=facts)


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
