"""
The table of read labels: each read gets the call of the contig that it is aligned to best.

The rules are those of viral-ngs (``virnucpro_label_reads_by_contig``), and so are the columns. Names are
grouped by DuckDB, an optional dependency, which goes to disk with what does not fit into memory.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnuc_async.errors import CannotWrite, UsageError
from virnuc_async.fileio import writing_to
from virnuc_async.runs.reader import RunReader
from virnuc_async.runs.scratch import ANOTHER_TMPDIR
from virnuc_async.sequences.aligned_reads import AlignedReads, aligned_reads
from virnuc_async.sequences.alignments import AlignmentParser
from virnuc_async.settings import CallRules, LabelRules

from .calls import COLUMNS as CALL_COLUMNS
from .calls import called_contigs, naming
from .columns import Chunks

UNCLASSIFIED, MULTI_MAPPED, REVIEW = "Unclassified", "Multi-mapped", "review"
COLUMNS = (
    *("read_id", "read_length", "contig_id", "contig_length", "strand", "mapping_quality"),
    *("pct_identity", "pct_query_cov", "mapped_well", *CALL_COLUMNS[1:]),
)

_MEMORY = "2GB"  # that DuckDB takes
_WHAT = "grouping the alignments of reads"
_ROWS = 1 << 14  # of the table at a time
_CREATE = """
CREATE TABLE alignments (
    name VARCHAR, number BIGINT, length INTEGER, contig INTEGER, is_forward BOOLEAN,
    quality INTEGER, identity DOUBLE, coverage DOUBLE, call INTEGER)
"""
# The order of a name's alignments: by quality and identity, the first in the file of equal ones.
_LABELS = """
SELECT name, length, contig, is_forward, quality, identity, coverage, are_several
FROM alignments JOIN (
    SELECT min(number) AS first, min(call) <> max(call) AS are_several,
        max_by(number, {'quality': quality, 'identity': identity, 'earlier': -number}) AS best
    FROM alignments GROUP BY name)
ON number = best ORDER BY first
"""


class Contigs(NamedTuple):
    """The contigs that reads are aligned to."""

    names: tuple[str, ...]
    lengths: tuple[int, ...]
    calls: NDArray[np.int64]  # which call each has; -1: none
    fields: tuple[tuple[str, ...], ...]  # of the table of calls, behind the name


def label_chunks(
    reader: RunReader,
    alignments: AlignmentParser,
    rules: CallRules,
    label_rules: LabelRules,
    scratch: Path,
    tally: Counter[str],
) -> Chunks:
    """
    Yield the table of read labels, some lines at a time, in the order in which reads appear first.

    What does not fit into memory is in *scratch* meanwhile. Reads are counted in *tally* by their call.

    Raises:
        UsageError: DuckDB or pysam is not installed
        BrokenInput: the alignments break half way, or have no NM tags
        CannotWrite: DuckDB has too little room in *scratch*, or too little memory
    """
    with _database(scratch) as database:
        database.execute(_CREATE)
        contigs = _insert_all(database, reader, alignments, rules)
        yield "\t".join(COLUMNS).encode() + b"\n"
        rows = database.execute(_LABELS)
        while found := rows.fetchmany(_ROWS):
            lines = [_line(row, contigs, label_rules, tally) for row in found]
            yield "".join(lines).encode("utf-8")


def _insert_all(database: Any, reader: RunReader, alignments: AlignmentParser, rules: CallRules) -> Contigs:
    """Insert every alignment, and return the contigs."""
    contigs: Contigs | None = None
    number = 0
    with closing(aligned_reads(alignments)) as parts:  # type: ignore[type-var]
        for part in parts:
            if contigs is None:
                contigs = _contigs(reader, alignments, rules)
            _insert(database, part, number, contigs.calls)
            number += len(part.names)
    return contigs or Contigs((), (), np.zeros(0, np.int64), ())


def _insert(database: Any, part: AlignedReads, first: int, calls: NDArray[np.int64]) -> None:
    columns = {
        "name": part.names,
        "number": first + np.arange(len(part.names)),
        "length": part.lengths,
        "contig": part.references,
        "is_forward": part.are_forward,
        "quality": part.quality,
        "identity": part.identity,
        "coverage": part.coverage,
        "call": calls[part.references],
    }
    database.register("part", columns)
    database.execute(f"INSERT INTO alignments SELECT {', '.join(columns)} FROM part")
    database.unregister("part")


def _contigs(reader: RunReader, alignments: AlignmentParser, rules: CallRules) -> Contigs:
    names, lengths = zip(*alignments.references, strict=True)
    part = naming(rules.id_pattern)
    wanted: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        wanted.setdefault(part(name), []).append(number)
    calls, fields = np.full(len(names), -1), [_NO_CALL] * len(names)
    kinds: dict[str, int] = {}
    with closing(called_contigs(reader, rules)) as groups:
        for contig in (contig for group in groups for contig in group):
            for number in wanted.get(contig.name, ()):
                calls[number] = kinds.setdefault(contig.call, len(kinds))
                fields[number] = contig.fields()
    return Contigs(names, lengths, calls, tuple(fields))


_NO_CALL = (UNCLASSIFIED, *[""] * (len(CALL_COLUMNS) - 2))


def _line(row: tuple[Any, ...], contigs: Contigs, rules: LabelRules, tally: Counter[str]) -> str:
    name, length, contig, is_forward, quality, identity, coverage, are_several = row
    mapped_well = (
        quality >= rules.min_mapping_quality
        and identity >= rules.min_identity
        and coverage >= rules.min_coverage
    )
    fields = contigs.fields[contig]
    if are_several:
        fields = (MULTI_MAPPED, REVIEW, *fields[2:])
    tally[fields[0]] += 1
    values = (
        *(name, length, contigs.names[contig], contigs.lengths[contig], "+" if is_forward else "-", quality),
        *(f"{identity:.3f}", f"{coverage:.3f}", mapped_well, *fields),
    )
    return "\t".join(map(str, values)) + "\n"


@contextmanager
def _database(scratch: Path) -> Iterator[Any]:
    """Open an empty database in a temporary directory in *scratch*."""
    try:
        duckdb = import_module("duckdb")
    except ImportError:
        raise UsageError("labels of reads need DuckDB and pysam: pip install 'virnuc-async[reads]'") from None
    # The operating system refuses, or a limit does: what a disk, a machine or its user can cause. What is
    # left half done makes the database unusable, which is how later ones of its calls fail.
    refused = (duckdb.OperationalError, duckdb.FatalException, MemoryError)
    with (
        _translated_errors(scratch, refused),
        TemporaryDirectory(prefix=".labels-", dir=scratch) as directory,
    ):
        database = duckdb.connect(str(Path(directory) / "alignments"), config={"memory_limit": _MEMORY})
        try:
            database.execute("SET temp_directory = ?", [str(Path(directory) / "spilled")])
            database.execute("SET preserve_insertion_order = false")
            yield database
        finally:
            database.close()


@contextmanager
def _translated_errors(scratch: Path, refused: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn an OSError and the errors *refused* into CannotWrite."""
    try:
        with writing_to(scratch, _WHAT, ANOTHER_TMPDIR):
            yield
    except refused as error:
        # The first line says what happened, the others how DuckDB is configured.
        reason = (str(error).splitlines() or ["no memory is left"])[0].rstrip(".")
        hint = f"It takes up to {_MEMORY} of memory, and room for all alignments. {ANOTHER_TMPDIR}"
        raise CannotWrite(str(scratch), f"{_WHAT}: {reason}. {hint}") from error
