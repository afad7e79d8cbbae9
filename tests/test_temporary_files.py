"""TMPDIR: where temporary files are made, and what is said if they cannot be."""

import errno
import os
import subprocess
import sys
from contextlib import closing
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from running import files_no_larger_than, fill, predict, run, summary, tables
from stored_runs import WIDTH, Record, ScoredOrf, store_run

from virnuc_async import Settings
from virnuc_async.cli.environment import temporary_dir
from virnuc_async.errors import CannotWrite
from virnuc_async.outputs.calls import call_chunks
from virnuc_async.outputs.columns import Chunks
from virnuc_async.outputs.embeddings import save_features
from virnuc_async.outputs.fragments import published_fragment_chunks, scored_fragment_chunks
from virnuc_async.runs.reader import RunReader
from virnuc_async.runs.store import Store
from virnuc_async.settings import CallRules

HINT = "Make room there, or set TMPDIR to a directory with more"


def open_files(directory: Path) -> list[str]:
    """Return the names of the nameless files of *directory* that this process has open."""
    numbers = filter(os.path.lexists, Path("/proc/self/fd").iterdir())
    links = [os.readlink(number) for number in numbers]
    return [link for link in links if link.startswith(f"{directory}/") and link.endswith(" (deleted)")]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """The directory of a store with five records of a fragment each."""
    run = [Record(b"c%d" % n, (ScoredOrf(1, 0, 0.5, 0.5),)) for n in range(5)]
    store_run(tmp_path / "run", run, embeddings=True, size=1).close()
    return tmp_path / "run"


def sorted_tables(reader: RunReader) -> list[Chunks]:
    """Return what is sorted in runs on disk."""
    return [
        published_fragment_chunks(reader, run_bytes=1),
        scored_fragment_chunks(reader, run_bytes=1),
        call_chunks(reader, CallRules(), run_bytes=1),
    ]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files cannot be listed here")
@pytest.mark.parametrize("is_given", [True, False])
def test_what_is_sorted_is_in_the_temporary_directory(is_given: bool, stored: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with closing(Store(stored, temporary_dir=elsewhere if is_given else None)) as store:
        own = len(open_files(stored))  # the store's
        for chunks in sorted_tables(store.reader)[:2]:  # the table of calls ends before its first lines
            next(chunks), next(chunks)  # the header, and the first sorted line
            assert len(open_files(elsewhere)) == is_given
            assert len(open_files(stored)) == own + (not is_given)
            chunks.close()
            assert open_files(elsewhere) == []
            assert len(open_files(stored)) == own
    assert [*elsewhere.iterdir()] == []


def test_a_full_temporary_directory_is_named(stored: Path, tmp_path: Path) -> None:
    message = f"{tmp_path}: temporary files: {os.strerror(errno.EFBIG)}. {HINT}"
    with closing(Store(stored, temporary_dir=tmp_path)) as store:
        for chunks in sorted_tables(store.reader):
            with files_no_larger_than(5), pytest.raises(CannotWrite) as caught:
                list(chunks)
            assert str(caught.value) == message
        with files_no_larger_than(5), pytest.raises(CannotWrite) as caught:
            save_features(store.reader, WIDTH, BytesIO())
        assert str(caught.value) == message


def test_a_missing_directory_of_the_api(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotWrite) as caught:
        Store(stored, temporary_dir=tmp_path / "missing")
    assert str(caught.value) == f"{tmp_path / 'missing'}: temporary files: No such file or directory"
    Store(stored).close()  # its lock was released


def test_the_command_takes_it_from_the_environment(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predict(source, tmp_path / "plain").code == 0
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    ended = predict(source, tmp_path / "out")
    assert ended.code == 0
    assert "TMPDIR" not in ended.err
    assert temporary_dir() == tmp_path
    assert summary(tmp_path / "out")["settings"] == summary(tmp_path / "plain")["settings"]
    assert tables(tmp_path / "out") == tables(tmp_path / "plain")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.write_bytes(b""), "Not a directory"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
)
def test_one_that_cannot_be_used_is_said_and_not_used(
    make: Any, reason: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "tmp")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    out = tmp_path / "out"
    warning = f"WARNING: TMPDIR {tmp_path}/tmp: {reason}: temporary files are made where the output is\n"
    ended = predict(source, out, "--quiet")
    assert (ended.code, ended.err.splitlines(keepends=True)[0]) == (0, warning)
    for command in ("calls", "tables"):
        assert run(command, out) == (0, run(command, out).out, warning)


def test_one_that_is_read_only(
    source: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(small_disk))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ended = predict(source, tmp_path / "out", "--quiet")
    assert ended.code == 0
    assert f"WARNING: TMPDIR {small_disk}: Read-only file system: temporary files" in ended.err


def test_embeddings_on_a_full_one(
    source: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(small_disk))
    ballast = fill(small_disk, 4)
    out = tmp_path / "out"
    ended = predict(source, out, "--embeddings")
    assert (ended.code, ended.err.splitlines()[-1]) == (
        1,
        f"virnuc-async: {small_disk}: temporary files: No space left on device. {HINT}",
    )
    # To be reused, embeddings are copied there as well.
    monkeypatch.delenv("TMPDIR")
    assert predict(source, out, "--embeddings").code == 0
    monkeypatch.setenv("TMPDIR", str(small_disk))
    ended = predict(source, tmp_path / "again", "--reuse-features", out)
    assert (ended.code, ended.err.splitlines()[-1]) == (
        1,
        f"virnuc-async: {small_disk}: embeddings to reuse: No space left on device. {HINT}",
    )
    ballast.unlink()
    assert predict(source, tmp_path / "again", "--reuse-features", out).code == 0


# Labels of reads, which DuckDB groups on disk


@pytest.fixture(scope="module")
def aligned(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run, and many alignments to one of its contigs."""
    pytest.importorskip("duckdb", reason="the extra [reads] is not installed")
    pysam = pytest.importorskip("pysam", reason="the extra [reads] is not installed")
    tmp_path = tmp_path_factory.mktemp("aligned")
    assert predict(source, tmp_path / "run").code == 0
    contig = (tmp_path / "run" / "contigs.tsv").read_text().splitlines()[1].split("\t")[0]
    header = pysam.AlignmentHeader.from_dict({"SQ": [{"SN": contig, "LN": 500}]})
    path = tmp_path / "aligned.bam"
    with pysam.AlignmentFile(str(path), "wb", header=header) as file:
        for number in range(20_000):
            record = pysam.AlignedSegment(header)
            record.query_name, record.query_sequence, record.cigarstring = f"read{number:020}", "ACGT", "4M"
            record.reference_id, record.reference_start = 0, 1
            record.set_tag("NM", 0)
            file.write(record)
    return tmp_path / "run", path


def test_labels_on_a_full_disk(
    aligned: tuple[Path, Path], small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, path = aligned
    output = tmp_path / "labels.tsv"
    words = ("label-reads", finished, "--bam", path, "--output", output)
    monkeypatch.setenv("TMPDIR", str(small_disk))
    for free_kib in (0, 4, 40, 300, 1000):
        ballast = fill(small_disk, free_kib)
        ended = run(*words)
        assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
        assert ended.err.startswith(f"virnuc-async: {small_disk}: grouping the alignments of reads: ")
        assert "No space left on device" in ended.err
        assert ended.err.endswith(f"{HINT}\n")
        assert [*small_disk.iterdir()] == [ballast]
        assert not output.exists()
        ballast.unlink()
    monkeypatch.delenv("TMPDIR")
    assert run(*words).code == 0
    assert len(output.read_text().splitlines()) == 20_001
    # The output's own disk may be the one that is full.
    ballast = fill(small_disk, 0)
    ended = run(*words[:-1], small_disk / "labels.tsv")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "No space left on device" in ended.err


def test_labels_with_too_little_memory(
    aligned: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virnuc_async.outputs.read_labels._MEMORY", "1MB")
    finished, path = aligned
    ended = run("label-reads", finished, "--bam", path, "--output", tmp_path / "labels.tsv")
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert ": Out of Memory Error: " in ended.err
    assert "It takes up to 1MB of memory, and room for all alignments" in ended.err
    assert not (tmp_path / "labels.tsv").exists()


class RefusingDatabase:
    """A DuckDB that raises *error* at the statement that begins with *words*."""

    def __init__(self, error: Exception, words: str) -> None:
        self._error, self._words = error, words

    def execute(self, statement: str, *_: object) -> None:
        if statement.strip().startswith(self._words):
            raise self._error

    def register(self, *_: object) -> None: ...

    def unregister(self, *_: object) -> None: ...

    def close(self) -> None:
        if self._words == "close":
            raise self._error


class OperationalError(Exception):
    """The base of what DuckDB raises when the system or a limit refuses."""


class FatalException(Exception):
    """What DuckDB raises of a database that an earlier error has made unusable."""


@pytest.mark.parametrize("words", ["SET", "CREATE", "INSERT", "SELECT", "close"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OperationalError("IO Error: No space left on device\n\nmore"), "IO Error: No space left on device"),
        (FatalException("FATAL Error: it has been invalidated."), "FATAL Error: it has been invalidated"),
        (MemoryError(), "no memory is left"),
    ],
)
def test_whatever_fails_wherever(
    error: Exception,
    reason: str,
    words: str,
    aligned: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if words == "close":
        monkeypatch.setattr(RefusingDatabase, "execute", lambda *_: SimpleNamespace(fetchmany=lambda _: []))
    fake = SimpleNamespace(
        connect=lambda *_, **__: RefusingDatabase(error, words),
        OperationalError=OperationalError,
        FatalException=FatalException,
    )
    monkeypatch.setitem(sys.modules, "duckdb", fake)
    finished, path = aligned
    ended = run("label-reads", finished, "--bam", path, "--output", tmp_path / "labels.tsv")
    assert (ended.code, ended.out) == (1, "")
    hint = f"It takes up to 2GB of memory, and room for all alignments. {HINT}"
    assert ended.err == f"virnuc-async: {tmp_path}: grouping the alignments of reads: {reason}. {hint}\n"


def test_a_bug_keeps_its_traceback(
    aligned: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(
        connect=lambda *_, **__: RefusingDatabase(KeyError("a bug"), "CREATE"),
        OperationalError=OperationalError,
        FatalException=FatalException,
    )
    monkeypatch.setitem(sys.modules, "duckdb", fake)
    with pytest.raises(KeyError):
        run("label-reads", aligned[0], "--bam", aligned[1], "--output", tmp_path / "labels.tsv")


def test_a_setting_too() -> None:
    assert Settings(temporary_dir="~").temporary_dir == Path.home()  # type: ignore[arg-type]
