"""Plans for tests, made of the records of each file by the rule of segments, without reading any."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate

from virnuc_async.distributed.plan import PlannedFile, PlannedSegment, RunPlan
from virnuc_async.distributed.planned_settings import planned_settings
from virnuc_async.sequences.segments import SeekPoint
from virnuc_async.settings import Settings


def planned(
    lengths: Sequence[Sequence[int]], segment_bases: int, settings: Settings | None = None
) -> RunPlan:
    """Return a plan of files whose records have these *lengths*."""
    files = tuple(_file(f"/data/{number}.fa", own) for number, own in enumerate(lengths))
    return RunPlan(
        version="1.0",
        model="tiny-500",
        fingerprint="0123456789abcdef",
        devices="CPU (AVX2)",
        precision="fp32",
        tokens_per_batch=2048,
        window=4096,
        segment_bases=segment_bases,
        settings=planned_settings(settings or Settings()),
        flagged=[],
        is_utf8=True,
        files=files,
        segments=tuple(segments(lengths, segment_bases)),
    )


def _file(path: str, lengths: Sequence[int]) -> PlannedFile:
    total, kind = sum(lengths), "contigs" if lengths else None
    return PlannedFile(path, path, [total, "0" * 64], total, len(lengths), total, kind, None)


def segments(lengths: Sequence[Sequence[int]], segment_bases: int) -> list[PlannedSegment]:
    """Return the segments of such files, one record after the other."""
    found: list[PlannedSegment] = []
    before = [0, *accumulate(map(len, lengths))]
    for file, own in enumerate(lengths):
        for record, length in enumerate(own):
            if not found or found[-1].bases >= segment_bases:
                seek = SeekPoint(record, 100 * record)
                found.append(PlannedSegment(file, record, before[file] + record, 0, 0, seek))
            last = found[-1]
            found[-1] = replace(last, records=last.records + 1, bases=last.bases + length)
    return found or [PlannedSegment(0, 0, 0, 0, 0)]


def bases(plan: RunPlan, numbers: Iterable[int]) -> int:
    return sum(plan.segments[number].bases for number in numbers)
