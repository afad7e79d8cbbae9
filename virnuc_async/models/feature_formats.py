"""
The format of files of embeddings, which VirNucPro and this program write.

Anybody may have written them, so a file is checked completely before an embedding of it is used.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from virnuc_async.errors import BadCheckpoint, BadFeatures
from virnuc_async.fileio import check_zip, unwrapped_torch_errors

from .checkpoints import read_values

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Vectors = NDArray[np.float32]  # (ORFs, width)


def read_features(
    path: Path, widths: tuple[int, int], rows_at_once: int
) -> Iterator[tuple[int, list[bytes], Vectors]]:
    """
    Yield the number of a part (0: bases, 1: residues), ids of ORFs and their embeddings, block by block.

    Raises:
        BadFeatures: the file is damaged, hostile, or of other widths
    """
    size = _check_archive(path)
    content = _read_content(path)
    keys = [key for key in _FORMATS if key in content]
    if len(keys) != 1 or "data" not in content:
        raise BadFeatures(str(path), "it is not a file of features")
    check, read, parts = _FORMATS[keys[0]]
    names, data = content[keys[0]], content["data"]
    ids = _encode_ids(path, names)
    check(path, data, size)
    if len(ids) != len(data):
        # It is unknown which rows are missing: joined by position, the rows after the first gap are wrong.
        raise BadFeatures(str(path), f"it has {len(ids):,} ids, but features of {len(data):,}")
    width = sum(widths[part] for part in parts)
    for first in range(0, len(ids), rows_at_once):
        block = slice(first, first + rows_at_once)
        vectors = read(path, names[block], data[block], width)
        _check_finite(path, ids[block], vectors)
        # One part, or both next to each other.
        halves = np.split(vectors, [widths[0]], 1) if len(parts) == len(widths) else [vectors]
        yield from ((part, ids[block], half) for part, half in zip(parts, halves, strict=True))


def save_features(ids: Sequence[str], vectors: Vectors, file: BinaryIO) -> None:
    """
    Write a file of both embeddings of each ORF next to each other; *vectors* may be a memory map.

    Raises:
        OSError: the disk is full
    """
    with unwrapped_torch_errors():
        torch.save({"ids": list(ids), "data": torch.from_numpy(vectors)}, file)


def _check_archive(path: Path) -> int:
    """Return how many bytes of tensors are in *path*; check its checksums, which torch does not."""
    try:
        members = check_zip(path, verify_checksums=True)
    except (BadZipFile, OSError) as error:
        raise BadFeatures(str(path), f"damaged, or not a file of torch's ({error})") from error
    except ValueError as error:
        raise BadFeatures(str(path), str(error)) from error
    return sum(member.file_size for member in members if "/data/" in member.filename)


def _read_content(path: Path) -> Mapping[Any, Any]:
    try:
        content = read_values(path)
    except BadCheckpoint as error:
        raise BadFeatures(str(path), error.reason) from error
    return content if isinstance(content, dict) else {}


def _encode_ids(path: Path, names: Any) -> list[bytes]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadFeatures(str(path), "its ids are not a list of names")
    try:
        return [name.encode("utf-8", "surrogateescape") for name in names]
    except UnicodeEncodeError as error:
        raise BadFeatures(str(path), f"an id is not text: {error.object!a}") from error


def _check_list(path: Path, data: Any, size: int) -> None:
    if not isinstance(data, list):
        raise BadFeatures(str(path), "its 'data' is not a list")


def _check_tensors(path: Path, data: Any, size: int) -> None:
    """Check that *data* is tensors, one for each ORF or one of all, of no more than *size* bytes."""
    rows = data if isinstance(data, list) else [data]
    if not all(_is_float_tensor(row) for row in rows):
        raise BadFeatures(str(path), "its features are not all dense floating-point tensors")
    storages = {row.untyped_storage().data_ptr(): row.untyped_storage().nbytes() for row in rows}
    claimed = sum(row.numel() * row.element_size() for row in rows)
    # Several rows may share a storage, and a storage may claim what comes after it in the file.
    if claimed > min(size, sum(storages.values())):
        raise BadFeatures(str(path), "its tensors claim more numbers than it has")


def _is_float_tensor(tensor: Any) -> bool:
    return (
        type(tensor) is Tensor
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in _DTYPES
        and tensor.dim() > 0
    )


def _read_labelled_lists(path: Path, names: list[str], data: Any, width: int) -> Vectors:
    """Return the embeddings of DNABERT-S: a list of numbers and a label for each ORF."""
    rows = [row if isinstance(row, dict) else {} for row in data]
    for name, row in zip(names, rows, strict=True):
        label = row.get("label")
        if not isinstance(label, str) or label != name:
            raise BadFeatures(str(path), f"its features at the position of {name} have another label")
    try:
        vectors = torch.tensor([row.get("mean_representation") for row in rows], dtype=torch.float32)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise BadFeatures(str(path), f"its features are not lists of numbers ({error})") from error
    return _check_width(path, vectors, width)


def _read_tensors(path: Path, names: list[str], data: Any, width: int) -> Vectors:
    """Return the embeddings of ESM-2, or both embeddings next to each other."""
    if isinstance(data, list):
        if len({row.shape for row in data}) > 1:
            raise BadFeatures(str(path), "its features are not all of the same width")
        data = torch.stack(data)
    return _check_width(path, data.float(), width)


def _check_width(path: Path, vectors: Tensor, width: int) -> Vectors:
    shape = tuple(vectors.shape)
    if len(shape) != 2 or shape[1] != width:
        actual = f"{shape[-1]:,} numbers" if len(shape) == 2 else f"the shape {shape}"
        reason = f"it has features of {actual}, the model's have {width:,}: it is of a different model"
        raise BadFeatures(str(path), reason)
    return vectors.detach().numpy()


def _check_finite(path: Path, ids: list[bytes], vectors: Vectors) -> None:
    invalid = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(invalid):
        raise BadFeatures(
            str(path), f"the features of {ids[invalid[0]].decode('utf-8', 'surrogateescape')} are not finite"
        )


_Check = Callable[[Path, Any, int], None]
_Read = Callable[[Path, list[str], Any, int], Vectors]
_FORMATS: Mapping[str, tuple[_Check, _Read, tuple[int, ...]]] = {  # by the key of the ids; parts by number
    "nucleotide": (_check_list, _read_labelled_lists, (0,)),
    "proteins": (_check_tensors, _read_tensors, (1,)),
    "ids": (_check_tensors, _read_tensors, (0, 1)),
}
