"""Compressed files: detected from their content, in several members, truncated and damaged."""

import gzip
import io
import random
import zlib
from pathlib import Path
from typing import Any

import pytest
from sequence_files import (
    EACH_FORM,
    FORMS,
    Form,
    as_fasta,
    as_fastq,
    read,
    read_until_failure,
    some_records,
)

from virnuc_async.errors import BrokenInput, NotSequences
from virnuc_async.sequences import decompression
from virnuc_async.sequences.decompression import DAMAGED, GzipText, decompressed
from virnuc_async.sequences.fastx import Contig, Limits
from virnuc_async.sequences.inputs import read_contigs


@pytest.mark.parametrize("write", [as_fasta, as_fastq])
@EACH_FORM
def test_compression_is_detected_from_the_content_and_not_the_name(form: Form, write, tmp_path: Path):
    records = some_records(200)
    for name in ("reads.fa", "reads.gz", "reads.zst"):
        path = tmp_path / name
        path.write_bytes(form.pack(write(records)))
        assert list(read_contigs(str(path))) == records
    path = tmp_path / "reads.gz"
    path.write_bytes(write(records))
    assert list(read_contigs(str(path))) == records


@EACH_FORM
def test_several_members_are_one_file(form: Form, tmp_path: Path):
    records = some_records(90)
    text = as_fasta(records)
    path = tmp_path / "reads"
    path.write_bytes(b"".join(form.pack(part) for part in (text[:777], text[777:5_000], text[5_000:])))
    assert list(read_contigs(str(path))) == records


@EACH_FORM
@pytest.mark.parametrize("block", [1, 100])
def test_text_that_unpacks_to_far_more_than_a_block(form: Form, block: int):
    records = [Contig(b"a", b"A" * 9_000), Contig(b"b", b"GT" * 9_000)]
    assert read(form.pack(as_fasta(records)) * 2, Limits(block)) == records * 2


@EACH_FORM
def test_garbage_after_the_last_member(form: Form, tmp_path: Path):
    records = some_records(9)
    path = tmp_path / "reads"
    path.write_bytes(form.pack(as_fasta(records)) + b"something else" * 9)
    found, failure = read_until_failure(path)
    assert found == records[:-1]
    assert isinstance(failure, BrokenInput)


@pytest.mark.parametrize("name", ["gz", "xz"])
def test_padding_after_a_member_is_no_failure(name: str, tmp_path: Path):
    records = some_records(9)
    path = tmp_path / "reads"
    member = FORMS[name].pack(as_fasta(records))
    path.write_bytes(member + bytes(20_000) + member + bytes(4))
    assert list(read_contigs(str(path))) == records * 2


@EACH_FORM
def test_an_empty_compressed_file_has_no_records(form: Form, tmp_path: Path):
    path = tmp_path / "reads"
    path.write_bytes(form.pack(b""))
    assert list(read_contigs(str(path))) == []


@EACH_FORM
def test_standard_input_may_be_compressed(form: Form):
    records = some_records(50)
    assert list(read_contigs("-", stdin=io.BytesIO(form.pack(as_fasta(records))))) == records


# Damaged files


@pytest.mark.parametrize("write", [as_fasta, as_fastq])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@EACH_FORM
def test_a_truncated_file_keeps_all_complete_records(form: Form, share: float, write, tmp_path: Path):
    records = some_records(3_000)
    packed = form.pack(write(records))
    packed = packed[: int(len(packed) * share)]
    text = form.unpacker().decompress(packed)
    # The last record in the text may continue after the break, so it does not count.
    whole = text.count(b"\n>") if write is as_fasta else text.count(b"\n") // 4
    assert whole > 0
    path = tmp_path / "reads"
    path.write_bytes(packed)
    found, failure = read_until_failure(path)
    assert found == records[:whole]
    assert isinstance(failure, BrokenInput)
    assert failure.records == whole
    assert str(failure).startswith(f"{path}: breaks after {whole:,} records: ")
    assert "ended before the end-of-stream marker" in str(failure)


@EACH_FORM
def test_a_corrupted_file_keeps_the_records_before_the_break(form: Form, tmp_path: Path):
    records = some_records(600)
    damaged = form.pack(as_fasta(records[400:]))
    damaged = damaged[: form.header] + b"\xff" * (len(damaged) - form.header)
    path = tmp_path / "reads"
    path.write_bytes(form.pack(as_fasta(records[:200])) + form.pack(as_fasta(records[200:400])) + damaged)
    found, failure = read_until_failure(path)
    assert found == records[:399]  # the 400th might have continued
    assert isinstance(failure, BrokenInput)
    assert failure.records == 399
    assert len(failure.reason) > len("breaks after 399 records: ")


@EACH_FORM
@pytest.mark.parametrize("size", [3, 8, 14])
def test_a_file_that_breaks_in_its_first_bytes(form: Form, size: int, tmp_path: Path):
    path = tmp_path / "reads"
    path.write_bytes(form.pack(as_fasta(some_records(9)))[: max(size, form.header // 2)])
    found, failure = read_until_failure(path)
    assert found == []
    assert isinstance(failure, BrokenInput | NotSequences)


def test_a_wrong_checksum_is_a_break(tmp_path: Path):
    records = some_records(5)
    packed = bytearray(gzip.compress(as_fasta(records)))
    packed[-8] ^= 1
    path = tmp_path / "reads.gz"
    path.write_bytes(packed)
    found, failure = read_until_failure(path)
    assert found == records[:4]
    assert "CRC check failed" in str(failure)


class InPieces(io.RawIOBase):
    """A file of which a read returns *size* bytes at most."""

    def __init__(self, content: bytes, size: int) -> None:
        self._file, self._size = io.BytesIO(content), size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(memoryview(buffer)[: self._size])


def text_and_error(raw: io.BufferedReader, size: int = 1 << 18) -> tuple[bytes, str | None]:
    """Return all text in *raw*, *size* bytes at a time, and what is said where it breaks."""
    text = []
    try:
        with decompressed(raw) as stream:
            while block := stream.read1(size):
                text.append(block)
    except DAMAGED as error:
        return b"".join(text), str(error)
    return b"".join(text), None


def damage(packed: bytes, rng: random.Random) -> bytes:
    """Return *packed*, behind its first bytes, with a bit that is another, cut, or with more at its end."""
    at, kind = rng.randrange(6, len(packed)), rng.random()
    if kind < 0.6:
        return packed[:at] + bytes([packed[at] ^ 1 << rng.randrange(8)]) + packed[at + 1 :]
    return packed[:at] if kind < 0.9 else packed + b"what is this?"[: rng.randint(1, 9)]


@EACH_FORM
def test_what_comes_before_a_break_does_not_depend_on_how_it_is_read(form: Form):
    rng = random.Random(4)
    for count in (3, 40, 200, 300):
        text = as_fastq(some_records(count, seed=count))
        packed = damage(form.pack(text) + form.pack(text[:999]), rng)
        found, error = text_and_error(io.BufferedReader(io.BytesIO(packed)))
        for piece, size in ((7, 100), (777, 9), (4096, 3000), (1 << 20, 77)):
            raw = io.BufferedReader(InPieces(packed, piece), 100 * piece)
            assert text_and_error(raw, size) == (found, error)


def test_of_gzip_all_is_read_that_comes_before_a_break():
    text = as_fastq(some_records(300))
    packed = gzip.compress(text)
    # A block of a kind that there is none of, behind the data in one that is complete.
    packer = zlib.compressobj(wbits=31)
    damaged = packer.compress(text) + packer.flush(zlib.Z_FULL_FLUSH) + b"\x07" + packed
    assert text_and_error(io.BufferedReader(io.BytesIO(damaged))) == (
        text,
        "Error -3 while decompressing data: invalid block type",
    )
    for at, says in ((-8, "CRC check failed"), (-1, "Incorrect length of data produced")):
        damaged = bytearray(packed)
        damaged[at] ^= 1
        assert text_and_error(io.BufferedReader(io.BytesIO(damaged))) == (text, says)
    assert text_and_error(io.BufferedReader(io.BytesIO(packed + b"\0\0more"))) == (
        text,
        "Not a gzipped file (b'mo')",
    )


def test_a_place_is_in_the_member_that_the_text_is_in():
    texts = [as_fasta(some_records(count, seed=count)) for count in (9, 0, 90, 1)]
    members = [gzip.compress(text) for text in texts]
    members.insert(1, bytes(99))
    packed = b"".join(members)
    stream = GzipText(io.BufferedReader(io.BytesIO(packed)))
    while stream.read1(1000):
        pass
    text, offsets = b"".join(texts), set()
    for position in range(0, len(text), 77):
        offset, skip = stream.place(position)
        offsets.add(offset)
        raw = io.BufferedReader(io.BytesIO(packed))
        raw.seek(offset)
        assert text_and_error(raw) == (text[position - skip :], None)
    assert offsets == {0, sum(map(len, members[:3])), sum(map(len, members[:4]))}


def test_damage_is_the_same_with_zlib_ng_and_without(monkeypatch: pytest.MonkeyPatch):
    assert decompression.zlib_ng
    rng = random.Random(6)
    members = [
        gzip.compress(as_fastq(some_records(count, seed=count)), count % 10) for count in (1, 5, 29, 96)
    ]
    for _ in range(150):
        damaged = damage(b"".join(rng.choices(members, k=3)), rng)
        size = rng.choice([10, 1000, 1 << 18])
        fast = text_and_error(io.BufferedReader(io.BytesIO(damaged)), size)
        with monkeypatch.context() as context:
            context.setattr(decompression, "zlib_ng", None)
            assert text_and_error(io.BufferedReader(io.BytesIO(damaged)), size) == fast


def test_what_can_be_read_twice_is_decompressed_by_zlib_ng():
    packed = gzip.compress(as_fastq(some_records(90)))
    for raw, name in ((io.BytesIO(packed), "zlib_ng"), (InPieces(packed, 999), "zlib")):
        stream = GzipText(io.BufferedReader(raw))
        assert stream.read1(4) == b"@r0\n"
        assert type(stream._inflate).__module__.partition(".")[0] == name
