"""
Score the same sequences in every precision of a device, and compare them with the CPU in FP32.

With the golden model, whose scores are known, each precision must be within its tolerance. With random
weights of a published shape the reference is the device itself in FP32, and the share of equal labels is
reported: such scores are close together, so labels differ sooner than a trained model's.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
import numpy as np
import torch
from json_lines import TIME_IS_UP, Lines
from measured import facts
from numpy.typing import NDArray
from random_bundle import NUCLEOTIDE_SHAPES, PROTEIN_SHAPES, write

from virnuc_async.engine.devices import Device, choose
from virnuc_async.engine.verification import precisions_of
from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle
from virnuc_async.models.reference import published_reference
from virnuc_async.pipeline import run_pipeline
from virnuc_async.settings import Precision, Settings

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "data" / "golden" / "upstream"
EXAMPLE = ROOT / "docs" / "examples" / "metagenome.fa.gz"
LENGTH = 500
FP32_TOLERANCE = 1e-5


def golden_bundle(directory: Path) -> Path:
    """Make the small model whose scores are known; return its directory."""
    models = GOLDEN / "models"
    paths = CheckpointPaths(models / "esm2_t3_tiny.pt", models / "dnabert", models / "classifier.pth")
    return import_bundle(paths, directory, directory.name, LENGTH).directory


def scores(
    source: Path, model: Path, device: str, precision: Precision
) -> tuple[list[str], NDArray[np.float64]]:
    """Return the ids of all ORFs and their scores as viral."""
    with tempfile.TemporaryDirectory() as out:
        settings = Settings(model, devices=(device,), precision=precision)
        anyio.run(partial(run_pipeline, [source], out, settings))
        rows = [line.split("\t") for line in Path(out, "prediction_results.txt").read_text().splitlines()[1:]]
    return [row[0] for row in rows], np.array([float(row[3]) for row in rows])


def tolerance(precision: Precision) -> float:
    """Return how far a score of *precision* may be from the CPU's in FP32."""
    return (
        FP32_TOLERANCE
        if precision is Precision.FP32
        else published_reference(LENGTH).tolerance(precision).score
    )


def golden(device: Device, lines: Lines, scratch: Path) -> bool:
    """Compare every precision of *device* with the CPU; return whether all are within their tolerance."""
    model, source = golden_bundle(scratch / "golden"), GOLDEN / "input.fa"
    ids, expected = scores(source, model, "cpu", Precision.FP32)
    are_right = True
    for precision in precisions_of(device, Precision.AUTO):
        found_ids, found = scores(source, model, _name(device), precision)
        difference = float(np.abs(found - expected).max())
        is_right = found_ids == ids and difference <= tolerance(precision)
        are_right &= is_right
        row = {"measured": "golden", "precision": precision, "ORFs": len(ids), "is right": is_right}
        row |= {"largest difference": difference, "tolerance": tolerance(precision)}
        lines.write(row | {"same labels": _same_labels(found, expected)})
    return are_right


def random(device: Device, shape: str, lines: Lines, scratch: Path) -> None:
    """Compare every precision of *device* with its FP32, on random weights of *shape*."""
    model = scratch / "random"
    write(model, PROTEIN_SHAPES[shape], NUCLEOTIDE_SHAPES[shape], device.torch_device)
    others = [precision for precision in precisions_of(device, Precision.AUTO) if precision != Precision.FP32]
    ids, expected = scores(EXAMPLE, model, _name(device), Precision.FP32)
    for precision in others:
        if lines.is_time_up:
            lines.not_reached(f"labels of {shape} in {precision}")
            continue
        _, found = scores(EXAMPLE, model, _name(device), precision)
        row = {"measured": "labels", "shape": shape, "precision": precision, "ORFs": len(ids)}
        row |= {"largest difference": float(np.abs(found - expected).max())}
        lines.write(row | {"same labels": _same_labels(found, expected)})


def _same_labels(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    return float(((found > 0.5) == (expected > 0.5)).mean())


def _name(device: Device) -> str:
    return "cpu" if device.capability is None else device.name


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
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        if not golden(device, lines, Path(scratch)):
            return 1
        random(device, options.shape, lines, Path(scratch))
    return TIME_IS_UP if lines.left_out else 0


if __name__ == "__main__":
    sys.exit(main())
