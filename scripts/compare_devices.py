"""
Score the same sequences in every precision of a device, and compare them with the CPU in FP32.

With the golden model, whose scores are known, each precision must be within its tolerance. With random
weights of a published shape the reference is the device itself in FP32, and the share of equal labels is
reported: such scores are close together, so labels differ sooner than a trained model's.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from json_lines import TIME_IS_UP, Lines
from measured import facts
from numpy.typing import NDArray
from random_bundle import NUCLEOTIDE_SHAPES, PROTEIN_SHAPES, write

from virnuc_async.engine.devices import Device, choose, decide_budget
from virnuc_async.engine.memory_account import account
from virnuc_async.engine.replica import Replica
from virnuc_async.engine.verification import precisions_of
from virnuc_async.errors import UnsuitablePrecision
from virnuc_async.models.bundle import Bundle, find
from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle
from virnuc_async.models.reference import published_reference
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.sequences.windows import Cut, form_windows
from virnuc_async.settings import Precision, Settings

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "data" / "golden" / "upstream"
EXAMPLE = ROOT / "docs" / "examples" / "metagenome.fa.gz"
LENGTH = 500
FP32_TOLERANCE = 1e-5
_BATCH_TOKENS = 8192


def golden_bundle(directory: Path) -> Bundle:
    """Make the small model whose scores are known."""
    models = GOLDEN / "models"
    paths = CheckpointPaths(models / "esm2_t3_tiny.pt", models / "dnabert", models / "classifier.pth")
    return import_bundle(paths, directory, directory.name, LENGTH)


async def scores(source: Path, bundle: Bundle, device: Device, precision: Precision) -> NDArray[np.float32]:
    """Return the score as viral of every ORF of *source*, in the order of the input."""
    replica, tokenizer = Replica(device, bundle, precision), OrfTokenizer(bundle.tokenizer())
    orfs, found = [], []
    try:
        await replica.load()
        for window in form_windows([str(source)], read_contigs, Cut(bundle.length), tokenizer):
            for batch in window.batches(_BATCH_TOKENS):
                orfs.append(batch.orfs)
                found.append((await replica.score(batch)).probabilities[:, 1])
    finally:
        await replica.close()
    return np.concatenate(found)[np.argsort(np.concatenate(orfs))]


def tolerance(precision: Precision) -> float:
    """Return how far a score of *precision* may be from the CPU's in FP32."""
    if precision is Precision.FP32:
        return FP32_TOLERANCE
    return published_reference(LENGTH).tolerance(precision).score


async def golden(device: Device, lines: Lines, scratch: Path) -> bool:
    """Compare every precision of *device* with the CPU; return whether all are within their tolerance."""
    bundle, source = golden_bundle(scratch / "golden"), GOLDEN / "input.fa"
    (cpu,) = choose(Settings(devices=("cpu",)))
    expected = await scores(source, bundle, cpu, Precision.FP32)
    are_right = True
    for precision in precisions_of(device, Precision.AUTO):
        row: dict[str, Any] = {"measured": "golden", "precision": precision, "ORFs": len(expected)}
        try:
            found = await scores(source, bundle, device, precision)
        except UnsuitablePrecision as reason:  # of this model, not of the device
            lines.write(row | {"none": str(reason)})
            continue
        row |= _differences(found, expected) | {"tolerance": tolerance(precision)}
        row["is right"] = row["largest difference"] <= row["tolerance"]
        are_right &= row["is right"]
        lines.write(row)
    return are_right


async def random(device: Device, shape: str, lines: Lines, scratch: Path) -> None:
    """Compare every precision of *device* with its FP32, on random weights of *shape*."""
    model = scratch / "random"
    write(model, PROTEIN_SHAPES[shape], NUCLEOTIDE_SHAPES[shape], device.torch_device)
    bundle = find(model)
    first, *others = precisions_of(device, Precision.AUTO)
    expected = await scores(EXAMPLE, bundle, device, first)
    for precision in others:
        if lines.is_time_up:
            lines.not_reached(f"labels of {shape} in {precision}")
            continue
        found = await scores(EXAMPLE, bundle, device, precision)
        lines.write({"measured": "memory", "precision": precision} | await memory(bundle, device, precision))
        row = {"measured": "labels", "shape": shape, "precision": precision, "ORFs": len(expected)}
        lines.write(row | _differences(found, expected))


async def memory(bundle: Bundle, device: Device, precision: Precision) -> dict[str, Any]:
    """Return the most memory that a replica takes with its largest batch, and what its account says."""
    if device.capability is not None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device.torch_device)
    tokens = decide_budget([device], precision, None, bundle.shapes)
    replica = Replica(device, bundle, precision)
    try:
        await replica.load()
        await replica.warm_up(tokens)
        peak = replica.peak_memory()
    finally:
        await replica.close()
    return {
        "tokens": tokens,
        "peak bytes": peak,
        "account bytes": account(bundle.shapes, precision).peak(tokens),
    }


def _differences(found: NDArray[np.float32], expected: NDArray[np.float32]) -> dict[str, Any]:
    return {
        "largest difference": float(np.abs(found - expected).max()),
        "same labels": float(((found > 0.5) == (expected > 0.5)).mean()),
    }


def main(words: Sequence[str] | None = None) -> int:
    """Compare; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", default="cuda:0", help="cpu, cuda:0, ...")
    parser.add_argument("--shape", choices=list(PROTEIN_SHAPES), default="3B", help="of the random weights")
    parser.add_argument("--lines", type=Path, help="a file that rows of JSON are appended to")
    parser.add_argument("--until", type=float, help="seconds since 1970, after which nothing new begins")
    options = parser.parse_args(words)
    lines = Lines(options.lines, options.until)
    lines.write({"measured": "facts", **facts(list(words or sys.argv[1:]))})
    name = "cuda:0" if options.device == "cuda" else options.device
    (device,) = choose(Settings(devices=(name,)))
    with tempfile.TemporaryDirectory() as scratch:
        if not asyncio.run(golden(device, lines, Path(scratch))):
            return 1
        asyncio.run(random(device, options.shape, lines, Path(scratch)))
    return TIME_IS_UP if lines.left_out else 0


if __name__ == "__main__":
    sys.exit(main())
