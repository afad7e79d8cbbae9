"""Windows, scored batches and stores of small runs, and what is read back from them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.errors import Stage
from virnuc_async.runs.output_directory import FEATURES
from virnuc_async.runs.store import Store
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.tokens import Ragged
from virnuc_async.sequences.windows import ContigRow, FileRow, Window

WIDTH = 3
FILE_A, FILE_B = ["/data/a.fa", 10, 1], ["/data/b.fa", 20, 2]
IDENTITY = {"inputs": [FILE_A, FILE_B], "model": "m", "threshold": 0.5}


def make_window(
    number: int = 0, ids: Sequence[bytes] = (b"c0", b"c1"), files: Sequence[FileRow] = ()
) -> Window:
    """Two ORFs per contig, in fragment 1; contigs and ORFs are numbered through the run."""
    first = number * len(ids)
    origins = [(first + contig, 1, frame) for contig in range(len(ids)) for frame in (0, 5)]
    tokens = Ragged(np.full(3 * len(origins), 5, np.int32), np.full(len(origins), 3))
    return Window(
        number=number,
        first=2 * first,
        contigs=tuple(ContigRow(first + n, 0, name, 100 + n, 1) for n, name in enumerate(ids)),
        files=tuple(files),
        origins=np.array(origins, np.int64).reshape(-1, 3),
        digest=digest(number),
        nucleotides=tokens,
        residues=tokens,
    )


def digest(number: int) -> bytes:
    return b"digest of window %15d" % number


def score(batch: Batch, embeddings: bool = False, **failed: tuple[Stage, str]) -> ScoredBatch:
    """Score ORF n with the last two digits of n as decimals for virus; its embedding is n, n, n."""
    virus = (batch.orfs % 100 / 100).astype(np.float32)
    rows = np.repeat(batch.orfs[:, None], WIDTH, 1).astype(np.float32) if embeddings else None
    failures = {int(row.removeprefix("row")): why for row, why in failed.items()}
    return ScoredBatch(batch, "cpu:0", 0.5, np.stack((1 - virus, virus), 1), rows, failures)


def batches(window: Window, budget: int = 6) -> list[Batch]:
    return list(window.batches(budget))


def contigs(store: Store) -> list[tuple[bytes, int, int, int, int]]:
    """Return id, number, length, file and fragments of every record."""
    return [
        (name, *contig)
        for block in store.reader.blocks()
        for name, contig in zip(block.ids.split(b"\n"), block.contigs.tolist(), strict=False)
    ]


def ids(store: Store) -> list[bytes]:
    return [contig[0] for contig in contigs(store)]


def scores(store: Store) -> list[tuple[int, int, int, int, float, float]]:
    """Return ORF, contig, fragment, frame, others and virus of every scored ORF."""
    return [row for block in store.reader.blocks() for row in block.scores.tolist()]


def orfs(store: Store) -> list[int]:
    return [row[0] for row in scores(store)]


def window_digest(store: Store, number: int) -> bytes | None:
    """Return the digest of a window that is stored, or None."""
    window = store.reader.window(number)
    return window and window.digest


def reopen(store: Store) -> Store:
    store.close()
    store.__init__(store.directory.path)  # type: ignore[misc]
    return store


def features(out: Path) -> np.ndarray:
    return np.fromfile(out / FEATURES, np.float32).reshape(-1, WIDTH)
