"""
One session of a run: an output directory is opened or taken over, and what is left to do is found.

A run may take several sessions. Each one checks that the store is its own, reads the input again,
compares each window with the stored one, and hands out the batches that are not done.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import anyio
from anyio import CapacityLimiter, from_thread, to_thread
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from virnuc_async.engine.devices import decide_budget, decide_precision
from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.errors import (
    NoRecords,
    RunMismatchError,
    Stage,
)
from virnuc_async.fileio import writing_to
from virnuc_async.log import logger, run_log_files
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.inputs import Reader
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.sequences.windows import Window, form_windows
from virnuc_async.settings import Precision

from .failure import Failure
from .feature_files import FeatureFile, find_features
from .identity import run_identity
from .mate_check import MateCheck
from .messages import RunMessages
from .output_directory import FEATURES, STORE
from .plan import Plan
from .reuse_embeddings import FeatureIndex, check_similarity
from .store import Store
from .takeover import open_store

_DEVICE_KEYS = ("devices", "compiled kernels")  # of a run's identity

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class InputFiles:
    """How a run reads its files: at once, or with the blocks to come read ahead by the task *run*."""

    read: Reader
    read_ahead: Reader | None = None
    run: Callable[[], Coroutine[Any, Any, None]] | None = None


class RunSession:
    """
    The store of *out_dir*, opened for *plan*, and the input that is read for it.

    Made by :meth:`open`. ``store`` is used through :meth:`on_disk` alone, by one thread at a time.
    """

    store: Store
    features: FeatureIndex  # embeddings that need not be computed
    precision: Precision  # these two as the store has them, if it has
    budget: int  # residue tokens per batch
    _tasks: TaskGroup

    def __init__(self, plan: Plan, out_dir: Path, input_files: InputFiles) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.out_dir = out_dir
        self.id = uuid4().hex
        self.log = logger.bind(run=self.id)
        self.messages = RunMessages(plan, self.log)
        self.counts = self.messages.counts
        self.mates = MateCheck(plan, self.messages)
        self._read = input_files.read
        self._windows = _windows(plan, input_files.read_ahead or input_files.read)
        self._first: Window | None = None
        self._disk = CapacityLimiter(1)

    @classmethod
    @asynccontextmanager
    async def open(cls, plan: Plan, out_dir: Path, input_files: InputFiles) -> AsyncIterator["RunSession"]:
        """
        Open *out_dir* for *plan*: a new directory, or one with the same run in it.

        While it is open, heartbeats keep the lock, progress is logged, and run.log is written.

        Raises:
            NoRecords: no input holds a record; the directory is not touched
            ForeignDirectoryError, RunMismatchError, DirectoryLockedError, CannotWrite: the directory
            NoFeatures, BadFeatures, AmbiguousFeatures: the embeddings to be reused
        """
        session = cls(plan, out_dir, input_files)
        try:
            async with anyio.create_task_group() as tasks:
                session._tasks = tasks
                if input_files.run is not None:
                    tasks.start_soon(input_files.run, name="read files ahead")
                tasks.start_soon(session.messages.report_progress, name="report progress")
                await session._open()
                with closing(session.store), closing(session.features):
                    # A group of its own: the last heartbeat has ended before the lock is released.
                    async with anyio.create_task_group() as background:
                        background.start_soon(session._heartbeats, name="heartbeats")
                        await session._bind()
                        with run_log_files(session.id, out_dir):
                            background.start_soon(session.messages.watch_gpu_memory, name="watch GPU memory")
                            yield session
                            background.cancel_scope.cancel()
                    tasks.cancel_scope.cancel()
        finally:
            session._stop_reading()

    @property
    def is_finished(self) -> bool:
        """Whether every batch of the run is in the store."""
        return self.store.is_finished

    async def log_header(self) -> None:
        """Log which run this is, on which devices, with which pairs, and what of it is done already."""
        await self.on_disk(self._log_header)

    async def pending_batches(self) -> AsyncGenerator[Batch, None]:
        """
        Yield every batch that is not done yet, window by window, while the next window is being read.

        Raises:
            RunMismatchError: the sequences are not those that the store was begun with
            BadBundle: the model's files are damaged
        """
        self.counts.status = "checking the model's files"
        # It only reads: a caller that is cancelled need not wait for gigabytes.
        await to_thread.run_sync(self.plan.bundle.check, abandon_on_cancel=True)
        self.counts.status = "loading the model"
        send, receive = anyio.create_memory_object_stream[Window](1)
        self._tasks.start_soon(self._read_ahead, send, name="read ahead")
        count = 0
        async with receive:
            async for window in receive:
                count += 1
                for batch in await self._pending_of(window):
                    yield batch
        if await self.on_disk(self.store.reader.window_count) != count:
            raise RunMismatchError(str(self.out_dir), ["the sequences have changed: there are fewer now"])
        self.counts.is_all_read = True

    async def commit(self, scored: ScoredBatch) -> None:
        """
        Store a scored batch: from now on it is never computed again.

        Raises:
            FeatureMismatchError: reused embeddings are not those of their sequences
            CannotWrite: the disk is full
        """
        if scored.similarity is not None:
            check_similarity(scored.batch.known, scored.similarity)
        for failure in await self.on_disk(self.store.add_batch, scored):
            self.messages.log_failure(failure)
        self.counts.finished(scored.device, len(scored.batch), scored.batch.tokens)
        self.log.debug("batch {} done on {}", scored.batch.name, scored.device)

    async def finish(self) -> None:
        """
        Mark the run as finished.

        Raises:
            DamagedStore: not every batch is there
        """
        reused = self.features.reused if self.features.files else None
        if reused is not None:
            level = "INFO" if reused else "WARNING"
            self.log.log(level, "{}", self.features.used_text())
        await self.on_disk(self.store.finish, reused)

    async def on_disk(self, work: Callable[..., _Result], *args: Any) -> _Result:
        """Run *work* in a worker thread, the only one at the time that uses the store."""
        return await to_thread.run_sync(work, *args, limiter=self._disk)

    async def _open(self) -> None:
        # A directory is not touched for nothing, but a run that is there is asked first.
        if self.settings.overwrite or not (self.out_dir / STORE).is_file():
            self._first = await self._first_window()
        self.features = await self._find_features()
        self.store = await open_store(self.plan, self.out_dir, self.messages, self.on_disk)

    async def _first_window(self) -> Window:
        first = await self._next_window()
        if first is None or not first.contigs:
            failures = [file.failure for file in first.files if file.failure] if first else []
            raise NoRecords(self.plan.paths, failures)
        return first

    async def _find_features(self) -> FeatureIndex:
        shapes, directory = self.plan.bundle.shapes, self.settings.reuse_features
        found: list[FeatureFile] = []
        if directory is not None:
            self.counts.status = "looking for embeddings to reuse"
            searched = find_features(directory, but_not=self.out_dir)
            # Checksums of large files take a while.
            while (file := await to_thread.run_sync(next, searched, None)) is not None:
                found.append(file)
        return FeatureIndex(found, (shapes.nucleotide.width, shapes.protein.width))

    async def _heartbeats(self) -> None:
        """Show other processes that want the directory that this one lives."""
        while True:
            await anyio.sleep(self.plan.intervals.heartbeat)
            await to_thread.run_sync(self.store.lock.heartbeat)

    async def _bind(self) -> None:
        """Decide what the run is, check that the store is of it, and read the embeddings that it reuses."""
        # Embeddings that are refused must not bind a new run: others can be tried in the same directory.
        is_new = await self.on_disk(self.store.get_meta, "identity") is None
        steps = (self._read_features, self._identify) if is_new else (self._identify, self._read_features)
        for step in steps:
            await self.on_disk(step)

    def _read_features(self) -> None:
        if not self.features.files or self.store.is_finished:
            return
        self.counts.status = "reading embeddings to reuse"
        with writing_to(self.out_dir, "embeddings to reuse"):
            for _ in self.features.read(self.out_dir):
                from_thread.check_cancelled()

    def _identify(self) -> None:
        """Decide precision and budget, or take those of the store, and check that the run is the same."""
        plan, known = self.plan, self.store.get_meta("identity") or {}
        wanted = self.settings.precision
        if wanted is Precision.AUTO and known:
            wanted = Precision(known.get("precision", wanted))
        self.precision = decide_precision(plan.devices, wanted)
        budget = self.settings.tokens_per_batch or known.get("tokens per batch")
        self.budget = decide_budget(plan.devices, self.precision, budget)
        identity = run_identity(plan, self.precision, self.budget, self.features.files)
        if self.store.is_finished:
            # Whatever devices there are now, nothing will be computed.
            identity |= {key: known[key] for key in _DEVICE_KEYS if key in known}
        self.store.bind_run(identity, plan.paths)
        if self.settings.embeddings and not self.store.is_finished and self.store.reader.totals().scores:
            self._require_embeddings()

    def _require_embeddings(self) -> None:
        """Check that the embeddings of finished batches are still there: no other file holds them."""
        path, width = self.out_dir / FEATURES, self.plan.bundle.shapes.classifier.inputs
        if not path.exists() or path.stat().st_size < 4 * width * self.store.reader.features_end():
            raise RunMismatchError(str(self.out_dir), [f"the embeddings so far, {FEATURES}, are missing"])

    def _log_header(self) -> None:
        self.messages.log_header(self.store, self.precision, self.budget)
        if self.store.is_finished:
            return
        if self.features.files:
            self.log.info("{}", self.features.found_text())
        self.mates.log_pairing(self._read)
        totals = self.store.reader.totals()
        if totals.batches:
            self.log.info("resuming after {:,} ORFs of an earlier session", totals.scores)

    async def _read_ahead(self, send: MemoryObjectSendStream[Window]) -> None:
        """Form windows ahead of the devices, in a worker thread."""
        async with send:
            window: Window | None = self._first or await self._first_window()
            # Nobody receives any more when scoring has failed or was cancelled; the reason is raised there.
            with suppress(anyio.BrokenResourceError):
                while window is not None:
                    await send.send(window)
                    window = await self._next_window()

    async def _next_window(self) -> Window | None:
        # Forming a window parses, translates and tokenizes: too long to hold the event loop for.
        # Abandoned when cancelled: standard input may stay silent for ever.
        return await to_thread.run_sync(next, self._windows, None, abandon_on_cancel=True)

    async def _pending_of(self, window: Window) -> list[Batch]:
        """Store or check *window*, and return its batches that are not done."""
        await self.on_disk(self._add_or_check, window)
        done = await self.on_disk(self.store.finished_parts, window.number)
        pending = await to_thread.run_sync(self._pack, window, done)
        self.counts.read += len(window.origins)
        self.counts.done += len(window.origins) - sum(map(len, pending))
        return pending

    def _pack(self, window: Window, done: set[tuple[int, str]]) -> list[Batch]:
        batches = window.batches(self.budget, self.features.lookup(window))
        return [part for batch in batches for part in unfinished_parts(batch, done)]

    def _add_or_check(self, window: Window) -> None:
        known = self.store.window(window.number)
        if known is None:
            self.store.add_window(window)
            for file in window.files:
                if file.failure:
                    self.messages.log_failure(Failure(file.path, Stage.INPUT, file.failure.reason))
                elif not file.contigs:
                    self.log.warning("{} holds no sequence", file.path)
        elif known != window.digest:
            raise RunMismatchError(str(self.out_dir), ["the sequences have changed"])

    def _stop_reading(self) -> None:
        """Close the open input, unless a thread still waits for it."""
        with suppress(ValueError):
            self._windows.close()


def _windows(plan: Plan, read: Reader) -> Generator[Window, None, None]:
    plan.bundle.check("tokenizer.json")
    tokenizer = OrfTokenizer(plan.bundle.tokenizer())
    yield from form_windows(plan.paths, read, plan.bundle.length, tokenizer, plan.window)


def unfinished_parts(batch: Batch, done: set[tuple[int, str]]) -> Iterator[Batch]:
    """Yield what is not done of *batch*, split where an earlier session split it."""
    parts = {path for number, path in done if number == batch.number and path.startswith(batch.split_path)}
    if not parts:
        yield batch
    elif batch.split_path not in parts:
        for half in batch.halves():
            yield from unfinished_parts(half, done)
