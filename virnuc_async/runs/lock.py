"""
Who has an output directory: a file that names its owner, with a sign of life every few seconds.

SQLite's own lock ends with the process that holds it, but does not say who that is, and some
network file systems have none. So the owner is written down, and whoever comes second is told. An
owner on this machine is dead or alive: the kernel knows. One on another machine is watched: it
counts up in its file for as long as it lives, by no clock that two machines would have to agree on.
"""

import errno
import fcntl
import json
import os
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

from virnuc_async.errors import DirectoryLockedError, LockHeldRemotely
from virnuc_async.fileio import read_json

LOCK = "run.lock"
HEARTBEAT_INTERVAL = 10.0  # between two signs of life
LEASE_DURATION = 60.0  # without one, and an owner elsewhere is taken for dead: a slow disk is not

_RELEASED = -1  # no file
_GONE = "gone"  # instead of a start: there is no such process
_SIZE = 1024  # bytes: always the same, so that a sign is one write in place
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that has a directory, so that it can be told from any other, there or then."""

    host: str
    boot: str  # of the machine: another one after each start
    namespace: str  # that the pid counts in: a container's, or the machine's
    pid: int
    started: str  # in the kernel's ticks: pids are used again
    since: str  # when it took the directory, for people
    token: str
    heartbeats: int = 0  # of life

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"

    @property
    def is_alive(self) -> bool | None:
        """Whether its process is; None where that cannot be seen from here."""
        me = _me()
        if (self.host, self.boot, self.namespace) != (me.host, me.boot, me.namespace):
            return None
        return self.started == _start_of(self.pid)


class Lock:
    """
    The lock of *directory*, held until it is let go; ``previous_owner`` held it before, and has died.

    Raises, when it is made:
        DirectoryLockedError: a living process has it
        LockHeldRemotely: a process elsewhere has it, which may be dead: see :func:`take_over`
        OSError: the directory cannot be written
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.previous_owner = owner = owner_of(directory)
        if owner is not None:
            _check_owner(directory, owner)
        self._path = directory / LOCK
        self._owner = _me()
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            raise _busy(directory, owner_of(directory)) from None
        with ExitStack() as undo:
            # A disk that has room for a name may have none for what is behind it.
            undo.callback(self.release)
            self._write()
            undo.pop_all()

    @property
    def has_kernel_locks(self) -> bool:
        """Whether the file system knows the locks that SQLite asks for."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _NO_LOCKS
        return True

    def check(self) -> None:
        """
        See that it is still ours: a process that slept too long may have been taken for dead.

        Raises:
            DirectoryLockedError: another process has it now
        """
        try:
            is_ours = os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except FileNotFoundError:
            is_ours = False
        if not is_ours:
            raise _busy(self.directory, owner_of(self.directory))

    def heartbeat(self) -> None:
        """
        Say that this process lives.

        Raises:
            DirectoryLockedError: another process has the directory now
        """
        self.check()
        self._owner = replace(self._owner, heartbeats=self._owner.heartbeats + 1)
        # A disk that takes no sign takes no batch either, and that is where it is said.
        with suppress(OSError):
            self._write()

    def release(self) -> None:
        """Let the directory go; once more does nothing."""
        if self._file == _RELEASED:
            return
        with suppress(DirectoryLockedError, OSError):
            self.check()
            self._path.unlink()
        os.close(self._file)
        self._file = _RELEASED

    def _write(self) -> None:
        os.pwrite(self._file, json.dumps(asdict(self._owner)).encode().ljust(_SIZE), 0)
        os.fsync(self._file)


def owner_of(directory: Path) -> Owner | None:
    """Give who has *directory*; one that nothing is known of where the file does not say it."""
    return _read(directory / LOCK)


def take_over(directory: Path, owner: Owner) -> None:
    """
    Take the lock of *owner* away, who is dead.

    Raises:
        DirectoryLockedError: somebody else has it by now
    """
    # Of several that come to this at once, one moves the file away, and sees whose it was.
    aside = directory / f"{LOCK}.{uuid4().hex}"
    with suppress(FileNotFoundError):
        (directory / LOCK).rename(aside)
        found = _read(aside)
        is_owners = found is None or found.token == owner.token
        if not is_owners:
            with suppress(FileExistsError):
                os.link(aside, directory / LOCK)
        aside.unlink()
        if not is_owners:
            raise _busy(directory, found)


def _check_owner(directory: Path, owner: Owner) -> None:
    alive = owner.is_alive
    if alive is None:
        raise LockHeldRemotely(str(directory), owner)
    if alive:
        raise _busy(directory, owner)
    take_over(directory, owner)


def _busy(directory: Path, owner: Owner | None) -> DirectoryLockedError:
    if owner is None:
        return DirectoryLockedError(
            str(directory), f"its {LOCK} is gone: somebody has removed it, or the directory"
        )
    reason = f"{owner} is writing there. Wait for it to end, or choose another directory"
    return DirectoryLockedError(str(directory), reason)


def _read(path: Path) -> Owner | None:
    try:
        return Owner(**read_json(path, 16 * _SIZE))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        # Whoever made it has not written into it yet, or never will.
        return Owner("an unknown machine", "", "", 0, "", "an unknown time", "")


def _me() -> Owner:
    return Owner(
        host=os.uname().nodename,
        boot=_text("/proc/sys/kernel/random/boot_id"),
        namespace=_link("/proc/self/ns/pid"),
        pid=os.getpid(),
        started=_start_of(os.getpid()),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        token=uuid4().hex,
    )


def _start_of(pid: int) -> str:
    """Give when the process began, in ticks of the kernel, where it tells; _GONE if there is none."""
    if Path("/proc/self/stat").exists():
        # The name, which may hold anything, ends at the last parenthesis; the state is next.
        fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
        return fields[19] if fields and fields[0] not in "ZX" else _GONE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return _GONE
    except PermissionError:
        pass
    return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text("latin-1").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
