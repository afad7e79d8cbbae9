"""A directory is an object: renamed or replaced, it is still the one that was opened."""

import os
from pathlib import Path

import pytest

from virnuc_async.fileio import Directory


@pytest.fixture
def moved(tmp_path: Path) -> Directory:
    """A directory that was renamed from "out" to "old"; another one is called "out" now."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_bytes(b"mine")
    directory = Directory(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "old")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_bytes(b"theirs")
    return directory


def test_every_operation_is_on_the_directory_that_was_opened(moved: Directory, tmp_path: Path) -> None:
    assert moved.read_bounded("a", 9) == b"mine"
    with moved.atomic_write("b") as file:
        file.write(b"new")
    with moved.create_new("c") as file:
        file.write(b"newer")
    with moved.temporary_file() as file:
        file.write(b"gone")
    moved.link("a", "d")
    moved.rename("c", "e")
    moved.unlink("a")
    moved.unlink("a")
    moved.create("f")
    moved.sync()
    assert moved.names() == ["b", "d", "e", "f"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == {
        "b": b"new",
        "d": b"mine",
        "e": b"newer",
        "f": b"",
    }
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"a": b"theirs"}
    assert moved.stat("a") is None
    assert moved.is_file("b")


def test_it_knows_where_it_is(moved: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (moved.path, str(moved)) == (tmp_path / "old", str(tmp_path / "old"))
    # Without /proc, its first name is all that is known.
    monkeypatch.setattr(os, "readlink", lambda path: (_ for _ in ()).throw(FileNotFoundError(path)))
    assert (moved.path, moved.locate()) == (tmp_path / "out", None)
    monkeypatch.undo()
    assert not moved.is_removed
    for path in (tmp_path / "old").iterdir():
        path.unlink()
    (tmp_path / "old").rmdir()
    assert moved.is_removed
    assert (moved.path, moved.locate()) == (tmp_path / "out", None)
    moved.close()
    moved.close()
    assert moved.path == tmp_path / "out"


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").write_bytes(b"precious")
    for name in ("a", "b"):
        (tmp_path / "out" / name).symlink_to("../precious")
    with Directory(tmp_path / "out") as directory:
        for open_it in (directory.open, directory.create):
            with pytest.raises(OSError, match="symbolic links"):
                open_it("a")
        assert not directory.is_file("a")
        with directory.atomic_write("b") as file:
            file.write(b"mine")
        directory.create_new("a").close()
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (tmp_path / "out" / "b").read_bytes() == b"mine"


def test_a_check_that_fails_before_the_renaming_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def another_process_has_it() -> None:
        raise ValueError("lost")

    with (
        Directory(tmp_path) as directory,
        pytest.raises(ValueError, match="lost"),
        directory.atomic_write("a", another_process_has_it) as file,
    ):
        file.write(b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_a_system_without_unnamed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virnuc_async.fileio._UNNAMED", os.O_RDWR)
    with Directory(tmp_path) as directory, directory.temporary_file() as file:
        assert directory.names() == []
        file.write(b"x")
        file.seek(0)
        assert file.read() == b"x"
