"""A clock that is set, and counts of a run, for tests of what is logged."""

import numpy as np

from virnuc_async.runs.progress import Counts
from virnuc_async.sequences.reading import Place
from virnuc_async.sequences.tokens import Ragged
from virnuc_async.sequences.windows import FileRow, Window


class Clock:
    """A clock that stands still unless it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


BEGINNING = Place(0)


def window(
    number: int, orfs: int, tokens: int, place: Place = BEGINNING, files: tuple[FileRow, ...] = ()
) -> Window:
    """A window of so many ORFs, which have so many tokens in all."""
    ids = Ragged(np.zeros(tokens, np.int32), np.full(orfs, tokens // max(1, orfs), np.int64))
    return Window(number, 0, (), files, np.zeros((orfs, 3), np.int64), b"", ids, ids, place=place)


def working(**devices: tuple[int, int]) -> Counts:
    """Counts of a run whose devices, ready at 1000, have scored so many ORFs and tokens."""
    counts = Counts(started=990.0)
    counts.expect(devices)
    for name, (orfs, tokens) in devices.items():
        counts.ready(name, now=1000.0)
        counts.finished(name, orfs, tokens)
    return counts


def read(counts: Counts, orfs: int, tokens: int, is_all: bool = False) -> Counts:
    """Have *counts* read so many ORFs and tokens, of a stream whose length nobody knows."""
    counts.begin([("-", None)])
    counts.add_window(window(0, orfs, tokens), (orfs, tokens))
    if is_all:
        counts.all_read()
    return counts
