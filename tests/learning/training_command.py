"""The command train with options that make it quick, and the contents of its output."""

import json
from pathlib import Path
from typing import Any

from running import Ran, run
from tiny_models import Toys

QUICK = ("--optimizer", "adamw", "--rate", "0.01", "--epochs", "5", "--resamples", "20")


def train(toys: Toys, output: Path, *options: str | Path) -> Ran:
    return run("train", *toys.options, "--output", output, "--devices", "cpu", *QUICK, *options)


def report(output: Path) -> dict[str, Any]:
    return json.loads((output / "training.json").read_bytes())


def weights(output: Path) -> bytes:
    return (output / "classifier.safetensors").read_bytes()


def auroc_of(output: Path, level: str = "fragment") -> float:
    return float(report(output)["test"][level]["figures"]["auroc"]["value"])


def splits(output: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = report(output)["split"]["sides"]
    return found
