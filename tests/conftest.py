"""Fixtures that several test modules use."""

import gc
import io
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from harness import PipelineHarness
from logged import Clock
from object_stores import ENVIRONMENT, Bucket, s3_server

from virnuc_async.log import logger
from virnuc_async.models.bundle import Bundle
from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle

# The same examples every time: a test fails everywhere or nowhere.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")

# Without a GPU, kernels run in Triton's interpreter, which it decides when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)  # the networks of the tests are too small for more


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Remove what the user has set for models, proxies and files, and keep out of the cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))
    for name in (
        "VIRNUC_ASYNC_CACHE_DIR",
        "VIRNUC_ASYNC_MIRROR",
        "VIRNUC_ASYNC_MODEL",
        "HF_ENDPOINT",
        "TMPDIR",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Return the directory of third-party results; its README.md describes how each file was made."""
    return Path(__file__).parent / "data" / "golden"


@pytest.fixture(scope="session")
def source(golden: Path) -> Path:
    """Return real sequences of many lengths, the input of the published program's golden runs."""
    return golden / "upstream" / "input.fa"


@pytest.fixture(scope="session", params=(500, 300))
def length(request: pytest.FixtureRequest) -> int:
    """Return a fragment length that VirNucPro was published with."""
    return request.param


@pytest.fixture(scope="session")
def expected(golden: Path, length: int) -> Path:
    """Return the directory with the published program's results for upstream/input.fa."""
    return golden / "upstream" / f"expected_{length}"


@pytest.fixture(scope="session")
def golden_parts(golden: Path) -> CheckpointPaths:
    """Return small networks in the file formats of the published models."""
    models = golden / "upstream" / "models"
    return CheckpointPaths(models / "esm2_t3_tiny.pt", models / "dnabert", models / "classifier.pth")


@pytest.fixture(scope="session")
def golden_bundle(
    golden_parts: CheckpointPaths, length: int, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """Return the bundle of *golden_parts*; its results for upstream/input.fa are in *expected*."""
    directory = tmp_path_factory.mktemp("bundles") / f"golden-{length}"
    return import_bundle(golden_parts, directory, directory.name, length)


@pytest.fixture(params=[1, 3])
def count(request: pytest.FixtureRequest) -> int:
    """The number of devices: everything works the same with one and with several."""
    return request.param


@pytest.fixture(autouse=True)
def no_thread_survives() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("replica")]


@pytest.fixture(scope="session")
def bundle(golden_parts: CheckpointPaths, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One length is enough for all that is not about the published answer."""
    return import_bundle(golden_parts, tmp_path_factory.mktemp("bundle"), "golden", 500)


@pytest.fixture
def bench(source: Path, bundle: Bundle, tmp_path: Path) -> PipelineHarness:
    return PipelineHarness(source, bundle, tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a new disk of 2 MB; skip the test if mounting one is not allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)]
    if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("mounting a disk is not allowed here")
    yield disk
    # An error that came out of a worker thread is in a cycle with its future; its frames map a file here.
    gc.collect()
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def messages() -> Iterator[io.StringIO]:
    """Everything that the package logs during the test."""
    stream = io.StringIO()
    sink = logger.add(stream, format="{level.name} {message}", level=0, catch=False)
    yield stream
    logger.remove(sink)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Yield the URL of a server with the interface of S3."""
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Return an empty bucket, which the environment says how to reach."""
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": s3}.items():
        monkeypatch.setenv(name, value)
    return Bucket.create(s3)
