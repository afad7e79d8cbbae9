"""
One run: read, score, store, write.

Every wait is bounded by a stream or a queue, and every task is owned by a task group. Cancelling lets
the batches that are running finish and be stored; nothing else is waited for.
"""

import asyncio
import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar

import anyio
from anyio import to_thread

from virnuc_async import engine
from virnuc_async.errors import UsageError, first_error, leaves
from virnuc_async.fileio import writing_to
from virnuc_async.models.bundle import Bundle, find
from virnuc_async.outputs.formats import require_formats
from virnuc_async.outputs.layout import require_free_layout
from virnuc_async.outputs.summary import Summary
from virnuc_async.outputs.viral_files import require_files, require_place
from virnuc_async.outputs.writer import OutputWriter
from virnuc_async.runs.input_windows import InputFiles
from virnuc_async.runs.output_directory import STORE, require_claimable
from virnuc_async.runs.plan import Plan
from virnuc_async.runs.run_progress import RunProgress
from virnuc_async.runs.session import RunSession
from virnuc_async.sequences.alignments import Notes
from virnuc_async.sequences.inputs import Reader, read_contigs
from virnuc_async.sequences.listing import list_inputs
from virnuc_async.sequences.readahead import ReadAhead
from virnuc_async.sequences.reading import Reading
from virnuc_async.settings import Precision, Settings, local_path, user_paths

if TYPE_CHECKING:
    from virnuc_async.engine.devices import Device
    from virnuc_async.engine.worker import BatchScorer

Written = TypeVar("Written", covariant=True)


class Writer(Protocol[Written]):
    """Writes what people read of a run."""

    async def check(self) -> None:
        """Check that it can be written, as far as that is known before anything is computed."""

    def partial_summary_on_failure(self) -> AbstractContextManager[None]:
        """Write what there is to say of a run that is not finished, when the body raises."""

    async def write_all(self) -> Written:
        """Write every file, and return what was written."""
        ...


MakeScorer = Callable[["Device", Bundle, Precision, bool], "BatchScorer"]


async def run_pipeline(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    out_dir: str | PathLike[str],
    settings: Settings | None = None,
    *,
    stdin: BinaryIO | None = None,
    command: Sequence[str] = (),
    on_progress: Callable[[RunProgress], None] | None = None,
) -> Summary:
    """
    Predict every sequence of *inputs*, write the tables into *out_dir*, and return the summary.

    *inputs* is one path or several: files, directories, or ``-`` for *stdin*. ~ in a path is expanded.
    Resumes the run that is in *out_dir*. Runs inside any asyncio event loop, several times at once if
    the directories differ. It prints nothing and installs no signal handler; ``virnuc_async.logger``
    takes sinks, and *on_progress* is called twice a second in the event loop. When it is cancelled, it ends
    within one batch, frees the devices and leaves a run that can be resumed.

    Raises:
        UsageError: *inputs*, *out_dir* or *settings* are not of their types, or the loop is not asyncio's
        MissingInputs: inputs cannot be read, found before anything else
        NoRecords: no input holds a record, and some cannot be read
        UnknownBundle, BadBundle, NoThreshold: the model
        UnknownDevice, MixedDevices, UnsuitablePrecision: the devices
        NoReference, BadReference: in FP8, of which the model must have one
        NoFeatures, BadFeatures, AmbiguousFeatures, FeatureMismatchError: the embeddings to be reused
        NoDevicesLeft: too many devices failed; finished batches are kept
        ForeignDirectoryError, RunMismatchError, DirectoryLockedError, CannotWrite: the output directory
    """
    require_asyncio()
    named, place = user_paths(inputs, "an input"), local_path(out_dir, "the output directory")
    settings = Settings() if settings is None else settings
    if not isinstance(settings, Settings):
        raise UsageError(f"settings must be Settings, not {settings!r}")
    require_formats(settings.formats)
    with writing_to(place):
        await to_thread.run_sync(require_claimable, place)
    listed = await to_thread.run_sync(
        partial(
            list_inputs,
            named,
            recursive=settings.recursive,
            allow_duplicates=settings.allow_duplicates,
            skip_missing=settings.skip_missing,
            but_not=place,
            stdin=stdin,
        )
    )
    if settings.viral_fasta is not None:
        await to_thread.run_sync(require_files, listed.paths)
        await to_thread.run_sync(require_place, settings.viral_fasta, listed.paths, place)
    if settings.layout and not (place / STORE).is_file():
        await to_thread.run_sync(require_free_layout, place, listed.paths)
    bundle = await to_thread.run_sync(find, settings.model, settings.cache_dir)
    plan = Plan(listed.paths, settings, bundle, notices=listed.notices, on_progress=on_progress)
    _ = plan.verdict_rule  # before anything is computed: the model may not have the threshold
    return await execute(plan, place, stdin=stdin, command=command)


def require_asyncio() -> None:
    """
    Check that the running event loop is asyncio's, or one that stands in for it, such as uvloop's.

    Raises:
        UsageError: it is not
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        reason = "virnuc-async runs in asyncio's event loop, and this is another one (trio?)"
        raise UsageError(
            f"{reason}: call it within asyncio.run, or anyio.run with the backend asyncio"
        ) from None


async def execute(
    plan: Plan,
    out_dir: Path,
    make_scorer: MakeScorer | None = None,
    *,
    read: Reader | None = None,
    stdin: BinaryIO | None = None,
    command: Sequence[str] = (),
) -> Summary:
    """
    Run *plan* with a scorer for each of its devices, its model by default, and return the summary.

    Files are read ahead of the devices, unless *read* reads them.

    Raises:
        what :func:`run_pipeline` raises
    """
    files = InputFiles(read) if read else files_read_ahead(plan, stdin)
    make_writer = partial(OutputWriter, command=shlex.join(command))
    return await execute_and_write(plan, out_dir, files, make_writer, make_scorer)


async def execute_and_write(
    plan: Plan,
    out_dir: Path,
    files: InputFiles,
    make_writer: Callable[[RunSession], Writer[Written]],
    make_scorer: MakeScorer | None = None,
) -> Written:
    """
    Run *plan* as :func:`execute` does, and return what the writer that is made for its session returns.

    Raises:
        what :func:`run_pipeline` raises
    """
    summaries: list[Written] = []

    async def run() -> None:
        opened = RunSession.open(plan, out_dir, files)
        summaries.append(await _run(opened, make_scorer, make_writer))

    try:
        async with anyio.create_task_group() as tasks:
            # Not in this task: cancelling that from outside breaks the shield of a thread it waits for.
            tasks.start_soon(run, name="run")
    except BaseExceptionGroup as group:
        # Tasks fail in groups; a caller wants the one error that there nearly always is.
        error = first_error(group)
        _note_others(error, group)
    else:
        return summaries[0]
    # Not inside the handler, and without a name that stays: a cycle of errors and frames would keep files
    # and tensors open until the next garbage collection.
    try:
        raise error
    finally:
        del error


async def _run(
    opened: AbstractAsyncContextManager[RunSession],
    make_scorer: MakeScorer | None,
    make_writer: Callable[[RunSession], Writer[Written]],
) -> Written:
    async with opened as session:
        if session.is_finished:
            await session.compare_streams()
        writer = make_writer(session)
        await writer.check()
        with writer.partial_summary_on_failure():
            await session.log_header()
            if session.has_no_records:
                await _store_no_records(session)
            elif not session.is_finished:
                await _score(session, make_scorer)
            summary = await writer.write_all()
            session.messages.tell_progress()
            return summary


async def _store_no_records(session: RunSession) -> None:
    """Store an input without records, without loading a model for it."""
    if session.plan.span.is_empty:
        session.log.info("this shard has no part of the inputs: there are more shards than segments")
    else:
        session.log.warning("no input holds a record: the tables have their header lines alone")
    async for _ in session.pending_batches():
        pass  # there is no batch, but a window with the files
    await session.finish()


async def _score(session: RunSession, make_scorer: MakeScorer | None) -> None:
    """Score and store every batch that is not done."""
    hardware = session.hardware
    make_scorer = make_scorer or engine.replica_class(hardware.precision)

    def make(device: "Device") -> "BatchScorer":
        return make_scorer(device, session.plan.bundle, hardware.precision, session.keeps_embeddings)

    scoring = engine.Engine(hardware.devices, make, hardware.budget, session.messages, session.log)
    async with scoring.score(session.pending_batches()) as scored:
        async for batch in scored:
            await session.commit(batch)
    await session.finish()


def files_read_ahead(plan: Plan, stdin: BinaryIO | None = None) -> InputFiles:
    """Return how the files of *plan* are read, ahead of the devices; ``-`` is *stdin*."""
    span = plan.span
    paths = plan.paths[span.first_file : None if span.end is None else span.end[0] + bool(span.end[1])]
    ahead, read = ReadAhead(paths), partial(read_contigs, stdin=stdin)
    notes, reading = Notes(), Reading()
    read_ahead = partial(read, open_file=reading.watch(ahead.open), notes=notes)
    return InputFiles(read, read_ahead, ahead.run, notes, reading)


def _note_others(error: BaseException, group: BaseExceptionGroup[BaseException]) -> None:
    """Note the other errors of *group* on *error*."""
    for other in leaves(group):
        if other is not error:
            error.add_note(f"at the same time: {type(other).__name__}: {other}")
