"""
Measure how many devices one process can feed: the real orchestrator on simulated devices.

Everything but the networks is real: reading, splitting, translation, tokenization, packing, the
store and the tables. Instead of computing, a device's thread sleeps, without the interpreter's
lock, for as long as a device of the given rate would compute: tokens / rate + overhead. This does
not measure the speed of a network, but how many devices the host can keep busy.

With ``--gpus``, simulate a cluster instead, in virtual time: see simulate_cluster.py, whose options it takes.
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
import simulate_cluster
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
from virnuc_async.sequences.windows import WINDOW_ORFS, Cut, Window, form_windows
from virnuc_async.settings import Precision, Settings

_SAMPLE_BASES = 1_000_000  # of the sample that the number of tokens per base is counted in
_FRONT_WINDOWS = 6  # timed without devices
_NEARLY_ALL = 0.97  # of the time: devices that compute this much of it are the bottleneck


@dataclass(frozen=True, slots=True)
class Model:
    """How long a batch takes on a simulated device."""

    rate: float  # residue tokens per second
    overhead: float  # seconds per batch on the device
    host: float  # seconds per batch in which the host holds the interpreter's lock
    depth: int  # batches that a device takes at once

    def seconds(self, batch: Batch) -> float:
        """Return the seconds that the device computes *batch*."""
        return batch.tokens / self.rate + self.overhead


@dataclass(slots=True)
class Visit:
    """The times of one batch on a device."""

    ready: float  # the device was ready for a batch
    given: float  # the orchestrator gave it the batch
    started: float = 0.0  # computing
    ended: float = 0.0


@dataclass(slots=True)
class Busy:
    """The batches of every device."""

    visits: dict[str, list[Visit]] = field(default_factory=dict)

    def ideal(self) -> float:
        """Return the seconds that all devices computed, together."""
        return sum(visit.ended - visit.started for visits in self.visits.values() for visit in visits)

    def begin(self) -> float:
        """Return when the first batch started."""
        return min(visits[0].started for visits in self.visits.values() if visits)

    def end(self) -> float:
        """Return when the last batch ended."""
        return max(visits[-1].ended for visits in self.visits.values() if visits)

    def idle(self) -> NDArray[np.float64]:
        """Return the idle seconds between batches: those without a batch for the device, and the others."""
        rows = [_idle(*pair) for visits in self.visits.values() for pair in pairwise(visits)]
        return np.array(rows or [(0.0, 0.0)])


def _idle(before: Visit, after: Visit) -> tuple[float, float]:
    idle = after.started - before.ended
    waited = min(idle, max(0.0, after.given - max(after.ready, before.ended)))
    return waited, idle - waited


class Simulated:
    """
    A scorer with two threads like a GPU's replica: one packs and submits, one waits for the device.

    The device computes batches in order, each as soon as it is submitted and the one before it is done.
    """

    def __init__(self, name: str, model: Model, busy: Busy) -> None:
        self.name = name
        self.depth = model.depth
        self._model = model
        self._visits = busy.visits.setdefault(name, [])
        self._submitter = ThreadPoolExecutor(1, f"simulated {name}")
        self._collector = ThreadPoolExecutor(1, f"simulated {name} waits")
        self._ready = 0.0  # when the device last returned scores

    def peak_memory(self) -> int:
        return 0

    async def load(self) -> None:
        """Load nothing."""

    async def warm_up(self, tokens: int) -> None:
        """Accept any number of tokens."""

    async def close(self) -> None:
        """Stop both threads."""
        for thread in (self._submitter, self._collector):
            await asyncio.to_thread(thread.shutdown)

    async def score(self, batch: Batch) -> Scores:
        visit = Visit(self._ready, time.perf_counter())
        await asyncio.wrap_future(self._submitter.submit(self._submit, batch, visit))
        scores = await asyncio.wrap_future(self._collector.submit(self._collect, batch, visit))
        self._ready = time.perf_counter()
        return scores

    def _submit(self, batch: Batch, visit: Visit) -> None:
        for rows in (batch.nucleotides, batch.residues):
            pack(rows)
        _hold_lock(self._model.host)
        free = self._visits[-1].ended if self._visits else 0.0
        visit.started = max(time.perf_counter(), free)
        visit.ended = visit.started + self._model.seconds(batch)
        self._visits.append(visit)

    def _collect(self, batch: Batch, visit: Visit) -> Scores:
        time.sleep(max(0.0, visit.ended - time.perf_counter()))
        scores = _fake_scores(batch)
        seconds = visit.ended - visit.started
        return Scores(batch, scores, np.zeros(len(batch), np.int64), None, seconds, scores[:0])


def _hold_lock(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _fake_scores(batch: Batch) -> NDArray[np.float32]:
    """Return scores that depend only on the ORFs."""
    lengths = batch.residues.lengths
    sums = np.add.reduceat(batch.residues.ids, np.cumsum(lengths) - lengths)
    virus = (sums % 97 / 97).astype(np.float32)
    return np.stack([1 - virus, virus], 1)


@dataclass(frozen=True, slots=True)
class Input:
    """A file, and how fast the host is with it when there are no devices."""

    kind: str
    path: Path
    orfs_per_second: float  # of the front end alone
    commits_per_second: float  # of the store alone


def main(arguments: list[str]) -> None:
    """Run all combinations, print a table, and write the results."""
    if any(word.partition("=")[0] == "--gpus" for word in arguments):
        simulate_cluster.main(arguments)
        return
    options = _parser().parse_args(arguments)
    if options.quick:
        options.devices, options.kinds, options.seconds = [1, 2], ["reads"], 1.0
    record = facts(arguments)
    points = []
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        for kind in options.kinds:
            for point in _points(kind, options, Path(directory)):
                points.append(point)
                print(_line(point), file=sys.stderr, flush=True)
    print(table([_row(point) for point in points]))
    model = {
        name: getattr(options, name)
        for name in ("rate", "overhead_ms", "host_ms", "depth", "tokens_per_batch", "model")
    }
    if options.output:
        save(options.output, {"simulated": True, "model": model, **record, "points": points})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--devices", type=_numbers, default=[1, 2, 4, 8, 16], help="numbers of devices, such as 1,2,4")
    add("--kinds", type=lambda text: text.split(","), default=list(KINDS), help="of reads,contigs,mixed")
    add("--rate", type=float, default=104_000, help="residue tokens per second (ESM-2 3B: 75 %% of an H200)")
    add("--overhead-ms", type=float, default=0.0, help="per batch, on the device")
    add("--host-ms", type=float, default=0.0, help="per batch, while the interpreter's lock is held")
    add("--depth", type=int, default=2, help="batches that a device takes at once")
    add("--tokens-per-batch", type=int, default=16_384)
    add("--window", type=int, default=WINDOW_ORFS, help="ORFs that are sorted together")
    add("--seconds", type=float, default=20.0, help="of computing for each device in each combination")
    add("--model", default="tiny-500", help="the bundle whose tokenizer and fragment length are used")
    add(
        "--fasta",
        type=Path,
        default=Path("docs/examples/metagenome.fa.gz"),
        help="sequences that input is made of",
    )
    add("--seed", type=int, default=0)
    add(
        "--quick",
        action="store_true",
        help="one kind, two combinations, one second each: to check that it works",
    )
    add("--work", type=Path, help="where input and runs are written (default: the temporary directory)")
    add("--output", type=Path, help="JSON file to write")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _points(kind: str, options: argparse.Namespace, directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the results for each number of devices."""
    source, bundle = Source.read(options.fasta), find(options.model)
    sample = directory / f"{kind}.sample.fa"
    write(sample, source, kind, _SAMPLE_BASES, options.seed)
    tokens_per_base = _tokens(sample, bundle, options.window) / _SAMPLE_BASES
    for devices in options.devices:
        path = directory / f"{kind}.fa"
        bases = int(devices * options.seconds * options.rate / tokens_per_base)
        write(path, source, kind, bases, options.seed)
        source_file = _input(kind, path, bundle, options, directory / f"{kind} store {devices}")
        yield _point(source_file, devices, bundle, options, directory / f"{kind} {devices}")
        path.unlink()


def _windows(path: Path, bundle: Bundle, size: int) -> Iterator[Window]:
    return form_windows([str(path)], read_contigs, Cut(bundle.length, size), OrfTokenizer(bundle.tokenizer()))


def _tokens(path: Path, bundle: Bundle, size: int) -> int:
    return sum(len(window.residues.ids) for window in _windows(path, bundle, size))


def _input(kind: str, path: Path, bundle: Bundle, options: argparse.Namespace, out: Path) -> Input:
    """Return *path* as input: time its first windows, and the store with their batches."""
    began = time.perf_counter()
    windows = list(islice(_windows(path, bundle, options.window), _FRONT_WINDOWS))
    front = sum(len(window.origins) for window in windows) / (time.perf_counter() - began)
    batches = [batch for window in windows for batch in window.batches(options.tokens_per_batch)]
    scored = [ScoredBatch(batch, "simulated:0", 0.1, _fake_scores(batch), None, {}) for batch in batches]
    store = Store(out)
    began = time.perf_counter()
    for batch in scored:
        store.add_batch(batch)
    commits = len(scored) / (time.perf_counter() - began)
    store.close()
    return Input(kind, path, front, commits)


def _point(
    source: Input, devices: int, bundle: Bundle, options: argparse.Namespace, out: Path
) -> dict[str, Any]:
    model = Model(options.rate, options.overhead_ms / 1000, options.host_ms / 1000, options.depth)
    busy = Busy()

    def scorer(device: Device, _: Bundle, __: Precision, ___: bool) -> Simulated:
        return Simulated(device.name, model, busy)

    plan = Plan(
        (str(source.path),),
        Settings(bundle.directory, tokens_per_batch=options.tokens_per_batch),
        bundle,
        tuple(Device(f"simulated:{number}", "simulated", 1 << 40) for number in range(devices)),
        options.window,
    )
    began, computed = time.perf_counter(), time.process_time()
    summary = anyio.run(partial(execute, plan, out, scorer))
    wall, computed = time.perf_counter() - began, time.process_time() - computed
    return {"kind": source.kind, "devices": devices} | _metrics(
        source, busy, summary, began, (wall, computed)
    )


def _metrics(
    source: Input, busy: Busy, summary: Summary, began: float, took: tuple[float, float]
) -> dict[str, Any]:
    """Return the metrics of a run; *took* is its duration in seconds, by the clock and of the processor."""
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
        "front_end_alone_orfs_per_second": source.orfs_per_second,
        "commits_per_second": batches / scoring,
        "store_alone_commits_per_second": source.commits_per_second,
        "host_cpu_ms_per_batch": 1000 * computed / batches,
        "cores_used": computed / wall,
        "limit": _limit(ideal / scoring, float(waits.sum()), float(turns.sum())),
    }


def _limit(efficiency: float, waits: float, turns: float) -> str:
    """Return what limits the speed: the devices, or the part of the host that they waited for."""
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
