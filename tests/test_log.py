"""The log of a run: its logger and its files."""

import io
from pathlib import Path

import loguru
import pytest
from logged import Clock
from running import python

from virnuc_async.fileio import Directory
from virnuc_async.log import (
    EVERY_SECONDS,
    PROGRESS,
    ThrottledProgress,
    duration,
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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (100_000, "27:46:40")],
)
def test_long_times_are_formatted_in_hours(seconds: float, text: str) -> None:
    assert duration(seconds) == text


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
