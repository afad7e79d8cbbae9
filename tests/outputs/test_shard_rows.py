"""What a shard writes: rows of its own records, and what is known of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import pytest
from fakes import Rules, fake_devices
from harness import PipelineHarness

from virnuc_async.fileio import Directory
from virnuc_async.outputs.shard_file import ShardFile, read_shard_file
from virnuc_async.outputs.shard_rows import ShardPart, ShardRows, ShardSummary
from virnuc_async.runs.input_windows import InputFiles
from virnuc_async.runs.plan import Plan
from virnuc_async.runs.session import RunSession
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.settings import Format, RegionRules

PART = ShardPart("digest", (3, 100), is_utf8=True)
ROWS = (
    *("prediction_results.txt", "prediction_results_highestscore.csv", "contigs.tsv", "fragments.tsv"),
    *("predictions.jsonl", "contigs.jsonl", "fragments.jsonl", "regions.bed", "regions.gff3"),
)


async def write_rows(bench: PipelineHarness, out: str, part: ShardPart = PART) -> ShardSummary:
    paths = (str(bench.source),) * bench.copies
    plan = Plan(paths, bench.settings, bench.bundle, fake_devices(1), bench.window)
    async with RunSession.open(plan, bench.out / out, InputFiles(read_contigs)) as session:
        return await ShardRows(part, session, "predict").write_all()


async def as_shard(bench: PipelineHarness, part: ShardPart = PART) -> ShardSummary:
    """Write the rows of a run into ``shard``; its own files are in ``out``."""
    await bench.run(out="shard")
    (bench.out / "out").mkdir()
    for path in (bench.out / "shard").iterdir():
        if not path.name.startswith("run."):
            path.rename(bench.out / "out" / path.name)
    return await write_rows(bench, "shard", part)


def known(out: Path) -> ShardFile:
    with Directory(out) as directory:
        found = read_shard_file(directory)
    assert found is not None
    return found


async def test_rows_are_those_of_the_run_and_there_is_nothing_of_it_as_a_whole(
    bench: PipelineHarness,
) -> None:
    rules = RegionRules(open_score=0.3, close_score=0.2, min_length=500, min_contig=500)
    bench.settings = replace(bench.settings, formats=(Format.TSV, Format.JSONL), regions=rules)
    summary = await as_shard(bench)
    out, shard = bench.out / "out", bench.out / "shard"
    assert {name: (shard / name).read_bytes() for name in ROWS} == {
        name: (out / name).read_bytes() for name in ROWS
    }
    others = {path.name for path in shard.iterdir()} - set(ROWS)
    assert others == {"run.sqlite3", "run.log", "shard.json", "overview.npz"}
    of_run = json.loads((out / "summary.json").read_bytes())
    assert summary.counts.items() <= of_run["counts"].items()
    assert (summary.shard, summary.failures, summary.reproducible) == ((3, 100), 0, True)
    assert summary.seconds["model"] == of_run["seconds"]["model"]


async def test_what_is_known_of_it(bench: PipelineHarness) -> None:
    bench.copies = 2
    summary = await as_shard(bench)
    found = known(bench.out / "shard")
    assert (found.plan, found.shard, found.command) == ("digest", (3, 100), "predict")
    of_run = json.loads((bench.out / "out" / "summary.json").read_bytes())
    assert found.verdicts["virus"] == of_run["counts"]["viral_contigs"]
    assert sum(found.verdicts.values()) == of_run["counts"]["contigs"] == summary.counts["contigs"]
    assert [name["name"] for name in found.devices] == [name["name"] for name in of_run["devices"]]
    lines = (bench.out / "out" / "samples.tsv").read_text().splitlines()[1:3]
    assert [[str(n) for n in found.tally[file]] for file in (0, 1)] == [
        line.split("\t")[3:-1] for line in lines
    ]
    for name, file in found.files.items():
        content = (bench.out / "shard" / name).read_bytes()
        assert (file.bytes, file.crc32) == (len(content), crc32(content))
    assert ShardFile.from_json(json.loads(json.dumps(found.to_json()))).to_json() == found.to_json()


async def test_failures_are_counted_by_their_files(bench: PipelineHarness) -> None:
    broken = bench.out / "broken.fa"
    broken.write_bytes(bench.source.read_bytes() + b">x\n!\n")
    bench.source = broken
    summary = await as_shard(bench)
    assert summary.failures == 1
    assert known(bench.out / "shard").failures == {0: 1}
    lists = [(bench.out / out / "failed_files.txt").read_bytes() for out in ("out", "shard")]
    assert lists[0] == lists[1]


async def test_a_finished_shard_is_left_as_it_is(bench: PipelineHarness) -> None:
    first = await as_shard(bench)
    shard = bench.out / "shard"
    times = {path.name: path.stat().st_mtime_ns for path in shard.iterdir() if path.name != "run.log"}
    assert await write_rows(bench, "shard") == first
    assert times == {path.name: path.stat().st_mtime_ns for path in shard.iterdir() if path.name != "run.log"}


@pytest.mark.parametrize(
    "change",
    [
        lambda shard: (shard / "contigs.tsv").write_bytes(b"x"),
        lambda shard: (shard / "contigs.tsv").unlink(),
        lambda shard: (shard / "shard.json").write_bytes(b"{"),
        lambda shard: (shard / "shard.json").write_bytes(b'{"format": 7}'),
        lambda shard: (shard / "shard.json").unlink(),
    ],
    ids=["changed", "removed", "damaged", "other version", "unfinished"],
)
async def test_what_is_not_as_it_was_written_is_written_again(
    bench: PipelineHarness, change: Callable[[Path], object]
) -> None:
    await as_shard(bench)
    shard = bench.out / "shard"
    before, facts = (shard / "contigs.tsv").read_bytes(), known(shard)
    change(shard)
    await write_rows(bench, "shard")
    assert (shard / "contigs.tsv").read_bytes() == before
    assert known(shard).files == facts.files


async def test_rows_of_another_plan_are_written_again_and_what_is_not_wanted_is_removed(
    bench: PipelineHarness,
) -> None:
    bench.settings = replace(bench.settings, formats=(Format.TSV, Format.JSONL))
    await as_shard(bench)
    bench.settings = replace(bench.settings, formats=(Format.TSV,))
    await write_rows(bench, "shard", replace(PART, plan="another"))
    assert known(bench.out / "shard").plan == "another"
    assert not list((bench.out / "shard").glob("*.jsonl"))


@pytest.mark.parametrize("is_utf8", [True, False])
async def test_the_plan_says_whether_text_is_utf8(bench: PipelineHarness, is_utf8: bool) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    bench.settings = replace(bench.settings, formats=(Format.PARQUET,))
    await as_shard(bench, replace(PART, is_utf8=is_utf8))
    schema = parquet.read_schema(bench.out / "shard" / "contigs.parquet")
    assert str(schema.field("contig").type) == ("string" if is_utf8 else "binary")
    assert not (bench.out / "shard" / "contigs.tsv").exists()


async def test_a_batch_that_was_split_is_known(bench: PipelineHarness) -> None:
    await bench.run(Rules(room=150), out="shard")
    assert not (await write_rows(bench, "shard")).reproducible
