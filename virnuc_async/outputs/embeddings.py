"""``merged_features.pt``: the ids and embeddings of all scored ORFs, as VirNucPro writes them."""

from contextlib import ExitStack
from typing import BinaryIO

import numpy as np

from virnuc_async import models
from virnuc_async.errors import DamagedStore
from virnuc_async.fileio import write_all
from virnuc_async.runs.embedding_rows import fingerprints
from virnuc_async.runs.output_directory import FEATURES
from virnuc_async.runs.reader import RunReader
from virnuc_async.runs.scratch import temporary_files

BLOCK_BYTES = 64 << 20  # of embeddings that are in memory at a time


def save_features(reader: RunReader, width: int, file: BinaryIO, block_bytes: int = BLOCK_BYTES) -> None:
    """
    Write the ids and embeddings of every scored ORF to *file*, in input order.

    *width* is that of both embeddings together. Only the ids are all in memory at once.

    Raises:
        DamagedStore: a row is not as it was computed
        CannotWrite: a temporary file cannot be written
        OSError: *file* cannot
    """
    ids: list[str] = []
    numbers = [np.empty(0, np.int64)]
    for block in reader.blocks():
        ids += (id.decode("utf-8", "surrogateescape") for id in block.orf_ids())
        numbers.append(block.scores["orf"])
    orfs = np.concatenate(numbers)
    if not ids:
        models.save_features(ids, np.empty((0, width), np.float32), file)
        return
    # Rows of failed ORFs are left out, so the others are copied to be next to each other: into a file
    # without a name, which no killed process leaves behind.
    known = np.concatenate(list(reader.fingerprints()))
    step = max(1, block_bytes // (4 * width))
    with reader.embeddings(width) as all_rows, ExitStack() as stack:
        # Written, not mapped for writing: a full disk kills a process that writes to a map. And not by a
        # buffer, which would be written again when the file is closed.
        with temporary_files(reader.scratch):
            packed = stack.enter_context(reader.scratch.temporary_file())
            for start in range(0, len(orfs), step):
                rows = all_rows.read(orfs[start : start + step])
                if not np.array_equal(fingerprints(rows), known[start : start + step]):
                    reason = f"its {FEATURES} is damaged. The same command computes again what is lost of it"
                    raise DamagedStore(str(reader.directory), reason)
                write_all(packed.fileno(), rows.data.cast("B"), start * 4 * width)
        data = np.memmap(packed, np.float32, "c", shape=(len(orfs), width))
        models.save_features(ids, data, file)
