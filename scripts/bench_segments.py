"""
Measure what segments cost on one machine: runs with segments and with all records in one, in turn.

The devices are simulated (see simulate.py). What counts is the ratio within a pair: of the ORFs that are
scored a second, and of the processor's time. Segments that are smaller than the program's show more of it.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import anyio
from measured import facts, save, table
from samples import Source, write
from simulate import Busy, Model, Simulated

from virnuc_async.engine.devices import Device
from virnuc_async.models.bundle import Bundle, find
from virnuc_async.pipeline import execute
from virnuc_async.runs.plan import Plan
from virnuc_async.settings import Precision, Settings

_WHOLE = 1 << 62  # bases: everything is in one segment


def main(arguments: list[str]) -> None:
    """Run all pairs, print a table, and write the results."""
    options = _parser().parse_args(arguments)
    record, rows = facts(arguments), []
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        for kind in options.kinds:
            path = Path(directory) / f"{kind}.fa"
            write(path, Source.read(options.fasta), kind, int(options.megabases * 1e6), 1)
            for size in options.segment_megabases:
                pairs = [_pair(path, int(size * 1e6), number, options) for number in range(options.pairs)]
                rows.append(_row(kind, size, pairs))
                print(rows[-1], file=sys.stderr, flush=True)
    print(table([{name: row[name] for name in row if name != "pairs"} for row in rows]))
    if options.output:
        save(options.output, {"simulated": True, **record, "rows": rows})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kinds", type=lambda text: text.split(","), default=["reads", "contigs"])
    add("--megabases", type=float, default=128.0, help="of input")
    add(
        "--segment-megabases",
        type=lambda text: [float(word) for word in text.split(",")],
        default=[64.0, 4.0],
    )
    add("--pairs", type=int, default=5, help="of runs, each first in turn")
    add("--devices", type=int, default=4)
    add(
        "--rate",
        type=float,
        default=104_000,
        help="residue tokens per second of a device; 0: it takes no time",
    )
    add("--tokens-per-batch", type=int, default=16_384)
    add("--model", default="tiny-500", help="the bundle whose tokenizer and fragment length are used")
    add("--fasta", type=Path, default=Path("docs/examples/metagenome.fa.gz"))
    add("--work", type=Path, help="where input and runs are written (default: the temporary directory)")
    add("--output", type=Path, help="JSON file to write")
    return parser


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def _pair(path: Path, segment: int, number: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return a run with segments and one without; which is first changes with the *number*."""
    sizes = {"segments": segment, "whole": _WHOLE}
    order = sorted(sizes, reverse=bool(number % 2))
    return {name: _run(path, sizes[name], options) for name in order}


def _run(path: Path, segment: int, options: argparse.Namespace) -> dict[str, float]:
    bundle, busy = find(options.model), Busy()
    model = Model(options.rate or 1e12, 0.0, 0.0, 2)

    def scorer(device: Device, _: Bundle, __: Precision, ___: bool) -> Simulated:
        return Simulated(device.name, model, busy)

    devices = [Device(f"simulated:{at}", "simulated", 1 << 40) for at in range(options.devices)]
    settings = Settings(bundle.directory, tokens_per_batch=options.tokens_per_batch, report=False)
    plan = Plan((str(path),), settings, bundle, tuple(devices), segment=segment)
    with tempfile.TemporaryDirectory(dir=path.parent) as out:
        began = time.process_time()
        counts = anyio.run(partial(execute, plan, Path(out) / "out", scorer)).counts
        computed = time.process_time() - began
    return {
        "orfs": counts["orfs"],
        "batches": counts["batches"],
        "scoring_seconds": busy.end() - busy.begin(),
        "cpu_seconds": computed,
    }


def _row(kind: str, size: float, pairs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return the ratios of *pairs*: segments to none, so that more than 1 is slower, or more."""
    ratios = {
        name: [pair["segments"][name] / pair["whole"][name] for pair in pairs]
        for name in ("scoring_seconds", "cpu_seconds", "batches")
    }
    return {
        "input": kind,
        "Mb a segment": size,
        "ORFs": round(pairs[0]["whole"]["orfs"]),
        "batches": ratios["batches"][0],
        "scoring time": median(ratios["scoring_seconds"]),
        "lowest and highest": _range(ratios["scoring_seconds"]),
        "CPU time": median(ratios["cpu_seconds"]),
        "CPU, lowest and highest": _range(ratios["cpu_seconds"]),
        "pairs": pairs,
    }


def _range(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"


if __name__ == "__main__":
    main(sys.argv[1:])
