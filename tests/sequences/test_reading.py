"""How far the inputs are read, in bytes of their files."""

import gzip
import lzma
import os
import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from virnuc_async.models.bundle import find
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.readahead import ReadAhead
from virnuc_async.sequences.reading import FileKind, Place, Reading
from virnuc_async.sequences.segments import ALL, START, InputSpan, SeekPoint
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.sequences.windows import Cut, Window, form_windows

LENGTH = 500


def bases(count: int, seed: int = 0) -> bytes:
    return bytes(random.Random(seed).choices(b"ACG", k=count))  # without a stop


def windows(paths: list[Path], size: int = 400, span: InputSpan = ALL) -> list[Window]:
    reading, names = Reading(), [str(path) for path in paths]
    read = partial(read_contigs, open_file=reading.watch(partial(open, mode="rb")))
    tokenizer = OrfTokenizer(find("tiny-500").tokenizer())
    return list(form_windows(names, read, Cut(LENGTH, size), tokenizer, reading, span))


def fasta(records: int, each: int) -> bytes:
    return b"".join(b">contig_%d\n%b\n" % (number, bases(each, number)) for number in range(records))


def fastq(records: int, each: int) -> bytes:
    letters = random.Random(1)
    return b"".join(
        b"@read_%d\n%b\n+\n%b\n" % (number, bases(each, number), bytes(letters.choices(b"FGHI:,", k=each)))
        for number in range(records)
    )


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("a.fa", FileKind(False, False, 1.0)),
        ("b.FASTA", FileKind(False, False, 1.0)),
        ("c.fq", FileKind(False, True, 1.9)),
        ("c.fastq.gz", FileKind(True, True, 1.9 * 0.27)),
        ("c.fa.zst", FileKind(True, False, 0.27)),
        ("d.bam", FileKind(False, True, 0.6)),
        ("e", FileKind(False, False, 1.0)),
        ("-", FileKind(False, False, 1.0)),
    ],
)
def test_the_kind_of_a_file(path: str, kind: FileKind) -> None:
    assert FileKind.of(path) == kind


def test_between_two_places() -> None:
    assert Place(1, 100.0).towards(Place(1, 200.0), 0.25) == Place(1, 125.0)
    assert Place(1, 100.0).towards(Place(2, 200.0), 0.25) == Place(1, 100.0)


@pytest.mark.parametrize(
    ("make", "pack", "suffix"),
    [
        (partial(fasta, 700, 1000), bytes, ".fa"),
        (partial(fasta, 700, 1000), gzip.compress, ".fa.gz"),
        (partial(fasta, 700, 1000), partial(lzma.compress, preset=1), ".fa.xz"),
        (partial(fastq, 2500, 150), bytes, ".fq"),
        (partial(fastq, 2500, 150), gzip.compress, ".fq.gz"),
    ],
    ids=["fa", "fa.gz", "fa.xz", "fq", "fq.gz"],
)
def test_a_place_is_where_the_records_of_a_window_are_from(
    make: Callable[[], bytes], pack: Callable[[bytes], bytes], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"in{suffix}"
    path.write_bytes(pack(make()))
    formed = windows([path])
    size, whole = path.stat().st_size, sum(len(window.origins) for window in formed)
    # These have as many ORFs a byte from the first to the last.
    read = 0
    assert len(formed) > 20
    for window in formed[:-1]:
        read += len(window.origins)
        assert window.place.file == 0
        assert window.place.offset / size == pytest.approx(read / whole, abs=0.08)
    assert formed[-1].place == Place(1)
    places = [window.place for window in formed]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("pack", "has_place"), [(bytes, True), (partial(gzip.compress, compresslevel=1), False)]
)
def test_what_is_read_of_a_part_begins_with_its_first_record(
    pack: Callable[[bytes], bytes], has_place: bool, tmp_path: Path
) -> None:
    """Of the rest of a file, whether it is found by its place or behind all that is before it."""
    letters = [bases(1000, seed) for seed in range(50)]
    text = b"".join(b">contig_%d\n%b\n" % (number, letters[number % 50]) for number in range(3000))
    path = tmp_path / "in.fa"
    path.write_bytes(pack(text))
    begin = text.index(b">contig_2399\n")
    place = (begin, 0) if pack is bytes else (0, begin)
    seek = SeekPoint(2399, *place, 2 * 2399 + 1) if has_place else START
    formed = windows([path], 1000, InputSpan(0, 2400, 0, 2400, seek))
    assert formed[0].contigs[0].id == b"contig_2400"
    shares = [window.place.offset / path.stat().st_size for window in formed[:-1]]
    expected = [0.2 * number / len(formed) for number in range(1, len(formed))]
    # What is read at a time, and not yet parsed, is a good part of such a small file.
    assert shares == pytest.approx(expected, abs=0.4)
    assert formed[-1].place == Place(1)


def test_a_long_record_is_read_as_its_windows_are_formed(tmp_path: Path) -> None:
    path = tmp_path / "one.fa"
    path.write_bytes(b">one\n" + bases(400_000) + b"\n")
    formed = windows([path])
    shares = [window.place.offset / path.stat().st_size for window in formed[:-1]]
    whole = sum(len(window.origins) for window in formed)
    done = [
        sum(len(window.origins) for window in formed[:number]) / whole for number in range(1, len(formed))
    ]
    assert shares == pytest.approx(done, abs=0.02)


def test_small_files_are_counted(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.fa" for number in range(60)]
    for number, path in enumerate(paths):
        path.write_bytes(fasta(2 + number % 3, 700))
    formed = windows(paths, size=60)
    ends = [
        max((file.number + 1 for window in formed[:at] for file in window.files), default=0)
        for at in range(1, 9)
    ]
    assert [window.place.file for window in formed[:8]] == ends
    assert formed[-1].place == Place(60)


def test_files_after_one_that_breaks_are_counted_from_their_beginnings(tmp_path: Path) -> None:
    broken, good = tmp_path / "a.fa.gz", tmp_path / "b.fa"
    broken.write_bytes(gzip.compress(fasta(400, 1000))[:-40_000])
    good.write_bytes(fasta(400, 1000))
    formed = windows([broken, good])
    of_good = [window.place for window in formed if window.place.file == 1]
    assert of_good[0].offset < 0.2 * good.stat().st_size
    assert of_good == sorted(of_good)


def test_a_pipe_has_no_place(tmp_path: Path) -> None:
    pipe = tmp_path / "in.fa"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(fasta(400, 1000),))
    writer.start()
    formed = windows([pipe])
    writer.join()
    assert [window.place for window in formed] == [Place(0)] * (len(formed) - 1) + [Place(1)]


async def test_it_is_the_same_with_files_that_are_read_ahead(tmp_path: Path) -> None:
    path = tmp_path / "in.fa"
    path.write_bytes(fasta(400, 1000))
    ahead, reading = ReadAhead([str(path)]), Reading()
    read = partial(read_contigs, open_file=reading.watch(ahead.open))
    formed = form_windows(
        [str(path)], read, Cut(LENGTH, 400), OrfTokenizer(find("tiny-500").tokenizer()), reading
    )

    def places(windows: Iterator[Window]) -> list[Place]:
        return [window.place for window in windows]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ahead.run)
        found = await to_thread.run_sync(places, formed)
        tasks.cancel_scope.cancel()
    expected = places(iter(windows([path])))
    assert [place.file for place in found] == [place.file for place in expected]
    # The file is one block then, and not two.
    assert [place.offset for place in found] == pytest.approx([place.offset for place in expected], rel=0.02)
