"""``merged_features.pt``, made of the embeddings in a store."""

import errno
import os
from io import BytesIO
from pathlib import Path

import pytest
import torch
from running import files_no_larger_than, flip
from stored_runs import WIDTH, Record, ScoredOrf, store_run

from virnuc_async.errors import CannotWrite, DamagedStore
from virnuc_async.outputs.embeddings import BLOCK_BYTES, save_features
from virnuc_async.runs.output_directory import FEATURES, STORE
from virnuc_async.runs.store import Store


def save(store: Store, path: Path, block_bytes: int = BLOCK_BYTES) -> None:
    with open(path, "wb") as file:
        save_features(store.reader, WIDTH, file, block_bytes)


def orf(fragment: int, frame: int, failed: bool = False) -> ScoredOrf:
    return ScoredOrf(fragment, frame, 0.5, 0.5, failed)


@pytest.mark.parametrize("block", [1, 2, 1 << 20])
def test_features_are_those_of_scored_orfs(block: int, tmp_path: Path) -> None:
    run = [
        Record(b"x", (orf(1, 0), orf(1, 3, failed=True), orf(2, 5))),
        Record(b"none", ()),
        Record(b"caf\xe9", (orf(1, 1, failed=True), orf(1, 2), orf(1, 4, failed=True))),
    ]
    store = store_run(tmp_path / "out", run, embeddings=True)
    path = tmp_path / "out" / ".features"
    save(store, path, block_bytes=block * 4 * WIDTH)
    found = torch.load(path, weights_only=True)
    assert found["ids"] == ["x_chunk_1F1", "x_chunk_2R3", "caf\udce9_chunk_1F3"]
    assert found["data"].dtype == torch.float32
    assert found["data"].tolist() == [[0] * WIDTH, [2] * WIDTH, [4] * WIDTH]
    store.close()
    assert sorted(left.name for left in (tmp_path / "out").iterdir()) == [".features", FEATURES, STORE]


@pytest.mark.parametrize("run", [[], [Record(b"x", (orf(1, 0, failed=True),))], [Record(b"x", ())]])
def test_features_of_nothing(run: list[Record], tmp_path: Path) -> None:
    store = store_run(tmp_path, run, embeddings=True)
    save(store, tmp_path / "features.pt")
    found = torch.load(tmp_path / "features.pt", weights_only=True)
    assert found["ids"] == []
    assert found["data"].shape == (0, WIDTH)
    store.close()


def test_features_on_a_full_disk(tmp_path: Path) -> None:
    many = Record(b"x", tuple(orf(fragment, 0) for fragment in range(1, 5000)))
    store = store_run(tmp_path, [many], embeddings=True)
    path = tmp_path / "features.pt"
    rows = 4 * WIDTH * 4999
    for room in (rows // 2, rows):  # for the rows, and for the file that is made of them
        failures = (OSError, CannotWrite)
        with files_no_larger_than(room), pytest.raises(failures, match=os.strerror(errno.EFBIG)):
            save(store, path)
    save(store, path)
    assert len(torch.load(path, weights_only=True)["ids"]) == 4999
    store.close()


@pytest.mark.parametrize("position", [0, 4 * WIDTH - 1, None])
def test_damaged_rows_are_not_saved(position: int | None, tmp_path: Path) -> None:
    store = store_run(tmp_path, [Record(b"x", (orf(1, 0), orf(1, 3), orf(2, 5)))], embeddings=True)
    if position is None:
        os.truncate(tmp_path / FEATURES, 5 * WIDTH)
    else:
        flip(tmp_path / FEATURES, position)
    with pytest.raises(DamagedStore, match="merged_features.partial is damaged. The same command"):
        save_features(store.reader, WIDTH, BytesIO())
    store.close()
