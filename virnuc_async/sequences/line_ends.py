"""
Line ends: LF, CR LF and CR alone, also where a text mixes them.

A CR in front of a LF, or several, belongs to it. A CR alone ends a line as well, except within the text
of a header, where other programs leave one. It is told apart by what follows it: a header must never
swallow sequence, and its words must not become sequence.
"""

import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

NUCLEOTIDES = b"ACGTURYSWKMBDHVNXacgturyswkmbdhvnx"  # IUPAC, and X
GAPS = b"-. \t\r"  # what may stand between them

_LF, _CR = b"\n\r"
_MAX_HELD = 64  # CRs in a row that may belong to a LF of the next block
_CRS_BEFORE_LF = re.compile(rb"(?<!\r)\r++\n")
# No longer word is made of the letters of nucleotides alone, as "strand" is, and no much longer one of
# letters: that is protein, or has a letter that is an error, and must not go unnoticed.
_LONGEST_NUCLEOTIDES, _LONGEST_WORD = 15, 30
_MAX_STRAY = 64  # CRs within one header of FASTQ
_LETTERS = bytes(range(65, 91)) + bytes(range(97, 123)) + b"*.-"


def split_last_crs(text: bytes) -> tuple[bytes, bytes]:
    """Return *text* and the CRs at its end, which may belong to a LF that follows."""
    whole = text.rstrip(b"\r")
    held = text[len(whole) :]
    if len(held) > _MAX_HELD:
        return text[:-_MAX_HELD], text[-_MAX_HELD:]
    return whole, held


def join_crlf(text: bytes) -> bytes:
    """Return *text* with LF alone for each LF behind one CR or several."""
    return _CRS_BEFORE_LF.sub(b"\n", text) if b"\n" in text else text


def has_lone_cr(text: bytes) -> bool:
    """Whether a CR in *text* has no LF right behind it."""
    # Twenty times as fast as replacing one by the other, which most texts with a CR need not.
    letters = np.frombuffer(text, np.uint8)
    return text.endswith(b"\r") or bool(np.greater(letters[:-1] == _CR, letters[1:] == _LF).any())


def count_line_ends(text: bytes) -> int:
    """Return how many line ends *text* has, in which each CR ends a line."""
    joined = join_crlf(text)
    return joined.count(b"\n") + joined.count(b"\r")


def end_fasta_lines(record: bytes) -> bytes:
    """
    Return a *record* of FASTA with LF for each CR that ends a line; those of its header's text stay.

    In a line that ends with LF, the header ends at the first CR behind which there is nothing but sequence.
    A record without a LF has lines that end with CR.
    """
    line, end, body = join_crlf(record).partition(b"\n")
    body = body.replace(b"\r", b"\n")
    if not end:
        return line.replace(b"\r", b"\n")
    below = body.lstrip().partition(b"\n")[0]
    header, *rest = line.split(b"\r")
    for number in range(len(rest)):
        if _are_sequence(rest[number:], below):
            header, rest = b"\r".join((header, *rest[:number])), rest[number:]
            return b"\n".join((header, *rest)) + end + body
    return line + end + body


def split_line_ends(text: bytes) -> list[bytes]:
    """Return the lines of *text* with their ends: each a LF and the CRs before it, or a CR alone."""
    letters = np.frombuffer(text, np.uint8)
    crs, others = np.flatnonzero(letters == _CR), np.flatnonzero(letters != _CR)
    # By what follows a row of them, at once: a row may be as long as the text.
    following = np.append(others, len(letters))[np.searchsorted(others, crs)]
    are_alone = np.append(letters, 0)[following] != _LF
    ends = np.sort(np.concatenate((np.flatnonzero(letters == _LF), crs[are_alone]))) + 1
    places = [0, *ends.tolist(), *([len(text)] if text and (not len(ends) or ends[-1] < len(text)) else [])]
    return [text[begin:end] for begin, end in pairwise(places)]


def fastq_records(lines: list[bytes]) -> Iterator[tuple[int, int]]:
    """
    Yield the first and the last line of the header of each complete record of FASTQ, in *lines*.

    Lines are those of CR and LF alike, from the beginning of a record on; where a CR ended one, it is
    still there. A header that ends with LF goes on behind its CRs up to the line before the bases.
    """
    begin = 0
    while True:
        last = _last_line_of_header(lines, begin)
        if last + 3 >= len(lines):
            return
        if lines[last].endswith(b"\r"):
            last = begin  # this record's lines end with CR
        yield begin, last
        begin = last + 4


def _last_line_of_header(lines: list[bytes], begin: int) -> int:
    last = begin
    if not lines[begin : begin + 1] or lines[begin][:1] != b"@":
        return begin
    while (
        lines[last].endswith(b"\r")
        and last + 2 < len(lines)
        and last - begin < _MAX_STRAY
        and lines[last + 1][:1] not in (b"@", b"+")
        and lines[last + 2][:1] != b"+"
        and not _is_sequence(lines[last + 1], lines[last + 2])
    ):
        last += 1
    return last


def _are_sequence(lines: list[bytes], below: bytes) -> bool:
    """Whether all *lines*, which are above the line *below* of sequence, are sequence themselves."""
    lines = [line for line in lines if line.strip()]
    if not lines:
        return False
    if not below:  # a record without bases otherwise: whatever has the form of a sequence is one
        return all(is_nucleotides(line) or not line.translate(None, _LETTERS) for line in lines)
    return all(map(_is_sequence, lines, [*lines[1:], below]))


def _is_sequence(line: bytes, below: bytes) -> bool:
    """Whether *line* is no text of a header: bases are on lines of one length, the last one aside."""
    if is_nucleotides(line) and (len(line) > _LONGEST_NUCLEOTIDES or len(line) >= len(below)):
        return True
    others = len(line.translate(None, _LETTERS))
    return len(line) > _LONGEST_WORD and 10 * others < len(line) and len(line.split()) == 1


def is_nucleotides(line: bytes) -> bool:
    """Whether *line* has letters of nucleotides and no others."""
    return bool(line.strip()) and not line.translate(None, NUCLEOTIDES + GAPS)
