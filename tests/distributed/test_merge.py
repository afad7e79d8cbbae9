"""Merged tables are those of one machine, byte for byte; what cannot be merged is named, and nothing made."""

import gzip
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest
from running import predict, run
from sharded import Sharded, tables
from support import ROOT

from virnuc_async.distributed.merge import merge_shards
from virnuc_async.errors import UsageError
from virnuc_async.models.bundle import Bundle
from virnuc_async.settings import (
    CallRules,
    Format,
    Layout,
    Pairing,
    RegionRules,
    Settings,
    VerdictBy,
    ViralFasta,
)

PARTS = ("predictions.parquet", "contigs.parquet", "fragments.parquet")
REGIONS = RegionRules(open_score=0.3, close_score=0.2, min_length=500, min_contig=500, smoothing=0)
ALL = Settings(
    formats=tuple(Format),
    embeddings=True,
    calls=CallRules(),
    regions=REGIONS,
    viral_fasta=ViralFasta(),
    layout=Layout.VIRNUCPRO,
    threshold=0.4,
)


def write_fasta(path: Path, records: Sequence[tuple[str, int]], seed: int = 0) -> Path:
    """Write records of random bases, with these names and lengths."""
    random.seed(seed)
    text = "".join(f">{name}\n{''.join(random.choices('ACGT', k=length))}\n" for name, length in records)
    path.write_text(text)
    return path


def write_mates(directory: Path, pairs: int) -> list[Path]:
    """Write files of mates, each of many segments."""
    lengths = [150 + 37 * number % 400 for number in range(pairs)]
    return [
        write_fasta(
            directory / f"s_R{mate}.fa",
            [(f"r{number}/{mate}", length) for number, length in enumerate(lengths)],
            mate,
        )
        for mate in (1, 2)
    ]


def mixed_inputs(directory: Path) -> list[Path]:
    """Write inputs of which segments end within files and at their ends, and some have no record at all."""
    names = [("same", 1_500), ("same", 900), ("a\xe4", 700), ("none", 2), ("long", 6_000), ("z", 1_100)]
    empty = directory / "empty.fa"
    empty.write_bytes(b"")
    broken = directory / "broken.fa.gz"
    text = "".join(f">b{n}\n{'ACGTTGCAAT' * 60}\n" for n in range(40))
    broken.write_bytes(gzip.compress(text.encode(), 0)[:15_000])
    return [
        empty,
        write_fasta(directory / "first.fa", names),
        *write_mates(directory, 20),
        broken,
        empty.rename(directory / "empty_too.fa"),
        write_fasta(directory / "last.fa", [("same", 2_500), ("same", 400), ("", 300)], 9),
    ][1:]


@pytest.fixture(scope="module")
def scored(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Sharded:
    """Return a run in one piece, and in seven shards."""
    directory = tmp_path_factory.mktemp("scored")
    sharded = Sharded(directory, bundle, mixed_inputs(directory), ALL)
    anyio.run(sharded.score_at_once)
    anyio.run(sharded.score_shards, 7)
    return sharded


@pytest.fixture(scope="module")
def merged(scored: Sharded) -> Path:
    """Return where its shards were merged."""
    merge_shards(scored.run, scored.run.with_name("merged"), command=("virnuc-async", "merge", "a b"))
    return scored.run.with_name("merged")


def read_summary(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "summary.json").read_bytes())
    return found


def test_all_files_are_those_of_one_machine(scored: Sharded, merged: Path) -> None:
    found, expected = tables(merged, *PARTS), tables(scored.one, *PARTS)
    assert found == {name: text for name, text in expected.items() if name not in PARTS}
    # There is something in each.
    lines = {name: text.count(b"\n") for name, text in found.items()}
    assert lines["failed_files.txt"] == 1
    assert lines["pairs.tsv"] == 21
    assert lines["samples.tsv"] == 8
    assert min(lines[name] for name in ("regions.bed", "regions.gff3", "contig_calls.tsv")) > 2
    assert {"viral.fasta", "viral_R1.fasta", "viral_R2.fasta", "contigs.jsonl"} <= found.keys()
    assert {"first_merged/prediction_results.txt", "merged_features.pt"} <= found.keys()
    for name in ("virnuc_mqc.json", "virnuc_statistics_mqc.json"):
        assert (merged / name).read_bytes() == (scored.one / name).read_bytes()
    assert (merged / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("count", [1, 2, pytest.param(100, marks=pytest.mark.slow)])
async def test_it_does_not_matter_how_many_shards_there_are(
    count: int, scored: Sharded, merged: Path, tmp_path: Path
) -> None:
    other = Sharded(tmp_path, scored.bundle, [*map(Path, scored.paths)], ALL)
    await other.score_shards(count)
    summary = merge_shards(other.run)
    assert tables(other.run, *PARTS) == tables(merged, *PARTS)
    assert summary.counts == read_summary(merged)["counts"]


def test_shards_are_only_read_and_merging_them_again_gives_the_same(
    scored: Sharded, merged: Path, tmp_path: Path
) -> None:
    def state(directory: Path) -> dict[Path, tuple[int, int]]:
        stats = ((path, path.stat()) for path in sorted(directory.rglob("*")))
        return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats}

    def content(directory: Path) -> dict[str, bytes]:
        files = (path for path in directory.rglob("*") if path.is_file() and path.name != "merge.json")
        return {str(path.relative_to(directory)): path.read_bytes() for path in files}

    before, first = state(scored.run), content(merged)
    merge_shards(scored.run, merged, command=("virnuc-async", "merge", "a b"))
    assert state(scored.run) == before
    assert content(merged) == first


def test_parquet_is_a_directory_with_a_part_of_each_shard(scored: Sharded, merged: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    duckdb = pytest.importorskip("duckdb")
    for name in PARTS:
        parts = [path.name for path in sorted((merged / name).iterdir())]
        assert parts == [f"part-{number:05}.parquet" for number in range(7)]
        found, one = parquet.read_table(merged / name), parquet.read_table(scored.one / name)
        assert found.schema.remove_metadata() == one.schema.remove_metadata()
        assert found.to_pylist() == one.to_pylist()
        counted = duckdb.sql(f"SELECT count(*) FROM '{merged / name}/*.parquet'").fetchall()
        assert counted == [(len(one),)]


async def test_summary_has_the_devices_of_all_machines(scored: Sharded, tmp_path: Path) -> None:
    shutil.copytree(scored.run, tmp_path / "run")
    path = tmp_path / "run" / "shards" / "00001-of-00007" / "shard.json"
    known = json.loads(path.read_bytes())
    path.write_text(json.dumps(known | {"host": "another", "reproducible": False}))
    summary = merge_shards(tmp_path / "run")
    assert read_summary(tmp_path / "run") == summary.as_dict()
    assert len({device["host"] for device in summary.devices}) == len(summary.devices) == 2
    assert sum(device["orfs"] for device in summary.devices) == summary.counts["orfs"]
    assert not summary.reproducible


def test_summary_is_that_of_one_machine_but_for_the_time(scored: Sharded, merged: Path) -> None:
    one, found = read_summary(scored.one), read_summary(merged)
    same = {"settings", "bundle", "inputs", "counts", "finished", "versions", "reproducible"}
    assert {name: found[name] for name in same} == {name: one[name] for name in same}
    assert found["command"] == "virnuc-async merge 'a b'"
    shards = [json.loads(path.read_bytes()) for path in scored.run.glob("shards/*/shard.json")]
    for name in ("total", "load", "model"):
        assert found["seconds"][name] == round(sum(shard["seconds"][name] for shard in shards), 3)
    assert found["session"] == {
        "orfs": 0,
        "orfs_before": one["counts"]["orfs"],
        "batches": 0,
        "batches_before": one["counts"]["batches"],
    }
    schema = ROOT / "virnuc_async" / "outputs" / "schemas" / "summary.schema.json"
    jsonschema.validate(found, json.loads(schema.read_text()))


async def test_ids_that_are_not_utf8_make_binary_columns_in_every_shard(
    tmp_path: Path, bundle: Bundle
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    source = tmp_path / "in.fa"
    source.write_bytes(b"".join(b">%s\n%s\n" % (id, b"ACGTTGCAAC" * 200) for id in (b"a", b"b", b"\xff")))
    sharded = Sharded(tmp_path, bundle, [source], Settings(formats=(Format.PARQUET, Format.TSV)))
    await sharded.score_at_once()
    await sharded.score_shards(3)
    merge_shards(sharded.run)
    assert tables(sharded.run, *PARTS) == tables(sharded.one, *PARTS)
    assert str(parquet.read_table(sharded.run / "contigs.parquet").schema.field("contig").type) == "binary"
    assert (sharded.run / "contigs.tsv").read_bytes().splitlines()[-1].startswith(b"\xff\t")


async def test_inputs_without_records_give_tables_of_a_header(tmp_path: Path, bundle: Bundle) -> None:
    empty = [tmp_path / "empty.fa", tmp_path / "also.fa"]
    for path in empty:
        path.write_bytes(b"")
    sharded = Sharded(tmp_path, bundle, empty, ALL)
    one = await sharded.score_at_once()
    await sharded.score_shards(3)
    summary = merge_shards(sharded.run)
    assert tables(sharded.run, *PARTS) == tables(sharded.one, *PARTS)
    assert summary.counts == one.counts
    assert (sharded.run / "contigs.tsv").read_bytes().count(b"\n") == 1


def test_the_commands_plan_predict_and_merge(tmp_path: Path) -> None:
    inputs = [write_fasta(tmp_path / "a.fa", [("a", 1_200), ("b", 900)]), *write_mates(tmp_path, 4)]
    assert predict(*inputs, tmp_path / "one").code == 0
    assert run("plan", *inputs, tmp_path / "run", "--devices", "cpu").code == 0
    for number in (1, 0):
        shard = ("--plan", tmp_path / "run", "--shard", f"{number}/2")
        assert run("predict", *shard, "--devices", "cpu").code == 0
        ended = run("merge", tmp_path / "run")
        assert ended.code == number
    assert "shard 0/2: missing" not in ended.err
    assert tables(tmp_path / "run") == tables(tmp_path / "one")


async def test_viral_sequences_may_be_anywhere(scored: Sharded, merged: Path, tmp_path: Path) -> None:
    settings = Settings(viral_fasta=ViralFasta(str(tmp_path / "found.fa.gz")), threshold=0.4, report=False)
    sharded = Sharded(tmp_path, scored.bundle, [*map(Path, scored.paths)], settings)
    await sharded.score_shards(2)
    for _ in range(2):  # its own file is replaced
        merge_shards(sharded.run)
        text = gzip.decompress((tmp_path / "found.fa.gz").read_bytes())
        assert text == (merged / "viral.fasta").read_bytes()
    (tmp_path / "found.fa.gz").write_bytes(b"of somebody else")
    with pytest.raises(UsageError, match=r"found\.fa\.gz is there already"):
        merge_shards(sharded.run)


async def test_short_records_and_files_that_should_be_interleaved(tmp_path: Path, bundle: Bundle) -> None:
    reads = [(f"r{number // 2}/{number % 2 + 1}", 150 + 61 * number % 500) for number in range(30)]
    inputs = [write_fasta(tmp_path / "reads.fa", reads), *mixed_inputs(tmp_path)]
    settings = Settings(min_length=400, pairs=Pairing.INTERLEAVED, verdict_by=VerdictBy.MEAN, report=False)
    sharded = Sharded(tmp_path, bundle, inputs, settings)
    one = await sharded.score_at_once()
    await sharded.score_shards(6)
    summary = merge_shards(sharded.run)
    assert tables(sharded.run) == tables(sharded.one)
    assert summary.counts == one.counts
    assert summary.counts["pairs"] == 15
    assert summary.counts["failures"] > 1
    assert min(summary.counts[f"short_{kind}"] for kind in ("contigs", "pairs")) > 0
