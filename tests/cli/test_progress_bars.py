"""The progress of a run and of downloads, on a terminal and as lines."""

import io

from logged import Clock, working
from rich.console import Console

from virnuc_async.cli.progress_bars import Bars, Lines, TransferBars, TransferLines
from virnuc_async.downloads.fetch import Transfer, TransferState
from virnuc_async.downloads.source import Source
from virnuc_async.log import PROGRESS, Counts, logger


def test_lines_hold_progress_every_ten_seconds_and_all_else_at_once(clock: Clock) -> None:
    stream = io.StringIO()
    sink = logger.add(Lines(stream, clock), format="{message}", level="INFO", catch=False)
    try:
        for second in range(26):
            clock.now = 1000.0 + second
            logger.log(PROGRESS, f"at {second}")
            if second in (3, 4):
                logger.info("news")
    finally:
        logger.remove(sink)
    # The first line of progress comes after ten seconds.
    assert stream.getvalue().splitlines() == ["news", "news", "at 10", "at 20"]


def draw(counts: Counts, *messages: str) -> str:
    """Return what a terminal shows."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None)
    with Bars(console, lambda: 1030.0) as bars:
        sink = logger.add(bars, format="{message}\n", level="INFO", catch=False)
        try:
            for message in messages:
                logger.info("{}", message)
            logger.bind(counts=counts).log(PROGRESS, "not shown: the bars are")
        finally:
            logger.remove(sink)
    return stream.getvalue()


def test_bars_for_each_device_and_the_whole() -> None:
    counts = working(**{"cpu:0": (300, 9000), "cuda:1": (900, 60_000)})
    counts.read, counts.is_all_read = 6000, True
    shown = draw(counts, "a [bold]plain[/bold] line")
    assert "a [bold]plain[/bold] line" in shown
    assert "not shown" not in shown
    assert "cpu:0" in shown
    assert "300 ORFs  10 ORFs/s  300 tokens/s" in shown
    assert "cuda:1" in shown
    assert "900 ORFs  30 ORFs/s  2,000 tokens/s" in shown
    assert "1,200 of 6,000 ORFs  2:00 left" in shown


def test_bars_before_the_first_batch() -> None:
    counts = Counts(status="loading the model")
    assert "loading the model" in draw(counts)


def test_bars_after_the_last_batch() -> None:
    counts = working(**{"cpu:0": (300, 9000)})
    counts.read, counts.is_all_read, counts.status = 300, True, "writing tables"
    shown = draw(counts)
    assert "writing tables" in shown
    assert "left" not in shown


def test_bars_show_that_more_may_come() -> None:
    counts = working(**{"cpu:0": (300, 9000)})
    counts.read = 4096
    assert "300 of 4,096 ORFs so far" in draw(counts)


def test_bars_are_updated_in_place() -> None:
    counts = working(**{"cpu:0": (300, 9000)})
    counts.read = 4096
    stream = io.StringIO()
    with Bars(Console(file=stream, force_terminal=True, width=120, color_system=None)) as bars:
        sink = logger.add(bars, format="{message}\n", catch=False)
        for _ in range(3):
            logger.bind(counts=counts).log(PROGRESS, "")
            counts.finished("cpu:0", 1, 1)
        logger.remove(sink)
        names = [task.description for task in bars._progress.tasks]
        done = [task.completed for task in bars._progress.tasks]
    assert names == ["cpu:0", "all"]
    assert done == [302, 302]


# Downloads


def transfers() -> list[Transfer]:
    return [
        Transfer(Source("https://h/a", "a.pt"), TransferState.RECEIVING, 1_500_000_000, 5_700_000_000),
        Transfer(Source("https://h/b", "b.json"), TransferState.RETRYING, error="the server is silent"),
        Transfer(Source("https://h/c", "c.bin"), TransferState.DONE, 9, 9),
    ]


def test_downloads_write_a_line_every_ten_seconds(clock: Clock) -> None:
    stream = io.StringIO()
    lines, going = TransferLines(stream, clock), transfers()
    for seconds in (0, 9, 1, 9, 1):
        clock.now += seconds
        lines(going)
    assert stream.getvalue() == (
        "150.0 MB/s: a.pt 1,500.0 of 5,700.0 MB; b.json 0.0 MB, trying again: the server is silent\n"
        "0.0 MB/s: a.pt 1,500.0 of 5,700.0 MB; b.json 0.0 MB, trying again: the server is silent\n"
    )


def test_downloads_have_bars_on_a_terminal() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=150, color_system=None)
    going = transfers()
    with TransferBars(console) as bars:
        for _ in range(2):
            bars(going)
            going[0].done += 1_000_000_000
        tasks = [(task.description, task.completed, task.total) for task in bars._progress.tasks]
        assert tasks == [("a.pt", 2_500_000_000, 5_700_000_000), ("b.json", 0, None), ("c.bin", 9, 9)]
        for transfer in going:
            transfer.state = TransferState.DONE
        bars(going)
        assert not bars._progress.live.is_started
    assert "3.5/5.7 GB" in stream.getvalue()
    assert "trying again: the server is silent" in stream.getvalue()
