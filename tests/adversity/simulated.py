"""An event loop, threads and a disk that a seed decides about: time, order, and when the disk fails."""

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

_TICK = 0.001  # virtual seconds that a step takes
_MOST_STEPS = 20_000  # the longest run that ends has some 3,000
_RETHINK = 0.05  # share of the steps after which a stubborn loop has other favourites
_WRITES = ("INSERT", "UPDATE", "CREATE", "DROP", "COMMIT")

_ABANDONED = "what nobody waits for"  # stands for its executor

_connect = sqlite3.connect
_get_path = cache(sysconfig.get_path)


class Stuck(AssertionError):
    """A run did not end; says where each of its tasks waits."""


class Task(asyncio.Task):
    """A task with a number: one that does not change from run to run, as its address does."""

    number = 0


class Loop(asyncio.AbstractEventLoop):
    """
    Runs what is ready in an order that *rng* decides, by one of ORDERS, in virtual time.

    Work for threads is done in between, at an instant of its own, *slowness* seconds later at most.
    """

    ORDERS = ("as asyncio", "any", "stubborn")

    def __init__(self, rng: random.Random, order: str, slowness: float) -> None:
        self.trace: list[str] = []
        self.tasks: list[Task] = []
        self.complaints: list[str] = []
        self.begun = 0  # works of threads
        self.at_work: Counter[str] = Counter()  # what threads do now
        self.left_at_work: list[str] = []  # when the run had ended
        self.after_step: Callable[[], None] = lambda: None
        self._rng, self._order, self._slowness = rng, order, slowness
        self._now = 0.0
        self._ready: list[tuple[int, asyncio.Handle]] = []  # with the number of the task that it is for
        self._arrived: list[tuple[int, asyncio.Handle]] = []  # in this step
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._favour: dict[int, float] = {}
        self._numbers = count(1)

    @property
    def steps(self) -> int:
        return len(self.trace)

    def run(self, main: Coroutine[Any, Any, Any], name: str) -> Task:
        """Run until *main* and all that it left behind has ended."""
        asyncio._set_running_loop(self)
        try:
            task = self.create_task(main, name=name)
            while not task.done():
                self._step()
            self.left_at_work = sorted((+self.at_work).keys() - {_ABANDONED})
            while self._arrived or self._ready or self._timers:
                self._step()
        finally:
            asyncio._set_running_loop(None)
        return task

    def waiting(self) -> Iterator[str]:
        """Say of each task that has not ended where it is."""
        for task in self.tasks:
            if not task.done():
                yield f"{task.get_name()}: {' > '.join(_places(task))}"

    def _step(self) -> None:
        self._arrive()
        if self._ready:
            number, handle = self._chosen()
            if not handle.cancelled():
                self.trace.append(self.tasks[number - 1].get_name() if number else "-")
                handle._run()
                self.after_step()
        if self.steps >= _MOST_STEPS:
            raise Stuck("\n".join(["these wait for ever:", *self.waiting()]))

    def _arrive(self) -> None:
        """Let time pass, and make ready what is due."""
        # Sets of tasks and scopes are in the order of addresses, which is another one each time:
        # what came in one step is put in an order of its own.
        self._ready += sorted(self._arrived, key=lambda one: one[0])
        self._arrived.clear()
        self._now += _TICK
        if not self._ready and self._timers:
            self._now = max(self._now, self._timers[0][0])
        while self._timers and self._timers[0][0] <= self._now:
            handle = heapq.heappop(self._timers)[2]
            self._ready.append((_number(handle), handle))

    def _chosen(self) -> tuple[int, asyncio.Handle]:
        at = 0
        if self._order == "any":
            at = self._rng.randrange(len(self._ready))
        elif self._order == "stubborn":
            if self._rng.random() < _RETHINK:
                self._favour.clear()
            at = max(range(len(self._ready)), key=lambda at: self._favour_of(self._ready[at][0]))
        number = self._ready[at][0]
        # What is for one task stays in order.
        if number:
            at = next(at for at, one in enumerate(self._ready) if one[0] == number)
        return self._ready.pop(at)

    def _favour_of(self, number: int) -> float:
        if number not in self._favour:
            self._favour[number] = self._rng.random()
        return self._favour[number]

    def time(self) -> float:
        return self._now

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._arrived.append((_number(handle), handle))
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
        # Numbered before its first step is called for.
        task = Task.__new__(Task)
        self.tasks.append(task)
        task.number = len(self.tasks)
        task.__init__(coro, loop=self, **options)  # type: ignore[misc]
        return task

    def get_task_factory(self) -> None:
        return None

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Have *func* called at some instant; one that has begun goes on though nobody waits any more."""
        future = self.create_future()
        work = partial(func, *args)
        name = _ABANDONED if executor is _ABANDONED else _name(work)

        def begin() -> None:
            if not future.cancelled():
                self.begun += 1
                self.at_work[name] += 1
                self.call_later(self._delay(), do)

        def do() -> None:
            self.at_work[name] -= 1
            result, error = self._done(work)
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.call_soon(begin)
        return future

    def _delay(self) -> float:
        return self._rng.random() * self._slowness

    def _done(self, work: "partial[Any]") -> tuple[Any, BaseException | None]:
        try:
            return work(), None
        except BaseException as error:  # noqa: BLE001 (as a thread does)
            return None, error

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.complaints.append(repr(context))

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._timers = [timer for timer in self._timers if timer[2] is not handle]
        heapq.heapify(self._timers)


def _number(handle: asyncio.Handle) -> int:
    """Give the number of the task that is to run, or that has ended; 0 where it is about no task."""
    callback, args = handle._callback, handle._args  # type: ignore[attr-defined]
    for one in (getattr(callback, "__self__", None), *(args or ())):
        if isinstance(one, Task):
            return one.number
    return 0


def _name(work: Any) -> str:
    """Give the name of the function within *work*."""
    while isinstance(work, partial):
        work = work.func
    return str(getattr(work, "__name__", work))


def _places(task: Task) -> Iterator[str]:
    """Give the functions that *task* is in, the innermost last."""
    awaited = task.get_coro()
    while (frame := getattr(awaited, "cr_frame", None)) is not None:
        yield f"{frame.f_code.co_name}:{frame.f_lineno}"
        awaited = awaited.cr_await  # type: ignore[union-attr]


class Threads:
    """Stands where ``anyio.to_thread`` does, without a thread."""

    @staticmethod
    async def run_sync(
        work: Callable[..., Any],
        *args: Any,
        abandon_on_cancel: bool = False,
        limiter: AbstractAsyncContextManager[Any] | None = None,
    ) -> Any:
        executor = _ABANDONED if abandon_on_cancel else None
        await anyio.lowlevel.checkpoint()
        async with limiter or nullcontext():
            with CancelScope(shield=not abandon_on_cancel):
                return await asyncio.get_running_loop().run_in_executor(executor, work, *args)


class _Connection(sqlite3.Connection):
    """A connection that asks its disk before each statement."""

    disk: "Disk | None" = None

    def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
        if self.disk is not None:
            self.disk.before_statement(query)
        return super().execute(query, *values)


@dataclass
class Disk:
    """Counts what is done to it, by kind; *strike* is called before the one that *countdown* says."""

    watched: str = ""  # statement: of the store; write: a statement that changes it; file: a block of a table
    countdown: int = 0
    lasts: bool = False  # whether all that follow are struck too
    strike: Callable[[], None] = lambda: None
    seen: Counter[str] = field(default_factory=Counter)

    @property
    def has_struck(self) -> bool:
        return bool(self.watched) and self.seen[self.watched] >= self.countdown

    def connect(self, *args: Any, **options: Any) -> sqlite3.Connection:
        connection = _connect(*args, factory=_Connection, **options)
        # Changed pages go to the file at once, so that a crash finds it half changed, beside a
        # journal that undoes that.
        connection.execute("PRAGMA cache_size=1")
        connection.disk = self
        return connection

    def before_statement(self, query: str) -> None:
        self._count("statement")
        if query.startswith(_WRITES):
            self._count("write")

    def before_part(self) -> None:
        self._count("file")

    def _count(self, kind: str) -> None:
        self.seen[kind] += 1
        over = self.seen[kind] - self.countdown
        if kind == self.watched and (over == 0 or over > 0 and self.lasts):
            self.strike()


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_in_store() -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL  # type: ignore[misc]
    raise error


@contextmanager
def no_threads(disk: Disk) -> Iterator[None]:
    """Have the pipeline work without a thread, on *disk*."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anyio.to_thread, "run_sync", Threads.run_sync)
        patch.setattr(anyio.from_thread, "check_cancelled", disk.before_part)
        patch.setattr(sqlite3, "connect", disk.connect)
        # Both take longer than all else of a small run: the tokenizer to wake its threads, and
        # loguru to ask with every sink where Python is installed.
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        patch.setattr(sysconfig, "get_path", _get_path)
        yield
