"""Every file that people read, written from the store when all is scored."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

from anyio import from_thread

from virnuc_async.errors import CannotWrite, OutputError
from virnuc_async.runs.output_directory import FEATURES, MERGED_FEATURES
from virnuc_async.runs.saved_embeddings import are_saved, certify_saved
from virnuc_async.runs.session import RunSession

from .embeddings import save_features
from .layout import remove_earlier_layout, write_layout
from .options import OutputOptions
from .output_files import FILES, REPORT_FILES, SUMMARY_FILE, FinishedRun
from .summary import (
    Summary,
    left_out_line,
    of_earlier_sessions,
    read_summary,
    summarize,
    summary_line,
    summary_text,
)
from .table_files import SUMMARY, TableFiles
from .viral_files import (
    are_as_written,
    check_originals,
    keep_viral_facts,
    kept_viral_facts,
    options_left,
    require_free,
    stored_inputs,
    write_viral_files,
)
from .written import ModelFacts, Written, paths_digest


class OutputWriter:
    """
    Writes the tables and the summary of *session* into its directory, each at once or not at all.

    *command* is the command line, for the summary.
    """

    def __init__(self, session: RunSession, command: str) -> None:
        self._session = session
        self._command = command
        self._store = session.store
        self._files = TableFiles(session.store.directory, session.store.check)
        self._directory = session.store.directory
        self._log = session.log

    async def write_all(self) -> Summary:
        """
        Write every file, and return the summary; a finished run with unchanged files is left as it is.

        Raises:
            DamagedStore: the store does not have every record and every ORF once
            CannotWrite: the disk is full, or the directory is read-only
        """
        on_disk = self._session.on_disk
        known = await on_disk(self._known_summary)
        if known is not None:
            return known
        counts = self._session.counts
        counts.status = "writing tables"
        run = await on_disk(self._finished_run)
        await on_disk(check_originals, run, stored_inputs(self._store))
        for file in FILES:
            counts.status = f"writing {file.name}"
            await on_disk(self._files.make, file, run, from_thread.check_cancelled)
        await on_disk(self._write_viral_sequences, run)
        await on_disk(write_layout, run, self._files, from_thread.check_cancelled)
        await on_disk(lambda: remove_earlier_layout(run, Written.of(self._store), self._files))
        await on_disk(self._write_or_remove_embeddings)
        await on_disk(self._files.make, SUMMARY_FILE, run)
        if await on_disk(self._write_reports, run):
            await on_disk(self._remember_written, run.options)
        if left_out := left_out_line(run.summary):
            self._log.info("{}", left_out)
        self._log.info("{}", summary_line(run.summary, self._directory.path))
        return run.summary

    async def check(self) -> None:
        """
        Check that what is not in the directory of the run can be written, as far as that is known before.

        Raises:
            UsageError: there is another file where viral sequences are to be written
        """
        settings = self._session.settings
        place, overwrite = settings.viral_fasta, settings.overwrite
        await self._session.on_disk(lambda: require_free(kept_viral_facts(self._store), place, overwrite))

    @contextmanager
    def partial_summary_on_failure(self) -> Iterator[None]:
        """Write the summary of an unfinished run when the body raises or is cancelled."""
        with ExitStack() as on_failure:
            on_failure.callback(self._write_partial_summary)
            yield
            on_failure.pop_all()

    def _write_partial_summary(self) -> None:
        self._log.debug("stopped before the end; finished batches are kept, and the same command resumes")
        # What ended the run is being raised; that the summary cannot be written either is no news.
        with suppress(OutputError, OSError):
            # The directory may be another run's by now, or the reason.
            self._store.check()
            # No contig has a verdict before all are scored; and all scored is not all written.
            facts = summarize(self._session, self._command).as_dict()
            with self._files.new_file(SUMMARY) as file:
                file.writelines(summary_text(Summary(**facts | {"finished": False})))

    def _known_summary(self) -> Summary | None:
        """Return the summary of a run whose files are all as they were written, and as they are wanted."""
        if self._session.scored["batches"]:
            return None
        written = Written.of(self._store)
        if written is None:
            self._log.debug("not all of its files have been written")
            return None
        options, before = self._options(written), written.options
        if options.viral_fasta is None:
            before = options_left(before, self._directory)
        changes = list(before.differences(options))
        if written.paths != paths_digest(self._session.plan.paths):
            changes.append("inputs: moved or renamed")
        if changes:
            self._log.info("{}: writing the tables of this finished run again", "; ".join(changes))
            return None
        is_same = are_as_written(kept_viral_facts(self._store), self._session.settings.viral_fasta)
        if not is_same or written.files != self._files.facts(written.files):
            self._log.info("this run is finished, but some of its files have changed: writing them again")
            return None
        self._log.info("this run is finished already, and its files are unchanged")
        summary = read_summary(self._directory)
        self._log.info("{}", summary_line(of_earlier_sessions(summary), self._directory.path))
        return summary

    def _write_reports(self, run: FinishedRun) -> bool:
        """Write the report, and return whether it could be written: no result is lost with it."""
        self._session.counts.status = "writing the report"
        try:
            for file in REPORT_FILES:
                self._files.make(file, run, from_thread.check_cancelled)
        except CannotWrite as error:
            self._log.warning("{}; all tables are written. The command report makes the report again", error)
            # What is left of an earlier session is not of these tables.
            with suppress(OSError):
                for file in REPORT_FILES:
                    self._files.remove(file.name)
            return False
        return True

    def _remember_written(self, options: OutputOptions) -> None:
        plan, flagged = self._session.plan, self._session.mates.flagged
        digest, facts = paths_digest(plan.paths), self._files.facts(self._files.made)
        Written(options, digest, facts, ModelFacts.of(plan.bundle), flagged).keep(self._store)

    def _finished_run(self) -> FinishedRun:
        plan = self._session.plan
        return FinishedRun(
            self._store.reader,
            self._options(Written.of(self._store)),
            plan.bundle.length,
            plan.verdict_rule,
            self._session.mates.verify,
            partial(summarize, self._session, self._command),
        )

    def _options(self, written: Written | None) -> OutputOptions:
        """Return what the files are to be made by, if they were *written* before."""
        options = OutputOptions.of(self._session.settings, self._session.plan.verdict_rule)
        return options.including(written and options_left(written.options, self._directory))

    def _write_viral_sequences(self, run: FinishedRun) -> None:
        counts = self._session.counts
        status, counts.status = counts.status, "writing viral sequences"
        inputs = stored_inputs(self._store)
        if text := write_viral_files(run, inputs, self._files, from_thread.check_cancelled):
            keep_viral_facts(self._store, run.options.viral_fasta)
            self._log.info("viral sequences: {}", text)
        counts.status = status

    def _write_or_remove_embeddings(self) -> None:
        """Write the embeddings that the run has kept, if they are asked for."""
        has_kept = self._directory.stat(FEATURES) is not None
        has_merged = self._directory.stat(MERGED_FEATURES) is not None
        if self._session.settings.embeddings:
            self._write_embeddings()
        elif has_kept and has_merged and not are_saved(self._store):
            self._files.remove(MERGED_FEATURES)  # of fewer inputs, and all that is in it has been kept

    def _write_embeddings(self) -> None:
        """Write the embeddings, unless they are there as they were written; then no other copy is needed."""
        width = self._session.plan.bundle.shapes.classifier.inputs
        if not are_saved(self._store):
            self._session.counts.status = f"writing {MERGED_FEATURES}"
            with self._files.new_file(MERGED_FEATURES) as file:
                save_features(self._store.reader, width, file)
            certify_saved(self._store)
        self._directory.unlink(FEATURES)
