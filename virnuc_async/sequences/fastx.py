"""
The parser of FASTA and FASTQ: a stream of text into contigs.

The format is detected from the first letter. Errors name their line, and all records before it have
been yielded by then. Memory is bounded by the largest record, and that by a limit.
"""

import io
from collections.abc import Callable, Generator, Iterable, Iterator
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
    fastq_records,
    has_lone_cr,
    split_last_crs,
    split_line_ends,
)
from .segments import START, SeekPoint

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


def are_bases(letters: bytes) -> bool:
    """Return whether all *letters* are those of nucleotides, none is a gap, and no line ends within them."""
    translated = letters.translate(_AS_DNA)
    return b"?" not in translated and b"-" not in translated


class FastxParser:
    """Parses one stream of text; counts records and lines, and has the text of the last record."""

    def __init__(
        self,
        path: str,
        text: TextStream,
        has_changed: Callable[[], bool],
        name: Callable[[bytes], bytes] = first_word,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.path = path
        self.records = 0
        self._text_stream = text
        self._has_changed = has_changed
        self._name = name
        self._limits = limits
        self._has_lone_cr = False  # so far
        self._line = 1  # of the record that is being read
        self.mark = START  # in the text: the first record that was complete with the current block
        self._why_broken = ""
        self._position = 0  # bytes of the text before the record that is being read; FASTQ: before its block
        # Of the record that was read last. FASTA: its text without ">", and the letters of its header.
        # FASTQ: its lines, and whether they have their ends.
        self._fasta_text = b"", 0
        self._fastq_lines: tuple[list[bytes], bool] = [], True
        self.is_fastq = False  # as long as nothing is known; may be set by who does

    @property
    def text(self) -> tuple[bytes, ...]:
        """
        The text of the record that was yielded last, as it is in the file, in parts one after the other.

        Each part but the last ends with the header's text, which FASTQ may repeat behind the plus sign.
        """
        if self.is_fastq:
            lines, have_ends = self._fastq_lines
            return _fastq_parts(lines if have_ends else [line + b"\n" for line in lines])
        text, header = self._fasta_text
        return b">" + text[:header], text[header:]

    def contigs(self, start: SeekPoint = START) -> Generator[Contig, None, None]:
        """
        Yield every record in order, from *start* on, the offset of which the text begins at.

        Raises:
            NotSequences: the content is not DNA in FASTA or FASTQ, from the named line on
            TooLarge: a record or its id is longer than the limit
            BrokenInput: the text breaks half way, or the file changed while it was read
        """
        blocks = self._blocks(start.skip)
        if start.record:
            self.records, self._line, self._has_lone_cr = start.record, start.line, start.has_lone_cr
            self._position = start.skip
            first = next(blocks, b"")
        else:
            first = self._skip_blank(blocks)
        if not first:
            return
        if first[:1] not in (b">", b"@") and not self.is_fastq:
            while len(first) < HEAD_BYTES and b"\n" not in first and (more := next(blocks, b"")):
                first += more
            expected = f"expected '>' (FASTA) or '@' (FASTQ), saw {_quote(first)}"
            raise self._format_error(0, foreign_format(first) or expected)
        self.is_fastq = self.is_fastq or first[:1] == b"@"
        parse = self._fastq if self.is_fastq else self._fasta
        for contig in parse(chain([first], blocks)):
            self.records += 1
            yield contig

    def _blocks(self, skip: int) -> Iterator[bytes]:
        """Yield the text behind *skip* bytes, in blocks that part no CR from the LF behind it."""
        held = b""
        # read1 returns what is available: what comes before a break is not lost with it.
        try:
            while block := self._text_stream.read1(self._limits.block):
                if skip:
                    skip, block = max(0, skip - len(block)), block[skip:]
                    if not block:
                        continue
                if held or b"\r" in block:
                    block, held = split_last_crs(held + block)
                    self._has_lone_cr = self._has_lone_cr or has_lone_cr(block)
                yield block
        except DAMAGED as error:
            if held:
                self._has_lone_cr = True
                yield held
            raise self._broken(describe_error(error)) from error
        if held:
            self._has_lone_cr = True
            yield held
        if skip or self._has_changed():
            raise self._broken("it changed while it was being read")

    def _broken(self, reason: str) -> BrokenInput:
        self._why_broken = reason
        return BrokenInput(self.path, self.records, reason)

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
            self._position += len(head) - len(text)
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
            is_marked = False
            # Looking for the single letter is three times as fast as for a line end and the letter.
            continuation, *others = block.split(b">")
            if continuation:
                pieces.append(continuation)
            for piece in others:
                if pieces and self._ends_line(pieces[-1]):
                    yield self._fasta_record(_take_text(begun, pieces), not is_marked)
                    is_marked = True
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

    def _fasta_record(self, text: bytes, is_first: bool = False) -> Contig:
        if len(text) > self._limits.record:
            self._check_size(len(text))
        original = text
        if self._has_lone_cr and b"\r" in text:
            text = end_fasta_lines(text)
        header, end, body = text.partition(b"\n")
        self._fasta_text = original, len(header.rstrip(b"\r"))
        letters = body.replace(b"\n", b"")
        # Without CR there are no gaps to remove from the text of most files.
        contig = Contig(self._id(header), self._checked(letters.translate(_AS_DNA, b"\r"), body))
        if is_first:
            self._set_mark()
        self._line += len(end) + len(body) - len(letters)
        self._position += 1 + len(original)
        return contig

    def _set_mark(self) -> None:
        """Mark the record that was read just now."""
        self.mark = SeekPoint(self.records, 0, self._position, self._line, self._has_lone_cr)

    def _check_size(self, letters: int) -> None:
        """Check that the record that is being read is not longer than the limit; raise TooLarge if it is."""
        if letters > self._limits.record:
            reason = (
                f"a record of more than {self._limits.record:,} letters, header and line ends included, is "
                "not read. Cut it into several, or leave it out"
            )
            raise TooLarge(self.path, self._line, reason)

    def _whole_lines(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the text in blocks of whole lines; before a break, all that are complete."""
        begun = io.BytesIO()  # a line may be longer than many blocks
        try:
            for block in blocks:
                end = block.rfind(b"\n") + 1 or block.rfind(b"\r") + 1
                if end:
                    yield _take_text(begun, [block[:end]])
                begun.write(block[end:])
                self._check_size(begun.tell())
        except BrokenInput as error:
            text = begun.getvalue()
            if end := text.rfind(b"\r") + 1:
                yield text[:end]
            raise self._broken(self._why_broken) from error.__cause__
        if begun.tell():
            yield begun.getvalue()

    def _fastq(self, blocks: Iterable[bytes]) -> Iterator[Contig]:
        lines, begun = _FastqLines(), 0  # letters of the record that is not complete yet
        block, end = b"", self._position
        for block in self._whole_lines(blocks):
            end += len(block)
            may_be_large = begun + len(block) > self._limits.record
            lines.add(block, self._has_lone_cr)
            is_first = True  # of this block
            for record, ended in lines.take():
                if may_be_large:
                    self._check_size(sum(map(len, record)))
                if record[0][:1] == b"@" or any(line.strip() for line in record):
                    self._fastq_lines = ended or record, ended is not None
                    yield self._fastq_record(record, is_first)
                else:
                    self._line += 4  # blank lines, as some programs leave at the end
                is_first = False
            self._position = end - lines.size
            begun = sum(map(len, lines.rest))
            self._check_size(begun)
        rest = lines.rest
        if len(rest) == 3 and block.endswith((b"\n", b"\r")) and not rest[1].strip() and rest[2][:1] == b"+":
            # The last line of a record without bases is empty, and may have no end.
            self._fastq_lines = [*lines.with_ends(), b""], True
            yield self._fastq_record([*rest, b""])
        elif any(line.strip() for line in rest):
            reason = foreign_fastq(rest) or "the last record ends early"
            raise BrokenInput(self.path, self.records, f"line {self._line:,}: {reason}")

    def _fastq_record(self, lines: list[bytes], is_first: bool = False) -> Contig:
        header, bases, plus, quality = lines
        if header[:1] != b"@":
            raise self._format_error(0, f"expected '@' and an id, saw {_quote(header)}")
        if plus[:1] != b"+":
            foreign = foreign_fastq((header, bases, plus))
            what = f": {foreign}" if foreign else ""
            raise self._format_error(2, f"expected '+', saw {_quote(plus)}{what}")
        if len(quality.rstrip()) != len(bases.rstrip()):
            raise self._format_error(3, "the quality line is not as long as the bases")
        contig = Contig(self._id(header[1:]), self._checked(bases.translate(_AS_DNA), bases))
        if is_first:
            self._set_mark()
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


class _FastqLines:
    """Lines of FASTQ, from the beginning of a record on."""

    def __init__(self) -> None:
        self.rest: list[bytes] = []  # that are of no complete record yet; a LF and CRs before it are left out
        self._ended: list[bytes] | None = None  # the same with their ends, once not all of them have a LF

    @property
    def size(self) -> int:
        """How many bytes of the text are left."""
        return (
            sum(map(len, self.rest)) + len(self.rest) if self._ended is None else sum(map(len, self._ended))
        )

    def add(self, block: bytes, has_lone_cr: bool) -> None:
        """Add the lines of *block*, the last of which may have no end; a CR alone may end lines or not."""
        if self._ended is None and (has_lone_cr or not block.endswith(b"\n")):
            self._ended = self.with_ends()
            # The CRs of lines before this block were in front of a LF.
            self.rest = [line.rstrip(b"\r") for line in self.rest]
        if self._ended is None:
            self.rest += block.removesuffix(b"\n").split(b"\n")
        else:
            lines = split_line_ends(block)
            self._ended += lines
            self.rest += (line[:-1].rstrip(b"\r") if line.endswith(b"\n") else line for line in lines)

    def with_ends(self) -> list[bytes]:
        """Return the lines that are left with their ends."""
        return [line + b"\n" for line in self.rest] if self._ended is None else self._ended

    def take(self) -> Iterator[tuple[list[bytes], list[bytes] | None]]:
        """Take the complete records: yield the lines of each, and with their ends unless all have a LF."""
        lines, ended = self.rest, self._ended
        if ended is None:
            whole = len(lines) // 4 * 4
            self.rest = lines[whole:]
            for begin in range(0, whole, 4):
                yield lines[begin : begin + 4], None
            return
        end = 0
        for begin, last in fastq_records(lines):
            end = last + 4
            record, text = (
                [b"".join(part[begin : last + 1]), *part[last + 1 : end]] for part in (lines, ended)
            )
            yield record, text
        self.rest, self._ended = lines[end:], ended[end:]


def _fastq_parts(lines: list[bytes]) -> tuple[bytes, ...]:
    """Return the text of a record of four *lines*, with their ends, in parts."""
    header, bases, plus, quality = lines
    title = header[1:].rstrip(b"\r\n")
    end = 1 + len(title)
    if title and plus[1:].rstrip(b"\r\n") == title:
        return header[:end], header[end:] + bases + plus[:end], plus[end:] + quality
    return header[:end], header[end:] + bases + plus + quality


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
