"""
The parser of FASTA and FASTQ: a stream of text into contigs.

The format is detected from the first letter. Errors name their line, and all records before it have
been yielded by then. Memory is bounded by the largest record, and that by a limit.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from virnuc_async.errors import BrokenInput, NotSequences, TooLarge

from .decompression import DAMAGED, TextStream
from .foreign_formats import HEAD_BYTES, foreign_bases, foreign_fastq, foreign_format
from .line_ends import (
    GAPS,
    NUCLEOTIDES,
    count_line_ends,
    end_fasta_lines,
    has_lone_cr,
    join_crlf,
    join_fastq_headers,
    split_last_crs,
)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_EXCERPT_BYTES = 80  # that are looked at to quote a line
_MOST_PIECES = 4096  # of a block that are joined at once: a block may hold nothing but ">"

_INVALID = bytes(range(256)).translate(None, NUCLEOTIDES + GAPS)
# An RNA contig would have no stops, and an aligned one no frames: U is read as T, gaps are removed.
_AS_DNA = bytes.maketrans(b"Uu" + GAPS + _INVALID, b"Tt" + b"-" * len(GAPS) + b"?" * len(_INVALID))


class Contig(NamedTuple):
    """One record: its id is the header up to the first white space, byte for byte."""

    id: bytes
    bases: bytes  # case as in the file; no gaps, T for U


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a parser reads at a time, and at most."""

    block: int = 1 << 18  # bytes of text parsed at a time: few enough to stay in the cache
    record: int = 1 << 30  # letters of text, header and line ends included; no chromosome has as many
    id: int = 1 << 17  # a window may hold thousands of ids, and the store's largest value is 10**9 bytes


DEFAULT_LIMITS = Limits()


def first_word(header: bytes) -> bytes:
    """Return a record's id: its header up to the first white space."""
    return (header.split(None, 1) or [b""])[0]


def describe_error(error: BaseException) -> str:
    """Return what the system says about *error*, without its number and the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{error}" or type(error).__name__


def read_bases(letters: bytes) -> bytes:
    """
    Return *letters* as a file's bases are read: U as T, gaps and line ends removed.

    Raises:
        ValueError: one of them is no nucleotide letter
    """
    bases = letters.translate(_AS_DNA, b"\r\n")
    if b"?" in bases:
        invalid = letters.translate(None, NUCLEOTIDES + GAPS + b"\n")[:1]
        raise ValueError(f"{_quote(invalid)} is not a nucleotide letter (is this protein or text?)")
    return bases.replace(b"-", b"")


class FastxParser:
    """Parses one stream of text; counts records and lines as it reads."""

    def __init__(
        self,
        path: str,
        text: TextStream,
        has_changed: Callable[[], bool],
        name: Callable[[bytes], bytes],
        limits: Limits,
    ) -> None:
        self.path = path
        self.records = 0
        self._text = text
        self._has_changed = has_changed
        self._name = name
        self._limits = limits
        self._has_lone_cr = False  # so far
        self._line = 1  # of the record that is being read

    def contigs(self) -> Iterator[Contig]:
        """
        Yield every record in order.

        Raises:
            NotSequences: the content is not DNA in FASTA or FASTQ, from the named line on
            TooLarge: a record or its id is longer than the limit
            BrokenInput: the text breaks half way, or the file changed while it was read
        """
        blocks = self._blocks()
        first = self._skip_blank(blocks)
        if not first:
            return
        if first[:1] not in (b">", b"@"):
            while len(first) < HEAD_BYTES and b"\n" not in first and (more := next(blocks, b"")):
                first += more
            expected = f"expected '>' (FASTA) or '@' (FASTQ), saw {_quote(first)}"
            raise self._format_error(0, foreign_format(first) or expected)
        parse = self._fasta if first[:1] == b">" else self._fastq
        for contig in parse(chain([first], blocks)):
            self.records += 1
            yield contig

    def _blocks(self) -> Iterator[bytes]:
        """Yield the text, in which a CR is left where no LF follows it."""
        held = b""
        # read1 returns what is available: what comes before a break is not lost with it.
        try:
            while block := self._text.read1(self._limits.block):
                if held or b"\r" in block:
                    block, held = split_last_crs(held + block)
                    block = self._joined_crlf(block)
                yield block
        except DAMAGED as error:
            if held:
                yield self._joined_crlf(held)
            raise BrokenInput(self.path, self.records, describe_error(error)) from error
        if held:
            yield self._joined_crlf(held)
        if self._has_changed():
            raise BrokenInput(self.path, self.records, "it changed while it was being read")

    def _joined_crlf(self, block: bytes) -> bytes:
        """Return *block* with LF alone for CR LF, but as it is if the text has no CR alone so far."""
        self._has_lone_cr = self._has_lone_cr or has_lone_cr(block)
        return join_crlf(block) if self._has_lone_cr else block

    def _skip_blank(self, blocks: Iterator[bytes]) -> bytes:
        """Return the beginning of the text without the blank lines before it; nothing if there is no more."""
        head, mark = b"", BYTE_ORDER_MARK  # which stands at the very beginning or nowhere
        for block in blocks:
            head += block
            if len(head) < len(mark) and mark.startswith(head):
                continue
            text = head.removeprefix(mark).lstrip()
            mark = b""
            self._line += count_line_ends(head[: len(head) - len(text)])
            head = text
            if head:
                break
        return head

    def _fasta(self, blocks: Iterable[bytes]) -> Iterator[Contig]:
        # The record that is not complete yet: what came in the blocks before, except for its last
        # letter, and the pieces of this block.
        begun = io.BytesIO()
        pieces: list[bytes] = []
        for block in blocks:
            # Looking for the single letter is three times as fast as for a line end and the letter.
            continuation, *others = block.split(b">")
            if continuation:
                pieces.append(continuation)
            for piece in others:
                if pieces and self._ends_line(pieces[-1]):
                    yield self._fasta_record(_take_text(begun, pieces))
                elif len(pieces) == _MOST_PIECES:
                    begun.write(b"".join(pieces))
                    pieces.clear()
                    piece = b">" + piece
                # One piece, not two: joining takes 80 bytes for each.
                pieces.append(b">" + piece if pieces else piece)
            text = b"".join(pieces)
            begun.write(text[:-1])
            pieces = [text[-1:]]
            self._check_size(begun.tell() + len(pieces[0]))
        yield self._fasta_record(_take_text(begun, pieces))

    def _ends_line(self, text: bytes) -> bool:
        return text.endswith(b"\n") or (self._has_lone_cr and text.endswith(b"\r"))

    def _fasta_record(self, text: bytes) -> Contig:
        if len(text) > self._limits.record:
            self._check_size(len(text))
        if self._has_lone_cr and b"\r" in text:
            text = end_fasta_lines(text)
        header, end, body = text.partition(b"\n")
        letters = body.replace(b"\n", b"")
        # Without CR there are no gaps to remove from the text of most files.
        contig = Contig(self._id(header), self._checked(letters.translate(_AS_DNA, b"\r"), body))
        self._line += len(end) + len(body) - len(letters)
        return contig

    def _check_size(self, letters: int) -> None:
        """Check that the record that is being read is not longer than the limit; raise TooLarge if it is."""
        if letters > self._limits.record:
            reason = (
                f"a record of more than {self._limits.record:,} letters, header and line ends included, is "
                "not read. Cut it into several, or leave it out"
            )
            raise TooLarge(self.path, self._line, reason)

    def _whole_lines(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the text in blocks of whole lines."""
        begun = io.BytesIO()  # a line may be longer than many blocks
        for block in blocks:
            end = block.rfind(b"\n") + 1 or block.rfind(b"\r") + 1
            if end:
                yield _take_text(begun, [block[:end]])
            begun.write(block[end:])
            self._check_size(begun.tell())
        if begun.tell():
            yield begun.getvalue()

    def _fastq(self, blocks: Iterable[bytes]) -> Iterator[Contig]:
        lines: list[bytes] = []  # from the beginning of a record on
        begun = 0  # letters of the record that is not complete yet
        block, ends_are_mixed = b"", False
        for block in self._whole_lines(blocks):
            if self._has_lone_cr and not ends_are_mixed:
                # The CRs of lines before this block were in front of a LF.
                ends_are_mixed, lines = True, [line.rstrip(b"\r") for line in lines]
            may_be_large = begun + len(block) > self._limits.record
            if ends_are_mixed:
                block = block.replace(b"\r", b"\r\n")
            lines += block.removesuffix(b"\n").split(b"\n")
            if ends_are_mixed:
                complete, lines = join_fastq_headers(lines)
            else:
                whole = len(lines) // 4 * 4
                complete, lines = lines[:whole], lines[whole:]
            for number in range(0, len(complete), 4):
                record = complete[number : number + 4]
                if may_be_large:
                    self._check_size(sum(map(len, record)))
                if record[0][:1] == b"@" or any(line.strip() for line in record):
                    yield self._fastq_record(*record)
                else:
                    self._line += 4  # blank lines, as some programs leave at the end
            begun = sum(map(len, lines))
            self._check_size(begun)
        if len(lines) == 3 and block.endswith(b"\n") and not lines[1].strip() and lines[2][:1] == b"+":
            # The last line of a record without bases is empty, and may have no end.
            yield self._fastq_record(lines[0], lines[1], lines[2], b"")
        elif any(line.strip() for line in lines):
            reason = foreign_fastq(lines) or "the last record ends early"
            raise BrokenInput(self.path, self.records, f"line {self._line:,}: {reason}")

    def _fastq_record(self, header: bytes, bases: bytes, plus: bytes, quality: bytes) -> Contig:
        if header[:1] != b"@":
            raise self._format_error(0, f"expected '@' and an id, saw {_quote(header)}")
        if plus[:1] != b"+":
            foreign = foreign_fastq((header, bases, plus))
            what = f": {foreign}" if foreign else ""
            raise self._format_error(2, f"expected '+', saw {_quote(plus)}{what}")
        if len(quality.rstrip()) != len(bases.rstrip()):
            raise self._format_error(3, "the quality line is not as long as the bases")
        contig = Contig(self._id(header[1:]), self._checked(bases.translate(_AS_DNA), bases))
        self._line += 4
        return contig

    def _checked(self, bases: bytes, text: bytes) -> bytes:
        """Return the translated *bases* of *text*, which begins at the record's second line, without gaps."""
        if b"?" in bases:
            invalid = text.translate(None, NUCLEOTIDES + GAPS + b"\n")[:1]
            what = (
                foreign_bases(text)
                or f"{_quote(invalid)} is not a nucleotide letter (is this protein or text?)"
            )
            raise self._format_error(1 + text.count(b"\n", 0, text.index(invalid)), what)
        return bases.replace(b"-", b"")

    def _id(self, header: bytes) -> bytes:
        if len(header) > self._limits.id and (size := len(first_word(header))) > self._limits.id:
            reason = f"an id of {size:,} letters; at most {self._limits.id:,} are read. Shorten it"
            raise TooLarge(self.path, self._line, reason)
        return self._name(header)

    def _format_error(self, line: int, reason: str) -> NotSequences:
        return NotSequences(self.path, self._line + line, reason)


def _take_text(begun: io.BytesIO, pieces: list[bytes]) -> bytes:
    """Return *begun* and *pieces* as one, and empty both."""
    text = b"".join(pieces)
    pieces.clear()
    if begun.tell():
        begun.write(text)
        text = begun.getvalue()
        begun.seek(0)
        begun.truncate()
    return text


def _quote(text: bytes) -> str:
    """Quote the beginning of a line that may be anything, binary included."""
    line = text[:_EXCERPT_BYTES].splitlines()[0] if text.strip() else b""
    return repr(line[:30].decode("latin-1")) if line else "an empty line"
