"""An event loop, threads and a disk that are simulated: a seed decides time, order and failures."""

import asyncio
import contextvars
import errno
import heapq
import os
import random
import sqlite3
import sysconfig
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count
from typing import Any

import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
from anyio import CancelScope

_TICK = 0.001  # virtual seconds of a step
_MAX_STEPS = 20_000  # the longest run has about 3,000
_NEW_PRIORITIES = 0.05  # share of the steps after which priorities are drawn again
_WRITES = ("INSERT", "UPDATE", "CREATE", "DROP", "COMMIT")

_ABANDONED = "abandoned job"  # used as its executor

_connect = sqlite3.connect
_get_path = cache(sysconfig.get_path)


class Deadlock(AssertionError):
    """A run does not end; the message lists where each task waits."""


class Task(asyncio.Task):
    """A task with a number, which unlike its address is the same in every run."""

    number = 0


class Loop(asyncio.AbstractEventLoop):
    """
    Runs callbacks in virtual time, in one of ORDERS; *rng* decides the details.

    Jobs for threads are done between two callbacks, each at most *max_delay* seconds after its start.
    """

    ORDERS = ("as asyncio", "any", "by priority")

    def __init__(self, rng: random.Random, order: str, max_delay: float) -> None:
        self.trace: list[str] = []
        self.tasks: list[Task] = []
        self.unhandled: list[str] = []
        self.jobs_started = 0  # by threads
        self.running_jobs: Counter[str] = Counter()  # by the names of their functions
        self.jobs_left: list[str] = []  # running when the main task ended
        self.after_step: Callable[[], None] = lambda: None
        self._rng, self._order, self._max_delay = rng, order, max_delay
        self._now = 0.0
        self._ready: list[tuple[int, asyncio.Handle]] = []  # with the number of its task
        self._scheduled: list[tuple[int, asyncio.Handle]] = []  # during this step
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._priorities: dict[int, float] = {}
        self._numbers = count(1)

    @property
    def steps(self) -> int:
        return len(self.trace)

    def run(self, main: Coroutine[Any, Any, Any], name: str) -> Task:
        """Run until *main* and everything that it started has ended."""
        asyncio._set_running_loop(self)
        try:
            task = self.create_task(main, name=name)
            while not task.done():
                self._step()
            self.jobs_left = sorted((+self.running_jobs).keys() - {_ABANDONED})
            while self._scheduled or self._ready or self._timers:
                self._step()
        finally:
            asyncio._set_running_loop(None)
        return task

    def pending_tasks(self) -> Iterator[str]:
        """Yield the name and the call stack of each task that has not ended."""
        for task in self.tasks:
            if not task.done():
                yield f"{task.get_name()}: {' > '.join(_call_stack(task))}"

    def _step(self) -> None:
        self._advance_time()
        if self._ready:
            number, handle = self._choose()
            if not handle.cancelled():
                self.trace.append(self.tasks[number - 1].get_name() if number else "-")
                handle._run()
                self.after_step()
        if self.steps >= _MAX_STEPS:
            raise Deadlock("\n".join(["these tasks never end:", *self.pending_tasks()]))

    def _advance_time(self) -> None:
        """Advance the clock, and make ready what is due."""
        # Sets of tasks and scopes are ordered by address, which differs from run to run: what was
        # scheduled in one step is sorted by task.
        self._ready += sorted(self._scheduled, key=lambda one: one[0])
        self._scheduled.clear()
        self._now += _TICK
        if not self._ready and self._timers:
            self._now = max(self._now, self._timers[0][0])
        while self._timers and self._timers[0][0] <= self._now:
            handle = heapq.heappop(self._timers)[2]
            self._ready.append((_task_number(handle), handle))

    def _choose(self) -> tuple[int, asyncio.Handle]:
        at = 0
        if self._order == "any":
            at = self._rng.randrange(len(self._ready))
        elif self._order == "by priority":
            if self._rng.random() < _NEW_PRIORITIES:
                self._priorities.clear()
            at = max(range(len(self._ready)), key=lambda at: self._priority(self._ready[at][0]))
        number = self._ready[at][0]
        # The callbacks of one task stay in order.
        if number:
            at = next(at for at, one in enumerate(self._ready) if one[0] == number)
        return self._ready.pop(at)

    def _priority(self, number: int) -> float:
        if number not in self._priorities:
            self._priorities[number] = self._rng.random()
        return self._priorities[number]

    def time(self) -> float:
        return self._now

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._scheduled.append((_task_number(handle), handle))
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **options: Any) -> Task:  # type: ignore[override]
        # Its number must be known before its first step is scheduled.
        task = Task.__new__(Task)
        self.tasks.append(task)
        task.number = len(self.tasks)
        task.__init__(coro, loop=self, **options)  # type: ignore[misc]
        return task

    def get_task_factory(self) -> None:
        return None

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Schedule a call of *func*; once started it runs to its end, also when its future is cancelled."""
        future = self.create_future()
        job = partial(func, *args)
        name = _ABANDONED if executor is _ABANDONED else _function_name(job)

        def begin() -> None:
            if not future.cancelled():
                self.jobs_started += 1
                self.running_jobs[name] += 1
                self.call_later(self._delay(), do)

        def do() -> None:
            self.running_jobs[name] -= 1
            result, error = self._call(job)
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.call_soon(begin)
        return future

    def _delay(self) -> float:
        return self._rng.random() * self._max_delay

    def _call(self, job: "partial[Any]") -> tuple[Any, BaseException | None]:
        try:
            return job(), None
        except BaseException as error:  # noqa: BLE001 (like a thread)
            return None, error

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.unhandled.append(repr(context))

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._timers = [timer for timer in self._timers if timer[2] is not handle]
        heapq.heapify(self._timers)


def _task_number(handle: asyncio.Handle) -> int:
    """Return the number of the task that *handle* runs, or that has ended; 0 if it concerns no task."""
    callback, args = handle._callback, handle._args  # type: ignore[attr-defined]
    for one in (getattr(callback, "__self__", None), *(args or ())):
        if isinstance(one, Task):
            return one.number
    return 0


def _function_name(job: Any) -> str:
    """Return the name of the function that *job* calls."""
    while isinstance(job, partial):
        job = job.func
    return str(getattr(job, "__name__", job))


def _call_stack(task: Task) -> Iterator[str]:
    """Yield the functions that *task* is in, the innermost last."""
    awaited = task.get_coro()
    while (frame := getattr(awaited, "cr_frame", None)) is not None:
        yield f"{frame.f_code.co_name}:{frame.f_lineno}"
        awaited = awaited.cr_await  # type: ignore[union-attr]


class ToThread:
    """Replaces ``anyio.to_thread``, without threads."""

    @staticmethod
    async def run_sync(
        job: Callable[..., Any],
        *args: Any,
        abandon_on_cancel: bool = False,
        limiter: AbstractAsyncContextManager[Any] | None = None,
    ) -> Any:
        executor = _ABANDONED if abandon_on_cancel else None
        await anyio.lowlevel.checkpoint()
        async with limiter or nullcontext():
            with CancelScope(shield=not abandon_on_cancel):
                return await asyncio.get_running_loop().run_in_executor(executor, job, *args)


class _Connection(sqlite3.Connection):
    """A connection that informs its disk before each statement."""

    disk: "Disk | None" = None

    is_small: bool = False

    def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
        if self.disk is not None:
            self.disk.before_statement(query)
        if query.startswith("BEGIN") and not self.is_small:
            # Changed pages are written at once: a crash leaves a file that is half changed, next to a
            # journal that can undo the changes. Not before: it may be the first that reads the file.
            super().execute("PRAGMA cache_size=1")
            self.is_small = True
        return super().execute(query, *values)


@dataclass
class Disk:
    """Counts operations by kind; *interrupt* is called before operation number *countdown* of one kind."""

    watched: str = ""  # statement: of the store; write: a statement that changes it; file: a chunk of a table
    countdown: int = 0
    stays_broken: bool = False  # whether all later operations are interrupted, too
    interrupt: Callable[[], None] = lambda: None
    seen: Counter[str] = field(default_factory=Counter)

    @property
    def has_interrupted(self) -> bool:
        return bool(self.watched) and self.seen[self.watched] >= self.countdown

    def connect(self, *args: Any, **options: Any) -> sqlite3.Connection:
        connection = _connect(*args, factory=_Connection, **options)
        connection.disk = self
        return connection

    def before_statement(self, query: str) -> None:
        self._count("statement")
        if query.startswith(_WRITES):
            self._count("write")

    def before_chunk(self) -> None:
        self._count("file")

    def _count(self, kind: str) -> None:
        self.seen[kind] += 1
        over = self.seen[kind] - self.countdown
        if kind == self.watched and (over == 0 or over > 0 and self.stays_broken):
            self.interrupt()


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_in_store() -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL  # type: ignore[misc]
    raise error


@contextmanager
def without_threads(disk: Disk) -> Iterator[None]:
    """Run the pipeline without threads, on *disk*."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anyio.to_thread, "run_sync", ToThread.run_sync)
        patch.setattr(anyio.from_thread, "check_cancelled", disk.before_chunk)
        patch.setattr(sqlite3, "connect", disk.connect)
        # Both take longer than the rest of a small run: waking the tokenizer's threads, and looking up
        # where Python is installed, which loguru does for every sink.
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        patch.setattr(sysconfig, "get_path", _get_path)
        yield
