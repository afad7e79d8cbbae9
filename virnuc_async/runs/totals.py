"""The totals of a run: what a finished one is sealed with."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from math import fsum, isfinite
from typing import Any, Self

from virnuc_async.sequences.segments import first_window, follows

from .rows import BatchRow, InvalidRow, WindowRow

DeviceTotals = tuple[int, int, int, float]  # batches, ORFs, tokens, busy seconds


@dataclass(frozen=True, slots=True)
class Totals:
    """How much is in a store; once a run is finished, this much must be in it."""

    windows: int = 0
    contigs: int = 0
    fragments: int = 0
    batches: int = 0
    scores: int = 0
    failures: int = 0  # files and ORFs
    recomputed: int = 0  # ORFs, in FP32
    is_split: bool = False  # whether a batch was split for lack of memory: halves differ in their last digits
    devices: dict[str, DeviceTotals] = field(default_factory=dict)
    reused: int | None = None  # ORFs of which an embedding was reused, if any was to be

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    @classmethod
    def of_parts(cls, parts: Sequence[Self]) -> Self:
        """Return the totals of a run that consists of *parts*."""
        devices: dict[str, list[DeviceTotals]] = {}
        for part in parts:
            for name, sums in part.devices.items():
                devices.setdefault(name, []).append(sums)
        reused = [part.reused for part in parts if part.reused is not None]
        return cls(
            **{name: sum(getattr(part, name) for part in parts) for name in _COUNTS},
            is_split=any(part.is_split for part in parts),
            devices={name: _added(devices[name]) for name in sorted(devices)},
            reused=sum(reused) if reused else None,
        )

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Return what :meth:`to_json` gave; raises InvalidRow."""
        if type(value) is not dict or value.keys() != cls.__dataclass_fields__.keys():
            raise InvalidRow("the totals of the run make no sense")
        devices, is_split, reused = value["devices"], value["is_split"], value["reused"]
        counts = [value[name] for name in _COUNTS] + ([] if reused is None else [reused])
        if not all(map(_is_count, counts)) or type(is_split) is not bool or type(devices) is not dict:
            raise InvalidRow("the totals of the run make no sense")
        if not all(map(_are_device_totals, devices.values())):
            raise InvalidRow("the totals of a device make no sense")
        return cls(**value | {"devices": {name: tuple(sums) for name, sums in devices.items()}})


_COUNTS = ("windows", "contigs", "fragments", "batches", "scores", "failures", "recomputed")


def _added(sums: Sequence[DeviceTotals]) -> DeviceTotals:
    batches, orfs, tokens, seconds = zip(*sums, strict=True)
    return sum(batches), sum(orfs), sum(tokens), fsum(seconds)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_device_totals(value: Any) -> bool:
    return (
        type(value) is list
        and list(map(type, value)) == [int, int, int, float]
        and min(value) >= 0
        and isfinite(value[-1])
    )


def add_up(
    windows: Iterable[WindowRow], batches: Iterable[BatchRow], first_segment: int = 0
) -> tuple[Totals, bool]:
    """
    Return the totals of all rows, and whether each window is there and has as many ORFs as it must have.

    The first window is that of *first_segment*.

    Raises:
        InvalidRow: a window has more, or a batch has no window
    """
    missing: dict[int, int] = {}  # ORFs of each window
    contigs = fragments = failures = 0
    for window in windows:
        missing[window.number] = window.orfs
        contigs += len(window.contigs)
        fragments += int(window.contigs["fragments"].sum())
        failures += sum(file.reason is not None for file in window.files)
    devices: dict[str, tuple[list[int], list[float]]] = {}
    count = scores = recomputed = 0
    is_split = False
    for batch in batches:
        if missing.get(batch.window, 0) < batch.orfs:
            raise InvalidRow("there are batches of no window")
        missing[batch.window] -= batch.orfs
        count, scores, failures = count + 1, scores + batch.scored, failures + len(batch.failures)
        recomputed += batch.recomputed
        is_split |= bool(batch.part)
        sums, seconds = devices.setdefault(batch.device, ([0, 0, 0], []))
        sums[0] += 1
        sums[1] += batch.orfs
        sums[2] += batch.tokens
        seconds.append(batch.seconds)
    of_devices: dict[str, DeviceTotals] = {
        name: (sums[0], sums[1], sums[2], fsum(seconds)) for name, (sums, seconds) in sorted(devices.items())
    }
    counts = (len(missing), contigs, fragments, count, scores, failures, recomputed)
    totals = Totals(*counts, is_split, of_devices)
    numbers = [first_window(first_segment) - 1, *sorted(missing)]
    are_all = all(follows(number, before) for before, number in pairwise(numbers))
    return totals, are_all and not any(missing.values())
