"""
Measure a model on reads of held-out genomes: single reads, and pairs of mates.

An insert is a random part of a record, on either strand; its mates are its two ends, as a
sequencer reads them. Sequencing errors are not simulated. Prints a Markdown table.
"""

import argparse
import csv
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import numpy as np
from genomes import Piece, read_pieces, reverse_complement
from numpy.typing import NDArray

from virnuc_async import Settings, run_pipeline
from virnuc_async.learning.metrics import auroc

HEAD = (
    "| bp | what | rows | no_orf, viral | no_orf, others | AUROC | threshold | sensitivity | specificity |",
    "|---|---|---|---|---|---|---|---|---|",
)
THRESHOLDS = (0.5, 0.6)  # one viral mate of two is enough, or both must be viral


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of ``contigs.tsv`` or ``pairs.tsv``, with their true class."""

    viral: NDArray[np.bool_]
    scored: NDArray[np.bool_]  # those with an ORF
    fraction: NDArray[np.float64]
    mean: NDArray[np.float64]


def mates(
    pieces: Sequence[Piece], length: int, insert: int, count: int, random: np.random.Generator
) -> Iterator[tuple[bytes, bytes]]:
    """Yield *count* pairs of reads of *length* bases, from inserts of *insert* bases of *pieces*."""
    pieces = [piece for piece in pieces if len(piece.bases) >= insert]
    sizes = np.array([len(piece.bases) for piece in pieces])
    for at in random.choice(len(pieces), count, p=sizes / sizes.sum()):
        start = int(random.integers(sizes[at] - insert + 1))
        sequence = pieces[at].bases[start : start + insert]
        if random.random() < 0.5:
            sequence = reverse_complement(sequence)
        yield sequence[:length], reverse_complement(sequence)[:length]


def write(directory: Path, name: str, pairs: Iterator[tuple[bytes, bytes]]) -> list[Path]:
    """Write the first and the second mates to one file each; return the paths."""
    paths = [directory / f"{name}_R{mate}.fa" for mate in (1, 2)]
    with open(paths[0], "wb") as first, open(paths[1], "wb") as second:
        for number, pair in enumerate(pairs):
            for file, read in zip((first, second), pair, strict=True):
                file.write(b">%s.%d\n%s\n" % (name.encode(), number, read))
    return paths


def read(path: Path, column: str) -> Table:
    """Read a table of a run; the value in *column* begins with the true class."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return Table(
        viral=np.array([row[column].startswith("viral") for row in rows]),
        scored=np.array([row["verdict"] != "no_orf" for row in rows]),
        fraction=np.array([float(row["viral_fraction"] or "nan") for row in rows]),
        mean=np.array([float(row["mean_p_virus"] or "nan") for row in rows]),
    )


def lines(table: Table, length: int, what: str, thresholds: Sequence[float]) -> Iterator[str]:
    """Yield a line for each of *thresholds*; rates are over the rows that have an ORF."""
    viral, scored = table.viral, table.scored
    without = (f"{1 - scored[of].mean():.1%}" for of in (viral, ~viral))
    head = f"| {length} | {what} | {len(viral):,} | {' | '.join(without)}"
    area = auroc(table.mean[scored], viral[scored])
    for threshold in thresholds:
        called = table.fraction >= threshold
        rates = called[scored & viral].mean(), 1 - called[scored & ~viral].mean()
        yield f"{head} | {area:.3f} | {threshold:g} | {rates[0]:.3f} | {rates[1]:.3f} |"


def main() -> None:
    """Print the results of the model for each length."""
    options = _arguments()
    random = np.random.default_rng(options.seed)
    pieces = read_pieces(options.genomes, "val")
    classes = {name: [p for p in pieces if p.viral == (name == "viral")] for name in ("viral", "others")}
    print(*HEAD, sep="\n")
    for length in map(int, options.lengths.split(",")):
        with tempfile.TemporaryDirectory() as directory:
            work = Path(directory)
            files = [
                path
                for name, own in classes.items()
                for path in write(work, name, mates(own, length, options.insert, options.pairs, random))
            ]
            anyio.run(run_pipeline, files, work / "out", Settings(model=options.model))
            single, paired = read(work / "out/contigs.tsv", "contig"), read(work / "out/pairs.tsv", "pair")
        print(*lines(single, length, "reads", THRESHOLDS[:1]), sep="\n")
        print(*lines(paired, length, "pairs", THRESHOLDS), sep="\n", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--genomes", type=Path, required=True, help="directory of val.*.fna.gz")
    parser.add_argument("--model", default="tiny-500", help="name or directory of a bundle")
    parser.add_argument("--lengths", default="150,250,300", help="bases of a read")
    parser.add_argument(
        "--insert", type=int, default=400, help="bases from the first mate's end to the other's"
    )
    parser.add_argument("--pairs", type=int, default=2000, help="of each class")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
