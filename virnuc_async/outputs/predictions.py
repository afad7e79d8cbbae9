"""The table of ORFs: ``prediction_results.txt``."""

from dataclasses import replace

import numpy as np

from virnuc_async.runs.blocks import FRAMES, Block
from virnuc_async.runs.reader import BlockReader

from .columns import Chunks, encode_lines, float_column, fragment_suffixes, join_lines, text_column
from .verdicts import LABELS

_ROWS = 1 << 16  # of the table in memory at a time: there are contigs with more ORFs


def prediction_chunks(reader: BlockReader, rows: int = _ROWS) -> Chunks:
    """Yield ``prediction_results.txt``, at most *rows* lines at a time: every scored ORF in input order."""
    yield b"Sequence_ID\tPrediction\tscore1\tscore2\n"
    for block in reader.blocks():
        for first in range(0, len(block.scores), rows):
            part = replace(block, scores=block.scores[first : first + rows])
            yield encode_lines(_orf_lines(part))


def _orf_lines(block: Block) -> list[str]:
    scores, names = block.scores, block.names()
    labels = (scores["virus"] > scores["others"]).astype(np.intp)
    suffixes = np.hstack((fragment_suffixes(scores["fragment"]), text_column(FRAMES)[scores["frame"]]))
    return join_lines(
        map(names.__getitem__, block.rows.tolist()),
        suffixes,
        text_column(label.encode() for label in LABELS)[labels],
        float_column(scores["others"]),
        float_column(scores["virus"]),
    )
