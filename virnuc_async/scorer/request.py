"""A request: the windows of one caller's records, and their scores as these arrive."""

from collections import deque

import anyio
import numpy as np

from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.errors import Stage, VirnucError
from virnuc_async.runs.blocks import CONTIG, SCORE, Block
from virnuc_async.sequences.windows import Window


class ScoredWindow:
    """A window and the scores of its ORFs, row by row as they arrive."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.left = len(window.origins)  # ORFs without a result
        self.failures: dict[int, list[str]] = {}  # number of a contig -> why ORFs of it have no score
        self._scores = np.zeros(self.left, SCORE)
        self._scores["orf"] = np.arange(window.first, window.first + self.left)
        for column, values in zip(("contig", "fragment", "frame"), window.origins.T, strict=True):
            self._scores[column] = values
        self._has_score = np.ones(self.left, bool)

    def put(self, scored: ScoredBatch) -> None:
        """Take the results of a batch, whose ORFs are rows of the window."""
        rows = scored.batch.orfs
        for column, values in zip(("others", "virus"), scored.probabilities.T, strict=True):
            self._scores[column][rows] = values
        for place, failure in scored.failures.items():
            self._fail(int(rows[place]), *failure)
        self.left -= len(rows)

    def block(self) -> Block:
        """Return the records that begin in the window, and the scores of its ORFs."""
        contigs = np.array(
            [(contig.number, contig.length, contig.file, contig.fragments) for contig in self.window.contigs],
            CONTIG,
        )
        ids = b"".join(b"%s\n" % contig.id for contig in self.window.contigs)
        return Block(contigs, ids, self._scores[self._has_score])

    def _fail(self, row: int, stage: Stage, reason: str) -> None:
        self._has_score[row] = False
        contig, fragment, _ = self.window.origins[row].tolist()
        self.failures.setdefault(contig, []).append(f"fragment {fragment}: {stage}: {reason}")


class Request:
    """What one caller waits for: its windows in order, of which the first is fetched when it is complete."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self.windows: deque[ScoredWindow] = deque()
        self.failures: dict[int, list[str]] = {}  # of ORFs, by the number of their contig
        self._error: VirnucError | None = None
        self._changed = anyio.Event()

    def notify(self) -> None:
        """Wake the caller: scores have arrived."""
        self._changed.set()

    def fail(self, error: VirnucError) -> None:
        """Let the caller have *error* instead of scores."""
        self._error = error
        self._changed.set()

    async def next_window(self) -> ScoredWindow:
        """
        Wait until the first window has all its scores, and take it away.

        Raises:
            what :meth:`fail` was given
        """
        while self.windows[0].left:
            if self._error is not None:
                raise self._error
            self._changed = anyio.Event()
            await self._changed.wait()
        scored = self.windows.popleft()
        for contig, reasons in scored.failures.items():
            self.failures.setdefault(contig, []).extend(reasons)
        return scored


def whole_records(block: Block, *, is_last: bool) -> tuple[Block, Block | None]:
    """Return the records of *block* that are complete, and the one that may continue in the next window."""
    if is_last or not block.ids:
        return block, None
    return block.split_last()


def joined(first: Block | None, second: Block) -> Block:
    """Return two consecutive blocks as one."""
    if first is None:
        return second
    contigs = np.concatenate((first.contigs, second.contigs))
    scores = np.concatenate((first.scores, second.scores))
    return Block(contigs, first.ids + second.ids, scores)
