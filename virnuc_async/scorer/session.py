"""An open scorer: its devices, its schedule, and the requests that it has."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from threading import Lock
from typing import TYPE_CHECKING

import anyio
from anyio import CancelScope, CapacityLimiter, to_thread

from virnuc_async import engine
from virnuc_async.engine.events import EngineEvents
from virnuc_async.errors import InputError, ScorerClosed, VirnucError, first_error
from virnuc_async.pipeline import MakeScorer
from virnuc_async.runs.blocks import Block
from virnuc_async.runs.hardware import Hardware, choose_devices, decide_hardware
from virnuc_async.runs.plan import Plan
from virnuc_async.sequences.fastx import Contig
from virnuc_async.sequences.inputs import Reader
from virnuc_async.sequences.tokens import OrfTokenizer, Ragged
from virnuc_async.sequences.windows import Cut, Window, form_windows

from .predictions import Prediction, predictions_of
from .records import IN_MEMORY, Records, contigs_of, few_contigs
from .request import Request, ScoredWindow, joined, whole_records
from .schedule import Schedule
from .shared import SharedRequests

if TYPE_CHECKING:
    from virnuc_async.engine.devices import Device
    from virnuc_async.engine.worker import BatchScorer

Report = Callable[[int, int, tuple[str, ...]], None]

_MOST_READERS = 32  # callers whose records are read, translated and tokenized at once
# Small requests that are formed as one: of so many batches, and so many at once for each device.
_SHARED_BATCHES, _GROUPS_PER_DEVICE = 4, 4
_WITHOUT_LIMIT = 1 << 62  # ORFs
_MOST_WINDOWS = 2  # of a request that are not fetched: one is scored, the next is ready


def prepare(plan: Plan) -> tuple[Hardware, OrfTokenizer]:
    """
    Choose the devices of *plan*, check the files of its model, and return what scoring needs of both.

    Raises:
        BadBundle: the files of the model
        UnknownDevice, MixedDevices, UnsuitablePrecision, NoDevicesLeft: the devices
    """
    hardware = decide_hardware(plan, choose_devices(plan), {})
    plan.bundle.check()
    return hardware, _SharedTokenizer(plan.bundle.tokenizer())


class ScorerSession(EngineEvents):
    """What a scorer has between being entered and being left."""

    def __init__(self, plan: Plan, hardware: Hardware, tokenizer: OrfTokenizer, max_wait: float) -> None:
        self.schedule = Schedule(hardware.budget)
        self.failure: VirnucError | None = None  # that ended all work
        self.on_progress: Report = lambda *_: None
        self._plan = plan
        self._hardware = hardware
        self._tokenizer = tokenizer
        self._requests: set[Request] = set()
        self._orfs = 0  # scored
        self._devices: list[str] = []  # that are ready
        self._is_ready = anyio.Event()
        self._readers, self._threads = CapacityLimiter(_MOST_READERS), CapacityLimiter(_MOST_READERS)
        self._end = anyio.Event()
        self._task: asyncio.Task[None]
        self._shared = SharedRequests(
            self._score_together,
            most_bases=_SHARED_BATCHES * hardware.budget,
            most_groups=_GROUPS_PER_DEVICE * len(hardware.devices),
            max_wait=max_wait,
        )

    @property
    def waiting(self) -> int:
        """The ORFs that wait to be scored, and the records that wait to be formed into ORFs."""
        return self.schedule.waiting + self._shared.gathered

    async def start(self, make_scorer: MakeScorer | None) -> None:
        """Load the model on every device; return when one is ready, and raise what leaves none."""
        # A task of its own, not one of the caller's: a notebook opens and closes in different ones.
        self._task = asyncio.create_task(
            self._serve(make_scorer or engine.replica_class(self._hardware.precision)), name="scorer"
        )
        try:
            await self._is_ready.wait()
        finally:
            if not self._is_ready.is_set():  # nobody waits any more
                await self.close()
        if self.failure is not None:
            await self.close()
            raise self.failure

    async def close(self) -> None:
        """Let the devices finish what they have begun, free them, and end what still waits."""
        self.failure = self.failure or ScorerClosed()
        self._end.set()
        with CancelScope(shield=True):
            await self._task

    def device_ready(self, device: str) -> None:
        """Let callers in when the first device is ready."""
        self._devices.append(device)
        self._is_ready.set()

    def device_closed(self, device: str, peak_memory: int) -> None:
        """Forget a device."""
        with suppress(ValueError):
            self._devices.remove(device)

    async def score(self, records: Records, max_waiting: int) -> AsyncGenerator[list[Prediction], None]:
        """
        Yield the predictions of *records*, some at a time.

        Nothing is read while *max_waiting* ORFs, or more, are waiting.

        Raises:
            what :meth:`virnuc_async.scorer.scorer.Scorer.score` raises
        """
        if self.failure is not None:
            raise self.failure
        small = few_contigs(records, self._hardware.budget)
        if small is None:
            async with aclosing(self._score_windows(self._windows(records), max_waiting)) as found:
                async for predictions in found:
                    yield predictions
        elif small:
            await self.schedule.room(max_waiting)
            yield await self._shared.score(small)

    async def _score_together(self, contigs: Sequence[Contig]) -> list[Prediction]:
        found: list[Prediction] = []
        windows = self._form_windows([IN_MEMORY], lambda *_: iter(contigs))
        async with aclosing(self._score_windows(windows, _WITHOUT_LIMIT)) as parts:
            async for predictions in parts:
                found += predictions
        return found

    async def _score_windows(
        self, windows: Generator[Window, None, None], max_waiting: int
    ) -> AsyncGenerator[list[Prediction], None]:
        """Yield the predictions of *windows* as these are scored."""
        async with self._request() as request:
            carried: Block | None = None
            async for scored, is_last in self._scored(request, windows, max_waiting):
                failure = next((file.failure for file in scored.window.files if file.failure), None)
                block = joined(carried, scored.block())
                whole, carried = whole_records(block, is_last=is_last or failure is not None)
                yield self._predictions(whole, request)
                if failure is not None:
                    raise failure

    @asynccontextmanager
    async def _request(self) -> AsyncIterator[Request]:
        request = Request()
        self._requests.add(request)
        try:
            yield request
        finally:
            self._requests.discard(request)
            request.is_cancelled = True
            with CancelScope(shield=True):
                await self.schedule.drop_unwanted()

    async def _scored(
        self, request: Request, windows: Generator[Window, None, None], max_waiting: int
    ) -> AsyncGenerator[tuple[ScoredWindow, bool], None]:
        """Yield *windows* with all their scores, and whether each is the last."""
        is_all_read = False
        try:
            while True:
                while not is_all_read and len(request.windows) < _MOST_WINDOWS:
                    window = await self._form(windows, max_waiting)
                    if window is None:
                        is_all_read = True
                    else:
                        await self._add(request, window)
                if not request.windows:
                    return
                scored = await request.next_window()
                yield scored, is_all_read and not request.windows
        finally:
            # A thread may still wait for the caller's own iterator.
            with suppress(ValueError):
                windows.close()

    async def _form(self, windows: Generator[Window, None, None], max_waiting: int) -> Window | None:
        """Return the next window when there is room for it, or None."""
        async with self._readers:
            await self.schedule.room(max_waiting)
            return await to_thread.run_sync(
                next, windows, None, abandon_on_cancel=True, limiter=self._threads
            )

    async def _add(self, request: Request, window: Window) -> None:
        scored = ScoredWindow(window)
        request.windows.append(scored)
        if scored.left:
            await self.schedule.add(request, scored)

    def _windows(self, records: Records) -> Generator[Window, None, None]:
        """Form windows as a run does."""
        found = contigs_of(records)
        current: Iterator[Contig] = iter(())
        is_broken = False

        def paths() -> Iterator[str]:
            nonlocal current
            # What is behind a broken file is not read: the error is raised there.
            while not is_broken and (one := next(found, None)):
                path, current = one
                yield path

        def read(*_: object) -> Iterator[Contig]:
            nonlocal is_broken
            try:
                yield from current
            except InputError:
                is_broken = True
                raise

        return self._form_windows(paths(), read)

    def _form_windows(self, paths: Iterable[str], read: Reader) -> Generator[Window, None, None]:
        cut = Cut(self._plan.bundle.length, self._plan.window, self._plan.segment)
        yield from form_windows(paths, read, cut, self._tokenizer)

    def _predictions(self, block: Block, request: Request) -> list[Prediction]:
        return predictions_of(block, self._plan.bundle.length, self._plan.verdict_rule, request.failures)

    async def _serve(self, make_scorer: MakeScorer) -> None:
        """Score what is asked for, until the session is closed or fails."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._run, make_scorer, name="score")
            tasks.start_soon(self._shared.run, name="gather small requests")
            await self._end.wait()
            tasks.cancel_scope.cancel()

    async def _run(self, make_scorer: MakeScorer) -> None:
        """Score batches until this is cancelled; what ends it early ends every request."""
        hardware, bundle = self._hardware, self._plan.bundle

        def make(device: "Device") -> "BatchScorer":
            return make_scorer(device, bundle, hardware.precision, False)

        scoring = engine.Engine(hardware.devices, make, hardware.budget, self)
        try:
            async with scoring.score(self.schedule.batches()) as scored:
                async for batch in scored:
                    await self.schedule.put(batch)
                    self._orfs += len(batch.batch)
                    self.on_progress(self._orfs, len(self._requests), tuple(self._devices))
        except (VirnucError, ExceptionGroup) as error:
            self.failure = _own_error(error)
        finally:
            end = self.failure or ScorerClosed()
            for request in self._requests:
                request.fail(end)
            self._shared.fail(end)
            self._is_ready.set()
            self._end.set()


def _own_error(error: Exception) -> VirnucError:
    """Return what ended the work; a bug is raised."""
    first = first_error(error)
    if not isinstance(first, VirnucError):
        raise error
    return first


class _SharedTokenizer(OrfTokenizer):
    """A tokenizer that several threads use, one at a time."""

    def __init__(self, definition: str) -> None:
        super().__init__(definition)
        self._lock = Lock()

    def nucleotides(self, bases: Sequence[bytes]) -> Ragged:
        """Return the token ids of upper-case *bases*, each between [CLS] and [SEP]."""
        with self._lock:
            return super().nucleotides(bases)
