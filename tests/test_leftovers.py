"""What processes that were killed leave half made: the next ones remove it, and nothing else."""

import errno
import fcntl
import os
import re
import signal
import threading
from pathlib import Path

import pytest
from half_made import MAKER, half_made
from running import run
from support import final_name

from virnuc_async.fileio import atomic_directory, atomic_write, remove_leftovers
from virnuc_async.models.bundle import find
from virnuc_async.models.import_checkpoint import CheckpointPaths

# The command line, which waits as soon as a model lacks only its manifest.
WAITS = """
import sys, threading
from virnuc_async.cli.main import run
from virnuc_async.models import import_checkpoint
import_checkpoint.write_manifest = lambda *_, **__: (print("half made", flush=True), threading.Event().wait())
run()
"""

each_kind = pytest.mark.parametrize("kind", ["directory", "write"])


def killed(kind: str, path: Path) -> Path:
    """Return what a killed process left when it was making *path*."""
    with half_made(MAKER, kind, path):
        pass
    (left,) = path.parent.iterdir()
    assert final_name(left.name) == path.name
    return left


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


@each_kind
@pytest.mark.parametrize("next_kind", ["directory", "write"])
def test_what_a_killed_process_left_is_removed_by_the_next(kind: str, next_kind: str, tmp_path: Path) -> None:
    killed(kind, tmp_path / "one")
    make = atomic_directory if next_kind == "directory" else atomic_write
    with make(tmp_path / "other"):
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == ["other"]


@each_kind
def test_what_a_living_process_makes_is_left_alone(kind: str, tmp_path: Path) -> None:
    with half_made(MAKER, kind, tmp_path / "one") as process:
        process.send_signal(signal.SIGSTOP)
        assert remove_leftovers(tmp_path) == []
        with atomic_directory(tmp_path / "other"):
            assert len(names(tmp_path)) == 2
        process.send_signal(signal.SIGCONT)
        process.communicate(b"\n")
        assert process.returncode == 0
    assert names(tmp_path) == ["one", "other"]
    assert (tmp_path / "one" / "weights" if kind == "directory" else tmp_path / "one").read_bytes() == bytes(
        9
    )


@each_kind
def test_the_same_output_is_made_twice_at_once(kind: str, tmp_path: Path) -> None:
    make = atomic_directory if kind == "directory" else atomic_write
    with make(tmp_path / "one"), half_made(MAKER, "write", tmp_path / "one"):
        assert len(names(tmp_path)) == 2
    assert len(names(tmp_path)) == 2
    assert remove_leftovers(tmp_path) == []
    assert names(tmp_path) == ["one"]


@pytest.mark.parametrize("boot", ["0123abcd", "unknown"])
@each_kind
def test_what_was_made_on_another_machine_is_left_and_reported(kind: str, boot: str, tmp_path: Path) -> None:
    left = killed(kind, tmp_path / "one")
    other = left.rename(tmp_path / re.sub(r"[0-9a-f]{8}-", f"{boot}-", left.name))
    (line,) = remove_leftovers(tmp_path)
    assert line.startswith(f"{other} was not completed, and cannot be known to be left behind: ")
    assert line.endswith("Delete it if nothing writes to it")
    assert names(tmp_path) == [other.name]


@each_kind
def test_without_locks_nothing_is_removed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    left = killed(kind, tmp_path / "one")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with atomic_directory(tmp_path / "other"):
        assert len(remove_leftovers(tmp_path)) == 2
    assert names(tmp_path) == [left.name, "other"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@each_kind
def test_what_another_user_left_is_not_touched(kind: str, tmp_path: Path) -> None:
    left = killed(kind, tmp_path / "one")
    os.chown(left, 4321, 4321)
    assert remove_leftovers(tmp_path) == []
    assert names(tmp_path) == [left.name]


@pytest.mark.parametrize(
    "name", [".one.123", ".one.partial", "one.partial", ".partial", ".one.0123abcd.partial"]
)
def test_files_with_similar_names_are_not_touched(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert remove_leftovers(tmp_path) == []
    assert names(tmp_path) == [name]


def test_links_and_pipes_with_such_a_name_are_not_touched(tmp_path: Path) -> None:
    left = killed("write", tmp_path / "one")
    precious = left.rename(tmp_path / "precious")
    left.symlink_to(precious)
    pipe = tmp_path / left.name.replace(".one.", ".two.")
    os.mkfifo(pipe)
    assert remove_leftovers(tmp_path) == []
    assert names(tmp_path) == sorted([left.name, pipe.name, "precious"])


def test_makers_and_removers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    """A directory is removed in no moment between its creation and its end."""
    failed: list[BaseException] = []

    def make(thread: int) -> None:
        try:
            for number in range(40):
                with atomic_directory(tmp_path / f"{thread}-{number}") as made:
                    (made / "file").write_bytes(b"x")
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert remove_leftovers(tmp_path) == []
    assert not failed
    assert names(tmp_path) == sorted(f"{thread}-{number}" for thread in range(4) for number in range(40))
    assert all((tmp_path / name / "file").read_bytes() == b"x" for name in names(tmp_path))


def test_a_directory_that_cannot_be_listed(tmp_path: Path) -> None:
    assert remove_leftovers(tmp_path / "missing") == []
    (tmp_path / "file").touch()
    assert remove_leftovers(tmp_path / "file") == []


def test_a_killed_import_leaves_nothing_after_the_next(golden_parts: CheckpointPaths, tmp_path: Path) -> None:
    parts = [f"--{name}={getattr(golden_parts, name)}" for name in ("protein", "nucleotide", "classifier")]
    words = ("models", "import", *parts, "--length", "500", "--name", "mine", "--output")
    with half_made(WAITS, *words, tmp_path / "mine"):
        pass
    (left,) = tmp_path.iterdir()
    assert sum(path.stat().st_size for path in left.iterdir()) > 500_000
    assert run("models", "import", *words[2:], tmp_path / "other").code == 0
    assert names(tmp_path) == ["other"]
    find(tmp_path / "other").check()
