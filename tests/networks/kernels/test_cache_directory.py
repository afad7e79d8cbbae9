"""Triton's cache: where the user wants it, else in ours, and never in a directory called "~"."""

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from virnuc_async import fileio
from virnuc_async.networks.kernels.cache_directory import use_writable_cache


def directory_for(chosen: Path | str) -> Path:
    """Return the directory that is used if Triton, or the user, has *chosen* one."""
    knobs = SimpleNamespace(cache=SimpleNamespace(dir=str(chosen)))
    use_writable_cache(knobs)
    return Path(knobs.cache.dir)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_without_a_choice_of_the_user_it_is_in_our_cache(home: Path) -> None:
    used = directory_for(f"{home}/.triton/cache")
    assert used == home / ".cache" / "virnuc-async" / "triton"
    assert used.is_dir()
    assert not (home / ".triton").exists()
    assert directory_for(used) == used


def test_the_users_choice_stands(home: Path, tmp_path: Path) -> None:
    assert directory_for(tmp_path / "mine") == tmp_path / "mine"
    assert not home.exists()


@pytest.mark.parametrize("where", ["a home that is a file", "a choice below a file", "no home"])
def test_what_cannot_be_written_is_replaced_by_a_temporary_directory(
    where: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    chosen = tmp_path / "file" / "cache"
    if where == "a home that is a file":
        monkeypatch.setenv("HOME", str(tmp_path / "file"))
        chosen = tmp_path / "file" / ".triton" / "cache"
    elif where == "no home":
        # What is left of ~ if no home directory is known.
        monkeypatch.setenv("HOME", "~")
        monkeypatch.setattr(fileio, "user_cache_path", lambda name: Path("~/.cache", name))
        chosen = Path("~/.triton/cache")
    used = directory_for(chosen)
    assert used.is_dir()
    assert used.name.startswith("virnuc-async-triton-")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_where_nothing_can_be_written_the_choice_stands(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container with a read-only root and no TMPDIR: the kernels then say why they cannot be compiled."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    assert directory_for(tmp_path / "file" / "cache") == tmp_path / "file" / "cache"


def test_kernels_are_not_kept_where_no_library_can_be_loaded(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC))
    assert directory_for(tmp_path / "mounted with noexec").name.startswith("virnuc-async-triton-")
