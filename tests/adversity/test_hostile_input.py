"""Inputs that change, break, or are of an absurd shape, through the whole command."""

import gzip
import io
import os
import resource
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running import OPEN, SHUT, log, memory_for_no_more_than, predict, python, rows, summary, verdicts
from support import fasta, read_table

from virnuc_async.log import logger


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.fa"
    path.write_text(fasta([("good", OPEN * 10)]))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def failed(directory: Path) -> list[str]:
    return (directory / "failed_files.txt").read_text("utf-8", "surrogateescape").splitlines()


# A file that changes


@contextmanager
def at_the_first_batch(change: Callable[[], object]) -> Iterator[None]:
    """Do something while the run reads: it reads only some windows ahead of what is scored."""
    due = [change]

    def sink(message: str) -> None:
        if "batch 0.0 done" in message and due:
            due.pop()()

    number = logger.add(sink, level="DEBUG", catch=False)
    try:
        yield
    finally:
        logger.remove(number)
    assert not due


def test_rows_of_a_file_that_changes_are_kept(good: Path, tmp_path: Path, out: Path) -> None:
    path = tmp_path / "reads.fa"
    # A batch in every window, so that there is something to wait for; and many windows.
    path.write_text(fasta((f"read{number}", SHUT if number % 1_000 else OPEN) for number in range(40_000)))
    with at_the_first_batch(lambda: os.truncate(path, path.stat().st_size - 30)):
        assert predict(path, good, out).code == 2
    # The last one may be half of what it is to be, or was.
    kept = len(verdicts(out)) - 1
    assert list(verdicts(out)) == [*(f"read{number}" for number in range(kept)), "good"]
    assert kept in (39_998, 39_999)
    reason = f"breaks after {kept:,} records: it changed while it was being read"
    assert failed(out) == [f"{path}|Input|{reason}"]
    assert [file["status"] for file in summary(out)["inputs"]] == ["broken", "read"]


# A device that fails


class Breaking(io.RawIOBase):
    """Gives *content* and then what a bad disk gives."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        if size := self._content.readinto(buffer):
            return size
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_rows_before_a_read_error_are_kept(pack: Callable[[bytes], bytes], good: Path, out: Path) -> None:
    reads = fasta((f"read{number}", OPEN * 20) for number in range(9)).encode()
    assert predict("-", good, out, stdin=Breaking(pack(reads))).code == 2
    assert list(verdicts(out)) == [*(f"read{number}" for number in range(8)), "good"]
    assert failed(out) == ["-|Input|breaks after 8 records: Input/output error"]


def test_a_read_error_of_the_kernel(good: Path, out: Path) -> None:
    # A terminal whose other end has gone gives what was written there, and then EIO.
    own, other = os.openpty()
    tty.setraw(other)
    os.write(other, fasta((f"read{number}", OPEN) for number in range(9)).encode())
    os.close(other)
    with open(own, "rb", buffering=0, closefd=False) as stream:
        assert predict("-", good, out, stdin=stream).code == 2
    os.close(own)
    assert list(verdicts(out)) == [*(f"read{number}" for number in range(8)), "good"]
    assert failed(out) == ["-|Input|breaks after 8 records: Input/output error"]


# Names


def test_names_that_lead_nowhere(good: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "loop.fa").symlink_to("loop.fa")
    (tmp_path / "dangling.fa").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "up").symlink_to("..")
    names = {
        "# no comment": "No such file or directory",
        f"{tmp_path}/loop.fa": "Too many levels of symbolic links",
        f"{tmp_path}/dangling.fa": "No such file or directory",
        f"{tmp_path}/folder/up/folder/up/good.fa": "",
        f"{tmp_path}/folder/../good.fa": "",
        f"{tmp_path}/zero\0byte.fa": "embedded null byte",
        f"{tmp_path}/{'long' * 99}": "File name too long",
        "deep/" * 2_000: "File name too long",
        f"{good}/below": "Not a directory",
        "/dev/null": "",
        "/dev/zero": "line 1: expected '>' (FASTA) or '@' (FASTQ), saw '",
        "/proc/self/mem": "Input/output error",
        "../" * 99 + "etc/shadow-of-nothing": "No such file or directory",
    }
    listing = tmp_path / "names"
    listing.write_bytes(b"\r\n".join(map(os.fsencode, names)))
    assert predict("--input-list", listing, "--output-dir", out, "--skip-missing").code == 2
    assert [row[0] for row in rows(out / "contigs.tsv")[1:]] == ["good"]
    said = [line.split("|Input|") for line in failed(out)]
    wanted = {name: reason for name, reason in names.items() if reason}
    assert [name for name, _ in said] == list(wanted)
    for name, reason in said:
        assert reason.startswith(wanted[name])


def test_a_list_without_end(out: Path) -> None:
    with memory_for_no_more_than(1 << 30):
        ran = predict("--input-list", "/dev/zero", "--output-dir", out)
    assert (ran.code, ran.err) == (1, "virnuc-async: /dev/zero: a list of more than 268,435,456 bytes\n")
    assert not out.exists()


def test_file_names_of_any_bytes(tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = [
        b"pipe|pipe.fa",
        b"two\nlines.fa",
        b"caf\xe9.fa",
        b"tab\ttab.fa",
        b"back\\slash.fa",
        b"\x1b[2J.fa",
    ]
    for name in names:
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            file.write(b">a\nGCAGCA\n>b\nAC!\n")
    ran = predict(folder, out)
    assert ran.code == 2
    assert len(rows(out / "contigs.tsv")) == 1 + len(names)
    assert len(failed(out)) == len(names)
    assert f"{folder}/pipe\\|pipe.fa|Input|line 4: '!' is not" in "\n".join(failed(out))
    assert f"{folder}/two\\nlines.fa|Input|line 4: " in "\n".join(failed(out))
    # A terminal would obey: the name is shown, and only failed_files.txt has it as it is.
    assert f"{folder}/\x1b[2J.fa|Input|" in "\n".join(failed(out))
    for shown in (ran.err, log(out)):
        assert "\x1b" not in shown
        assert f"{folder}/\\x1b[2J.fa: line 4" in shown
    (folder / "\x1b[2J.fa").write_text("")
    for name in names[:-1]:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).unlink()
    ran = predict(folder / "\x1b[2K.fa", tmp_path / "other")
    assert (ran.code, "\x1b" in ran.err) == (1, False)


@pytest.mark.slow
def test_a_list_of_a_hundred_thousand_names(good: Path, tmp_path: Path, out: Path) -> None:
    listing = tmp_path / "names"
    listing.write_text("\n".join(f"missing{number}.fa" for number in range(100_000)) + f"\n{good}\n")
    begun = time.monotonic()
    arguments = ("--input-list", listing, "--output-dir", out, "--quiet")
    assert predict(*arguments).err.count("No such file") == 100_000
    assert predict(*arguments, "--skip-missing").code == 2
    assert len(failed(out)) == 100_000
    assert list(verdicts(out)) == ["good"]
    assert time.monotonic() - begun < 60


# Sizes


def test_an_id_of_a_hundred_kilobytes(tmp_path: Path, out: Path) -> None:
    name = "i" * 100_000
    (tmp_path / "reads.fa").write_text(fasta([(name, OPEN * 10), ("b", OPEN * 10)] * 3))
    assert predict(tmp_path / "reads.fa", out).code == 0
    assert [row[0] for row in read_table(out / "contigs.tsv")[1:]] == [name, "b"] * 3
    ids = [row[0] for row in read_table(out / "prediction_results.txt")[1:]]
    assert len(ids) == 36
    assert ids[0] == f"{name}_chunk_1F1"


MEASURED = """
import sys, time
from virnuc_async.cli.main import main
begun = time.monotonic()
code = main(["predict", *{arguments!r}, "--devices", "cpu", "--quiet"])
with open("/proc/self/status") as status:
    peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
print(code, int(peak) // 1024, time.monotonic() - begun)
"""


def measured(*arguments: Path) -> tuple[int, int, float]:
    """Predict in a process of its own; give its exit code, its most memory in MiB, and seconds."""
    code, mebibytes, seconds = python(MEASURED.format(arguments=list(map(str, arguments)))).split()
    return int(code), int(mebibytes), float(seconds)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("width", [0, 80])
def test_a_contig_of_200_million_bases(width: int, tmp_path: Path, out: Path) -> None:
    length = 200_000_000
    # Stops in every frame all along but for an open end.
    text = ("TTAATTAATTAATTAA" * (length // 16 + 1))[: length - 600] + OPEN * 200
    (tmp_path / "reads.fa").write_text(fasta([("long", text), ("short", OPEN * 10)], width))
    code, mebibytes, seconds = measured(tmp_path / "reads.fa", out)
    print(f"{width}: {mebibytes} MiB, {seconds:.1f} s")
    assert code == 0
    table = read_table(out / "contigs.tsv")[1:]
    assert [row[0] for row in table] == ["long", "short"]
    assert table[0][2:4] == [str(length), str(-(-length // 500))]
    assert mebibytes < 3 * 1024


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_thousand_small_files(tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(10_000):
        (folder / f"{number:05}").write_text(f">read{number}\n{OPEN * 10}\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        code, mebibytes, seconds = measured(folder, out)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print(f"{mebibytes} MiB, {seconds:.1f} s")
    assert code == 0
    assert [row[0] for row in read_table(out / "contigs.tsv")[1:]] == [
        f"read{number}" for number in range(10_000)
    ]
    assert seconds < 120
