"""Read-ahead: the same bytes and errors as reading directly, bounded, and ended at once."""

import asyncio
import gzip
import io
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from fakes import Rules, fake_devices
from hypothesis import given
from hypothesis import strategies as st
from running import OPEN, SHUT
from sequence_files import as_fasta, as_fastq, some_records
from support import TABLES, fasta

from virnuc_async.errors import InputError
from virnuc_async.models.bundle import find
from virnuc_async.pipeline import execute
from virnuc_async.runs.plan import Plan
from virnuc_async.sequences.fastx import Contig
from virnuc_async.sequences.inputs import OpenFile, open_file, read_contigs
from virnuc_async.sequences.readahead import ReadAhead
from virnuc_async.settings import Settings
from virnuc_async.text import plural

BLOCK = 64  # bytes
SECONDS = 10.0  # after which a test has failed that waits for something


@asynccontextmanager
async def running(ahead: ReadAhead) -> AsyncIterator[None]:
    """Run *ahead* until the end of the block, and check that it leaves no task."""
    before = asyncio.all_tasks()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ahead.run)
        await anyio.lowlevel.checkpoint()
        yield
        tasks.cancel_scope.cancel()
    assert asyncio.all_tasks() <= before


def until(holds: Callable[[], bool]) -> None:
    """Wait in a thread until something holds."""
    give_up = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.001)


def open_files(directory: Path) -> list[str]:
    """Return the files in *directory* that are open; one closed during a read is open to the end of it."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith(str(directory)):
            found.append(target)
    return found


def written(directory: Path, contents: Sequence[bytes]) -> list[str]:
    paths = [directory / f"{number}.fa" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return list(map(str, paths))


def content_of(path: str, open_file: OpenFile, size: int = 50) -> bytes:
    with open_file(path) as file:
        return b"".join(iter(partial(file.read1, size), b""))


def contigs_of(paths: Sequence[str], open_file: OpenFile) -> list[list[Contig] | str]:
    """Read *paths* in order; a file that fails is followed by its error."""
    found: list[list[Contig] | str] = []
    for path in paths:
        found.append([])
        try:
            found[-1] += read_contigs(path, open_file=open_file)
        except InputError as error:
            found.append(str(error))
    return found


class Disk:
    """Opens files whose reads are counted, and may be stopped before a read."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.reads: dict[str, int] = {}  # that returned something, of each path
        self.goes = threading.Event()
        self.goes.set()
        self.fails: dict[str, int] = {}  # path -> the read that fails

    def open(self, path: str) -> io.BufferedReader:
        self.opened.append(path)
        return io.BufferedReader(_Counted(path, self), BLOCK)


class _Counted(io.FileIO):
    def __init__(self, path: str, disk: Disk) -> None:
        super().__init__(path)
        self._path, self._disk = path, disk
        disk.reads[path] = 0

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        assert self._disk.goes.wait(SECONDS)
        if self._disk.fails.get(self._path) == self._disk.reads[self._path]:
            raise OSError(5, "Input/output error")
        size = super().readinto(buffer)
        self._disk.reads[self._path] += bool(size)
        return size


# The same bytes


@given(
    sizes=st.lists(
        st.sampled_from([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 9 * BLOCK + 7]), max_size=6
    ),
    files=st.integers(1, 4),
    blocks=st.integers(1, 3),
    read_size=st.sampled_from([1, 50, BLOCK, 1000]),
)
def test_the_bytes_are_those_of_the_files(
    sizes: list[int], files: int, blocks: int, read_size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    paths = written(tmp_path_factory.mktemp("files"), [os.urandom(size) for size in sizes])
    ahead = ReadAhead(paths, files=files, blocks=blocks, block_bytes=BLOCK)

    async def read() -> list[bytes]:
        async with running(ahead):
            return [await to_thread.run_sync(content_of, path, ahead.open, read_size) for path in paths]

    assert asyncio.run(read()) == [Path(path).read_bytes() for path in paths]


async def test_contigs_of_plain_and_compressed_files_and_an_empty_one(tmp_path: Path) -> None:
    records = some_records(2_000)
    contents = [
        as_fasta(records),
        b"",
        gzip.compress(as_fastq(records)),
        as_fastq(records[:3]),
        gzip.compress(as_fasta(records))[:-100],
    ]
    paths = written(tmp_path, contents)
    ahead = ReadAhead(paths, blocks=2, block_bytes=1000)
    async with running(ahead):
        found = await to_thread.run_sync(contigs_of, paths, ahead.open)
    assert found == contigs_of(paths, open_file)
    assert found[:4] == [records, [], records, records[:3]]
    await to_thread.run_sync(until, lambda: not open_files(tmp_path))


async def test_many_small_files(tmp_path: Path) -> None:
    paths = written(tmp_path, [b">r%d\nACGT\n" % number for number in range(300)])
    disk = Disk()
    ahead = ReadAhead(paths, open_file=disk.open)
    async with running(ahead):
        found = await to_thread.run_sync(contigs_of, paths, ahead.open)
    assert found == [[Contig(b"r%d" % number, b"ACGT")] for number in range(300)]
    assert sorted(disk.opened) == sorted(paths)  # each of them once
    await to_thread.run_sync(until, lambda: not open_files(tmp_path))


async def test_the_same_file_twice(tmp_path: Path) -> None:
    (path,) = written(tmp_path, [b">a\nACGT\n" * 100])
    ahead = ReadAhead([path, "-", path], block_bytes=BLOCK)
    async with running(ahead):
        found = [await to_thread.run_sync(content_of, path, ahead.open) for _ in range(2)]
    assert found == [Path(path).read_bytes()] * 2


# How much is in memory


async def test_no_more_blocks_are_in_memory_than_allowed(tmp_path: Path) -> None:
    paths = written(tmp_path, [bytes(40 * BLOCK)] * 6)
    disk, files, blocks = Disk(), 3, 4

    def read_slowly() -> None:
        for number, path in enumerate(paths):
            begun = paths[number : number + files]
            with ahead.open(path) as file:
                for used in range(40):
                    # As far ahead as it may be, and never farther: each block is awaited.
                    most = [min(40, used + blocks), *[blocks] * files][: len(begun)]
                    until(lambda begun=begun, most=most: [disk.reads.get(one) for one in begun] == most)
                    assert not any(one in disk.opened for one in paths[number + files :])
                    assert len(file.read1(BLOCK)) == BLOCK

    ahead = ReadAhead(paths, files=files, blocks=blocks, block_bytes=BLOCK, open_file=disk.open)
    async with running(ahead):
        await to_thread.run_sync(read_slowly)
    await to_thread.run_sync(until, lambda: not open_files(tmp_path))


async def test_the_next_files_are_begun_early(tmp_path: Path) -> None:
    paths = written(tmp_path, [bytes(9 * BLOCK)] * 5)
    disk = Disk()
    ahead = ReadAhead(paths, files=3, blocks=2, block_bytes=BLOCK, open_file=disk.open)

    def look() -> None:
        with ahead.open(paths[0]):
            until(lambda: [disk.reads.get(path) for path in paths[:3]] == [2, 2, 2])
        assert set(disk.opened) == set(paths[:3])

    async with running(ahead):
        await anyio.sleep(0.01)
        assert disk.opened == []  # a run that reads nothing reads nothing ahead
        await to_thread.run_sync(look)
    await to_thread.run_sync(until, lambda: not open_files(tmp_path))


# Errors


async def test_errors_come_in_their_turn(tmp_path: Path) -> None:
    paths = written(tmp_path, [as_fasta(some_records(9)), b">a\nAC\n", b"hello\n", b">b\nGT\n"])
    os.remove(paths[1])
    (tmp_path / "folder").mkdir()
    paths += [str(tmp_path / "folder"), f"{tmp_path}/zero\0byte.fa", "/dev/null", paths[3]]
    ahead = ReadAhead(paths, block_bytes=BLOCK)
    async with running(ahead):
        found = await to_thread.run_sync(contigs_of, paths, ahead.open)
    assert found == contigs_of(paths, open_file)
    assert f"{paths[1]}: No such file or directory" in found
    await to_thread.run_sync(until, lambda: not open_files(tmp_path))


@pytest.mark.parametrize("number", [0, 1, 2, 5, 12])
async def test_a_read_error_comes_after_what_was_read_before(number: int, tmp_path: Path) -> None:
    records = some_records(9)
    paths = written(tmp_path, [as_fasta(records)] * 2)
    disk = Disk()
    disk.fails[paths[0]] = number
    ahead = ReadAhead(paths, block_bytes=BLOCK, open_file=disk.open)
    async with running(ahead):
        before, error, after = await to_thread.run_sync(contigs_of, paths, ahead.open)
    complete = as_fasta(records)[: number * BLOCK].count(b"\n>")
    assert before == records[:complete]
    expected = (
        f"breaks after {plural(complete, 'record')}: Input/output error" if number else "Input/output error"
    )
    assert error == f"{paths[0]}: {expected}"
    assert after == records


async def test_a_pipe_is_not_opened_before_its_turn(tmp_path: Path) -> None:
    (path,) = written(tmp_path, [b">a\nACGT\n"])
    pipe = str(tmp_path / "pipe.fa")
    os.mkfifo(pipe)
    disk = Disk()
    ahead = ReadAhead([path, pipe], open_file=disk.open)

    def read() -> list[list[Contig] | str]:
        first = contigs_of([path], ahead.open)
        assert disk.opened == [path]
        writer = threading.Thread(target=lambda: Path(pipe).write_bytes(b">b\nGT\n"))
        writer.start()
        second = contigs_of([pipe], ahead.open)
        writer.join()
        return first + second

    async with running(ahead):
        found = await to_thread.run_sync(read)
    assert found == [[Contig(b"a", b"ACGT")], [Contig(b"b", b"GT")]]


# Files that change


async def test_a_file_that_changes_before_its_turn_is_read_again(tmp_path: Path) -> None:
    paths = written(tmp_path, [b">a\nAC\n", b">b\nAC\n", b">c\nAC\n"])
    disk = Disk()
    ahead = ReadAhead(paths, open_file=disk.open)

    def read() -> list[list[Contig] | str]:
        with ahead.open(paths[0]):
            until(lambda: disk.reads.get(paths[1]) == 1 and disk.reads.get(paths[2]) == 1)
        Path(paths[1]).write_bytes(b">new\nGTGT\n")
        os.remove(paths[2])
        return contigs_of(paths[1:], ahead.open)

    async with running(ahead):
        found = await to_thread.run_sync(read)
    assert found == [[Contig(b"new", b"GTGT")], [], f"{paths[2]}: No such file or directory"]
    await to_thread.run_sync(until, lambda: not open_files(tmp_path))


async def test_a_file_that_changes_while_it_is_read_is_broken(tmp_path: Path) -> None:
    paths = written(tmp_path, [as_fasta(some_records(90))])
    ahead = ReadAhead(paths, block_bytes=BLOCK)

    def read() -> None:
        contigs = read_contigs(paths[0], open_file=ahead.open)
        next(contigs)
        with open(paths[0], "ab") as file:
            file.write(b">more\nAC\n")
        with pytest.raises(InputError, match="it changed while it was being read"):
            list(contigs)

    async with running(ahead):
        await to_thread.run_sync(read)


# Its end


async def test_a_file_may_be_closed_early(tmp_path: Path) -> None:
    paths = written(tmp_path, [bytes(100 * BLOCK)] * 3)
    ahead = ReadAhead(paths, block_bytes=BLOCK)

    def read() -> bytes:
        for path in paths[:2]:
            with ahead.open(path) as file:
                assert file.read1(9) == bytes(9)
            until(lambda path=path: path not in open_files(tmp_path))
        return content_of(paths[2], ahead.open)

    async with running(ahead):
        assert await to_thread.run_sync(read) == bytes(100 * BLOCK)


async def test_cancellation_does_not_wait_for_a_read(tmp_path: Path) -> None:
    paths = written(tmp_path, [bytes(100 * BLOCK)] * 3)
    disk = Disk()
    ahead = ReadAhead(paths, block_bytes=BLOCK, open_file=disk.open)
    begun = threading.Event()

    def read() -> None:
        with ahead.open(paths[0]) as file:
            disk.goes.clear()
            begun.set()
            while file.read1(BLOCK):
                pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ahead.run)
        await anyio.lowlevel.checkpoint()
        tasks.start_soon(partial(to_thread.run_sync, read, abandon_on_cancel=True))
        await to_thread.run_sync(begun.wait)
        await anyio.sleep(0.01)
        start = time.monotonic()
        tasks.cancel_scope.cancel()
    assert time.monotonic() - start < SECONDS / 2
    assert len(asyncio.all_tasks()) == 1
    disk.goes.set()
    await to_thread.run_sync(until, lambda: not open_files(tmp_path))
    await to_thread.run_sync(until, lambda: not _threads())


def _threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("read ahead", "close"))]


async def test_without_its_task_files_are_read_directly(tmp_path: Path) -> None:
    paths = written(tmp_path, [b">a\nAC\n", b">b\nAC\n"])
    ahead = ReadAhead(paths)
    before = contigs_of(paths, ahead.open)
    async with running(ahead):
        inside = contigs_of(paths, ahead.open)  # in the loop's own thread, which must not wait for itself
    after = await to_thread.run_sync(contigs_of, paths, ahead.open)
    assert before == inside == after == contigs_of(paths, open_file)


# A whole run


async def test_tables_of_a_run_that_reads_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [
        fasta((f"f{file}r{number}", SHUT if number % 5 else OPEN * 5) for number in range(200)).encode()
        for file in range(6)
    ]
    contents[2] = gzip.compress(contents[2])
    contents[4] = b"not a sequence\n"
    paths = written(tmp_path, contents)
    plan = Plan(tuple(paths), Settings(), find("tiny-500"), fake_devices(2), window=20)
    for name, kind in (
        ("ahead", partial(ReadAhead, files=3, blocks=2, block_bytes=1000)),
        ("direct", Direct),
    ):
        monkeypatch.setattr("virnuc_async.pipeline.ReadAhead", kind)
        await execute(plan, tmp_path / name, Rules().scorer)
    for name in (*TABLES, "failed_files.txt"):
        assert (tmp_path / "ahead" / name).read_bytes() == (tmp_path / "direct" / name).read_bytes()
    assert len((tmp_path / "ahead" / "contigs.tsv").read_bytes().splitlines()) == 1 + 5 * 200
    await to_thread.run_sync(until, lambda: not set(open_files(tmp_path)) & set(paths))


class Direct(ReadAhead):
    """Reads nothing ahead."""

    def open(self, path: str) -> io.BufferedReader:
        return open_file(path)
