"""
Features, which are embeddings in files: those of earlier work are read, and those of a run are written.

Feature files name ORFs and hold no sequence, so nothing in them is taken on trust: a file is checked
whole before a number of it is used, and some ORFs of every window are computed all the same, to see
that the numbers are theirs.
"""

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from virnuc_async.errors import (
    AmbiguousFeatures,
    BadCheckpoint,
    BadFeatures,
    FeatureMismatchError,
    NoFeatures,
)
from virnuc_async.fileio import check_zip, create_new, sha256
from virnuc_async.models.checkpoints import read_values
from virnuc_async.sequences.batches import BASES, RESIDUES, PrecomputedEmbeddings, SpotCheck, Window
from virnuc_async.text import plural

from .store import FEATURES, Block, Store, orf_id

# VirNucPro's names, those of its later versions, and ours.
_PATTERNS = ("*_DNABERT_S.pt", "*_DNABERT.pt", "*_ESM.pt", "*_merged.pt", "merged_features.pt")

# Embeddings of one ORF in FP32 and in BF16 were alike by 0.99994 and more; those of different ORFs by
# 0.7 to 0.96 in the middle, and by 0.9998 where they were most alike: one ORF alone proves little.
_ALIKE = 0.999
_COMPARED = 8  # ORFs of a window, beside the first one of each file

_UNKNOWN = -1
_PARTS = (BASES, RESIDUES)
_ROWS = 1024  # of a file that are in memory at a time
_BLOCK_BYTES = 64 << 20  # of features copied at a time
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_Numbers = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FeatureFile:
    """A file of features that was found; *name* is its path within the directory."""

    path: Path
    name: str
    sha256: str


def find_features(directory: Path, but_not: Path) -> Iterator[FeatureFile]:
    """
    Give the feature files anywhere in *directory*, sorted, without hidden ones and those in *but_not*.

    Raises:
        NoFeatures: there are none, or a directory cannot be read
        BadFeatures: one cannot be read
    """
    paths = sorted(_named_as_features(directory, but_not))
    if not paths:
        raise NoFeatures(str(directory), f"no file there is named {' or '.join(_PATTERNS)}")
    for path in paths:
        try:
            checksum = sha256(path)
        except OSError as error:
            raise BadFeatures(str(path), error.strerror or str(error)) from error
        yield FeatureFile(path, str(path.relative_to(directory)), checksum)


def _named_as_features(directory: Path, but_not: Path) -> Iterator[Path]:
    for root, below, names in os.walk(directory, onerror=_refuse_directory):
        below[:] = [name for name in below if not name.startswith(".")]
        if os.path.exists(but_not) and os.path.samefile(but_not, root):
            below.clear()
            continue
        for name in names:
            path = Path(root, name)
            is_named_so = any(fnmatchcase(name, pattern) for pattern in _PATTERNS)
            if is_named_so and not name.startswith(".") and path.is_file():
                yield path


def _refuse_directory(error: OSError) -> None:
    raise NoFeatures(str(error.filename), error.strerror or str(error)) from error


class Features:
    """
    What the files *found* say of ORFs: their numbers on disk, their ids in memory.

    *widths* are those of the embeddings of bases and of residues. Use from one thread at a time.
    """

    def __init__(self, found: Sequence[FeatureFile], widths: tuple[int, int]) -> None:
        self._found = tuple(found)
        self._widths = widths
        self._stride = 4 * sum(widths)
        self._rows: dict[bytes, int] = {}
        self._files = (array("i"), array("i"))  # of each part and row: the number of its file
        self._is_met = bytearray()  # of each row: whether the input has come to it
        # Of each file: whether an ORF was compared of it. There is nothing to prove of _UNKNOWN, the last.
        self._is_proven = np.append(np.zeros(len(found), bool), True)
        self._met: Counter[int] = Counter()  # ORFs of the input by the parts that are known of them
        self._scratch: IO[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Features [{len(self._found)} files, {len(self._rows)} ORFs, {self.reused} reused]>"

    @property
    def found(self) -> tuple[FeatureFile, ...]:
        """The files."""
        return self._found

    @property
    def reused(self) -> int:
        """The number of ORFs of the input, as far as it was read, of which something was known."""
        return sum(count for part, count in self._met.items() if part)

    def close(self) -> None:
        """Forget the numbers; nothing of them is left on disk."""
        if self._scratch is not None:
            self._scratch.close()

    def read(self, directory: Path) -> Iterator[None]:
        """
        Read all files, one at each step; their numbers go to a file without a name in *directory*.

        Raises:
            BadFeatures: a file is damaged, hostile, or of other widths
            AmbiguousFeatures: an ORF has different numbers
            OSError: the disk is full
        """
        # Without a name, it is gone with this process, however that ends.
        self._scratch = TemporaryFile(dir=directory)  # noqa: SIM115
        for number, file in enumerate(self._found):
            for part, ids, numbers in _blocks(file.path, self._widths):
                self._add(number, part, ids, numbers)
            yield

    def lookup(self, window: Window) -> "RecalledWindow | None":
        """
        Look up the ORFs of *window*; to be called for every window once, in order.

        Raises:
            AmbiguousFeatures: the input had an ORF of this id before
        """
        if not self._rows:
            return None
        ids = list(_window_ids(window))
        rows = np.fromiter((self._rows.get(id, _UNKNOWN) for id in ids), np.int64, len(ids))
        for at in np.flatnonzero(rows != _UNKNOWN).tolist():
            self._meet(ids[at], int(rows[at]))
        of_files = (np.frombuffer(files, np.int32) for files in self._files)
        files = np.stack([np.where(rows == _UNKNOWN, _UNKNOWN, of_file[rows]) for of_file in of_files])
        parts = _parts(files)
        self._met += _counts(parts)
        return RecalledWindow(self, ids, rows, files, parts, self._to_compare(files))

    def numbers(self, part: int, rows: NDArray[np.int64]) -> _Numbers:
        """Give one part of *rows*, all of which have it."""
        assert self._scratch is not None
        file, width, offset = self._scratch.fileno(), self._widths[part], self._offset(part)
        numbers = np.empty((len(rows), width), np.float32)
        for row, own in zip(rows.tolist(), numbers, strict=True):
            os.preadv(file, [own.data], row * self._stride + offset)
        return numbers

    def sources(self, files: Iterable[int]) -> tuple[str, ...]:
        """Give the paths of *files*, each once."""
        return tuple(str(self._found[file].path) for file in sorted(set(files)) if file != _UNKNOWN)

    def found_text(self) -> str:
        """Say what the files hold."""
        parts = _parts(np.stack([np.array(files) for files in self._files]))
        told = _told(_counts(parts))
        return f"found {plural(len(self._found), 'file')} of features, of {len(parts):,} ORFs: {told}"

    def used_text(self) -> str:
        """Say what was known of the ORFs of the input."""
        return f"features were reused for {self.reused:,} of {self._met.total():,} ORFs: {_told(self._met)}"

    def _offset(self, part: int) -> int:
        return 4 * self._widths[0] * part

    def _add(self, file: int, part: int, ids: Sequence[bytes], numbers: _Numbers) -> None:
        assert self._scratch is not None
        scratch, files = self._scratch.fileno(), self._files[part]
        for id, own in zip(ids, numbers, strict=True):
            row = self._rows.setdefault(id, len(self._rows))
            if row == len(self._is_met):
                self._is_met.append(False)
                for each in self._files:
                    each.append(_UNKNOWN)
            if files[row] == _UNKNOWN:
                _write(scratch, own.tobytes(), row * self._stride + self._offset(part))
                files[row] = file
            elif not np.array_equal(self.numbers(part, np.array([row]))[0], own):
                where = " and ".join(self.sources((files[row], file)))
                raise AmbiguousFeatures(_text(id), f"it has different numbers in {where}")

    def _meet(self, id: bytes, row: int) -> None:
        if self._is_met[row]:
            where = " and ".join(self.sources(files[row] for files in self._files))
            raise AmbiguousFeatures(_text(id), f"the input has it twice, and it is in {where}")
        self._is_met[row] = True

    def _to_compare(self, files: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Choose ORFs of a window: some all along it, and the first one of every file."""
        is_chosen = np.zeros(files.shape[1], bool)
        reused = np.flatnonzero((files != _UNKNOWN).any(0))
        some = np.linspace(0, len(reused) - 1, min(_COMPARED, len(reused))).astype(np.int64)
        is_chosen[reused[some]] = True
        for of_part in files:
            numbers, firsts = np.unique(of_part, return_index=True)
            is_chosen[firsts[~self._is_proven[numbers]]] = True
        self._is_proven[files[:, is_chosen]] = True
        return is_chosen


@dataclass(frozen=True, slots=True)
class RecalledWindow:
    """What is known of a window's ORFs, each in its row."""

    features: Features
    ids: Sequence[bytes]
    rows: NDArray[np.int64]  # (ORFs,): theirs among the features
    files: NDArray[np.int32]  # (2, ORFs): that each part is from
    parts: NDArray[np.int64]  # (ORFs,)
    is_compared: NDArray[np.bool_]  # (ORFs,)

    def known(self, rows: NDArray[np.int64]) -> PrecomputedEmbeddings:
        """Give the embeddings of *rows*, which have the same parts."""
        parts = self.parts[rows[0]]
        own = self.rows[rows]
        bases, residues = (
            self.features.numbers(number, own) if parts & part else None for number, part in enumerate(_PARTS)
        )
        compared = np.flatnonzero(self.is_compared[rows]).tolist()
        return PrecomputedEmbeddings(
            bases, residues, tuple(self._compared(at, int(rows[at])) for at in compared)
        )

    def _compared(self, at: int, row: int) -> SpotCheck:
        sources = self.features.sources(self.files[:, row].tolist())
        return SpotCheck(at, _text(self.ids[row]), sources)


def check_similarity(known: PrecomputedEmbeddings, similarity: NDArray[np.float32]) -> None:
    """
    See that what is *known* is what the model gives; *likeness* has a row for each that was compared.

    Raises:
        FeatureMismatchError: it is not
    """
    for one, own in zip(known.compared, similarity.min(1, initial=1).tolist(), strict=True):
        if not own >= _ALIKE:  # a NaN neither
            raise FeatureMismatchError(one.id, one.sources, own, _ALIKE)


def _blocks(path: Path, widths: tuple[int, int]) -> Iterator[tuple[int, list[bytes], _Numbers]]:
    """Give which part is known of which ORFs, with the numbers, some at a time."""
    room = _room_in(path)
    found = _read(path)
    keys = [key for key in _FORMS if key in found]
    if len(keys) != 1 or "data" not in found:
        raise BadFeatures(str(path), "it is not a file of features")
    check, read, parts = _FORMS[keys[0]]
    names, data = found[keys[0]], found["data"]
    ids = _ids(path, names)
    check(path, data, room)
    if len(ids) != len(data):
        # Which rows were left out, nobody knows: joined by position, all behind the first were others'.
        raise BadFeatures(str(path), f"it has {len(ids):,} ids, but features of {len(data):,}")
    width = sum(widths[part] for part in parts)
    for first in range(0, len(ids), _ROWS):
        some = slice(first, first + _ROWS)
        numbers = read(path, names[some], data[some], width)
        _check_finite(path, ids[some], numbers)
        # One part, or both side by side.
        halves = np.split(numbers, [widths[0]], 1) if len(parts) == len(widths) else [numbers]
        yield from ((part, ids[some], half) for part, half in zip(parts, halves, strict=True))


def _room_in(path: Path) -> int:
    """Return the bytes of numbers in *path*; raise BadFeatures if it is not as torch wrote it."""
    try:
        members = check_zip(path, verify_checksums=True)  # torch itself verifies none
    except (BadZipFile, OSError) as error:
        raise BadFeatures(str(path), f"damaged, or not a file of torch's ({error})") from error
    except ValueError as error:
        raise BadFeatures(str(path), str(error)) from error
    return sum(member.file_size for member in members if "/data/" in member.filename)


def _read(path: Path) -> Mapping[Any, Any]:
    try:
        found = read_values(path)
    except BadCheckpoint as error:
        raise BadFeatures(str(path), error.reason) from error
    return found if isinstance(found, dict) else {}


def _ids(path: Path, ids: Any) -> list[bytes]:
    if not isinstance(ids, list) or not all(isinstance(id, str) for id in ids):
        raise BadFeatures(str(path), "its ids are not a list of names")
    try:
        return [id.encode("utf-8", "surrogateescape") for id in ids]
    except UnicodeEncodeError as error:
        raise BadFeatures(str(path), f"an id is no text: {error.object!a}") from error


def _check_list(path: Path, data: Any, room: int) -> None:
    if not isinstance(data, list):
        raise BadFeatures(str(path), "its 'data' are not a list")


def _check_tensors(path: Path, data: Any, room: int) -> None:
    """See that *data* are tensors, one for each ORF or one of them all, of no more numbers than there are."""
    rows = data if isinstance(data, list) else [data]
    if not all(_is_plain(row) for row in rows):
        raise BadFeatures(str(path), "its features are not all dense floating-point tensors")
    storages = {row.untyped_storage().data_ptr(): row.untyped_storage().nbytes() for row in rows}
    claimed = sum(row.numel() * row.element_size() for row in rows)
    # A storage may be that of several rows, and may claim what lies behind it in the file.
    if claimed > min(room, sum(storages.values())):
        raise BadFeatures(str(path), "its tensors claim more numbers than it holds")


def _labelled(path: Path, names: list[str], data: Any, width: int) -> _Numbers:
    """Read what DNABERT-S gave: a list of numbers under a label, for each ORF."""
    rows = [row if isinstance(row, dict) else {} for row in data]
    for name, row in zip(names, rows, strict=True):
        label = row.get("label")
        if not isinstance(label, str) or label != name:
            raise BadFeatures(str(path), f"its features in the place of {name} are of another label")
    try:
        numbers = torch.tensor([row.get("mean_representation") for row in rows], dtype=torch.float32)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise BadFeatures(str(path), f"its features are not lists of numbers ({error})") from error
    return _of_width(path, numbers, width)


def _stacked(path: Path, names: list[str], data: Any, width: int) -> _Numbers:
    """Read what ESM-2 gave, or both embeddings side by side."""
    if isinstance(data, list):
        if len({row.shape for row in data}) > 1:
            raise BadFeatures(str(path), "its features are not all of the same width")
        data = torch.stack(data)
    return _of_width(path, data.float(), width)


def _is_plain(tensor: Any) -> bool:
    return (
        type(tensor) is Tensor
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in _DTYPES
        and tensor.dim() > 0
    )


def _of_width(path: Path, numbers: Tensor, width: int) -> _Numbers:
    shape = tuple(numbers.shape)
    if len(shape) != 2 or shape[1] != width:
        given = f"features of {shape[-1]:,} numbers" if len(shape) == 2 else f"features of the shape {shape}"
        raise BadFeatures(str(path), f"it has {given}, the model gives {width:,}: it is another model's")
    return numbers.detach().numpy()


def _check_finite(path: Path, ids: list[bytes], numbers: _Numbers) -> None:
    strange = np.flatnonzero(~np.isfinite(numbers).all(1))
    if len(strange):
        raise BadFeatures(str(path), f"the features of {_text(ids[strange[0]])} are not finite")


_Check = Callable[[Path, Any, int], None]
_Read = Callable[[Path, list[str], Any, int], _Numbers]
_FORMS: Mapping[str, tuple[_Check, _Read, tuple[int, ...]]] = {  # by the key of the ids; parts by number
    "nucleotide": (_check_list, _labelled, (0,)),
    "proteins": (_check_tensors, _stacked, (1,)),
    "ids": (_check_tensors, _stacked, (0, 1)),
}


def _text(id: bytes) -> str:
    return id.decode("utf-8", "surrogateescape")


def _parts(files: NDArray[np.int32]) -> NDArray[np.int64]:
    """Give which parts are known of each ORF, by the *files* (2, ORFs) that they are from."""
    parts: NDArray[np.int64] = np.array(_PARTS) @ (files != _UNKNOWN)
    return parts


def _counts(parts: NDArray[np.int64]) -> Counter[int]:
    return Counter(dict(enumerate(np.bincount(parts).tolist())))


def _told(parts: Mapping[int, int]) -> str:
    """Say of how many ORFs which parts are known."""
    both, bases, residues = (parts.get(part, 0) for part in (BASES + RESIDUES, BASES, RESIDUES))
    return f"{both:,} with both embeddings, {bases:,} with DNABERT-S's alone, {residues:,} with ESM-2's alone"


def _write(file: int, content: bytes, at: int) -> None:
    """Write all of it: a disk that is filling up may take a part and say nothing."""
    while content:
        written = os.pwrite(file, content, at)
        content, at = content[written:], at + written


def _window_ids(window: Window) -> Iterator[bytes]:
    """Give the published id of each ORF of *window*."""
    names = [window.before, *(row.id for row in window.contigs)]
    first = window.contigs[0].number - 1 if window.contigs else int(window.origins[:, 0].max(initial=0))
    return (
        orf_id(names[contig - first], fragment, frame) for contig, fragment, frame in window.origins.tolist()
    )


def save_features(store: Store, width: int, path: Path) -> None:
    """
    Write ``merged_features.pt``: the ids and embeddings of every scored ORF, in input order.

    *width* is that of both embeddings together. The numbers go from file to file in blocks; only
    the ids are held in memory.
    """
    ids: list[str] = []
    numbers = [np.empty(0, np.int64)]
    for block in store.blocks():
        ids += map(_text, _orf_ids(block))
        numbers.append(block.scores["orf"])
    orfs = np.concatenate(numbers)
    if not ids:
        _save({"ids": ids, "data": torch.empty(0, width)}, path)
        return
    # Rows of failed ORFs are left out, so the rows are packed anew beside their first place.
    packed = path.with_suffix(".rows")
    every = np.memmap(store.directory / FEATURES, np.float32, "r").reshape(-1, width)
    step = max(1, _BLOCK_BYTES // (4 * width))
    # Written, not mapped for writing: a disk that is full ends a process that writes to a map.
    with create_new(packed) as file:
        for start in range(0, len(orfs), step):
            file.write(every[orfs[start : start + step]].data)
    data = np.memmap(packed, np.float32, "c", shape=(len(orfs), width))
    _save({"ids": ids, "data": torch.from_numpy(data)}, path)
    packed.unlink()


def _save(features: dict[str, Any], path: Path) -> None:
    try:
        with create_new(path) as file:
            torch.save(features, file)
    except RuntimeError as error:
        # torch hides behind an error of its own why the file could not be written.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _orf_ids(block: Block) -> Iterator[bytes]:
    """Give the published id of each ORF, one by one."""
    places = (block.scores[name].tolist() for name in ("fragment", "frame"))
    return map(orf_id, map(block.ids.split(b"\n").__getitem__, block.rows.tolist()), *places)
