"""
The tables of fragments: the published one, and ``fragments.tsv``, which has their scores and places.

The published one is ``prediction_results_highestscore.csv``, in which tabs separate the columns.
"""

from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from virnuc_async.runs.blocks import FRAMES, Block
from virnuc_async.runs.reader import RunReader
from virnuc_async.sequences.fragments import ranges

from .columns import (
    Chunks,
    TextColumn,
    constant_column,
    encode_lines,
    float_column,
    fragment_suffixes,
    integer_column,
    join_lines,
    text_column,
)
from .sorting import PIECES, RUN_BYTES, sort_lines
from .verdicts import Votes, vote

_ROWS = 1 << 16  # of the table in memory at a time: there are contigs with more fragments
_COLUMNS = (
    *("Modified_ID", "Is_Virus", "max_score_0", "max_score_1"),  # as post-processing programs expect them
    *("contig", "fragment", "start", "end", "frames", "best_frame"),
)


def published_fragment_chunks(reader: RunReader, run_bytes: int = RUN_BYTES, pieces: int = PIECES) -> Chunks:
    """Yield ``prediction_results_highestscore.csv``, some lines at a time, sorted by the fragments' names."""
    yield b"Modified_ID\tIs_Virus\n"
    blocks = map(_published_lines, reader.blocks())
    with closing(sort_lines(blocks, reader.directory, run_bytes, pieces)) as sorted_lines:
        for lines in sorted_lines:
            yield encode_lines(lines)


def fragment_chunks(reader: RunReader, length: int, rows: int = _ROWS) -> Chunks:
    """
    Yield ``fragments.tsv``, at most *rows* lines at a time: every fragment with a scored ORF, in input order.

    *length* is what contigs were cut into, in bases.
    """
    yield "\t".join(_COLUMNS).encode() + b"\n"
    for block in reader.blocks():
        fragments = vote(block)
        best = _best_frames(block, fragments)
        for first in range(0, len(best), rows):
            part = slice(first, first + rows)
            yield encode_lines(_fragment_lines(block, fragments.part(part), best[part], length))


def _published_lines(block: Block) -> list[str]:
    fragments, names = vote(block), block.names()
    return join_lines(
        map(names.__getitem__, fragments.rows.tolist()),
        fragment_suffixes(fragments.numbers),
        _truth_column(fragments.are_viral),
    )


def _fragment_lines(block: Block, fragments: Votes, best: NDArray[np.int32], length: int) -> list[str]:
    lengths, rows, numbers = block.contigs["length"], fragments.rows, fragments.numbers
    starts, ends = ranges(lengths, rows, numbers - np.int64(1), length).T
    names = list(map(block.names().__getitem__, rows.tolist()))
    scores = join_lines(
        names,
        fragment_suffixes(numbers),
        _truth_column(fragments.are_viral),
        float_column(fragments.others),
        float_column(fragments.highest),
    )
    places = join_lines(
        names,
        constant_column(b"", len(names)),
        *map(integer_column, (numbers, starts, ends, fragments.frames)),
        text_column(FRAMES)[best],
    )
    return [f"{left}\t{right}" for left, right in zip(scores, places, strict=True)]


def _best_frames(block: Block, fragments: Votes) -> NDArray[np.int32]:
    """Return the frame of each fragment's highest P(virus), the first of several."""
    highest = np.repeat(fragments.highest, fragments.frames)
    orfs = np.flatnonzero(block.scores["virus"] == highest)
    first = orfs[np.searchsorted(orfs, fragments.starts)]
    frames: NDArray[np.int32] = block.scores["frame"][first]
    return frames


def _truth_column(truths: NDArray[np.bool_]) -> TextColumn:
    column: TextColumn = text_column((b"False", b"True"))[truths.astype(np.intp)]
    return column
