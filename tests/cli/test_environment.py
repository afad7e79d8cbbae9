"""What the command line sets for the libraries that it imports later."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from virnuc_async.cli.environment import do_without_compiler_cache, place_triton_cache


@pytest.mark.parametrize(
    ("chosen", "cache", "expected"),
    [
        ({}, "models", "models/triton"),
        ({}, None, None),
        ({"TRITON_CACHE_DIR": "mine"}, "models", "mine"),
        ({"TRITON_HOME": "home"}, "models", None),
    ],
)
def test_compiled_kernels_are_kept_in_the_cache_unless_the_user_chose_another_place(
    chosen: dict[str, str],
    cache: str | None,
    expected: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.chdir(tmp_path)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    place_triton_cache(None if cache is None else Path(cache))
    found = os.environ.get("TRITON_CACHE_DIR")
    assert found == (str(tmp_path / str(expected)) if expected == "models/triton" else expected)


def test_torchs_compiler_makes_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimizers import it, and it would fail where no temporary directory can be made."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "restored")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    do_without_compiler_cache()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    subprocess.run([sys.executable, "-c", "import torch._dynamo"], check=True)
    assert list(tmp_path.iterdir()) == []


def test_the_users_directory_for_torchs_compiler_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    do_without_compiler_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
