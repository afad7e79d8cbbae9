"""Embeddings of earlier runs: read from all formats, looked up for each window, and spot-checked."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from example_features import (
    AB,
    EXPECTED,
    IDS,
    NUMBERS,
    known,
    known_only,
    merged,
    nucleotides,
    proteins,
    saved,
    windows,
)
from running import files_no_larger_than, python

from virnuc_async.errors import AmbiguousFeatures
from virnuc_async.runs.reuse_embeddings import FeatureIndex
from virnuc_async.sequences.fastx import Contig
from virnuc_async.sequences.windows import Window

Read = Callable[..., FeatureIndex]

FORMATS: dict[str, dict[str, dict[str, Any]]] = {
    "original": {"x_DNABERT_S.pt": nucleotides(), "x_ESM.pt": proteins(IDS[::-1], NUMBERS[::-1, 3:])},
    "refactored": {
        "x_DNABERT.pt": nucleotides() | {"version": "2", "status": "complete"},
        "x_ESM.pt": proteins() | {"version": "2", "status": "complete"},
    },
    "stacked": {
        "x_DNABERT.pt": nucleotides(),
        "x_ESM.pt": {"proteins": list(IDS), "data": torch.tensor(NUMBERS[:, 3:])},
    },
    "half": {
        "x_DNABERT.pt": nucleotides(),
        "x_ESM.pt": {"proteins": list(IDS), "data": [row.half() for row in torch.tensor(NUMBERS[:, 3:])]},
    },
    "bf16": {
        "x_DNABERT.pt": nucleotides(),
        "x_ESM.pt": {"proteins": list(IDS), "data": torch.tensor(NUMBERS[:, 3:]).bfloat16()},
    },
    "merged": {"x_merged.pt": merged()},
    "ours": {"merged_features.pt": merged()},
    "all three": {"1_DNABERT_S.pt": nucleotides(), "1_ESM.pt": proteins(), "1_merged.pt": merged()},
    "in parts": {
        "1_merged.pt": merged(IDS[:1], NUMBERS[:1]),
        "2_ESM.pt": proteins(IDS[1:], NUMBERS[1:, 3:]),
        "3_DNABERT_S.pt": nucleotides(IDS[::-1], NUMBERS[::-1, :3]),
    },
    "views": {
        "1_DNABERT_S.pt": nucleotides(),
        "1_ESM.pt": proteins() | {"data": list(torch.tensor(NUMBERS[:, 3:]))},
    },
}


@pytest.mark.parametrize("size", [1, 100])  # ORFs of a window
@pytest.mark.parametrize("form", FORMATS)
def test_formats(form: str, size: int, old: Path, read: Read) -> None:
    for name, found in FORMATS[form].items():
        saved(old / name, found)
    features = read(old)
    found = known(features, windows(AB, size))
    assert len(found) == 3 * 6  # each fragment is open in all frames
    assert known_only(found) == EXPECTED
    assert features.reused == 3
    assert "3 of 18 ORFs: 3 with both embeddings" in features.used_text()


@pytest.mark.parametrize(
    ("name", "found", "known_parts"),
    [("1_ESM.pt", proteins(), (False, True)), ("1_DNABERT.pt", nucleotides(), (True, False))],
)
def test_one_embedding_alone(
    name: str, found: object, known_parts: tuple[bool, bool], old: Path, read: Read
) -> None:
    saved(old / name, found)
    features = read(old)
    wanted = {
        id: [part if is_known else None for part, is_known in zip(parts, known_parts, strict=True)]
        for id, parts in EXPECTED.items()
    }
    assert known_only(known(features, windows(AB))) == wanted
    alone = "DNABERT-S's" if known_parts[0] else "ESM-2's"
    assert f"3 with {alone} alone" in features.found_text()


def test_a_file_of_many_orfs_is_read_in_blocks(old: Path, read: Read) -> None:
    for name, found in FORMATS["all three"].items():
        saved(old / name, found)
    features = read(old, rows_at_once=2)
    assert known_only(known(features, windows(AB))) == EXPECTED


def test_files_without_orfs(old: Path, read: Read) -> None:
    for name, found in (("1_ESM.pt", proteins), ("1_DNABERT.pt", nucleotides), ("1_merged.pt", merged)):
        saved(old / name, found((), NUMBERS[:0]))
    features = read(old)
    assert features.lookup(windows(AB)[0]) is None


def test_ids_of_any_bytes(old: Path, read: Read) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    saved(old / "1_merged.pt", merged([f"{name}_chunk_1F1"], NUMBERS[:1]))
    saved(old / "1_DNABERT_S.pt", nucleotides([f"{name}_chunk_1F1"], NUMBERS[:1, :3]))
    features = read(old)
    (window,) = windows([Contig(b"cafe", b"GCAGCA"), Contig(b"caf\xe9", b"GCAGCA")])
    (batch,) = [
        batch for batch in window.batches(100, features.lookup(window)) if batch.known.bases is not None
    ]
    assert batch.origins.tolist() == [[1, 1, 0]]
    assert batch.known.compared[0].id == f"{name}_chunk_1F1"


def test_a_contig_that_continues_in_later_windows(old: Path, read: Read) -> None:
    contigs = [Contig(b"a", b"GCA" * 40), Contig(b"b", b"GCA" * 40)]
    ids = [f"{name}_chunk_{number}F1" for name in "ab" for number in range(1, 21)]
    numbers = np.arange(40 * 5, dtype=np.float32).reshape(40, 5) + 1
    saved(old / "1_merged.pt", merged(ids, numbers))
    features = read(old)
    read_in = windows(contigs, size=20)
    assert [len(window.contigs) for window in read_in] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    wanted = {id: [own[:3].tolist(), own[3:].tolist()] for id, own in zip(ids, numbers, strict=True)}
    assert known_only(known(features, read_in)) == wanted


def test_an_id_with_two_sets_of_numbers(old: Path, read: Read) -> None:
    saved(old / "1_merged.pt", merged())
    saved(old / "2_ESM.pt", proteins(numbers=NUMBERS[:, 3:] + np.array([[0], [1], [0]], np.float32)))
    with pytest.raises(AmbiguousFeatures) as caught:
        read(old)
    assert caught.value.id == "b_chunk_1F1"
    assert caught.value.reason == f"it has different numbers in {old / '1_merged.pt'} and {old / '2_ESM.pt'}"


def test_an_id_twice_in_one_file(old: Path, read: Read) -> None:
    saved(old / "1_merged.pt", merged([*IDS[:2], IDS[0]]))
    with pytest.raises(AmbiguousFeatures, match=r"features for a_chunk_1F1: .* in .*1_merged\.pt\. "):
        read(old)
    saved(old / "1_merged.pt", merged([IDS[0], *IDS], NUMBERS[[0, 0, 1, 2]]))
    features = read(old)
    assert known_only(known(features, windows(AB))) == EXPECTED


@pytest.mark.parametrize("size", [1, 100])
def test_an_id_that_the_input_has_twice(old: Path, size: int, read: Read) -> None:
    saved(old / "1_merged.pt", merged(IDS[1:2], NUMBERS[1:2]))
    features = read(old)
    twice = [AB[0], AB[1], Contig(b"c", b"GCA"), AB[1]]
    with pytest.raises(
        AmbiguousFeatures, match=r"for b_chunk_1F1: the id occurs twice in the input and is in .*1_merged"
    ):
        known(features, windows(twice, size))
    features = read(old)
    others_twice = [AB[0], AB[0], AB[1]]  # of which the files have nothing
    assert len([1 for window in windows(others_twice, size) if features.lookup(window)]) >= 1
    assert features.reused == 1


def test_embeddings_are_not_kept_in_memory(tmp_path: Path) -> None:
    """A file of 48 MB, and 12 of 4 MB each: after the first few, memory does not grow."""
    script = f"""
import re, torch
from pathlib import Path
from virnuc_async.fileio import Directory
from virnuc_async.runs.feature_files import find_features
from virnuc_async.runs.reuse_embeddings import FeatureIndex
old = Path({str(tmp_path)!r}) / "old"
out = Path({str(tmp_path)!r}) / "out"
old.mkdir(), out.mkdir()
big = torch.rand(6000, 2000)
ids = [f"a_chunk_{{n}}F1" for n in range(6000)]
torch.save({{"ids": ids, "data": big}}, old / "a_merged.pt")
for n in range(12):
    own = slice(500 * n, 500 * n + 500)
    rows = [row.clone() for row in big[own, 400:]]
    torch.save({{"proteins": ids[own], "data": rows}}, old / f"b{{n}}_ESM.pt")
del big, own, rows
used = []
class Watched(FeatureIndex):
    def _add(self, *args):
        used.append(int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
        super()._add(*args)
features = Watched(list(find_features(old, out)), (400, 1600))
for _ in features.read(Directory(out)): pass
print(max(used) - used[0])
features.close()
"""
    assert int(python(script)) < 24 << 10  # kB: half the file


def test_a_full_disk_while_features_are_read(old: Path, read: Read) -> None:
    saved(old / "1_merged.pt", merged(numbers=NUMBERS))
    with files_no_larger_than(50), pytest.raises(OSError, match="File too large"):
        read(old)


# Spot checks


def compared(features: FeatureIndex, read: Sequence[Window]) -> list[list[str]]:
    """Return the ids that are compared in each window."""
    return [
        sorted(
            one.id for batch in window.batches(30, features.lookup(window)) for one in batch.known.compared
        )
        for window in read
    ]


def test_some_orfs_of_every_window_and_one_of_every_file_are_compared(old: Path, read: Read) -> None:
    contigs = [Contig(b"a", b"GCA" * 160)]
    ids = [f"a_chunk_{number}F1" for number in range(1, 81)]
    numbers = np.arange(80 * 5, dtype=np.float32).reshape(80, 5) + 1
    saved(old / "1_merged.pt", merged(ids[:60], numbers[:60]))
    for at in (3, 5, 61):  # files that a few along the window would miss
        saved(old / f"{at}_ESM.pt", proteins([ids[at]], numbers[[at], 3:]))
        saved(old / f"{at}_DNABERT.pt", nucleotides([ids[at]], numbers[[at], :3]))
    (old / "1_merged.pt").unlink()
    saved(old / "9_merged.pt", merged(ids, numbers))
    features = read(old)
    first, second, _ = compared(features, windows(contigs, size=240))
    for at in (3, 5):
        assert ids[at] in first
    assert ids[61] in second
    assert 8 <= len(first) <= 10
    assert 8 <= len(second) <= 9


def test_halves_of_a_batch_have_its_embeddings(old: Path, read: Read) -> None:
    saved(
        old / "1_merged.pt",
        merged([f"a_chunk_{n}F1" for n in range(1, 10)], np.arange(45, dtype=np.float32).reshape(9, 5) + 1),
    )
    features = read(old)
    (window,) = windows([Contig(b"a", b"GCA" * 18)])
    (whole,) = [
        batch for batch in window.batches(1000, features.lookup(window)) if batch.known.bases is not None
    ]
    assert len(whole) == 9
    quarters = [quarter for half in whole.halves() for quarter in half.halves()]
    assert np.concatenate([part.known.bases for part in quarters]).tolist() == whole.known.bases.tolist()
    assert (
        np.concatenate([part.known.residues for part in quarters]).tolist() == whole.known.residues.tolist()
    )
    ids = [(one.id, int(part.orfs[one.row])) for part in quarters for one in part.known.compared]
    assert ids == [(one.id, int(whole.orfs[one.row])) for one in whole.known.compared]


def test_all_orfs_of_a_batch_have_the_same_parts(old: Path, read: Read) -> None:
    saved(old / "1_ESM.pt", proteins())
    saved(old / "2_DNABERT.pt", nucleotides(IDS[1:], NUMBERS[1:, :3]))
    features = read(old)
    (window,) = windows(AB)
    batches = list(window.batches(12, features.lookup(window)))
    assert [batch.number for batch in batches] == list(range(len(batches)))
    assert sorted(orf for batch in batches for orf in batch.orfs.tolist()) == list(range(18))
    parts = [(batch.known.bases is not None, batch.known.residues is not None) for batch in batches]
    assert [key for key, _ in itertools.groupby(parts)] == [(False, False), (False, True), (True, True)]
    assert all(batch.tokens <= 12 for batch in batches)
    features.close()
