"""Fixtures of the tests that run commands."""

from pathlib import Path

import pytest
from running import OPEN, SHUT, predict, some_reads, tables
from support import fasta

from virnuc_async.models.bundle import Bundle
from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle

GOOD = fasta([("good", OPEN * 100), ("shut", SHUT)])


@pytest.fixture(scope="session")
def model(golden_parts: CheckpointPaths, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model of the golden networks, for fragments of 500 bases; unlike the default, it has no notice."""
    return import_bundle(golden_parts, tmp_path_factory.mktemp("models") / "golden", "golden", 500)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A valid file: one contig with six ORFs and one without."""
    path = tmp_path / "good.fa"
    path.write_text(GOOD)
    return path


@pytest.fixture(scope="session")
def good_tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The tables of a file with the content of *good*."""
    directory = tmp_path_factory.mktemp("good")
    (directory / "good.fa").write_text(GOOD)
    assert predict(directory / "good.fa", directory / "out").code == 0
    return tables(directory / "out")


@pytest.fixture(scope="session")
def reads() -> bytes:
    """More than a window and than one read: without the end, a run scores some batches and waits."""
    end = some_reads(100, 30, seed=1).items()
    return fasta([*some_reads(300, 30).items(), *(("short", "AC") for _ in range(9000)), *end]).encode()


@pytest.fixture(scope="session")
def undisturbed(reads: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The tables of a run on *reads* that nothing interrupts."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert predict("-", out, stdin=reads).code == 0
    assert b"\nread99_chunk_1F" in tables(out)["prediction_results.txt"]
    return tables(out)
