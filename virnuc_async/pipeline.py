"""
One run: files to windows to batches to scores to tables, and who waits for whom.

One task reads ahead, one hands out batches, one for each device has them scored, one keeps the
scores. Every wait is bounded by a stream, and every task is owned by the one task group. Cancelling
lets the batches that are running finish and be kept; nothing else is waited for.
"""

import json
import os
import shlex
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar
from uuid import uuid4

import anyio
import numpy as np
from anyio import CancelScope, CapacityLimiter, from_thread, to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from virnuc_async._version import __version__
from virnuc_async.engine.devices import (
    BASE_BUDGET,
    Device,
    MemoryUse,
    choose,
    decide_budget,
    decide_precision,
    memory_use,
)
from virnuc_async.engine.replica import STAGE_CODES, Replica, Scores
from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.errors import (
    CannotWrite,
    DeviceLost,
    DeviceOutOfMemory,
    DirectoryLockedError,
    LockHeldRemotely,
    NoDevicesLeft,
    NoRecords,
    RunMismatchError,
    Stage,
    VirnucError,
)
from virnuc_async.fileio import atomic_write, create_new, fsync_and_rename, sync_directory
from virnuc_async.log import PROGRESS, Counts, logger, run_log_files
from virnuc_async.models.bundle import Bundle, find
from virnuc_async.models.calibration import Calibration
from virnuc_async.networks.compiling import decide_compile
from virnuc_async.outputs import predictions as results
from virnuc_async.outputs.summary import Summary, summary_text
from virnuc_async.runs.lock import HEARTBEAT_INTERVAL, LEASE_DURATION, Owner, owner_of, take_over
from virnuc_async.runs.reuse_embeddings import (
    FeatureFile,
    Features,
    check_similarity,
    find_features,
    save_features,
)
from virnuc_async.runs.store import DAMAGED, FEATURES, OUTPUT_FILES, STORE, Failure, FileLine, Store
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.inputs import STDIN, Reader, fingerprint, list_sequence_files, read_contigs
from virnuc_async.sequences.mates import (
    Mates,
    PairComparison,
    check_first_records,
    compare,
    describe_mismatch,
    find_mates,
    is_truncated,
)
from virnuc_async.sequences.readahead import ReadAhead
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.sequences.windows import WINDOW_ORFS, Window, form_windows
from virnuc_async.settings import Pairing, Precision, Settings
from virnuc_async.text import plural

_MOST_LOST = 3  # devices: after so many, the fault is not the devices'
_REFRESH = 0.5  # seconds between two looks at the counts
_MEMORY_SECONDS = 10.0  # between two looks at the memory of GPUs
_MOST_MATES = 3  # pairs of files that are named at the start
_MEMORY_FULL = 0.9  # of a GPU's memory in use: the next batch may not fit

_OF_DEVICES = ("devices", "compiled kernels")  # in a run's identity
_UNSTEADY = ("run.log", FEATURES, DAMAGED)  # of our files, those that a run may end with in any state

_Item = TypeVar("_Item")


class Scorer(Protocol):
    """What the pipeline asks of a device."""

    name: str
    depth: int  # batches that it takes at once: one to run, others to be ready when that is done

    def peak_memory(self) -> int:
        """Give the most bytes of device memory that were in use at once."""

    async def load(self) -> str | None:
        """Get ready; say what could not be done as wanted. Raises DeviceLost or BadBundle."""

    async def warm_up(self, tokens: int) -> None:
        """See that batches of *tokens* fit; raises DeviceOutOfMemory or DeviceLost."""

    async def score(self, batch: Batch) -> Scores:
        """
        Score a batch; raises DeviceOutOfMemory or DeviceLost.

        When cancelled, it gives the batch up, or finishes it if the device has begun.
        """

    async def close(self) -> None:
        """Free the device."""


async def run_pipeline(
    inputs: Iterable[str | Path],
    out_dir: str | Path,
    settings: Settings | None = None,
    *,
    stdin: BinaryIO | None = None,
    command: Sequence[str] = (),
) -> Summary:
    """
    Predict every sequence of *inputs* and write the tables into *out_dir*; resume what is there.

    Runs inside any asyncio event loop, several times at once if the directories differ. It
    prints nothing and touches no signal; ``virnuc_async.log.logger`` takes sinks. When it
    is cancelled, it ends within one batch, frees the devices and leaves a run that resumes.

    Raises:
        NoRecords: no input holds a record
        UnknownBundle, BadBundle: the model
        UnknownDevice, MixedDevices: the devices
        NoFeatures, BadFeatures, AmbiguousFeatures, FeatureMismatchError: the earlier work to be reused
        NoDevicesLeft: too many devices failed; finished work is kept
        ForeignDirectoryError, RunMismatchError, DirectoryLockedError, CannotWrite: the output directory
    """
    settings = settings or Settings()
    bundle = await to_thread.run_sync(find, settings.model, settings.cache_dir)
    devices = await to_thread.run_sync(choose, settings)
    paths = tuple(await to_thread.run_sync(list, list_sequence_files(inputs)))
    on_gpu = any(device.capability for device in devices)
    input_bytes = await to_thread.run_sync(_input_bytes, paths) if on_gpu else None
    compiled = decide_compile(settings.compile, on_gpu, input_bytes)
    plan = Plan(paths, settings, bundle, tuple(devices), compiled=compiled)
    make_scorer = partial(Replica, compiled=compiled)
    return await score_with(plan, Path(out_dir), make_scorer, stdin=stdin, command=command)


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a run is asked to do."""

    paths: tuple[str, ...]  # files, or "-"; directories are expanded
    settings: Settings
    bundle: Bundle
    devices: tuple[Device, ...]
    window: int = WINDOW_ORFS  # ORFs
    memory_use: Callable[[Device], MemoryUse | None] = memory_use
    compiled: bool = False  # whether GPUs compute with compiled kernels

    @property
    def calibration(self) -> Calibration | None:
        """The calibration that contigs get a column of."""
        return self.bundle.calibration if self.settings.calibrated else None


MakeScorer = Callable[[Device, Bundle, Precision, bool], Scorer]


async def score_with(
    plan: Plan,
    out_dir: Path,
    make_scorer: MakeScorer,
    *,
    stdin: BinaryIO | None = None,
    command: Sequence[str] = (),
) -> Summary:
    """
    Carry out *plan*, with a scorer for each of its devices.

    Raises:
        what :func:`run_pipeline` raises
    """
    ahead = ReadAhead(plan.paths)
    read = partial(read_contigs, stdin=stdin)
    run = _Run(plan, out_dir, make_scorer, read, partial(read, open_file=ahead.open))
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ahead.run, name="read ahead")
            tasks.start_soon(run.watch, name="watch")
            tasks.start_soon(run.watch_memory, name="watch memory")
            tasks.start_soon(run.heartbeats, name="give signs")
            # Not in this task: who cancels that from outside breaks the shield of a thread it waits for.
            tasks.start_soon(run.go, shlex.join(command), tasks.cancel_scope, name="go")
        return run.summary
    except BaseExceptionGroup as group:
        # Tasks fail in groups; a caller wants the one failure that there nearly always is.
        raise _first_failure(group) from group
    finally:
        run.stop_reading()


def _first_failure(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Give the leaf to raise: a bug before a failure, since failures may follow from it."""
    leaves = list(_leaves(group))
    bugs = [leaf for leaf in leaves if not isinstance(leaf, VirnucError)]
    return (bugs or leaves)[0]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


class Supply:
    """
    Batches for whichever device is free, in order; one that was given back comes round first.

    Holds *room* batches at most, given-back ones aside.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._ready: deque[Batch] = deque()
        self._out = 0  # taken, and neither done nor given back
        self._is_all_in = False
        self._changed = anyio.Condition()

    def __repr__(self) -> str:
        state = "all in" if self._is_all_in else "open"
        return f"<Supply [{len(self._ready)} ready, {self._out} out, {state}]>"

    async def put(self, batch: Batch) -> None:
        """Add *batch* behind the others; waits for room."""
        async with self._changed:
            while len(self._ready) >= self._room:
                await self._changed.wait()
            self._ready.append(batch)
            self._changed.notify_all()

    async def end(self) -> None:
        """Say that no batch will be put any more."""
        async with self._changed:
            self._is_all_in = True
            self._changed.notify_all()

    async def take(self) -> Batch | None:
        """Get the next batch; None once all are done."""
        async with self._changed:
            # An idle device waits for the others' last batches: one may be given back.
            while not self._ready:
                if self._is_all_in and not self._out:
                    return None
                await self._changed.wait()
            self._out += 1
            self._changed.notify_all()
            return self._ready.popleft()

    async def done(self, *unfinished: Batch) -> None:
        """End what :meth:`take` began; what is *unfinished* of it goes to another device."""
        async with self._changed:
            self._out -= 1
            self._ready.extendleft(reversed(unfinished))
            self._changed.notify_all()


class _Run:
    """A plan under way."""

    store: Store  # once there is something to do
    summary: Summary  # once all is done
    precision: Precision  # these two as the store has them, if it has
    budget: int
    features: Features  # that need not be computed
    mates: list[Mates]  # by the names of their files, whether their ids agree or not

    def __init__(
        self,
        plan: Plan,
        out_dir: Path,
        make_scorer: MakeScorer,
        read: Reader,
        read_ahead: Reader | None = None,
    ) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.out_dir = out_dir
        self.make_scorer = make_scorer
        self.warned: set[str] = set()
        self.id = uuid4().hex
        self.log = logger.bind(run=self.id)
        self.counts = Counts()
        self.lost: list[DeviceLost] = []
        self.supply = Supply(2 * len(plan.devices))
        self.rooms: dict[str, int] = {}  # tokens that a device was seen to have no room beyond
        self.load_seconds = 0.0
        self.peaks: dict[str, int] = {}
        self.started = time.monotonic()
        self.strangers: set[Mates] = set()  # of the mates, which were said to be none
        self.unpaired: list[Failure] = []  # what was to be interleaved, and is not
        self.read = read
        self.windows = _windows(plan, read_ahead or read)
        self.disk = CapacityLimiter(1)  # one thread at a time has the store
        self.has_store = anyio.Event()
        self.has_log = anyio.Event()

    def stop_reading(self) -> None:
        """Close the input that is open, unless a thread still waits for it to say something."""
        with suppress(ValueError):
            self.windows.close()

    async def watch(self) -> None:
        """Say how far the run is, for as long as it is not cancelled."""
        while True:
            self.log.bind(counts=self.counts).log(PROGRESS, self.counts.line(time.monotonic()))
            await anyio.sleep(_REFRESH)

    async def watch_memory(self) -> None:
        """Say how full the GPUs are; warn once of each that is nearly full, by whomever."""
        # By card: there may be several replicas on one.
        gpus = {device.uuid: device for device in reversed(self.plan.devices) if device.uuid}
        warned: set[str] = set()
        await self.has_log.wait()
        while gpus:
            for uuid, gpu in gpus.items():
                use = await to_thread.run_sync(self.plan.memory_use, gpu)
                if use is None:
                    continue
                self.log.debug("{}: {}", gpu.name, use)
                if use.share > _MEMORY_FULL and uuid not in warned:
                    warned.add(uuid)
                    self.log.warning("{} is nearly full: {}. Batches may not fit", gpu.name, use)
            await anyio.sleep(_MEMORY_SECONDS)

    async def heartbeats(self) -> None:
        """Show others that want the directory that this process lives."""
        await self.has_store.wait()
        while True:
            await anyio.sleep(HEARTBEAT_INTERVAL)
            await to_thread.run_sync(self.store.lock.heartbeat)

    async def go(self, command: str, others: CancelScope) -> None:
        """Score what is left to score, write the tables, and end the *others*."""
        # A directory is not touched for nothing, but a run that is there is asked first.
        is_new = self.settings.overwrite or not (self.out_dir / STORE).is_file()
        first = await self._first_window() if is_new else None
        self.features = await self._find_features()
        self.store = await self._open_store()
        with closing(self.store), closing(self.features):
            self.has_store.set()
            await self._prepare()
            with run_log_files(self.id, self.out_dir), self._farewell(command):
                self.has_log.set()
                await self._on_disk(self._introduce)
                if not self.store.is_finished:
                    await self._score(first or await self._first_window())
                known = await self._on_disk(self._known_summary)
                self.summary = known or await self._finish(command)
        others.cancel()

    async def _first_window(self) -> Window:
        first = await self._next_window()
        if first is None or not first.contigs:
            failures = [file.failure for file in first.files if file.failure] if first else []
            raise NoRecords(self.plan.paths, failures)
        return first

    async def _open_store(self) -> Store:
        """Open the store; what a dead process elsewhere still holds is taken from it."""
        open_store = partial(Store, self.out_dir, self.settings.overwrite, self.settings.repair)
        try:
            return await self._on_disk(open_store)
        except LockHeldRemotely as held:
            owner = held.owner
        assert isinstance(owner, Owner)
        await self._see_no_sign(owner)
        self.log.warning("no sign of life from {}: going on in its place", owner)
        await self._on_disk(take_over, self.out_dir, owner)
        return await self._on_disk(open_store)

    async def _see_no_sign(self, owner: Owner) -> None:
        """Wait long enough for a sign of life from *owner*; raises DirectoryLockedError at the first one."""
        self.counts.doing = f"waiting for a sign of life from {owner}"
        self.log.warning(
            "{} is held by {}, which cannot be seen from here: if it gives no sign of life for {:.0f} s, "
            "it is taken for dead",
            self.out_dir,
            owner,
            LEASE_DURATION,
        )
        give_up = time.monotonic() + LEASE_DURATION
        while (found := await self._on_disk(owner_of, self.out_dir)) == owner:
            if time.monotonic() > give_up:
                return
            await anyio.sleep(HEARTBEAT_INTERVAL / 10)
        if found is not None:
            raise DirectoryLockedError(str(self.out_dir), f"{found} is writing there. Wait for it to end")

    @contextmanager
    def _farewell(self, command: str) -> Iterator[None]:
        """Leave a summary of a run that ends before its end."""
        with ExitStack() as unless_finished:
            unless_finished.callback(self._leave_unfinished, command)
            yield
            unless_finished.pop_all()

    def _leave_unfinished(self, command: str) -> None:
        self.log.debug("stopped before the end; what is done is kept, and the same command goes on from here")
        # What ended the run is being raised; that the summary cannot be written either is no news.
        with suppress(CannotWrite, OSError):
            # No contig has a verdict before all are scored; and all scored is not all written.
            summary = replace(self._summary(command, Counter(), Counter()), finished=False)
            with create_new(self.out_dir / "summary.json") as file:
                file.writelines(summary_text(summary))

    async def _find_features(self) -> Features:
        shapes, directory = self.plan.bundle.shapes, self.settings.reuse_features
        found: list[FeatureFile] = []
        if directory is not None:
            self.counts.doing = "looking for earlier features"
            searched = find_features(directory, but_not=self.out_dir)
            # A checksum takes its time.
            while (file := await to_thread.run_sync(next, searched, None)) is not None:
                found.append(file)
        return Features(found, (shapes.nucleotide.width, shapes.protein.width))

    async def _prepare(self) -> None:
        """Settle which run this is, and read the features that it reuses."""
        # Those that are refused make no run: others can be tried in the same directory.
        is_new = await self._on_disk(self.store.get_meta, "identity") is None
        steps = (self._read_features, self._identify) if is_new else (self._identify, self._read_features)
        for step in steps:
            await self._on_disk(step)

    def _read_features(self) -> None:
        if not self.features.found or self.store.is_finished:
            return
        self.counts.doing = "reading earlier features"
        try:
            for _ in self.features.read(self.out_dir):
                from_thread.check_cancelled()
        except OSError as error:
            raise CannotWrite(str(self.out_dir), f"earlier features: {error.strerror or error}") from error

    def _identify(self) -> None:
        """Settle precision and budget, as the store has them or anew, and check that the run is its."""
        plan, known = self.plan, self.store.get_meta("identity") or {}
        self.mates = find_mates(plan.paths, self.settings.pairs)
        wanted = self.settings.precision
        if wanted is Precision.AUTO and known:
            wanted = Precision(known["precision"])
        self.precision = decide_precision(plan.devices, wanted)
        budget = self.settings.tokens_per_batch or known.get("tokens per batch")
        self.budget = decide_budget(plan.devices, self.precision, budget)
        identity = self._identity()
        if self.store.is_finished:
            # Whatever devices there are now, nothing will be computed.
            identity |= {key: known[key] for key in _OF_DEVICES}
        self.store.bind_run(identity, plan.paths)
        if self.settings.embeddings and not self.store.is_finished and self.store.count("scores"):
            self._check_features()

    def _check_features(self) -> None:
        """See that the embeddings of what is done are still there: they are in no other place."""
        path, width = self.out_dir / FEATURES, self.plan.bundle.shapes.classifier.inputs
        if not path.exists() or path.stat().st_size < 4 * width * self.store.features_end():
            raise RunMismatchError(str(self.out_dir), [f"the embeddings so far, {FEATURES}, are gone"])

    def _identity(self) -> dict[str, Any]:
        kinds = sorted({device.kind for device in self.plan.devices})
        calibration = self.plan.calibration
        return {
            "inputs": [_content(path) for path in self.plan.paths],
            "model": f"{self.plan.bundle.name} ({self.plan.bundle.fingerprint})",
            "calibration": calibration.fingerprint if calibration else None,
            "devices": kinds[0] if len(kinds) == 1 else "of several kinds",
            "precision": self.precision,
            "tokens per batch": self.budget,
            "ORFs per window": self.plan.window,
            "compiled kernels": self.plan.compiled,
            "threshold": self.settings.threshold,
            "embeddings": self.settings.embeddings,
            "reused features": [[file.name, file.sha256] for file in self.features.found],
        }

    def _introduce(self) -> None:
        bundle = self.plan.bundle
        self.log.info("virnuc-async {} with {}, fragments of {} bp", __version__, bundle.name, bundle.length)
        if bundle.notice:
            self.log.warning(bundle.notice)
        if self.store.lock.previous_owner:
            self.log.info("{} held this run and has ended", self.store.lock.previous_owner)
        if kept := self.store.kept:
            self.log.warning(
                "repaired: {} of {} are kept; what was damaged is in {}",
                plural(kept.batches, "batch", "es"),
                plural(kept.windows, "window"),
                self.out_dir / DAMAGED,
            )
        if self.store.is_finished:
            return
        for device in self.plan.devices:
            self.log.info("{}", _described(device, self.precision, self.budget))
        if self.features.found:
            self.log.info("{}", self.features.found_text())
        self._introduce_mates()
        if self.store.count("batches"):
            self.log.info("going on after {:,} ORFs of an earlier session", self.store.count("scores"))

    def _introduce_mates(self) -> None:
        """Say what is taken for mates, and what is seen to be none before days are spent on it."""
        for mates in self.mates:
            from_thread.check_cancelled()
            compared = check_first_records(mates, self.plan.paths, self.read)
            if compared.differ:
                self._warn_of_strangers(mates, compared)
        taken = [mates for mates in self.mates if mates not in self.strangers]
        if taken and self.settings.pairs == Pairing.INTERLEAVED:
            self.log.info("records that are neighbours in a file are taken for mates")
            return
        for first, second in taken[:_MOST_MATES]:
            self.log.info("{} and {} are taken for mates", self.plan.paths[first], self.plan.paths[second])
        if len(taken) > _MOST_MATES:
            self.log.info("and so are {} of files", plural(len(taken) - _MOST_MATES, "more pair"))

    def _warn_of_strangers(self, mates: Mates, compared: PairComparison) -> None:
        what = describe_mismatch(mates, compared, self.plan.paths)
        if mates.are_interleaved:
            self.log.warning("{}: {}. It has no pairs", self.plan.paths[mates.first], what)
        else:
            self.log.warning(
                "{}. They have no pairs: 'seqkit pair' or repair.sh brings such files into line; "
                "--pairs off takes none for mates",
                what,
            )
        self.strangers.add(mates)

    async def _score(self, first: Window) -> None:
        self.counts.doing = "checking the model's files"
        # It only reads: who cancels need not wait for gigabytes.
        await to_thread.run_sync(self.plan.bundle.check, abandon_on_cancel=True)
        self.counts.doing = "loading the model"
        send, receive = anyio.create_memory_object_stream[ScoredBatch](2 * len(self.plan.devices))
        read, feed = anyio.create_memory_object_stream[Window](1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read, first, read, name="read")
            tasks.start_soon(self._feed, feed, name="feed")
            tasks.start_soon(self._keep, receive, name="keep")
            for device in self.plan.devices:
                tasks.start_soon(self._serve, device, send.clone(), name=f"serve {device.name}")
            send.close()
        if self.features.found:
            self._tell_reused()
            await self._on_disk(self.store.set_meta, "orfs reused", self.features.reused)
        await self._on_disk(self.store.finish)

    def _tell_reused(self) -> None:
        level = "INFO" if self.features.reused else "WARNING"
        self.log.log(level, "{}", self.features.used_text())

    async def _read(self, first: Window, send: MemoryObjectSendStream[Window]) -> None:
        """Form windows ahead of the devices, in a worker thread."""
        async with send:
            window: Window | None = first
            while window is not None and await _is_sent(send, window):
                window = await self._next_window()

    async def _feed(self, windows: MemoryObjectReceiveStream[Window]) -> None:
        """Hand out the batches that are not done yet, window by window."""
        count = 0
        async with windows:
            async for window in windows:
                count += 1
                await self._on_disk(self._keep_window, window)
                done = await self._on_disk(self.store.finished_parts, window.number)
                left = await to_thread.run_sync(self._batches_left, window, done)
                self.counts.read += len(window.origins)
                self.counts.done += len(window.origins) - sum(map(len, left))
                for batch in left:
                    await self.supply.put(batch)
        if await self._on_disk(self.store.count, "windows") != count:
            raise RunMismatchError(str(self.out_dir), ["the sequences have changed: there are fewer now"])
        self.counts.is_all_read = True
        await self.supply.end()

    def _batches_left(self, window: Window, done: set[tuple[int, str]]) -> list[Batch]:
        batches = window.batches(self.budget, self.features.lookup(window))
        return [part for batch in batches for part in _unfinished(batch, done)]

    def _keep_window(self, window: Window) -> None:
        """Store what the window is made of; on resume, check that it still is."""
        known = self.store.window(window.number)
        if known is None:
            self.store.add_window(window)
            for file in window.files:
                if file.failure:
                    self._tell_failure(Failure(file.path, Stage.INPUT, file.failure.reason))
                elif not file.contigs:
                    self.log.warning("{} holds no sequence", file.path)
        elif known != window.digest:
            raise RunMismatchError(str(self.out_dir), ["the sequences have changed"])

    async def _serve(self, device: Device, send: MemoryObjectSendStream[ScoredBatch]) -> None:
        """Have one device score batches until there are none, or until it is lost."""
        # The stream is closed whatever happens: the task that keeps the scores waits for that.
        async with send:
            scorer = self.make_scorer(device, self.plan.bundle, self.precision, self.settings.embeddings)
            try:
                self._warn_once(await scorer.load())
                await self._warm_up(scorer)
                self.load_seconds = max(self.load_seconds, time.monotonic() - self.started)
                self.counts.ready(device.name)
                async with anyio.create_task_group() as workers:
                    for _ in range(scorer.depth):
                        workers.start_soon(self._drain, scorer, send, name=f"drain {device.name}")
            except* DeviceLost as group:
                self._retire(next(_leaves(group)))
            finally:
                self.peaks[device.name] = scorer.peak_memory()
                with CancelScope(shield=True):
                    await scorer.close()

    async def _warm_up(self, scorer: Scorer) -> None:
        """Find out now whether the run's batches fit, and take smaller ones if they do not."""
        room = self.budget
        while True:
            try:
                await scorer.warm_up(room)
                return
            except DeviceOutOfMemory:
                room //= 2
                if not room:
                    raise DeviceLost(scorer.name, "not enough memory for a single token") from None
            self.log.warning(
                "{} has no room for batches of {:,} tokens; it gets halves. "
                "--esm-batch-size {} would give every device the same",
                scorer.name,
                2 * room,
                room,
            )
            self.rooms[scorer.name] = room

    def _warn_once(self, warning: str | None) -> None:
        """Say what is the same on every device for the first of them alone."""
        if warning and warning not in self.warned:
            self.log.warning("{}", warning)
            self.warned.add(warning)

    async def _drain(self, scorer: Scorer, send: MemoryObjectSendStream[ScoredBatch]) -> None:
        while (batch := await self.supply.take()) is not None:
            left = deque([batch])
            try:
                while left:
                    await self._advance(scorer, left, send)
            finally:
                with CancelScope(shield=True):
                    await self.supply.done(*left)

    async def _advance(
        self, scorer: Scorer, left: deque[Batch], send: MemoryObjectSendStream[ScoredBatch]
    ) -> None:
        """Score the first of *left*, or halve it where the device has no room for it."""
        batch = left[0]
        if len(batch) > 1 and batch.tokens > self.rooms.get(scorer.name, self.budget):
            left.popleft()
            left.extendleft(reversed(batch.halves()))
            return
        try:
            scores = await scorer.score(batch)
            check_similarity(batch.known, scores.similarity)
            done = _finished(scorer.name, scores)
        except DeviceOutOfMemory as error:
            self.log.warning("{}; trying halves" if len(batch) > 1 else "{}", error)
            stage, reason, done = error.stage, str(error), None
        # Not inside the handler: its traceback would keep the failed batch's tensors alive.
        if done is None and len(batch) > 1:
            self.rooms[scorer.name] = batch.tokens // 2
            return
        # Shielded: what was scored is kept, also when cancelled.
        with CancelScope(shield=True):
            is_kept = await _is_sent(send, done or _hopeless(scorer.name, batch, stage, reason))
        left.popleft()
        if not is_kept:
            # The task that keeps scores has failed, and says why.
            left.clear()

    def _retire(self, error: BaseException) -> None:
        assert isinstance(error, DeviceLost)
        self.lost.append(error)
        self.log.error("{}; the other devices take its batches", error)
        if len(self.lost) in (_MOST_LOST, len(self.plan.devices)):
            raise NoDevicesLeft(self.lost)

    async def _keep(self, scored: MemoryObjectReceiveStream[ScoredBatch]) -> None:
        """Store batches as they come, until the last device has gone; never cancelled before that."""
        with CancelScope(shield=True):
            async with scored:
                async for done in scored:
                    for failure in await self._on_disk(self.store.add_batch, done):
                        self._tell_failure(failure)
                    self.counts.finished(done.device, len(done.batch), done.batch.tokens)
                    self.log.debug("batch {} done on {}", done.batch.name, done.device)

    def _tell_failure(self, failure: Failure) -> None:
        told = self.log.bind(failure=results.failed_line(failure))
        told.error("{}: {}", failure.path, failure.message)

    async def _finish(self, command: str) -> Summary:
        """Write every file that people read, each at once or not at all."""
        self.counts.doing = "writing tables"
        store, threshold, calibration = self.store, self.settings.threshold, self.plan.calibration
        await self._write("prediction_results.txt", results.predictions(store))
        await self._write("prediction_results_highestscore.csv", results.fragment_verdicts(store))
        tally: Counter[str] = Counter()
        await self._write("contigs.tsv", results.contig_verdicts(store, threshold, tally, calibration))
        of_pairs = await self._write_pairs()
        await self._write_failures()
        if self.settings.embeddings and not (self.out_dir / "merged_features.pt").exists():
            await self._on_disk(self._write_features)
        summary = await self._on_disk(self._summary, command, tally, of_pairs)
        await self._write("summary.json", summary_text(summary))
        await self._on_disk(self._note_written)
        self.log.info("{}", _told(summary, self.out_dir))
        return summary

    def _note_written(self) -> None:
        """Remember what the files are like and of which mates, to know them again."""
        self.store.set_meta("mates", self.mates)
        self.store.set_meta("written", _states(self.out_dir))

    def _known_summary(self) -> Summary | None:
        """Give the summary of a run whose files are all as they were written."""
        written = self.store.get_meta("written") if self.store.is_finished else None
        if written is None:
            return None
        if written != _states(self.out_dir):
            self.log.info(
                "this run is finished, but not all of its files are as they were: writing them again"
            )
            return None
        if (self.store.get_meta("mates") or []) != list(map(list, self.mates)):
            self.log.info("this run is finished, but with other pairs: writing its files again")
            return None
        self.log.info("this run is finished already, and its files are as they were written")
        summary = Summary(**json.loads((self.out_dir / "summary.json").read_bytes()))
        self.log.info("{}", _told(summary, self.out_dir))
        return summary

    async def _write(self, name: str, parts: results.Chunks) -> None:
        """Write a file beside its place and move it there once it is whole and on disk."""
        await self._on_disk(self._write_now, name, parts)

    def _write_now(self, name: str, parts: results.Chunks) -> None:
        try:
            # Closed whatever happens: a query that is open keeps the store's lock.
            with closing(parts), atomic_write(self.out_dir / name) as file:
                for part in parts:
                    from_thread.check_cancelled()
                    file.write(part)
        except OSError as error:
            raise CannotWrite(str(self.out_dir), f"{name}: {error.strerror}") from error

    async def _write_pairs(self) -> Counter[str]:
        """Write the table of pairs, if there are any; give how many have which verdict."""
        self.counts.doing = "comparing the ids of mates"
        mates, tally = await self._on_disk(self._true_mates), Counter[str]()
        self.counts.doing = "writing tables"
        if mates:
            threshold, calibration = self.settings.threshold, self.plan.calibration
            parts = results.pair_verdicts(self.store, mates, threshold, tally, calibration)
            await self._write("pairs.tsv", parts)
        else:
            await self._on_disk(self._remove, "pairs.tsv")
        return tally

    def _true_mates(self) -> list[Mates]:
        """Give the mates whose ids agree, to the last record or to where a file breaks; say which do not."""
        files, found = list(self.store.files()), []
        for mates in self.mates:
            compared = compare(mates, self._stored_ids)
            if not compared.differ:
                found += [mates] * bool(compared.pairs)
            elif is_truncated(mates, compared, files):
                found += [mates] * bool(compared.pairs)
                self._tell_cut_short(mates, compared.pairs)
            elif mates.are_interleaved:
                what = describe_mismatch(mates, compared, self.plan.paths)
                self.unpaired.append(Failure(self.plan.paths[mates.first], Stage.INPUT, what))
                self._tell_failure(self.unpaired[-1])
            elif mates not in self.strangers:
                self._warn_of_strangers(mates, compared)
        return found

    def _tell_cut_short(self, mates: Mates, pairs: int) -> None:
        names = " and ".join(dict.fromkeys(self.plan.paths[file] for file in mates))
        self.log.warning("{}: {} before the break, none behind it", names, plural(pairs, "pair"))

    def _stored_ids(self, file: int) -> Iterator[bytes]:
        for some in self.store.ids(file):
            from_thread.check_cancelled()
            yield from some

    async def _write_failures(self) -> None:
        name = "failed_files.txt"
        count = await self._on_disk(self.store.count, "failures")
        if count + len(self.unpaired):
            await self._write(name, results.failed_lines(self.store, self.unpaired))
        else:
            await self._on_disk(self._remove, name)

    def _remove(self, name: str) -> None:
        """See that nothing is called *name*, where an earlier session may have had something to write."""
        (self.out_dir / name).unlink(missing_ok=True)
        sync_directory(self.out_dir)

    def _write_features(self) -> None:
        path = self.out_dir / ".merged_features.pt.partial"
        try:
            save_features(self.store, self.plan.bundle.shapes.classifier.inputs, path)
            fsync_and_rename(path, self.out_dir / "merged_features.pt")
            (self.out_dir / FEATURES).unlink(missing_ok=True)
        except OSError as error:
            raise CannotWrite(str(self.out_dir), f"merged_features.pt: {error.strerror}") from error

    def _summary(self, command: str, tally: Counter[str], of_pairs: Counter[str]) -> Summary:
        store, bundle = self.store, self.plan.bundle
        counts = {
            "contigs": store.count("contigs"),
            "fragments": store.fragments(),
            "orfs": store.count("scores"),
            "batches": store.count("batches"),
            "viral_contigs": tally["virus"],
            "failures": store.count("failures") + len(self.unpaired),
        }
        if of_pairs:
            counts |= {"pairs": of_pairs.total(), "viral_pairs": of_pairs["virus"]}
        reused = store.get_meta("orfs reused")
        if reused is not None:
            counts["orfs_reused"] = reused
        work = store.device_totals()
        return Summary(
            version=__version__,
            command=command,
            settings=self._settings_used(),
            bundle={"name": bundle.name, "fingerprint": bundle.fingerprint},
            inputs=[_input_facts(file) for file in store.files()],
            counts=counts,
            devices=[self._device_facts(name, *sums) for name, sums in work.items()],
            seconds={
                "total": round(time.monotonic() - self.started, 3),
                "load": round(self.load_seconds, 3),
                "model": round(sum(sums[3] for sums in work.values()), 3),
            },
            reproducible=store.is_reproducible() and len({d.kind for d in self.plan.devices}) == 1,
            finished=store.is_finished,
        )

    def _settings_used(self) -> dict[str, Any]:
        used = {"precision": self.precision, "tokens_per_batch": self.budget}
        return {key: _plain(value) for key, value in (asdict(self.settings) | used).items()}

    def _device_facts(
        self, name: str, batches: int, orfs: int, tokens: int, seconds: float
    ) -> dict[str, Any]:
        device = next((device for device in self.plan.devices if device.name == name), None)
        return {
            "name": name,
            "kind": device.model if device else "of an earlier session",
            "precision": str(self.precision),
            "tokens_per_batch": self.budget,
            "batches": batches,
            "orfs": orfs,
            "tokens": tokens,
            "busy_seconds": round(seconds, 3),
            "peak_memory_bytes": self.peaks.get(name, 0),
        }

    async def _next_window(self) -> Window | None:
        # Forming a window parses, translates and tokenizes: too long to hold the event loop for.
        # Abandoned when cancelled: standard input may never say another word.
        return await to_thread.run_sync(next, self.windows, None, abandon_on_cancel=True)

    async def _on_disk(self, work: Callable[..., _Item], *args: Any) -> _Item:
        return await to_thread.run_sync(work, *args, limiter=self.disk)


def _windows(plan: Plan, read: Reader) -> Generator[Window, None, None]:
    plan.bundle.check("tokenizer.json")
    tokenizer = OrfTokenizer(plan.bundle.tokenizer())
    yield from form_windows(plan.paths, read, plan.bundle.length, tokenizer, plan.window)


def _unfinished(batch: Batch, done: set[tuple[int, str]]) -> Iterator[Batch]:
    """Give what is left of *batch*, halved where an earlier session halved it."""
    parts = {part for number, part in done if number == batch.number and part.startswith(batch.split_path)}
    if not parts:
        yield batch
    elif batch.split_path not in parts:
        for half in batch.halves():
            yield from _unfinished(half, done)


def _finished(device: str, scores: Scores) -> ScoredBatch:
    faults = {
        int(row): (STAGE_CODES[scores.stage_codes[row] - 1], "its score is not finite")
        for row in scores.stage_codes.nonzero()[0]
    }
    return ScoredBatch(scores.batch, device, scores.seconds, scores.probabilities, scores.embeddings, faults)


def _hopeless(device: str, batch: Batch, stage: Stage, reason: str) -> ScoredBatch:
    """Give up on the one ORF of *batch*."""
    nothing = np.zeros((1, 2), dtype=np.float32)
    return ScoredBatch(batch, device, 0.0, nothing, None, {0: (stage, reason)})


async def _is_sent(send: MemoryObjectSendStream[_Item], item: _Item) -> bool:
    """Send *item*; false where nobody will ever receive it, since the receiving task has ended."""
    try:
        await send.send(item)
    except anyio.BrokenResourceError:
        return False
    return True


def _content(path: str) -> list[Any]:
    """Give a file's place, which may change, and what its content is known by, which may not."""
    return [path if path == STDIN else os.path.abspath(path), fingerprint(path)]


def _states(directory: Path) -> dict[str, list[int]]:
    """Give size and time of change of all files that a run ends with."""
    paths = ((name, directory / name) for name in OUTPUT_FILES if name not in _UNSTEADY)
    facts = ((name, path.stat()) for name, path in paths if path.is_file())
    return {name: [fact.st_size, fact.st_mtime_ns] for name, fact in facts}


def _input_bytes(paths: Sequence[str]) -> int | None:
    """Give the size of all inputs, compressed as they are; None where it cannot be known."""
    try:
        return None if STDIN in paths else sum(os.stat(path).st_size for path in paths)
    except (OSError, ValueError):  # ValueError: a name with a zero byte in it
        return None


def _input_facts(file: FileLine) -> dict[str, Any]:
    status = "failed" if file.failed else "read" if file.contigs else "empty"
    if file.failed and file.contigs:
        status = "broken"
    return {"path": file.path, "contigs": file.contigs or 0, "status": status}


def _described(device: Device, precision: Precision, budget: int) -> str:
    facts = [device.model, f"{device.memory / 2**30:.0f} GiB"]
    if device.capability is None:
        facts.append(plural(device.threads, "thread"))
    else:
        facts.append("capability {}.{}".format(*device.capability))
    if precision is Precision.BF16:
        facts.append("BF16 enabled")
    else:
        facts.append("FP32" if device.has_bf16 else "FP32 (BF16 is for GPUs of capability 8.0 and above)")
    base = BASE_BUDGET[precision]
    scaled = "" if budget == base else f" ({base:,} before looking at memory and settings)"
    return f"{device.name}: {', '.join(facts)}, {budget:,} tokens per batch{scaled}"


def _told(summary: Summary, out_dir: Path) -> str:
    counts = summary.counts
    pairs = counts.get("pairs", 0)
    of_pairs = f", {counts['viral_pairs']:,} of {plural(pairs, 'pair')}" if pairs else ""
    text = (
        f"Viral: {counts['viral_contigs']:,} of {plural(counts['contigs'], 'contig')}{of_pairs} "
        f"({plural(counts['orfs'], 'ORF')} of {plural(counts['fragments'], 'fragment')} scored in "
        f"{summary.seconds['total']:.1f} s). Tables are in {out_dir}"
    )
    failed = counts["failures"]
    return text + (f"; {plural(failed, 'failure')} in {out_dir / 'failed_files.txt'}" if failed else "")


def _plain(value: Any) -> Any:
    """Give what JSON can hold of a setting."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
