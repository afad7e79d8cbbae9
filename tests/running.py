"""The real command, in this process and as one of its own, and what it leaves behind."""

import io
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import ROOT, TABLES

from virnuc_async.cli.main import main

# Stop-free in all six frames, whatever is cut of it; and with a stop in each of the six.
OPEN, SHUT = "GCA", "TTAATTAATTAATTAA"


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def run(
    *arguments: str | Path, stdin: bytes | io.BytesIO = b"", stderr: io.TextIOWrapper | None = None
) -> Ran:
    """Run a command in this process, with the standard streams that a process has."""
    out, err = _stream("strict"), stderr or _stream("backslashreplace")
    with _standard_input(stdin), redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # of argparse, which has answered --help
            code = int(end.code or 0)
    return Ran(code, _text(out), _text(err))


def predict(*arguments: str | Path, **streams: Any) -> Ran:
    """Predict on the CPU, unless another device is named: a GPU gives other last digits."""
    words = [str(argument) for argument in arguments]
    cpu = () if {"--devices", "--gpus"} & set(words) else ("--devices", "cpu")
    return run("predict", *words, *cpu, **streams)


def start(*arguments: str | Path, stderr: Path) -> "subprocess.Popen[bytes]":
    """Start the command as a process of its own; its standard input stays open."""
    with open(stderr, "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "virnuc_async", *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=file,
        )


def python(script: str) -> str:
    """Run *script* in a fresh interpreter; give what it prints."""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def wait_until(is_so: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    """Wait for something that *process* does; the time limit of the test ends it."""
    while not is_so():
        assert process.poll() is None, f"ended with {process.returncode} before its time"
        time.sleep(0.02)


def tables(directory: Path) -> dict[str, bytes]:
    """Give the bytes of the three tables."""
    return {name: (directory / name).read_bytes() for name in TABLES}


def summary(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "summary.json").read_bytes())


def rows(path: Path) -> list[list[str]]:
    """Give the rows of a table, its header first; ids may be of any bytes."""
    return [line.decode("utf-8", "surrogateescape").split("\t") for line in path.read_bytes().splitlines()]


def verdicts(directory: Path) -> dict[str, str]:
    """Give each contig's verdict."""
    return {row[0]: row[-1] for row in rows(directory / "contigs.tsv")[1:]}


def log(directory: Path) -> str:
    """Give what run.log holds by now, if there is one."""
    path = directory / "run.log"
    return path.read_text("utf-8", "surrogateescape") if path.exists() else ""


def some_reads(count: int, length: int, seed: int = 0) -> dict[str, str]:
    rng = random.Random(seed)
    return {f"read{number}": "".join(rng.choices("ACGT", k=length)) for number in range(count)}


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Have the operating system refuse what a full disk would: every write beyond *size* bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def memory_for_no_more_than(more: int) -> Iterator[None]:
    """Have the operating system refuse this process more memory than *more* bytes beyond what it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _standard_input(content: bytes | io.BytesIO) -> Iterator[None]:
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        # What a command sets for its own process is not to be seen by the next one here.
        for name in ("OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
            patch.setenv(name, os.environ.get(name, ""))
            if not os.environ[name]:
                patch.delenv(name)
        yield


def _stream(errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), "utf-8", errors, write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
