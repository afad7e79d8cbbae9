"""The reader of a run: input order, complete records, and damage that is detected."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from example_runs import (
    IDENTITY,
    batches,
    features,
    ids,
    make_window,
    orfs,
    reopen,
    score,
)

from virnuc_async.errors import (
    BrokenInput,
    DamagedStore,
    Stage,
    UnreadableInput,
)
from virnuc_async.runs.blocks import orf_id
from virnuc_async.runs.embedding_rows import fingerprints
from virnuc_async.runs.failure import Failure
from virnuc_async.runs.output_directory import STORE
from virnuc_async.runs.reader import FileLine
from virnuc_async.runs.store import Store
from virnuc_async.sequences.windows import ContigRow, FileRow


def test_a_duplicate_orf_is_damage(store: Store) -> None:
    window = make_window()
    store.add_window(window)
    first, second = batches(window)
    store.add_batch(score(first))
    store.add_batch(score(replace(second, orfs=np.array([second.orfs[0], first.orfs[0]]))))
    with pytest.raises(DamagedStore, match="is damaged \\(an ORF is there twice\\)"):
        list(store.reader.blocks())


@pytest.mark.parametrize("table", ["windows", "batches"])
def test_a_changed_value_is_damage(table: str, store: Store) -> None:
    window = make_window()
    store.add_window(window)
    for batch in batches(window):
        store.add_batch(score(batch))
    assert orfs(store) == [0, 1, 2, 3]
    column = {"windows": "ids", "batches": "scores"}[table]
    store._database.connection.execute(
        f"UPDATE {table} SET {column} = CAST(REPLACE({column}, x'30', x'31') AS BLOB)"
    )
    store._database.connection.execute(
        f"UPDATE {table} SET {column} = zeroblob(LENGTH({column})) WHERE rowid < 2"
    )
    with pytest.raises(DamagedStore, match="a checksum is wrong"):
        list(store.reader.blocks())


@pytest.mark.parametrize("numbers", [(0, 2), (1, 0), (0, 0)])
def test_records_that_are_not_consecutive_are_damage(numbers: tuple[int, int], store: Store) -> None:
    rows = tuple(ContigRow(number, 0, b"c", 1, 1) for number in numbers)
    store.add_window(replace(make_window(), contigs=rows))
    with pytest.raises(DamagedStore, match="is damaged \\(records are missing\\)"):
        list(store.reader.blocks())


def test_blocks_have_complete_records(store: Store) -> None:
    # Contig 1 begins in window 0 and continues in 1 and 2; contig 4 has no ORF.
    begin = [(0, [b"c0", b"c1"]), (2, []), (2, [b"c2", b"c3", b"c4"]), (5, []), (5, [b"c5"])]
    owners = [[0, 1], [1, 1], [1, 3], [], [5]]
    for number, ((first, names), contigs_of) in enumerate(zip(begin, owners, strict=True)):
        window = make_window(number, [b""] * len(contigs_of))
        rows = tuple(ContigRow(first + n, 0, name, 9, 9) for n, name in enumerate(names))
        origins = np.array(
            [(contig, number + 1, row) for row, contig in enumerate(contigs_of)], np.int64
        ).reshape(-1, 3)
        tokens = window.residues.take(np.arange(len(origins)))
        start = sum(map(len, owners[:number]))
        window = replace(
            window, first=start, contigs=rows, origins=origins, residues=tokens, nucleotides=tokens
        )
        store.add_window(window)
        for batch in batches(window, 3):
            store.add_batch(score(batch))
    blocks = [
        (block.ids, block.rows.tolist(), block.scores["orf"].tolist(), block.names())
        for block in store.reader.blocks()
    ]
    assert blocks == [
        (b"c0\n", [0], [0], ["c0"]),
        (b"c1\nc2\nc3\n", [0, 0, 0, 0, 2], [1, 2, 3, 4, 5], ["c1", "c2", "c3"]),
        (b"c4\n", [], [], ["c4"]),
        (b"c5\n", [0], [6], ["c5"]),
    ]


def test_a_run_with_halved_batches_is_not_reproducible(store: Store) -> None:
    window = make_window()
    store.add_window(window)
    first, second = batches(window)
    store.add_batch(score(first))
    assert not store.reader.totals().is_split
    left, right = second.halves()
    store.add_batch(score(right))
    assert store.finished_parts(0) == {(0, ""), (1, "1")}
    store.add_batch(score(left))
    assert reopen(store).reader.totals().is_split


def test_ids_and_paths_of_any_bytes(out: Path) -> None:
    store = Store(out)
    paths = ["/data/\udcff.fa", "/data/caf\u00e9.fa"]
    store.bind_run(IDENTITY, paths)
    names = [b"caf\xe9", b"\xff\xfe|\\", "\u00e9\U0001f9a0".encode(), b"", b"a\0b"]
    broken = FileRow(0, paths[0], 5, BrokenInput(paths[0], 5, "saw '\udcfe'"))
    window = make_window(ids=names, files=[broken])
    store.add_window(window)
    (batch,) = batches(window, 1000)
    failures = store.add_batch(score(batch, row1=(Stage.CLASSIFIER, "caf\u00e9")))
    store = reopen(store)
    assert ids(store) == names
    assert [line.path for line in store.reader.files()] == paths
    assert [name.encode("latin-1") for block in store.reader.blocks() for name in block.names()] == names
    of_orf = Failure(paths[0], Stage.CLASSIFIER, "caf\udce9_chunk_1R3: caf\u00e9")
    assert failures == [of_orf]
    of_file = Failure(paths[0], Stage.INPUT, "breaks after 5 records: saw '\udcfe'")
    assert list(store.reader.failures()) == [of_file, of_orf]
    store.close()


def test_failures_are_in_input_order(store: Store) -> None:
    unreadable = FileRow(1, "/data/b.fa", 0, UnreadableInput("/data/b.fa", "gone"))
    window = make_window(files=[FileRow(0, "/data/a.fa", 2, None), unreadable])
    store.add_window(window)
    first, second = batches(window)
    store.add_batch(score(second, row1=(Stage.PROTEIN, "x"), row0=(Stage.NUCLEOTIDE, "y")))
    store.add_batch(score(first, row1=(Stage.PROTEIN, "z")))
    assert [(line.path, line.stage, line.message) for line in store.reader.failures()] == [
        ("/data/a.fa", "ESM-2", "c0_chunk_1R3: z"),
        ("/data/a.fa", "DNABERT-S", "c1_chunk_1F1: y"),
        ("/data/a.fa", "ESM-2", "c1_chunk_1R3: x"),
        ("/data/b.fa", "Input", "gone"),
    ]
    assert orfs(store) == [0]
    assert list(store.reader.files()) == [FileLine("/data/a.fa", 2, False), FileLine("/data/b.fa", 0, True)]


def test_embeddings_have_fingerprints_in_the_order_of_their_orfs(store: Store) -> None:
    window = make_window()
    store.add_window(window)
    first, second = batches(window)
    store.add_batch(score(second, embeddings=True, row0=(Stage.PROTEIN, "no room")))
    store.add_batch(score(first, embeddings=True))
    rows = features(store.directory.path)
    assert rows[:, 0].tolist() == [0, 1, 2, 3]
    (known,) = store.reader.fingerprints()
    assert known.tolist() == fingerprints(rows[[0, 1, 3]]).tolist()
    assert len(set(known.tolist())) == 3


def test_orf_ids_are_the_published_ones() -> None:
    names = [orf_id(b"c|1", 12, frame) for frame in range(6)]
    assert names == [b"c|1_chunk_12" + frame for frame in (b"F1", b"F2", b"F3", b"R1", b"R2", b"R3")]


def test_damaged_pages_are_reported_as_damage(store: Store) -> None:
    window = make_window(ids=[b"c%d" % number for number in range(2000)])
    store.add_window(window)
    for batch in batches(window, 600):
        store.add_batch(score(batch))
    store.close()
    with open(store.directory.path / STORE, "r+b") as file:
        file.seek(0, os.SEEK_END)
        for page in range(file.tell() // 4096 // 2, file.tell() // 4096):
            file.seek(4096 * page)
            file.write(b"\xa5" * 4096)
    store = Store(store.directory.path)
    with pytest.raises(DamagedStore, match=r"5 finished batches in it can be recovered: .* --repair"):
        list(store.reader.blocks())
    store.close()
