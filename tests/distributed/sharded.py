"""Runs whose shards are scored apart, by fake devices, and the same runs in one piece."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from batch_scorer import BatchRules
from fakes import fake_devices

from virnuc_async._version import __version__
from virnuc_async.distributed.plan import SHARDS, PlannedFile, PlannedSegment, RunPlan, Shard, write_plan
from virnuc_async.distributed.planned_settings import planned_settings
from virnuc_async.distributed.shard import run_shard
from virnuc_async.engine import choose
from virnuc_async.errors import InputError
from virnuc_async.models.bundle import Bundle
from virnuc_async.outputs.shard_rows import ShardSummary
from virnuc_async.outputs.summary import Summary
from virnuc_async.pipeline import execute
from virnuc_async.runs.plan import Plan
from virnuc_async.sequences.inputs import InputVersion, kind_by_name, read_contigs
from virnuc_async.sequences.segments import SeekPoint
from virnuc_async.settings import Precision, Settings

WINDOW, SEGMENT, TOKENS = 15, 2_000, 400
MACHINE = Settings(devices=("cpu",))


class Sharded:
    """The inputs *paths*, in one piece in ``one``, and in shards in ``run``, both in *directory*."""

    def __init__(
        self, directory: Path, bundle: Bundle, paths: Sequence[Path], settings: Settings | None = None
    ) -> None:
        self.bundle, self.paths = bundle, [str(path) for path in paths]
        machine = {"model": bundle.directory, "tokens_per_batch": TOKENS, "precision": Precision.FP32}
        self.settings = replace(settings or Settings(), **machine)
        self.one, self.run = directory / "one", directory / "run"
        self.rules = BatchRules()

    async def score_at_once(self) -> Summary:
        paths = tuple(self.paths)
        plan = Plan(paths, self.settings, self.bundle, fake_devices(1), window=WINDOW, segment=SEGMENT)
        return await execute(plan, self.one, self.rules.scorer)

    def make_plan(self) -> RunPlan:
        """Return the plan of the shards, which is written into ``run``."""
        files, segments = list[PlannedFile](), list[PlannedSegment]()
        ids = b"".join(_read(self.paths, files, segments))
        plan = RunPlan(
            version=__version__,
            model=self.bundle.name,
            fingerprint=self.bundle.fingerprint,
            devices=choose(MACHINE)[0].kind,
            precision="fp32",
            tokens_per_batch=TOKENS,
            window=WINDOW,
            segment_bases=SEGMENT,
            settings=planned_settings(self.settings),
            flagged=[],
            is_utf8=_is_utf8(ids),
            files=tuple(files),
            segments=tuple(segments) or (PlannedSegment(0, 0, 0, 0, 0),),
        )
        write_plan(plan, self.run)
        return plan

    async def score_shards(self, count: int) -> list[ShardSummary]:
        """Score all *count* shards, the last one first."""
        self.make_plan()
        shards = (Shard(number, count) for number in reversed(range(count)))
        return [await self.score_shard(shard) for shard in shards]

    async def score_shard(self, shard: Shard) -> ShardSummary:
        return await run_shard(self.run, shard, MACHINE, make_scorer=self.rules.scorer)


def _read(paths: Sequence[str], files: list[PlannedFile], segments: list[PlannedSegment]) -> Iterator[bytes]:
    """Yield every id, and add what is in the files and where segments begin."""
    contig = bases = 0
    is_new = True
    for number, path in enumerate(paths):
        records = total = 0
        failure = None
        try:
            for record in read_contigs(path):
                if is_new:
                    segments.append(PlannedSegment(number, records, contig, 0, 0, SeekPoint()))
                    is_new, bases = False, 0
                yield record.id + b"\n"
                contig, records, total = contig + 1, records + 1, total + len(record.bases)
                bases += len(record.bases)
                last = segments[-1]
                segments[-1] = replace(last, records=last.records + 1, bases=bases)
                is_new = bases >= SEGMENT
        except InputError as error:
            failure = error.reason
        version = InputVersion.of(path)
        files.append(
            PlannedFile(
                path,
                path,
                version.fingerprint,
                Path(path).stat().st_size,
                records,
                total,
                kind_by_name(path),
                failure,
            )
        )


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def tables(directory: Path, *but: str) -> dict[str, bytes]:
    """Return the files in *directory* whose bytes depend on the inputs alone, but those named *but*."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and is_table(path.relative_to(directory)) and not {*but} & {*path.parts}
    }


def is_table(path: Path) -> bool:
    return path.parts[0] != SHARDS and path.parts[0][0] != "." and path.name not in _NO_TABLES


_NO_TABLES = frozenset(
    {
        *("run.sqlite3", "run.log", "run.lock", "progress.json", "plan.json", "merge.json", "summary.json"),
        *("report.html", "virnuc_mqc.json", "virnuc_statistics_mqc.json", "merged_features.partial"),
    }
)
