"""Files that people read: written whole, or again."""

import asyncio
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import Rules, fake_devices
from harness import PipelineHarness
from support import TABLES, read_table

from virnuc_async.log import PROGRESS, logger
from virnuc_async.models.bundle import Bundle
from virnuc_async.outputs import writer
from virnuc_async.outputs.columns import Chunks
from virnuc_async.outputs.output_files import FinishedRun, OutputFile
from virnuc_async.pipeline import execute
from virnuc_async.runs.plan import Plan
from virnuc_async.runs.progress import Counts


async def test_it_is_said_which_file_is_written(
    bench: PipelineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[Counts] = []
    seen: list[str] = []

    def watched(file: OutputFile) -> OutputFile:
        def chunks(run: FinishedRun) -> Chunks:
            seen.append(f"{file.name}: {counts[-1].status}, {counts[-1].state}")
            yield from file.chunks(run)

        return file._replace(chunks=chunks)

    monkeypatch.setattr(writer, "FILES", [watched(file) for file in writer.FILES])
    sink = logger.add(
        lambda line: counts.append(line.record["extra"]["counts"]),
        filter=lambda record: "counts" in record["extra"],
        level=PROGRESS,
    )
    await bench.run()
    logger.remove(sink)
    assert sorted(seen) == sorted(f"{name}: writing {name}, writing" for name in TABLES)


async def test_cancelled_while_a_table_is_written(
    bench: PipelineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.run(out="calm")
    begun, (first, *others) = threading.Event(), writer.FILES

    def endless(run: FinishedRun) -> Chunks:
        for part in first.chunks(run):
            begun.set()
            while True:
                yield part

    monkeypatch.setattr(writer, "FILES", (first._replace(chunks=endless), *others))
    task = asyncio.create_task(bench.run())
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    out = bench.out / "out"
    kept = {"run.sqlite3", "run.log", "summary.json", "progress.json"}
    assert {path.name for path in out.iterdir()} == kept
    assert json.loads((out / "summary.json").read_bytes())["finished"] is False
    rules = Rules()
    summary = await bench.run(rules)
    assert summary.finished
    assert not rules.seen
    assert bench.tables() == bench.tables("calm")


@pytest.mark.parametrize("change", ["unlink", "shorten", "edit"])
@pytest.mark.parametrize("name", [*TABLES, "summary.json"])
async def test_what_a_finished_run_has_lost_is_written_again(
    name: str, change: str, bench: PipelineHarness
) -> None:
    await bench.run()
    path = bench.out / "out" / name
    content = path.read_bytes()
    if change == "unlink":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if change == "shorten" else content.swapcase())
    rules = Rules()
    summary = await bench.run(rules)
    assert not rules.seen
    assert summary.finished
    if name in TABLES:
        assert path.read_bytes() == content
    else:
        assert json.loads(path.read_bytes())["counts"] == json.loads(content)["counts"]


async def test_a_summary_that_was_damaged_under_its_date_is_written_again(bench: PipelineHarness) -> None:
    await bench.run()
    path = bench.out / "out" / "summary.json"
    content, facts = path.read_bytes(), path.stat()
    path.write_bytes(content.replace(b'"counts"', b'"c\xffunts"'))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    rules = Rules()
    summary = await bench.run(rules)
    assert not rules.seen
    assert json.loads(path.read_bytes()) == summary.as_dict()


async def test_records_without_orfs_are_kept(bench: PipelineHarness, tmp_path: Path) -> None:
    path = tmp_path / "none.fa"
    path.write_bytes(b">empty\n>short\nAC\n>stops\nTAACTAACTAATTAGTTAGTTA\n")
    plan = Plan((str(path),), replace(bench.settings, embeddings=True), bench.bundle, fake_devices(1))
    summary = await execute(plan, tmp_path / "out", Rules().scorer)
    rows = read_table(tmp_path / "out" / "contigs.tsv")[1:]
    assert [(row[0], row[2], row[3], row[9]) for row in rows] == [
        ("empty", "0", "0", "no_orf"),
        ("short", "2", "1", "no_orf"),
        ("stops", "22", "1", "no_orf"),
    ]
    assert (summary.counts["orfs"], summary.counts["failures"]) == (0, 0)
    features = torch.load(tmp_path / "out" / "merged_features.pt", weights_only=True)
    assert (features["ids"], tuple(features["data"].shape)) == ([], (0, 160))


async def test_summary_says_what_happened(bench: PipelineHarness, bundle: Bundle) -> None:
    summary = await bench.run(devices=2)
    assert json.loads((bench.out / "out" / "summary.json").read_text()) == summary.as_dict()
    orfs = bench.orfs()
    assert summary.counts["orfs"] == len(orfs) == sum(device["orfs"] for device in summary.devices)
    assert sum(device["tokens"] for device in summary.devices) == sum(orfs.values())
    assert summary.bundle == {"name": bundle.name, "fingerprint": bundle.fingerprint}
    assert summary.seconds["model"] == 0.5 * summary.counts["batches"]
