"""Several connections for one file, from a real server on this machine, and what may interrupt them."""

import hashlib
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from downloading import CONTENT, fetch_options, missing
from hypothesis import given, settings
from hypothesis import strategies as st
from running import ROOT, wait_until
from serving import (
    Fault,
    Handler,
    Server,
    ends_after,
    instead,
    resets_after,
    serving,
    status,
    waits_until,
    whole,
)

from virnuc_async.downloads.fetch import FetchOptions, Transfer, fetch_all
from virnuc_async.downloads.source import Source
from virnuc_async.errors import ChecksumMismatch, DownloadInterrupted, DownloadRefused, VirnucError

SIZE = len(CONTENT)
CHANGED = random.Random(6).randbytes(SIZE)
SPLIT = {"min_split_bytes": 400_000}
SPLITTING = fetch_options(**SPLIT)

# The requested ranges if the first response waits for four requests: it is split, and then both halves.
QUARTERS = ["bytes=0-", "bytes=1500000-2999999", "bytes=750000-1499999", "bytes=2250000-2999999"]
BORDERS = [(0, 750_000), (750_000, 1_500_000), (1_500_000, 2_250_000), (2_250_000, 3_000_000)]


def fetch(
    server: Server,
    directory: Path,
    on_progress: Callable[[Sequence[Transfer]], object] = lambda _: None,
    options: FetchOptions = SPLITTING,
    content: bytes = CONTENT,
) -> None:
    source = Source(f"{server.url}/x.bin", "x.bin", sha256=hashlib.sha256(content).hexdigest())
    fetch_all([source], directory, on_progress, options)
    assert [path.name for path in directory.iterdir()] == ["x.bin"]
    assert (directory / "x.bin").read_bytes() == content


def failure(server: Server, directory: Path) -> VirnucError:
    with pytest.raises(VirnucError) as caught:
        fetch(server, directory)
    return caught.value


def has_requests(server: Server, count: int) -> Callable[[], bool]:
    """Return a condition: the server has received *count* more requests than now."""
    before = len(server.requests)
    return lambda: len(server.requests) >= before + count


def as_ranges(spans: Sequence[tuple[int, int]]) -> list[str]:
    return [f"bytes={start}-{end - 1}" for start, end in spans]


def interrupt(server: Server, directory: Path, count: int = 100_000) -> None:
    """Interrupt a download when each of four connections has received *count* bytes."""

    def on_progress(transfers: Sequence[Transfer]) -> None:
        if transfers[0].done == 4 * count:
            raise KeyboardInterrupt

    server.faults["/x.bin"] = [waits_until(has_requests(server, 4), count)] * 4
    with pytest.raises(KeyboardInterrupt):
        fetch(server, directory, on_progress)
    assert missing(directory) == [(start + count, end) for start, end in BORDERS]
    server.released.set()
    server.requests.clear()


# What goes well


def test_a_large_file_takes_four_connections(server: Server, tmp_path: Path) -> None:
    # The first request would wait for ever without the others.
    server.faults["/x.bin"] = [waits_until(has_requests(server, 4))] * 4
    fetch(server, tmp_path)
    assert server.ranges("/x.bin")[:4] == QUARTERS
    assert all(headers.get("if-range") == '"first"' for _, headers in server.requests[1:])


def test_progress_is_the_sum_of_the_connections(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []

    def on_progress(transfers: Sequence[Transfer]) -> None:
        seen.append((transfers[0].state, transfers[0].done, transfers[0].total))
        if seen[-1][1] == 2_000_000:
            server.released.set()  # these connections are closed, and others continue

    server.faults["/x.bin"] = [waits_until(has_requests(server, 4), 500_000)] * 4
    fetch(server, tmp_path, on_progress)
    assert ("receiving", 2_000_000, SIZE) in seen
    assert seen[-1] == ("done", SIZE, SIZE)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_a_free_connection_takes_half_of_the_longest_range(server: Server, tmp_path: Path) -> None:
    def has_fifth_request() -> bool:
        return len(server.requests) >= 5

    # The first connection waits; another one ends, and takes half of the first one's range.
    server.faults["/x.bin"] = [waits_until(has_fifth_request), *[waits_until(has_requests(server, 4))] * 3]
    fetch(server, tmp_path)
    assert server.ranges("/x.bin")[:5] == [*QUARTERS, "bytes=375000-749999"]


@pytest.mark.parametrize("size", [399_999, 400_000])
def test_a_small_file_takes_one_connection(size: int, server: Server, tmp_path: Path) -> None:
    server.files["/x.bin"] = CONTENT[:size]
    server.faults["/x.bin"] = [waits_until(has_requests(server, 2)), waits_until(has_requests(server, 2))]
    if size < 400_000:
        server.faults["/x.bin"].clear()
    fetch(server, tmp_path, content=CONTENT[:size])
    assert len(server.requests) == (2 if size >= 400_000 else 1)


# What is interrupted


def test_only_the_missing_ranges_are_fetched(server: Server, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    spans = missing(tmp_path)
    fetch(server, tmp_path, options=fetch_options())
    assert server.ranges("/x.bin") == as_ranges(spans)
    assert all(headers["if-range"] == '"first"' for _, headers in server.requests)
    assert sum(end - start for start, end in spans) == SIZE - 400_000


def test_a_range_is_resumed_after_its_connection_breaks(server: Server, tmp_path: Path) -> None:
    four = has_requests(server, 4)
    server.faults["/x.bin"] = [
        waits_until(has_requests(server, 5)),
        ends_after(200_000),
        waits_until(four),
        waits_until(four),
    ]
    fetch(server, tmp_path)
    assert any((text or "").startswith("bytes=1700000-") for text in server.ranges("/x.bin"))


def test_killed_in_the_middle(server: Server, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from virnuc_async.downloads.fetch import FetchOptions, fetch_all
from virnuc_async.downloads.source import Source
options = FetchOptions(min_split_bytes=400_000, sync_interval=0.05)
fetch_all([Source(sys.argv[1], "x.bin")], Path(sys.argv[2]), lambda _: None, options)
"""
    server.faults["/x.bin"] = [waits_until(has_requests(server, 4), 100_000)] * 4
    expected = [(start + 100_000, end) for start, end in BORDERS]
    command = [sys.executable, "-c", script, f"{server.url}/x.bin", str(tmp_path)]
    record = tmp_path / "x.bin.part.json"
    with subprocess.Popen(command, cwd=ROOT) as process:
        wait_until(lambda: record.exists() and missing(tmp_path) == expected, process)
        process.kill()
    server.requests.clear()
    fetch(server, tmp_path)
    assert server.ranges("/x.bin")[0] == "bytes=100000-749999"
    assert not any((text or "").startswith("bytes=0-") for text in server.ranges("/x.bin"))


def test_data_in_a_missing_range_is_overwritten(server: Server, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    with open(tmp_path / "x.bin.part", "r+b") as part:
        part.seek(400_000)
        part.write(b"\0" * 100_000)
    fetch(server, tmp_path)


def test_a_file_that_changed_starts_from_scratch(server: Server, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    server.etag, server.files["/x.bin"] = '"second"', CHANGED
    fetch(server, tmp_path, content=CHANGED)
    # The first request shows that the file changed, before there are others; it receives all of it.
    assert server.ranges("/x.bin") == ["bytes=100000-749999"]


def test_a_file_that_became_shorter_starts_from_scratch(server: Server, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    server.files["/x.bin"] = CONTENT[:50_000]  # with the same validator, against the rules
    fetch(server, tmp_path, content=CONTENT[:50_000])
    assert server.ranges("/x.bin") == ["bytes=100000-749999", None]


def test_a_server_that_no_longer_supports_ranges(server: Server, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    server.has_ranges = False
    fetch(server, tmp_path)
    assert len(server.requests) == 1


# Servers that allow one connection, or do not support ranges after all


def with_another_tag(handler: Handler, content: bytes) -> None:
    start, end = handler.requested_range(content)
    extent = f"bytes {start}-{end - 1}/{len(content)}"
    handler.respond(206, content[start:end], **{"ETag": '"another"', "Content-Range": extent})


def of_another_length(handler: Handler, content: bytes) -> None:
    start, end = handler.requested_range(content)
    handler.respond(206, content[start:end], **{"Content-Range": f"bytes {start}-{end - 1}/9999999"})


def of_another_place(handler: Handler, content: bytes) -> None:
    start, end = handler.requested_range(content)
    handler.respond(206, content[:-start], **{"Content-Range": f"bytes 0-{end - start - 1}/{len(content)}"})


@pytest.mark.parametrize(
    "refusal",
    [whole, with_another_tag, of_another_length, of_another_place, *map(status, (403, 404, 416))],
)
def test_a_server_that_refuses_a_second_connection_gets_one(
    refusal: Fault, server: Server, tmp_path: Path
) -> None:
    server.faults["/x.bin"] = [waits_until(has_requests(server, 2)), refusal]
    fetch(server, tmp_path)
    # The first connection takes the second one's range back, unless it has ended by then.
    assert server.ranges("/x.bin") in (QUARTERS[:2], [*QUARTERS[:2], QUARTERS[1]])


def test_a_busy_server_is_asked_again_during_the_first_request(server: Server, tmp_path: Path) -> None:
    """More often than the maximum of attempts: the data of the first connection is progress."""
    server.faults["/x.bin"] = [waits_until(has_requests(server, 7)), *[status(429)] * 6]
    fetch(server, tmp_path)
    assert server.ranges("/x.bin")[1:7] == ["bytes=1500000-2999999"] * 6


def test_without_a_validator_there_is_one_connection(server: Server, tmp_path: Path) -> None:
    server.etag = ""
    fetch(server, tmp_path)
    assert server.ranges("/x.bin") == ["bytes=0-"]


def test_a_server_without_ranges_gets_one_request(server: Server, tmp_path: Path) -> None:
    server.has_ranges = False
    fetch(server, tmp_path)
    assert len(server.requests) == 1


def test_ranges_that_are_shorter_than_requested(server: Server, tmp_path: Path) -> None:
    def in_slices(handler: Handler, content: bytes) -> None:
        start, end = handler.requested_range(content)
        end = min(end, start + 300_000)
        extent = f"bytes {start}-{end - 1}/{len(content)}"
        handler.respond(206, content[start:end], **{"ETag": server.etag, "Content-Range": extent})

    server.faults["/x.bin"] = [in_slices] * 99
    fetch(server, tmp_path, options=fetch_options(max_attempts=1, backoff=0, **SPLIT))
    assert len(server.requests) >= 10


# What goes wrong


def test_a_range_that_never_arrives(server: Server, tmp_path: Path) -> None:
    """The other ranges are received before it is given up, and are not requested again."""
    server.faults["/x.bin"] = [waits_until(has_requests(server, 2)), *[status(503)] * 99]
    failed = failure(server, tmp_path)
    assert isinstance(failed, DownloadInterrupted)
    assert failed.reason == "the server answers 503 Service Unavailable"
    assert missing(tmp_path) == [(1_500_000, 3_000_000)]
    server.faults.clear()
    server.requests.clear()
    fetch(server, tmp_path)
    assert server.ranges("/x.bin")[0] == "bytes=1500000-2999999"


def test_a_file_that_is_removed_from_the_server(server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [
        waits_until(has_requests(server, 2), 1_000_000),
        lambda handler, _: (server.released.set(), handler.respond(404, b"")),
        *[status(404)] * 9,
    ]
    assert isinstance(failure(server, tmp_path), DownloadRefused)
    assert missing(tmp_path) == [(1_000_000, 3_000_000)]


def test_a_damaged_range_is_detected(server: Server, tmp_path: Path) -> None:
    four = waits_until(has_requests(server, 4))

    def damaged(handler: Handler, content: bytes) -> None:
        four(handler, content[:1_600_000] + b"!" + content[1_600_001:])

    server.faults["/x.bin"] = [four, damaged, four, four]
    failed = failure(server, tmp_path)
    assert isinstance(failed, ChecksumMismatch)
    assert failed.reason.startswith("its sha256 is ")
    assert not list(tmp_path.iterdir())
    fetch(server, tmp_path)


FAULTS = st.one_of(
    st.builds(ends_after, st.integers(0, SIZE)),
    st.builds(resets_after, st.integers(0, SIZE)),
    st.sampled_from([whole, with_another_tag, of_another_length, of_another_place]),
    st.sampled_from([status(429), status(503), status(416), instead(CONTENT)]),
)


@settings(max_examples=30, deadline=None)
@given(faults=st.lists(FAULTS, max_size=8))
def test_the_file_is_right_whatever_fails(faults: list[Fault]) -> None:
    with serving() as server, TemporaryDirectory() as directory:
        server.files["/x.bin"] = CONTENT
        server.faults["/x.bin"] = list(faults)
        fetch(
            server,
            Path(directory),
            options=fetch_options(max_attempts=20, backoff=0, **SPLIT),
        )
