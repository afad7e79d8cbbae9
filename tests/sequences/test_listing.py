"""Which files are read, of those that were named and those in directories, and what is said of the others."""

import gzip
import io
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from running import NO_FILE

from virnuc_async.errors import MissingInputs, UnreadableInput, UsageError
from virnuc_async.sequences import inputs
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.listing import list_inputs

FASTA = b">a\nAC\n"


def made(directory: Path, *names: str) -> None:
    """Write a file of sequences for each of *names*."""
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(FASTA)


def listed(*inputs: str | Path, **options: Any) -> tuple[Sequence[str], Sequence[str]]:
    """Return the files, and the lines of the log."""
    paths, notices = list_inputs(inputs, **options)
    return paths, [f"{level}: {text}" for level, text in notices]


# Directories


def test_a_directory_stands_for_its_sequence_files_sorted(tmp_path: Path):
    expected = ["B.FASTA", "a.fa", "c.fq.gz", "d.fna.ZST", "noname", "packed", "with-mark"]
    made(tmp_path, *expected[:4], "noname")
    (tmp_path / "packed").write_bytes(gzip.compress(b"\n\n@a\nAC\n+\nII\n"))
    (tmp_path / "with-mark").write_bytes(b"\xef\xbb\xbf\r\n>a\nAC\n")
    assert listed(tmp_path) == (tuple(str(tmp_path / name) for name in expected), [])


def test_links_are_followed_to_files(tmp_path: Path):
    made(tmp_path, "elsewhere/x", "in/a.fa")
    (tmp_path / "in/b.fa").symlink_to("../elsewhere/x")
    assert listed(tmp_path / "in") == ((str(tmp_path / "in/a.fa"), str(tmp_path / "in/b.fa")), [])


def test_what_is_left_out_of_a_directory_is_said(tmp_path: Path):
    made(tmp_path, "a.fa", "a.fa~", "#a.fa#", "a.fa.bak", ".hidden.fa", "deeper.fa/e.fa", "run/f.fa")
    for name in (".a.fa.swp", ".#a.fa"):
        (tmp_path / name).write_bytes(FASTA)
    (tmp_path / "gone.fa").symlink_to("purged.fa")
    (tmp_path / "loop.fa").symlink_to("loop.fa")
    os.mkfifo(tmp_path / "pipe.fa")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.fa"))
    (tmp_path / "README.md").write_bytes(b"# Reads\n")
    (tmp_path / "table.tsv.gz").write_bytes(gzip.compress(b"a\tb\n"))
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "x.sra").write_bytes(gzip.compress(b"NCBI.sra" + bytes(9)))
    (tmp_path / "broken.gz").write_bytes(gzip.compress(FASTA)[:10])
    paths, notices = listed(tmp_path)
    assert paths == (str(tmp_path / "a.fa"),)
    assert [notice.replace(f"{tmp_path}/", "") for notice in notices] == [
        "WARNING: left out 2 links that lead nowhere: gone.fa, loop.fa",
        "WARNING: left out 2 pipes, sockets or devices: pipe.fa, s.fa",
        "WARNING: left out 2 subdirectories: deeper.fa, run (--recursive reads them)",
        "WARNING: left out 1 file that cannot be read: broken.gz (Compressed file ended before the "
        "end-of-stream marker was reached)",
        "WARNING: left out 1 file of another format: x.sra (an SRA archive)",
        "WARNING: left out 5 editors' copies: #a.fa#, .#a.fa, .a.fa.swp, a.fa.bak, a.fa~",
        "INFO: left out 1 hidden file: .hidden.fa",
        "INFO: left out 3 files that are neither FASTA nor FASTQ: README.md, empty.txt, table.tsv.gz",
    ]


def test_one_line_names_some_of_many(tmp_path: Path):
    for number in range(8):
        (tmp_path / f"{number}.fa").symlink_to("purged.fa")
    made(tmp_path, "a.fa")
    notice = listed(tmp_path)[1][0].replace(f"{tmp_path}/", "")
    assert notice == "WARNING: left out 8 links that lead nowhere: 0.fa, 1.fa, 2.fa, 3.fa, 4.fa and 3 more"


def test_a_link_that_leads_to_a_file_that_fails_to_be_read(tmp_path: Path):
    (tmp_path / "memory").symlink_to("/proc/self/mem")
    made(tmp_path, "a.fa")
    paths, notices = listed(tmp_path)
    assert paths == (str(tmp_path / "a.fa"),)
    assert notices == [
        f"WARNING: left out 1 file that cannot be read: {tmp_path / 'memory'} (Input/output error)"
    ]


def test_a_directory_without_sequences_is_reported_when_read(tmp_path: Path):
    (tmp_path / "README").write_bytes(b"nothing here\n")
    paths, notices = listed(tmp_path)
    assert paths == (str(tmp_path),)
    assert notices == [f"INFO: left out 1 file that is neither FASTA nor FASTQ: {tmp_path / 'README'}"]
    with pytest.raises(UnreadableInput, match="a directory without sequence files"):
        list(read_contigs(*paths))


def test_recursive_descends_sorted(tmp_path: Path):
    expected = ["a.fa", "barcode01/x.fa", "barcode01/y/z.fa", "barcode02/x.fa", "c.fa"]
    made(tmp_path, *reversed(expected), ".cache/x.fa")
    (tmp_path / "empty").mkdir()
    found = tuple(str(tmp_path / name) for name in expected)
    assert listed(tmp_path, recursive=True) == (found, [])
    paths, notices = listed(tmp_path)
    assert paths == (found[0], found[-1])
    names = ", ".join(str(tmp_path / name) for name in ("barcode01", "barcode02", "empty"))
    assert notices == [f"WARNING: left out 3 subdirectories: {names} (--recursive reads them)"]


def test_recursive_reads_no_directory_twice(tmp_path: Path):
    made(tmp_path, "in/a/x.fa", "in/z/y.fa")
    (tmp_path / "in/a/up").symlink_to("..")
    (tmp_path / "in/b").symlink_to("a")
    paths, notices = listed(tmp_path / "in", recursive=True)
    assert paths == (str(tmp_path / "in/a/x.fa"), str(tmp_path / "in/z/y.fa"))
    names = f"{tmp_path / 'in/a/up'}, {tmp_path / 'in/b'}"
    assert notices == [f"WARNING: left out 2 directories that were read already: {names}"]


@pytest.mark.parametrize("recursive", [False, True])
def test_the_output_directory_is_no_input(recursive: bool, tmp_path: Path):
    made(tmp_path, "a.fa", "out/b.fa")
    (tmp_path / "link").symlink_to("out")
    for out in ("out", "link"):
        options = {"recursive": recursive, "but_not": tmp_path / out}
        assert listed(tmp_path, **options) == ((str(tmp_path / "a.fa"),), [])


def test_files_directories_and_standard_input_keep_their_order(tmp_path: Path):
    made(tmp_path, "in/b.fa", "in/a.fa", "one.txt")
    paths = listed(tmp_path / "one.txt", "-", tmp_path / "in", stdin=io.BytesIO())[0]
    assert paths == (*(str(tmp_path / "one.txt"), "-"), *(str(tmp_path / f"in/{name}.fa") for name in "ab"))


# The same file twice


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made(tmp_path, "d/s.fa", "other.fa")
    (tmp_path / "d/soft.fa").symlink_to("s.fa")
    (tmp_path / "hard.fa").hardlink_to(tmp_path / "d/s.fa")
    monkeypatch.chdir(tmp_path)
    for again in ("d/s.fa", "./d//s.fa", str(tmp_path / "d/s.fa"), "d/soft.fa", "hard.fa", "d/../d/s.fa"):
        paths, notices = listed("d/s.fa", "other.fa", again)
        assert paths == ("d/s.fa", "other.fa")
        assert notices == [
            f"WARNING: named more than once, read once: d/s.fa and {again} (--allow-duplicates reads each)"
        ]
        assert listed("d/s.fa", "other.fa", again, allow_duplicates=True) == (
            ("d/s.fa", "other.fa", again),
            [],
        )
    paths, notices = listed("d", "hard.fa", "d")
    assert paths == ("d/s.fa",)
    pairs = [f"d/s.fa and {name}" for name in ("d/soft.fa", "hard.fa", "d/s.fa", "d/soft.fa")]
    assert notices == [
        f"WARNING: named more than once, read once: {', '.join(pairs)} (--allow-duplicates reads each)"
    ]


def test_files_with_equal_content_are_two(tmp_path: Path):
    made(tmp_path, "a.fa", "b.fa")
    assert listed(tmp_path / "a.fa", tmp_path / "b.fa")[1] == []


def test_a_file_that_is_standard_input_as_well(tmp_path: Path):
    made(tmp_path, "a.fa")
    with open(tmp_path / "a.fa", "rb") as stdin:
        paths, notices = listed(tmp_path / "a.fa", "-", stdin=stdin)
    assert paths == (str(tmp_path / "a.fa"),)
    assert len(notices) == 1


@pytest.mark.parametrize("allow_duplicates", [False, True])
@pytest.mark.parametrize("names", [("-", "-"), ("-", "a.fa", "/dev/stdin"), ("/dev/fd/0", "/proc/self/fd/0")])
def test_standard_input_is_named_once(names: tuple[str, ...], allow_duplicates: bool):
    with pytest.raises(UsageError, match="standard input can be read only once, but is named as "):
        list_inputs(names, allow_duplicates=allow_duplicates)


def test_a_pipe_is_named_once(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    assert listed(tmp_path / "pipe") == ((str(tmp_path / "pipe"),), [])
    with pytest.raises(UsageError, match=r"pipe and .*link are the same stream"):
        list_inputs([tmp_path / "pipe", tmp_path / "link"])


# What is missing


def test_all_that_is_missing_is_named(tmp_path: Path):
    made(tmp_path, "a.fa")
    (tmp_path / "link.fa").symlink_to("purged.fa")
    names = [tmp_path / name for name in ("b.fa", "a.fa", "link.fa", "a.fa/c.fa", "x" * 300)]
    reasons = [NO_FILE, NO_FILE, "Not a directory", "File name too long"]
    missing = [name for name in names if name.name != "a.fa"]
    with pytest.raises(MissingInputs) as caught:
        list_inputs(names, skip_missing=False)
    assert [(error.path, error.reason) for error in caught.value.failures] == [
        (str(name), reason) for name, reason in zip(missing, reasons, strict=True)
    ]
    assert str(caught.value).splitlines() == [
        "4 inputs cannot be read. Nothing was begun: correct the names, "
        "or use --skip-missing to go on without",
        *(f"{name}: {reason}" for name, reason in zip(missing, reasons, strict=True)),
    ]
    assert listed(*names, skip_missing=True) == (tuple(map(str, names)), [])


def test_one_that_is_missing(tmp_path: Path):
    with pytest.raises(MissingInputs) as caught:
        list_inputs([tmp_path / "b.fa"])
    assert str(caught.value) == f"{tmp_path / 'b.fa'}: {NO_FILE}"
    with pytest.raises(MissingInputs, match="embedded null byte"):
        list_inputs(["b\0.fa"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["d", "d/a.fa", "d/e"])
def test_what_may_not_be_read_is_missing(name: str, tmp_path: Path):
    made(tmp_path, "d/a.fa", "d/e/b.fa")
    (tmp_path / name).chmod(0)
    with pytest.raises(MissingInputs) as caught:
        list_inputs([tmp_path / "d"], recursive=True)
    assert [(error.path, error.reason) for error in caught.value.failures] == [
        (str(tmp_path / name), "Permission denied")
    ]
    (tmp_path / name).chmod(0o700)


def test_no_name():
    with pytest.raises(UsageError, match="an input has an empty name"):
        list_inputs(["a.fa", ""])
    with pytest.raises(UsageError, match="name an input"):
        list_inputs([])


def test_a_file_whose_name_says_nothing_is_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pysam", reason="the extra [bam] is not installed")
    contents = {
        "bases": b">a\nACGT\n",
        "packed": gzip.compress(b"@a\nACGT\n+\nIIII\n"),
        "text": b"a list\n",
        "aligned.bam": gzip.compress(b"BAM\1\0\0\0\0\0\0\0\0"),
        "reads": b"r\t4\t*\t0\t0\t*\t*\t0\t0\tACGT\t*\n",
        "empty": b"",
    }
    opened = []

    def open_file(path: str) -> io.BufferedReader:
        opened.append(os.path.basename(path))
        return open(path, "rb")

    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(inputs, "open_file", open_file)
    found = list_inputs([tmp_path])
    assert sorted(opened) == sorted(contents)
    kept = ["aligned.bam", "bases", "packed", "reads"]
    assert found.paths == tuple(str(tmp_path / name) for name in kept)
