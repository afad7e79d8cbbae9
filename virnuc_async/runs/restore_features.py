"""Embeddings of a finished run, put back to where batches keep them, because the run goes on."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from virnuc_async import models
from virnuc_async.errors import BadFeatures
from virnuc_async.fileio import writing_to

from .output_directory import FEATURES, MERGED_FEATURES
from .reader import RunReader
from .reuse_embeddings import ROWS_AT_ONCE


def restore_features(reader: RunReader, widths: tuple[int, int], check: Callable[[], None]) -> None:
    """
    Write the embeddings of every scored ORF, which are in one file in order, to the position of their ORF.

    *check* is called before the result gets its name.

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
    path = reader.directory.path / MERGED_FEATURES
    new_file = reader.directory.atomic_write(FEATURES, check)
    with writing_to(reader.directory.path), new_file as file:
        for part, ids, vectors in models.read_features(path, widths, ROWS_AT_ONCE):
            if part == 0:
                known = list(islice(scored, len(ids)))
                orfs = [orf for orf, _ in known]
                _require(path, [id for _, id in known] == ids)
            for orf, vector in zip(orfs, vectors, strict=True):
                file.seek(orf * row_bytes + offsets[part])
                file.write(vector.data)
        _require(path, next(scored, None) is None)


def _require(path: Path, is_of_run: bool) -> None:
    if not is_of_run:
        raise BadFeatures(str(path), "it does not have the ORFs of this run")
