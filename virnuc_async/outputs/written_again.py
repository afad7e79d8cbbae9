"""Tables of a finished run, made again from its store by other rules."""

from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from virnuc_async.fileio import atomic_write, writing_to
from virnuc_async.runs.store import open_finished
from virnuc_async.sequences.decompression import packed_by_name
from virnuc_async.sequences.inputs import open_alignments
from virnuc_async.settings import CallRules, LabelRules

from .calls import CALLS_TABLE, call_chunks
from .read_labels import label_chunks
from .table_files import TableFiles
from .written import Written


def write_calls(directory: Path, rules: CallRules) -> Counter[tuple[str, str]]:
    """
    Write ``contig_calls.tsv`` of the finished run in *directory*; return how many have which call and tier.

    Raises:
        NoRun: there is no run in *directory*, or not all of it is scored
        DirectoryLockedError: another process is using the directory
        DamagedStore: the store is damaged
        CannotWrite: the disk is full, or the directory is read-only
    """
    tally: Counter[tuple[str, str]] = Counter()
    with closing(open_finished(directory)) as store:
        files = TableFiles(store)
        files.write(CALLS_TABLE, call_chunks(store.reader, rules, tally))
        if written := Written.of(store):
            # Or the next session would find a file that it does not know.
            known = written.files | {CALLS_TABLE: files.facts()[CALLS_TABLE]}
            written._replace(options=replace(written.options, calls=rules), files=known).keep(store)
    return tally


def write_labels(
    directory: Path, alignments: str, output: Path, rules: CallRules, label_rules: LabelRules
) -> Counter[str]:
    """
    Write the table of read labels to *output*, compressed by its name; return how many have which call.

    The contigs are those of the finished run in *directory*, the reads are in the file *alignments*.

    Raises:
        NoRun, DirectoryLockedError, DamagedStore: as :func:`write_calls` does
        UnreadableInput, BrokenInput: *alignments* cannot be read to its end
        UsageError: an optional dependency is missing
        CannotWrite: *output* cannot be written
    """
    tally: Counter[str] = Counter()
    with closing(open_finished(directory)) as store, open_alignments(alignments) as opened:
        chunks = label_chunks(store.reader, opened, rules, label_rules, output.parent, tally)
        with (
            closing(chunks),
            writing_to(output),
            atomic_write(output) as file,
            packed_by_name(file, output.name) as packed,
        ):
            for chunk in chunks:
                packed.write(chunk)
    return tally
