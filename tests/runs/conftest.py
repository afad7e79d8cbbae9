"""Fixtures of the tests of runs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from example_features import NUCLEOTIDE, PROTEIN
from example_runs import IDENTITY

from virnuc_async.fileio import Directory
from virnuc_async.runs.feature_files import find_features
from virnuc_async.runs.reuse_embeddings import FeatureIndex
from virnuc_async.runs.store import Store


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Callable[..., FeatureIndex]]:
    """Reads the feature files in a directory."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with ExitStack() as opened:

        def read_all(directory: Path, rows_at_once: int = 1024) -> FeatureIndex:
            found = list(find_features(directory, but_not=scratch))
            features = opened.enter_context(closing(FeatureIndex(found, (NUCLEOTIDE, PROTEIN), rows_at_once)))
            for _ in features.read(Directory(scratch)):
                assert not list(scratch.iterdir())  # a killed process leaves nothing behind
            return features

        yield read_all


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A directory for the files of an earlier run."""
    directory = tmp_path / "old"
    directory.mkdir()
    return directory


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out"


@pytest.fixture
def store(out: Path) -> Iterator[Store]:
    store = Store(out)
    store.bind_run(IDENTITY, ["/data/a.fa", "/data/b.fa"])
    yield store
    store.close()
