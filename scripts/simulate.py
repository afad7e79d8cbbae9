"""
How many devices one process can feed: the real orchestrator on simulated devices.

Everything is real but the networks: reading, cutting, translation, tokenization, packing, the
store and the tables. Instead of computing, a device's thread sleeps, without the interpreter's
lock, for as long as a device of the stated rate would compute: tokens / rate + overhead. Nothing
here says how fast a network is; it says what the host can keep busy.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from measured import facts, save, table
from numpy.typing import NDArray
from samples import KINDS, Source, write

from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Scores
from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.models.bundle import Bundle, find
from virnuc_async.networks.packing import pack
from virnuc_async.outputs.summary import Summary
from virnuc_async.pipeline import execute
from virnuc_async.runs.plan import Plan
from virnuc_async.runs.store import Store
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.sequences.windows import WINDOW_ORFS, Window, form_windows
from virnuc_async.settings import Precision, Settings

_SAMPLE_BASES = 1_000_000  # read to learn how many tokens there are to a base
_FRONT_WINDOWS = 6  # timed without devices
_NEARLY_ALL = 0.97  # of its time: a device that computes so much of it is what limits


@dataclass(frozen=True, slots=True)
class Model:
    """How long a batch takes on a simulated device."""

    rate: float  # residue tokens per second
    overhead: float  # seconds per batch on the device
    host: float  # seconds per batch in which the host holds the interpreter's lock
    depth: int  # batches that a device takes at once

    def seconds(self, batch: Batch) -> float:
        """Give the time that the device computes."""
        return batch.tokens / self.rate + self.overhead


@dataclass(slots=True)
class Visit:
    """One batch on a device, by the clock."""

    asked: float  # the orchestrator could have given it a batch
    called: float  # it did
    begun: float = 0.0  # the device computed
    ended: float = 0.0


@dataclass(slots=True)
class Busy:
    """What every device did, batch by batch."""

    visits: dict[str, list[Visit]] = field(default_factory=dict)

    def ideal(self) -> float:
        """Give the device seconds of the whole run."""
        return sum(visit.ended - visit.begun for visits in self.visits.values() for visit in visits)

    def begin(self) -> float:
        return min(visits[0].begun for visits in self.visits.values() if visits)

    def end(self) -> float:
        return max(visits[-1].ended for visits in self.visits.values() if visits)

    def idle(self) -> NDArray[np.float64]:
        """Give the seconds between batches in which there was none for the device, and the other ones."""
        rows = [_idle(*pair) for visits in self.visits.values() for pair in pairwise(visits)]
        return np.array(rows or [(0.0, 0.0)])


def _idle(before: Visit, after: Visit) -> tuple[float, float]:
    idle = after.begun - before.ended
    waited = min(idle, max(0.0, after.called - max(after.asked, before.ended)))
    return waited, idle - waited


class Simulated:
    """
    A scorer with a GPU replica's two threads: one packs and launches, one waits for the device.

    The device computes batches in order, each as soon as it is launched and the last one is done.
    """

    def __init__(self, name: str, model: Model, busy: Busy) -> None:
        self.name = name
        self.depth = model.depth
        self._model = model
        self._visits = busy.visits.setdefault(name, [])
        self._launching = ThreadPoolExecutor(1, f"simulated {name}")
        self._waiting = ThreadPoolExecutor(1, f"simulated {name} waits")
        self._known = 0.0  # when the orchestrator last got scores

    def peak_memory(self) -> int:
        return 0

    async def load(self) -> None:
        """There is nothing to load."""

    async def warm_up(self, tokens: int) -> None:
        """There is room for all."""

    async def close(self) -> None:
        for thread in (self._launching, self._waiting):
            await asyncio.to_thread(thread.shutdown)

    async def score(self, batch: Batch) -> Scores:
        visit = Visit(self._known, time.perf_counter())
        await asyncio.wrap_future(self._launching.submit(self._launch, batch, visit))
        scores = await asyncio.wrap_future(self._waiting.submit(self._land, batch, visit))
        self._known = time.perf_counter()
        return scores

    def _launch(self, batch: Batch, visit: Visit) -> None:
        for rows in (batch.nucleotides, batch.residues):
            pack(rows)
        _hold_lock(self._model.host)
        free = self._visits[-1].ended if self._visits else 0.0
        visit.begun = max(time.perf_counter(), free)
        visit.ended = visit.begun + self._model.seconds(batch)
        self._visits.append(visit)

    def _land(self, batch: Batch, visit: Visit) -> Scores:
        time.sleep(max(0.0, visit.ended - time.perf_counter()))
        scores = _made_up(batch)
        seconds = visit.ended - visit.begun
        return Scores(batch, scores, np.zeros(len(batch), np.int64), None, seconds, scores[:0])


def _hold_lock(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _made_up(batch: Batch) -> NDArray[np.float32]:
    """Give scores that depend on the ORFs alone."""
    lengths = batch.residues.lengths
    sums = np.add.reduceat(batch.residues.ids, np.cumsum(lengths) - lengths)
    virus = (sums % 97 / 97).astype(np.float32)
    return np.stack([1 - virus, virus], 1)


@dataclass(frozen=True, slots=True)
class Input:
    """A file, and what the host alone can do with it."""

    kind: str
    path: Path
    orfs_per_second: float  # of the front end with nothing beside it
    commits_per_second: float  # of the store with nothing beside it


def main(arguments: list[str]) -> None:
    """Run every point, print a table, and write it down."""
    told = _parser().parse_args(arguments)
    if told.quick:
        told.devices, told.kinds, told.seconds = [1, 2], ["reads"], 1.0
    record = facts(arguments)
    points = []
    with tempfile.TemporaryDirectory(dir=told.work) as directory:
        for kind in told.kinds:
            for point in _points(kind, told, Path(directory)):
                points.append(point)
                print(_line(point), file=sys.stderr, flush=True)
    print(table([_row(point) for point in points]))
    model = {
        name: getattr(told, name)
        for name in ("rate", "overhead_ms", "host_ms", "depth", "tokens_per_batch", "model")
    }
    if told.output:
        save(told.output, {"simulated": True, "model": model, **record, "points": points})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--devices", type=_numbers, default=[1, 2, 4, 8, 16], help="numbers of devices, as in 1,2,4")
    add("--kinds", type=lambda text: text.split(","), default=list(KINDS), help="of reads,contigs,mixed")
    add("--rate", type=float, default=104_000, help="residue tokens per second (ESM-2 3B: 75 %% of an H200)")
    add("--overhead-ms", type=float, default=0.0, help="per batch, on the device")
    add("--host-ms", type=float, default=0.0, help="per batch, with the interpreter's lock held")
    add("--depth", type=int, default=2, help="batches that a device takes at once")
    add("--tokens-per-batch", type=int, default=16_384)
    add("--window", type=int, default=WINDOW_ORFS, help="ORFs that are sorted together")
    add("--seconds", type=float, default=20.0, help="of work for each device in each point")
    add("--model", default="tiny-500", help="the bundle whose tokenizer and fragment length are used")
    add("--fasta", type=Path, default=Path("docs/examples/metagenome.fa.gz"), help="what input is made of")
    add("--seed", type=int, default=0)
    add("--quick", action="store_true", help="one kind, two points, a second each: to see that it works")
    add("--work", type=Path, help="where input and runs are written (default: the temporary directory)")
    add("--output", type=Path, help="JSON file to write")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _points(kind: str, told: argparse.Namespace, directory: Path) -> Iterator[dict[str, Any]]:
    """Give one point for each number of devices."""
    source, bundle = Source.read(told.fasta), find(told.model)
    sample = directory / f"{kind}.sample.fa"
    write(sample, source, kind, _SAMPLE_BASES, told.seed)
    tokens_per_base = _tokens(sample, bundle, told.window) / _SAMPLE_BASES
    for devices in told.devices:
        path = directory / f"{kind}.fa"
        write(path, source, kind, int(devices * told.seconds * told.rate / tokens_per_base), told.seed)
        given = _input(kind, path, bundle, told, directory / f"{kind} store {devices}")
        yield _point(given, devices, bundle, told, directory / f"{kind} {devices}")
        path.unlink()


def _windows(path: Path, bundle: Bundle, size: int) -> Iterator[Window]:
    return form_windows([str(path)], read_contigs, bundle.length, OrfTokenizer(bundle.tokenizer()), size)


def _tokens(path: Path, bundle: Bundle, size: int) -> int:
    return sum(len(window.residues.ids) for window in _windows(path, bundle, size))


def _input(kind: str, path: Path, bundle: Bundle, told: argparse.Namespace, out: Path) -> Input:
    """Time the first windows of *path*, and the store with their batches."""
    began = time.perf_counter()
    windows = list(islice(_windows(path, bundle, told.window), _FRONT_WINDOWS))
    front = sum(len(window.origins) for window in windows) / (time.perf_counter() - began)
    batches = [batch for window in windows for batch in window.batches(told.tokens_per_batch)]
    done = [ScoredBatch(batch, "simulated:0", 0.1, _made_up(batch), None, {}) for batch in batches]
    store = Store(out)
    began = time.perf_counter()
    for one in done:
        store.add_batch(one)
    commits = len(done) / (time.perf_counter() - began)
    store.close()
    return Input(kind, path, front, commits)


def _point(given: Input, devices: int, bundle: Bundle, told: argparse.Namespace, out: Path) -> dict[str, Any]:
    model = Model(told.rate, told.overhead_ms / 1000, told.host_ms / 1000, told.depth)
    busy = Busy()

    def scorer(device: Device, _: Bundle, __: Precision, ___: bool) -> Simulated:
        return Simulated(device.name, model, busy)

    plan = Plan(
        (str(given.path),),
        Settings(bundle.directory, tokens_per_batch=told.tokens_per_batch),
        bundle,
        tuple(Device(f"simulated:{number}", "simulated", 1 << 40) for number in range(devices)),
        told.window,
    )
    began, computed = time.perf_counter(), time.process_time()
    summary = anyio.run(partial(execute, plan, out, scorer))
    wall, computed = time.perf_counter() - began, time.process_time() - computed
    return {"kind": given.kind, "devices": devices} | _figures(given, busy, summary, began, (wall, computed))


def _figures(
    given: Input, busy: Busy, summary: Summary, began: float, took: tuple[float, float]
) -> dict[str, Any]:
    """Give what a run of *took* seconds, by the clock and of the processor, says of the host."""
    wall, computed = took
    devices, scoring = len(busy.visits), busy.end() - busy.begin()
    ideal = busy.ideal() / devices
    waits, turns = busy.idle().T
    orfs, batches = summary.counts["orfs"], summary.counts["batches"]
    return {
        "orfs": orfs,
        "batches": batches,
        "wall_seconds": wall,
        "start_seconds": busy.begin() - began,
        "scoring_seconds": scoring,
        "tables_seconds": began + wall - busy.end(),
        "ideal_seconds": ideal,
        "efficiency": ideal / wall,
        "scoring_efficiency": ideal / scoring,
        "waiting_for_batches": waits.sum() / devices / scoring,
        "turning_over": turns.sum() / devices / scoring,
        "turn_ms": {"median": 1000 * float(np.median(turns)), "p99": 1000 * float(np.quantile(turns, 0.99))},
        "orfs_per_second": orfs / scoring,
        "front_end_alone_orfs_per_second": given.orfs_per_second,
        "commits_per_second": batches / scoring,
        "store_alone_commits_per_second": given.commits_per_second,
        "host_cpu_ms_per_batch": 1000 * computed / batches,
        "cores_used": computed / wall,
        "limit": _limit(ideal / scoring, float(waits.sum()), float(turns.sum())),
    }


def _limit(efficiency: float, waits: float, turns: float) -> str:
    """Say what the devices stood idle for, where they did."""
    if efficiency >= _NEARLY_ALL:
        return "the devices"
    return "the front end" if waits > turns else "turning over"


def _row(point: dict[str, Any]) -> dict[str, Any]:
    return {
        "input": point["kind"],
        "simulated devices": point["devices"],
        "ORFs": point["orfs"],
        "wall, s": point["wall_seconds"],
        "ideal, s": point["ideal_seconds"],
        "efficiency, scoring": f"{point['scoring_efficiency']:.1%}",
        "efficiency, all": f"{point['efficiency']:.1%}",
        "start, s": point["start_seconds"],
        "tables, s": point["tables_seconds"],
        "ORFs/s": point["orfs_per_second"],
        "front end alone": point["front_end_alone_orfs_per_second"],
        "idle for want of batches": f"{point['waiting_for_batches']:.1%}",
        "idle between batches": f"{point['turning_over']:.1%}",
        "cores used": point["cores_used"],
        "host CPU ms/batch": point["host_cpu_ms_per_batch"],
        "commits/s alone": point["store_alone_commits_per_second"],
        "limit": point["limit"],
    }


def _line(point: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in _row(point).items())


if __name__ == "__main__":
    main(sys.argv[1:])
