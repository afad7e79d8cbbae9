"""Opening a store whose directory a process that has died elsewhere still holds."""

import time
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread

from virnuc_async.errors import DirectoryLockedError, LockHeldRemotely
from virnuc_async.fileio import Directory, writing_to

from .lock import Lock, Owner, owner_of, take_over
from .messages import RunMessages
from .plan import Plan
from .store import OnDisk, Store


async def open_store(plan: Plan, out_dir: Path, messages: RunMessages, on_disk: OnDisk) -> Store:
    """
    Open the store of *out_dir*; take over the lock of a process on another machine that has died.

    Raises:
        DirectoryLockedError: another process is alive and writes there
        ForeignDirectoryError, DamagedStore, CannotWrite: the directory
    """
    settings = plan.settings
    open_it = partial(
        Store, out_dir, settings.overwrite, settings.repair, temporary_dir=settings.temporary_dir
    )
    try:
        return await on_disk(open_it)
    except LockHeldRemotely as held:
        owner = held.owner
    assert isinstance(owner, Owner)
    await _wait_for_lease_expiry(owner, plan, out_dir, messages, on_disk)
    messages.log.warning("no heartbeat from {}: taking over its directory", owner)
    await on_disk(_take_over, out_dir, owner)
    return await on_disk(open_it)


def _take_over(out_dir: Path, owner: Owner) -> None:
    with writing_to(out_dir), Directory(out_dir) as directory:
        take_over(directory, owner)


def _owner_of(out_dir: Path) -> Owner | None:
    with writing_to(out_dir), Directory(out_dir) as directory:
        return owner_of(directory)


async def send_heartbeats(lock: Lock, interval: float) -> None:
    """
    Show every *interval* seconds, until cancelled, that this process lives; others may want its directory.

    Raises:
        DirectoryLockedError: another process has taken the directory over
    """
    while True:
        await anyio.sleep(interval)
        await to_thread.run_sync(lock.heartbeat)


async def _wait_for_lease_expiry(
    owner: Owner, plan: Plan, out_dir: Path, messages: RunMessages, on_disk: OnDisk
) -> None:
    """Wait for the lease of *owner* to end; raise DirectoryLockedError at its first heartbeat."""
    intervals = plan.intervals
    messages.counts.status = f"waiting for a heartbeat of {owner}"
    messages.log.warning(
        "{} is locked by {}, whose process cannot be seen from here. If it sends no heartbeat for {:.0f} s, "
        "it is taken for dead",
        out_dir,
        owner,
        intervals.lease,
    )
    deadline = time.monotonic() + intervals.lease
    while (found := await on_disk(_owner_of, out_dir)) == owner:
        if time.monotonic() > deadline:
            return
        await anyio.sleep(intervals.heartbeat / 10)
    if found is not None:
        raise DirectoryLockedError(str(out_dir), f"{found} is writing there. Wait for it to end")
