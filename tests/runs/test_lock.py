"""Who has a directory: told to whoever comes second, and taken from the dead alone."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from running import ROOT

from virnuc_async.errors import DirectoryLockedError, LockHeldRemotely
from virnuc_async.runs import lock as module
from virnuc_async.runs.lock import LOCK, Lock, Owner, owner_of, take_over


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that holds *tmp_path* until it is killed."""
    script = """
import sys
from pathlib import Path
from virnuc_async.runs.lock import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
lock.release()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def write(directory: Path, owner: Owner) -> None:
    (directory / LOCK).write_text(json.dumps(asdict(owner)))


def me(directory: Path) -> Owner:
    held = Lock(directory)
    owner = owner_of(directory)
    held.release()
    assert owner is not None
    return owner


def test_a_living_process_is_named(tmp_path: Path, holder: "subprocess.Popen[bytes]") -> None:
    with pytest.raises(DirectoryLockedError) as caught:
        Lock(tmp_path)
    host = os.uname().nodename
    assert caught.value.reason.startswith(f"process {holder.pid} on {host} (since 2")
    assert caught.value.reason.endswith(") is writing there. Wait for it to end, or choose another directory")
    holder.communicate(b"")
    Lock(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_is_followed_at_once(tmp_path: Path, holder: "subprocess.Popen[bytes]") -> None:
    holder.send_signal(signal.SIGKILL)
    # Not waited for: it is a zombie now, which still has its pid.
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    followed = Lock(tmp_path)
    assert followed.previous_owner is not None
    assert followed.previous_owner.pid == holder.pid
    followed.check()
    followed.release()


def test_a_stopped_process_is_alive(tmp_path: Path, holder: "subprocess.Popen[bytes]") -> None:
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(DirectoryLockedError, match=f"process {holder.pid}"):
        Lock(tmp_path)


def test_a_pid_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    write(tmp_path, replace(me(tmp_path), started="1"))
    followed = Lock(tmp_path)
    assert followed.previous_owner is not None
    followed.release()


@pytest.mark.parametrize("fact", ["host", "boot", "namespace"])
def test_what_cannot_be_seen_is_not_judged(fact: str, tmp_path: Path) -> None:
    owner = replace(me(tmp_path), **{fact: "another"})
    write(tmp_path, owner)
    with pytest.raises(LockHeldRemotely, match="cannot be seen from this machine") as caught:
        Lock(tmp_path)
    assert caught.value.owner == owner
    take_over(tmp_path, owner)
    Lock(tmp_path).release()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}", b"\xff", b'{"pid": 3}'])
def test_a_lock_that_says_nothing_is_somebodys(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(content)
    with pytest.raises(LockHeldRemotely, match="process 0 on an unknown machine") as caught:
        Lock(tmp_path)
    assert isinstance(caught.value.owner, Owner)
    take_over(tmp_path, caught.value.owner)
    assert owner_of(tmp_path) is None


def test_only_the_one_that_was_judged_is_evicted(tmp_path: Path) -> None:
    owner = me(tmp_path)
    held = Lock(tmp_path)
    with pytest.raises(DirectoryLockedError, match=f"process {os.getpid()} "):
        take_over(tmp_path, owner)
    held.check()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    held.release()
    take_over(tmp_path, owner)  # nobody has it: nothing to do


def test_who_lost_it_learns_it_at_the_next_look(tmp_path: Path) -> None:
    held = Lock(tmp_path)
    owner = owner_of(tmp_path)
    assert owner is not None
    held.heartbeat()
    take_over(tmp_path, owner)
    with pytest.raises(DirectoryLockedError, match=r"its run\.lock is gone"):
        held.check()
    other = Lock(tmp_path)
    for ask in (held.check, held.heartbeat):
        with pytest.raises(DirectoryLockedError, match="is writing there"):
            ask()
    held.release()
    other.check()  # what is another's is not let go
    other.release()


def test_signs_of_life_count_up_and_change_nothing_else(tmp_path: Path) -> None:
    held = Lock(tmp_path)
    first = owner_of(tmp_path)
    assert first is not None
    for count in (1, 2, 3):
        held.heartbeat()
        assert owner_of(tmp_path) == replace(first, heartbeats=count)
    held.release()
    held.release()


def test_a_full_disk_does_not_end_a_run_by_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Lock(tmp_path)

    def fails(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fails)
    held.heartbeat()
    held.release()


def test_of_many_that_come_at_once_one_gets_it(tmp_path: Path) -> None:
    for _ in range(30):
        write(tmp_path, replace(me(tmp_path), started="1"))
        together = threading.Barrier(4)
        got: list[Lock] = []

        def take(together: threading.Barrier = together, got: list[Lock] = got) -> None:
            together.wait()
            with suppress(DirectoryLockedError):
                got.append(Lock(tmp_path))

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        holding = [lock for lock in got if holds(lock)]
        assert len(holding) == 1
        for lock in got:
            lock.release()


def holds(lock: Lock) -> bool:
    try:
        lock.check()
    except DirectoryLockedError:
        return False
    return True


def raising(number: int) -> Callable[..., None]:
    def lockf(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return lockf


@pytest.mark.parametrize(
    ("error", "has"), [("ENOLCK", False), ("EOPNOTSUPP", False), ("ENOSYS", False), ("EAGAIN", True)]
)
def test_file_systems_without_locks_are_told(
    error: str, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Lock(tmp_path)
    assert held.has_kernel_locks
    monkeypatch.setattr(fcntl, "lockf", raising(getattr(module.errno, error)))
    assert held.has_kernel_locks is has
    held.release()


def test_where_the_kernel_tells_no_start_a_pid_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: "subprocess.Popen[bytes]"
) -> None:
    real = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path != Path("/proc/self/stat") and real(path))
    assert module._start_of(holder.pid) == ""
    holder.communicate(b"")
    assert module._start_of(holder.pid) == "gone"
