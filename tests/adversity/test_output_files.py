"""The files of a run: their permissions, and that none is written through a symbolic link."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import OPEN, SHUT, log, predict, run, start, summary, tables, wait_until
from support import fasta

from virnuc_async.models.import_checkpoint import CheckpointPaths
from virnuc_async.runs.output_directory import DAMAGED, OUTPUT_FILES, STORE
from virnuc_async.runs.store import Store

# The files of a run with pairs, embeddings, regions and failures.
FORMATS = ("--format", "tsv,parquet,jsonl")
EVERYTHING = ("--embeddings", "--calls", "--regions", "--pairs", "interleaved", *FORMATS)
VIRAL = {name for name in OUTPUT_FILES if name.startswith("viral")}
OF_SHARDS = {"shard.json", "overview.npz", "merge.json"}
FINISHED = {*OUTPUT_FILES, STORE} - {"merged_features.partial", DAMAGED, *VIRAL, *OF_SHARDS}


@pytest.fixture
def reads(tmp_path: Path) -> Path:
    path = tmp_path / "reads.fa"
    path.write_text(fasta([("pair/1", OPEN * 30), ("pair/2", SHUT * 5)]))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Return a file outside of the run, which symbolic links point to."""
    path = tmp_path / "precious"
    path.write_text("precious\n")
    return path


@pytest.fixture(params=[0o002, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


def test_files_of_a_finished_run_follow_the_umask(umask: int, reads: Path, tmp_path: Path, out: Path) -> None:
    assert predict(reads, tmp_path / "missing.fa", out, "--skip-missing", *EVERYTHING).code == 2
    assert modes(out) == dict.fromkeys(FINISHED, 0o666 & ~umask)
    assert stat.S_IMODE(out.stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("umask", [0o002], indirect=True)
def test_files_of_an_unfinished_run_follow_the_umask(
    umask: int, reads: Path, tmp_path: Path, out: Path
) -> None:
    arguments = ("predict", reads, "-", out, "--devices", "cpu", "--embeddings")
    with start(*arguments, stderr=tmp_path / "stderr") as process:
        assert process.stdin
        process.stdin.write(fasta([("more", OPEN * 3)] * 9_000).encode())  # more than a window
        process.stdin.flush()
        wait_until(lambda: "batch 0.0 done" in log(out), process)
        process.terminate()
    left = (STORE, "run.log", "summary.json", "progress.json", "merged_features.partial")
    assert modes(out) == dict.fromkeys(left, 0o666 & ~umask)


def test_files_of_a_bundle_follow_the_umask(umask: int, golden_parts: CheckpointPaths, out: Path) -> None:
    parts = [f"--{name}={getattr(golden_parts, name)}" for name in ("protein", "nucleotide", "classifier")]
    assert run("models", "import", *parts, "--length", "500", "--name", "mine", "--output", out).code == 0
    assert set(modes(out).values()) == {0o666 & ~umask}


@pytest.mark.parametrize(
    "name", [*OUTPUT_FILES, *(f".{name}.partial" for name in OUTPUT_FILES), ".merged_features.pt.rows"]
)
def test_links_in_place_of_output_files_are_not_followed(
    name: str, reads: Path, tmp_path: Path, out: Path, elsewhere: Path
) -> None:
    arguments = (reads, tmp_path / "missing.fa", out, "--skip-missing", *EVERYTHING)
    assert predict(*arguments).code == 2
    expected = tables(out) | {"pairs.tsv": (out / "pairs.tsv").read_bytes()}
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(elsewhere)
    assert predict(*arguments).code == 2
    assert elsewhere.read_text() == "precious\n"
    assert tables(out) | {"pairs.tsv": (out / "pairs.tsv").read_bytes()} == expected
    assert summary(out)["finished"]


@pytest.mark.parametrize("content", [None, b"", b"precious\n"])
def test_a_link_in_place_of_the_store_is_refused(
    content: bytes | None, reads: Path, tmp_path: Path, out: Path
) -> None:
    out.mkdir()
    target = tmp_path / "precious"
    if content is not None:
        target.write_bytes(content)
    (out / STORE).symlink_to(target)
    ran = predict(reads, out, "--overwrite")
    assert ran.code == 1
    assert "its run.sqlite3 is a link to somewhere else" in ran.err
    assert (target.read_bytes() if target.exists() else None) == content


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
def test_links_in_place_of_the_files_that_sqlite_adds_are_not_followed(
    suffix: str, reads: Path, out: Path, elsewhere: Path
) -> None:
    out.mkdir()
    (out / STORE).touch()  # like a run that was killed at its start
    (out / f"{STORE}{suffix}").symlink_to(elsewhere)
    ran = predict(reads, out)
    assert (ran.code, "cannot write run.sqlite3" in ran.err) in ((0, False), (1, True))
    assert elsewhere.read_text() == "precious\n"


def test_a_link_in_place_of_partial_embeddings_is_refused(reads: Path, out: Path, elsewhere: Path) -> None:
    Store(out).close()  # like a run that was killed at its start
    (out / "merged_features.partial").symlink_to(elsewhere)
    ran = predict(reads, out, "--embeddings")
    assert ran.code == 1
    assert "Too many levels of symbolic links" in ran.err
    assert elsewhere.read_text() == "precious\n"
