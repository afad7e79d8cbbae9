"""SIGINT and SIGTERM: a run ends after the current batches, and the same command resumes it."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT, SIGTERM, getsignal, signal
from typing import TYPE_CHECKING, NoReturn

from virnuc_async.errors import VirnucError
from virnuc_async.settings import Settings

from .environment import command_line

if TYPE_CHECKING:
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

    from virnuc_async.pipeline import run_pipeline

    received: list[int] = []
    summary: Summary | None = None

    async def watch_signals() -> None:
        with anyio.open_signal_receiver(SIGINT, SIGTERM) as signals:
            async for number in signals:
                if received:
                    # The second signal: the store is consistent at any instant.
                    print(INTERRUPTED, file=sys.stderr, flush=True)
                    os._exit(128 + number)
                received.append(number)
                print("Stopping after the current batches ...", file=sys.stderr)
                run_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch_signals)
            with anyio.CancelScope() as run_scope:
                summary = await run_pipeline(
                    inputs, out_dir, settings, stdin=sys.stdin.buffer, command=command_line()
                )
            tasks.cancel_scope.cancel()
    except* VirnucError as group:
        raise group.exceptions[0] from None
    if summary is None:
        raise Interrupted(received[0])
    return summary
