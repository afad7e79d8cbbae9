"""Fixtures that several tests of models use."""

import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from checkpoint_files import MLPClassifier
from golden_models import golden_files
from serving import Server, serving

from virnuc_async.models import published
from virnuc_async.models.import_checkpoint import CheckpointPaths


@pytest.fixture
def dnabert(golden_parts: CheckpointPaths, tmp_path: Path) -> Path:
    """A copy of the golden DNABERT directory, which tests may change."""
    shutil.copytree(golden_parts.nucleotide, tmp_path / "dnabert")
    return tmp_path / "dnabert"


@pytest.fixture
def as_main(monkeypatch: pytest.MonkeyPatch) -> type[MLPClassifier]:
    """Make the class ``__main__.MLPClassifier``, as in the program that pickled it."""
    monkeypatch.setattr(MLPClassifier, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "MLPClassifier", MLPClassifier, raising=False)
    return MLPClassifier


@pytest.fixture
def server(golden_parts: CheckpointPaths) -> Iterator[Server]:
    with serving() as server:
        host = "/dl.fbaipublicfiles.com/fair-esm/models/esm2.pt"
        server.files[host] = golden_parts.protein.read_bytes()
        for name in ("config.json", "tokenizer.json", "pytorch_model.bin"):
            server.files[f"/huggingface.co/x/{name}"] = (golden_parts.nucleotide / name).read_bytes()
        server.files["/github.com/500.pth"] = golden_parts.classifier.read_bytes()
        server.files["/github.com/300.pth"] = golden_parts.classifier.read_bytes()
        yield server


@pytest.fixture
def cache(golden_parts: CheckpointPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for length in (500, 300):
        files = partial(golden_files, golden_parts, length)
        monkeypatch.setitem(published.MODELS, f"virnucpro-{length}", files)
    monkeypatch.setenv("VIRNUC_ASYNC_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"
