"""
FASTA and FASTQ, plain or compressed, into contigs.

Format and compression are told by content, never by name. What is wrong with a file is said with
its line, and the records before it have been given by then.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from .failures import BrokenInput, NotSequences, UnreadableInput

try:
    from compression import zstd  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    from backports import zstd

STDIN = "-"

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DAMAGED = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstd.ZstdError)
_SAMPLES, _SAMPLE = 16, 1 << 16  # blocks of a file, and bytes of each, that tell it from another
_BLOCK = 1 << 18  # bytes of text parsed at a time: few enough to stay in the cache
_SUFFIXES = frozenset({".fa", ".fasta", ".fas", ".fna", ".ffn", ".fq", ".fastq"})
_PACKED = frozenset({".gz", ".bz2", ".xz", ".zst"})

_IUPAC = b"ACGTURYSWKMBDHVNXacgturyswkmbdhvnx"
_GAPS = b"-. \t\r"
_STRANGE = bytes(range(256)).translate(None, _IUPAC + _GAPS)
# An RNA contig would have no stops, and an aligned one no frames: U is read as T, gaps go.
_AS_DNA = bytes.maketrans(b"Uu" + _GAPS + _STRANGE, b"Tt" + b"-" * len(_GAPS) + b"?" * len(_STRANGE))


class Contig(NamedTuple):
    """One record: its id is the header up to the first white space, byte for byte."""

    id: bytes
    bases: bytes  # case as in the file; no gaps, T for U


class _Text(Protocol):
    """A stream of decompressed bytes."""

    def read1(self, size: int, /) -> bytes:
        """Give what there is, at most *size* bytes; nothing at the end."""
        ...


class _Members(io.RawIOBase):
    """
    Compressed members, one behind the other, as one text.

    ``bz2.open`` and ``lzma.open`` take a damaged member for garbage after the end, and end there.
    """

    def __init__(self, raw: io.BufferedReader, begin: Callable[[], Any]) -> None:
        self._raw, self._begin, self._member = raw, begin, begin()

    def read1(self, size: int, /) -> bytes:
        while True:
            packed = b""
            if self._member.eof:
                packed = self._next_member()
                if not packed:
                    return b""
                self._member = self._begin()
            elif self._member.needs_input:
                packed = self._raw.read1()
                if not packed:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            if text := self._member.decompress(packed, size):
                return text  # type: ignore[no-any-return]

    def _next_member(self) -> bytes:
        packed: bytes = self._member.unused_data.lstrip(b"\0")  # padding
        while not packed and (block := self._raw.read1()):
            packed = block.lstrip(b"\0")
        return packed


# These hand over all that came before a break; faster readers lose a buffer of it.
_UNPACK: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": partial(_Members, begin=bz2.BZ2Decompressor),
    b"\xfd7zXZ\0": partial(_Members, begin=lzma.LZMADecompressor),
    b"\x28\xb5\x2f\xfd": zstd.open,
}


def expand(inputs: Iterable[str | Path]) -> Iterator[str]:
    """
    Give the files that *inputs* stand for: a directory stands for its sequence files, sorted.

    A directory without any is given as it is, for :func:`read_contigs` to complain about.
    """
    for name in map(str, inputs):
        found = _sequence_files(Path(name)) if name != STDIN and Path(name).is_dir() else [name]
        yield from found or [name]


def first_word(header: bytes) -> bytes:
    """Give a record's id: its header up to the first white space."""
    return (header.split(None, 1) or [b""])[0]


def read_contigs(
    path: str, stdin: BinaryIO | None = None, name: Callable[[bytes], bytes] = first_word
) -> Iterator[Contig]:
    """
    Give every record of *path* in order, called as *name* does by its header; ``-`` reads *stdin*.

    Raises:
        UnreadableInput: nothing could be read
        NotSequences: the content is not DNA in FASTA or FASTQ, from the named line on
        BrokenInput: the file breaks half way; the records before the break were given
    """
    with _open(path, stdin) as text:
        yield from _Reader(path, text, name).contigs()


def fingerprint(path: str) -> list[int | str] | None:
    """
    Say which content *path* has, by its size and a hash of 16 blocks spread over it; None if unreadable.

    A file of up to 1 MiB is hashed whole. What can be read only once is a stream, like any other.
    """
    if path == STDIN:
        return ["stream"]
    try:
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):
            return None if stat.S_ISDIR(facts.st_mode) else ["stream"]
        with open(path, "rb") as file:
            return [facts.st_size, _sampled(file, facts.st_size)]
    except (OSError, ValueError):
        return None


def _sampled(file: BinaryIO, size: int) -> str:
    digest = hashlib.sha256()
    last = max(0, size - _SAMPLE)
    starts = [last * number // (_SAMPLES - 1) for number in range(_SAMPLES)]
    for start in starts if size > _SAMPLES * _SAMPLE else range(0, size, _SAMPLE):
        file.seek(start)
        digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _sequence_files(directory: Path) -> list[str]:
    try:
        paths = sorted(p for p in directory.iterdir() if p.name[0] != "." and p.is_file())
    except OSError:
        return []
    return [str(path) for path in paths if _is_named_so(path) or _begins_so(path)]


def _is_named_so(path: Path) -> bool:
    name = path.with_suffix("") if path.suffix.lower() in _PACKED else path
    return name.suffix.lower() in _SUFFIXES


def _begins_so(path: Path) -> bool:
    try:
        with _open(str(path), None) as text:
            return text.read1(1) in (b">", b"@")
    except (UnreadableInput, *_DAMAGED):
        return False


@contextmanager
def _open(path: str, stdin: BinaryIO | None) -> Iterator[_Text]:
    """Open *path* for reading text bytes, decompressed by what its first bytes say."""
    with ExitStack() as closing:
        try:
            raw = closing.enter_context(_standard_input(stdin) if path == STDIN else open(path, "rb"))  # noqa: SIM115
            head = raw.peek(6)
        except IsADirectoryError as error:
            raise UnreadableInput(path, "a directory without sequence files") from error
        except OSError as error:
            raise UnreadableInput(path, _reason(error)) from error
        unpack = next((unpack for magic, unpack in _UNPACK.items() if head.startswith(magic)), None)
        yield closing.enter_context(unpack(raw)) if unpack else raw


@contextmanager
def _standard_input(stdin: BinaryIO | None) -> Iterator[io.BufferedReader]:
    """Give *stdin* with a buffer; it is not ours to close."""
    if stdin is None:
        raise UnreadableInput(STDIN, "no standard input was handed over")
    if isinstance(stdin, io.BufferedReader):
        yield stdin
        return
    buffered = io.BufferedReader(stdin)  # type: ignore[type-var]
    try:
        yield buffered  # type: ignore[misc]
    finally:
        buffered.detach()


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{error}" or type(error).__name__


class _Reader:
    """Parses one stream of text; counts records and lines as it goes."""

    def __init__(self, path: str, text: _Text, name: Callable[[bytes], bytes]) -> None:
        self.path = path
        self._name = name
        self.records = 0
        self._text = text
        self._line = 1  # of the record that is being read

    def contigs(self) -> Iterator[Contig]:
        blocks = self._blocks()
        first = next(blocks, b"")
        if not first:
            return
        if first[:1] not in (b">", b"@"):
            raise self._wrong(0, f"expected '>' (FASTA) or '@' (FASTQ), saw {_shown(first)}")
        parse = self._fasta if first[:1] == b">" else self._fastq
        for contig in parse(chain([first], blocks)):
            self.records += 1
            yield contig

    def _blocks(self) -> Iterator[bytes]:
        """Give the text in blocks of whole lines, the blank lines before it left out."""
        begun = False
        rest: list[bytes] = []  # a line may be longer than many blocks
        while block := self._read():
            *_, last = block.rpartition(b"\n")
            if len(last) == len(block):
                rest.append(block)
                continue
            text = b"".join([*rest, block.removesuffix(last)])
            rest = [last] if last else []
            text = text if begun else self._skip_blank(text)
            begun = begun or bool(text)
            if text:
                yield text
        if rest:
            yield b"".join(rest) if begun else self._skip_blank(b"".join(rest))

    def _skip_blank(self, block: bytes) -> bytes:
        text = block.removeprefix(_BYTE_ORDER_MARK).lstrip()
        self._line += block.count(b"\n") - text.count(b"\n")
        return text

    def _read(self) -> bytes:
        # read1 hands over what there is: what came before a break is not lost with it.
        try:
            return self._text.read1(_BLOCK)
        except _DAMAGED as error:
            raise BrokenInput(self.path, self.records, _reason(error)) from error

    def _fasta(self, blocks: Iterable[bytes]) -> Iterator[Contig]:
        pieces: list[bytes] = []  # of the record that may go on in the next block
        for block in blocks:
            # Looking for the single letter is three times as fast as for "\n>".
            goes_on, *others = block.split(b">")
            if goes_on:
                pieces.append(goes_on)
            for piece in others:
                if pieces and pieces[-1].endswith(b"\n"):
                    yield self._fasta_record(pieces)
                elif pieces:
                    pieces.append(b">")
                pieces.append(piece)
        yield self._fasta_record(pieces)

    def _fasta_record(self, pieces: list[bytes]) -> Contig:
        """Read the record that *pieces* make up, and empty them: those of a long one take much memory."""
        text = b"".join(pieces)
        pieces.clear()
        header, end, body = text.partition(b"\n")
        letters = body.replace(b"\n", b"")
        contig = Contig(self._name(header), self._bases(letters, body))
        self._line += len(end) + len(body) - len(letters)
        return contig

    def _fastq(self, blocks: Iterable[bytes]) -> Iterator[Contig]:
        lines: list[bytes] = []
        for block in blocks:
            lines += block.removesuffix(b"\n").split(b"\n")
            whole = len(lines) // 4 * 4
            for number in range(0, whole, 4):
                record = lines[number : number + 4]
                if record[0][:1] == b"@" or any(line.strip() for line in record):
                    yield self._fastq_record(*record)
                else:
                    self._line += 4  # blank lines, as some programs leave at the end
            del lines[:whole]
        if any(line.strip() for line in lines):
            raise BrokenInput(self.path, self.records, f"line {self._line:,}: the last record ends early")

    def _fastq_record(self, header: bytes, bases: bytes, plus: bytes, quality: bytes) -> Contig:
        if header[:1] != b"@":
            raise self._wrong(0, f"expected '@' and an id, saw {_shown(header)}")
        if plus[:1] != b"+":
            raise self._wrong(2, f"expected '+', saw {_shown(plus)}")
        if len(quality.rstrip()) != len(bases.rstrip()):
            raise self._wrong(3, "the quality line is not as long as the bases")
        contig = Contig(self._name(header[1:]), self._bases(bases, bases))
        self._line += 4
        return contig

    def _bases(self, letters: bytes, text: bytes) -> bytes:
        """Read *letters*, which stand in *text*, from the record's second line on."""
        bases = letters.translate(_AS_DNA)
        if b"?" in bases:
            strange = letters.translate(None, _IUPAC + _GAPS)[:1]
            what = f"{_shown(strange)} is not a nucleotide letter (is this protein or text?)"
            raise self._wrong(1 + text.count(b"\n", 0, text.index(strange)), what)
        return bases.replace(b"-", b"")

    def _wrong(self, line: int, reason: str) -> NotSequences:
        return NotSequences(self.path, self._line + line, reason)


def _shown(text: bytes) -> str:
    """Show the beginning of a line that may be anything, binary included."""
    line = text[:80].splitlines()[0] if text.strip() else b""
    return repr(line[:30].decode("latin-1")) if line else "an empty line"
