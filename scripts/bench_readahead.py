"""
Read-ahead against reading directly: files to windows, from a delayed and from an ordinary disk.

A delayed disk sleeps before the first read of each file, and then in proportion to the bytes that a
read returned. Both ways run one after the other, in turns, and each pair gives one ratio of wall
times. Where other programs use the machine, the ratio of CPU times shows what read-ahead costs.

Expected: with r seconds of reading and w seconds of work, max(r, w) with read-ahead where r + w is
needed without, plus the first block; several small files wait for the disk at the same time, so
that r counts a quarter. An ordinary local file takes as long as without, within 3 %, and as much
CPU time.
"""

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from measured import facts, save, table
from samples import Source, write

from virnuc_async.models.bundle import Bundle, find
from virnuc_async.sequences.inputs import OpenFile, open_file, read_contigs
from virnuc_async.sequences.readahead import BLOCK_BYTES, BLOCKS, FILES, ReadAhead
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.sequences.windows import Cut, form_windows

_MIB = 1 << 20
_SMALL_FILES = 32
_Row = dict[str, Any]


class DelayedFile(io.FileIO):
    """A file on a disk that is *delay* seconds away, and needs as long for each MiB."""

    def __init__(self, path: str, delay: float) -> None:
        super().__init__(path)
        self._delay, self._is_first = delay, True

    def readinto(self, buffer: Any) -> int:
        size = super().readinto(buffer) or 0
        time.sleep(self._delay * (self._is_first + size / _MIB))
        self._is_first = False
        return size


def open_delayed(delay: float, path: str) -> io.BufferedReader:
    """Open *path* as if it was on a delayed disk."""
    return io.BufferedReader(DelayedFile(path, delay)) if delay else open_file(path)


def main(arguments: list[str]) -> None:
    """Measure all cases, print a table, and write it if there is a path for it."""
    options = _parser().parse_args(arguments)
    record, bundle, source = facts(arguments), find("tiny-500"), Source.read(options.fasta)
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        rows = list(_cases(options, bundle, source, Path(directory)))
    print(table(rows))
    if options.output:
        record["versions"]["aiofiles"] = version("aiofiles")
        ahead = {"files": FILES, "blocks": BLOCKS, "block_bytes": BLOCK_BYTES}
        save(options.output, {**record, "expected": _expectation(), "read_ahead": ahead, "cases": rows})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--megabytes", type=float, default=100, help="of the ordinary local file")
    add("--delayed-megabytes", type=float, default=8, help="of a file, or of small files, on a delayed disk")
    add("--delays", type=_numbers, default=[0, 5, 50], help="in ms, a file and a MiB, as in 0,5,50")
    add("--pairs", type=int, default=3, help="of runs, one with read-ahead and one without")
    add("--fasta", type=Path, default=Path("docs/examples/metagenome.fa.gz"), help="what input is made of")
    add("--work", type=Path, help="where input is written (default: the temporary directory)")
    add("--output", type=Path, help="JSON file to write")
    return parser


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def _expectation() -> str:
    return " ".join((__doc__ or "").partition("Expected: ")[2].split())


def _cases(options: argparse.Namespace, bundle: Bundle, source: Source, work: Path) -> Iterator[_Row]:
    size = int(options.delayed_megabytes * 1e6)
    one = [_written(work / "one.fa", source, size)]
    small = [
        _written(work / f"small{number}.fa", source, size // _SMALL_FILES) for number in range(_SMALL_FILES)
    ]
    for delay in options.delays:
        yield _compare("one file", one, delay / 1000, options.pairs, bundle)
        yield _compare(f"{_SMALL_FILES} small files", small, delay / 1000, options.pairs, bundle)
    large = [_written(work / "large.fa", source, int(options.megabytes * 1e6))]
    yield _compare("ordinary local file", large, 0.0, options.pairs, bundle)


def _written(path: Path, source: Source, bases: int) -> str:
    write(path, source, "contigs", bases)
    return str(path)


def _compare(name: str, paths: Sequence[str], delay: float, pairs: int, bundle: Bundle) -> _Row:
    """Return medians of both ways, and of the ratios of *pairs* pairs of runs."""
    seconds: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for number in range(pairs):
        # Whichever is first in a pair, the other one is first in the next.
        for is_ahead in (number % 2 == 0, number % 2 == 1):
            seconds[is_ahead].append(anyio.run(_front, paths, delay, is_ahead, bundle))
    ratios = [ahead[0] / direct[0] for ahead, direct in zip(seconds[True], seconds[False], strict=True)]
    (direct, direct_cpu), (ahead, ahead_cpu) = (
        (statistics.median(column) for column in zip(*seconds[way], strict=True)) for way in (False, True)
    )
    return {
        "input": name,
        "MB": round(sum(Path(path).stat().st_size for path in paths) / 1e6, 1),
        "delay, ms": delay * 1000,
        "direct, s": direct,
        "read-ahead, s": ahead,
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "CPU ratio": ahead_cpu / direct_cpu,
    }


async def _front(paths: Sequence[str], delay: float, is_ahead: bool, bundle: Bundle) -> tuple[float, float]:
    """Return wall and CPU seconds to form all windows, in worker threads as a run does."""
    opener: OpenFile = partial(open_delayed, delay)
    ahead = ReadAhead(paths, open_file=opener)
    read = partial(read_contigs, open_file=ahead.open if is_ahead else opener)
    windows = form_windows(paths, read, Cut(bundle.length), OrfTokenizer(bundle.tokenizer()))
    start, cpu = time.perf_counter(), time.process_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ahead.run)
        while await to_thread.run_sync(next, windows, None) is not None:
            pass
        tasks.cancel_scope.cancel()
    return time.perf_counter() - start, time.process_time() - cpu


if __name__ == "__main__":
    main(sys.argv[1:])
