"""What several tests share that is no fixture."""

import json
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

# What a run writes for people to read, and what must not differ by a byte.
TABLES = ("prediction_results.txt", "prediction_results_highestscore.csv", "contigs.tsv")

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
_BESIDE = ROOT.parent / "shared" / "golden"


def beside(name: str) -> Path:
    """Give a part of the optional golden data beside the checkout (others' files); skip without."""
    path = _BESIDE / name
    if not path.exists():
        pytest.skip(f"there is no optional golden-data directory with {name} beside the checkout")
    return path


class Piece(NamedTuple):
    """A fragment, as the published program writes it, and its ORFs."""

    id: str
    bases: str
    orfs: tuple[Orf, ...]


def pieces(path: Path, length: int) -> Iterator[Piece]:
    """Read, cut and translate *path*."""
    for contig in read_contigs(str(path)):
        ranges = list(cut(len(contig.bases), length))
        orfs = open_frames(contig.bases, ranges)
        for at, (start, end) in enumerate(ranges):
            own = tuple(orf for orf, row in zip(orfs, orfs.fragments, strict=True) if row == at)
            name = f"{contig.id.decode()}_chunk_{at + 1}"
            yield Piece(name, contig.bases[start:end].decode(), own)


def fasta(records: Iterable[tuple[str, str]], width: int = 0) -> str:
    """Write FASTA as the published program does; lines of *width* letters, 0 for a single one."""
    return "".join(f">{name}\n{wrapped(letters, width)}\n" for name, letters in records)


def wrapped(letters: str, width: int) -> str:
    """Break *letters* into lines."""
    return "\n".join(letters[at : at + width] for at in range(0, len(letters), width)) if width else letters


def read_table(path: Path) -> list[list[str]]:
    """Give the rows of a tab-separated file, its header first."""
    return [line.split("\t") for line in path.read_text("utf-8").splitlines()]


def assert_published_scores(ours: Path, published: Path) -> None:
    """See that the ids and labels in prediction_results.txt are equal, and the scores within 1e-5."""
    assert_scores_alike(*(read_table(directory / TABLES[0]) for directory in (ours, published)), atol=1e-5)


def assert_scores_alike(found: list[list[str]], wanted: list[list[str]], atol: float) -> None:
    """See that the ids and labels of two tables of ORFs are equal, and the scores within *atol*."""
    assert [row[:2] for row in found] == [row[:2] for row in wanted]
    scores, exact = (np.array([row[2:] for row in rows[1:]], float) for rows in (found, wanted))
    np.testing.assert_allclose(scores, exact, rtol=0, atol=atol)


def read_embeddings(directory: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Give upstream's embeddings of each ORF, by id: of the bases, of the residues."""
    bases = torch.load(directory / "dnabert.pt", weights_only=True)
    residues = torch.load(directory / "esm.pt", weights_only=True)
    return (
        {row["label"]: torch.tensor(row["mean_representation"]) for row in bases["data"]},
        dict(zip(residues["proteins"], residues["data"], strict=True)),
    )


def make_stale(out: Path) -> None:
    """Have the process that holds *out* be dead, as the kernel would see it: it is another one than ours."""
    path = out / LOCK
    if path.exists():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"started": "another time"}))


def ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    """Put *rows* of token ids behind each other."""
    flat = [token for row in rows for token in row]
    return Ragged(np.array(flat, np.int32), np.array([len(row) for row in rows], np.int64))


def packed(rows: Sequence[Sequence[int]]) -> Packed:
    """Pack *rows* of token ids into one batch."""
    return pack(ragged(rows))
