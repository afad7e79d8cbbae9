"""Downloads that break off: what is resumed, what starts from scratch, and what is given up."""

from collections.abc import Callable
from pathlib import Path

import pytest
from downloading import (
    CONTENT,
    PATIENT,
    WHOLE_RANGE,
    edit_record,
    failure,
    fetch,
    fetch_options,
    file_names,
    missing,
    source,
)
from serving import Fault, Handler, Server, ends_after, hangs_after, resets_after, status

from virnuc_async.downloads.source import Source
from virnuc_async.errors import DownloadInterrupted


@pytest.mark.parametrize("fault", [ends_after, resets_after, hangs_after])
def test_a_broken_download_is_resumed(fault: Callable[[int], Fault], server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [fault(1_100_000), fault(1_100_000)]
    fetch(tmp_path, source(server), options=fetch_options(stall_timeout=1, max_attempts=9))
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    requested = server.ranges("/x.bin")
    assert requested[0] == WHOLE_RANGE
    assert len(requested) == 3
    # A reset may discard data that arrived and was not read yet.
    if fault is not resets_after:
        assert requested[1:] == ["bytes=1100000-2999999", "bytes=2200000-2999999"]
    assert server.requests[1][1]["if-range"] == '"first"'
    assert file_names(tmp_path) == ["x.bin"]


def test_an_attempt_with_progress_does_not_count_as_failed(server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [ends_after(1_100_000), ends_after(1_100_000)]
    fetch(tmp_path, source(server), options=fetch_options(max_attempts=1))
    assert len(server.requests) == 3


@pytest.mark.parametrize("etag", ['"first"', ""])
def test_breaking_at_the_same_place_from_scratch_is_given_up(
    etag: str, server: Server, tmp_path: Path
) -> None:
    server.etag, server.has_ranges = etag, False
    server.faults["/x.bin"] = [ends_after(2_000_000)] * 99
    assert isinstance(failure(tmp_path, source(server)), DownloadInterrupted)
    assert len(server.requests) == 1 + PATIENT.retry.max_attempts


@pytest.mark.parametrize(
    ("fault", "stall", "reason"),
    [
        (ends_after(9), 20, "the connection closed at byte 27"),
        (hangs_after(9), 0.3, "the server does not respond"),
        (status(503), 20, "the server answers 503 Service Unavailable"),
    ],
)
def test_attempts_without_progress_are_given_up(
    fault: Fault, stall: float, reason: str, server: Server, tmp_path: Path
) -> None:
    server.faults["/x.bin"] = [fault] * 9
    failed = failure(tmp_path, source(server), options=fetch_options(stall_timeout=stall))
    assert isinstance(failed, DownloadInterrupted)
    assert failed.reason == reason
    assert str(failed).endswith("Received data is kept: rerun the same command to resume")
    assert len(server.requests) == 3
    server.faults.clear()
    fetch(tmp_path, source(server))
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_no_server(server: Server, tmp_path: Path) -> None:
    nowhere = Source(f"{server.url}/x", "x")
    server.shutdown()
    server.server_close()
    failed = failure(tmp_path, nowhere)
    assert isinstance(failed, DownloadInterrupted)
    assert "Connection refused" in str(failed)


def test_a_server_without_ranges_starts_from_scratch(server: Server, tmp_path: Path) -> None:
    server.has_ranges = False
    server.faults["/x.bin"] = [ends_after(1_000_000)]
    fetch(tmp_path, source(server))
    assert server.ranges("/x.bin") == [WHOLE_RANGE, "bytes=1000000-2999999"]
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_a_file_that_changed_is_not_mixed_with_the_old_one(server: Server, tmp_path: Path) -> None:
    changed = bytes(reversed(CONTENT))

    def ends_and_changes(handler: Handler, content: bytes) -> None:
        ends_after(1_000_000)(handler, content)
        server.etag, server.files["/x.bin"] = '"second"', changed

    server.faults["/x.bin"] = [ends_and_changes]
    fetch(tmp_path, source(server, sha256=""))
    assert server.ranges("/x.bin") == [WHOLE_RANGE, "bytes=1000000-2999999"]
    assert (tmp_path / "x.bin").read_bytes() == changed


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_strong_validator_it_starts_from_scratch(etag: str, server: Server, tmp_path: Path) -> None:
    server.etag = etag
    server.faults["/x.bin"] = [ends_after(1_000_000)]
    fetch(tmp_path, source(server))
    assert server.ranges("/x.bin") == [WHOLE_RANGE, None]
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_a_part_from_another_address_is_not_resumed(server: Server, tmp_path: Path) -> None:
    server.files["/other/x.bin"] = CONTENT
    server.faults["/x.bin"] = [ends_after(1_000_000), status(404)]
    failure(tmp_path, source(server))
    assert (tmp_path / "x.bin.part").stat().st_size == 1_000_000
    fetch(tmp_path, source(server, "/other/x.bin"))
    assert server.ranges("/other/x.bin") == [WHOLE_RANGE]


def test_a_part_longer_than_the_file(server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [ends_after(2_000_000), status(404)]
    failure(tmp_path, source(server))
    server.files["/x.bin"] = CONTENT[:1_500_000]
    fetch(tmp_path, source(server, sha256=""))
    assert (tmp_path / "x.bin").read_bytes() == CONTENT[:1_500_000]


def test_a_server_that_sends_another_part(server: Server, tmp_path: Path) -> None:
    def another_part(handler: Handler, content: bytes) -> None:
        extent = f"bytes 500-{len(content) - 1}/{len(content)}"
        handler.respond(206, content[500:], **{"Content-Range": extent})

    server.faults["/x.bin"] = [ends_after(1_000_000), another_part]
    fetch(tmp_path, source(server))
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_a_complete_part_needs_no_server(server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [ends_after(2_999_999), status(404)]
    failure(tmp_path, source(server))
    with open(tmp_path / "x.bin.part", "ab") as file:
        file.write(CONTENT[-1:])
    assert missing(tmp_path) == [(2_999_999, 3_000_000)]
    edit_record(tmp_path, missing=[])
    fetch(tmp_path, source(server))
    assert len(server.requests) == 2
