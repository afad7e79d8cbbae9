"""The table of pairs: ``pairs.tsv``."""

from collections import Counter
from collections.abc import Iterable

from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.runs.reader import RunReader
from virnuc_async.sequences.mates import Mates

from .columns import Chunks, constant_column, integer_column
from .contigs import path_fields, verdict_header, verdict_lines
from .pairs import pair_blocks
from .verdicts import count_labels, verdict_columns


def pair_chunks(
    reader: RunReader, all_mates: Iterable[Mates], rule: VerdictRule, tally: Counter[str]
) -> Chunks:
    """
    Yield ``pairs.tsv``, some lines at a time: every pair of *all_mates*, whose ids agree, in order.

    The fragments of both mates vote like those of one contig. Verdicts are counted in *tally*.
    """
    yield verdict_header("pair", "file_1", "file_2", "length_1", "length_2", rule=rule)
    paths = path_fields(reader)
    for mates in all_mates:
        for pairs in pair_blocks(reader, mates):
            verdicts = verdict_columns(pairs.joint, rule)
            count_labels(verdicts, tally)
            yield verdict_lines(
                pairs.joint,
                *(constant_column(paths[file], len(pairs.lengths)) for file in mates),
                *map(integer_column, pairs.lengths.T),
                verdicts=verdicts,
            )
