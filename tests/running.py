"""Helpers that run the real command, in this process or in its own, and read what it writes."""

import errno
import io
import json
import os
import random
import resource
import shutil
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
from virnuc_async.cli.parser import CommandParser

# Without a stop in all six frames, wherever it is cut; and with a stop in each of the six.
OPEN, SHUT = "GCA", "TTAATTAATTAATTAA"
NO_FILE = os.strerror(errno.ENOENT)
# For what is written often: in memory if possible, else in the usual place.
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


class Ran(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


def run(
    *arguments: str | Path,
    stdin: bytes | io.BytesIO = b"",
    stderr: io.TextIOWrapper | None = None,
    make_parser: Callable[[], CommandParser] | None = None,
) -> Ran:
    """Run a command in this process, or that of another parser, with the standard streams of a process."""
    out, err = _stream("strict"), stderr or _stream("backslashreplace")
    with _standard_input(stdin), redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments], make_parser)
        except SystemExit as end:  # by argparse, after --help or --version
            code = int(end.code or 0)
    return Ran(code, _text(out), _text(err))


def predict(*arguments: str | Path, **streams: Any) -> Ran:
    """Predict on the CPU unless other devices are given: a GPU gives other last digits."""
    words = [str(argument) for argument in arguments]
    cpu = () if {"--devices", "--gpus"} & set(words) else ("--devices", "cpu")
    return run("predict", *words, *cpu, **streams)


def start(*arguments: str | Path, stderr: Path) -> "subprocess.Popen[bytes]":
    """Start the command in its own process; its standard input stays open."""
    with open(stderr, "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "virnuc_async", *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=file,
        )


def python(script: str) -> str:
    """Run *script* in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def wait_until(is_so: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    """Wait for something that *process* does, up to the time limit of the test."""
    while not is_so():
        assert process.poll() is None, f"ended with {process.returncode} before its time"
        time.sleep(0.02)


def tables(directory: Path) -> dict[str, bytes]:
    """Return the bytes of the three tables."""
    return {name: (directory / name).read_bytes() for name in TABLES}


def summary(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "summary.json").read_bytes())


def rows(path: Path) -> list[list[str]]:
    """Return the rows of a table, including its header; ids may be any bytes."""
    return [line.decode("utf-8", "surrogateescape").split("\t") for line in path.read_bytes().splitlines()]


def verdicts(directory: Path) -> dict[str, str]:
    """Return the verdict of each contig."""
    header, *lines = rows(directory / "contigs.tsv")
    return {row[0]: row[header.index("verdict")] for row in lines}


def log(directory: Path) -> str:
    """Return the content of run.log, empty if there is none yet."""
    path = directory / "run.log"
    return path.read_text("utf-8", "surrogateescape") if path.exists() else ""


def some_reads(count: int, length: int, seed: int = 0) -> dict[str, str]:
    rng = random.Random(seed)
    return {f"read{number}": "".join(rng.choices("ACGT", k=length)) for number in range(count)}


def flip(path: Path, position: int) -> None:
    """Change a bit of the byte at *position* of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 16
    path.write_bytes(content)


def fill(disk: Path, free_kib: int) -> Path:
    """Fill *disk* until *free_kib* KiB are free; return the file to delete."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - free_kib * 1024))
    return ballast


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Make writes beyond *size* bytes fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def memory_for_no_more_than(more: int) -> Iterator[None]:
    """Make allocations fail that need more than *more* bytes beyond what this process has."""
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
        # What a command sets for its process must not reach the next one.
        for name in ("OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
            patch.setenv(name, os.environ.get(name, ""))
            if not os.environ[name]:
                patch.delenv(name)
        yield


def _stream(errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), "utf-8", errors, write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
