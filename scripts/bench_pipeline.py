"""
Measure the whole program from outside: its time compared with that of the model, and its memory.

Each part can be run alone: predict (wall time over model time), start (time to the first stored
batch), front (reading to tokens, without devices), memory (5 and 50 MB of reads), files (2,000
small files or a single one), replay (the published method on the same bundle).
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from json_lines import TIME_IS_UP, Lines
from measured import facts, save, table
from replay import replay
from samples import KINDS, Source, write, write_many

from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Scores
from virnuc_async.models.bundle import Bundle, find
from virnuc_async.pipeline import execute
from virnuc_async.runs.plan import Plan
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.tokens import OrfTokenizer, Ragged
from virnuc_async.sequences.windows import Cut, form_windows
from virnuc_async.settings import Precision, Settings

_POLL_SECONDS = 0.02  # between two measurements of a process
_TRIAL_BASES = 1_500_000  # of the short run that decides the size of the long one
_Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """Time and memory of a command, measured from outside."""

    wall: float  # seconds
    cpu: float  # seconds, of all cores together
    peak: int  # bytes
    first_batch: float  # seconds from the start to the first batch in the store
    summary: dict[str, Any]


class Instant:
    """A scorer that takes no time."""

    depth = 1

    def __init__(self, device: Device, bundle: Bundle, precision: Precision, embeddings: bool) -> None:
        self.name = device.name

    def peak_memory(self) -> int:
        return 0

    async def load(self) -> None:
        """Load nothing."""

    async def warm_up(self, tokens: int) -> None:
        """Accept any number of tokens."""

    async def close(self) -> None:
        """Free nothing."""

    async def score(self, batch: Batch) -> Scores:
        await anyio.lowlevel.checkpoint()
        half = np.full((len(batch), 2), 0.5, np.float32)
        return Scores(batch, half, np.zeros(len(batch), np.int64), None, 0.0, half[:0])


class NoBases(OrfTokenizer):
    """A tokenizer without the byte-pair encoding."""

    def nucleotides(self, bases: Sequence[bytes]) -> Ragged:
        return Ragged(np.zeros(len(bases), np.int32), np.ones(len(bases), np.int64))


def main(arguments: list[str]) -> int:
    """Run the requested parts, print their tables, and write the results; return the exit code."""
    options = _parser().parse_args(arguments)
    if options.inside:
        work, *words = options.inside
        print(json.dumps(_INSIDE[work](*words)))
        return 0
    if options.quick:
        options.seconds, options.megabytes, options.files = 0.0, [0.2, 0.4], 20
        options.repeats, options.kinds = 1, ["reads"]
    record, bundle, source = facts(arguments), find(options.model), Source.read(options.fasta)
    lines = Lines(options.lines, options.until)
    lines.write({"measured": "facts", **record})
    found: dict[str, list[_Row]] = {}
    for name in options.parts:
        found[name] = []
        with tempfile.TemporaryDirectory(dir=options.work) as directory:
            rows = _PARTS[name](options, bundle, source, Path(directory))
            while not lines.is_time_up and (row := next(rows, None)):
                found[name].append(row)
                lines.write({"measured": name, **row})
        if lines.is_time_up:
            lines.not_reached(f"the end of {name}")
        if found[name]:
            print(f"{name}\n\n{table(found[name])}\n", flush=True)
    if options.output:
        save(options.output, {**record, "model": bundle.name, "parts": found})
    return TIME_IS_UP if lines.left_out else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--parts", type=lambda text: text.split(","), default=list(_PARTS), help=", ".join(_PARTS))
    add("--kinds", type=lambda text: text.split(","), default=list(KINDS), help="of reads,contigs,mixed")
    add("--model", default="tiny-500", help="name or directory of a bundle")
    add("--seconds", type=float, default=140.0, help="approximate duration of a run of the part predict")
    add("--megabytes", type=_sizes, default=[5, 50], help="of reads in the part memory, such as 5,50")
    add("--files", type=int, default=2000, help="number of files in the part files, of five contigs each")
    add("--repeats", type=int, default=3, help="of the parts start, front and replay")
    add(
        "--fasta",
        type=Path,
        default=Path("docs/examples/metagenome.fa.gz"),
        help="sequences that input is made of",
    )
    add("--seed", type=int, default=0)
    add("--quick", action="store_true", help="the smallest run of everything, to check that it works")
    add("--work", type=Path, help="where input and runs are written (default: the temporary directory)")
    add("--output", type=Path, help="JSON file to write")
    add("--lines", type=Path, help="a file that rows of JSON are appended to")
    add("--until", type=float, help="seconds since 1970, after which nothing new begins")
    add("--inside", nargs="+", help=argparse.SUPPRESS)
    return parser


def _sizes(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def _predict(options: argparse.Namespace, bundle: Bundle, source: Source, work: Path) -> Iterator[_Row]:
    for kind in options.kinds:
        path = work / f"{kind}.fa"
        bases = _TRIAL_BASES
        write(path, source, kind, bases, options.seed)
        ran = _command([path], work / f"{kind} trial", options.model)
        if options.seconds > ran.wall:
            # The time before scoring does not grow with the input.
            bases = int(bases * options.seconds / max(ran.wall - ran.first_batch, 0.1))
            write(path, source, kind, bases, options.seed)
            ran = _command([path], work / kind, options.model)
        seconds, counts = ran.summary["seconds"], ran.summary["counts"]
        yield {
            "input": kind,
            "bases": bases,
            "ORFs": counts["orfs"],
            "batches": counts["batches"],
            "wall, s": ran.wall,
            "in the model, s": seconds["model"],
            "wall / model": ran.wall / seconds["model"],
            "first batch, s": ran.first_batch,
            "ORFs/s": counts["orfs"] / ran.wall,
            "CPU, s": ran.cpu,
            "peak memory, MB": ran.peak / 1e6,
            "peak device memory, MB": max(row["peak_memory_bytes"] for row in ran.summary["devices"]) / 1e6,
        }


def _start(options: argparse.Namespace, bundle: Bundle, source: Source, work: Path) -> Iterator[_Row]:
    for number in range(options.repeats):
        ran = _command([options.fasta], work / str(number), options.model)
        yield {"run": number + 1, "first batch, s": ran.first_batch, "whole run, s": ran.wall}


def _front(options: argparse.Namespace, bundle: Bundle, source: Source, work: Path) -> Iterator[_Row]:
    path, bases = work / "front.fa", 500_000 if options.quick else 20_000_000
    definition = bundle.tokenizer()
    for kind in options.kinds:
        write(path, source, kind, bases, options.seed)
        for name, tokenizer in (("with", OrfTokenizer(definition)), ("without", NoBases(definition))):
            seconds, orfs = [], 0
            for _ in range(options.repeats):
                began = time.perf_counter()
                windows = form_windows([str(path)], read_contigs, Cut(bundle.length), tokenizer)
                orfs = sum(len(window.origins) for window in windows)
                seconds.append(time.perf_counter() - began)
            middle = statistics.median(seconds)
            yield {
                "input": kind,
                "tokenization": name,
                "ORFs": orfs,
                "ORFs/s": orfs / middle,
                "ORFs/s, best": orfs / min(seconds),
                "Mb/s": bases / middle / 1e6,
            }


def _memory(options: argparse.Namespace, bundle: Bundle, source: Source, work: Path) -> Iterator[_Row]:
    for size in options.megabytes:
        path = work / f"{size}.fa"
        write(path, source, "reads", int(size * 1e6), options.seed)
        words = str(path), str(work / f"run {size}"), str(bundle.directory)
        yield {"reads, MB": size} | _run_in_new_process("instant", *words)


def _run_in_new_process(*words: str) -> _Row:
    command = [sys.executable, str(Path(__file__)), "--inside", *words]
    # Like the command line: spinning threads make times on busy cores meaningless.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    row: _Row = json.loads(done.stdout)
    return row


def _instant_run(path: str, out: str, model: str) -> _Row:
    """Run the real orchestrator with an instant scorer; return the peak memory of this process."""
    bundle = find(model)
    plan = Plan((path,), Settings(bundle.directory), bundle, (Device("instant:0", "instant", 1 << 40),))
    began = time.perf_counter()
    before = _peak(os.getpid())
    summary = anyio.run(partial(execute, plan, Path(out), Instant))
    return {
        "ORFs": summary.counts["orfs"],
        "wall, s": time.perf_counter() - began,
        "peak memory, MB": _peak(os.getpid()) / 1e6,
        "of it before the run, MB": before / 1e6,
    }


def _files(options: argparse.Namespace, bundle: Bundle, source: Source, work: Path) -> Iterator[_Row]:
    many, one = work / "many", work / "one.fa"
    many.mkdir()
    paths = write_many(many, source, options.files, 5, options.seed)
    one.write_bytes(b"".join(path.read_bytes() for path in paths))
    for name, path in ((f"{options.files:,} files of 5 contigs", many), ("the same in one file", one)):
        ran = _command([path], work / f"run {path.stem}", options.model)
        counts = ran.summary["counts"]
        yield {
            "input": name,
            "ORFs": counts["orfs"],
            "batches": counts["batches"],
            "wall, s": ran.wall,
            "in the model, s": ran.summary["seconds"]["model"],
            "peak memory, MB": ran.peak / 1e6,
        }


def _replay(options: argparse.Namespace, bundle: Bundle, source: Source, work: Path) -> Iterator[_Row]:
    """Run both programs in turn, so that other load on the machine affects both."""
    path = work / "replay.fa"
    write(path, source, "contigs", 100_000 if options.quick else 4_000_000, options.seed)
    for number in range(options.repeats):
        out = work / f"ours {number}"
        ran = _command([path], out, options.model)
        began = time.perf_counter()
        published = _run_in_new_process("replay", str(path), str(bundle.directory))
        wall, stages = time.perf_counter() - began, published["seconds"]
        yield {
            "run": number + 1,
            "ORFs": len(published["scores"]),
            "original's way, whole process, s": wall,
            "of it DNABERT-S, s": stages["DNABERT-S"],
            "of it ESM-2, s": stages["ESM-2"],
            "ours, whole command, s": ran.wall,
            "ours, in the model, s": ran.summary["seconds"]["model"],
            "ratio of walls": wall / ran.wall,
            "ratio in the model": (stages["DNABERT-S"] + stages["ESM-2"] + stages["classify"])
            / ran.summary["seconds"]["model"],
            "largest difference of a score": _difference(out, published["scores"]),
        }


def _replay_run(path: str, model: str) -> _Row:
    done = replay([path], find(model))
    return {"seconds": done.seconds, "scores": done.scores}


def _difference(out: Path, published: dict[str, list[float]]) -> float:
    lines = (out / "prediction_results.txt").read_text("ascii").splitlines()[1:]
    ours = {
        name: (float(others), float(virus)) for name, _, others, virus in (li.split("\t") for li in lines)
    }
    if ours.keys() != published.keys():
        raise ValueError("the published method finds other ORFs")
    return max(abs(a - b) for name, row in ours.items() for a, b in zip(row, published[name], strict=True))


def _command(inputs: Sequence[Path], out: Path, model: str) -> Measured:
    """Run ``predict`` like a user, on the devices that it detects."""
    words = ["predict", *map(str, inputs), str(out), "--model", model, "--quiet"]
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "virnuc_async", *words], stderr=subprocess.PIPE)
    peak, first = 0, float("nan")
    while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        peak = max(peak, _peak(process.pid))
        if math.isnan(first) and _has_batch(out):
            first = time.perf_counter() - began
        time.sleep(_POLL_SECONDS)
    wall, (_, status, used) = time.perf_counter() - began, ended
    process.returncode = os.waitstatus_to_exitcode(status)
    with process:
        errors = process.stderr.read() if process.stderr else b""
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words, stderr=errors)
    summary = json.loads((out / "summary.json").read_bytes())
    return Measured(wall, used.ru_utime + used.ru_stime, peak, first, summary)


def _has_batch(out: Path) -> bool:
    """Return whether the log mentions a batch in the store."""
    log = out / "run.log"
    return log.exists() and b" done on " in log.read_bytes()


def _peak(process: int) -> int:
    """Return the peak memory of *process* in bytes; 0 if the system does not report it."""
    # Not ru_maxrss: that of a child starts at its parent's memory.
    try:
        lines = Path(f"/proc/{process}/status").read_text("ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


_Part = Callable[[argparse.Namespace, Bundle, Source, Path], Iterator[_Row]]
_PARTS: dict[str, _Part] = {
    "start": _start,
    "front": _front,
    "memory": _memory,
    "files": _files,
    "replay": _replay,
    "predict": _predict,
}

_INSIDE: dict[str, Callable[..., _Row]] = {"instant": _instant_run, "replay": _replay_run}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
