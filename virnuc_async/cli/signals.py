"""
Signals and a time limit: a run ends after the current batches, and the same command resumes it.

Slurm and other schedulers warn of the end of a job's time by SIGUSR1 or SIGUSR2: these are as SIGTERM.
"""

import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT, SIGTERM, SIGUSR1, SIGUSR2, getsignal, signal
from typing import TYPE_CHECKING, NoReturn, TypeVar

from virnuc_async.errors import first_error
from virnuc_async.settings import Settings

from .environment import command_line
from .streams import standard_input

if TYPE_CHECKING:
    from anyio import CancelScope
    from loguru import Message

    from virnuc_async.outputs.summary import Summary
    from virnuc_async.runs.progress import Counts

_Result = TypeVar("_Result")

_ENDING = (SIGTERM, SIGUSR1, SIGUSR2)
INTERRUPTED = "Interrupted. The same command resumes this run."


class Interrupted(Exception):
    """The command was stopped by *signal*, or as by it; *kept* says what is kept of a run."""

    def __init__(self, signal: int, kept: str = "") -> None:
        super().__init__(signal, kept)
        self.signal = signal
        self.kept = kept

    def text(self, message: str) -> str:
        """Return the *message* of its command, which begins with a sentence of a word, with what is kept."""
        word, end, rest = message.partition(".")
        return f"{word}: {self.kept}{end}{rest}" if self.kept else message


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise Interrupted where SIGTERM arrives outside a run, as Ctrl-C raises KeyboardInterrupt."""

    def interrupt(*_: object) -> NoReturn:
        raise Interrupted(SIGTERM)

    before = {number: signal(number, interrupt) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal(number, handler)


def run_interruptibly(
    inputs: Sequence[str], out_dir: str | Path, settings: Settings, max_seconds: float | None = None
) -> "Summary":
    """
    Run the pipeline until it is done, a signal arrives, or *max_seconds* have passed.

    Raises:
        Interrupted: by SIGINT or SIGTERM; what is finished is kept
    """

    async def run() -> "Summary":
        from virnuc_async.pipeline import run_pipeline

        stdin, command = standard_input(), command_line()
        return await run_pipeline(inputs, out_dir, settings, stdin=stdin, command=command)

    return run_until_stopped(run, max_seconds)


def run_until_stopped(
    work: Callable[[], Awaitable[_Result]],
    max_seconds: float | None = None,
    stopping: str = "Stopping after the current batches ...",
) -> _Result:
    """
    Return what *work* returns, which is cancelled if a signal arrives or *max_seconds* have passed.

    *stopping* is printed then.

    Raises:
        Interrupted: by SIGINT or SIGTERM; what is finished is kept
    """
    import anyio

    before = {number: getsignal(number) for number in _ENDING}
    try:
        return anyio.run(_run_until_stopped, work, max_seconds, stopping)
    finally:
        for number, handler in before.items():
            signal(number, handler)  # asyncio leaves the default handler


async def _run_until_stopped(
    work: Callable[[], Awaitable[_Result]], max_seconds: float | None, stopping: str
) -> _Result:
    import anyio

    from virnuc_async.log import logger, why_cancelled

    stop = _Stop(stopping)
    sink = logger.add(stop.see, filter=lambda record: "counts" in record["extra"], level=0, format="")
    results: list[_Result] = []
    error: BaseException | None = None
    why_cancelled.set(stop.__str__)
    try:
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as run_scope:
                stop.scope = run_scope
                tasks.start_soon(_watch_signals, stop)
                if max_seconds is not None:
                    tasks.start_soon(_watch_time, stop, max_seconds)
                results.append(await work())
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error = first_error(group)
    finally:
        logger.remove(sink)
    if error is not None:
        try:
            raise error
        finally:
            del error  # a cycle of the error and this frame would keep files open
    if not results:
        raise Interrupted(stop.code_of, stop.kept)
    return results[0]


class _Stop:
    """What has stopped the run, and how."""

    scope: "CancelScope"
    code_of = SIGTERM  # the signal that the exit code is that of

    def __init__(self, stopping: str) -> None:
        self._stopping = stopping
        self._reasons: list[str] = []
        self._counts: Counts | None = None

    def see(self, message: "Message") -> None:
        """Remember how far the run is, which reports its progress: these counts go on."""
        self._counts = message.record["extra"]["counts"]

    @property
    def kept(self) -> str:
        """What is kept of the run, if it has begun."""
        return "" if self._counts is None else self._counts.kept()

    def __str__(self) -> str:
        return f"interrupted by {' and '.join(self._reasons)}"

    def __call__(self, reason: str) -> bool:
        """Cancel the run, for *reason*; return whether it had been before."""
        self._reasons.append(reason)
        if len(self._reasons) > 1:
            return True
        print(self._stopping, file=sys.stderr)
        self.scope.cancel()
        return False


async def _watch_signals(stop: _Stop) -> None:
    """Stop the run at the first signal, and end the process at the second one."""
    import anyio

    from virnuc_async.log import EVERY_RUN, logger

    with anyio.open_signal_receiver(SIGINT, *_ENDING) as signals:
        async for number in signals:
            code_of = SIGINT if number == SIGINT else SIGTERM
            if stop(number.name):
                # The store is consistent at any instant.
                logger.bind(run=EVERY_RUN, is_end=True).warning("{}", stop)
                text = Interrupted(code_of, stop.kept).text(INTERRUPTED)
                print(text, file=sys.stderr, flush=True)
                os._exit(128 + code_of)
            stop.code_of = code_of


async def _watch_time(stop: _Stop, max_seconds: float) -> None:
    import anyio

    await anyio.sleep(max_seconds)
    stop(f"--max-seconds {max_seconds:g}")
