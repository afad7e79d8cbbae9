"""Files of all shards as one: their rows, as they are, one behind the other or merged by their order."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from virnuc_async.errors import ShardsMissing
from virnuc_async.fileio import open_nofollow
from virnuc_async.outputs.columns import Chunks, encode_lines
from virnuc_async.outputs.region_tables import numbered_on
from virnuc_async.outputs.shard_file import RowFile
from virnuc_async.outputs.sorting import merge_sorted

from .finished_shards import FinishedShard

_BLOCK_BYTES = 4 << 20  # that are copied at a time
_READ_AHEAD = 16 << 20  # bytes of sorted files, which take some five times of it as lines
_MIN_PIECE = 1 << 14  # bytes of a sorted file that are in memory at a time, at least


@dataclass(frozen=True, slots=True)
class ShardRowFile:
    """The file *name* of a shard, as it was written."""

    run: Path
    shard: FinishedShard
    name: str

    @property
    def _known(self) -> RowFile:
        return self.shard.known.files[self.name]

    def blocks(self, size: int = _BLOCK_BYTES) -> Chunks:
        """
        Yield its content, *size* bytes at a time.

        Raises:
            ShardsMissing: it is not what was written, or cannot be read
        """
        checksum = total = 0
        try:
            with open(self.shard.directory / self.name, "rb", 0, opener=open_nofollow) as file:
                while block := file.read(size):
                    checksum, total = crc32(block, checksum), total + len(block)
                    yield block
        except OSError as error:
            raise self._problem(f"cannot be read: {error.strerror}") from error
        if (total, checksum) != self._known:
            raise self._problem("has changed: run it again")

    def _problem(self, what: str) -> ShardsMissing:
        return ShardsMissing(str(self.run), [f"shard {self.shard.shard}: its {self.name} {what}"])


def files_of(run: Path, shards: Sequence[FinishedShard], name: str) -> list[ShardRowFile]:
    """
    Return the file *name* of each of *shards*.

    Raises:
        ShardsMissing: one was not written
    """
    lacking = [shard for shard in shards if name not in shard.known.files]
    if lacking:
        raise ShardsMissing(
            str(run), [f"shard {shard.shard}: has no {name}: run it again" for shard in lacking]
        )
    return [ShardRowFile(run, shard, name) for shard in shards]


def concatenated(files: Sequence[ShardRowFile], header_lines: int, block_bytes: int = _BLOCK_BYTES) -> Chunks:
    """Yield the rows of all *files*, behind the header of the first one."""
    for number, file in enumerate(files):
        with closing(_without_header(file.blocks(block_bytes), header_lines)) as blocks:
            header = next(blocks)
            if not number:
                yield header
            yield from blocks


def concatenated_regions(
    files: Sequence[ShardRowFile], header_lines: int, block_bytes: int = _BLOCK_BYTES
) -> Chunks:
    """Yield what :func:`concatenated` does, of tables of regions: these are numbered through."""
    first = 1
    with closing(concatenated(files, header_lines, block_bytes)) as blocks:
        for lines in _whole_lines(blocks):
            text, found = numbered_on(lines, first)
            first += found
            yield text


def _without_header(blocks: Chunks, lines: int) -> Chunks:
    """Yield the first *lines* of a file, and then the rest of it, block by block."""
    with closing(blocks):
        begin = b""
        while begin.count(b"\n") < lines:
            begin += next(blocks)
        end = 0
        for _ in range(lines):
            end = begin.index(b"\n", end) + 1
        yield begin[:end]
        if begin[end:]:
            yield begin[end:]
        yield from blocks


def _whole_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the content of *blocks* in parts that end with a line."""
    parts: list[bytes] = []
    for block in blocks:
        end = block.rfind(b"\n") + 1
        parts.append(block[:end])
        if end:
            yield b"".join(parts)
            parts = []
        parts.append(block[end:])
    if rest := b"".join(parts):
        yield rest


def merged(files: Sequence[ShardRowFile], header_lines: int, block_bytes: int | None = None) -> Chunks:
    """
    Yield the rows of all *files*, each sorted by what is before the last tab, in that order.

    Rows that are equal in this are in the order of the shards. Of each file *block_bytes* are in memory, by
    default so many that memory does not grow with the number of files.
    """
    size = block_bytes or max(_MIN_PIECE, min(_BLOCK_BYTES, _READ_AHEAD // max(1, len(files))))
    with ExitStack() as opened:
        blocks = [
            opened.enter_context(closing(_without_header(file.blocks(size), header_lines))) for file in files
        ]
        headers = [next(each) for each in blocks]
        yield from headers[:1]
        for lines in merge_sorted(map(_line_lists, blocks)):
            yield encode_lines(lines)


def _line_lists(blocks: Iterator[bytes]) -> Generator[list[str], None, None]:
    for lines in _whole_lines(blocks):
        yield lines.decode("latin-1").split("\n")[:-1]


def parts(files: Sequence[ShardRowFile], table: str) -> Iterator[tuple[str, Chunks]]:
    """Yield name and content of each part of *table*, a directory with the file of each shard."""
    for number, file in enumerate(files):
        yield f"{table}/part-{number:05}{Path(table).suffix}", file.blocks()
