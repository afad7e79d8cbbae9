"""
``merge``: the tables of a run of which the shards were scored on any number of machines.

They are those of one machine, byte for byte. The rows of each record are taken as its shard has written them;
what has more than one record in a row is made of the stores of all shards.
"""

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from virnuc_async.errors import CannotWrite, ShardsMissing
from virnuc_async.fileio import Directory
from virnuc_async.log import logger
from virnuc_async.models.verdict_rule import rule_for
from virnuc_async.outputs.columns import Chunks
from virnuc_async.outputs.embeddings import save_features
from virnuc_async.outputs.formats import require_formats
from virnuc_async.outputs.layout import directory_names, write_layout
from virnuc_async.outputs.options import OutputOptions
from virnuc_async.outputs.output_files import (
    FILES,
    REPORT_FILES,
    SUMMARY_FILE,
    FinishedRun,
    Merging,
    OutputFile,
)
from virnuc_async.outputs.overview import Overview
from virnuc_async.outputs.samples import Tally, samples_of
from virnuc_async.outputs.shard_file import add_saved_overview
from virnuc_async.outputs.summary import Summary, left_out_line, tables_line
from virnuc_async.outputs.table_files import TableFiles
from virnuc_async.outputs.viral_files import (
    check_originals,
    require_free,
    require_place,
    viral_facts,
    write_viral_files,
)
from virnuc_async.runs.mate_check import PairedFiles, find_pairs
from virnuc_async.runs.output_directory import MERGED_FEATURES, OVERVIEW_FILE, refuse_names
from virnuc_async.runs.reader import RunReader
from virnuc_async.runs.scratch import open_scratch
from virnuc_async.settings import Settings
from virnuc_async.text import plural

from .finished_shards import FinishedShard, find_shards
from .merged_output import MergedOutput
from .merged_rows import concatenated, concatenated_regions, files_of, merged, parts
from .merged_summary import summarize
from .plan import RunPlan, read_plan
from .shard_stores import ShardStores

Tell = Callable[[str], None]


def merge_shards(
    run: Path,
    out: Path | None = None,
    *,
    before_each: Tell = lambda _: None,
    command: Sequence[str] = (),
    temporary_dir: Path | None = None,
) -> Summary:
    """
    Write the tables of the shards of *run* into *out*, by default *run* itself; return their summary.

    The stores of the shards are only read. Either all files are written or none; those of an earlier merge
    are replaced. *before_each* is told what comes next, many times a second, and may raise to stop. *command*
    is the command line, for the summary. Temporary files are made in *temporary_dir*, else in *out*.

    Raises:
        NoPlan: there is no plan in *run*
        ShardsMissing: shards are missing, not finished, not of this plan, or not as they were written
        DamagedStore: a store is damaged
        LostInput: the viral sequences are read from the inputs again, and one is not what was scored
        UsageError: an optional dependency is missing, or the place of the viral sequences is taken
        ForeignDirectoryError: *out* contains something else
        DirectoryLockedError: another process is writing there
        CannotWrite: the disk is full, or a directory is read-only
    """
    plan = read_plan(run)
    before_each("checking the shards")
    shards = find_shards(run, plan)
    with ExitStack() as opened:
        own = opened.enter_context(Directory(run))
        stores = opened.enter_context(closing(ShardStores(plan, shards, own, own)))
        merge = _Merge(run, plan, shards, stores, before_each, shlex.join(command))
        merge.check(out or run)
        is_own = out is None or (out.is_dir() and out.samefile(run))
        output = opened.enter_context(MergedOutput.open(out or run, plan.digest, is_own, _log))
        stores.directory = output.directory
        stores.scratch = open_scratch(temporary_dir, output.directory, opened)
        return merge.write(output)


class _Merge:
    """What is done to merge the *shards* of *plan* in *run*, whose rows are in *stores*."""

    def __init__(
        self,
        run: Path,
        plan: RunPlan,
        shards: Sequence[FinishedShard],
        stores: ShardStores,
        before_each: Tell,
        command: str,
    ) -> None:
        self._path = run
        self._plan = plan
        self._shards = shards
        self._known = [shard.known for shard in shards]
        self._before_each = before_each
        self._status = ""
        self.run = self._finished_run(RunReader(stores), command)
        self._inputs = [[file.path, file.fingerprint] for file in plan.files]
        self._viral = self.run.options.viral_fasta
        self._tally = _tally_of(shards)

    def check(self, out: Path) -> None:
        """Check all that can be checked before anything is written."""
        require_formats(self.run.options.formats)
        self._tell("checking the records")
        self._require_planned_inputs()
        for file in FILES:
            if file.merging is not Merging.ANEW and file.is_wanted(self.run):
                files_of(self._path, self._shards, file.name)
        if self._viral is not None:
            require_place(self._viral, [file.path for file in self._plan.files], out)
        check_originals(self.run, self._inputs)

    def write(self, output: MergedOutput) -> Summary:
        """Write all files into *output*."""
        run, place = self.run, output.directory.path
        if self._viral is not None:
            require_free(output.viral_facts, self._viral, overwrite=False)
        if run.options.layout is not None:
            refuse_names(place, output.others(directory_names(run.reader.paths())))
        with output.staging() as staged:
            files = TableFiles(staged, output.check, place)
            for file in FILES:
                if file.is_wanted(run):
                    self._tell(f"writing {file.name}")
                    self._write(file, files)
            self._tell("writing viral sequences")
            if text := write_viral_files(run, self._inputs, files, self._tick):
                _log(f"viral sequences: {text}")
            self._tell("writing tables of each input")
            write_layout(run, files, self._tick)
            if run.options.embeddings:
                self._tell(f"writing {MERGED_FEATURES}")
                with files.new_file(MERGED_FEATURES) as features:
                    save_features(run.reader, self._known[0].width, features)
            files.make(SUMMARY_FILE, run)
        output.finish(len(self._shards), viral_facts(self._viral), self._write_reports(output))
        if left_out := left_out_line(run.summary):
            _log(left_out)
        _log(tables_line(run.summary, place))
        return run.summary

    def _write(self, file: OutputFile, files: TableFiles) -> None:
        if file.merging is Merging.ANEW:
            files.write(file.name, file.chunks(self.run), self._tick)
            return
        rows = files_of(self._path, self._shards, file.name)
        if file.merging is Merging.PARTS:
            for name, content in parts(rows, file.name):
                files.write(name, content, self._tick)
            return
        make: Callable[..., Chunks] = _MAKE[file.merging]
        files.write(file.name, make(rows, file.header_lines), self._tick)

    def _write_reports(self, output: MergedOutput) -> set[str]:
        """Write the report, and return its files: no result is lost with it."""
        files = TableFiles(output.directory, output.check)
        self._tell("writing the report")
        if self.run.options.report:
            self.run.overview = self._joined_overview()
        try:
            for file in REPORT_FILES:
                if file.is_wanted(self.run):
                    files.make(file, self.run, self._tick)
        except CannotWrite as error:
            logger.warning("{}; all tables are written. The same command makes the report again", error)
        return files.made

    def _joined_overview(self) -> Overview:
        run = self.run
        overview = Overview(run.length, run.verdicts, run.options.regions)
        for file in files_of(self._path, self._shards, OVERVIEW_FILE):
            add_saved_overview(overview, b"".join(file.blocks()))
        return overview

    def _require_planned_inputs(self) -> None:
        """Check that each input has the records that are planned, and ended as it did when it was planned."""
        self.run.samples = samples_of(self.run.reader, *self._tally)
        problems = []
        for found, planned in zip(self.run.reader.files(), self._plan.files, strict=True):
            if (found.contigs, found.failed) != (planned.records, planned.failure is not None):
                how = "broke behind" if found.failed else "was read to its end, with"
                count = plural(found.contigs or 0, "record")
                problems.append(f"{found.path} {how} {count}, unlike when it was planned")
        if problems:
            raise ShardsMissing(str(self._path), problems)

    def _finished_run(self, reader: RunReader, command: str) -> FinishedRun:
        plan, known = self._plan, self._known
        model = known[0].model
        asked = plan.settings_on(Settings())
        rule = rule_for(model, asked.verdict_score, asked.threshold, asked.fpr, asked.calibrated)
        options = OutputOptions.of(asked, rule)
        run = FinishedRun(
            reader, options, model.length, rule, self._find_pairs, partial(summarize, plan, known, command)
        )
        run.is_utf8 = plan.is_utf8
        for shard in known:
            run.contigs.update(shard.verdicts)
        return run

    def _find_pairs(self, reader: RunReader) -> PairedFiles:
        status = self._status
        self._tell("comparing the ids of mates")
        found = find_pairs(reader, self.run.options.pairs, self._plan.flagged, self._tick)
        for _, text in found.warnings:
            logger.warning("{}", text)
        self._tell(status)
        return found

    def _tell(self, status: str) -> None:
        self._status = status
        self._tick()

    def _tick(self) -> None:
        self._before_each(self._status)


def _log(text: str) -> None:
    logger.info("{}", text)


_MAKE: dict[Merging, Callable[..., Chunks]] = {
    Merging.ROWS: concatenated,
    Merging.REGIONS: concatenated_regions,
    Merging.SORTED: merged,
}


def _tally_of(shards: Sequence[FinishedShard]) -> tuple[Tally, Counter[int]]:
    """Return what is in each input, and how many failures it has, by its number."""
    tally: Tally = {}
    failures: Counter[int] = Counter()
    for shard in shards:
        failures.update(shard.known.failures)
        for file, counts in shard.known.tally.items():
            tally[file] = tally.get(file, 0) + counts
    return tally, failures
