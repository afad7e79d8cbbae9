"""Helpers that several test modules share and that are not fixtures."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from virnuc_async.networks.packing import Packed, pack
from virnuc_async.runs.lock import LOCK
from virnuc_async.sequences.fragments import cut
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.orfs import Orf, open_frames
from virnuc_async.sequences.tokens import Ragged

# Of each run unless it is asked for none.
REPORTS = ("report.html", "virnuc_mqc.json", "virnuc_statistics_mqc.json")
# The tables of a run, which must never differ by a byte.
TABLES = (*("prediction_results.txt", "prediction_results_highestscore.csv"), "contigs.tsv", "fragments.tsv")

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
_OPTIONAL = ROOT.parent / "shared" / "golden"


def beside(name: str) -> Path:
    """Return a part of the optional third-party golden data; skip the test if it is not there."""
    path = _OPTIONAL / name
    if not path.exists():
        pytest.skip(f"there is no optional golden data {name} next to the checkout")
    return path


class Piece(NamedTuple):
    """A fragment as the published program writes it, and its ORFs."""

    id: str
    bases: str
    orfs: tuple[Orf, ...]


def pieces(path: Path, length: int) -> Iterator[Piece]:
    """Yield the fragments of the sequences in *path*."""
    for contig in read_contigs(str(path)):
        ranges = list(cut(len(contig.bases), length))
        orfs = open_frames(contig.bases, ranges)
        for at, (start, end) in enumerate(ranges):
            own = tuple(orf for orf, row in zip(orfs, orfs.fragments, strict=True) if row == at)
            name = f"{contig.id.decode()}_chunk_{at + 1}"
            yield Piece(name, contig.bases[start:end].decode(), own)


def fasta(records: Iterable[tuple[str, str]], width: int = 0) -> str:
    """Return *records* as FASTA, with sequences in lines of *width* letters; 0: in a single line."""
    return "".join(f">{name}\n{wrapped(letters, width)}\n" for name, letters in records)


def wrapped(letters: str, width: int) -> str:
    """Return *letters* in lines of *width*; 0: a single line."""
    return "\n".join(letters[at : at + width] for at in range(0, len(letters), width)) if width else letters


def read_table(path: Path) -> list[list[str]]:
    """Return the rows of a tab-separated file, with the header."""
    return [line.split("\t") for line in path.read_text("utf-8").splitlines()]


def assert_published_scores(ours: Path, published: Path) -> None:
    """Check that the ids and labels in prediction_results.txt are equal, and the scores within 1e-5."""
    assert_scores_alike(*(read_table(directory / TABLES[0]) for directory in (ours, published)), atol=1e-5)


def assert_scores_alike(found: list[list[str]], expected: list[list[str]], atol: float) -> None:
    """Check that the ids and labels of two tables of ORFs are equal, and the scores within *atol*."""
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    scores, expected_scores = (np.array([row[2:] for row in rows[1:]], float) for rows in (found, expected))
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=atol)


def read_embeddings(directory: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the published program's embeddings of each ORF, by id: of the bases, and of the residues."""
    bases = torch.load(directory / "dnabert.pt", weights_only=True)
    residues = torch.load(directory / "esm.pt", weights_only=True)
    return (
        {row["label"]: torch.tensor(row["mean_representation"]) for row in bases["data"]},
        dict(zip(residues["proteins"], residues["data"], strict=True)),
    )


def make_stale(out: Path) -> None:
    """Change the lock of *out*, if there is one, so that its owner is a process that has ended."""
    path = out / LOCK
    if path.exists():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"started": "another time"}))


def ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    """Return *rows* of token ids as one ragged array."""
    flat = [token for row in rows for token in row]
    return Ragged(np.array(flat, np.int32), np.array([len(row) for row in rows], np.int64))


def packed(rows: Sequence[Sequence[int]]) -> Packed:
    """Return *rows* of token ids packed into one batch."""
    return pack(ragged(rows))


def final_name(name: str) -> str:
    """Return the name that a file called *name* gets when it is complete."""
    made = re.fullmatch(r"\.(.+)\.(?:[0-9a-f]{8}|unknown)-[0-9a-f]{8}\.virnuc\.partial", name)
    return made[1] if made else name
