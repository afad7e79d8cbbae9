"""Feature files: found by their names, and refused if they are damaged, hostile or of a different model."""

import hashlib
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from example_features import IDS, NUCLEOTIDE, NUMBERS, PROTEIN, merged, nucleotides, proteins, saved

from virnuc_async.errors import BadFeatures, NoFeatures
from virnuc_async.fileio import Directory
from virnuc_async.runs.feature_files import find_features
from virnuc_async.runs.reuse_embeddings import FeatureIndex

Read = Callable[..., FeatureIndex]
Refused = Callable[[Path], str]


def repacked(
    path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED
) -> Path:
    """Write the archive at *path* again with each of its entries changed and correct checksums."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, change(name, content))
    return path


@pytest.fixture
def refused(read: Read) -> Refused:
    """Returns the reason for which the one file in a directory is refused."""

    def reason(directory: Path) -> str:
        with pytest.raises(BadFeatures) as caught:
            read(directory)
        assert len(str(caught.value).splitlines()) == 1
        assert Path(caught.value.path).parent == directory
        return caught.value.reason

    return reason


def test_features_are_found_in_all_directories_below(old: Path, tmp_path: Path) -> None:
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
def test_no_feature_files(old: Path, name: str) -> None:
    with pytest.raises(NoFeatures) as caught:
        list(find_features(old / name, but_not=old / "out"))
    assert caught.value.directory == str(old / name)
    assert ("named *_DNABERT_S.pt or " if not name else "No such file or directory") in str(caught.value)


def expanded() -> dict[str, Any]:
    return {"ids": list(IDS), "data": torch.ones(1).expand(3, 5)}


def merged_with(**parts: Any) -> dict[str, Any]:
    return merged() | parts


REFUSALS: dict[str, tuple[object, str]] = {
    "more ids than rows": (merged() | {"data": torch.tensor(NUMBERS[:2])}, "it has 3 ids, but features of 2"),
    "fewer": (proteins() | {"data": []}, "it has 3 ids, but features of 0"),
    "other labels": (
        nucleotides() | {"nucleotide": [IDS[0], IDS[2], IDS[1]]},
        "its features at the position of a_chunk_2F1 have another label",
    ),
    "label that is no text": (
        {"nucleotide": ["a"], "data": [{"label": 7, "mean_representation": [1.0]}]},
        "its features at the position of a have another label",
    ),
    "no labels": ({"nucleotide": ["a"], "data": [1]}, "its features at the position of a have another label"),
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
        r"it has features of the shape \(1, 3, 1\), the model's have 3",
    ),
    "bases of another model": (
        nucleotides(numbers=NUMBERS),
        "it has features of 5 numbers, the model's have 3: it is of a different model",
    ),
    "residues of another model": (proteins(numbers=NUMBERS), "features of 5 numbers, the model's have 2"),
    "merged of another model": (merged(numbers=NUMBERS[:, 1:]), "features of 4 numbers, the model's have 5"),
    "rows of two widths": (
        proteins() | {"data": [torch.ones(2), torch.ones(2), torch.ones(3)]},
        "its features are not all of the same width",
    ),
    "a matrix for each": (proteins() | {"data": [torch.ones(1, 2) for _ in IDS]}, "features of the shape"),
    "three axes": (merged_with(data=torch.ones(3, 5, 1)), r"features of the shape \(3, 5, 1\)"),
    "scalar": (merged_with(data=torch.tensor(1.0)), "not all dense floating-point tensors"),
    "no data": ({"ids": list(IDS)}, "it is not a file of features"),
    "two kinds": (proteins() | merged(), "it is not a file of features"),
    "data of another kind": (merged_with(data="abc"), "not all dense floating-point tensors"),
    "no list": ({"nucleotide": ["a"], "data": torch.ones(1, 3)}, "its 'data' is not a list"),
    "integers": (
        merged_with(data=torch.ones(3, 5, dtype=torch.int64)),
        "not all dense floating-point tensors",
    ),
    "double": (merged_with(data=torch.ones(3, 5).double()), "not all dense floating-point tensors"),
    "sparse": (merged_with(data=torch.eye(3, 5).to_sparse()), "not all dense floating-point tensors"),
    "no storage": (merged_with(data=torch.ones(3, 5, device="meta")), "not all dense floating-point tensors"),
    "lists for tensors": (proteins() | {"data": [[1.0, 2.0]] * 3}, "not all dense floating-point tensors"),
    "ids that are no names": (merged_with(ids=[1, 2, 3]), "its ids are not a list of names"),
    "ids that are no list": (merged_with(ids="abc"), "its ids are not a list of names"),
    "an id that is no text": (merged_with(ids=["a", "b", "\ud800"]), r"an id is not text: '\\ud800'"),
    "not finite": (merged(numbers=NUMBERS * np.float32("inf")), "the features of a_chunk_1F1 are not finite"),
    "beyond float32": (
        {"nucleotide": ["a"], "data": [{"label": "a", "mean_representation": [1e300, 1.0, 1.0]}]},
        "the features of a are not finite",
    ),
    "no dictionary": ([1, 2], "it is not a file of features"),
    "one number for all": (expanded(), "its tensors claim more numbers than it has"),
    "one row for all": (
        proteins() | {"data": [torch.ones(2)] * 3},
        "its tensors claim more numbers than it has",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_reused(case: str, old: Path, refused: Refused) -> None:
    found, reason = REFUSALS[case]
    saved(old / "x_merged.pt", found)
    assert re.search(reason, refused(old))


class Bomb:
    """Creates a directory when it is unpickled."""

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
    assert refused(old) == "its tensors claim more numbers than it has"


def test_a_compressed_file_is_not_unpacked(old: Path, refused: Refused) -> None:
    path = saved(old / "x_merged.pt", merged())
    repacked(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert refused(old) == "it is compressed, which torch's files are not"


@pytest.mark.parametrize("form", ["nucleotide", "merged"])
def test_a_damaged_file(form: str, old: Path, refused: Refused) -> None:
    """torch itself does not notice a bit that has changed."""
    path = saved(old / "x_merged.pt", nucleotides() if form == "nucleotide" else merged())
    whole = path.read_bytes()
    number = struct.pack(">d", 2) if form == "nucleotide" else np.float32(2).tobytes()
    at = whole.index(number)
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert "damaged: the checksum of x_merged/data" in refused(old)
    for length in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:length])
        assert "damaged" in refused(old)


def test_a_file_that_cannot_be_read(old: Path, read: Read) -> None:
    saved(old / "x_merged.pt", merged())
    (file,) = find_features(old, but_not=old / "out")
    file.path.unlink()
    features = FeatureIndex([file], (NUCLEOTIDE, PROTEIN))
    with closing(features), pytest.raises(BadFeatures, match="No such file or directory"):
        list(features.read(Directory(old)))
