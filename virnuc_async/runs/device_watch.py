"""What the devices of a run do while it goes on: looked at every ten seconds, and kept as their history."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread

from virnuc_async.engine.device_state import DeviceState
from virnuc_async.errors import OutputError

from .device_history import HISTORY, DeviceHistory, DevicePoint, read_history
from .plan import Plan
from .progress import Counts, DeviceCounts, DeviceStage
from .store import OnDisk, Store

if TYPE_CHECKING:
    from loguru import Logger

    from virnuc_async.engine.devices import Device

_MEMORY_FULL = 0.9  # of a GPU's memory in use: the next batch may not fit
_LOOKS_BETWEEN_SAVES = 6  # a commit a minute: what a run that is killed loses of its history


@dataclass(frozen=True, slots=True)
class _Mark:
    """How far a device was when its last point ended."""

    clock: float  # monotonic
    time: float  # seconds since 1970
    orfs: int = 0
    tokens: int = 0


class DeviceWatch:
    """Watches the devices of a run: *counts* get their states, and ``history`` is over all sessions."""

    _store: Store

    def __init__(self, plan: Plan, counts: Counts, log: "Logger") -> None:
        self.history = DeviceHistory()
        self._has_news = False  # points that are not in the store
        self._plan = plan
        self._counts = counts
        self._log = log
        self._marks: dict[str, _Mark] = {}
        self._warned: set[str] = set()

    def resume(self, store: Store) -> None:
        """Go on with the history that *store* has, and keep it there."""
        self.history, self._store = read_history(store), store

    async def run(self, devices: "Sequence[Device]", on_disk: OnDisk) -> None:
        """Look at *devices* until cancelled, and save the history once in a while."""
        looks = 0
        while devices:
            await self._look_at(devices)
            self._add_points()
            if looks % _LOOKS_BETWEEN_SAVES == _LOOKS_BETWEEN_SAVES - 1:
                await self.save(on_disk)
            looks += 1
            await anyio.sleep(self._plan.intervals.devices)

    def device_ready(self, device: str) -> None:
        """Begin the history of *device* in this session."""
        self._marks[device] = _Mark(time.monotonic(), time.time())

    async def save(self, on_disk: OnDisk) -> None:
        """Store the history until now, in the thread that uses the store."""
        if history := self._news():
            await on_disk(self._save, history)

    def save_last(self) -> None:
        """Do the same in this thread, when no other uses the store any more."""
        if history := self._news():
            self._save(history)

    def _news(self) -> dict[str, Any] | None:
        """Return the whole history as JSON can hold it; None if nothing was added to it since."""
        self._add_points()
        had_news, self._has_news = self._has_news, False
        return self.history.to_json() if had_news else None

    def _save(self, history: dict[str, Any]) -> None:
        # It is only looked at: what ends a run, such as a full disk, is raised where scores are stored.
        with suppress(OutputError):
            self._store.set_meta(HISTORY, history)

    def _add_points(self) -> None:
        """Add to the history what each device has done since its last point."""
        for device in self._counts.devices.values():
            self._add_point(device)

    async def _look_at(self, devices: "Sequence[Device]") -> None:
        # By card: there may be several replicas on one.
        found: dict[str, DeviceState] = {}
        for device in devices:
            card = device.uuid or device.name
            if card not in found:
                found[card] = await to_thread.run_sync(self._plan.device_state, device)
                self._report_memory(device, found[card])
            if device.name in self._counts.devices:
                self._counts.devices[device.name].state = found[card]

    def _report_memory(self, device: "Device", state: DeviceState) -> None:
        """Log the memory of a GPU; warn once of each that is nearly full."""
        if device.capability is None or state.memory is None:
            return
        self._log.debug("{}: {}", device.name, state.memory)
        if state.memory.share > _MEMORY_FULL and device.uuid not in self._warned:
            self._warned.add(device.uuid)
            self._log.warning("{} is nearly full: {}. Batches may not fit", device.name, state.memory)

    def _add_point(self, device: DeviceCounts) -> None:
        before = self._marks.get(device.name)
        is_stopped = device.stage is DeviceStage.STOPPED
        if before is None or (is_stopped and device.tokens == before.tokens):
            return
        now = _Mark(time.monotonic(), time.time(), device.orfs, device.tokens)
        seconds, state = now.clock - before.clock, device.state
        self.history.add(
            device.name,
            DevicePoint(
                begin=round(before.time, 3),
                end=round(before.time + seconds, 3),  # the clock of the machine may have been set
                seconds=round(seconds, 3),
                orfs=now.orfs - before.orfs,
                tokens=now.tokens - before.tokens,
                memory=None if state.memory is None else state.memory.used,
                utilization=state.utilization,
                temperature=state.temperature,
            ),
        )
        self._marks[device.name] = now
        self._has_news = True
