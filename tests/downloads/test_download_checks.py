"""Files that a server refuses, or that are not the published ones."""

import io
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from downloading import CONTENT, failure, fetch, file_names, source
from serving import Handler, Server, instead, status

from virnuc_async.downloads.source import git_blob
from virnuc_async.errors import BadCheckpoint, ChecksumMismatch, DownloadRefused


@pytest.mark.parametrize("code", [401, 403, 404, 410, 451])
def test_a_refused_file_is_not_requested_again(code: int, server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [status(code)] * 9
    failed = failure(tmp_path, source(server))
    assert isinstance(failed, DownloadRefused)
    assert str(failed).startswith(f"{server.url}/x.bin cannot be downloaded: the server answers {code} ")
    assert "--mirror" in str(failed)
    assert "models import" in str(failed)
    assert len(server.requests) == 1


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
    assert "It was deleted: rerun the same command to download it again" in str(failed)
    assert not file_names(tmp_path)


def test_git_blob_is_what_git_says(tmp_path: Path, server: Server) -> None:
    (tmp_path / "x").write_bytes(b"hello\n")
    assert git_blob(tmp_path / "x") == "ce013625030ba8dba906f756967f9e9ca394464a"
    (tmp_path / "x.bin").write_bytes(CONTENT)
    fetch(tmp_path, source(server, git_blob=git_blob(tmp_path / "x.bin")))


def test_a_wrong_size_is_refused_before_anything_is_received(server: Server, tmp_path: Path) -> None:
    failed = failure(tmp_path, source(server, size=2_999_999))
    assert isinstance(failed, ChecksumMismatch)
    assert failed.reason == "it has 3,000,000 bytes, not the published 2,999,999"
    assert not file_names(tmp_path)


def chunked(handler: Handler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content))


def without_end(handler: Handler, content: bytes) -> None:
    """Send the content again and again, without a length."""
    handler.send_response(200)
    handler.end_headers()
    with suppress(OSError):
        while True:
            handler.wfile.write(content)


def test_a_file_above_its_limit_is_refused(server: Server, tmp_path: Path) -> None:
    failed = failure(tmp_path, source(server, max_size=2_999_999))
    assert isinstance(failed, ChecksumMismatch)
    assert failed.reason == "it has 3,000,000 bytes, more than the limit of 2,999,999"
    assert not file_names(tmp_path)
    fetch(tmp_path, source(server, max_size=3_000_000))


@pytest.mark.parametrize("published", [{"size": 2_500_000}, {"max_size": 2_500_000}])
def test_a_server_that_never_stops(published: dict[str, object], server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [without_end]
    failed = failure(tmp_path, source(server, **published))
    assert isinstance(failed, ChecksumMismatch)
    assert failed.reason == "it has more bytes than the limit of 2,500,000"
    assert "It was deleted" in str(failed)
    assert not file_names(tmp_path)


def test_a_file_as_large_as_its_limit(server: Server, tmp_path: Path) -> None:
    server.faults["/x.bin"] = [chunked]
    fetch(tmp_path, source(server, max_size=3_000_000))


def test_a_server_that_does_not_state_the_size(server: Server, tmp_path: Path) -> None:
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
    assert not file_names(tmp_path)
