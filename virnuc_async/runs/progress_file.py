"""
``progress.json``: how far a run is, for dashboards and for whoever waits, written anew every ten seconds.

Its form is that of ``outputs/schemas/progress.schema.json``. A run is alive if its state is no final one and
``updated`` is no older than a few intervals; ``process`` says where to look for it.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import aiofiles
import anyio
from anyio import CancelScope, to_thread

from virnuc_async.errors import OutputError, first_error

from .plan import Intervals
from .progress import Counts, DeviceCounts, State
from .store import Store

if TYPE_CHECKING:
    from loguru import Logger

NAME = "progress.json"
VERSION = 1
_PARTIAL = f".{NAME}.partial"


class ProgressFile:
    """
    Writes how far *counts* are into the directory of *store*, and in the end how the body has ended.

    That it cannot be written, as on a full disk, is logged once, and is no reason to end.
    """

    def __init__(self, store: Store, counts: Counts, log: "Logger", intervals: Intervals) -> None:
        self._store = store
        self._directory = store.directory
        self._counts = counts
        self._log = log
        self._interval = intervals.progress_file
        self._started = time.time() - (time.monotonic() - counts.started)
        self._has_failed = False

    async def run(self) -> None:
        """Write it until cancelled."""
        while True:
            text = self._text(self._counts.state)
            try:
                with CancelScope(shield=True):  # a file that is opened is closed
                    await self._write(text)
            except (OSError, OutputError) as error:
                self._report(error)
            await anyio.sleep(self._interval)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> None:
        state, message = State.FINISHED, ""
        if error is not None:
            cause = first_error(error)
            is_cancelled = isinstance(cause, anyio.get_cancelled_exc_class())
            state = State.INTERRUPTED if is_cancelled else State.FAILED
            message = "" if is_cancelled else str(cause) or type(cause).__name__
        # What ended the run is being raised; that this cannot be written either is no news.
        with suppress(OSError, OutputError):
            self._store.lock.check()
            with self._partial_removed():
                with self._directory.create_new(_PARTIAL) as file:
                    file.write(self._text(state, message))
                self._directory.rename(_PARTIAL, NAME)

    async def _write(self, text: bytes) -> None:
        # The directory may be another process's by now.
        await to_thread.run_sync(self._store.lock.check)
        await to_thread.run_sync(self._directory.unlink, _PARTIAL)
        with self._partial_removed():
            async with aiofiles.open(_PARTIAL, "xb", opener=self._directory.opener) as file:
                await file.write(text)
            await to_thread.run_sync(self._directory.rename, _PARTIAL, NAME)

    @contextmanager
    def _partial_removed(self) -> Iterator[None]:
        """Remove what is half written if the body raises."""
        with ExitStack() as on_failure:
            on_failure.callback(self._directory.remove, _PARTIAL)
            yield
            on_failure.pop_all()

    def _report(self, error: Exception) -> None:
        if not self._has_failed:
            reason = getattr(error, "strerror", None) or str(error)
            self._log.warning("{} cannot be written ({}); the run goes on", NAME, reason)
        self._has_failed = True

    def _text(self, state: State, message: str = "") -> bytes:
        counts, now = self._counts, time.time()
        left = 0.0 if state is State.FINISHED else counts.seconds_left(time.monotonic())
        stage = str(state)
        if state is counts.state:
            stage = str(State.SCORING) if counts.is_scoring else counts.status
        elif state is not State.FINISHED:
            left = None
        facts = {
            "version": VERSION,
            "state": state,
            "stage": stage,
            "message": message or None,
            "started": _iso(self._started),
            "updated": _iso(now),
            "interval_seconds": self._interval,
            "process": {"host": os.uname().nodename, "pid": os.getpid()},
            "seconds_left": None if left is None else round(left, 1),
            "ends": None if left is None else _iso(now + left),
            **_work_facts(counts, time.monotonic()),
        }
        return json.dumps(facts, indent=2).encode() + b"\n"


def _work_facts(counts: Counts, now: float) -> dict[str, Any]:
    total, share = counts.total(), counts.share
    return {
        "share": None if share is None else round(share, 4),
        "orfs": {
            "done": round(counts.done.orfs),
            "done_before": round(counts.before.orfs),
            "read": counts.read,
            "total": None if total is None else round(total.orfs),
            "total_is_estimate": not counts.is_all_read,
        },
        "files": {"done": counts.files_done, "total": counts.files},
        "devices": [_device_facts(counts, device, now) for device in counts.devices.values()],
    }


def _device_facts(counts: Counts, device: DeviceCounts, now: float) -> Mapping[str, Any]:
    rate, state = device.rate(now), device.state
    memory = state.memory
    return {
        "name": device.name,
        "state": str(device.stage),
        "share": round(counts.work_of(device), 4),
        "orfs": device.orfs,
        "tokens": device.tokens,
        "orfs_per_second": round(rate.orfs, 2),
        "tokens_per_second": round(rate.tokens, 1),
        "memory_bytes": None if memory is None else memory.used,
        "memory_total_bytes": None if memory is None else memory.total,
        "utilization_percent": state.utilization,
        "temperature_celsius": state.temperature,
    }


def _iso(seconds: float) -> str:
    """Format seconds since 1970 as a time in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
