"""Features of earlier work: read, refused, proven, and saved from being computed again."""

import hashlib
import itertools
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from running import files_no_larger_than, python

from virnuc_async.errors import (
    AmbiguousFeatures,
    BadFeatures,
    NoFeatures,
)
from virnuc_async.runs.reuse_embeddings import Features, find_features
from virnuc_async.sequences.batches import Window, form_windows
from virnuc_async.sequences.inputs import Contig
from virnuc_async.sequences.tokens import OrfTokenizer

NUCLEOTIDE, PROTEIN = 3, 2  # widths
IDS = ("a_chunk_1F1", "b_chunk_1F1", "a_chunk_2F1")
NUMBERS = np.arange(15, dtype=np.float32).reshape(3, 5) + 1


# Files as others write them


def nucleotides(ids: Sequence[str] = IDS, numbers: NDArray[np.float32] = NUMBERS[:, :3]) -> dict[str, Any]:
    rows = [{"label": id, "mean_representation": own} for id, own in zip(ids, numbers.tolist(), strict=True)]
    return {"nucleotide": list(ids), "data": rows}


def proteins(ids: Sequence[str] = IDS, numbers: NDArray[np.float32] = NUMBERS[:, 3:]) -> dict[str, Any]:
    return {"proteins": list(ids), "data": [row.clone() for row in torch.tensor(numbers.copy())]}


def merged(ids: Sequence[str] = IDS, numbers: NDArray[np.float32] = NUMBERS) -> dict[str, Any]:
    return {"ids": list(ids), "data": torch.tensor(numbers)}


def saved(path: Path, found: object) -> Path:
    torch.save(found, path)
    return path


def repacked(
    path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED
) -> Path:
    """Write the archive at *path* anew, each of its entries changed, with the right checksums."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, change(name, content))
    return path


Read = Callable[[Path], Features]
Refused = Callable[[Path], str]


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Read]:
    """Reads what is in a directory."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with ExitStack() as opened:

        def read_all(directory: Path) -> Features:
            found = list(find_features(directory, but_not=scratch))
            features = opened.enter_context(closing(Features(found, (NUCLEOTIDE, PROTEIN))))
            for _ in features.read(scratch):
                assert not list(scratch.iterdir())  # nothing that a kill would leave behind
            return features

        yield read_all


@pytest.fixture
def refused(read: Read) -> Refused:
    """Gives the reason for which the one file in a directory is refused."""

    def reason(directory: Path) -> str:
        with pytest.raises(BadFeatures) as caught:
            read(directory)
        assert len(str(caught.value).splitlines()) == 1
        assert Path(caught.value.path).parent == directory
        return caught.value.reason

    return reason


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Where earlier work left its files."""
    directory = tmp_path / "old"
    directory.mkdir()
    return directory


class Untold(OrfTokenizer):
    """Makes one token of any bases."""

    def __init__(self) -> None:
        self._bases = None

    def nucleotides(self, bases: Sequence[bytes]) -> Any:
        return self.residues(bases)


def windows(contigs: Sequence[Contig], size: int = 100, length: int = 6) -> list[Window]:
    """Read *contigs*, whose every frame is open; fragments of *length* bases."""
    return list(form_windows(["-"], lambda path: iter(contigs), length, Untold(), size))


AB = (Contig(b"a", b"GCAGCAGCAGCA"), Contig(b"b", b"GCAGCA"))


def known(features: Features, read: Sequence[Window]) -> dict[str, list[Any]]:
    """Give what batches know of each ORF, by its id: of its bases, of its residues."""
    names = {}
    for window in read:
        for batch in window.batches(20, features.lookup(window)):
            for row, (contig, fragment, frame) in enumerate(batch.origins.tolist()):
                id = f"{'abcdefgh'[contig]}_chunk_{fragment}{('F1', 'F2', 'F3', 'R1', 'R2', 'R3')[frame]}"
                parts = (batch.known.bases, batch.known.residues)
                names[id] = [None if part is None else part[row].tolist() for part in parts]
    return names


WANTED = {id: [own[:3].tolist(), own[3:].tolist()] for id, own in zip(IDS, NUMBERS, strict=True)}


def told(found: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {id: parts for id, parts in found.items() if parts != [None, None]}


# Finding


def test_features_are_found_wherever_they_lie(old: Path, tmp_path: Path) -> None:
    names = ["b_ESM.pt", "a_DNABERT_S.pt", "c/d/x_DNABERT.pt", "c/merged_features.pt", "c/m_merged.pt"]
    others = [".hidden/a_ESM.pt", ".a_ESM.pt", "ESM.pt", "a_esm.pt", "a_ESM.pt.gz", "my_merged_features.pt"]
    outside = tmp_path / "outside"
    for path in (*(old / name for name in (*names, *others)), outside / "o_ESM.pt", old / "out/o_ESM.pt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    (old / "link").symlink_to(outside)
    (old / "dir_ESM.pt").mkdir()
    found = list(find_features(old, but_not=old / "out"))
    assert [file.name for file in found] == sorted(names)
    assert [file.path for file in found] == [old / name for name in sorted(names)]
    assert found[0].sha256 == hashlib.sha256(b"a_DNABERT_S.pt").hexdigest()


@pytest.mark.parametrize("name", ["", "missing"])
def test_nothing_to_reuse(old: Path, name: str) -> None:
    with pytest.raises(NoFeatures) as caught:
        list(find_features(old / name, but_not=old / "out"))
    assert caught.value.directory == str(old / name)
    assert ("named *_DNABERT_S.pt or " if not name else "No such file or directory") in str(caught.value)


# Forms


FORMS: dict[str, dict[str, dict[str, Any]]] = {
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
@pytest.mark.parametrize("form", FORMS)
def test_forms_that_others_left(form: str, size: int, old: Path, read: Read) -> None:
    for name, found in FORMS[form].items():
        saved(old / name, found)
    features = read(old)
    found = known(features, windows(AB, size))
    assert len(found) == 3 * 6  # each fragment is open in all frames
    assert told(found) == WANTED
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
        for id, parts in WANTED.items()
    }
    assert told(known(features, windows(AB))) == wanted
    alone = "DNABERT-S's" if known_parts[0] else "ESM-2's"
    assert f"3 with {alone} alone" in features.found_text()


def test_a_file_of_many_orfs_is_read_in_parts(old: Path, monkeypatch: pytest.MonkeyPatch, read: Read) -> None:
    monkeypatch.setattr("virnuc_async.runs.reuse_embeddings._ROWS", 2)
    for name, found in FORMS["all three"].items():
        saved(old / name, found)
    features = read(old)
    assert told(known(features, windows(AB))) == WANTED


def test_files_of_nothing(old: Path, read: Read) -> None:
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


def test_a_contig_goes_on_in_later_windows(old: Path, read: Read) -> None:
    contigs = [Contig(b"a", b"GCA" * 40), Contig(b"b", b"GCA" * 40)]
    ids = [f"{name}_chunk_{number}F1" for name in "ab" for number in range(1, 21)]
    numbers = np.arange(40 * 5, dtype=np.float32).reshape(40, 5) + 1
    saved(old / "1_merged.pt", merged(ids, numbers))
    features = read(old)
    read_in = windows(contigs, size=20)
    assert [len(window.contigs) for window in read_in] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    wanted = {id: [own[:3].tolist(), own[3:].tolist()] for id, own in zip(ids, numbers, strict=True)}
    assert told(known(features, read_in)) == wanted


# Refusals


def expanded() -> dict[str, Any]:
    return {"ids": list(IDS), "data": torch.ones(1).expand(3, 5)}


def odd(**parts: Any) -> dict[str, Any]:
    return merged() | parts


REFUSED: dict[str, tuple[object, str]] = {
    "more ids than rows": (merged() | {"data": torch.tensor(NUMBERS[:2])}, "it has 3 ids, but features of 2"),
    "fewer": (proteins() | {"data": []}, "it has 3 ids, but features of 0"),
    "other labels": (
        nucleotides() | {"nucleotide": [IDS[0], IDS[2], IDS[1]]},
        "its features in the place of a_chunk_2F1 are of another label",
    ),
    "label that is no text": (
        {"nucleotide": ["a"], "data": [{"label": 7, "mean_representation": [1.0]}]},
        "its features in the place of a are of another label",
    ),
    "no labels": ({"nucleotide": ["a"], "data": [1]}, "its features in the place of a are of another label"),
    "no numbers": ({"nucleotide": ["a"], "data": [{"label": "a"}]}, "its features are not lists of numbers"),
    "words": (
        {"nucleotide": ["a"], "data": [{"label": "a", "mean_representation": ["1", "2", "3"]}]},
        "its features are not lists of numbers",
    ),
    "a number too large": (
        {"nucleotide": ["a"], "data": [{"label": "a", "mean_representation": [10**400, 1, 1]}]},
        "its features are not lists of numbers",
    ),
    "ragged": (
        {
            "nucleotide": ["a", "b"],
            "data": [{"label": "a", "mean_representation": [1.0]}, {"label": "b", "mean_representation": []}],
        },
        "its features are not lists of numbers",
    ),
    "nested": (
        {"nucleotide": ["a"], "data": [{"label": "a", "mean_representation": [[1.0]] * 3}]},
        r"it has features of the shape \(1, 3, 1\), the model gives 3",
    ),
    "bases of another model": (
        nucleotides(numbers=NUMBERS),
        "it has features of 5 numbers, the model gives 3: it is another model's",
    ),
    "residues of another model": (proteins(numbers=NUMBERS), "features of 5 numbers, the model gives 2"),
    "merged of another model": (merged(numbers=NUMBERS[:, 1:]), "features of 4 numbers, the model gives 5"),
    "rows of two widths": (
        proteins() | {"data": [torch.ones(2), torch.ones(2), torch.ones(3)]},
        "its features are not all of the same width",
    ),
    "a matrix for each": (proteins() | {"data": [torch.ones(1, 2) for _ in IDS]}, "features of the shape"),
    "three axes": (odd(data=torch.ones(3, 5, 1)), r"features of the shape \(3, 5, 1\)"),
    "scalar": (odd(data=torch.tensor(1.0)), "not all dense floating-point tensors"),
    "no data": ({"ids": list(IDS)}, "it is not a file of features"),
    "two kinds": (proteins() | merged(), "it is not a file of features"),
    "data of another kind": (odd(data="abc"), "not all dense floating-point tensors"),
    "no list": ({"nucleotide": ["a"], "data": torch.ones(1, 3)}, "its 'data' are not a list"),
    "integers": (odd(data=torch.ones(3, 5, dtype=torch.int64)), "not all dense floating-point tensors"),
    "double": (odd(data=torch.ones(3, 5).double()), "not all dense floating-point tensors"),
    "sparse": (odd(data=torch.eye(3, 5).to_sparse()), "not all dense floating-point tensors"),
    "no storage": (odd(data=torch.ones(3, 5, device="meta")), "not all dense floating-point tensors"),
    "lists for tensors": (proteins() | {"data": [[1.0, 2.0]] * 3}, "not all dense floating-point tensors"),
    "ids that are no names": (odd(ids=[1, 2, 3]), "its ids are not a list of names"),
    "ids that are no list": (odd(ids="abc"), "its ids are not a list of names"),
    "an id that is no text": (odd(ids=["a", "b", "\ud800"]), r"an id is no text: '\\ud800'"),
    "not finite": (merged(numbers=NUMBERS * np.float32("inf")), "the features of a_chunk_1F1 are not finite"),
    "beyond float32": (
        {"nucleotide": ["a"], "data": [{"label": "a", "mean_representation": [1e300, 1.0, 1.0]}]},
        "the features of a are not finite",
    ),
    "no dictionary": ([1, 2], "it is not a file of features"),
    "one number for all": (expanded(), "its tensors claim more numbers than it holds"),
    "one row for all": (
        proteins() | {"data": [torch.ones(2)] * 3},
        "its tensors claim more numbers than it holds",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_reused(case: str, old: Path, refused: Refused) -> None:
    found, reason = REFUSED[case]
    saved(old / "x_merged.pt", found)
    assert re.search(reason, refused(old))


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_hostile_file_is_not_executed(old: Path, tmp_path: Path, refused: Refused) -> None:
    trace = tmp_path / "executed"
    saved(old / "x_ESM.pt", {"proteins": Bomb(trace), "data": []})
    assert "contains more than tensors (posix.mkdir); no code from it was executed" in refused(old)
    (old / "x_ESM.pt").write_bytes(pickle.dumps({"proteins": Bomb(trace), "data": []}, protocol=2))
    assert "damaged, or not a file of torch's" in refused(old)
    assert not trace.exists()


def test_a_tensor_larger_than_its_storage(old: Path, refused: Refused) -> None:
    path = saved(old / "x_merged.pt", merged(IDS[:1], NUMBERS[:1]))

    def grown(name: str, content: bytes) -> bytes:
        return content.replace(b"K\x01K\x05\x86", b"J\x00\x00\x00\x10K\x05\x86")

    repacked(path, grown)
    assert "not resizable" in refused(old)


def test_a_storage_larger_than_its_part_of_the_file(old: Path, refused: Refused) -> None:
    path = saved(old / "x_merged.pt", merged(IDS[:2], NUMBERS[:2]))
    repacked(path, lambda name, content: content[: len(content) // 2] if "/data/0" in name else content)
    assert refused(old) == "its tensors claim more numbers than it holds"


def test_a_compressed_file_is_not_unpacked(old: Path, refused: Refused) -> None:
    path = saved(old / "x_merged.pt", merged())
    repacked(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert refused(old) == "it is compressed, which torch's files are not"


@pytest.mark.parametrize("form", ["nucleotide", "merged"])
def test_a_damaged_file(form: str, old: Path, refused: Refused) -> None:
    """torch itself reads on over a bit that has changed."""
    path = saved(old / "x_merged.pt", nucleotides() if form == "nucleotide" else merged())
    whole = path.read_bytes()
    number = struct.pack(">d", 2) if form == "nucleotide" else np.float32(2).tobytes()
    at = whole.index(number)
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert "damaged: the checksum of x_merged/data" in refused(old)
    for length in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:length])
        assert "damaged" in refused(old)


def test_a_file_that_may_not_be_read(old: Path, read: Read) -> None:
    saved(old / "x_merged.pt", merged())
    (file,) = find_features(old, but_not=old / "out")
    file.path.unlink()
    features = Features([file], (NUCLEOTIDE, PROTEIN))
    with closing(features), pytest.raises(BadFeatures, match="No such file or directory"):
        list(features.read(old))


def test_an_id_with_two_sets_of_numbers(old: Path, read: Read) -> None:
    saved(old / "1_merged.pt", merged())
    saved(old / "2_ESM.pt", proteins(numbers=NUMBERS[:, 3:] + np.array([[0], [1], [0]], np.float32)))
    with pytest.raises(AmbiguousFeatures) as caught:
        read(old)
    assert caught.value.id == "b_chunk_1F1"
    assert caught.value.reason == f"it has different numbers in {old / '1_merged.pt'} and {old / '2_ESM.pt'}"


def test_an_id_twice_in_one_file(old: Path, read: Read) -> None:
    saved(old / "1_merged.pt", merged([*IDS[:2], IDS[0]]))
    with pytest.raises(AmbiguousFeatures, match=r"of a_chunk_1F1 are: .* in .*1_merged\.pt\. "):
        read(old)
    saved(old / "1_merged.pt", merged([IDS[0], *IDS], NUMBERS[[0, 0, 1, 2]]))
    features = read(old)
    assert told(known(features, windows(AB))) == WANTED


@pytest.mark.parametrize("size", [1, 100])
def test_an_id_that_the_input_has_twice(old: Path, size: int, read: Read) -> None:
    saved(old / "1_merged.pt", merged(IDS[1:2], NUMBERS[1:2]))
    features = read(old)
    twice = [AB[0], AB[1], Contig(b"c", b"GCA"), AB[1]]
    with pytest.raises(AmbiguousFeatures, match=r"b_chunk_1F1 are: the input has it twice, and .*1_merged"):
        known(features, windows(twice, size))
    features = read(old)
    others_twice = [AB[0], AB[0], AB[1]]  # of which the files have nothing
    assert len([1 for window in windows(others_twice, size) if features.lookup(window)]) >= 1
    assert features.reused == 1


def test_numbers_of_files_do_not_stay_in_memory(tmp_path: Path) -> None:
    """A file of 48 MB, and 12 of 4 MB each; beyond the first few, memory does not grow with them."""
    script = f"""
import re, torch
from pathlib import Path
from virnuc_async.runs.reuse_embeddings import Features, find_features
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
class Watched(Features):
    def _add(self, *args):
        used.append(int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
        super()._add(*args)
features = Watched(list(find_features(old, out)), (400, 1600))
for _ in features.read(out): pass
print(max(used) - used[0])
features.close()
"""
    assert int(python(script)) < 24 << 10  # kB: half the file


def test_a_full_disk_while_features_are_read(old: Path, read: Read) -> None:
    saved(old / "1_merged.pt", merged(numbers=NUMBERS))
    with files_no_larger_than(50), pytest.raises(OSError, match="File too large"):
        read(old)


# What is compared


def compared(features: Features, read: Sequence[Window]) -> list[list[str]]:
    """Give the ids that are compared in each window."""
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


def test_halves_know_what_the_batch_knew(old: Path, read: Read) -> None:
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


def test_batches_know_the_same_of_all_their_orfs(old: Path, read: Read) -> None:
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
