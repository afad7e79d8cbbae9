"""
The files that are made of a store: for each its name, whether it is wanted, and what is in it.

They are written in this order, since later ones may use what earlier ones have counted.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum, auto
from functools import cached_property, partial
from itertools import chain
from typing import Any, NamedTuple

from numpy.typing import NDArray

from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.runs.blocks import Block
from virnuc_async.runs.mate_check import PairedFiles
from virnuc_async.runs.reader import RunReader
from virnuc_async.sequences.inputs import CONTIGS, READS
from virnuc_async.settings import CallRules, Format, RegionRules
from virnuc_async.text import is_utf8

from .calls import CALLS_TABLE, call_chunks
from .columns import Chunks
from .contigs import contig_chunks
from .failures import failure_chunks
from .formats import jsonl_chunks, parquet_chunks
from .fragments import fragment_chunks, published_fragment_chunks
from .multiqc import STATISTICS, VERDICTS, statistic_chunks, verdict_chunks
from .options import OutputOptions
from .overview import Overview
from .pair_table import pair_chunks
from .predictions import prediction_chunks
from .region_tables import REGIONS_BED, REGIONS_GFF3, bed_chunks, gff3_chunks
from .report import REPORT, report_chunks
from .samples import SAMPLES_TABLE, Sample, count_samples, input_kinds, sample_chunks, sums
from .summary import Summary, summary_text
from .table_files import SUMMARY
from .verdicts import VERDICT, verdict_columns


def _no_pairs(_: RunReader) -> PairedFiles:
    return PairedFiles([], 0, [], [])


def _no_summary(_: "FinishedRun") -> Summary:
    raise NotImplementedError("a part of a run has no summary")


class FinishedRun:
    """
    What files are made of: the store that *reader* reads, some facts of the model, and the options.

    Use it in the thread that uses the store. Without what finds its pairs, and makes its summary, it is the
    part of a run.
    """

    def __init__(
        self,
        reader: RunReader,
        options: OutputOptions,
        length: int,
        rule: VerdictRule,
        find_pairs: Callable[[RunReader], PairedFiles] = _no_pairs,
        summarize: Callable[["FinishedRun"], Summary] = _no_summary,
    ) -> None:
        self.reader = reader.at_least(options.min_length)
        self.options = options
        self.length = length  # bases that contigs were cut into
        self.rule = rule  # of verdicts
        self.contigs: Counter[str] = Counter()  # by their verdicts, once their table is made
        self.pairs: Counter[str] = Counter()  # and of pairs
        self._find_pairs = find_pairs
        self._summarize = summarize

    @cached_property
    def paired(self) -> PairedFiles:
        """The files whose records are pairs, to the last one."""
        return self._find_pairs(self.reader)

    @cached_property
    def _counts(self) -> list[int]:
        return [file.contigs or 0 for file in self.reader.files()]

    def contigs_of(self, file: int) -> int:
        """Return how many records of input number *file* were read."""
        return self._counts[file]

    def verdicts(self, block: Block) -> dict[str, NDArray[Any]]:
        """Return the verdicts on the contigs of *block*, as their table has them."""
        return verdict_columns(block, self.rule)

    @cached_property
    def is_utf8(self) -> bool:
        """Whether all ids of records and paths of inputs are UTF-8."""
        paths = self.reader.paths()
        ids = (b"\n".join(block) for file in range(len(paths)) for block in self.reader.ids(file))
        return all(map(is_utf8, chain(map(os.fsencode, paths), ids)))

    @cached_property
    def samples(self) -> list[Sample]:
        """What is in each input."""
        return count_samples(self.reader, lambda block: self.verdicts(block)[VERDICT])

    @cached_property
    def reads(self) -> Counter[str]:
        """How many reads there are, viral and short ones too, once the table of contigs is made."""
        kinds = input_kinds(self.reader)
        if READS in kinds and CONTIGS in kinds:
            return next(sums(self.samples)).counts
        count = self.reader.totals().contigs
        counts = Counter(records=count, virus=self.contigs["virus"], short=count - self.contigs.total())
        return counts if READS in kinds else Counter()

    @cached_property
    def overview(self) -> Overview:
        """What the report shows of the contigs, gathered when it is first asked for."""
        overview = Overview(self.length, self.verdicts, self.options.regions)
        for block in self.reader.blocks():
            overview.add(block)
        return overview

    @cached_property
    def summary(self) -> Summary:
        """The facts of the run, once the tables of contigs and pairs are made."""
        return self._summarize(self)


class Merging(Enum):
    """How a file of a run is made of those that its shards have written."""

    ANEW = auto()  # it is not: it is made of all stores
    ROWS = auto()  # their rows, one behind the other
    REGIONS = auto()  # the same, with their regions numbered through
    SORTED = auto()  # their rows, which are sorted
    PARTS = auto()  # they are the parts of a table in a directory


class OutputFile(NamedTuple):
    """A file that is made of a store."""

    name: str
    chunks: Callable[[FinishedRun], Chunks]  # its content; nothing is read before the first is taken
    is_wanted: Callable[[FinishedRun], bool] = lambda run: True  # else one that is there is removed
    table: str = ""  # what the command line calls it, if it is a table
    format: Format = Format.TSV
    merging: Merging = Merging.ANEW

    @property
    def header_lines(self) -> int:
        """How many lines, before its rows, are in the file of each shard."""
        return 0 if self.format is Format.JSONL else 1


def _contig_chunks(run: FinishedRun) -> Chunks:
    run.contigs.clear()  # it may be made in several formats
    yield from contig_chunks(run.reader, run.rule, run.contigs)


def _pair_chunks(run: FinishedRun) -> Chunks:
    run.pairs.clear()
    yield from pair_chunks(run.reader, run.paired.mates, run.rule, run.pairs)


def _call_chunks(run: FinishedRun) -> Chunks:
    return call_chunks(run.reader, run.options.calls or CallRules())


def _bed_chunks(run: FinishedRun) -> Chunks:
    return bed_chunks(run.reader, run.length, run.options.regions or RegionRules())


def _gff3_chunks(run: FinishedRun) -> Chunks:
    return gff3_chunks(run.reader, run.length, run.options.regions or RegionRules())


def _has_failed(run: FinishedRun) -> bool:
    return bool(run.reader.totals().failures or run.paired.failures)


def _table(
    table: str, name: str, chunks: Callable[[FinishedRun], Chunks], is_wanted: Callable[[FinishedRun], bool]
) -> Iterator[OutputFile]:
    """Yield the text file *name* of a *table* of all records, and the same in each other format."""
    stem = name.removesuffix(".tsv") if name.endswith(".tsv") else table
    for format, file, make in (
        (Format.TSV, name, chunks),
        (Format.PARQUET, f"{stem}.parquet", lambda run: parquet_chunks(chunks(run), run.is_utf8)),
        (Format.JSONL, f"{stem}.jsonl", lambda run: jsonl_chunks(chunks(run))),
    ):
        yield OutputFile(file, make, partial(_is_wanted, format, is_wanted), table, format)


def _rows(name: str, table: str, chunks: Callable[[FinishedRun], Chunks]) -> Iterator[OutputFile]:
    """Yield a *table* in which each record has rows of its own, in each format."""
    for file in _table(table, name, chunks, _always):
        merging = Merging.PARTS if file.format is Format.PARQUET else Merging.ROWS
        yield file._replace(merging=merging)


def _is_wanted(format: Format, has_table: Callable[[FinishedRun], bool], run: FinishedRun) -> bool:
    return format in run.options.formats and has_table(run)


def _always(run: FinishedRun) -> bool:
    return True


def _has_regions(run: FinishedRun) -> bool:
    return run.options.regions is not None


FILES: tuple[OutputFile, ...] = (
    *_rows("prediction_results.txt", "predictions", lambda run: prediction_chunks(run.reader)),
    OutputFile(
        "prediction_results_highestscore.csv",
        lambda run: published_fragment_chunks(run.reader),
        lambda run: Format.TSV in run.options.formats,
        merging=Merging.SORTED,
    ),
    *_rows("fragments.tsv", "fragments", lambda run: fragment_chunks(run.reader, run.length)),
    *_rows("contigs.tsv", "contigs", _contig_chunks),
    *_table("calls", CALLS_TABLE, _call_chunks, lambda run: run.options.calls is not None),
    OutputFile(REGIONS_BED, _bed_chunks, _has_regions, table="regions", merging=Merging.REGIONS),
    OutputFile(REGIONS_GFF3, _gff3_chunks, _has_regions, merging=Merging.REGIONS),
    *_table("pairs", "pairs.tsv", _pair_chunks, lambda run: bool(run.paired.mates)),
    OutputFile(
        SAMPLES_TABLE,
        lambda run: sample_chunks(run.samples),
        lambda run: len(run.reader.paths()) > 1,
        table="samples",
    ),
    OutputFile("failed_files.txt", lambda run: failure_chunks(run.reader, run.paired.failures), _has_failed),
)
# It is written when all else is there.
SUMMARY_FILE = OutputFile(SUMMARY, lambda run: summary_text(run.summary))


def _has_report(run: FinishedRun) -> bool:
    return run.options.report


# They are for people, and made of what all other files are made of: a run is complete without them.
REPORT_FILES: tuple[OutputFile, ...] = (
    OutputFile(REPORT, report_chunks, _has_report),
    OutputFile(VERDICTS, verdict_chunks, _has_report),
    OutputFile(STATISTICS, statistic_chunks, _has_report),
)
