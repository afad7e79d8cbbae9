"""Files of many shards as one, wherever the blocks end in which they are read."""

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnuc_async.distributed.finished_shards import FinishedShard
from virnuc_async.distributed.merged_rows import (
    ShardRowFile,
    concatenated,
    concatenated_regions,
    files_of,
    merged,
)
from virnuc_async.distributed.plan import Shard
from virnuc_async.errors import ShardsMissing
from virnuc_async.outputs.columns import Chunks
from virnuc_async.outputs.shard_file import RowFile, ShardFile
from virnuc_async.outputs.written import ModelFacts
from virnuc_async.runs.totals import Totals

NAMES = st.sampled_from(["a", "b", "a\xff", "ab", "a_chunk_1", "", "long" * 9])
ROWS = st.lists(st.lists(st.tuples(NAMES, st.sampled_from(["True", "False"])), max_size=12), max_size=5)


def write(directory: Path, contents: Sequence[bytes]) -> list[ShardRowFile]:
    """Write a file of each shard."""
    shards = []
    for number, content in enumerate(contents):
        place = directory / f"{number}"
        place.mkdir()
        (place / "x.tsv").write_bytes(content)
        known = ShardFile(
            plan="",
            shard=(number, len(contents)),
            command="",
            model=ModelFacts(500, None),
            width=1,
            version="",
            totals=Totals(),
            verdicts={},
            tally={},
            failures={},
            devices=[],
            host="",
            seconds={},
            versions={},
            reproducible=True,
            files={"x.tsv": RowFile(len(content), crc32(content))},
        )
        shards.append(FinishedShard(Shard(number, len(contents)), place, range(1), known))
    return files_of(directory, shards, "x.tsv")


def made(make: Callable[..., Chunks], contents: Sequence[bytes], lines: int, block_bytes: int) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        return b"".join(make(write(Path(place), contents), lines, block_bytes))


def text(rows: Sequence[tuple[str, str]]) -> bytes:
    return "".join(f"{name}\t{truth}\n" for name, truth in rows).encode("latin-1")


@given(ROWS, st.integers(0, 2), st.integers(1, 60))
def test_rows_come_one_behind_the_other_after_one_header(
    shards: list[list[tuple[str, str]]], lines: int, block_bytes: int
) -> None:
    header = b"# one\n# two\n" if lines == 2 else b"head\n" * lines
    found = made(concatenated, [header + text(rows) for rows in shards], lines, block_bytes)
    assert found == (header if shards else b"") + b"".join(map(text, shards))


@given(ROWS, st.integers(1, 60))
def test_sorted_rows_are_merged_and_equal_ones_stay_in_the_order_of_the_shards(
    shards: list[list[tuple[str, str]]], block_bytes: int
) -> None:
    contents = [b"head\n" + text(sorted(rows, key=lambda row: row[0])) for rows in shards]
    expected = sorted((row for rows in shards for row in rows), key=lambda row: row[0])
    found = made(merged, contents, 1, block_bytes)
    assert found == (b"head\n" if shards else b"") + text(expected)


@given(st.lists(st.integers(0, 5), max_size=5), st.integers(1, 60))
def test_regions_are_numbered_through(counts: list[int], block_bytes: int) -> None:
    def bed(first: int, count: int) -> bytes:
        # An id that looks like the name of a region.
        rows = (f"region_7\t0\t90\tregion_{first + n}\t1\t.\tx\n" for n in range(count))
        return "".join(rows).encode()

    def gff(first: int, count: int) -> bytes:
        rows = (f"ID=region_7\tx\t1\t90\t.\tID=region_{first + n};kind=x\n" for n in range(count))
        return "".join(rows).encode()

    for table in (bed, gff):
        contents = [b"#head\n" + table(1, count) for count in counts]
        found = made(concatenated_regions, contents, 1, block_bytes)
        assert found == (b"#head\n" if counts else b"") + table(1, sum(counts))


@pytest.mark.parametrize("make", [concatenated, concatenated_regions, merged])
@pytest.mark.parametrize("change", [b"head\na\tFALSE\n", b"head\na\tFalse", b"head\na\tFalse\nb\tTrue\n"])
def test_a_file_that_is_not_what_was_written_is_named(
    make: Callable[..., Chunks], change: bytes, tmp_path: Path
) -> None:
    files = write(tmp_path, [b"head\na\tFalse\n"] * 2)
    (tmp_path / "1" / "x.tsv").write_bytes(change)
    with pytest.raises(ShardsMissing, match=r"shard 1/2: its x\.tsv has changed"):
        list(make(files, 1))
    (tmp_path / "1" / "x.tsv").unlink()
    with pytest.raises(ShardsMissing, match=r"shard 1/2: its x\.tsv cannot be read: No such file"):
        list(make(files, 1))


@pytest.mark.parametrize("count", [33, 70])
def test_many_sorted_files_are_merged_in_groups(count: int) -> None:
    rng = random.Random(count)
    rows = [(f"r{rng.randrange(300)}", rng.choice(["True", "False"])) for _ in range(9 * count)]
    shards = [rows[first : first + 9] for first in range(0, len(rows), 9)]
    contents = [b"head\n" + text(sorted(part, key=lambda row: row[0])) for part in shards]
    expected = sorted(rows, key=lambda row: row[0])
    assert made(merged, contents, 1, 40) == b"head\n" + text(expected)
