"""Servers that would keep a download busy for ever: each is given up soon, with the reason."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from downloading import CONTENT, failure, fetch, fetch_options, file_names, missing, source
from serving import Fault, Handler, Server, redirect, status

from virnuc_async.downloads.fetch import Transfer, fetch_all
from virnuc_async.errors import ChecksumMismatch, DownloadInterrupted, DownloadRefused

SIZE = len(CONTENT)
ATTEMPTS = 3
OPTIONS = fetch_options(stall_timeout=0.2, max_attempts=ATTEMPTS)
BEGINNING = "the server sends the beginning of the file, whatever range is requested"
ALL = "the server sends all of the file, whatever range is requested"
ANOTHER = "the server sends another file than before"


def send(handler: Handler, body: bytes, extent: str, code: int = 206, **headers: str) -> None:
    handler.respond(code, body, **{"ETag": handler.server.etag, "Content-Range": extent, **headers})


def same_first_bytes(handler: Handler, content: bytes) -> None:
    send(handler, content[:1_000_000], f"bytes 0-999999/{SIZE}")


def all_of_it_cut_short(handler: Handler, content: bytes) -> None:
    """Ignore the range, and break off at the same place each time."""
    handler.begin(200, SIZE, ETag=handler.server.etag)
    handler.wfile.write(content[:1_000_000])


def another_range(handler: Handler, content: bytes) -> None:
    send(handler, content[7:1_000_007], f"bytes 7-1000006/{SIZE}")


def no_bytes(handler: Handler, content: bytes) -> None:
    start, _ = handler.requested_range(content)
    send(handler, b"", f"bytes {start}-{start}/{SIZE}", ETag=handler.server.etag)


def end_before_start(handler: Handler, _: bytes) -> None:
    send(handler, b"", f"bytes 0-0/{SIZE}"[:-1] + "0", ETag=handler.server.etag)


def one_byte(handler: Handler, content: bytes) -> None:
    start, _ = handler.requested_range(content)
    send(handler, content[start : start + 1], f"bytes {start}-{start}/{SIZE}")


def one_byte_then_a_drop(handler: Handler, content: bytes) -> None:
    start, _ = handler.requested_range(content)
    handler.begin(206, SIZE - start, ETag='"first"', **{"Content-Range": f"bytes {start}-{SIZE - 1}/{SIZE}"})
    handler.wfile.write(content[start : start + 1])


def another_tag_each_time() -> Fault:
    tags = count()

    def fault(handler: Handler, content: bytes) -> None:
        handler.begin(200, SIZE, ETag=f'"{next(tags)}"')
        handler.wfile.write(content[:1_000_000])

    return fault


def further_each_time_without_a_tag() -> Fault:
    numbers = count(1)

    def fault(handler: Handler, content: bytes) -> None:
        handler.begin(200, SIZE)
        handler.wfile.write(content[: 300_000 * next(numbers)])

    return fault


def another_size_each_time() -> Fault:
    sizes = count(2_000_000, 400_000)

    def fault(handler: Handler, content: bytes) -> None:
        size = next(sizes)
        handler.begin(200, size, ETag=f'"{size}"')
        handler.wfile.write(bytes(size - 100_000))

    return fault


def retry_in_thirty_years(handler: Handler, _: bytes) -> None:
    handler.respond(503, b"", **{"Retry-After": "1000000000"})


def drop_by_drop(before: bytes, drop: Callable[[int], bytes]) -> Fault:
    """Send *before*, and then something every few milliseconds, so that no wait is ever long."""

    def fault(handler: Handler, _: bytes) -> None:
        handler.wfile.write(before)
        for number in count():
            handler.wfile.write(drop(number))
            if handler.server.released.wait(0.01):
                return

    return fault


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "status": drop_by_drop(b"", lambda _: b"H"),
    "headers": drop_by_drop(b"HTTP/1.1 200 OK\r\n", lambda _: b"X"),
    "continue": drop_by_drop(b"", lambda _: b"HTTP/1.1 100 Continue\r\n\r\n"),
    "chunk size": drop_by_drop(CHUNKED + b"4;", lambda _: b"x"),
    "trailer": drop_by_drop(CHUNKED + b"4\r\nabcd\r\n0\r\n", lambda number: b"%d: x\r\n" % number),
}
SLOW_HEAD = b'HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\nETag: "first"\r\n\r\n'
SLOW_DRIP = drop_by_drop(SLOW_HEAD, lambda number: CONTENT[number : number + 1])


@pytest.mark.parametrize(
    ("fault", "reason", "requests"),
    [
        (same_first_bytes, BEGINNING, 4),
        (all_of_it_cut_short, f"{ALL}, and then the connection closed at byte 1,000,000", 4),
        (another_range, "the server sent another part of the file than requested", 3),
        (one_byte, "the server ended its answer after 1 bytes, 2,999,997 too early", 3),
        (one_byte_then_a_drop, "the connection closed at byte 3", 3),
        (another_tag_each_time(), f"{ANOTHER}, and then the connection closed at byte 1,000,000", 4),
        (further_each_time_without_a_tag(), "the connection closed at byte 1,200,000", 4),
        (another_size_each_time(), f"{ANOTHER}, and then the connection closed at byte 3,500,000", 5),
        (status(503), "the server answers 503 Service Unavailable", 3),
        (retry_in_thirty_years, "the server answers 503 Service Unavailable", 3),
        (SLOW_DRIP, f"{ALL}, and then hardly any data for 0.2 s", 3),
    ],
)
def test_a_server_without_end_is_given_up(
    fault: Fault, reason: str, requests: int, server: Server, tmp_path: Path
) -> None:
    server.faults["/x.bin"] = [fault] * 99
    failed = failure(tmp_path, source(server, sha256=""), options=OPTIONS)
    assert isinstance(failed, DownloadInterrupted)
    assert (failed.reason, len(server.requests)) == (reason, requests)
    assert f": {reason}. No progress in 3 attempts; if it fails again, use a --mirror" in str(failed)
    assert not (tmp_path / "x.bin").exists()
    server.released.set()
    server.faults.clear()
    fetch(tmp_path, source(server))
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("fault", [no_bytes, end_before_start])
def test_a_server_that_sends_no_bytes_is_given_up(fault: Fault, server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [fault] * 99
    assert isinstance(failure(tmp_path, source(server), options=OPTIONS), DownloadInterrupted)
    assert len(server.requests) <= 2 * ATTEMPTS


@pytest.mark.parametrize("endless", ENDLESS)
def test_an_answer_without_end_is_cut_off(endless: str, server: Server, tmp_path: Path) -> None:
    """Each wait for the next byte is short, so that no timeout of a socket ends it."""
    server.faults["/x.bin"] = [ENDLESS[endless]] * 9
    options = fetch_options(stall_timeout=0.15, max_attempts=1)
    failed = failure(tmp_path, source(server, sha256=""), options=options)
    assert isinstance(failed, DownloadInterrupted)
    assert failed.reason == "the server does not respond"
    assert len(server.requests) == 1
    assert not (tmp_path / "x.bin").exists()


def endless_body_of_a_redirect(handler: Handler, _: bytes) -> None:
    handler.begin(302, 1 << 40, Location="/x.bin")
    while not handler.server.released.is_set():
        handler.wfile.write(bytes(1 << 16))


def test_the_body_of_a_redirect_is_not_read(server: Server, tmp_path: Path) -> None:
    server.faults["/a.bin"] = [endless_body_of_a_redirect]
    fetch(tmp_path, source(server, "/a.bin"), options=fetch_options())
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def to_the_next(handler: Handler, _: bytes) -> None:
    handler.server.faults[handler.path + "x"] = [to_the_next]
    redirect(handler.path + "x")(handler, b"")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (redirect("/x.bin"), "the server redirects in a circle, or too many times"),
        (to_the_next, "the server redirects in a circle, or too many times"),
        (redirect("ftp://127.0.0.1/x.bin"), "it redirects to ftp://127.0.0.1/x.bin, which is no web address"),
        (redirect("http://[::bad/x"), "the server sends what is no address: Invalid IPv6 URL"),
        (redirect(""), "the server answers 302 Found"),
        (lambda handler, _: handler.wfile.write(b"HTTP/1.1 404 " + b"x" * 9_000 + b"\r\n\r\n"), "x" * 200),
    ],
)
def test_what_would_be_refused_again_is_not_asked_again(
    fault: Fault, reason: str, server: Server, tmp_path: Path
) -> None:
    server.faults["/x.bin"] = [fault] * 99
    failed = failure(tmp_path, source(server), options=fetch_options())
    assert isinstance(failed, DownloadRefused)
    assert failed.reason.endswith(reason)
    assert len(failed.reason) < 300
    assert len(server.requests) <= 12


# More than announced, and nothing at all


def chunks(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def longer_than_its_range(handler: Handler, content: bytes) -> None:
    handler.wfile.write(
        b"HTTP/1.1 206 Partial\r\nTransfer-Encoding: chunked\r\nETag: x\r\n"
        b"Content-Range: bytes 0-2999999/3000000\r\n\r\n" + chunks(content + b"more")
    )


def test_a_file_longer_than_announced_is_cut_off_and_reported(server: Server, tmp_path: Path) -> None:
    seen: list[str] = []
    server.faults["/x.bin"] = [longer_than_its_range]
    fetch_all([source(server)], tmp_path, lambda all_: seen.extend(map(str, map(status_of, all_))))
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    assert seen[-1] == "done: the server sent more bytes than it had announced; they were dropped"
    server.faults["/x.bin"] = [longer_than_its_range]
    failed = failure(tmp_path / "other", source(server, sha256="0" * 64))
    assert isinstance(failed, ChecksumMismatch)
    assert failed.reason.endswith("; the server sent more bytes than it had announced; they were dropped")


def status_of(transfer: Transfer) -> str:
    return transfer.status


def body_without_end(handler: Handler, content: bytes) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while not handler.server.released.is_set():
        handler.wfile.write(content[: 1 << 16])


@pytest.mark.parametrize("facts", [{"size": 100_000}, {"max_size": 100_000}])
def test_a_body_without_end_is_cut_off_at_the_size(
    facts: dict[str, int], server: Server, tmp_path: Path
) -> None:
    server.faults["/x.bin"] = [body_without_end]
    failed = failure(tmp_path, source(server, **facts))
    assert isinstance(failed, ChecksumMismatch)
    assert failed.reason == "it has more bytes than the limit of 100,000"
    assert file_names(tmp_path) == []


@pytest.mark.parametrize(
    ("facts", "reason"),
    [({"size": SIZE}, "it has 0 bytes, not the published 3,000,000"), ({}, "its sha256 is e3b0c44298fc")],
)
def test_an_empty_answer_is_not_the_file(
    facts: dict[str, int], reason: str, server: Server, tmp_path: Path
) -> None:
    server.files["/x.bin"] = b""
    server.has_ranges = False
    failed = failure(tmp_path, source(server, **facts))
    assert isinstance(failed, ChecksumMismatch)
    assert failed.reason.startswith(reason)
    assert len(server.requests) == 1


def test_received_bytes_are_kept_while_attempts_fail(server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [one_byte_then_a_drop] * 99
    failure(tmp_path, source(server), options=OPTIONS)
    assert missing(tmp_path) == [(ATTEMPTS, SIZE)]
