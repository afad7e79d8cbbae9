"""Feature files as VirNucPro writes them, and what a run knows of its ORFs from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from virnuc_async.runs.reuse_embeddings import FeatureIndex
from virnuc_async.sequences.fastx import Contig
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.sequences.windows import Cut, Window, form_windows

NUCLEOTIDE, PROTEIN = 3, 2  # widths
IDS = ("a_chunk_1F1", "b_chunk_1F1", "a_chunk_2F1")
NUMBERS = np.arange(15, dtype=np.float32).reshape(3, 5) + 1


def nucleotides(ids: Sequence[str] = IDS, numbers: NDArray[np.float32] = NUMBERS[:, :3]) -> dict[str, Any]:
    rows = [{"label": id, "mean_representation": own} for id, own in zip(ids, numbers.tolist(), strict=True)]
    return {"nucleotide": list(ids), "data": rows}


def proteins(ids: Sequence[str] = IDS, numbers: NDArray[np.float32] = NUMBERS[:, 3:]) -> dict[str, Any]:
    return {"proteins": list(ids), "data": [row.clone() for row in torch.tensor(numbers.copy())]}


def merged(ids: Sequence[str] = IDS, numbers: NDArray[np.float32] = NUMBERS) -> dict[str, Any]:
    return {"ids": list(ids), "data": torch.tensor(numbers)}


def saved(path: Path, found: object) -> Path:
    torch.save(found, path)
    return path


class OneToken(OrfTokenizer):
    """Makes one token of any bases."""

    def __init__(self) -> None:
        self._bases = None

    def nucleotides(self, bases: Sequence[bytes]) -> Any:
        return self.residues(bases)


def windows(contigs: Sequence[Contig], size: int = 100, length: int = 6) -> list[Window]:
    """Return the windows of *contigs*, all of whose frames are open; fragments have *length* bases."""
    return list(form_windows(["-"], lambda path: iter(contigs), Cut(length, size), OneToken()))


AB = (Contig(b"a", b"GCAGCAGCAGCA"), Contig(b"b", b"GCAGCA"))


def known(features: FeatureIndex, read: Sequence[Window]) -> dict[str, list[Any]]:
    """Return what batches know of each ORF, by its id: of its bases, of its residues."""
    names = {}
    for window in read:
        for batch in window.batches(20, features.lookup(window)):
            for row, (contig, fragment, frame) in enumerate(batch.origins.tolist()):
                id = f"{'abcdefgh'[contig]}_chunk_{fragment}{('F1', 'F2', 'F3', 'R1', 'R2', 'R3')[frame]}"
                parts = (batch.known.bases, batch.known.residues)
                names[id] = [None if part is None else part[row].tolist() for part in parts]
    return names


EXPECTED = {id: [own[:3].tolist(), own[3:].tolist()] for id, own in zip(IDS, NUMBERS, strict=True)}


def known_only(found: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {id: parts for id, parts in found.items() if parts != [None, None]}
