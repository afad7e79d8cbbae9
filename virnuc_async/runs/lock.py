"""
The lock of an output directory: a file that names its owner and has a heartbeat.

SQLite's own lock ends with its process, but does not say which process that is, and some network
file systems have no locks. So the owner is written to a file, and a second process is refused with
its name. The kernel knows whether an owner on this machine is alive. An owner on another machine is
observed: it increases a counter in its file for as long as it lives, so that no clocks of two
machines have to agree.
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
from virnuc_async.fileio import Directory

LOCK = "run.lock"
HEARTBEAT_INTERVAL = 10.0  # seconds between two heartbeats
LEASE_DURATION = 60.0  # seconds without a heartbeat until a remote owner counts as dead; disks may be slow

_RELEASED = -1  # instead of a file descriptor
_NO_SUCH_PROCESS = "gone"  # instead of a start time
_SIZE = 1024  # bytes: always the same, so that a heartbeat is one write in place
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that has locked a directory, distinguishable from all others on any machine."""

    host: str
    boot: str  # id of the machine's current boot
    namespace: str  # of the pid: a container's, or the machine's
    pid: int
    started: str  # in ticks of the kernel, since pids are reused
    since: str  # when it locked the directory, for messages
    token: str
    heartbeats: int = 0  # how many so far

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"

    @property
    def is_alive(self) -> bool | None:
        """Whether its process is alive; None if that cannot be known from here."""
        if (self.host, self.boot, self.namespace) != (os.uname().nodename, _boot(), _namespace()):
            return None
        # Without these, a process of another machine or container could be meant, of the same host name.
        if not self.boot or not self.namespace or self.pid <= 0:
            return None
        return _is_running(self.pid, self.started)


class Lock:
    """
    The lock of *directory*, until it is released.

    ``previous_owner`` is a process that died without releasing it, or None.

    Raises, from the constructor:
        DirectoryLockedError: a living process has locked it
        LockHeldRemotely: a process elsewhere has locked it and may be dead: see :func:`take_over`
        OSError: the directory cannot be written
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.previous_owner = owner = owner_of(directory)
        if owner is not None:
            _check_owner(directory, owner)
        self._owner = _current_owner()
        try:
            self._file = directory.opener(LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            raise _locked_error(directory, owner_of(directory)) from None
        with ExitStack() as undo:
            # A full disk may take a name, but no content.
            undo.callback(self.release)
            self._write()
            undo.pop_all()

    @property
    def has_kernel_locks(self) -> bool:
        """Whether the file system has the locks that SQLite uses."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _NO_LOCKS
        return True

    def check(self) -> None:
        """
        Check that it is still ours: a process that was suspended too long may have lost it.

        Raises:
            DirectoryLockedError: another process has taken it over
        """
        if not self._directory.has(LOCK, os.fstat(self._file)):
            raise _locked_error(self._directory, owner_of(self._directory))

    def heartbeat(self) -> None:
        """
        Write that this process is alive.

        Raises:
            DirectoryLockedError: another process has taken the directory over
        """
        self.check()
        self._owner = replace(self._owner, heartbeats=self._owner.heartbeats + 1)
        # On a full disk, storing the next batch fails as well, and reports it.
        with suppress(OSError):
            self._write()

    def release(self) -> None:
        """Release the directory; does nothing the second time."""
        if self._file == _RELEASED:
            return
        with suppress(DirectoryLockedError, OSError):
            self.check()
            self._directory.unlink(LOCK)
        os.close(self._file)
        self._file = _RELEASED

    def _write(self) -> None:
        os.pwrite(self._file, json.dumps(asdict(self._owner)).encode().ljust(_SIZE), 0)
        os.fsync(self._file)


def owner_of(directory: Directory) -> Owner | None:
    """Return the owner of *directory*, if any; all of its fields are unknown if its file is unreadable."""
    return _read_owner(directory, LOCK)


def take_over(directory: Directory, owner: Owner) -> None:
    """
    Break the lock of *owner*, which is dead.

    Raises:
        DirectoryLockedError: a different process has locked it by now
    """
    # If several processes do this at once, one moves the file away and checks whose it was.
    aside = f"{LOCK}.{uuid4().hex}"
    with suppress(FileNotFoundError):
        directory.rename(LOCK, aside)
        found = _read_owner(directory, aside)
        is_owners = found is None or found.token == owner.token
        if not is_owners:
            with suppress(FileExistsError):
                directory.link(aside, LOCK)
        directory.unlink(aside)
        if not is_owners:
            raise _locked_error(directory, found)


def _check_owner(directory: Directory, owner: Owner) -> None:
    alive = owner.is_alive
    if alive is None:
        raise LockHeldRemotely(str(directory), owner)
    if alive:
        raise _locked_error(directory, owner)
    take_over(directory, owner)


def _locked_error(directory: Directory, owner: Owner | None) -> DirectoryLockedError:
    if owner is not None:
        reason = f"{owner} is writing there. Wait for it to end, or choose another directory"
    elif directory.is_removed:
        reason = "was removed during the run. Run the same command again to start anew"
    else:
        reason = f"its {LOCK} is gone: it was removed during the run. Run the same command again to go on"
    return DirectoryLockedError(str(directory), reason)


def _read_owner(directory: Directory, name: str) -> Owner | None:
    try:
        return Owner(**json.loads(directory.read_bounded(name, 16 * _SIZE)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError):
        # Its owner has not written into it yet, or died before.
        return Owner("an unknown machine", "", "", 0, "", "an unknown time", "")


def _current_owner() -> Owner:
    return Owner(
        host=os.uname().nodename,
        boot=_boot(),
        namespace=_namespace(),
        pid=os.getpid(),
        started=_start_time(os.getpid()),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        token=uuid4().hex,
    )


def _boot() -> str:
    """Return the id of this machine's current boot; "" if it is not known."""
    return _read_text("/proc/sys/kernel/random/boot_id")


def _namespace() -> str:
    """Return in which namespaces pids and start times are counted; "" if that is not known."""
    pid, time = (_read_link(f"/proc/self/ns/{name}") for name in ("pid", "time"))
    return f"{pid} {time}".strip() if pid else ""


def _is_running(pid: int, started: str) -> bool | None:
    """Return whether the process *pid* that *started* then is running; None if that cannot be known."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # it is another user's, and perhaps hidden in /proc
    found = _start_time(pid)
    return found == started if found and started else None


def _start_time(pid: int) -> str:
    """Return when a process started, in ticks of the kernel, or "" if that cannot be known."""
    # Mounted for other pids than ours, /proc has other processes under these numbers.
    if _read_link("/proc/self") != str(os.getpid()):
        return ""
    # The name may contain anything and ends at the last parenthesis; the state follows.
    fields = _read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if not fields:
        return ""
    return fields[19] if fields[0] not in "ZX" else _NO_SUCH_PROCESS


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text("latin-1").strip()
    except OSError:
        return ""


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
