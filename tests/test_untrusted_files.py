"""JSON and zip files from anywhere: what is read, and what is refused without filling the memory."""

import json
import os
import struct
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

import pytest
from running import memory_for_no_more_than

from virnuc_async.fileio import check_zip, read_json


def test_json_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"a": [1, None]}))
    assert read_json(tmp_path / "x.json", 99) == {"a": [1, None]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"\xff", "codec can't decode"),
        (b"9" * 9_999, "digits"),
        (b"[" * 99_999, "it is nested too deeply"),
        (b'{"a":' * 99_999, "it is nested too deeply"),
        (b" " * 100_000 + b"{}" * 900_000, "it holds more than 1,000,000 bytes"),
    ],
)
def test_json_that_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_json(tmp_path / "x.json", 1_000_000)


def test_json_that_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "x.json", 99)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a plain file"):
        read_json(tmp_path / "pipe", 99)


def zip_file(path: Path, compression: int, content: bytes) -> Path:
    with ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"program")
        archive.writestr("archive/data/0", content)
    return path


def test_the_members_of_a_stored_zip_file(tmp_path: Path) -> None:
    path = zip_file(tmp_path / "x.pt", ZIP_STORED, bytes(100))
    for verify in (False, True):
        found = [(member.filename, member.file_size) for member in check_zip(path, verify)]
        assert found == [("archive/data.pkl", 7), ("archive/data/0", 100)]


def test_a_wrong_checksum(tmp_path: Path) -> None:
    path = zip_file(tmp_path / "x.pt", ZIP_STORED, b"0123456789")
    path.write_bytes(path.read_bytes().replace(b"0123456789", b"0123456780", 1))
    assert len(check_zip(path)) == 2
    with pytest.raises(ValueError, match="^damaged: the checksum of archive/data/0 is wrong$"):
        check_zip(path, verify_checksums=True)


def test_a_compressed_member_is_not_unpacked(tmp_path: Path) -> None:
    path = zip_file(tmp_path / "x.pt", ZIP_DEFLATED, bytes(1 << 26))
    assert path.stat().st_size < 1 << 20
    with memory_for_no_more_than(32 << 20), pytest.raises(ValueError, match="^it is compressed"):
        check_zip(path, verify_checksums=True)


def test_a_member_that_claims_to_be_larger_than_the_file(tmp_path: Path) -> None:
    path = zip_file(tmp_path / "x.pt", ZIP_STORED, bytes(100))
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")  # in the directory at the end
    struct.pack_into("<II", content, at + 20, 1 << 31, 1 << 31)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="^its members claim to be larger than the file$"):
        check_zip(path, verify_checksums=True)


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_zip_file(share: float, tmp_path: Path) -> None:
    path = zip_file(tmp_path / "x.pt", ZIP_STORED, bytes(1_000))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(BadZipFile):
        check_zip(path)
