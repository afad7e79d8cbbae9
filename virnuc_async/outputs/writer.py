"""Every file that people read, written from the store when all is scored."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from hashlib import sha256
from typing import Any

from anyio import from_thread

from virnuc_async.errors import OutputError
from virnuc_async.runs.identity import describe_differences
from virnuc_async.runs.output_directory import FEATURES, MERGED_FEATURES
from virnuc_async.runs.saved_embeddings import are_saved, certify_saved
from virnuc_async.runs.session import RunSession
from virnuc_async.settings import CallRules

from .calls import CALLS_TABLE, call_chunks
from .columns import Chunks
from .contigs import contig_chunks
from .embeddings import save_features
from .failures import failure_chunks
from .fragments import fragment_chunks, published_fragment_chunks
from .pair_table import pair_chunks
from .predictions import prediction_chunks
from .summary import Summary, of_earlier_sessions, read_summary, summarize, summary_line, summary_text
from .table_files import SUMMARY, TableFiles


class OutputWriter:
    """
    Writes the tables and the summary of *session* into its directory, each at once or not at all.

    *command* is the command line, for the summary.
    """

    def __init__(self, session: RunSession, command: str) -> None:
        self._session = session
        self._command = command
        self._store = session.store
        self._files = TableFiles(session.store)
        self._directory = session.store.directory
        self._log = session.log

    async def write_all(self) -> Summary:
        """
        Write every file, and return the summary; a finished run with unchanged files is left as it is.

        Raises:
            DamagedStore: the store does not have every record and every ORF once
            CannotWrite: the disk is full, or the directory is read-only
        """
        known = await self._session.on_disk(self._known_summary)
        if known is not None:
            return known
        self._session.counts.status = "writing tables"
        await self._write("prediction_results.txt", prediction_chunks(self._store.reader))
        await self._write(
            "prediction_results_highestscore.csv", published_fragment_chunks(self._store.reader)
        )
        length = self._session.plan.bundle.length
        await self._write("fragments.tsv", fragment_chunks(self._store.reader, length))
        contigs = await self._write_contigs()
        await self._write_calls()
        pairs = await self._write_pairs()
        await self._write_failures()
        await self._session.on_disk(self._write_or_remove_embeddings)
        summary = await self._session.on_disk(summarize, self._session, self._command, contigs, pairs)
        await self._write(SUMMARY, summary_text(summary))
        await self._session.on_disk(self._remember_written)
        self._log.info("{}", summary_line(summary, self._directory.path))
        return summary

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
            facts = summarize(self._session, self._command, {}, Counter()).as_dict()
            with self._files.new_file(SUMMARY) as file:
                file.writelines(summary_text(Summary(**facts | {"finished": False})))

    def _known_summary(self) -> Summary | None:
        """Return the summary of a run whose files are all as they were written, and as they are wanted."""
        if self._session.scored["batches"]:
            return None
        written = self._store.get_meta("written")
        if written is None:
            self._log.debug("not all of its files have been written")
            return None
        changes = list(describe_differences(written["settings"], self._output_settings()))
        if written["paths"] != self._paths_digest():
            changes.append("inputs: moved or renamed")
        if changes:
            self._log.info("{}: writing the tables of this finished run again", "; ".join(changes))
            return None
        if written["files"] != self._files.facts():
            self._log.info("this run is finished, but some of its files have changed: writing them again")
            return None
        self._log.info("this run is finished already, and its files are unchanged")
        summary = read_summary(self._directory)
        self._log.info("{}", summary_line(of_earlier_sessions(summary), self._directory.path))
        return summary

    def _output_settings(self) -> dict[str, Any]:
        """Return what the files depend on beside the store."""
        settings, calibration = self._session.settings, self._session.plan.calibration
        written = self._store.get_meta("written") or {"settings": {}}
        return {
            "threshold": settings.threshold,
            "pairs": settings.pairs,
            "calibration": calibration.fingerprint if calibration else None,
            # Once written they stay: no setting removes them.
            "embeddings": settings.embeddings or written["settings"].get("embeddings", False),
            "calls": str(rules) if (rules := self._call_rules()) else None,
        }

    def _paths_digest(self) -> str:
        """Return a hash of the paths of the inputs, which tables have in them."""
        return sha256("\0".join(self._session.plan.paths).encode("utf-8", "surrogateescape")).hexdigest()

    def _remember_written(self) -> None:
        written = {
            "settings": self._output_settings(),
            "calls": asdict(rules) if (rules := self._call_rules()) else None,
            "paths": self._paths_digest(),
            "files": self._files.facts(),
        }
        self._store.set_meta("written", written)

    async def _write_contigs(self) -> Counter[str]:
        """Write the table of contigs, and return how many have which verdict."""
        threshold, calibration = self._session.settings.threshold, self._session.plan.calibration
        tally: Counter[str] = Counter()
        await self._write("contigs.tsv", contig_chunks(self._store.reader, threshold, tally, calibration))
        return tally

    def _call_rules(self) -> CallRules | None:
        """Return the rules of the table of calls, if it is asked for or was before."""
        known = (self._store.get_meta("written") or {}).get("calls")
        return self._session.settings.calls or (CallRules(**known) if known else None)

    async def _write_calls(self) -> None:
        rules = await self._session.on_disk(self._call_rules)
        chunks = call_chunks(self._store.reader, rules or CallRules())
        await self._write_or_remove(CALLS_TABLE, chunks, rules is not None)

    async def _write_pairs(self) -> Counter[str]:
        """Write the table of pairs, if there are any, and return how many have which verdict."""
        self._session.counts.status = "comparing the ids of mates"
        mates = await self._session.on_disk(self._session.mates.verified_pairs, self._store.reader)
        self._session.counts.status = "writing tables"
        threshold, calibration = self._session.settings.threshold, self._session.plan.calibration
        tally: Counter[str] = Counter()
        chunks = pair_chunks(self._store.reader, mates, threshold, tally, calibration)
        await self._write_or_remove("pairs.tsv", chunks, bool(mates))
        return tally

    async def _write_failures(self) -> None:
        more = self._session.mates.failures
        count = (await self._session.on_disk(self._store.reader.totals)).failures + len(more)
        await self._write_or_remove("failed_files.txt", failure_chunks(self._store.reader, more), bool(count))

    async def _write_or_remove(self, name: str, chunks: Chunks, has_rows: bool) -> None:
        """Write a file that exists only if it has rows; an earlier session may have left one."""
        if has_rows:
            await self._write(name, chunks)
        else:
            await self._session.on_disk(self._files.remove, name)

    async def _write(self, name: str, chunks: Chunks) -> None:
        await self._session.on_disk(self._files.write, name, chunks, from_thread.check_cancelled)

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
            with self._files.new_file(MERGED_FEATURES) as file:
                save_features(self._store.reader, width, file)
            certify_saved(self._store)
        self._directory.unlink(FEATURES)
