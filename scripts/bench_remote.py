"""
Reading a URL: by one request after the other, and as inputs are read, from a server on this machine.

Each answer of the server comes after a delay, and a connection sends no more than a limit if there is one, as
those of object stores do. The client reads all of a file of random bytes and does nothing with it; the server
is a process of its own, which shares the cores with the client. Both ways run in turns.

Expected: one after the other, a request of 4 MiB costs the delay and its transfer, so that 50 ms of delay
allow at most 84 MB/s, and 60 MB/s a connection about 35; with eight requests in flight, both are eight times
as fast as far as the cores allow. Without a delay both are bound by the cores.
"""

import argparse
import io
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import obstore
from measured import facts, installed, save, table
from range_server import RangeServer, serving

from virnuc_async.sequences.files import open_file
from virnuc_async.sequences.object_stores import locate, open_store
from virnuc_async.sequences.remote import BLOCK_BYTES, BLOCKS

MIB = 1 << 20
_Row = dict[str, Any]


def serve(size: int, delay: float, rate: float) -> None:
    """Serve random bytes until standard input ends; print the URL."""
    with serving(RangeServer(np.random.default_rng(1).bytes(size), delay, rate)) as url:
        print(url, flush=True)
        sys.stdin.read()


@contextmanager
def served_elsewhere(size: int, delay: float, rate: float) -> Iterator[str]:
    """Run a server in a process of its own; yield the URL of its file."""
    command = [sys.executable, __file__, "--serve", str(size), str(delay), str(rate)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"{process.stdout.readline().strip()}/file"
    finally:
        process.communicate()


def one_after_the_other(url: str) -> int:
    """Read *url* by requests of the size that inputs are read by; return its bytes."""
    where, count = locate(url), 0
    reader = obstore.open_reader(open_store(where.root), where.key, buffer_size=BLOCK_BYTES)
    while block := reader.read(BLOCK_BYTES):
        count += len(block)
    return count


def in_flight(url: str) -> int:
    """Read *url* as inputs are read; return its bytes."""
    count, buffer = 0, bytearray(MIB)
    with open_file(url) as file:
        assert isinstance(file, io.BufferedReader)
        while size := file.readinto1(buffer):
            count += size
    return count


def main(arguments: list[str]) -> None:
    """Measure all cases, print a table, and write it if there is a path for it."""
    if arguments[:1] == ["--serve"]:
        serve(int(arguments[1]), float(arguments[2]), float(arguments[3]))
        return
    options = _parser().parse_args(arguments)
    record = facts(arguments)
    rows = [
        _compare(options.mib * MIB, delay / 1000, rate * 1e6, options.pairs)
        for delay, rate in ((0, 0), (5, 0), (50, 0), (50, 60))
    ]
    print(table(rows))
    if options.output:
        record["versions"]["obstore"] = installed("obstore")
        ways = {"block_bytes": BLOCK_BYTES, "blocks_in_flight": BLOCKS}
        save(options.output, {**record, "expected": _expectation(), "reader": ways, "cases": rows})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=512, help="of the file")
    parser.add_argument("--pairs", type=int, default=3, help="of runs, one of each way")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


def _expectation() -> str:
    return " ".join((__doc__ or "").partition("Expected: ")[2].split())


def _compare(size: int, delay: float, rate: float, pairs: int) -> _Row:
    ways = (one_after_the_other, in_flight)
    speeds: dict[Callable[[str], int], list[float]] = {way: [] for way in ways}
    with served_elsewhere(size, delay, rate) as url:
        for number in range(pairs):
            for way in ways if number % 2 else ways[::-1]:
                begun = time.perf_counter()
                assert way(url) == size
                speeds[way].append(size / (time.perf_counter() - begun) / 1e6)
    one, several = (statistics.median(speeds[way]) for way in ways)
    return {
        "delay, ms": delay * 1000,
        "limit a connection, MB/s": rate / 1e6 if rate else "none",
        "one after the other, MB/s": one,
        "in flight, MB/s": several,
        "lowest": min(speeds[in_flight]),
        "highest": max(speeds[in_flight]),
        "ratio": several / one,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
