"""What a shard of a run writes at its end: the rows of its own records, which ``merge`` makes tables of."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from zlib import crc32

from anyio import from_thread

from virnuc_async._version import __version__
from virnuc_async.fileio import writing_to
from virnuc_async.runs.output_directory import OVERVIEW_FILE, SHARD_FILE
from virnuc_async.runs.session import RunSession
from virnuc_async.text import plural

from .columns import Chunks
from .options import OutputOptions
from .output_files import FILES, FinishedRun, Merging
from .samples import count_records
from .shard_file import RowFile, ShardFile, overview_chunks, read_shard_file
from .summary import device_facts, is_reproducible, session_seconds, versions_used
from .table_files import TableFiles
from .verdicts import VERDICT
from .written import ModelFacts

_ROWS = tuple(file for file in FILES if file.merging is not Merging.ANEW)
(_FAILED,) = (file for file in FILES if file.name == "failed_files.txt")


@dataclass(frozen=True, slots=True)
class ShardPart:
    """What part of which run a shard is."""

    plan: str  # digest
    shard: tuple[int, int]  # its number, and of how many
    is_utf8: bool  # whether all ids and paths of the run are


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What a finished shard is: *counts* as a summary has them, and *seconds* of its last session."""

    shard: tuple[int, int]  # its number, and of how many
    counts: dict[str, int]  # contigs, fragments, orfs, batches
    seconds: dict[str, float]  # total, load, model
    failures: int  # files and ORFs
    reproducible: bool

    @classmethod
    def of(cls, known: ShardFile) -> "ShardSummary":
        """Return what is *known* of a shard."""
        totals = known.totals
        counts = {"contigs": totals.contigs, "fragments": totals.fragments, "orfs": totals.scores}
        counts["batches"] = totals.batches
        return cls(known.shard, counts, known.seconds, totals.failures, known.reproducible)


class ShardRows:
    """
    Writes the rows of the shard *part* that *session* has scored into its directory, each file at once.

    It takes the place of an :class:`OutputWriter`: pairs, samples, the summary and the report are made of all
    shards, and so are the tables that have more than one record in a row.
    """

    def __init__(self, part: ShardPart, session: RunSession, command: str) -> None:
        self._part = part
        self._session = session
        self._command = command
        self._directory = session.store.directory
        self._files = TableFiles(session.store.directory, session.store.check)

    async def check(self) -> None:
        """Do nothing: all is written into the directory of the shard."""

    @contextmanager
    def partial_summary_on_failure(self) -> Iterator[None]:
        """Do nothing: what is not finished has no ``shard.json``."""
        yield

    async def write_all(self) -> ShardSummary:
        """
        Write the rows, and ``shard.json`` at last; a finished shard with unchanged files is left as it is.

        Raises:
            DamagedStore: the store does not have every record and every ORF once
            CannotWrite: the disk is full, or the directory is read-only
        """
        on_disk = self._session.on_disk
        known = await on_disk(self._known)
        if known is None:
            known = await on_disk(self._write)
            self._session.log.info("{}", self._line(known))
        else:
            self._session.log.info("this shard is finished already, and its files are unchanged")
        return ShardSummary.of(known)

    def _known(self) -> ShardFile | None:
        """Return what is known of a finished shard whose files are as they were written and are wanted."""
        with suppress(ValueError):
            known = read_shard_file(self._directory)
            if known is None or self._session.scored["batches"]:
                return None
            found = {name: self._directory.stat(name) for name in known.files}
            is_same = all(stat and stat.st_size == known.files[name].bytes for name, stat in found.items())
            if is_same and (known.plan, known.shard) == (self._part.plan, tuple(self._part.shard)):
                return known
        return None

    def _write(self) -> ShardFile:
        self._files.remove(SHARD_FILE)
        run = self._finished_run()
        written = dict(self._write_rows(run))
        if run.options.report:
            self._session.counts.status = f"writing {OVERVIEW_FILE}"
            written[OVERVIEW_FILE] = self._write_file(OVERVIEW_FILE, overview_chunks(run.overview))
        # It was written while ORFs failed, perhaps in several sessions.
        self._files.make(_FAILED, run, from_thread.check_cancelled)
        known = self._describe(run, written)
        self._session.store.check()
        with writing_to(self._directory.path, SHARD_FILE):
            known.write(self._directory)
        return known

    def _write_rows(self, run: FinishedRun) -> Iterator[tuple[str, RowFile]]:
        for file in _ROWS:
            if file.is_wanted(run):
                self._session.counts.status = f"writing {file.name}"
                yield file.name, self._write_file(file.name, file.chunks(run))
            elif self._directory.stat(file.name):
                self._files.remove(file.name)  # of an earlier session

    def _write_file(self, name: str, chunks: Chunks) -> RowFile:
        checksum = size = 0
        with closing(chunks), self._files.new_file(name) as opened:
            for chunk in chunks:
                from_thread.check_cancelled()
                opened.write(chunk)
                size, checksum = size + len(chunk), crc32(chunk, checksum)
        return RowFile(size, checksum)

    def _describe(self, run: FinishedRun, written: dict[str, RowFile]) -> ShardFile:
        session, reader = self._session, run.reader
        totals = reader.totals()
        number, of = self._part.shard
        return ShardFile(
            plan=self._part.plan,
            shard=(number, of),
            command=self._command,
            model=ModelFacts.of(session.plan.bundle),
            width=session.plan.bundle.shapes.classifier.inputs,
            version=__version__,
            totals=totals,
            verdicts=dict(run.contigs),
            tally=count_records(reader, lambda block: run.verdicts(block)[VERDICT]),
            failures=dict(reader.failures_by_file()),
            devices=device_facts(session, totals),
            host=os.uname().nodename,
            seconds=session_seconds(session, totals),
            versions=versions_used(),
            reproducible=is_reproducible(session, totals),
            files=written,
        )

    def _finished_run(self) -> FinishedRun:
        plan = self._session.plan
        options = OutputOptions.of(self._session.settings, plan.verdict_rule)
        run = FinishedRun(self._session.store.reader, options, plan.bundle.length, plan.verdict_rule)
        run.is_utf8 = self._part.is_utf8
        return run

    def _line(self, known: ShardFile) -> str:
        number, of = self._part.shard
        totals = known.totals
        scored = f"{plural(totals.scores, 'ORF')} of {plural(totals.contigs, 'record')}"
        failed = f", {plural(totals.failures, 'failure')}" if totals.failures else ""
        return (
            f"Shard {number}/{of}: {scored} scored in {known.seconds['total']:.1f} s{failed}. "
            f"Its rows are in {self._directory}"
        )
