"""The inputs of a run, formed into windows ahead of the devices."""

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from virnuc_async.errors import NoRecords, PlanMismatch
from virnuc_async.sequences.alignments import Notes
from virnuc_async.sequences.inputs import InputVersion, Reader, unchanged
from virnuc_async.sequences.reading import Reading
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.sequences.windows import Cut, Window, form_windows
from virnuc_async.text import plural

from .plan import Plan, PlannedPart


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
        if self._plan.part is not None:
            self.versions.update(_planned_versions(self._plan.paths, self._plan.part))
            return
        for path in self._plan.paths:
            self.versions[path] = InputVersion.of(path)

    def sizes(self) -> Iterator[tuple[str, int | None]]:
        """Yield path and size of every input: None of a stream, 0 of what cannot be, or is not, read."""
        if self._plan.part is not None:
            yield from zip(self._plan.paths, _planned_sizes(self._plan.part), strict=True)
            return
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

    async def first(self) -> Window | None:
        """
        Return the first window; it is read once. None if nothing is to be read.

        Raises:
            NoRecords: no input holds a record, and some cannot be read
        """
        if self._first is None and not self._plan.span.is_empty:
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
            window = await self.first()
            self._first = None
            # Nobody receives any more when scoring has failed or was cancelled; the reason is raised there.
            with suppress(anyio.BrokenResourceError):
                while window is not None:
                    await send.send(window)
                    window = await self._next()

    async def _next(self) -> Window | None:
        # Forming a window parses, translates and tokenizes: too long to hold the event loop for.
        # Abandoned when cancelled: standard input may stay silent for ever.
        window = await to_thread.run_sync(next, self._windows, None, abandon_on_cancel=True)
        if window is not None and self._plan.part is not None:
            _require_planned_ends(window, self._plan.part)
        return window


def _planned_versions(paths: Sequence[str], part: PlannedPart) -> Iterator[tuple[str, InputVersion]]:
    """Yield what the inputs are, as they were planned; raise PlanMismatch if one to be read is another."""
    for number, (path, planned) in enumerate(zip(paths, part.inputs, strict=True)):
        is_read = part.span.records_of(number, planned.contigs) or planned.failure is not None
        version = InputVersion.of(path) if is_read else InputVersion(planned.fingerprint)
        if version.fingerprint != planned.fingerprint:
            hint = "its content is another one than was planned: put it back, or plan the run again"
            raise PlanMismatch(part.run, [f"{path}: {hint}"])
        yield path, version


def _planned_sizes(part: PlannedPart) -> Iterator[int]:
    """Yield about how many bytes of each input are of concern."""
    for number, planned in enumerate(part.inputs):
        records = len(part.span.records_of(number, planned.contigs))
        yield round(planned.size * records / max(1, planned.contigs))


def _require_planned_ends(window: Window, part: PlannedPart) -> None:
    """Check that files end as they did when the run was planned; raise PlanMismatch if one does not."""
    for file in window.files:
        planned = part.inputs[file.number]
        reason = None if file.failure is None else str(file.failure.reason)
        if (file.contigs, reason) != (planned.contigs, planned.failure):
            now, before = (_end(*end) for end in ((file.contigs, reason), (planned.contigs, planned.failure)))
            hint = "If this was a disk or a network, run the same command again; else plan the run again"
            raise PlanMismatch(part.run, [f"{file.path}: {now}; as planned: {before}. {hint}"])


def _end(contigs: int, reason: str | None) -> str:
    return reason or f"{plural(contigs, 'record')} to its end"


def _windows(plan: Plan, read: Reader, reading: Reading) -> Generator[Window, None, None]:
    before = plan.bundle.signatures()
    plan.bundle.check("tokenizer.json")
    tokenizer = OrfTokenizer(plan.bundle.tokenizer())
    plan.bundle.require_unchanged(before)
    cut = Cut(plan.bundle.length, plan.window, plan.segment)
    yield from form_windows(plan.paths, read, cut, tokenizer, reading, plan.span)
