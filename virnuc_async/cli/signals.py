"""SIGINT and SIGTERM: a run ends after the current batches, and the same command resumes it."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals, getsignal, signal
from typing import TYPE_CHECKING, NoReturn

from virnuc_async.errors import first_error
from virnuc_async.settings import Settings

from .environment import command_line
from .streams import standard_input

if TYPE_CHECKING:
    from anyio import CancelScope

    from virnuc_async.outputs.summary import Summary

INTERRUPTED = "Interrupted. The same command resumes this run."


class Interrupted(Exception):
    """The command was stopped by *signal*."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise Interrupted where SIGTERM arrives outside a run, as Ctrl-C raises KeyboardInterrupt."""

    def interrupt(number: int, _: object) -> NoReturn:
        raise Interrupted(number)

    before = signal(SIGTERM, interrupt)
    try:
        yield
    finally:
        signal(SIGTERM, before)


def run_interruptibly(inputs: Sequence[str], out_dir: str | Path, settings: Settings) -> "Summary":
    """
    Run the pipeline until it is done or a signal arrives.

    Raises:
        Interrupted: by SIGINT or SIGTERM; what is finished is kept
    """
    import anyio

    before = getsignal(SIGTERM)
    try:
        return anyio.run(_run_until_signalled, inputs, out_dir, settings)
    finally:
        signal(SIGTERM, before)  # asyncio leaves the default handler


async def _run_until_signalled(inputs: Sequence[str], out_dir: str | Path, settings: Settings) -> "Summary":
    import anyio

    from virnuc_async.log import why_cancelled
    from virnuc_async.pipeline import run_pipeline

    received: list[Signals] = []
    summary: Summary | None = None
    error: BaseException | None = None
    why_cancelled.set(lambda: _interruption(received))
    try:
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as run_scope:
                tasks.start_soon(_watch_signals, received, run_scope)
                stdin, command = standard_input(), command_line()
                summary = await run_pipeline(inputs, out_dir, settings, stdin=stdin, command=command)
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error = first_error(group)
    if error is not None:
        try:
            raise error
        finally:
            del error  # a cycle of the error and this frame would keep files open
    if summary is None:
        raise Interrupted(received[0])
    return summary


async def _watch_signals(received: list[Signals], run_scope: "CancelScope") -> None:
    """Cancel *run_scope* at the first signal, and end the process at the second one."""
    import anyio

    from virnuc_async.log import EVERY_RUN, logger

    with anyio.open_signal_receiver(SIGINT, SIGTERM) as signals:
        async for number in signals:
            received.append(number)
            if len(received) > 1:
                # The store is consistent at any instant.
                logger.bind(run=EVERY_RUN, is_end=True).warning("{}", _interruption(received))
                print(INTERRUPTED, file=sys.stderr, flush=True)
                os._exit(128 + number)
            print("Stopping after the current batches ...", file=sys.stderr)
            run_scope.cancel()


def _interruption(received: Sequence[Signals]) -> str:
    return f"interrupted by {' and '.join(number.name for number in received)}"
