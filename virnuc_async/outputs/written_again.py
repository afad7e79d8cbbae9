"""Files of a finished run, made again from its store by other options."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from virnuc_async.errors import ForeignDirectoryError, NoRun, UsageError
from virnuc_async.fileio import USE_ANOTHER_DIRECTORY, Directory, atomic_directory, atomic_write, writing_to
from virnuc_async.models.bundle import Bundle, find
from virnuc_async.models.verdict_rule import VerdictRule, rule_for
from virnuc_async.runs.mate_check import find_pairs
from virnuc_async.runs.output_directory import STORE, is_written_name, require_free_names
from virnuc_async.runs.store import Store, open_finished
from virnuc_async.sequences.decompression import packed_by_name
from virnuc_async.sequences.inputs import open_alignments
from virnuc_async.settings import (
    CallRules,
    Format,
    LabelRules,
    Precision,
    Settings,
    VerdictBy,
)

from .calls import CALLS_TABLE, call_chunks
from .formats import require_formats
from .layout import remove_earlier_layout, require_free_layout, write_layout
from .options import RULES, OutputOptions
from .output_files import FILES, REPORT_FILES, SUMMARY_FILE, FinishedRun, OutputFile
from .read_labels import label_chunks
from .summary import Summary, read_summary, summarize_again
from .table_files import TableFiles
from .viral_files import (
    check_originals,
    keep_viral_facts,
    kept_viral_facts,
    options_left,
    require_free,
    require_place,
    stored_inputs,
    write_viral_files,
)
from .written import ModelFacts, Written

_REPEAT = "Repeat the command that began it"


@dataclass(frozen=True, slots=True)
class Changes:
    """
    What is to be otherwise than it was when the files of a run were made.

    *options* are of :class:`OutputOptions`, by their names. *rules* ask for the tables that have some, with
    the other rules as they were; None: for none. *calibrated* is whether contigs get a column of the
    calibration; with a *model*, which must be the run's, of its calibration.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    calibrated: bool | None = None
    model: Bundle | None = None
    cache_dir: Path | None = None  # where the model of the run is looked for, if the store does not know it
    temporary_dir: Path | None = None  # where temporary files are made; None: where the run is


def write_tables(
    directory: Path,
    changes: Changes,
    output: Path | None = None,
    before_each: Callable[[str], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> Summary:
    """
    Write all files of the finished run in *directory* again, with *changes*; return its summary.

    *before_each* is told what comes next. With *output*, a new directory or one without such files, they are
    written there, and those of the run stay as they are. *note* is told where the viral sequences are.

    Raises:
        NoRun: there is no run in *directory*, or it was not written to its end
        DirectoryLockedError: another process is using the directory
        DamagedStore: the store is damaged
        UsageError: *changes* make no sense for this run
        LostInput: the viral sequences are read from the inputs again, and one is not what was scored
        NoThreshold: its model has none for the false positive rate of *changes*
        UnknownBundle: its model is needed and unknown
        ForeignDirectoryError: *output* has files of such names
        CannotWrite: the disk is full, or a directory is read-only
    """
    with closing(open_finished(directory, changes.temporary_dir)) as store:
        written = _require_written(store)
        model = _model(store, written, changes)
        run = _finished_run(store, written, model, changes)
        require_formats(run.options.formats)
        _require_summary(store, written)
        if place := run.options.viral_fasta:
            require_place(place, store.reader.paths(), output or directory)
            require_free(kept_viral_facts(store), place, overwrite=False)
        check_originals(run, stored_inputs(store))
        if output is not None:
            if run.options.layout:
                require_free_layout(output, store.reader.paths())
            with _new_files(store, output) as files:
                note(_make_all(files, run, store, before_each))
            return run.summary
        files = _own_files(store)
        note(_make_all(files, run, store, before_each))
        facts = files.facts_since(written.files)
        written._replace(options=run.options, files=facts, model=model).keep(store)
    return run.summary


def write_table(directory: Path, changes: Changes, table: OutputFile, file: BinaryIO) -> None:
    """
    Write *table* of the finished run in *directory* to *file*.

    Raises:
        UsageError: an optional dependency is missing
        what :func:`write_tables` raises
    """
    require_formats((table.format,))
    with closing(open_finished(directory, changes.temporary_dir)) as store:
        written = _require_written(store)
        run = _finished_run(store, written, _model(store, written, changes), changes)
        with closing(table.chunks(run)) as chunks:
            file.writelines(chunks)


def write_report(directory: Path) -> None:
    """
    Write the report of the finished run in *directory* again, of the tables and the summary as they are.

    Raises:
        NoRun, DirectoryLockedError, DamagedStore, UnknownBundle, CannotWrite: as :func:`write_tables` does
    """
    with closing(open_finished(directory)) as store:
        written = _require_written(store)
        model = _model(store, written, Changes())
        _require_summary(store, written)
        files, changes = _own_files(store), Changes({"report": True})
        run = _finished_run(store, written, model, changes, lambda _: read_summary(store.directory))
        for file in REPORT_FILES:
            files.make(file, run)
        # Or the next session would find files that it does not know.
        facts = files.facts_since(written.files)
        written._replace(options=run.options, files=facts, model=model).keep(store)


def find_table(name: str, format: Format | None = None) -> OutputFile:
    """
    Return the table *name*, as the command line or its file is called, in a *format*.

    Raises:
        UsageError: there is none
    """
    named = [file for file in FILES if name in (file.name, file.table)]
    if not named:
        names = ", ".join(dict.fromkeys(file.table for file in FILES if file.table))
        raise UsageError(f"no such table: {name!r}. Tables: {names}")
    if format is None:
        return named[0]
    forms = [file for file in FILES if file.table and file.table == named[0].table] or named
    found = next((file for file in forms if file.format is format), None)
    if found is None:
        raise UsageError(f"{named[0].name} is text, and has no other format")
    return found


@contextmanager
def packed_file(path: Path) -> Iterator[BinaryIO]:
    """
    Open a new file that replaces *path* when it is complete, compressed by its name.

    Raises:
        CannotWrite: it cannot be written
    """
    with writing_to(path), atomic_write(path) as file, packed_by_name(file, path.name) as packed:
        yield packed


def write_calls(
    directory: Path, rules: CallRules, temporary_dir: Path | None = None
) -> Counter[tuple[str, str]]:
    """
    Write ``contig_calls.tsv`` of the finished run in *directory*; return how many have which call and tier.

    Temporary files are made there, or in *temporary_dir*.

    Raises:
        NoRun: there is no run in *directory*, or not all of it is scored
        DirectoryLockedError, DamagedStore, CannotWrite: as :func:`write_tables` does
    """
    tally: Counter[tuple[str, str]] = Counter()
    with closing(open_finished(directory, temporary_dir)) as store:
        files, written = _own_files(store), Written.of(store)
        reader = store.reader.at_least(written.options.min_length) if written else store.reader
        files.write(CALLS_TABLE, call_chunks(reader, rules, tally))
        if written:
            # Or the next session would find a file that it does not know.
            options = replace(written.options, calls=rules)
            written._replace(options=options, files=files.facts_since(written.files)).keep(store)
    return tally


def write_labels(
    directory: Path,
    alignments: str,
    output: Path,
    rules: CallRules,
    label_rules: LabelRules,
    temporary_dir: Path | None = None,
) -> Counter[str]:
    """
    Write the table of read labels to *output*, compressed by its name; return how many have which call.

    The contigs are those of the finished run in *directory*, the reads are in the file *alignments*.
    Temporary files are made in *temporary_dir*, else beside *output*.

    Raises:
        NoRun, DirectoryLockedError, DamagedStore: as :func:`write_calls` does
        UnreadableInput, BrokenInput: *alignments* cannot be read to its end
        UsageError: an optional dependency is missing
        CannotWrite: *output* or a temporary file cannot be written
    """
    tally: Counter[str] = Counter()
    scratch = temporary_dir or output.parent
    with closing(open_finished(directory, temporary_dir)) as store, open_alignments(alignments) as opened:
        chunks = label_chunks(store.reader, opened, rules, label_rules, scratch, tally)
        with closing(chunks), packed_file(output) as file:
            file.writelines(chunks)
    return tally


def _own_files(store: Store) -> TableFiles:
    """Return what writes into the directory of *store*, as long as that is the store's own."""
    return TableFiles(store.directory, store.check)


def _require_written(store: Store) -> Written:
    written = Written.of(store)
    if written is None:
        raise NoRun(str(store.directory), f"its files have not all been written yet. {_REPEAT}")
    return written


def _require_summary(store: Store, written: Written) -> None:
    """Check that the summary, of which the facts of the sessions are taken, is as it was written."""
    if _own_files(store).facts().get("checksum") != written.files.get("checksum"):
        raise NoRun(str(store.directory), f"its summary.json is missing or has changed. {_REPEAT}")


def _finished_run(
    store: Store,
    written: Written,
    model: ModelFacts,
    changes: Changes,
    summarize: Callable[[FinishedRun], Summary] | None = None,
) -> FinishedRun:
    """Return what files are made of; unless told how to *summarize*, the summary is of their tables."""
    options, rule = _options(options_left(written.options, store.directory), model, changes)
    return FinishedRun(
        store.reader,
        options,
        model.length,
        rule,
        partial(find_pairs, pairing=options.pairs, flagged=written.flagged),
        summarize or partial(_summarize, store, _is_used(model, options)),
    )


def _is_used(model: ModelFacts, options: OutputOptions) -> bool | None:
    """Return whether the calibration of the *model* is used; None if it has none."""
    return None if model.calibration is None else options.calibration is not None


def _model(store: Store, written: Written, changes: Changes) -> ModelFacts:
    """Return what is known of the model of the run: of *changes*, as it was, or as it is installed now."""
    if written.model is not None and changes.model is None:
        return written.model
    identity = store.get_meta("identity")["model"]
    name, _, fingerprint = identity.removesuffix(")").rpartition(" (")
    bundle = changes.model or find(name, changes.cache_dir)
    if bundle.fingerprint != fingerprint:
        other = f"{identity} -> {bundle.name} ({bundle.fingerprint})"
        raise UsageError(f"this is not the model of the run in {store.directory}: {other}")
    return ModelFacts.of(bundle)


def _options(before: OutputOptions, model: ModelFacts, changes: Changes) -> tuple[OutputOptions, VerdictRule]:
    """Return the options with *changes*, and the rule of verdicts that they ask for."""
    is_calibrated = bool(changes.model or before.calibration)
    if changes.calibrated is not None:
        is_calibrated = changes.calibrated
    values = {**changes.options, **_verdicts(before, changes.options)}
    for name, rules in changes.rules.items():
        known = getattr(before, name) or RULES[name]()
        values[name] = None if rules is None else replace(known, **rules)
    options = replace(before, **values)
    rule = rule_for(model, options.verdict_by, options.threshold, options.fpr, is_calibrated)
    return options.by_rule(rule), rule


def _verdicts(before: OutputOptions, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what verdicts are by: what is *given* of it, and else as it was *before*."""
    names = ("threshold", "verdict_by", "fpr")
    asked = {name: given[name] for name in names if name in given}
    # A threshold and a rate exclude each other, and so do the fraction and a rate.
    if "threshold" not in asked and "fpr" not in asked:
        has_rate = asked.get("verdict_by") != VerdictBy.FRACTION
        asked = {"threshold": before.threshold, "fpr": before.fpr if has_rate else None} | asked
    if before.verdict_by is not VerdictBy.FRACTION:
        asked = {"verdict_by": before.verdict_by} | asked
    settings = Settings(**asked)
    return {"threshold": settings.threshold, "verdict_by": settings.verdict_score, "fpr": settings.fpr}


def _summarize(store: Store, calibrated: bool | None, run: FinishedRun) -> Summary:
    precision = Precision(store.get_meta("identity")["precision"])
    return summarize_again(read_summary(store.directory), precision, calibrated, run)


def _make_all(files: TableFiles, run: FinishedRun, store: Store, before_each: Callable[[str], None]) -> str:
    """Make all files; return what is to be said of the viral sequences."""
    for file in FILES:
        before_each(f"writing {file.name}")
        files.make(file, run)
    note_viral = partial(before_each, "writing viral sequences")
    text = write_viral_files(run, stored_inputs(store), files, note_viral)
    keep_viral_facts(store, run.options.viral_fasta)
    write_layout(run, files, partial(before_each, "writing tables of each input"))
    if files.directory is store.directory:
        remove_earlier_layout(run, Written.of(store), files)
    for file in (SUMMARY_FILE, *REPORT_FILES):
        files.make(file, run)
    return text


@contextmanager
def _new_files(store: Store, output: Path) -> Iterator[TableFiles]:
    """Yield what writes into *output*; if it is a new directory, it is there when all is written."""
    if (output / STORE).is_file():
        hint = "without --output, the files of the run itself are replaced"
        raise ForeignDirectoryError(str(output), f"contains a run. {USE_ANOTHER_DIRECTORY}; {hint}")
    require_free_names(output, is_written_name, "run of this program")
    with writing_to(output), ExitStack() as opened:
        path = output if output.is_dir() else opened.enter_context(atomic_directory(output))
        yield TableFiles(opened.enter_context(Directory(path)), store.check)
