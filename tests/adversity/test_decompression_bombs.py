"""Files that unpack to far more than they are: what is read of them, and what it costs."""

import bz2
import gzip
import lzma
import struct
import sys
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from running import python

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1 << 20

Pack = Callable[[bytes], bytes]
FORMS: dict[str, Pack] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
}
EACH_FORM = pytest.mark.parametrize("pack", FORMS.values(), ids=FORMS.keys())

READ = """
from virnuc_async.errors import InputError
from virnuc_async.sequences.fastx import Limits
from virnuc_async.sequences.inputs import read_contigs

limits = Limits(record={limit}) if {limit} else Limits()
count, failure = 0, None
try:
    for contig in read_contigs({path!r}, limits=limits):
        count += 1
except InputError as error:
    failure = error
with open("/proc/self/status") as status:
    peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
print(count, type(failure).__name__, peak)
print(failure)
"""


class Reading(NamedTuple):
    """How it went to read a file in a process of its own."""

    records: int
    failure: str
    peak: int  # bytes of memory
    said: str


def reading(path: Path, limit: int = 0) -> Reading:
    facts, _, said = python(READ.format(path=str(path), limit=limit)).partition("\n")
    count, failure, peak = facts.split()
    return Reading(int(count), failure, int(peak) * 1024, said.strip())


@cache
def small_file() -> int:
    """Return the memory, in bytes, that it takes here to read a small file, and some more for any form."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "small"
        path.write_bytes(gzip.compress(b">a\nAC\n"))
        return reading(path).peak + 16 * MIB


def bomb(path: Path, pack: Pack, begin: bytes, endless: bytes, mebibytes: int) -> Path:
    """Write a file that is small and unpacks to *begin* and then *mebibytes* of *endless*."""
    part = pack(endless * (16 * MIB // len(endless)))
    with open(path, "wb") as file:
        file.write(pack(begin))
        for _ in range(mebibytes // 16):
            file.write(part)
    return path


@pytest.mark.parametrize("letter", [b"\0", b"A"])
@EACH_FORM
def test_what_is_no_record_is_refused_by_its_first_letter(pack: Pack, letter: bytes, tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb", pack, letter, letter, mebibytes=2048)
    assert path.stat().st_size < 6 * MIB
    found = reading(path)
    assert (found.records, found.failure) == (0, "NotSequences")
    assert found.said.endswith(f"saw {letter.decode() * 30!r}")
    assert found.peak < small_file()


@EACH_FORM
def test_one_member_of_nothing_but_zeros(pack: Pack, tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(pack(bytes(64 * MIB)))
    found = reading(path)
    assert (found.records, found.failure) == (0, "NotSequences")
    assert found.peak < small_file()


SHAPES = {
    "bases in one line": (b">a\nAC\n>b\n", b"A"),
    "bases in short lines": (b">a\nAC\n>b\n", b"A\n"),
    "a header": (b">a\nAC\n>", b"h"),
    "a header of its marks": (b">a\nAC\n>", b">"),
    "a read": (b"@a\nAC\n+\nII\n@b\n", b"A"),
    "a quality line": (b"@a\nAC\n+\nII\n@b\nA\n+\n", b"I"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_record_without_end_is_not_gathered(shape: str, tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb", gzip.compress, *SHAPES[shape], mebibytes=128)
    found = reading(path, limit=4 * MIB)
    assert (found.records, found.failure) == (1, "TooLarge")
    assert found.said.startswith(
        f"{path}: line {3 if b'>' in SHAPES[shape][0] else 5}: a record of more than"
    )
    assert found.peak < small_file() + 16 * MIB


@EACH_FORM
def test_a_record_without_end_in_every_form(pack: Pack, tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb", pack, b">a\n", b"ACGT", mebibytes=64)
    found = reading(path, limit=16 * MIB)
    assert (found.records, found.failure) == (0, "TooLarge")
    assert found.peak < small_file() + 3 * 16 * MIB


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["gz", "zst"])
def test_a_record_without_end_by_the_real_limit(name: str, tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb", FORMS[name], b">a\nAC\n>b\n", b"ACGT", mebibytes=10_240)
    found = reading(path)
    assert (found.records, found.failure) == (1, "TooLarge")
    assert "line 3: a record of more than 1,073,741,824 letters" in found.said
    assert found.peak < small_file() + 1.5 * 1024 * MIB


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("letter", [b"\n", b" "])
@EACH_FORM
def test_blanks_without_end_before_a_record(pack: Pack, letter: bytes, tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb", pack, b"", letter, mebibytes=1024)
    with open(path, "ab") as file:
        file.write(pack(b"\n>a\nAC\n"))
    found = reading(path)
    assert (found.records, found.failure) == (1, "NoneType")
    assert found.peak < small_file()


@EACH_FORM
def test_empty_members_are_passed_over(pack: Pack, tmp_path: Path) -> None:
    path = tmp_path / "reads"
    path.write_bytes(pack(b">a\n") + pack(b"") * 50_000 + pack(b"AC\n"))
    found = reading(path)
    assert (found.records, found.failure) == (1, "NoneType")
    assert found.peak < small_file()


@EACH_FORM
def test_members_of_one_letter_each(pack: Pack, tmp_path: Path) -> None:
    path = tmp_path / "reads"
    path.write_bytes(pack(b">a\n") + pack(b"A") * 50_000)
    found = reading(path, limit=10_000)
    assert (found.records, found.failure) == (0, "TooLarge")
    assert found.peak < small_file()


@pytest.mark.parametrize("inner", FORMS.values(), ids=FORMS.keys())
def test_what_is_compressed_twice_is_not_unpacked_twice(inner: Pack, tmp_path: Path) -> None:
    path = tmp_path / "reads"
    path.write_bytes(gzip.compress(inner(b">a\nAC\n")))
    assert reading(path).failure == "NotSequences"


def xz_with_dictionary(size: int) -> bytes:
    """Pack a record in a file that asks for a dictionary of *size*, a power of two, to be unpacked."""
    packed = bytearray(lzma.compress(b">a\nAC\n"))
    end = 12 + (packed[12] + 1) * 4
    packed[packed.index(b"\x21\x01", 12, end) + 2] = 2 * (size.bit_length() - 13)
    packed[end - 4 : end] = struct.pack("<I", zlib.crc32(packed[12 : end - 4]))
    return bytes(packed)


def zst_with_window(exponent: int, eighths: int = 0) -> bytes:
    """Pack a record in a frame that asks for a window of 2**exponent bytes, and eighths of that."""
    text = b">a\nAC\n"
    block = struct.pack("<I", len(text) << 3 | 1)[:3]  # the last one, stored
    return b"\x28\xb5\x2f\xfd\0" + bytes([(exponent - 10) << 3 | eighths]) + block + text


@pytest.mark.parametrize(
    ("content", "records", "said"),
    [
        (xz_with_dictionary(1 << 29), 1, "None"),
        (xz_with_dictionary(1 << 30), 0, "Memory usage limit exceeded"),
        (xz_with_dictionary(1 << 31), 0, "Memory usage limit exceeded"),
        (zst_with_window(27), 1, "None"),
        (zst_with_window(31), 1, "None"),
        (zst_with_window(31, 1), 0, "Frame requires too much memory for decoding"),
        (zst_with_window(40), 0, "Frame requires too much memory for decoding"),
    ],
)
def test_a_file_cannot_ask_for_any_amount_of_memory(
    content: bytes, records: int, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "reads"
    path.write_bytes(content)
    found = reading(path)
    assert found.records == records
    assert said in found.said
    assert found.peak < small_file()  # what is asked for is not touched before it is filled
