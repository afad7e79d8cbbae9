"""A store with flipped bits gives the right answer or a named damage, never another answer."""

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from example_runs import IDENTITY, digest, score, window_digest
from running import MEMORY

from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.errors import BrokenInput, DamagedStore, ForeignDirectoryError, Stage
from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.outputs.contigs import contig_chunks
from virnuc_async.outputs.failures import failure_chunks
from virnuc_async.outputs.fragments import fragment_chunks, published_fragment_chunks
from virnuc_async.outputs.predictions import prediction_chunks
from virnuc_async.runs.output_directory import STORE
from virnuc_async.runs.session import unfinished_parts
from virnuc_async.runs.store import Store
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.tokens import Ragged
from virnuc_async.sequences.windows import ContigRow, FileRow, Window

PATHS = ["/data/a.fa", "/data/b.fa"]
NAMED = (DamagedStore, ForeignDirectoryError)
BROKEN = FileRow(0, PATHS[0], 14, BrokenInput(PATHS[0], 14, "snap"))


def make_window(number: int) -> Window:
    """Ten records of three ORFs; file a breaks in window 1."""
    contigs = range(10 * number, 10 * number + 10)
    origins = np.array([(contig, 1, frame) for contig in contigs for frame in (0, 2, 5)], np.int64)
    tokens = Ragged(np.full(3 * len(origins), 5, np.int32), np.full(len(origins), 3))
    return Window(
        number=number,
        first=30 * number,
        contigs=tuple(ContigRow(contig, int(contig > 13), b"id %d" % contig, 300, 1) for contig in contigs),
        files={1: (BROKEN,), 2: (FileRow(1, PATHS[1], 16, None),)}.get(number, ()),
        origins=origins,
        digest=digest(number),
        nucleotides=tokens,
        residues=tokens,
    )


WINDOWS = tuple(map(make_window, range(3)))


def scored(batch: Batch) -> ScoredBatch:
    failed = {"row1": (Stage.PROTEIN, "no room")} if batch.name in ("1.1.0", "2.0") else {}
    return score(batch, **failed)


def resume(store: Store) -> None:
    """Do what a session does: check every window of the input, and compute the batches that are missing."""
    store.bind_run(IDENTITY, PATHS)
    if store.is_finished:
        return
    for window in WINDOWS:
        known = window_digest(store, window.number)
        if known is None:
            store.add_window(window)
        assert known in (None, window.digest)
        done = store.finished_parts(window.number)
        for batch in window.batches(3 * 8):
            is_split = batch.name == "1.1"
            for part in unfinished_parts(batch, done):
                for half in part.halves() if is_split and not part.split_path else [part]:
                    store.add_batch(scored(half))
    assert store.reader.window_count() == len(WINDOWS)
    store.finish()


def answer(directory: Path, repair: bool = False, tables: bool = True) -> tuple[object, ...]:
    """Return all that the outputs of a run are made of, as a session would find it, and the *tables*."""
    with closing(Store(directory, repair=repair)) as store:
        resume(store)
        reader = store.reader
        content = [(block.ids, block.contigs.tobytes(), block.scores.tobytes()) for block in reader.blocks()]
        lists = [[*reader.ids(0)], [*reader.ids(1)], [*reader.files()], [*reader.failures()]]
        known = (reader.totals(), store.get_meta("identity"), store.get_meta("paths"))
        chunks = (
            prediction_chunks(reader),
            published_fragment_chunks(reader),
            fragment_chunks(reader, 300),
            contig_chunks(reader, VerdictRule(), Counter()),
            failure_chunks(reader),
        )
        return (*content, *lists, *known, *(b"".join(table) for table in chunks if tables))


@pytest.fixture(scope="module")
def calm() -> Iterator[Path]:
    """A finished run, in memory if possible."""
    with TemporaryDirectory(prefix="virnuc-", dir=MEMORY) as directory:
        answer(Path(directory) / "calm")
        yield Path(directory)


def try_flips(calm: Path, count: int, seed: int) -> Counter[str]:
    """Return how often *count* stores with one to three flipped bits gave what."""
    rng, endings = random.Random(seed), Counter[str]()
    content = (calm / "calm" / STORE).read_bytes()
    expected = [answer(calm / "calm", tables=tables) for tables in (False, True)]
    out = calm / "out"
    for number in range(count):
        flipped = bytearray(content)
        places = [rng.randrange(8 * len(content)) for _ in range(rng.choice((1, 1, 1, 3)))]
        for place in places:
            flipped[place // 8] ^= 1 << place % 8
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / STORE).write_bytes(flipped)
        # Tables are made of what is compared without them as well: now and then they are made, too.
        tables = number % 5 == 0
        try:
            assert answer(out, tables=tables) == expected[tables], (
                f"another answer with bits {places} flipped"
            )
            endings["right"] += 1
        except NAMED as error:
            endings[type(error).__name__] += 1
            if number % 4 == 0:
                endings[try_repair(out, expected[True])] += 1
        except BaseException as error:
            error.add_note(f"bits {places} were flipped")
            raise
    return endings


def try_repair(out: Path, expected: tuple[object, ...]) -> str:
    """Repair a damaged store; return how that ended."""
    try:
        found = answer(out, repair=True)
    except NAMED:
        return "not repaired"
    assert found == expected, "another answer after a repair"
    return "repaired"


def test_a_flipped_bit_changes_no_answer(calm: Path) -> None:
    endings = try_flips(calm, 250, 1)
    assert endings["right"] + endings["DamagedStore"] + endings["ForeignDirectoryError"] == 250
    assert endings["repaired"] > endings["not repaired"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_20_000_flips_change_no_answer(calm: Path) -> None:
    print(try_flips(calm, 20_000, 2))
