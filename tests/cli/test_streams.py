"""Standard streams that cannot be written, or are not there: messages are given up, work is not."""

import errno
import io
import os
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from logged import Clock, working
from rich.console import Console
from running import ROOT, Ran, run, tables
from support import fasta

from virnuc_async.cli.console import status_lines
from virnuc_async.cli.main import main
from virnuc_async.cli.progress_bars import Bars, Lines, TransferBars, TransferLines
from virnuc_async.cli.streams import MessageStream, write_or_give_up
from virnuc_async.downloads.fetch import Transfer
from virnuc_async.downloads.source import Source
from virnuc_async.log import PROGRESS, logger


class Broken(io.StringIO):
    """A stream that raises *error* from every method that writes."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, _: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


def ascii_stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), "ascii", "strict", write_through=True)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
CLOSED = ValueError("I/O operation on closed file.")
ERRORS = [FULL, BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError(errno.EIO, "gone"), CLOSED]
each_error = pytest.mark.parametrize("error", ERRORS, ids=["full", "pipe", "terminal", "closed"])


def run_on(out: Any, err: Any, *words: str | Path) -> int:
    """Run a command in this process with these streams, and return its exit code."""
    with redirect_stdout(out), redirect_stderr(err):
        return main([str(word) for word in words])


# Whatever reports to a person


@each_error
def test_lines_and_bars_are_given_up(error: Exception, clock: Clock) -> None:
    counts = working(**{"cpu:0": (300, 9000)})
    console = Console(file=MessageStream(Broken(error)), force_terminal=True)  # type: ignore[arg-type]
    with Bars(console) as bars:
        for sink in (Lines(Broken(error), clock), bars):
            number = logger.add(sink, format="{message}\n", catch=False)
            logger.warning("to nobody")
            clock.now += 60
            logger.bind(counts=counts).log(PROGRESS, "to nobody")
            logger.remove(number)
    transfers = [Transfer(Source("https://h/a", "a.pt"))]
    lines = TransferLines(Broken(error), clock)
    clock.now += 60
    lines(transfers)
    with TransferBars(console) as transfer_bars:
        transfer_bars(transfers)


@each_error
def test_status_lines_are_given_up(error: Exception) -> None:
    stream = MessageStream(Broken(error))
    repeated = threading.Event()
    stream.flush = repeated.set  # type: ignore[method-assign]
    with redirect_stderr(stream), status_lines(quiet=False, interval=0.001) as report_status:  # type: ignore[type-var]
        report_status("at work")
        repeated.clear()
        assert repeated.wait(5)


def test_what_an_encoding_does_not_have_is_escaped() -> None:
    stream = ascii_stream()
    write_or_give_up(stream, "Größe, \udcff\n")
    assert stream.buffer.getvalue() == b"Gr\\xf6\\xdfe, \\udcff\n"  # type: ignore[attr-defined]
    write_or_give_up(None, "to nobody")


# Commands: standard error


@each_error
def test_a_run_whose_messages_cannot_be_written(
    error: Exception, good: Path, good_tables: dict[str, bytes], out: Path
) -> None:
    good.rename(good.with_name("moved.fa"))
    assert run_on(io.StringIO(), Broken(error), "predict", good.with_name("moved.fa"), out) == 0
    assert tables(out)["prediction_results.txt"] == good_tables["prediction_results.txt"]
    assert (out / "run.log").read_text().splitlines()[-1].endswith(f"Tables are in {out}")


@each_error
@pytest.mark.parametrize(
    ("words", "code"),
    [("predict", 64), ("models info nosuch", 1), ("models list", 0), ("predict a --treshold", 64), ("", 64)],
)
def test_the_exit_code_does_not_depend_on_the_message(error: Exception, words: str, code: int) -> None:
    assert run_on(io.StringIO(), Broken(error), *words.split()) == code


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    stderr, stdout = ascii_stream(), ascii_stream()
    assert run_on(stdout, stderr, "models", "info", tmp_path / "Größe\udcff") == 1
    assert b"Gr\\xf6\\xdfe" in stderr.buffer.getvalue()  # type: ignore[attr-defined]
    cache = tmp_path / "é\udcff"
    (cache / "models" / "mine").mkdir(parents=True)
    (cache / "models" / "mine" / "bundle.json").write_text("{")
    assert run_on(stdout, stderr, "models", "list", "--cache-dir", cache) == 0
    assert b"\\xe9\\udcff" in stdout.buffer.getvalue()  # type: ignore[attr-defined]


# Commands: standard output

RESULTS = ["models list", "models info tiny-500", "devices", "help", "help models list"]


@pytest.mark.parametrize("error", [FULL, CLOSED], ids=["full", "closed"])
@pytest.mark.parametrize("command", RESULTS)
def test_a_result_that_cannot_be_written_is_an_error(command: str, error: Exception) -> None:
    stderr = io.StringIO()
    assert run_on(Broken(error), stderr, *command.split()) == 1
    reason = getattr(error, "strerror", None) or str(error)
    assert stderr.getvalue() == f"virnuc-async: standard output: {reason}\n"


@pytest.mark.parametrize("command", RESULTS)
def test_a_reader_that_has_had_enough_is_no_message(command: str) -> None:
    stderr = io.StringIO()
    assert run_on(Broken(BrokenPipeError()), stderr, *command.split()) in (0, 1)
    assert stderr.getvalue() == ""


@each_error
def test_the_last_words_of_a_command_that_has_done_its_work(
    error: Exception, golden_parts: Any, tmp_path: Path
) -> None:
    stderr, parts = io.StringIO(), golden_parts
    words = ["--protein", parts.protein, "--nucleotide", parts.nucleotide, "--classifier", parts.classifier]
    output = tmp_path / "model"
    options = ["--length", "500", "--name", "x", "--output", output]
    assert run_on(Broken(error), stderr, "models", "import", *words, *options) == 0
    assert run("models", "info", output).code == 0
    reason = getattr(error, "strerror", None) or str(error)
    is_pipe = isinstance(error, BrokenPipeError)
    assert stderr.getvalue() == ("" if is_pipe else f"virnuc-async: standard output: {reason}\n")


# Real descriptors


def in_shell(command: str, redirections: str, directory: Path) -> Ran:
    words = f"exec {sys.executable} -m virnuc_async {command} {redirections}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", words], cwd=directory, capture_output=True, env=environment
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize(
    "redirections",
    [
        pytest.param("0<&-", marks=pytest.mark.slow),
        "0<&- 1>&- 2>&-",
        "2>/dev/full",
        "2> >(exit)",
        pytest.param(">/dev/full 2>&1", marks=pytest.mark.slow),
    ],
)
def test_a_run_without_streams(
    redirections: str, good: Path, good_tables: dict[str, bytes], tmp_path: Path
) -> None:
    ended = in_shell("predict good.fa out --devices cpu", redirections, tmp_path)
    assert ended.code == 0
    assert "Traceback" not in ended.err
    name = "prediction_results.txt"
    assert (tmp_path / "out" / name).read_bytes() == good_tables[name]


@pytest.mark.parametrize(
    ("command", "redirections", "code", "err"),
    [
        ("--version", "0<&- 1>&- 2>&-", 0, ""),
        ("--version", ">/dev/full", 1, "virnuc-async: standard output: No space left on device\n"),
        ("models list", ">/dev/full", 1, "virnuc-async: standard output: No space left on device\n"),
        ("models list", ">/dev/full 2>&1", 1, ""),
        ("models list", "1>&-", 0, ""),
        ("models list", "2>&- 0<&-", 0, ""),
        ("predict only-one-name", "2>/dev/full", 64, ""),
        ("predict only-one-name", "2>&-", 64, ""),
    ],
)
def test_a_command_without_streams(
    command: str, redirections: str, code: int, err: str, tmp_path: Path
) -> None:
    assert in_shell(command, redirections, tmp_path)[::2] == (code, err)


def test_no_file_gets_the_number_of_a_stream(tmp_path: Path) -> None:
    """Without the streams, /dev/null has their numbers, and standard input is empty."""
    script = (
        "import os, sys; from virnuc_async.cli.streams import open_missing_streams;"
        "open_missing_streams();"
        "assert [os.readlink(f'/proc/self/fd/{n}') for n in range(3)] == ['/dev/null'] * 3;"
        "assert os.open('.', os.O_RDONLY) > 2; assert sys.stdin.read() == '';"
        "print('to nobody'); print('to nobody', file=sys.stderr)"
    )
    words = f'exec {sys.executable} -c "{script}" 0<&- 1>&- 2>&-'
    subprocess.run(["bash", "-c", words], cwd=ROOT, check=True)


def test_piped_input_of_a_process_without_any(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(fasta([("a", "GCA" * 40)]))
    ended = in_shell("predict - a.fa out --devices cpu --quiet", "0<&-", tmp_path)
    assert (ended.code, "Traceback" in ended.err) == (0, False)
