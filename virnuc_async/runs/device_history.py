"""
The speed and the memory of each device over time, over all sessions of a run: kept in its store, for reports.

Its JSON form is ``{"version": 1, "devices": {NAME: [[begin, end, seconds, orfs, tokens, memory, utilization,
temperature], ...]}}``, with the fields of :class:`DevicePoint` in their order. A device has at most
:data:`MOST_POINTS` points, however long the run is: beyond that, the two neighbours that are shortest
together become one.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from .store import Store

VERSION = 1
HISTORY = "device history"  # its key in the store
MOST_POINTS = 240  # of a device: as many as a diagram shows
_FIELDS = 8


@dataclass(frozen=True, slots=True)
class DevicePoint:
    """What a device has done in a stretch of time, and what was seen of it: memory and heat at their most."""

    begin: float  # seconds since 1970, as end
    end: float
    seconds: float  # of work in between: less than that where the stretch spans two sessions
    orfs: int
    tokens: int
    memory: int | None = None  # bytes in use, of the GPU by any process, of the process on a CPU
    utilization: float | None = None  # percent of the time in which the GPU computed, on the mean
    temperature: float | None = None  # degrees Celsius

    @property
    def orfs_per_second(self) -> float:
        """The ORFs that were scored in a second."""
        return self.orfs / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """The residue tokens that were scored in a second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def joined(self, later: "DevicePoint") -> "DevicePoint":
        """Return this and a *later* point as one."""
        return DevicePoint(
            self.begin,
            max(self.end, later.end),
            self.seconds + later.seconds,
            self.orfs + later.orfs,
            self.tokens + later.tokens,
            _highest(self.memory, later.memory),
            _mean(self, later),
            _highest(self.temperature, later.temperature),
        )


@dataclass(slots=True)
class DeviceHistory:
    """The points of each device, by its name, in the order of time."""

    devices: dict[str, list[DevicePoint]] = field(default_factory=dict)

    def add(self, device: str, point: DevicePoint, most: int = MOST_POINTS) -> None:
        """Add the last *point* of *device*; *most* are kept."""
        points = self.devices.setdefault(device, [])
        points.append(point)
        if len(points) > most:
            at = min(range(len(points) - 1), key=lambda at: _cost_of_joining(*points[at : at + 2]))
            points[at : at + 2] = [points[at].joined(points[at + 1])]

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        devices = {name: [list(astuple(point)) for point in points] for name, points in self.devices.items()}
        return {"version": VERSION, "devices": devices}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Return what :meth:`to_json` gave; nothing of another version. Check it by :func:`is_history`."""
        if value is None or value["version"] != VERSION:
            return cls()
        return cls({name: [DevicePoint(*row) for row in rows] for name, rows in value["devices"].items()})


def read_history(store: "Store") -> DeviceHistory:
    """
    Return what *store* knows of the devices of its run; nothing of runs by versions that did not keep it.

    Raises:
        DamagedStore: it cannot be read
    """
    return store.reader.device_history()


def is_history(value: Any) -> bool:
    """Return whether *value* is a history in its JSON form, or one of another version."""
    if not isinstance(value, Mapping) or type(value.get("version")) is not int:
        return False
    if value["version"] != VERSION:
        return True
    devices = value.get("devices")
    return isinstance(devices, Mapping) and all(map(_are_points, devices.values()))


def _are_points(rows: Any) -> bool:
    return type(rows) is list and all(map(_is_point, rows))


def _is_point(row: Any) -> bool:
    if type(row) is not list or len(row) != _FIELDS or type(row[3]) is not int or type(row[4]) is not int:
        return False
    required, optional = row[:5], [value for value in row[5:] if value is not None]
    return all(map(_is_amount, [*required, *optional])) and row[0] <= row[1]


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value) and value >= 0


def _cost_of_joining(before: DevicePoint, after: DevicePoint) -> tuple[bool, float]:
    """Return how little two neighbours should become one: those of two sessions least, then long ones."""
    return after.begin > before.end, before.seconds + after.seconds


def _mean(before: DevicePoint, after: DevicePoint) -> float | None:
    """Return the mean of the utilization of two points, of those that know theirs."""
    known = [(one.utilization, one.seconds) for one in (before, after) if one.utilization is not None]
    seconds = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / seconds if seconds else None


def _highest(*values: float | None) -> Any:
    return max((value for value in values if value is not None), default=None)
