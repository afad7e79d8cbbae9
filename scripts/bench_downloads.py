"""
Downloads over one connection and over four, from a server on this machine; paired in each round.

Each response of the server comes after a delay of 40 ms. Three networks are measured: one without a
limit, one with a limit per connection (as of servers that throttle a single stream), and one with a limit
that all connections share (as of a home's line). Whether the servers of the published models limit each
connection is not measured: no request leaves this machine.

Without a limit, a download takes a quarter of a second and is bound by the processor. Its ratio is noisy:
where docs/benchmarks/downloads.json has 1.06 and 1.07, runs on a machine that was busy with other work had
0.87 to 1.18.
"""

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from measured import facts, save, table

from virnuc_async.downloads.fetch import FetchOptions, fetch_all
from virnuc_async.downloads.source import Source

MIB = 1 << 20
CONNECTIONS = (1, 4)
FILES = {"one file": (256,), "a set of files": (128, 32, 4, 4)}  # MiB
LIMITS = ("none", "per connection", "shared")
EXPECTED = """\
Expected before the measurement, as the time of four connections divided by that of one. A limit per
connection, one file: 0.25 to 0.30. A limit per connection, a set of files: 0.3 to 0.6, since its files
are fetched at the same time anyway and only the largest one is split. No limit, and a shared limit: 0.9
to 1.1."""
RULE = """\
Fixed before the measurement: several connections stay if one file under a limit per connection takes at
most half the time, and no case takes more than a tenth longer. Otherwise one connection stays, and what
the others needed is deleted."""
_CHUNK = 1 << 16
_Row = dict[str, Any]


class Throttle:
    """Let bytes pass at *rate* per second; several threads may share one."""

    def __init__(self, rate: float) -> None:
        self._rate, self._lock = rate, threading.Lock()
        self._next = time.monotonic()

    def wait(self, count: int) -> None:
        """Sleep until *count* more bytes may pass."""
        with self._lock:
            now = time.monotonic()
            # After a pause of the reader there is no burst of more than a tenth of a second.
            self._next = max(self._next, now - 0.1) + count / self._rate
            pause = self._next - now
        if pause > 0:
            time.sleep(pause)


class Handler(BaseHTTPRequestHandler):
    """Answer requests for ranges of a file of /SIZE bytes, after the delay of the server."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        time.sleep(self.server.delay)
        total = int(self.path.strip("/"))
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), int(last or total - 1) + 1
        self.send_response(206)
        self.send_header("ETag", '"content"')
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self.close_connection = True
        throttle = self.server.throttle()
        for at in range(start, end, _CHUNK):
            chunk = self.server.content(at, min(at + _CHUNK, end))
            if throttle:
                throttle.wait(len(chunk))
            self.wfile.write(chunk)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    """A server with a *delay* and, by *limit*, a *rate* of each connection or of all together."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, delay: float, limit: str, rate: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.delay, self._limit, self._rate = delay, limit, rate
        self._shared = Throttle(rate)

    @cached_property
    def _block(self) -> memoryview:
        return memoryview(2 * np.random.default_rng(1).bytes(MIB))

    def content(self, start: int, end: int) -> memoryview:
        """Return the bytes from *start* to before *end* of every file: a block of 1 MiB, repeated."""
        return self._block[start % MIB : start % MIB + end - start]

    def throttle(self) -> Throttle | None:
        """Return what limits a connection."""
        if self._limit == "per connection":
            return Throttle(self._rate)
        return self._shared if self._limit == "shared" else None

    def handle_error(self, *_: object) -> None:
        """Ignore clients that close a connection whose range another one has taken over."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same in all cases; rates are bytes per second."""

    delay: float
    rates: Mapping[str, float]
    repeats: Mapping[str, int]


@contextmanager
def serving(limit: str, setting: Setting) -> Iterator[str]:
    """Start a server as a process of its own; yield its address."""
    words = ["--serve", limit, str(setting.delay), str(setting.rates.get(limit, 1.0))]
    command = [sys.executable, __file__, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def serve(limit: str, delay: float, rate: float) -> None:
    """Serve until this process is ended."""
    server = Server(delay, limit, rate)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


def seconds(url: str, sizes: Sequence[int], connections: int) -> float:
    """Return how long a download takes, without the checksums of the files."""
    sources = [Source(f"{url}/{size * MIB}", f"{number}.bin") for number, size in enumerate(sizes)]
    with TemporaryDirectory() as directory:
        began = time.perf_counter()
        fetch_all(sources, Path(directory), lambda _: None, FetchOptions(max_connections=connections))
        took = time.perf_counter() - began
        for source, size in zip(sources, sizes, strict=True):
            check(Path(directory, source.name), size)
    return took


def check(path: Path, size: int) -> None:
    """Check that the file at *path* has *size* MiB, each with the content that the server has."""
    content = np.fromfile(path, np.uint8).reshape(size, MIB)
    assert (content == content[0]).all()


def measure(files: str, limit: str, setting: Setting) -> _Row:
    """Measure one case: in each round, the same download over one connection and over four."""
    times: dict[int, list[float]] = {count: [] for count in CONNECTIONS}
    with serving(limit, setting) as url:
        for round in range(setting.repeats[limit]):
            # In turns, so that neither is always the one on a warm disk cache.
            for count in CONNECTIONS if round % 2 == 0 else reversed(CONNECTIONS):
                times[count].append(seconds(url, FILES[files], count))
    one, four = (times[count] for count in CONNECTIONS)
    ratios = [b / a for a, b in zip(one, four, strict=True)]
    rate = f"{setting.rates[limit] / 1e6:g}" if limit in setting.rates else ""
    return {
        "files": files,
        "MiB": " + ".join(map(str, FILES[files])),
        "limit": limit,
        "rounds": setting.repeats[limit],
        "MB/s of the limit": rate,
        "one connection, s": statistics.median(one),
        "four connections, s": statistics.median(four),
        "four over one": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }


def decision(rows: Sequence[_Row]) -> str:
    """Apply the rule of this module to *rows*."""
    gains = [row["four over one"] for row in rows if (row["files"], row["limit"]) == ("one file", LIMITS[1])]
    losses = [row["four over one"] for row in rows]
    keep = max(gains) <= 0.5 and max(losses) <= 1.1
    return "several connections stay" if keep else "one connection stays"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--delay", type=float, default=0.04, help="seconds before each response")
    parser.add_argument("--rate", type=float, default=6e6, help="bytes per second of a limited connection")
    parser.add_argument("--shared-rate", type=float, default=50e6, help="bytes per second of a shared limit")
    parser.add_argument("--repeats", type=int, default=5, help="rounds with a limit")
    parser.add_argument("--unlimited-repeats", type=int, default=40, help="rounds without a limit")
    parser.add_argument("--output", type=Path, help="a JSON file")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = _arguments()
    if options.serve:
        limit, delay, rate = options.serve
        serve(limit, float(delay), float(rate))
        return
    about = facts(sys.argv[1:])
    rates = {"per connection": options.rate, "shared": options.shared_rate}
    repeats = dict.fromkeys(rates, options.repeats) | {"none": options.unlimited_repeats}
    setting = Setting(options.delay, rates, repeats)
    rows = []
    for limit in LIMITS:
        for files in FILES:
            rows.append(measure(files, limit, setting))
            print(files, limit, f"{rows[-1]['four over one']:.3f}", flush=True)
    print(f"\n{table(rows)}\n\n{decision(rows)}")
    if options.output:
        plan = {"expected": EXPECTED.replace("\n", " "), "rule": RULE.replace("\n", " ")}
        save(options.output, {**about, **plan, "cases": rows, "decision": decision(rows)})


if __name__ == "__main__":
    main()
