"""
Columns of text as byte matrices, and the lines of a table made of them.

Tables have millions of rows: numbers are formatted a whole column at a time.
"""

from collections.abc import Generator, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The content of a file in chunks. Closing it also closes the queries that it reads from.
Chunks = Generator[bytes, None, None]

# (rows, width): shorter values are padded with a byte that occurs in no value; joining lines removes it.
TextColumn = NDArray[np.uint8]
_PADDING = ord("\r")
_SPACES = bytes.maketrans(b"\t\n\r", b"   ")

# As str() does it: numbers up to the first are written in scientific notation, and none above the second
# is a probability.
_FIXED_ABOVE, _FIXED_UP_TO = np.array([1e-4, 1], np.float32).view(np.int32)
_DECIMALS = 12  # enough for any float32 above 1e-4
_FOUR_DIGITS = np.array([b"%04d" % number for number in range(10_000)]).view(np.uint32)


def text_column(values: Iterable[bytes]) -> TextColumn:
    """Return *values* as a column; index it to repeat them in any order."""
    values = tuple(values)
    lengths = np.array([len(value) for value in values])
    text = np.full((len(values), lengths.max()), _PADDING, np.uint8)
    text[np.arange(text.shape[1]) < lengths[:, None]] = np.frombuffer(b"".join(values), np.uint8)
    return text


def constant_column(value: bytes, rows: int) -> TextColumn:
    """Return a column with the same *value* in each row."""
    return np.broadcast_to(np.frombuffer(value, np.uint8), (rows, len(value)))


def integer_column(numbers: NDArray[Any]) -> TextColumn:
    """Return *numbers*, which are not negative, in decimal."""
    width = len(str(numbers.max(initial=0)))
    left = numbers[:, None] // 10 ** np.arange(width)[::-1]
    text = (left % 10 + ord("0")).astype(np.uint8)
    text[:, :-1][left[:, :-1] == 0] = _PADDING
    return text


def float_column(numbers: NDArray[np.floating[Any]]) -> TextColumn:
    """Return *numbers* as ``str`` formats a float32: the shortest decimal that is read back as the same."""
    singles = numbers.astype(np.float32)
    # Each of the 112 million numbers that are formatted as columns has been compared with its str().
    is_special = _are_special(singles)
    text = _fixed_point(np.where(is_special, 0, singles).astype(np.float64))
    if not is_special.any():
        return text
    special = text_column(str(single).encode() for single in singles[is_special])
    wide = np.full((len(text), max(text.shape[1], special.shape[1])), _PADDING, np.uint8)
    wide[~is_special, : text.shape[1]] = text[~is_special]
    wide[is_special, : special.shape[1]] = special
    return wide


def optional_column(numbers: NDArray[np.floating[Any]]) -> TextColumn:
    """Return *numbers* as :func:`float_column` does, with an empty field for each NaN."""
    is_missing = np.isnan(numbers)
    text = float_column(np.where(is_missing, 0, numbers))
    text[is_missing] = _PADDING
    return text


def decimal_column(numbers: NDArray[np.float64], decimals: int) -> TextColumn:
    """Return *numbers* of any sign with so many *decimals*, with an empty field for each NaN."""
    is_missing = np.isnan(numbers)
    units = np.rint(np.where(is_missing, 0, numbers) * 10**decimals).astype(np.int64)
    whole, rest = np.divmod(np.abs(units), 10**decimals)
    signs = np.where(units < 0, np.uint8(ord("-")), np.uint8(_PADDING))[:, None]
    digits = (rest[:, None] // 10 ** np.arange(decimals)[::-1] % 10 + ord("0")).astype(np.uint8)
    text = np.hstack((signs, integer_column(whole), constant_column(b".", len(units)), digits))
    text[is_missing] = _PADDING
    return text


def printed_numbers(numbers: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return *numbers*, probabilities, as whoever reads them from a table gets them: as printed, in FP64."""
    singles = numbers.astype(np.float32)
    is_special = _are_special(singles)
    exact = np.where(is_special, 0, singles).astype(np.float64)
    scale = 10.0 ** _decimals_needed(exact)
    # The quotient of two whole numbers that FP64 represents is the nearest to the decimal.
    printed: NDArray[np.float64] = np.rint(exact * scale) / scale
    printed[is_special] = [float(str(single)) for single in singles[is_special]]
    return printed


def fragment_suffixes(numbers: NDArray[np.int32]) -> TextColumn:
    """Return what follows a contig's id in the published names of its fragments."""
    return np.hstack((constant_column(b"_chunk_", len(numbers)), integer_column(numbers)))


def join_lines(names: Iterable[str], *columns: TextColumn) -> list[str]:
    """Return a line for each row: a name with the first column right behind it, and the others after tabs."""
    tab, end = (constant_column(mark, len(columns[0])) for mark in (b"\t", b"\n"))
    parts = [part for column in columns for part in (column, tab)]
    text = np.hstack([*parts[:-1], end]).tobytes().translate(None, bytes([_PADDING])).decode("latin-1")
    # Names are not a column: a single one may be as long as all the others together.
    return [name + rest for name, rest in zip(names, text.split("\n")[:-1], strict=True)]


def one_line(field: bytes) -> bytes:
    """Return *field* with spaces in place of its tabs and line ends."""
    return field.translate(_SPACES)


def encode_lines(lines: list[str]) -> bytes:
    """Return *lines*, which have no line ends, as the bytes of a file."""
    return "\n".join([*lines, ""]).encode("latin-1")


def _are_special(singles: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which numbers ``str`` writes in scientific notation, and which are no probabilities."""
    # Compared as integers, to recognize a negative zero.
    bits = singles.view(np.int32)
    are_special: NDArray[np.bool_] = (bits != 0) & ((bits <= _FIXED_ABOVE) | (bits > _FIXED_UP_TO))
    return are_special


def _fixed_point(numbers: NDArray[np.float64]) -> TextColumn:
    decimals = _decimals_needed(numbers)
    left = (np.rint(numbers * 10.0**decimals) * 10.0 ** (_DECIMALS - decimals)).astype(np.int64)
    groups = np.empty((len(numbers), _DECIMALS // 4), np.uint32)
    for column in reversed(range(_DECIMALS // 4)):
        left, group = np.divmod(left, 10_000)
        groups[:, column] = _FOUR_DIGITS[group]
    digits = groups.view(np.uint8)
    np.copyto(digits, _PADDING, where=np.arange(_DECIMALS) >= decimals[:, None])
    return np.hstack((integer_column(left), constant_column(b".", len(numbers)), digits))


def _decimals_needed(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many decimals each float32 needs to be read back as the same."""
    needed = np.zeros(len(numbers), np.int64)
    left = np.arange(len(numbers))
    for count in range(1, _DECIMALS + 1):
        scale, values = 10.0**count, numbers[left]
        is_enough = (np.rint(values * scale) / scale).astype(np.float32) == values.astype(np.float32)
        needed[left[is_enough]] = count
        left = left[~is_enough]
    return needed
