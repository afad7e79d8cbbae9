"""Files from a real server on this machine, which does everything that servers do wrong."""

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from serving import (
    Fault,
    Handler,
    Server,
    drips,
    ends_after,
    hangs_after,
    instead,
    redirect,
    resets_after,
    serving,
    status,
)

from virnuc_async.downloads.fetch import Patience, Source, Transfer, alone, fetch_all, git_blob
from virnuc_async.errors import (
    BadCheckpoint,
    CannotWrite,
    ChecksumMismatch,
    DownloadBusy,
    DownloadInterrupted,
    DownloadRefused,
    VirnucError,
)

CONTENT = random.Random(3).randbytes(3_000_000)
WHOLE = "bytes=0-"  # what is asked for of a file that may be large
QUICK = Patience(stall=0.3, tries=3, pause=0.001)
PATIENT = Patience(stall=20, tries=3, pause=0.001)  # for what has nothing to do with time, on a busy machine


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.files["/x.bin"] = CONTENT
        yield server


def source(server: Server, path: str = "/x.bin", **facts: object) -> Source:
    checks: dict[str, object] = {"sha256": hashlib.sha256(CONTENT).hexdigest(), **facts}
    return Source(server.url + path, Path(path).name, **checks)  # type: ignore[arg-type]


def fetch(directory: Path, *sources: Source, patience: Patience = PATIENT) -> None:
    fetch_all(sources, directory, lambda _: None, patience)


def failure(directory: Path, *sources: Source, patience: Patience = PATIENT) -> VirnucError:
    with pytest.raises(VirnucError) as caught:
        fetch(directory, *sources, patience=patience)
    return caught.value


def missing(directory: Path) -> list[list[int]]:
    """Give the spans that the record calls missing of the file."""
    return json.loads((directory / "x.bin.part.json").read_bytes())["missing"]


def until(is_so: Callable[[], bool]) -> None:
    """Wait for what a file on the disk is to say; the time limit of the test ends it."""
    while True:
        with suppress(FileNotFoundError):
            if is_so():
                return
        time.sleep(0.01)


def say(directory: Path, **facts: object) -> None:
    """Have the record say something else."""
    record = directory / "x.bin.part.json"
    record.write_text(json.dumps(json.loads(record.read_bytes()) | facts))


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


# What goes well


def test_files_come_side_by_side_and_are_watched(server: Server, tmp_path: Path) -> None:
    server.files["/y.bin"] = b"y"
    seen: list[tuple[str, str, int, int | None]] = []

    def watch(transfers: list[Transfer]) -> None:
        seen.extend((t.source.name, t.doing, t.done, t.total) for t in transfers)

    # Whichever came first would wait for ever, were the other one not fetched beside it.
    both = threading.Barrier(2, timeout=10)

    def meets(handler, content: bytes) -> None:
        both.wait()
        handler.give(content)

    server.faults = {"/x.bin": [meets], "/y.bin": [meets]}
    fetch_all([source(server), source(server, "/y.bin", sha256="")], tmp_path, watch, PATIENT)
    assert names(tmp_path) == ["x.bin", "y.bin"]
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    assert seen[-2:] == [("x.bin", "done", 3_000_000, 3_000_000), ("y.bin", "done", 1, 1)]


def test_a_file_that_is_there_is_checked_and_not_fetched(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(CONTENT)
    fetch(tmp_path, source(server))
    assert not server.asked
    (tmp_path / "x.bin").write_bytes(CONTENT[:-1] + b"!")
    fetch(tmp_path, source(server))
    assert len(server.asked) == 1
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_a_redirect_is_followed_with_the_range(server: Server, tmp_path: Path) -> None:
    server.faults = {
        "/a.bin": [redirect("/x.bin"), redirect(f"{server.url}/x.bin")],
        "/x.bin": [ends_after(2_000_000)],
    }
    fetch(tmp_path, source(server, "/a.bin"))
    assert server.ranges("/x.bin") == [WHOLE, "bytes=2000000-2999999"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_proxy_is_asked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official = "http://example.invalid/models/x.bin"
    server.files[official] = CONTENT
    monkeypatch.setenv("http_proxy", server.url)
    fetch(tmp_path, Source(official, "x.bin"))
    assert [asked for asked, _ in server.asked] == [official]


@pytest.fixture
def encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with a certificate of its own, which is trusted unless the test says otherwise."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl here to make a certificate")
    certificate, words = tmp_path / "certificate.pem", "req -x509 -newkey rsa:2048 -nodes -days 1"
    named = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(certificate), "-out", str(tmp_path / "alone.pem")]
    subprocess.run(["openssl", *words.split(), *named, *files], check=True, capture_output=True)
    with open(certificate, "ab") as file:
        file.write((tmp_path / "alone.pem").read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "alone.pem"))
    with serving() as server:
        server.encrypt(certificate)
        server.files["/x.bin"] = CONTENT
        yield server


def test_an_encrypted_connection(encrypted: Server, tmp_path: Path) -> None:
    encrypted.faults["/x.bin"] = [redirect(f"{encrypted.url}/x.bin")]
    fetch(tmp_path / "here", source(encrypted))
    assert (tmp_path / "here" / "x.bin").read_bytes() == CONTENT


def test_an_encrypted_connection_is_not_left(encrypted: Server, server: Server, tmp_path: Path) -> None:
    encrypted.faults["/x.bin"] = [redirect(f"{server.url}/x.bin")]
    failed = failure(tmp_path, source(encrypted))
    assert isinstance(failed, DownloadRefused)
    assert failed.reason == f"it redirects to {server.url}/x.bin, which is not encrypted"
    assert not server.asked


def test_a_certificate_that_is_not_trusted(
    encrypted: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    failed = failure(tmp_path, source(encrypted))
    assert isinstance(failed, DownloadRefused)
    assert failed.reason.startswith("its certificate is not trusted (self")
    assert "SSL_CERT_FILE" in failed.reason


# What is interrupted


@pytest.mark.parametrize("fault", [ends_after, resets_after, hangs_after])
def test_what_breaks_off_is_gone_on_with(
    fault: Callable[[int], Fault], server: Server, tmp_path: Path
) -> None:
    server.faults["/x.bin"] = [fault(1_100_000), fault(1_100_000)]
    fetch(tmp_path, source(server), patience=Patience(stall=1, tries=9, pause=0.001))
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    asked = server.ranges("/x.bin")
    assert asked[0] == WHOLE
    assert len(asked) == 3
    # A reset may throw away what had come and was not read yet.
    if fault is not resets_after:
        assert asked[1:] == ["bytes=1100000-2999999", "bytes=2200000-2999999"]
    assert server.asked[1][1]["if-range"] == '"first"'
    assert names(tmp_path) == ["x.bin"]


def test_a_try_that_brought_much_was_not_in_vain(server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [ends_after(1_100_000), ends_after(1_100_000)]
    fetch(tmp_path, source(server), patience=Patience(stall=20, tries=1, pause=0.001))
    assert len(server.asked) == 3


@pytest.mark.parametrize("etag", ['"first"', ""])
def test_who_breaks_off_at_one_place_and_begins_anew_is_given_up(
    etag: str, server: Server, tmp_path: Path
) -> None:
    server.etag, server.has_ranges = etag, False
    server.faults["/x.bin"] = [ends_after(2_000_000)] * 99
    assert isinstance(failure(tmp_path, source(server)), DownloadInterrupted)
    assert len(server.asked) == 1 + PATIENT.tries


@pytest.mark.parametrize(
    ("fault", "stall", "reason"),
    [
        (ends_after(9), 20, "the connection ended at byte 27"),
        (hangs_after(9), 0.3, "the server is silent"),
        (drips(0.01), 1, "hardly anything came for 1 s"),
        (status(503), 20, "the server answers 503 Service Unavailable"),
    ],
)
def test_who_brings_nothing_is_given_up(
    fault: Fault, stall: float, reason: str, server: Server, tmp_path: Path
) -> None:
    server.faults["/x.bin"] = [fault] * 9
    failed = failure(tmp_path, source(server), patience=Patience(stall, tries=3, pause=0.001))
    assert isinstance(failed, DownloadInterrupted)
    assert failed.reason == reason
    assert str(failed).endswith("Received data is kept: rerun the same command to resume")
    assert len(server.asked) == 3
    server.faults.clear()
    fetch(tmp_path, source(server))
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_nobody_is_there(server: Server, tmp_path: Path) -> None:
    nowhere = Source(f"{server.url}/x", "x")
    server.shutdown()
    server.server_close()
    failed = failure(tmp_path, nowhere)
    assert isinstance(failed, DownloadInterrupted)
    assert "Connection refused" in str(failed)


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.has_ranges = False
    server.faults["/x.bin"] = [ends_after(1_000_000)]
    fetch(tmp_path, source(server))
    assert server.ranges("/x.bin") == [WHOLE, "bytes=1000000-2999999"]
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_not_glued(server: Server, tmp_path: Path) -> None:
    changed = bytes(reversed(CONTENT))

    def ends_and_changes(handler, content: bytes) -> None:
        ends_after(1_000_000)(handler, content)
        server.etag, server.files["/x.bin"] = '"second"', changed

    server.faults["/x.bin"] = [ends_and_changes]
    fetch(tmp_path, source(server, sha256=""))
    assert server.ranges("/x.bin") == [WHOLE, "bytes=1000000-2999999"]
    assert (tmp_path / "x.bin").read_bytes() == changed


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_sure_word_of_the_server_it_is_begun_anew(
    etag: str, server: Server, tmp_path: Path
) -> None:
    server.etag = etag
    server.faults["/x.bin"] = [ends_after(1_000_000)]
    fetch(tmp_path, source(server))
    assert server.ranges("/x.bin") == [WHOLE, None]
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_a_part_of_another_address_is_not_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.files["/other/x.bin"] = CONTENT
    server.faults["/x.bin"] = [ends_after(1_000_000), status(404)]
    failure(tmp_path, source(server))
    assert (tmp_path / "x.bin.part").stat().st_size == 1_000_000
    fetch(tmp_path, source(server, "/other/x.bin"))
    assert server.ranges("/other/x.bin") == [WHOLE]


def test_a_part_longer_than_the_file(server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [ends_after(2_000_000), status(404)]
    failure(tmp_path, source(server))
    server.files["/x.bin"] = CONTENT[:1_500_000]
    fetch(tmp_path, source(server, sha256=""))
    assert (tmp_path / "x.bin").read_bytes() == CONTENT[:1_500_000]


def test_a_server_that_gives_another_part(server: Server, tmp_path: Path) -> None:
    def another_part(handler, content: bytes) -> None:
        extent = f"bytes 500-{len(content) - 1}/{len(content)}"
        handler.answer(206, content[500:], **{"Content-Range": extent})

    server.faults["/x.bin"] = [ends_after(1_000_000), another_part]
    fetch(tmp_path, source(server))
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_a_whole_part_needs_no_server(server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [ends_after(2_999_999), status(404)]
    failure(tmp_path, source(server))
    with open(tmp_path / "x.bin.part", "ab") as file:
        file.write(CONTENT[-1:])
    assert missing(tmp_path) == [[2_999_999, 3_000_000]]
    say(tmp_path, missing=[])
    fetch(tmp_path, source(server))
    assert len(server.asked) == 2


# What is not given, or is something else


@pytest.mark.parametrize("code", [401, 403, 404, 410, 451])
def test_what_is_not_given_is_not_asked_for_again(code: int, server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [status(code)] * 9
    failed = failure(tmp_path, source(server))
    assert isinstance(failed, DownloadRefused)
    assert str(failed).startswith(f"{server.url}/x.bin cannot be downloaded: the server answers {code} ")
    assert "--mirror" in str(failed)
    assert "models import" in str(failed)
    assert len(server.asked) == 1


def test_the_others_stop_when_one_fails(server: Server, tmp_path: Path) -> None:
    server.files["/y.bin"] = CONTENT
    server.faults = {"/y.bin": [hangs_after(1_000)], "/x.bin": [status(404)]}
    failed = failure(tmp_path, source(server, "/y.bin"), source(server), patience=QUICK)
    assert isinstance(failed, DownloadRefused)
    assert names(tmp_path) == ["y.bin.part", "y.bin.part.json"]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({}, "its sha256 is "),
        ({"sha256": "", "git_blob": "0" * 40}, "its git blob id is "),
    ],
)
def test_corrupted_content_is_deleted(
    facts: dict[str, object], reason: str, server: Server, tmp_path: Path
) -> None:
    server.faults["/x.bin"] = [instead(CONTENT[:-1] + b"!")]
    failed = failure(tmp_path, source(server, **facts))
    assert isinstance(failed, ChecksumMismatch)
    assert failed.reason.startswith(reason)
    assert "It was deleted: the same command gets it again" in str(failed)
    assert not names(tmp_path)


def test_git_blob_is_what_git_says(tmp_path: Path, server: Server) -> None:
    (tmp_path / "x").write_bytes(b"hello\n")
    assert git_blob(tmp_path / "x") == "ce013625030ba8dba906f756967f9e9ca394464a"
    (tmp_path / "x.bin").write_bytes(CONTENT)
    fetch(tmp_path, source(server, git_blob=git_blob(tmp_path / "x.bin")))


def test_a_wrong_size_is_seen_before_anything_is_received(server: Server, tmp_path: Path) -> None:
    failed = failure(tmp_path, source(server, size=2_999_999))
    assert isinstance(failed, ChecksumMismatch)
    assert failed.reason == "it has 3,000,000 bytes, and was published with 2,999,999"
    assert not names(tmp_path)


def chunked(handler: Handler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content))


def without_end(handler: Handler, content: bytes) -> None:
    """Nobody knows how many bytes, of a server that would never stop."""
    handler.send_response(200)
    handler.end_headers()
    with suppress(OSError):
        while True:
            handler.wfile.write(content)


def test_more_than_there_can_be_is_not_asked_to_come(server: Server, tmp_path: Path) -> None:
    failed = failure(tmp_path, source(server, most=2_999_999))
    assert isinstance(failed, ChecksumMismatch)
    assert failed.reason == "it has 3,000,000 bytes, and can have no more than 2,999,999"
    assert not names(tmp_path)
    fetch(tmp_path, source(server, most=3_000_000))


@pytest.mark.parametrize("known", [{"size": 2_500_000}, {"most": 2_500_000}])
def test_a_server_that_never_stops(known: dict[str, object], server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [without_end]
    failed = failure(tmp_path, source(server, **known))
    assert isinstance(failed, ChecksumMismatch)
    assert failed.reason == "it has more than 2,500,000 bytes, which it cannot"
    assert "It was deleted" in str(failed)
    assert not names(tmp_path)


def test_as_much_as_there_can_be(server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [chunked]
    fetch(tmp_path, source(server, most=3_000_000))


def test_a_size_that_the_server_does_not_say(server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [chunked, chunked]
    failed = failure(tmp_path, source(server, size=2_999_999))
    assert isinstance(failed, ChecksumMismatch)
    fetch(tmp_path, source(server, size=3_000_000))


def test_a_damaged_zip_file(server: Server, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("data/0", CONTENT)
    good = packed.getvalue()
    server.files["/x.bin"] = good.replace(CONTENT[1000:1010], b"0123456789", 1)
    failed = failure(tmp_path, source(server, sha256=""))
    assert isinstance(failed, ChecksumMismatch)
    assert "data/0" in failed.reason
    server.files["/x.bin"] = good
    fetch(tmp_path, source(server, sha256=""))


def test_a_check_of_the_content(server: Server, tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        assert path.read_bytes() == CONTENT
        raise BadCheckpoint(str(path), "not an ESM-2")

    failed = failure(tmp_path, source(server, check=refuse))
    assert isinstance(failed, ChecksumMismatch)
    assert failed.reason == "not an ESM-2"
    assert not names(tmp_path)


# The disk, and other processes


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, or none where this user may not make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can make a small file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_disk_too_small_is_said_at_once(server: Server, small_disk: Path) -> None:
    server.files["/x.bin"] = CONTENT * 2
    failed = failure(small_disk, source(server))
    assert isinstance(failed, CannotWrite)
    assert "No space left on device, 6,000,000 bytes are missing" in str(failed)
    assert str(failed).endswith("What has come is kept: the same command goes on")


def test_a_disk_that_fills_up_on_the_way(
    server: Server, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virnuc_async.downloads.fetch._KEPT_EVERY", 0)

    def pauses(handler, content: bytes) -> None:
        handler.begin_file(content)
        handler.wfile.write(content[:1_000_000])
        until(lambda: missing(small_disk) == [[1_000_000, 3_000_000]])
        (small_disk / "ballast").write_bytes(b"\1" * 2_000_000)
        handler.wfile.write(content[1_000_000:])

    server.faults["/x.bin"] = [pauses]
    failed = failure(small_disk, source(server), patience=PATIENT)
    assert isinstance(failed, CannotWrite)
    assert "No space left on device" in str(failed)
    (small_disk / "ballast").unlink()
    fetch(small_disk, source(server))
    assert (small_disk / "x.bin").read_bytes() == CONTENT
    # On a full disk nobody can write down what came since.
    assert server.ranges("/x.bin") == [WHOLE, "bytes=1000000-2999999"]


@pytest.mark.parametrize("name", ["x.bin.part", "x.bin.part.json"])
def test_nothing_is_written_through_a_link(name: str, server: Server, tmp_path: Path) -> None:
    precious, here = tmp_path / "precious", tmp_path / "here"
    precious.write_text("mine")
    here.mkdir()
    (here / name).symlink_to(precious)
    fetch(here, source(server))
    assert precious.read_text() == "mine"
    assert (here / "x.bin").read_bytes() == CONTENT
    assert not (here / "x.bin").is_symlink()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        alone(tmp_path / "work"),
        pytest.raises(DownloadBusy, match="another process"),
        alone(tmp_path / "work"),
    ):
        pass
    with alone(tmp_path / "work"):
        shutil.rmtree(tmp_path / "work")
        with alone(tmp_path / "work"):
            assert os.path.exists(tmp_path / "work" / "lock")
