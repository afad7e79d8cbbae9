"""
One session of a run: an output directory is opened or taken over, and what is left to do is found.

A run may take several sessions. Each one checks that the store is its own, reads the input again,
compares each window with the stored one, and hands out the batches that are not done.
"""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Set
from contextlib import ExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import anyio
from anyio import CapacityLimiter, from_thread, to_thread
from anyio.abc import TaskGroup

from virnuc_async.errors import NoRecords
from virnuc_async.fileio import Directory
from virnuc_async.log import logger, run_log_files
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.windows import Window

from .feature_files import FeatureFile, find_features
from .file_changes import FileChanges
from .hardware import Hardware, choose_devices, decide_hardware, devices_used, recorded_hardware
from .identity import run_identity
from .input_windows import InputFiles, InputWindows
from .mate_check import MateCheck
from .messages import RunMessages
from .output_directory import STORE
from .plan import Plan
from .progress_file import ProgressFile
from .reuse_embeddings import FeatureIndex, check_similarity
from .rows import BatchKey
from .saved_embeddings import EmbeddingCheck, are_saved
from .scratch import temporary_files
from .store import Store
from .takeover import open_store, send_heartbeats
from .window_check import WindowCheck

if TYPE_CHECKING:
    from virnuc_async.engine.devices import Device
    from virnuc_async.engine.worker import ScoredBatch

Parts = Set[tuple[int, str]]  # of the batches of a window: number and split path

_Result = TypeVar("_Result")


class RunSession:
    """
    The store of *out_dir*, opened for *plan*, and the input that is read for it.

    Made by :meth:`open`. ``store`` is used through :meth:`on_disk` alone, by one thread at a time.
    """

    store: Store
    features: FeatureIndex  # embeddings that need not be computed
    hardware: Hardware  # as the store has it, if it has
    _check: WindowCheck
    keeps_embeddings: bool  # of this run; whether they were asked for when it was begun
    _tasks: TaskGroup

    def __init__(self, plan: Plan, out_dir: Path, input_files: InputFiles) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.out_dir = out_dir
        self.id = uuid4().hex
        self.log = logger.bind(run=self.id)
        self.messages = RunMessages(plan, self.log)
        self.counts = self.messages.counts
        self.has_no_records = False  # the input was read to its end, and has none
        self.is_finished = False  # whether nothing is left to compute
        self.scored = Counter(orfs=0, batches=0)  # in this session, without failed ORFs
        self.mates = MateCheck(plan, self.messages)
        self._files = input_files
        self._windows = InputWindows(plan, input_files, partial(self.log.info, "{}"))
        self._devices: tuple[Device, ...] = ()
        self._disk = CapacityLimiter(1)
        self._embeddings = EmbeddingCheck()
        self._widths = _embedding_widths(plan)

    @classmethod
    @asynccontextmanager
    async def open(cls, plan: Plan, out_dir: Path, input_files: InputFiles) -> AsyncIterator["RunSession"]:
        """
        Open *out_dir* for *plan*: a new directory, or one with the same run in it.

        While it is open, heartbeats keep the lock, progress is logged, and run.log is written.

        Raises:
            NoRecords: no input holds a record, and some cannot be read; the directory is not touched
            ForeignDirectoryError, RunMismatchError, DirectoryLockedError, CannotWrite: the directory
            NoFeatures, BadFeatures, AmbiguousFeatures: the embeddings to be reused
        """
        session = cls(plan, out_dir, input_files)
        try:
            # Outside of the tasks: whichever of them fails, its error is the last line of run.log.
            with ExitStack() as opened, session.messages.end_logged():
                async with anyio.create_task_group() as tasks:
                    session._tasks = tasks
                    if input_files.run is not None:
                        tasks.start_soon(input_files.run, name="read files ahead")
                    tasks.start_soon(session.messages.report_progress, name="report progress")
                    await session._open()
                    opened.enter_context(closing(session.store))
                    opened.callback(session.messages.watch.save_last)
                    opened.enter_context(closing(session.features))
                    # A group of its own: the last heartbeat has ended before the lock is released.
                    async with anyio.create_task_group() as background:
                        lock, interval = session.store.lock, plan.intervals.heartbeat
                        background.start_soon(send_heartbeats, lock, interval, name="heartbeats")
                        await session._bind()
                        opened.enter_context(run_log_files(session.id, session.store.directory))
                        file = ProgressFile(session.store, session.counts, session.log, plan.intervals)
                        if not session.is_finished:
                            background.start_soon(opened.enter_context(file).run, name="write progress.json")
                        watched, watch = session.hardware.devices, session.messages.watch
                        background.start_soon(watch.run, watched, session.on_disk, name="watch devices")
                        yield session
                        background.cancel_scope.cancel()
                    tasks.cancel_scope.cancel()
        finally:
            session._windows.close()

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
        await to_thread.run_sync(self.plan.bundle.check_once, abandon_on_cancel=True)
        self.counts.load()
        end = 0  # the number behind the last window
        async for window in self._windows.each(self._tasks):
            end = window.number + 1
            for batch in await self._pending_of(window):
                yield batch
        await self.on_disk(self._check.end, end)
        self.counts.all_read()

    async def compare_streams(self) -> None:
        """
        Check that the streams of a finished run bring what it was made of: only reading them shows it.

        Raises:
            RunMismatchError: the sequences are others
        """
        if not self._windows.have_streams:
            return
        self.counts.status = "comparing the sequences with those of the finished run"
        count = 0
        async for window in self._windows.each(self._tasks):
            count += 1
            await self.on_disk(self._check.require_same, window)
        await self.on_disk(self._check.require_count, count)

    async def commit(self, scored: "ScoredBatch") -> None:
        """
        Store a scored batch: from now on it is never computed again.

        Raises:
            BadBundle: the model's files were replaced while they were read
            FeatureMismatchError: reused embeddings are not those of their sequences
            CannotWrite: the disk is full
        """
        if not self.counts.devices[scored.device].batches:  # it has just loaded the model
            self.plan.bundle.require_unchanged(self._windows.model_files)
        if scored.similarity is not None:
            check_similarity(scored.batch.known, scored.similarity)
        for failure in await self.on_disk(self.store.add_batch, scored):
            self.messages.log_failure(failure)
        self.messages.log_recomputed(scored.recomputed, self.hardware.precision)
        self.scored.update(orfs=len(scored.batch) - len(scored.failures), batches=1)
        self.counts.finished(scored.device, len(scored.batch), scored.batch.tokens, scored.batch.window)
        self.log.debug("batch {} done on {}", scored.batch.name, scored.device)

    async def finish(self) -> None:
        """
        Mark the run as finished.

        Raises:
            DamagedStore: not every batch is there
        """
        await self.on_disk(lambda: self.store.set_meta("devices used", self.devices_used()))
        await self.messages.watch.save(self.on_disk)
        reused = self.features.reused if self.features.files else None
        if reused is not None:
            self.log.log("INFO" if reused else "WARNING", "{}", self.features.used_text())
        await self.on_disk(self.store.finish, reused, self._windows.kinds())

    def devices_used(self) -> dict[str, dict[str, Any]]:
        """Return kind and peak memory of the devices of this and earlier sessions, by their names."""
        before = self.store.get_meta("devices used") or {}
        return devices_used(before, self.hardware.devices, self.messages.peak_memory)

    async def on_disk(self, work: Callable[..., _Result], *args: Any) -> _Result:
        """Run *work* in a worker thread, the only one at the time that uses the store."""
        return await to_thread.run_sync(work, *args, limiter=self._disk)

    async def _open(self) -> None:
        await to_thread.run_sync(self._windows.identify, abandon_on_cancel=True)
        self.counts.begin(self._windows.sizes())
        # A directory is not touched for nothing, but a run that is there is asked first.
        if self.settings.overwrite or not (self.out_dir / STORE).is_file():
            self._devices = await to_thread.run_sync(choose_devices, self.plan)
            await self._read_first()
        if self.settings.reuse_features is not None:
            self.counts.status = "looking for embeddings to reuse"
        self.features = FeatureIndex(await _find_features(self.plan, self.out_dir), self._widths)
        self.store = await open_store(self.plan, self.out_dir, self.messages, self.on_disk)

    async def _read_first(self) -> None:
        try:
            first = await self._windows.first()
        except NoRecords:
            self.messages.log_left_out()
            raise
        self.has_no_records = first is None or not first.contigs

    async def _bind(self) -> None:
        """Decide what the run is, check that the store is of it, and read the embeddings that it reuses."""
        # Embeddings that are refused must not bind a new run: others can be tried in the same directory.
        is_new = await self.on_disk(self.store.get_meta, "identity") is None
        steps = (self._read_features, self._identify) if is_new else (self._identify, self._read_features)
        for step in steps:
            await self.on_disk(step)
        self.counts.expect(device.name for device in self.hardware.devices)

    def _read_features(self) -> None:
        if self.features.files and not self.is_finished:
            self.counts.status = "reading embeddings to reuse"
            _read_all(self.features, self.store.reader.scratch)

    def _identify(self) -> None:
        """Decide what the run is, check that it is the one of the store, and what of that is left to do."""
        known = self.store.get_meta("identity") or {}
        self.messages.watch.resume(self.store)
        # A run keeps the embeddings that it was begun with, whether they are written this time or not.
        self.keeps_embeddings = self.settings.embeddings or bool(known.get("embeddings"))
        identity = run_identity(self.plan, self._windows.versions, self.features.files)
        self._changes = FileChanges(known.get("inputs", identity["inputs"]), identity["inputs"])
        self.is_finished = self.store.is_finished and not str(self._changes)
        bound = self._bind_hardware(identity, known)
        if lost := self._find_lost_embeddings():
            self.is_finished = False
            bound = self._bind_hardware(identity, known)
            self.store.drop_batches(lost)
        self._check = WindowCheck(self.store, bound, self.plan.named, self._changes, self.messages)

    def _bind_hardware(self, identity: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
        """Decide what the run is computed with, as it is *known*, and bind the store to the whole."""
        if self.is_finished:
            self.hardware = recorded_hardware(self.plan, known)
        else:
            self.hardware = decide_hardware(self.plan, self._devices or choose_devices(self.plan), known)
        bound = {**identity, "embeddings": self.keeps_embeddings, **self.hardware.as_identity()}
        self.store.bind_run(bound, self.plan.named)
        return bound

    def _find_lost_embeddings(self) -> list[BatchKey]:
        """Return the batches whose embeddings are needed, and are lost or damaged."""
        are_needed = self.settings.embeddings if self.is_finished else self.keeps_embeddings
        if are_needed and not (self.is_finished and are_saved(self.store)):
            self.counts.status = "checking embeddings"
            self._embeddings.run(self.store, sum(self._widths))
        return self._embeddings.lost

    def _log_header(self) -> None:
        self.messages.log_header(self.store, self.hardware, self._embeddings)
        totals = self.store.reader.totals()
        if self.is_finished:
            self.counts.finished_before(totals.scores)
            return
        if changes := str(self._changes):
            self.log.info("inputs: {}. Every window before the first difference is kept", changes)
        if self.features.files:
            self.log.info("{}", self.features.found_text())
        if self.plan.part is None:  # pairs are made when shards are merged
            self.mates.log_pairing(self._files.read)
        self.messages.log_resumption(totals)

    async def _pending_of(self, window: Window) -> list[Batch]:
        """Store or check *window*, and return its batches that are not done."""
        await self.on_disk(self._check.add, window)
        done = await self.on_disk(self.store.finished_parts, window.number)
        dropped = await self.on_disk(self.store.dropped_parts, window.number)
        batches = window.batches(self.hardware.budget, self.features.lookup(window))
        pending = await to_thread.run_sync(_all_unfinished, batches, done, dropped)
        self.counts.add_window(window, (sum(map(len, pending)), sum(batch.tokens for batch in pending)))
        return pending


def _embedding_widths(plan: Plan) -> tuple[int, int]:
    shapes = plan.bundle.shapes
    return shapes.nucleotide.width, shapes.protein.width


def _read_all(features: FeatureIndex, directory: Directory) -> None:
    with temporary_files(directory, "embeddings to reuse"):
        for _ in features.read(directory):
            from_thread.check_cancelled()


async def _find_features(plan: Plan, out_dir: Path) -> list[FeatureFile]:
    """Return the files of embeddings that *plan* reuses, which are not in *out_dir*."""
    directory, found = plan.settings.reuse_features, list[FeatureFile]()
    if directory is not None:
        searched = find_features(directory, but_not=out_dir)
        # Checksums of large files take a while.
        while (file := await to_thread.run_sync(next, searched, None)) is not None:
            found.append(file)
    return found


def _all_unfinished(batches: Iterator[Batch], done: Parts, dropped: Parts) -> list[Batch]:
    return [part for batch in batches for part in unfinished_parts(batch, done, dropped)]


def unfinished_parts(batch: Batch, done: Parts, dropped: Parts = frozenset()) -> Iterator[Batch]:
    """Yield what is not *done* of *batch*, split where an earlier session split what it did or *dropped*."""
    own, key = [part for part in done | dropped if part[0] == batch.number], (batch.number, batch.split_path)
    below = {part for part in own if part[1].startswith(batch.split_path) and part != key}
    if key in done:
        return
    if below & done or below and key not in dropped:
        for half in batch.halves():
            yield from unfinished_parts(half, done, dropped)
    else:
        yield batch
