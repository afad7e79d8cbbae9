from pathlib import Path

import pytest
from scored import MakesScorer

from virnuc_async.models.bundle import Bundle, find


@pytest.fixture(scope="session")
def bundle_once() -> Bundle:
    """Return the shipped bundle."""
    return find("tiny-500")


@pytest.fixture
def makes(bundle_once: Bundle, source: Path, tmp_path: Path) -> MakesScorer:
    """Return what makes scorers on fake devices."""
    return MakesScorer(bundle_once, source, tmp_path)
