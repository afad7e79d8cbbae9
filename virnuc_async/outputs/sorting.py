"""External sort: lines that do not fit into memory are sorted in runs on disk, and the runs are merged."""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from itertools import pairwise
from typing import IO

from virnuc_async.fileio import Directory
from virnuc_async.runs.scratch import temporary_files

RUN_BYTES = 64 << 20  # of lines that are sorted in memory
_FAN_IN = 32  # runs that are merged at once
PIECES = 256  # of a run on disk; one at a time is in memory while runs are merged

Key = Callable[[str], str]


def before_last_tab(line: str) -> str:
    """Return what is before the last tab of *line*."""
    return line.rpartition("\t")[0]


def sort_lines(
    blocks: Iterable[list[str]],
    directory: Directory,
    run_bytes: int = RUN_BYTES,
    pieces: int = PIECES,
    key: Key = before_last_tab,
) -> Generator[list[str], None, None]:
    """
    Yield the lines of all *blocks*, sorted by their *key*, in lists of many.

    Lines with equal keys stay in their order. What does not fit into memory goes to a temporary
    file in *directory*.

    Raises:
        CannotWrite: the temporary file cannot be written
    """
    with temporary_files(directory), directory.temporary_file() as file:
        yield from merge_sorted(_sorted_runs(blocks, file, run_bytes, pieces, key), key)


def _sorted_runs(
    blocks: Iterable[list[str]], file: IO[bytes], run_bytes: int, pieces: int, key: Key
) -> Iterator[Iterator[list[str]]]:
    """Yield sorted runs of as many lines as fit into memory; all but the last one are in *file*."""
    lines: list[str] = []
    size = 0
    for block in blocks:
        lines += block
        size += sum(map(str.__sizeof__, block))
        if size >= run_bytes:
            yield _spill(_split_run(sorted(lines, key=key), pieces), file)
            lines, size = [], 0
    if lines:
        yield _split_run(sorted(lines, key=key), pieces)


def _split_run(lines: list[str], pieces: int) -> Iterator[list[str]]:
    step = len(lines) // pieces + 1
    return (lines[first : first + step] for first in range(0, len(lines), step))


def _spill(pieces: Iterator[list[str]], file: IO[bytes]) -> Iterator[list[str]]:
    """Write all *pieces* to *file* now; return an iterator that reads them back one at a time."""
    ends = [file.tell()]
    for piece in pieces:
        file.write("\n".join(piece).encode("latin-1"))
        ends.append(file.tell())
    file.flush()
    read = partial(os.pread, file.fileno())
    return (read(end - start, start).decode("latin-1").split("\n") for start, end in pairwise(ends))


def merge_sorted(all_runs: Iterable[Iterator[list[str]]], key: Key = before_last_tab) -> Iterator[list[str]]:
    """
    Yield the lines of *all_runs*, each sorted by its *key*, merged.

    Lines with equal keys come in the order of their runs. Each of these yields lists of many lines.
    """
    runs = list(all_runs)
    # Each list of one run that is read costs a look at all other runs: of many, some are merged first.
    while len(runs) > _FAN_IN:
        runs = [_merge(runs[first : first + _FAN_IN], key) for first in range(0, len(runs), _FAN_IN)]
    return _merge(runs, key)


def _merge(all_runs: Iterable[Iterator[list[str]]], key: Key) -> Iterator[list[str]]:
    runs, heads = list[Iterator[list[str]]](), list[list[str]]()
    for run in all_runs:
        if head := next(run, []):
            runs.append(run)
            heads.append(head)
    ends = [key(head[-1]) for head in heads]
    while heads:
        bound, slowest = min((end, number) for number, end in enumerate(ends))
        # The lines that the slowest run has not read yet come after all that are taken here. They
        # may have the key *bound*: lines of later runs with that key wait for them.
        ready = []
        for number, head in enumerate(heads):
            end = (bisect_right if number <= slowest else bisect_left)(head, bound, key=key)
            ready += head[:end]
            del head[:end]
        yield ready if len(heads) == 1 else sorted(ready, key=key)
        heads[slowest] = next(runs[slowest], [])
        if heads[slowest]:
            ends[slowest] = key(heads[slowest][-1])
        else:
            del heads[slowest], runs[slowest], ends[slowest]
