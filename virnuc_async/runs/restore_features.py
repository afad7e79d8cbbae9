"""Embeddings of a finished run, put back to where batches keep them, because the run goes on."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from virnuc_async import models
from virnuc_async.errors import BadFeatures
from virnuc_async.fileio import atomic_write, writing_to

from .output_directory import FEATURES
from .reader import RunReader
from .reuse_embeddings import ROWS_AT_ONCE


def restore_features(reader: RunReader, path: Path, widths: tuple[int, int]) -> None:
    """
    Write the embeddings in *path*, of every scored ORF in order, to the position of their ORF.

    Raises:
        BadFeatures: the file is damaged, or not of this run
        CannotWrite: the disk is full
    """
    blocks = reader.blocks()
    scored = (
        one for block in blocks for one in zip(block.scores["orf"].tolist(), block.orf_ids(), strict=True)
    )
    row_bytes, offsets = 4 * sum(widths), (0, 4 * widths[0])
    orfs: list[int] = []
    with writing_to(reader.directory), atomic_write(reader.directory / FEATURES) as file:
        for part, ids, vectors in models.read_features(path, widths, ROWS_AT_ONCE):
            if part == 0:
                known = list(islice(scored, len(ids)))
                orfs = [orf for orf, _ in known]
                _require(path, [id for _, id in known] == ids)
            for orf, vector in zip(orfs, vectors, strict=True):
                file.seek(orf * row_bytes + offsets[part])
                file.write(vector.data)
        _require(path, next(scored, None) is None)


def _scored_orfs(reader: RunReader) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the published id of each ORF that has a score."""
    for block in reader.blocks():
        yield from zip(block.scores["orf"].tolist(), block.orf_ids(), strict=True)


def _require(path: Path, is_of_run: bool) -> None:
    if not is_of_run:
        raise BadFeatures(str(path), "it does not have the ORFs of this run")
