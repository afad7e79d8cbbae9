"""
Whether the embeddings of a run are all there: as ``merged_features.pt``, or as rows to make it of.

``merged_features.pt`` is the only copy once it is written, so the store knows its checksum.
"""

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, partial
from hashlib import file_digest

import numpy as np
from anyio import from_thread

from virnuc_async.fileio import writing_to
from virnuc_async.text import plural

from .blocks import SCORE
from .embedding_rows import EmbeddingRows, SavedRows, fingerprints
from .output_directory import FEATURES, MERGED_FEATURES
from .rows import FINGERPRINT, BatchKey, BatchRow
from .store import Store

_META = "saved features"


def are_saved(store: Store) -> bool:
    """
    Whether ``merged_features.pt`` is as it was written.

    Its content is only read if its modification time has changed.
    """
    known = store.get_meta(_META)
    try:
        with store.directory.open(MERGED_FEATURES) as file:
            facts = os.fstat(file.fileno())
            if known is None or facts.st_size != known[0]:
                return False
            if facts.st_mtime_ns == known[1]:
                return True
            if file_digest(file, "sha256").hexdigest() != known[2]:
                return False
    except OSError:
        return False
    store.set_meta(_META, [facts.st_size, facts.st_mtime_ns, known[2]])
    return True


def certify_saved(store: Store) -> None:
    """
    Note what the content of ``merged_features.pt`` is, which was just written.

    Raises:
        CannotWrite: it cannot be read
    """
    with writing_to(store.directory.path, MERGED_FEATURES), store.directory.open(MERGED_FEATURES) as file:
        facts = os.fstat(file.fileno())
        digest = file_digest(file, "sha256").hexdigest()
    store.set_meta(_META, [facts.st_size, facts.st_mtime_ns, digest])


@dataclass(slots=True)
class EmbeddingCheck:
    """What is known of the embeddings of all batches: of which they are lost, or were restored."""

    batches: int = 0
    restored: int = 0
    lost: list[BatchKey] = field(default_factory=list)

    def run(self, store: Store, width: int) -> None:
        """
        Check the embeddings, of *width* numbers, of all batches of *store*; call it in a worker thread.

        Rows that the file of rows does not have, or has with other numbers, are taken from
        ``merged_features.pt`` if it has them.

        Raises:
            DamagedStore: the store cannot be read
            DirectoryLockedError: another process has taken the directory over
            CannotWrite: the embeddings cannot be read, or the disk is full
        """
        if not store.reader.window_count():
            return
        store.check()
        # Read when it is needed: a run that proceeds as it should has no such file.
        saved = cache(partial(SavedRows, store.directory, width))
        batches = store.reader.all_batches()
        with writing_to(store.directory.path, FEATURES), store.embeddings(width) as rows, closing(batches):
            for batch in batches:
                from_thread.check_cancelled()
                self.batches += 1
                restored, is_lost = _restore(batch, rows, saved)
                self.restored += restored
                self.lost += [batch.key] * is_lost

    def text(self) -> str:
        """Format what is lost, and where the rest was found; "" if everything was there."""
        if self.lost:
            count = f"{plural(len(self.lost), 'batch', 'es')} of {self.batches:,}"
            return f"the embeddings of {count} are lost or damaged, and are computed again"
        return f"the embeddings so far are taken from {MERGED_FEATURES}" * bool(self.restored)


def _restore(batch: BatchRow, rows: EmbeddingRows, saved: Callable[[], SavedRows]) -> tuple[int, bool]:
    """Write what *rows* lack of *batch*; return how many that were, and whether any is lost."""
    known = np.frombuffer(batch.fingerprints, FINGERPRINT)
    orfs = np.frombuffer(batch.scores, SCORE)["orf"]
    if len(known) < len(orfs):
        return 0, True
    is_missing = fingerprints(rows.read(orfs)) != known
    if not is_missing.any():
        return 0, False
    are_there, found = saved().find(known[is_missing])
    if len(found):
        rows.write(orfs[is_missing][are_there], found)
    return len(found), not are_there.all()
