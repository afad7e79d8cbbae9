"""
The embeddings of a store: a file with a row for each of its ORFs, in their order.

Until they are saved as ``merged_features.pt``, no other file has them. So the store has a fingerprint of
each row, which is compared whenever a row is read.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from struct import Struct
from typing import Self
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from virnuc_async.fileio import ZIP_ERRORS, Directory, write_all

from .output_directory import FEATURES, MERGED_FEATURES
from .rows import FINGERPRINT

Rows = NDArray[np.float32]  # (ORFs, width)
Places = Callable[[NDArray[np.int64]], NDArray[np.int64]]
Fingerprints = NDArray[np.uint64]  # (ORFs,)

_ROWS_AT_ONCE = 256  # of a saved file
_LOCAL_HEADER = Struct("<26x2H")  # of a member of a ZIP file: the lengths of its name and of what follows


class EmbeddingRows:
    """
    The rows in *directory*, each of *width* numbers; made by :meth:`open`.

    Raises, from every method:
        OSError: the file cannot be read or written, or the disk is full
    """

    def __init__(self, file: int, width: int, places: Places) -> None:
        self._file, self._width, self._places = file, width, places

    @classmethod
    @contextmanager
    def open(cls, directory: Directory, width: int, places: Places, flags: int) -> Iterator[Self]:
        """
        Open the file with *flags* of the operating system.

        *places* returns how many rows are before that of each ORF, given the numbers of the ORFs.
        """
        file = directory.opener(FEATURES, flags)
        try:
            yield cls(file, width, places)
        finally:
            os.close(file)

    def write(self, orfs: NDArray[np.int64], rows: Rows) -> None:
        """Write the rows of *orfs*; they are on the disk when this returns."""
        for place, row in zip(self._places(orfs).tolist(), rows, strict=True):
            write_all(self._file, row.tobytes(), place * row.nbytes)
        os.fsync(self._file)

    def read(self, orfs: NDArray[np.int64]) -> Rows:
        """Return the rows of *orfs*; those that the file does not have are zero."""
        rows = np.zeros((len(orfs), self._width), np.float32)
        for place, row in zip(self._places(orfs).tolist(), rows, strict=True):
            os.preadv(self._file, [row.data], place * row.nbytes)
        return rows


def fingerprints(rows: Rows) -> Fingerprints:
    """Return what each of *rows* is known by."""
    size = FINGERPRINT.itemsize
    digests = (blake2b(row.data, digest_size=size).digest() for row in np.ascontiguousarray(rows))
    return np.frombuffer(b"".join(digests), FINGERPRINT)


class SavedRows:
    """
    The rows in a ``merged_features.pt``, found by their fingerprints; none if it cannot be read.

    The file may be damaged: a row whose fingerprint is right is right.
    """

    def __init__(self, directory: Directory, width: int) -> None:
        self._rows = _map_rows(directory, width)
        self._numbers: dict[int, int] = {}
        for first in range(0, len(self._rows), _ROWS_AT_ONCE):
            block = fingerprints(self._rows[first : first + _ROWS_AT_ONCE])
            self._numbers |= {known: first + number for number, known in enumerate(block.tolist())}

    def find(self, known: Fingerprints) -> tuple[NDArray[np.bool_], Rows]:
        """Return which of the fingerprints *known* there is a row of, and these rows."""
        numbers = np.array([self._numbers.get(one, -1) for one in known.tolist()], np.int64)
        are_there = numbers >= 0
        return are_there, self._rows[numbers[are_there]]


def _map_rows(directory: Directory, width: int) -> Rows:
    """Return the numbers in the file that torch saved; none if it is not such a file."""
    none = np.empty((0, width), np.float32)
    try:
        with directory.open(MERGED_FEATURES) as file, ZipFile(file) as archive:
            (data,) = (member for member in archive.infolist() if member.filename.endswith("/data/0"))
            file.seek(data.header_offset)
            lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            begin = data.header_offset + _LOCAL_HEADER.size + sum(lengths)
            rows, rest = divmod(data.file_size, none.itemsize * width)
            if data.compress_type != ZIP_STORED or rest or not rows:
                return none
            return np.memmap(file, np.float32, "r", begin, (rows, width))
    except (OSError, BadZipFile, *ZIP_ERRORS):
        return none
