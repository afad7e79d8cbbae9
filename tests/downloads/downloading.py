"""What the tests of downloads share: a file, how it is fetched, and what is left of it."""

import hashlib
import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from serving import Server

from virnuc_async.downloads.fetch import FetchOptions, RetryPolicy, fetch_all
from virnuc_async.downloads.source import Source
from virnuc_async.errors import VirnucError

CONTENT = random.Random(3).randbytes(3_000_000)
WHOLE_RANGE = "bytes=0-"  # requested of a file that may be large


def fetch_options(
    stall_timeout: float = 20, max_attempts: int = 3, backoff: float = 0.001, min_split_bytes: int = 1 << 26
) -> FetchOptions:
    """Return options that lose no time between attempts; the timeout suits a busy machine."""
    return FetchOptions(RetryPolicy(stall_timeout, max_attempts, backoff), min_split_bytes=min_split_bytes)


PATIENT = fetch_options()
QUICK = fetch_options(stall_timeout=0.3)


def source(server: Server, path: str = "/x.bin", **facts: object) -> Source:
    checks: dict[str, object] = {"sha256": hashlib.sha256(CONTENT).hexdigest(), **facts}
    return Source(server.url + path, Path(path).name, **checks)  # type: ignore[arg-type]


def fetch(directory: Path, *sources: Source, options: FetchOptions = PATIENT) -> None:
    fetch_all(sources, directory, lambda _: None, options)


def failure(directory: Path, *sources: Source, options: FetchOptions = PATIENT) -> VirnucError:
    with pytest.raises(VirnucError) as caught:
        fetch(directory, *sources, options=options)
    return caught.value


def missing(directory: Path) -> list[tuple[int, int]]:
    """Return the ranges of x.bin that are recorded as missing."""
    record = json.loads((directory / "x.bin.part.json").read_bytes())
    return [(start, end) for start, end in record["missing"]]


def edit_record(directory: Path, **facts: object) -> None:
    path = directory / "x.bin.part.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | facts))


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for the content of a file that may not exist yet; the time limit of the test ends it."""
    while True:
        with suppress(FileNotFoundError):
            if condition():
                return
        time.sleep(0.01)


def file_names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
