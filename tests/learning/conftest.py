"""Fixtures for the tests that run the command train."""

import shutil
from pathlib import Path

import pytest
from tiny_models import Toys, write_toys
from training_command import train, weights


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    """Forty records of each class, of 400 bases: one fragment each."""
    return write_toys(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="session")
def features(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory with the features of *toys* and no epochs."""
    directory = tmp_path_factory.mktemp("features")
    assert train(toys, directory / "model", "--work", directory / "work").code == 0
    (directory / "work" / "epochs.pt").unlink()
    return directory / "work"


@pytest.fixture
def work(features: Path, tmp_path: Path) -> Path:
    """A copy of *features* for one test."""
    return shutil.copytree(features, tmp_path / "work")


@pytest.fixture(scope="session")
def default_weights(toys: Toys, features: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that training without further options gives."""
    directory = tmp_path_factory.mktemp("default")
    assert train(toys, directory / "one", "--work", shutil.copytree(features, directory / "work")).code == 0
    return weights(directory / "one")
