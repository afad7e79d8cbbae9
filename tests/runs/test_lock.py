"""The lock of a directory: a second process is refused, and only a dead owner is followed."""

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
from virnuc_async.fileio import Directory
from virnuc_async.runs import lock as module
from virnuc_async.runs.lock import LOCK, Lock, Owner, owner_of, take_over


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has locked *tmp_path* until it is killed."""
    script = """
import sys
from pathlib import Path
from virnuc_async.fileio import Directory
from virnuc_async.runs.lock import Lock
lock = Lock(Directory(Path(sys.argv[1])))
print("locked", flush=True)
sys.stdin.read()
lock.release()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"locked\n"
    yield process
    process.kill()
    process.communicate()


def write(directory: Path, owner: Owner) -> None:
    (directory / LOCK).write_text(json.dumps(asdict(owner)))


def own_owner(directory: Path) -> Owner:
    """Return this process as the owner of *directory*."""
    lock = Lock(Directory(directory))
    owner = owner_of(Directory(directory))
    lock.release()
    assert owner is not None
    return owner


def test_a_living_process_is_named(tmp_path: Path, holder: "subprocess.Popen[bytes]") -> None:
    with pytest.raises(DirectoryLockedError) as caught:
        Lock(Directory(tmp_path))
    host = os.uname().nodename
    assert caught.value.reason.startswith(f"process {holder.pid} on {host} (since 2")
    assert caught.value.reason.endswith(") is writing there. Wait for it to end, or choose another directory")
    holder.communicate(b"")
    Lock(Directory(tmp_path)).release()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_is_followed_at_once(tmp_path: Path, holder: "subprocess.Popen[bytes]") -> None:
    holder.send_signal(signal.SIGKILL)
    # Not reaped: it is a zombie now, which still has its pid.
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    lock = Lock(Directory(tmp_path))
    assert lock.previous_owner is not None
    assert lock.previous_owner.pid == holder.pid
    lock.check()
    lock.release()


def test_a_stopped_process_is_alive(tmp_path: Path, holder: "subprocess.Popen[bytes]") -> None:
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(DirectoryLockedError, match=f"process {holder.pid}"):
        Lock(Directory(tmp_path))


def test_a_pid_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    write(tmp_path, replace(own_owner(tmp_path), started="1"))
    lock = Lock(Directory(tmp_path))
    assert lock.previous_owner is not None
    lock.release()


@pytest.mark.parametrize("fact", ["host", "boot", "namespace"])
def test_an_owner_elsewhere_is_not_called_dead(fact: str, tmp_path: Path) -> None:
    owner = replace(own_owner(tmp_path), **{fact: "another"})
    write(tmp_path, owner)
    with pytest.raises(LockHeldRemotely, match="cannot be checked from this machine") as caught:
        Lock(Directory(tmp_path))
    assert caught.value.owner == owner
    take_over(Directory(tmp_path), owner)
    Lock(Directory(tmp_path)).release()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}", b"\xff", b'{"pid": 3}'])
def test_an_unreadable_lock_has_an_unknown_owner(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(content)
    with pytest.raises(LockHeldRemotely, match="process 0 on an unknown machine") as caught:
        Lock(Directory(tmp_path))
    assert isinstance(caught.value.owner, Owner)
    take_over(Directory(tmp_path), caught.value.owner)
    assert owner_of(Directory(tmp_path)) is None


def test_only_the_named_owner_is_followed(tmp_path: Path) -> None:
    owner = own_owner(tmp_path)
    lock = Lock(Directory(tmp_path))
    with pytest.raises(DirectoryLockedError, match=f"process {os.getpid()} "):
        take_over(Directory(tmp_path), owner)
    lock.check()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    lock.release()
    take_over(Directory(tmp_path), owner)  # it has no owner: nothing to do


def test_a_lost_lock_is_noticed_at_the_next_check(tmp_path: Path) -> None:
    lock = Lock(Directory(tmp_path))
    owner = owner_of(Directory(tmp_path))
    assert owner is not None
    lock.heartbeat()
    take_over(Directory(tmp_path), owner)
    with pytest.raises(DirectoryLockedError, match=r"its run\.lock is gone"):
        lock.check()
    other = Lock(Directory(tmp_path))
    for method in (lock.check, lock.heartbeat):
        with pytest.raises(DirectoryLockedError, match="is writing there"):
            method()
    lock.release()
    other.check()  # a lock of another process is not released
    other.release()


def test_heartbeats_are_counted_and_change_nothing_else(tmp_path: Path) -> None:
    lock = Lock(Directory(tmp_path))
    first = owner_of(Directory(tmp_path))
    assert first is not None
    for count in (1, 2, 3):
        lock.heartbeat()
        assert owner_of(Directory(tmp_path)) == replace(first, heartbeats=count)
    lock.release()
    lock.release()


def test_a_full_disk_does_not_end_a_run_by_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Lock(Directory(tmp_path))

    def fails(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fails)
    lock.heartbeat()
    lock.release()


def test_one_of_many_simultaneous_processes_gets_it(tmp_path: Path) -> None:
    for _ in range(30):
        write(tmp_path, replace(own_owner(tmp_path), started="1"))
        together = threading.Barrier(4)
        got: list[Lock] = []

        def take(together: threading.Barrier = together, got: list[Lock] = got) -> None:
            together.wait()
            with suppress(DirectoryLockedError):
                got.append(Lock(Directory(tmp_path)))

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len([lock for lock in got if is_owner(lock)]) == 1
        for lock in got:
            lock.release()


def is_owner(lock: Lock) -> bool:
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
def test_file_systems_without_locks_are_detected(
    error: str, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = Lock(Directory(tmp_path))
    assert lock.has_kernel_locks
    monkeypatch.setattr(fcntl, "lockf", raising(getattr(module.errno, error)))
    assert lock.has_kernel_locks is has
    lock.release()


class Kernel:
    """What the kernel shows of processes, instead of what it shows."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.texts: dict[str, str] = {}  # what files in /proc hold
        self.links: dict[str, str] = {}
        self.error: type[OSError] | None = None  # of a signal to a process
        read_text, read_link, kill = module._read_text, module._read_link, os.kill
        patch.setattr(module, "_read_text", lambda path: self.texts.get(path, read_text(path)))
        patch.setattr(module, "_read_link", lambda path: self.links.get(path, read_link(path)))

        def signalled(pid: int, number: int) -> None:
            if number == 0 and self.error is not None:
                raise self.error
            kill(pid, number)

        patch.setattr(os, "kill", signalled)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


BOOT_ID, PID_NAMESPACE = "/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"
ALIVE, DEAD, UNKNOWN = True, False, None


def seen(kernel: Kernel, holder: "subprocess.Popen[bytes]", how: str) -> None:
    """Show the process *holder* to others in some way."""
    stat = f"/proc/{holder.pid}/stat"
    if how == "hidden":  # hidepid: another user's process is not in /proc
        kernel.error, kernel.texts[stat] = PermissionError, ""
    elif how == "another user's":
        kernel.error = PermissionError
    elif how == "ended":
        kernel.error, kernel.texts[stat] = ProcessLookupError, ""
    elif how == "a zombie":
        kernel.texts[stat] = f"{holder.pid} (a) b) Z " + "0 " * 20
    elif how == "another process":
        kernel.texts[stat] = f"{holder.pid} (a) b) S " + "0 " * 20
    elif how == "without /proc":
        kernel.links |= {"/proc/self": "", PID_NAMESPACE: ""}
        kernel.texts |= {stat: "", BOOT_ID: ""}
    elif how == "in the /proc of other pids":
        kernel.links["/proc/self"] = "1"
    elif how == "without a boot id":
        kernel.texts[BOOT_ID] = ""
    elif how == "without a namespace":
        kernel.links[PID_NAMESPACE] = ""


@pytest.mark.parametrize(
    ("how", "is_alive"),
    [
        ("as it is", ALIVE),
        ("another user's", ALIVE),
        ("ended", DEAD),
        ("a zombie", DEAD),
        ("another process", DEAD),
        ("hidden", UNKNOWN),
        ("in the /proc of other pids", UNKNOWN),
    ],
)
def test_unknown_is_not_dead(
    how: str, is_alive: bool | None, kernel: Kernel, tmp_path: Path, holder: "subprocess.Popen[bytes]"
) -> None:
    seen(kernel, holder, how)
    with Directory(tmp_path) as directory:
        owner = owner_of(directory)
        assert owner is not None
        assert owner.is_alive is is_alive
        if is_alive is DEAD:
            Lock(directory).release()
        else:
            kind = DirectoryLockedError if is_alive else LockHeldRemotely
            with pytest.raises(kind):
                Lock(directory)


@pytest.mark.parametrize("how", ["without /proc", "without a boot id", "without a namespace"])
@pytest.mark.parametrize("pid", [1, 4_000_000])
def test_without_an_id_of_the_machine_no_process_is_called_dead(
    how: str, pid: int, kernel: Kernel, tmp_path: Path, holder: "subprocess.Popen[bytes]"
) -> None:
    """As for a container of the same name on another machine, which has other processes."""
    seen(kernel, holder, how)
    write(tmp_path, replace(module._current_owner(), pid=pid, started=""))
    with Directory(tmp_path) as directory, pytest.raises(LockHeldRemotely):
        Lock(directory)


def test_without_start_times_a_process_that_is_gone_is_known_to_be(kernel: Kernel, tmp_path: Path) -> None:
    kernel.links["/proc/self"] = "1"
    write(tmp_path, replace(module._current_owner(), pid=4_190_000))
    with Directory(tmp_path) as directory:
        Lock(directory).release()


@pytest.mark.parametrize("pid", [0, -1, 1 << 70])
def test_an_impossible_pid_is_not_asked_for(pid: int, tmp_path: Path) -> None:
    write(tmp_path, replace(own_owner(tmp_path), pid=pid))
    with Directory(tmp_path) as directory, pytest.raises(LockHeldRemotely):
        Lock(directory)
