"""
FASTQ that is plainly in order, many records at a time: of four lines that end with LF, without gaps.

Most FASTQ is. What is not, or may not be, is left to the parser, which reads whatever can be read.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .decompression import DAMAGED, TextStream
from .fastx import Limits, are_bases

_MOST = 1 << 23  # bytes of text at once: a record that is longer is left to the parser
_LF, _AT, _PLUS, _SPACE = b"\n@+ "


@dataclass(frozen=True, slots=True)
class Part:
    """Complete records of FASTQ, four lines each, all of which end with LF."""

    text: bytes
    lines: NDArray[np.int64]  # (records, 4, 2): the range of each in the text, half-open, without its end

    @property
    def headers(self) -> list[bytes]:
        """The headers of the records."""
        return self._line(0)

    def lengths(self, limits: Limits) -> NDArray[np.int64] | None:
        """Return the length of each record in bases; None if they are not plainly in order."""
        begins, sizes = self.lines[..., 0], self.lines[..., 1] - self.lines[..., 0]
        letters = np.frombuffer(self.text, np.uint8)
        if (
            (sizes[:, 0] <= limits.id).all()
            and (sizes.sum(1) <= limits.record).all()
            and (letters[begins[:, 0]] == _AT).all()
            and (letters[begins[:, 2]] == _PLUS).all()
            and (sizes[:, 1] == sizes[:, 3]).all()
            # Space at the end of either line does not count.
            and (letters[self.lines[:, 3, 1] - 1] > _SPACE).all()
            and are_bases(b"".join(self._line(1)))
        ):
            return sizes[:, 1]
        return None

    def _line(self, number: int) -> list[bytes]:
        begins, ends = self.lines[:, number].T.tolist()
        text = self.text
        return [text[begin:end] for begin, end in zip(begins, ends, strict=True)]


class FastqParts:
    """Takes what is FASTQ, with LF, from the beginning of a stream of text; it is a stream of the rest."""

    def __init__(self, text: TextStream, limits: Limits) -> None:
        self._stream = text
        self._block, self._most = limits.block, min(limits.record, _MOST)
        self._rest = b""  # that was read, and not taken
        self._error: BaseException | None = None  # behind it

    def take(self) -> Part | None:
        """Return the next part; None if the rest, if there is one, is for a parser."""
        while len(self._rest) <= self._most:
            block = self._read()
            self._rest += block
            if not block or b"\r" in block or not self._rest.startswith(b"@"):
                return None
            ends = np.flatnonzero(np.frombuffer(self._rest, np.uint8) == _LF)
            ends = ends[: len(ends) // 4 * 4]
            if len(ends):
                size = int(ends[-1]) + 1
                text, self._rest = self._rest[:size], self._rest[size:]
                begins = np.concatenate(([0], ends[:-1] + 1))
                return Part(text, np.column_stack((begins, ends)).reshape(-1, 4, 2))
        return None

    def read1(self, size: int, /) -> bytes:
        """Return what is available, at most *size* bytes; nothing at the end."""
        if self._rest:
            text, self._rest = self._rest[:size], self._rest[size:]
            return text
        if self._error is not None:
            raise self._error
        return self._stream.read1(size)

    def _read(self) -> bytes:
        try:
            return self._stream.read1(self._block)
        except DAMAGED as error:
            self._error = error
            return b""
