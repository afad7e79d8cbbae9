"""The table of contigs, ``contigs.tsv``, and what the table of pairs has in common with it."""

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.runs.blocks import Block
from virnuc_async.runs.reader import RunReader

from .columns import (
    Chunks,
    TextColumn,
    constant_column,
    decimal_column,
    encode_lines,
    integer_column,
    join_lines,
    one_line,
    optional_column,
    text_column,
)
from .verdicts import (
    CALIBRATED,
    COUNTS,
    DECIMALS,
    FRACTIONS,
    LABELS,
    LOG_ODDS,
    VERDICT,
    Q,
    count_labels,
    verdict_columns,
)


def contig_chunks(reader: RunReader, rule: VerdictRule, tally: Counter[str]) -> Chunks:
    """Yield ``contigs.tsv``, some lines at a time: records in input order; count the verdicts in *tally*."""
    yield verdict_header("contig", "file", "length", rule=rule)
    paths = path_fields(reader)
    for block in reader.blocks():
        files = block.contigs["file"]
        verdicts = verdict_columns(block, rule)
        count_labels(verdicts, tally)
        yield verdict_lines(
            block,
            text_column(paths[files[0] : files[-1] + 1])[files - files[0]],
            integer_column(block.contigs["length"]),
            verdicts=verdicts,
        )


def verdict_header(*names: str, rule: VerdictRule) -> bytes:
    """Return the header of a table with the columns *names*, followed by those of the verdicts by *rule*."""
    columns = [*names, *COUNTS, *FRACTIONS, VERDICT, LOG_ODDS]
    if rule.calibration:
        columns += [CALIBRATED, *([Q] * bool(rule.calibration.log_odds))]
    return "\t".join(columns).encode() + b"\n"


def path_fields(reader: RunReader) -> list[bytes]:
    """Return the path of each input file, with spaces in place of its tabs and line ends."""
    return [one_line(os.fsencode(path)) for path in reader.paths()]


def verdict_lines(block: Block, *columns: TextColumn, verdicts: Mapping[str, NDArray[Any]]) -> bytes:
    """Return a line for each contig of *block*: its id, *columns* and *verdicts*, separated by tabs."""
    no_suffix = constant_column(b"", len(block.contigs))
    formatted = (_format_verdicts(name, column) for name, column in verdicts.items())
    return encode_lines(join_lines(block.names(), no_suffix, *columns, *formatted))


def _format_verdicts(name: str, column: NDArray[Any]) -> TextColumn:
    if name == VERDICT:
        labels: TextColumn = text_column(label.encode() for label in LABELS)[column]
        return labels
    if name == LOG_ODDS:
        return decimal_column(column, DECIMALS)
    return integer_column(column) if name in COUNTS else optional_column(column)
