"""Several ranges of one file at once, from a real server on this machine, and what comes between."""

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
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

from virnuc_async.downloads.fetch import Patience, Source, Transfer, fetch_all
from virnuc_async.errors import ChecksumMismatch, DownloadInterrupted, DownloadRefused, VirnucError

SIZE = 3_000_000
CONTENT, CHANGED = random.Random(5).randbytes(SIZE), random.Random(6).randbytes(SIZE)
PATIENT = Patience(stall=20, tries=3, pause=0.001)

# What is asked for where the first answer is held back until all are there: it is halved, and its half.
QUARTERS = ["bytes=0-", "bytes=1500000-2999999", "bytes=750000-1499999", "bytes=2250000-2999999"]
BORDERS = [(0, 750_000), (750_000, 1_500_000), (1_500_000, 2_250_000), (2_250_000, 3_000_000)]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.files["/x.bin"] = CONTENT
        yield server


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is worth another connection is smaller than the files of these tests."""
    monkeypatch.setattr("virnuc_async.downloads.fetch._WORTH_HALVING", 400_000)


def fetch(
    server: Server,
    directory: Path,
    watch: Callable[[Sequence[Transfer]], object] = lambda _: None,
    patience: Patience = PATIENT,
    content: bytes = CONTENT,
) -> None:
    source = Source(f"{server.url}/x.bin", "x.bin", sha256=hashlib.sha256(content).hexdigest())
    fetch_all([source], directory, watch, patience)
    assert [path.name for path in directory.iterdir()] == ["x.bin"]
    assert (directory / "x.bin").read_bytes() == content


def failure(server: Server, directory: Path, **more: Patience) -> VirnucError:
    with pytest.raises(VirnucError) as caught:
        fetch(server, directory, **more)
    return caught.value


def asked(server: Server, count: int) -> Callable[[], bool]:
    """Whether *count* requests have come, from now on."""
    before = len(server.asked)
    return lambda: len(server.asked) >= before + count


def missing(directory: Path) -> list[tuple[int, int]]:
    facts = json.loads((directory / "x.bin.part.json").read_bytes())
    return [(at, end) for at, end in facts["missing"]]


def as_ranges(spans: Sequence[tuple[int, int]]) -> list[str]:
    return [f"bytes={at}-{end - 1}" for at, end in spans]


def interrupted(server: Server, directory: Path, count: int = 100_000) -> None:
    """Be interrupted when each of four connections has brought *count* bytes."""

    def watch(transfers: Sequence[Transfer]) -> None:
        if transfers[0].done == 4 * count:
            raise KeyboardInterrupt

    server.faults["/x.bin"] = [waits_until(asked(server, 4), count)] * 4
    with pytest.raises(KeyboardInterrupt):
        fetch(server, directory, watch)
    assert missing(directory) == [(at + count, end) for at, end in BORDERS]
    server.released.set()
    server.asked.clear()


# What goes well


def test_a_large_file_comes_over_four_connections(server: Server, tmp_path: Path) -> None:
    # Whichever came first would wait for ever, were the others not there beside it.
    server.faults["/x.bin"] = [waits_until(asked(server, 4))] * 4
    fetch(server, tmp_path)
    assert server.ranges("/x.bin")[:4] == QUARTERS
    assert all(headers.get("if-range") == '"first"' for _, headers in server.asked[1:])


def test_progress_is_the_sum(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []

    def watch(transfers: Sequence[Transfer]) -> None:
        seen.append((transfers[0].doing, transfers[0].done, transfers[0].total))
        if seen[-1][1] == 2_000_000:
            server.released.set()  # they are hung up on, and others go on

    server.faults["/x.bin"] = [waits_until(asked(server, 4), 500_000)] * 4
    fetch(server, tmp_path, watch)
    assert ("receiving", 2_000_000, SIZE) in seen
    assert seen[-1] == ("done", SIZE, SIZE)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_who_is_done_helps_whoever_has_most_to_do(server: Server, tmp_path: Path) -> None:
    def is_left_with_it() -> bool:
        return len(server.asked) >= 5

    # The first stands still; the others come to their ends, and take half of what it has.
    server.faults["/x.bin"] = [waits_until(is_left_with_it), *[waits_until(asked(server, 4))] * 3]
    fetch(server, tmp_path)
    assert server.ranges("/x.bin")[:5] == [*QUARTERS, "bytes=375000-749999"]


@pytest.mark.parametrize("size", [399_999, 400_000])
def test_a_small_file_comes_over_one(size: int, server: Server, tmp_path: Path) -> None:
    server.files["/x.bin"] = CONTENT[:size]
    server.faults["/x.bin"] = [waits_until(asked(server, 2)), waits_until(asked(server, 2))]
    if size < 400_000:
        server.faults["/x.bin"].clear()
    fetch(server, tmp_path, content=CONTENT[:size])
    assert len(server.asked) == (2 if size >= 400_000 else 1)


# What is interrupted


def test_what_is_missing_is_fetched_and_no_more(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(server, tmp_path)
    spans = missing(tmp_path)
    monkeypatch.setattr("virnuc_async.downloads.fetch._WORTH_HALVING", 1 << 26)
    fetch(server, tmp_path)
    assert server.ranges("/x.bin") == as_ranges(spans)
    assert all(headers["if-range"] == '"first"' for _, headers in server.asked)
    assert sum(end - at for at, end in spans) == SIZE - 400_000


def test_a_connection_that_breaks_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    four = asked(server, 4)
    server.faults["/x.bin"] = [
        waits_until(asked(server, 5)),
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
from virnuc_async.downloads import fetch as downloads
downloads._WORTH_HALVING, downloads._KEPT_EVERY = 400_000, 0.05
source = downloads.Source(sys.argv[1], "x.bin")
downloads.fetch_all([source], Path(sys.argv[2]), lambda _: None)
"""
    server.faults["/x.bin"] = [waits_until(asked(server, 4), 100_000)] * 4
    wanted = [(at + 100_000, end) for at, end in BORDERS]
    words = [sys.executable, "-c", script, f"{server.url}/x.bin", str(tmp_path)]
    record = tmp_path / "x.bin.part.json"
    with subprocess.Popen(words, cwd=ROOT) as process:
        wait_until(lambda: record.exists() and missing(tmp_path) == wanted, process)
        process.kill()
    server.asked.clear()
    fetch(server, tmp_path)
    assert server.ranges("/x.bin")[0] == "bytes=100000-749999"
    assert not any((text or "").startswith("bytes=0-") for text in server.ranges("/x.bin"))


def test_what_lies_where_something_is_missing_is_written_over(server: Server, tmp_path: Path) -> None:
    interrupted(server, tmp_path)
    with open(tmp_path / "x.bin.part", "r+b") as part:
        part.seek(400_000)
        part.write(b"\0" * 100_000)
    fetch(server, tmp_path)


def test_a_file_that_changed_is_begun_anew(server: Server, tmp_path: Path) -> None:
    interrupted(server, tmp_path)
    server.etag, server.files["/x.bin"] = '"second"', CHANGED
    fetch(server, tmp_path, content=CHANGED)
    # One asks whether it is the same still before there are others, and takes what it is given.
    assert server.ranges("/x.bin") == ["bytes=100000-749999"]


def test_a_file_that_became_shorter_is_begun_anew(server: Server, tmp_path: Path) -> None:
    interrupted(server, tmp_path)
    server.files["/x.bin"] = CONTENT[:50_000]  # whose validator is the same, which it should not be
    fetch(server, tmp_path, content=CONTENT[:50_000])
    assert server.ranges("/x.bin") == ["bytes=100000-749999", None]


def test_a_server_that_has_no_ranges_any_more(server: Server, tmp_path: Path) -> None:
    interrupted(server, tmp_path)
    server.has_ranges = False
    fetch(server, tmp_path)
    assert len(server.asked) == 1


# Servers that want one connection, or have no ranges after all


def with_another_tag(handler: Handler, content: bytes) -> None:
    start, end = handler.extent(content)
    extent = f"bytes {start}-{end - 1}/{len(content)}"
    handler.answer(206, content[start:end], **{"ETag": '"another"', "Content-Range": extent})


def of_another_length(handler: Handler, content: bytes) -> None:
    start, end = handler.extent(content)
    handler.answer(206, content[start:end], **{"Content-Range": f"bytes {start}-{end - 1}/9999999"})


def of_another_place(handler: Handler, content: bytes) -> None:
    start, end = handler.extent(content)
    handler.answer(206, content[:-start], **{"Content-Range": f"bytes 0-{end - start - 1}/{len(content)}"})


@pytest.mark.parametrize(
    "refusal",
    [whole, with_another_tag, of_another_length, of_another_place, *map(status, (403, 404, 416))],
)
def test_who_refuses_a_second_connection_is_asked_over_one(
    refusal: Fault, server: Server, tmp_path: Path
) -> None:
    server.faults["/x.bin"] = [waits_until(asked(server, 2)), refusal]
    fetch(server, tmp_path)
    # The first is given back what was to be the second's, if it is not at its end by then.
    assert server.ranges("/x.bin") in (QUARTERS[:2], [*QUARTERS[:2], QUARTERS[1]])


def test_who_is_busy_is_asked_again_while_the_first_goes_on(server: Server, tmp_path: Path) -> None:
    """More often than one alone would be: what it brings shows that it is not in vain."""
    server.faults["/x.bin"] = [waits_until(asked(server, 7)), *[status(429)] * 6]
    fetch(server, tmp_path)
    assert server.ranges("/x.bin")[1:7] == ["bytes=1500000-2999999"] * 6


def test_without_a_validator_there_is_one_connection(server: Server, tmp_path: Path) -> None:
    server.etag = ""
    fetch(server, tmp_path)
    assert server.ranges("/x.bin") == ["bytes=0-"]


def test_a_server_without_ranges_is_asked_once(server: Server, tmp_path: Path) -> None:
    server.has_ranges = False
    fetch(server, tmp_path)
    assert len(server.asked) == 1


def test_ranges_that_are_shorter_than_asked_for(server: Server, tmp_path: Path) -> None:
    def in_slices(handler: Handler, content: bytes) -> None:
        start, end = handler.extent(content)
        end = min(end, start + 300_000)
        extent = f"bytes {start}-{end - 1}/{len(content)}"
        handler.answer(206, content[start:end], **{"ETag": server.etag, "Content-Range": extent})

    server.faults["/x.bin"] = [in_slices] * 99
    fetch(server, tmp_path, patience=Patience(stall=20, tries=1, pause=0))
    assert len(server.asked) >= 10


# What goes wrong


def test_a_range_that_never_comes(server: Server, tmp_path: Path) -> None:
    """All else is had before it is given up, and nothing of that is asked for again."""
    server.faults["/x.bin"] = [waits_until(asked(server, 2)), *[status(503)] * 99]
    failed = failure(server, tmp_path)
    assert isinstance(failed, DownloadInterrupted)
    assert failed.reason == "the server answers 503 Service Unavailable"
    assert missing(tmp_path) == [(1_500_000, 3_000_000)]
    server.faults.clear()
    server.asked.clear()
    fetch(server, tmp_path)
    assert server.ranges("/x.bin")[0] == "bytes=1500000-2999999"


def test_a_file_that_is_taken_away(server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [
        waits_until(asked(server, 2), 1_000_000),
        lambda handler, _: (server.released.set(), handler.answer(404, b"")),
        *[status(404)] * 9,
    ]
    assert isinstance(failure(server, tmp_path), DownloadRefused)
    assert missing(tmp_path) == [(1_000_000, 3_000_000)]


def test_a_range_that_is_damaged_is_found(server: Server, tmp_path: Path) -> None:
    four = waits_until(asked(server, 4))

    def damaged(handler: Handler, content: bytes) -> None:
        four(handler, content[:1_600_000] + b"!" + content[1_600_001:])

    server.faults["/x.bin"] = [four, damaged, four, four]
    failed = failure(server, tmp_path)
    assert isinstance(failed, ChecksumMismatch)
    assert failed.reason.startswith("its sha256 is ")
    assert not list(tmp_path.iterdir())
    fetch(server, tmp_path)


STAGE_CODES = st.one_of(
    st.builds(ends_after, st.integers(0, SIZE)),
    st.builds(resets_after, st.integers(0, SIZE)),
    st.sampled_from([whole, with_another_tag, of_another_length, of_another_place]),
    st.sampled_from([status(429), status(503), status(416), instead(CONTENT)]),
)


@settings(max_examples=30, deadline=None)
@given(faults=st.lists(STAGE_CODES, max_size=8))
def test_whatever_comes_between_the_file_is_right(faults: list[Fault]) -> None:
    with serving() as server, TemporaryDirectory() as directory:
        server.files["/x.bin"] = CONTENT
        server.faults["/x.bin"] = list(faults)
        fetch(server, Path(directory), patience=Patience(stall=20, tries=20, pause=0))
