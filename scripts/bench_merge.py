"""
Measure what merging the shards of a run takes, beyond writing the bytes: time for each ORF, and memory.

The shards are made up: reads of 150 bases with two ORFs each, in stores and row files as shards write them.
"""

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

import numpy as np
from measured import facts, save, table

from virnuc_async.distributed.plan import (
    SHARDS,
    PlannedFile,
    PlannedSegment,
    RunPlan,
    Shard,
    read_plan,
    write_plan,
)
from virnuc_async.distributed.planned_settings import planned_settings
from virnuc_async.fileio import Directory
from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.outputs.options import OutputOptions
from virnuc_async.outputs.output_files import FILES, FinishedRun, Merging
from virnuc_async.outputs.samples import count_records
from virnuc_async.outputs.shard_file import RowFile, ShardFile, overview_chunks
from virnuc_async.outputs.verdicts import VERDICT
from virnuc_async.outputs.written import ModelFacts
from virnuc_async.runs.blocks import CONTIG, SCORE
from virnuc_async.runs.database import create_tables, values_of
from virnuc_async.runs.output_directory import OVERVIEW_FILE, STORE
from virnuc_async.runs.read_only import ReadOnlyDatabase
from virnuc_async.runs.reader import RunReader
from virnuc_async.runs.rows import BatchRow, FileEnd, MetaRow, WindowRow
from virnuc_async.runs.store_rows import StoreRows
from virnuc_async.runs.totals import add_up
from virnuc_async.sequences.inputs import READS
from virnuc_async.sequences.segments import first_orf, first_window
from virnuc_async.settings import Settings

BASES, ORFS = 150, 2  # of a read
WINDOW, BATCH = 4096, 60  # ORFs: a batch has about 3,072 tokens
# What the system says of memory for a child counts its parent's as well: the process looks itself.
_MERGE = """
import json, re, sys, time
from pathlib import Path
from virnuc_async.cli.main import main
assert main(sys.argv[1:]) == 0
memory = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps([time.process_time(), 1024 * int(memory[1])]))
"""
PATH = "/data/project/SRR12345678.fastq.gz"


def make_run(run: Path, orfs: int, shards: int) -> None:
    """Write the plan of a run of about *orfs* ORFs, and its *shards*."""
    records = orfs // ORFS // shards
    plan = RunPlan(
        version="0",
        model="made up",
        fingerprint="0" * 16,
        devices="made up",
        precision="fp32",
        tokens_per_batch=3072,
        window=WINDOW,
        segment_bases=records * BASES,
        settings=planned_settings(Settings()),
        flagged=[],
        is_utf8=True,
        files=(PlannedFile(PATH, PATH, None, 0, records * shards, records * shards * BASES, READS, None),),
        segments=tuple(
            PlannedSegment(0, at * records, at * records, records, records * BASES) for at in range(shards)
        ),
    )
    write_plan(plan, run)
    for number in range(shards):
        _make_shard(run, plan, Shard(number, shards))


def _make_shard(run: Path, plan: RunPlan, shard: Shard) -> None:
    directory = run / SHARDS / shard.name
    directory.mkdir(parents=True)
    span = plan.span(shard)
    assert span is not None
    identity = {"inputs": [[PATH, None]], "span": span.to_json()}
    windows, lists = zip(*_windows(plan, shard), strict=True)
    batches = [batch for each in lists for batch in each]
    totals, _ = add_up(windows, batches, shard.number)
    meta = {"identity": identity, "paths": [PATH], "finished": totals.to_json(), "kinds": [READS]}
    with closing(sqlite3.connect(directory / STORE, isolation_level=None)) as store:
        store.execute("PRAGMA synchronous=OFF")
        create_tables(store)
        store.execute("BEGIN")
        for name, rows in (
            ("run", [MetaRow(key, json.dumps(value)).encode() for key, value in meta.items()]),
            ("windows", [window.encode() for window in windows]),
            ("batches", [batch.encode() for batch in batches]),
        ):
            store.executemany(f"INSERT INTO {name} {values_of(rows[0])}", rows)
        store.execute("COMMIT")
    with Directory(directory) as own, closing(ReadOnlyDatabase(directory, own)) as database:
        options = OutputOptions()
        made = FinishedRun(RunReader(StoreRows(database)), options, 500, VerdictRule())
        made.is_utf8 = True
        files = dict(_row_files(made, directory))
        ShardFile(
            plan=plan.digest,
            shard=shard,
            command="",
            model=ModelFacts(500, None, name="made up"),
            width=3328,
            version="0",
            totals=totals,
            verdicts=dict(made.contigs),
            tally=count_records(made.reader, lambda block: made.verdicts(block)[VERDICT]),
            failures={},
            devices=[],
            host="made up",
            seconds={"total": 0.0, "load": 0.0, "model": 0.0},
            versions={"python": "", "torch": ""},
            reproducible=True,
            files=files,
        ).write(own)


def _windows(plan: RunPlan, shard: Shard) -> Iterator[tuple[WindowRow, list[BatchRow]]]:
    rng = np.random.default_rng(shard.number)
    segment, step = plan.segments[shard.number], WINDOW // ORFS
    for number, begin in enumerate(range(0, segment.records, step)):
        count = min(step, segment.records - begin)
        first = segment.contig + begin
        contigs = np.zeros(count, CONTIG)
        contigs["number"], contigs["length"], contigs["fragments"] = np.arange(first, first + count), BASES, 1
        ids = b"".join(b"SRR12345678.%d/1\n" % (read + 1) for read in range(first, first + count))
        scores = np.zeros(count * ORFS, SCORE)
        scores["orf"] = np.arange(len(scores)) + first_orf(shard.number) + begin * ORFS
        scores["contig"], scores["fragment"] = np.repeat(contigs["number"], ORFS), 1
        scores["frame"] = np.tile([0, 3], count)
        scores["virus"] = rng.beta(1, 8, len(scores)).astype(np.float32)
        scores["others"] = 1 - scores["virus"]
        is_last = first + count == plan.records
        ends = (FileEnd(0, plan.records, None),) if is_last else ()
        window = first_window(shard.number) + number
        row = WindowRow(window, int(scores["orf"][0]), len(scores), bytes(32), contigs, ids, ends)
        yield row, list(_batches(window, scores[rng.permutation(len(scores))]))


def _batches(window: int, scores: np.ndarray) -> Iterator[BatchRow]:
    for number, begin in enumerate(range(0, len(scores), BATCH)):
        own = scores[begin : begin + BATCH]
        text = own.tobytes()
        yield BatchRow(window, number, "", "cuda:0", len(own), 3072, 0.01, len(own), 0, (), text, b"")


def _row_files(run: FinishedRun, directory: Path) -> Iterator[tuple[str, RowFile]]:
    for file in FILES:
        if file.merging is Merging.ANEW or not file.is_wanted(run):
            continue
        checksum = size = 0
        with open(directory / file.name, "wb") as opened:
            for chunk in file.chunks(run):
                opened.write(chunk)
                size, checksum = size + len(chunk), crc32(chunk, checksum)
        yield file.name, RowFile(size, checksum)
    content = b"".join(overview_chunks(run.overview))
    (directory / OVERVIEW_FILE).write_bytes(content)
    yield OVERVIEW_FILE, RowFile(len(content), crc32(content))


def merge(run: Path, out: Path) -> tuple[float, float, int]:
    """Merge a run with the command; return its seconds, those of the CPU, and bytes of memory at most."""
    command = [sys.executable, "-c", _MERGE, "merge", str(run), str(out), "--quiet"]
    began = time.perf_counter()
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    took, (cpu, memory) = time.perf_counter() - began, json.loads(printed)
    return took, cpu, memory


def copy(out: Path, to: Path) -> tuple[float, int]:
    """Copy all files of *out*, and return the seconds and bytes of this: what writing alone takes."""
    began, size = time.perf_counter(), 0
    to.mkdir()
    for path in out.iterdir():
        if path.is_file():
            shutil.copyfile(path, to / path.name)
            size += path.stat().st_size
            file = os.open(to / path.name, os.O_RDONLY)
            os.fsync(file)
            os.close(file)
    return time.perf_counter() - began, size


def measure(place: Path, orfs: int, shards: int) -> dict[str, Any]:
    """Return what merging a run of so many *orfs* takes."""
    run, out = place / "run", place / "out"
    make_run(run, orfs, shards)
    seconds, cpu, memory = merge(run, out)
    copied, size = copy(out, place / "copy")
    count = ORFS * read_plan(run).records
    return {
        "ORFs": count,
        "shards": shards,
        "bytes written": size,
        "merged in, s": round(seconds, 2),
        "CPU, s": round(cpu, 2),
        "copied in, s": round(copied, 2),
        "us an ORF beyond copying": round((seconds - copied) / count * 1e6, 3),
        "CPU us an ORF": round(cpu / count * 1e6, 3),
        "bytes of memory": memory,
    }


def main(arguments: list[str]) -> None:
    """Measure runs of several sizes, and print or write what they take."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orfs", type=float, nargs="+", default=[1e6, 1e7])
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--directory", type=Path, help="where runs are made (default: a temporary one)")
    parser.add_argument("--output", type=Path, help="write JSON there")
    options = parser.parse_args(arguments)
    results = []
    for orfs in options.orfs:
        for shards in options.shards:
            with TemporaryDirectory(dir=options.directory) as place:
                results.append(measure(Path(place), int(orfs), shards))
                print(json.dumps(results[-1]), file=sys.stderr)
    print(table(results))
    if options.output:
        save(options.output, facts(arguments) | {"results": results})


if __name__ == "__main__":
    main(sys.argv[1:])
