"""The progress of a run and of downloads, on a terminal and as lines."""

import io
import re
import sys

import pytest
from logged import Clock, read, window, working
from rich.console import Console

from virnuc_async.cli.console import draws_bars
from virnuc_async.cli.progress_bars import Bars, Lines, RunView, TransferBars, TransferLines
from virnuc_async.downloads.fetch import Transfer, TransferState
from virnuc_async.downloads.source import Source
from virnuc_async.engine.device_state import DeviceState
from virnuc_async.engine.gpu_memory import MemoryUse
from virnuc_async.log import PROGRESS, logger
from virnuc_async.runs.progress import Counts, DeviceCounts, DeviceStage
from virnuc_async.sequences.reading import Place


def test_lines_hold_progress_every_ten_seconds_and_all_else_at_once(clock: Clock) -> None:
    stream = io.StringIO()
    sink = logger.add(Lines(stream, clock=clock), format="{message}", level="INFO", catch=False)
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


def test_warnings_have_a_colour_in_a_log_that_is_asked_for_it(clock: Clock) -> None:
    plain, coloured = io.StringIO(), io.StringIO()
    sinks = [
        logger.add(Lines(stream, has_colors, clock), format="{message}", catch=False)
        for stream, has_colors in ((plain, False), (coloured, True))
    ]
    try:
        for level in ("INFO", "WARNING", "ERROR"):
            logger.log(level, "news")
    finally:
        for sink in sinks:
            logger.remove(sink)
    assert plain.getvalue() == "news\n" * 3
    assert coloured.getvalue() == "news\n\x1b[33mnews\x1b[0m\n\x1b[31mnews\x1b[0m\n"


# Bars

LONG_PATH = "/data/projects/of/somebody/with/many/directories/sample_0001_R1.fastq.gz"


def draw(counts: Counts, *messages: str, width: int = 120) -> str:
    """Return what a terminal of *width* columns shows."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, color_system=None)
    with Bars(console, lambda: 1030.0) as bars:
        sink = logger.add(bars, format="{message}\n", level="INFO", catch=False)
        try:
            logger.bind(counts=counts).log(PROGRESS, "not shown: the bars are")
            for message in messages:
                logger.info("{}", message)
        finally:
            logger.remove(sink)
    return stream.getvalue()


def view(counts: Counts, width: int) -> list[str]:
    """Return the lines of the bars alone."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    run = RunView(lambda: 1030.0)
    run.counts = counts
    with console.capture() as shown:
        console.print(run)
    lines = shown.get().splitlines()
    assert max(map(len, lines)) <= width
    return [line.rstrip() for line in lines]


@pytest.fixture
def two_gpus() -> Counts:
    counts = working(**{"cuda:0": (300, 9000), "cuda:10": (900, 60_000)})
    counts.begin([("a.fa", 1000), ("b.fa", 1000)])
    counts.add_window(window(0, 2345, 138_000, Place(0, 500.0)), (2345, 138_000))
    counts.devices["cuda:10"].state = DeviceState(MemoryUse(12 << 30, 16 << 30), 97.0, 61.0)
    return counts


def test_what_140_columns_show(two_gpus: Counts) -> None:
    bar, amount, *devices = view(two_gpus, 140)
    assert re.fullmatch(r"━{15} +12%  3:30 left", bar)
    assert amount == "1,200 of about 9,380 ORFs, 0 of 2 files, 0:40 so far"
    assert devices == [
        "cuda:0   13%  10 ORFs/s    300 tokens/s",
        "cuda:10  87%  30 ORFs/s  2,000 tokens/s  12.0 GiB  97% busy  61 C",
    ]


def test_what_40_columns_show(two_gpus: Counts) -> None:
    bar, *lines = view(two_gpus, 40)
    assert re.fullmatch(r"━━╸ +12%  3:30 left", bar)
    assert lines == [
        "1,200 of about 9,380 ORFs, 0 of 2 files",
        "0:40 so far",
        "cuda:0   13%  10 ORFs/s    300 tokens/s",
        "cuda:10  87%  30 ORFs/s  2,000 tokens/s",
    ]


@pytest.mark.parametrize("width", [10, 20, 30, 40, 60, 80, 200])
def test_every_width_shows_how_far_it_is(two_gpus: Counts, width: int) -> None:
    lines = view(two_gpus, width)
    assert "12%" in lines[0] or width == 10
    assert lines[-1].startswith("cuda:10")


def test_devices_that_load_or_have_stopped(two_gpus: Counts) -> None:
    two_gpus.devices["cuda:0"].stage = DeviceStage.STOPPED
    two_gpus.devices["cuda:11"] = DeviceCounts("cuda:11")
    assert [line.split()[:2] for line in view(two_gpus, 80)[-3:]] == [
        ["cuda:0", "stopped"],
        ["cuda:10", "87%"],
        ["cuda:11", "loading"],
    ]


def test_nothing_is_promised_of_a_stream() -> None:
    counts = read(working(**{"cpu:0": (300, 9000)}), 4096, 100_000)
    bar, amount, _ = view(counts, 80)
    assert bar.endswith("time left unknown: the input has no size")
    assert "%" not in bar
    assert amount == "300 ORFs, 4,096 read so far, 0:40 so far"


def test_before_the_first_batch_and_after_the_last_the_status_is_shown() -> None:
    counts = Counts(started=990.0)
    counts.expect(["cuda:0"])
    counts.status = "loading the model"
    assert view(counts, 80) == ["loading the model, 0:40", "cuda:0  loading"]
    counts = read(working(**{"cpu:0": (300, 9000)}), 300, 9000, is_all=True)
    counts.status = "writing tables"
    assert view(counts, 80) == ["writing tables, 0:40"]


def test_messages_stand_above_the_bars_and_are_never_wrapped(two_gpus: Counts) -> None:
    shown = draw(two_gpus, "a [bold]plain[/bold] line", f"{LONG_PATH} holds no sequence", width=40)
    assert "a [bold]plain[/bold] line\n" in shown
    assert f"{LONG_PATH} holds no sequence\n" in shown
    assert "not shown" not in shown
    assert "cuda:10  87%" in shown


def test_colours_are_left_out_where_they_are_not_wanted(
    two_gpus: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {}
    for no_color in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_color)
        console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system="standard")
        run = RunView(lambda: 1030.0)
        run.counts = two_gpus
        with console.capture() as captured:
            console.print(run)
        shown[no_color] = captured.get()
    assert re.search(r"\x1b\[9\dm", shown[""])
    assert not re.search(r"\x1b\[9\dm", shown["1"])
    assert "12%  3:30 left" in shown["1"]


@pytest.mark.parametrize(
    ("environment", "is_terminal", "draws"),
    [
        ({"TERM": "xterm-256color"}, True, True),
        ({"TERM": "xterm-256color"}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, True),
        ({"TERM": "xterm", "FORCE_COLOR": "1"}, False, False),
        ({"TERM": "xterm", "FORCE_COLOR": "1"}, True, True),
    ],
)
def test_where_bars_are_drawn(
    environment: dict[str, str], is_terminal: bool, draws: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    assert draws_bars(Console(stderr=True)) is draws


def test_no_bars_are_drawn_into_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    assert not draws_bars(Console(stderr=True, force_jupyter=True))


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
