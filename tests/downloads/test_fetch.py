"""Downloads from a real server on this machine: files, proxies, locks and the disk."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from downloading import (
    CONTENT,
    PATIENT,
    QUICK,
    WHOLE_RANGE,
    failure,
    fetch,
    file_names,
    missing,
    source,
    wait_for,
)
from serving import Handler, Server, ends_after, hangs_after, redirect, status

from virnuc_async.downloads.fetch import Transfer, exclusive_lock, fetch_all
from virnuc_async.downloads.source import Source
from virnuc_async.errors import CannotWrite, DownloadBusy, DownloadRefused


def test_files_are_fetched_at_the_same_time_with_progress(server: Server, tmp_path: Path) -> None:
    server.files["/y.bin"] = b"y"
    seen: list[tuple[str, str, int, int | None]] = []

    def on_progress(transfers: Sequence[Transfer]) -> None:
        seen.extend((t.source.name, t.status, t.done, t.total) for t in transfers)

    # The first request would wait for ever if the other file were not fetched at the same time.
    both = threading.Barrier(2, timeout=10)

    def waits_for_the_other(handler: Handler, content: bytes) -> None:
        both.wait()
        handler.send_file(content)

    server.faults = {"/x.bin": [waits_for_the_other], "/y.bin": [waits_for_the_other]}
    fetch_all([source(server), source(server, "/y.bin", sha256="")], tmp_path, on_progress, PATIENT)
    assert file_names(tmp_path) == ["x.bin", "y.bin"]
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    assert seen[-2:] == [("x.bin", "done", 3_000_000, 3_000_000), ("y.bin", "done", 1, 1)]


def test_an_existing_file_is_checked_and_not_fetched(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(CONTENT)
    fetch(tmp_path, source(server))
    assert not server.requests
    (tmp_path / "x.bin").write_bytes(CONTENT[:-1] + b"!")
    fetch(tmp_path, source(server))
    assert len(server.requests) == 1
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_a_redirect_is_followed_with_the_range(server: Server, tmp_path: Path) -> None:
    server.faults = {
        "/a.bin": [redirect("/x.bin"), redirect(f"{server.url}/x.bin")],
        "/x.bin": [ends_after(2_000_000)],
    }
    fetch(tmp_path, source(server, "/a.bin"))
    assert server.ranges("/x.bin") == [WHOLE_RANGE, "bytes=2000000-2999999"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_proxy_is_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official = "http://example.invalid/models/x.bin"
    server.files[official] = CONTENT
    monkeypatch.setenv("http_proxy", server.url)
    fetch(tmp_path, Source(official, "x.bin"))
    assert [path for path, _ in server.requests] == [official]


def test_the_others_stop_when_one_fails(server: Server, tmp_path: Path) -> None:
    server.files["/y.bin"] = CONTENT
    server.faults = {"/y.bin": [hangs_after(1_000)], "/x.bin": [status(404)]}
    failed = failure(tmp_path, source(server, "/y.bin"), source(server), options=QUICK)
    assert isinstance(failed, DownloadRefused)
    assert file_names(tmp_path) == ["y.bin.part", "y.bin.part.json"]


# The disk, and other processes


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, or skip where this user may not mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_too_small_is_reported_at_once(server: Server, small_disk: Path) -> None:
    server.files["/x.bin"] = CONTENT * 2
    failed = failure(small_disk, source(server))
    assert isinstance(failed, CannotWrite)
    assert "No space left on device, 6,000,000 bytes are missing" in str(failed)
    assert str(failed).endswith("Received data is kept: rerun the same command to resume")


def test_a_disk_that_fills_up_during_the_download(server: Server, small_disk: Path) -> None:
    def pauses(handler: Handler, content: bytes) -> None:
        handler.begin_file(content)
        handler.wfile.write(content[:1_000_000])
        wait_for(lambda: missing(small_disk) == [(1_000_000, 3_000_000)])
        (small_disk / "ballast").write_bytes(b"\1" * 2_000_000)
        handler.wfile.write(content[1_000_000:])

    server.faults["/x.bin"] = [pauses]
    failed = failure(small_disk, source(server), options=replace(PATIENT, sync_interval=0))
    assert isinstance(failed, CannotWrite)
    assert "No space left on device" in str(failed)
    (small_disk / "ballast").unlink()
    fetch(small_disk, source(server))
    assert (small_disk / "x.bin").read_bytes() == CONTENT
    # On a full disk, what was received since cannot be recorded.
    assert server.ranges("/x.bin") == [WHOLE_RANGE, "bytes=1000000-2999999"]


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
        exclusive_lock(tmp_path / "work"),
        pytest.raises(DownloadBusy, match="another process"),
        exclusive_lock(tmp_path / "work"),
    ):
        pass
    with exclusive_lock(tmp_path / "work"):
        shutil.rmtree(tmp_path / "work")
        with exclusive_lock(tmp_path / "work"):
            assert os.path.exists(tmp_path / "work" / "lock")


def test_a_lock_that_never_stays_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that numbers its files anew each time, no lock is ever found in its place."""
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    with pytest.raises(DownloadBusy), exclusive_lock(tmp_path / "work"):
        pass
