"""
A long run at full speed, in which memory, open files and threads must not grow.

One run of the real pipeline reads standard input that ends after --seconds, while a thread watches
the process. Caches fill in the first half; what grows after that is a leak. The exit code is 1 if
the median of the last quarter is more than 5 % above that of the third in memory, or above it at all
in files or threads.

    python scripts/soak.py --seconds 3600 --output docs/benchmarks/soak.json
    python scripts/soak.py --seconds 600 --simulated 8      # only the orchestrator and the store
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from measured import facts, save, table
from samples import KINDS, Source, endless
from simulate import Busy, Model, Simulated

from virnuc_async.engine.devices import Device
from virnuc_async.models.bundle import find
from virnuc_async.outputs.summary import Summary
from virnuc_async.pipeline import execute, run_pipeline
from virnuc_async.runs.plan import Plan
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.settings import Settings

_MEMORY_TOLERANCE = 1.05  # times the third quarter's median: allocators vary by that much
_WATCHED = ("memory_MB", "files", "threads")


class Stream(io.RawIOBase):
    """Reads *blocks* until *seconds* have passed."""

    def __init__(self, blocks: Iterator[bytes], seconds: float) -> None:
        self._blocks, self._rest = blocks, memoryview(b"")
        self._end = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            # The stream ends between two blocks, so that the last record is complete.
            self._rest = memoryview(next(self._blocks) if time.monotonic() < self._end else b"")
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


@dataclass
class Watch:
    """Measures this process every *every* seconds."""

    every: float
    rows: list[dict[str, float]] = field(default_factory=list)
    finished: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        began = time.monotonic()
        while not self.finished.wait(self.every):
            row = {"seconds": round(time.monotonic() - began), "memory_MB": _anonymous_megabytes()}
            row |= {"files": len(os.listdir("/proc/self/fd")), "threads": threading.active_count()}
            self.rows.append(row)

    def quarters(self) -> list[dict[str, Any]]:
        size = len(self.rows) // 4
        return [_describe(number, self.rows[number * size : (number + 1) * size]) for number in range(4)]


def _describe(number: int, rows: list[dict[str, float]]) -> dict[str, Any]:
    description: dict[str, Any] = {"quarter": number + 1}
    for name in _WATCHED:
        values = [row[name] for row in rows]
        description |= {name: statistics.median(values), f"{name}_most": max(values)}
    return description


def _anonymous_megabytes() -> float:
    """Return the memory of the process, without the files that it maps, such as a model's weights."""
    status = Path("/proc/self/status").read_text("ascii")
    return round(int(status.split("RssAnon:")[1].split()[0]) / 1024, 1)


def _is_flat(quarters: list[dict[str, Any]]) -> bool:
    third, last = quarters[2:]
    return (
        last["memory_MB"] <= _MEMORY_TOLERANCE * third["memory_MB"]
        and last["files"] <= third["files"]
        and last["threads"] <= third["threads"]
    )


async def _real(options: argparse.Namespace, out: Path, stdin: io.BufferedReader) -> Summary:
    settings = Settings(model=options.model, devices=tuple(options.devices.split(",")))
    return await run_pipeline(["-"], out, settings, stdin=stdin)


async def _simulated(options: argparse.Namespace, out: Path, stdin: io.BufferedReader) -> Summary:
    model, busy = Model(rate=30_000, overhead=0.002, host=0.0005, depth=2), Busy()
    devices = tuple(Device(f"sim:{n}", "simulated", 1 << 30) for n in range(options.simulated))
    plan = Plan(("-",), Settings(tokens_per_batch=16_384), find(options.model), devices)
    make = lambda device, *_: BoundedSimulated(device.name, model, busy)  # noqa: E731
    return await execute(plan, out, make, read=partial(read_contigs, stdin=stdin))


class BoundedSimulated(Simulated):
    """A simulated device that forgets its batches: a record of all of them would grow."""

    async def score(self, batch: Any) -> Any:
        scores = await super().score(batch)
        del self._visits[:-2]
        return scores


def main() -> int:
    """Run the soak test, print its result, and return the exit code."""
    options = _parser().parse_args()
    blocks = endless(Source.read(options.source), options.kind)
    watch = Watch(options.every)
    thread = threading.Thread(target=watch.run, daemon=True)
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        stdin = io.BufferedReader(Stream(blocks, options.seconds))
        thread.start()
        run = _simulated if options.simulated else _real
        summary = anyio.run(partial(run, options, Path(work) / "out", stdin))
        watch.finished.set()
        thread.join()
    quarters = watch.quarters()
    print(table(quarters))
    rate = summary.counts["orfs"] / summary.seconds["total"]
    print(f"{summary.counts['orfs']:,} ORFs, {rate:,.0f} a second; flat: {_is_flat(quarters)}")
    result = {"counts": summary.counts, "seconds": summary.seconds, "quarters": quarters, "rows": watch.rows}
    if options.output:
        save(options.output, facts(sys.argv[1:]) | {"flat": _is_flat(quarters)} | result)
    else:
        print(json.dumps(summary.counts))
    return 0 if _is_flat(quarters) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    root = Path(__file__).parents[1]
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--every", type=float, default=10, help="seconds between two measurements")
    parser.add_argument("--kind", choices=KINDS, default="mixed")
    parser.add_argument("--source", type=Path, default=root / "docs" / "examples" / "metagenome.fa.gz")
    parser.add_argument("--model", default="tiny-500")
    parser.add_argument("--devices", default="cpu,cpu")
    parser.add_argument("--simulated", type=int, default=0, metavar="N", help="N simulated devices instead")
    parser.add_argument("--work", type=Path, help="directory of the run, in which the store grows")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
