"""What callers score: pairs of id and sequence, records of Biopython and dnaio, and files."""

import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeGuard, runtime_checkable

from anyio import from_thread

from virnuc_async.errors import BadRecord, UsageError
from virnuc_async.sequences.fastx import DEFAULT_LIMITS, Contig, first_word, read_bases
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.settings import user_path


@runtime_checkable
class BiopythonRecord(Protocol):
    """A record of Biopython, or one that looks like it."""

    @property
    def id(self) -> Any:
        """The header up to the first white space."""

    @property
    def seq(self) -> Any:
        """The bases; ``str`` of them is text."""


@runtime_checkable
class DnaioRecord(Protocol):
    """A record of dnaio, or one that looks like it."""

    @property
    def name(self) -> Any:
        """The header."""

    @property
    def sequence(self) -> Any:
        """The bases."""


Pair = tuple[str | bytes, str | bytes]
Place = str | os.PathLike[str]
Item = Pair | BiopythonRecord | DnaioRecord | Place
Records = Place | Iterable[Item] | AsyncIterable[Item]

# In the place of a path, for records that are in memory.
IN_MEMORY = "(records in memory)"
_END = object()


def check_records(records: object) -> None:
    """
    Check what can be checked before anything is read.

    Raises:
        UsageError: *records* are neither a path nor records
    """
    if isinstance(records, str | os.PathLike):
        return
    if isinstance(records, list):
        return  # the protocols below take their time
    is_single = isinstance(records, bytes | BiopythonRecord | DnaioRecord) or _is_pair(records)
    if is_single or not isinstance(records, Iterable | AsyncIterable):
        raise UsageError(
            "records must be a path, or an iterable of (id, sequence) pairs, records or paths, "
            f"not {records!r}. Put a single record into a list"
        )


def contigs_of(records: Records) -> Iterator[tuple[str, Iterator[Contig]]]:
    """
    Yield the contigs of *records* in order, file by file; consecutive records in memory are one "file".

    An asynchronous source is asked in the event loop: iterate in a worker thread of anyio.

    Raises, from the iterators:
        UsageError: something is no record
        BadRecord: a record in memory is not DNA, or too long
        what :func:`virnuc_async.sequences.inputs.read_contigs` raises
    """
    items = _Peekable(_items(records))
    while items.has_next():
        item = items.peek()
        if isinstance(item, str | os.PathLike):
            path = user_path(items.next(), "an input")
            yield path, read_contigs(path)
        else:
            yield IN_MEMORY, _in_memory(items)


def few_contigs(records: Records, most_bases: int) -> list[Contig] | None:
    """
    Return the contigs of *records* if these are in memory, with at most *most_bases*; else None.

    Raises:
        UsageError: something is no record
        BadRecord: a record is not DNA, or too long
    """
    if not isinstance(records, Sequence) or isinstance(records, str) or len(records) > most_bases:
        return None
    contigs, bases = list[Contig](), 0
    for number, item in enumerate(records, 1):
        if isinstance(item, str | os.PathLike):
            return None
        name, sequence = _parts(item, number)
        bases += len(sequence)
        if bases > most_bases:
            return None  # before it is read: that takes its time, and is done elsewhere
        contigs.append(_contig((name, sequence), number))
    return contigs


def _items(records: Records) -> Iterator[Any]:
    if isinstance(records, str | os.PathLike):
        return iter((records,))
    if isinstance(records, AsyncIterable):
        return _pulled(aiter(records))
    return iter(records)


def _pulled(items: AsyncIterator[Any]) -> Iterator[Any]:
    ask: Callable[[], Any] = partial(_next_or_end, items)
    while (item := from_thread.run(ask)) is not _END:
        yield item


async def _next_or_end(items: AsyncIterator[Any]) -> Any:
    return await anext(items, _END)


class _Peekable:
    """An iterator whose next item can be looked at; counts what was taken."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self._ahead: list[Any] = []
        self.taken = 0

    def has_next(self) -> bool:
        if not self._ahead:
            item = next(self._items, _END)
            if item is _END:
                return False
            self._ahead.append(item)
        return True

    def peek(self) -> Any:
        return self._ahead[0]

    def next(self) -> Any:
        self.taken += 1
        return self._ahead.pop()


def _in_memory(items: _Peekable) -> Iterator[Contig]:
    """Yield consecutive records, up to the next path."""
    while items.has_next() and not isinstance(items.peek(), str | os.PathLike):
        yield _contig(items.next(), items.taken)


def _contig(item: Any, number: int) -> Contig:
    name, sequence = _parts(item, number)
    id, letters = first_word(_encoded(name)), _encoded(sequence)
    try:
        bases = read_bases(letters)
        _check_size("id", len(id), DEFAULT_LIMITS.id)
        _check_size("sequence", len(bases), DEFAULT_LIMITS.record)
    except ValueError as error:
        raise BadRecord(number, id, str(error)) from None
    return Contig(id, bases)


def _check_size(what: str, letters: int, most: int) -> None:
    if letters > most:
        raise ValueError(f"its {what} has {letters:,} letters; at most {most:,} are read")


def _parts(item: Any, number: int) -> Pair:
    if _is_pair(item):
        return item
    if isinstance(item, BiopythonRecord):
        return str(item.id), item.seq if isinstance(item.seq, str | bytes) else str(item.seq)
    if isinstance(item, DnaioRecord):
        return item.name, item.sequence
    raise UsageError(
        f"record {number:,} must be an (id, sequence) pair, a record of Biopython or dnaio, or a path, "
        f"not {item!r}"
    )


def _is_pair(item: object) -> TypeGuard[Pair]:
    return isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str | bytes) for part in item)


def _encoded(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
