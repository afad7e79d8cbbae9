"""
Measure what a shard costs beyond the scores of its ORFs: to open it, and to end it; its files; and its plan.

One input is planned, and done in few long shards and in many short ones, on a scorer that takes no time. The
line through both is the cost of a shard and of an ORF.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import anyio
from bench_storage import Instant
from measured import facts, save, table
from samples import Source, write

from virnuc_async.distributed.plan import PLAN, SHARDS, RunPlan, Shard
from virnuc_async.distributed.planning import make_plan
from virnuc_async.distributed.shard import run_shard
from virnuc_async.engine.devices import Device
from virnuc_async.runs.output_directory import STORE
from virnuc_async.settings import Settings


def main(arguments: list[str]) -> None:
    """Measure shards of each length, print what one costs, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--megabases", type=float, default=16.0, help="of input, in reads")
    add("--segments", type=int, default=32)
    add("--shards", type=lambda text: [int(word) for word in text.split(",")], default=[4, 32])
    add("--fasta", type=Path, default=Path("docs/examples/metagenome.fa.gz"))
    add("--work", type=Path, help="where input and runs are written (default: the temporary directory)")
    add("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    record = facts(arguments)
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        path = Path(directory) / "in.fa"
        write(path, Source.read(options.fasta), "reads", int(options.megabases * 1e6), 1)
        rows = [anyio.run(measure, path, count, options) for count in options.shards]
    print(table(rows))
    found = _costs(rows[0], rows[-1])
    print(table([found]))
    if options.output:
        save(options.output, record | {"rows": rows, "costs": found})


async def measure(path: Path, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return what *count* shards of the records in *path* take, in the median."""
    run = path.parent / f"run {count}"
    size = int(options.megabases * 1e6 / options.segments)
    settings = Settings(devices=("cpu",))
    plan = await make_plan([path], run, settings, segment_bases=size)
    done = [await _shard(run, Shard(number, count), settings) for number in range(count)]
    orfs = sum(shard["ORFs"] for shard in done)
    return {
        "shards": count,
        "ORFs a shard": median(shard["ORFs"] for shard in done),
        "s a shard": median(shard["seconds"] for shard in done),
        "CPU s a shard": median(shard["CPU"] for shard in done),
        "files a shard": max(shard["files"] for shard in done),
        "rows, bytes/ORF": sum(shard["row bytes"] for shard in done) / orfs,
        "store, bytes/ORF": sum(shard["store bytes"] for shard in done) / orfs,
        "plan, bytes a segment": _plan_bytes(run, plan),
    }


def _scorer(device: Device, *_: Any) -> Instant:
    return Instant(device)


async def _shard(run: Path, shard: Shard, settings: Settings) -> dict[str, float]:
    began, computed = time.perf_counter(), time.process_time()
    summary = await run_shard(run, shard, settings, make_scorer=_scorer)
    took = {"seconds": time.perf_counter() - began, "CPU": time.process_time() - computed}
    sizes = {file.name: file.stat().st_size for file in (run / SHARDS / shard.name).iterdir()}
    own = {name for name in sizes if name.endswith((".txt", ".csv", ".tsv", ".parquet"))}
    return took | {
        "ORFs": summary.counts["orfs"],
        "files": len(sizes),
        "row bytes": sum(sizes[name] for name in own),
        "store bytes": sizes[STORE],
    }


def _plan_bytes(run: Path, plan: RunPlan) -> float:
    """Return the bytes of plan.json for each segment; what is said once, of the settings, is among them."""
    return (run / PLAN).stat().st_size / len(plan.segments)


def _costs(long: dict[str, Any], short: dict[str, Any]) -> dict[str, float]:
    """Return the cost of a shard and of an ORF, by the line through both."""
    found = {}
    for name in ("s a shard", "CPU s a shard"):
        slope = (long[name] - short[name]) / (long["ORFs a shard"] - short["ORFs a shard"])
        unit = name.partition(" a ")[0]
        found[f"{unit} of each shard"] = short[name] - slope * short["ORFs a shard"]
        found[f"{unit.replace('s', 'us')} of each ORF"] = 1e6 * slope
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
