"""The inputs of a run, formed into windows ahead of the devices."""

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from virnuc_async.errors import NoRecords
from virnuc_async.sequences.alignments import Notes
from virnuc_async.sequences.inputs import InputVersion, Reader, unchanged
from virnuc_async.sequences.reading import Reading
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.sequences.windows import Cut, Window, form_windows

from .plan import Plan


@dataclass(frozen=True, slots=True)
class InputFiles:
    """How a run reads its files: at once, or with the blocks to come read ahead by the task *run*."""

    read: Reader
    read_ahead: Reader | None = None
    run: Callable[[], Coroutine[Any, Any, None]] | None = None
    notes: Notes = field(default_factory=Notes)  # of the reader that reads ahead
    reading: Reading = field(default_factory=Reading)  # of the same


class InputWindows:
    """The windows of the inputs of *plan*, which are read once, in order, by worker threads."""

    def __init__(self, plan: Plan, files: InputFiles, note: Callable[[str], object] = lambda _: None) -> None:
        files.notes.listener = note
        self._kinds = files.notes.kinds
        self.versions: dict[str, InputVersion] = {}  # what the inputs are, by their paths
        self.model_files: dict[str, tuple[int, ...] | None] = {}
        self._plan = plan
        read = unchanged(files.read_ahead or files.read, self.versions)
        self._windows = _windows(plan, read, files.reading)
        self._first: Window | None = None

    def identify(self) -> None:
        """Find out what the inputs and the model's files are, which must be the same when they are read."""
        self.model_files = self._plan.bundle.signatures()
        for path in self._plan.paths:
            self.versions[path] = InputVersion.of(path)

    def sizes(self) -> Iterator[tuple[str, int | None]]:
        """Yield path and size of every input: None of a stream, 0 of what cannot be read."""
        for path in self._plan.paths:
            version = self.versions[path]
            size = version.fingerprint[0] if version.fingerprint else 0
            yield path, size if isinstance(size, int) else None

    @property
    def have_streams(self) -> bool:
        """Whether an input is a stream, whose content is not known before it is read."""
        return any(version.is_stream for version in self.versions.values())

    def kinds(self) -> list[str | None]:
        """Return of which kind the records of each input are; None where there is no record."""
        return [self._kinds.get(path) for path in self._plan.paths]

    async def first(self) -> Window:
        """
        Return the first window; it is read once.

        Raises:
            NoRecords: no input holds a record, and some cannot be read
        """
        if self._first is None:
            first = await self._next()
            failures = [file.failure for file in first.files if file.failure] if first else []
            if first is None or (failures and not first.contigs):
                raise NoRecords(self._plan.paths, failures)
            self._first = first
        return self._first

    async def each(self, tasks: TaskGroup) -> AsyncGenerator[Window, None]:
        """Yield every window, while one of *tasks* forms the next one."""
        send, receive = anyio.create_memory_object_stream[Window](1)
        tasks.start_soon(self._send_all, send, name="read ahead")
        async with receive:
            async for window in receive:
                yield window

    def close(self) -> None:
        """Close the open input, unless a thread still waits for it."""
        with suppress(ValueError):
            self._windows.close()

    async def _send_all(self, send: MemoryObjectSendStream[Window]) -> None:
        async with send:
            window: Window | None = await self.first()
            self._first = None
            # Nobody receives any more when scoring has failed or was cancelled; the reason is raised there.
            with suppress(anyio.BrokenResourceError):
                while window is not None:
                    await send.send(window)
                    window = await self._next()

    async def _next(self) -> Window | None:
        # Forming a window parses, translates and tokenizes: too long to hold the event loop for.
        # Abandoned when cancelled: standard input may stay silent for ever.
        return await to_thread.run_sync(next, self._windows, None, abandon_on_cancel=True)


def _windows(plan: Plan, read: Reader, reading: Reading) -> Generator[Window, None, None]:
    before = plan.bundle.signatures()
    plan.bundle.check("tokenizer.json")
    tokenizer = OrfTokenizer(plan.bundle.tokenizer())
    plan.bundle.require_unchanged(before)
    cut = Cut(plan.bundle.length, plan.window, plan.segment)
    yield from form_windows(plan.paths, read, cut, tokenizer, reading, plan.span)
