"""
Measure what a run takes longer with Ray on one machine: pairs of ``predict`` and ``predict --ray local``.

The two of each pair follow each other, so that other work of the machine slows both; their tables must be the
same bytes. CPU replicas, the model of the package.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from measured import facts, installed, save, table

from virnuc_async.runs.output_directory import TABLES

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "metagenome.fa.gz"


def seconds(out: Path, source: Path, *options: str) -> float:
    """Return how long the command takes that predicts *source* into *out*."""
    command = [sys.executable, "-m", "virnuc_async", "predict", source, out, "--devices", "cpu", *options]
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - begun


def measure(source: Path) -> tuple[float, float]:
    """Return how long both commands take; raise SystemExit if their tables differ."""
    with TemporaryDirectory() as scratch:
        plain, ray = Path(scratch, "plain"), Path(scratch, "ray")
        found = seconds(plain, source), seconds(ray, source, "--ray", "local")
        for name in TABLES:
            if (plain / name).read_bytes() != (ray / name).read_bytes():
                raise SystemExit(f"{name} differs")
    return found


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--input", type=Path, default=EXAMPLE)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write the result as JSON")
    options = parser.parse_args(arguments)
    head = facts(arguments)
    pairs = [measure(options.input.resolve()) for _ in range(options.pairs)]
    rows = [
        {"plain": round(plain, 2), "ray": round(ray, 2), "longer": round(ray - plain, 2)}
        for plain, ray in pairs
    ]
    middle = {"longer_median": round(median(row["longer"] for row in rows), 2)}
    print(table(rows))
    print(f"longer by {middle['longer_median']} s (median)")
    if options.output:
        head["versions"]["ray"] = installed("ray")
        save(options.output, {**head, "unit": "seconds", "results": rows, **middle})


if __name__ == "__main__":
    main(sys.argv[1:])
