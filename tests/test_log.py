"""The log of a run: its logger, its files and its counters."""

import io
from pathlib import Path

import loguru
import pytest
from logged import Clock, working
from running import python

from virnuc_async.fileio import Directory
from virnuc_async.log import (
    EVERY_SECONDS,
    PROGRESS,
    Counts,
    DeviceCounts,
    ThrottledProgress,
    logger,
    run_log_files,
)

# The logger


def test_logger_is_separate_from_that_of_the_host(messages: io.StringIO) -> None:
    hosts = io.StringIO()
    sink = loguru.logger.add(hosts, format="{message}", level=0)
    try:
        logger.warning("of ours")
        loguru.logger.warning("of the host")
    finally:
        loguru.logger.remove(sink)
    assert messages.getvalue() == "WARNING of ours\n"
    assert hosts.getvalue() == "of the host\n"


def test_nothing_is_printed_unless_a_sink_is_added() -> None:
    script = """
import sys
sys.stderr = sys.stdout
from virnuc_async.log import logger
logger.error("to nobody")
"""
    assert python(script) == ""


def test_host_may_remove_all_its_sinks(messages: io.StringIO) -> None:
    sink = loguru.logger.add(io.StringIO())
    loguru.logger.remove(sink)
    loguru.logger.disable("virnuc_async")
    try:
        logger.info("still here")
    finally:
        loguru.logger.enable("virnuc_async")
    assert messages.getvalue() == "INFO still here\n"


def test_progress_is_above_info_and_below_warning(messages: io.StringIO) -> None:
    numbers = [logger.level(name).no for name in ("INFO", PROGRESS, "WARNING")]
    assert numbers == sorted(set(numbers))
    with pytest.raises(ValueError, match=PROGRESS):
        loguru.logger.level(PROGRESS)


# The files of a run


def test_two_runs_at_once_do_not_mix(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    with run_log_files("1", Directory(one)), run_log_files("2", Directory(two)):
        logger.bind(run="1").info("to {}", "the first")
        logger.bind(run="2").debug("to the second {not a field}")
        logger.bind(run="2", failure="a|Input|gone\n").error("gone")
        logger.info("to nobody")
    logger.bind(run="1").info("too late")
    logs = [(path / "run.log").read_text().splitlines() for path in (one, two)]
    assert [[line[20:] for line in lines] for lines in logs] == [
        ["INFO     to the first"],
        ["DEBUG    to the second {not a field}", "ERROR    gone"],
    ]
    assert not (one / "failed_files.txt").exists()
    assert (two / "failed_files.txt").read_text() == "a|Input|gone\n"


def test_files_of_a_run_are_appended_to(tmp_path: Path) -> None:
    for session in ("first", "second"):
        with run_log_files("1", Directory(tmp_path)):
            logger.bind(run="1", failure=f"{session}|\n").error("{}", session)
    assert (tmp_path / "failed_files.txt").read_text() == "first|\nsecond|\n"
    assert [line[20:] for line in (tmp_path / "run.log").read_text().splitlines()] == [
        "ERROR    first",
        "ERROR    second",
    ]


def test_run_log_holds_progress_every_ten_seconds(tmp_path: Path, clock: Clock) -> None:
    with run_log_files("1", Directory(tmp_path), clock):
        for second in range(31):
            clock.now = 1000.0 + second
            logger.bind(run="1").log(PROGRESS, f"at {second}")
            logger.bind(run="2").log(PROGRESS, "of another run")
    messages = [line[20:] for line in (tmp_path / "run.log").read_text().splitlines()]
    assert messages == [f"PROGRESS at {second}" for second in (0, 10, 20, 30)]


def test_names_that_are_not_utf8_are_written_unchanged(tmp_path: Path) -> None:
    with run_log_files("1", Directory(tmp_path)):
        logger.bind(run="1", failure="a\udcff|Input|gone\n").error("{}: gone", "a\udcff")
    assert (tmp_path / "run.log").read_bytes().endswith(b"ERROR    a\xff: gone\n")
    assert (tmp_path / "failed_files.txt").read_bytes() == b"a\xff|Input|gone\n"


def test_log_that_cannot_be_written_does_not_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "run.log").mkdir()
    with run_log_files("1", Directory(tmp_path)):
        logger.bind(run="1", failure="a\n").error("gone")
    assert (tmp_path / "failed_files.txt").read_text() == "a\n"


# Counts


def test_line_during_a_run() -> None:
    counts = working(**{"cpu:0": (300, 9000), "cuda:1": (900, 60_000)})
    counts.read = 4096
    assert counts.line(1030.0) == (
        "1,200 of 4,096 so far ORFs (cpu:0 10 ORFs/s, 300 tokens/s; cuda:1 30 ORFs/s, 2,000 tokens/s)"
    )
    counts.read, counts.is_all_read = 6000, True
    assert counts.line(1030.0).startswith("1,200 of 6,000 ORFs, 2:00 left (cpu:0 10 ORFs/s, ")


def test_line_before_the_first_batch_is_the_status() -> None:
    counts = Counts(started=990.0)
    assert counts.line(1000.4) == "reading (10 s)"
    counts.status = "loading the model"
    assert counts.line(1075.0) == "loading the model (85 s)"
    counts.ready("cpu:0")
    assert counts.line(1080.0) == "scoring (90 s)"


def test_line_after_the_last_batch_is_the_status() -> None:
    counts = working(**{"cpu:0": (300, 9000)})
    counts.read, counts.is_all_read, counts.status = 300, True, "writing tables"
    assert counts.line(1000.0) == "writing tables (10 s)"


def test_orfs_of_an_earlier_session_do_not_make_this_one_faster() -> None:
    counts = working(**{"cpu:0": (100, 1000)})
    counts.done += 5000
    counts.read, counts.is_all_read = 6100, True
    assert counts.seconds_left(1010.0) == pytest.approx(100.0)
    assert counts.line(1010.0) == "5,100 of 6,100 ORFs, 1:40 left (cpu:0 10 ORFs/s, 100 tokens/s)"


def test_remaining_time_is_not_estimated_too_early() -> None:
    counts = working(**{"cpu:0": (100, 1000)})
    counts.read = 200
    assert counts.seconds_left(1010.0) is None  # more may come
    counts.is_all_read = True
    assert counts.seconds_left(1010.0) == pytest.approx(10.0)
    idle = Counts(read=200, is_all_read=True)
    assert idle.seconds_left(1010.0) is None
    idle.ready("cpu:0")
    assert idle.seconds_left(1010.0) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (100_000, "27:46:40")],
)
def test_long_times_are_formatted_in_hours(seconds: float, text: str) -> None:
    counts = working(**{"cpu:0": (1000, 1)})
    counts.read, counts.is_all_read = 1000 + round(seconds * 10), True
    assert f", {text} left " in counts.line(1100.0)


def test_rates_of_a_device_that_is_not_ready_are_zero() -> None:
    assert DeviceCounts("cpu:0").rate(5.0) == (0.0, 0.0)
    assert DeviceCounts("cpu:0", started=5.0, orfs=0).rate(5.0) == (0.0, 0.0)


# Sinks


def test_throttled_progress_is_logged_every_ten_seconds(messages: io.StringIO, clock: Clock) -> None:
    progress = ThrottledProgress("{} bases so far", clock)
    for _ in range(5):
        progress.advance(1_000)
        assert messages.getvalue() == ""
        clock.now += EVERY_SECONDS / 5
    progress.advance(1)
    progress.advance(1)
    assert messages.getvalue() == "INFO 5,001 bases so far\n"
