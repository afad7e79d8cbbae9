"""
FASTA and FASTQ, plain or compressed, into contigs.

Format and compression are told by content, never by name. What is wrong with a file is said with
its line, and the records before it have been given by then.

Memory is bounded by the largest record, whatever a file unpacks to, and that by a limit. Compressed
files within compressed files are not unpacked.
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
from stat import S_ISREG
from typing import Any, BinaryIO, NamedTuple, Protocol

from virnuc_async.errors import BrokenInput, NotSequences, TooLarge, UnreadableInput

try:
    from compression import zstd  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    from backports import zstd

STDIN = "-"
LARGEST_RECORD = 1 << 30  # letters of text, header and line ends included; no chromosome has as many
LONGEST_ID = 1 << 17  # a window may hold thousands of ids, and the store's largest value is 10**9 bytes

# Who packs a file decides how much memory it takes to unpack it. These take whatever the usual
# options give, xz's largest dictionaries aside: zstd's --long=31 is 2 GiB.
_XZ_MEMORY = 1 << 30
_ZSTD_WINDOW = {zstd.DecompressionParameter.window_log_max: 31}

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DAMAGED = (OSError, EOFError, ValueError, MemoryError, zlib.error, lzma.LZMAError, zstd.ZstdError)
_SAMPLES, _SAMPLE = 16, 1 << 16  # blocks of a file, and bytes of each, that tell it from another
_BLOCK = 1 << 18  # bytes of text parsed at a time: few enough to stay in the cache
_SHOWN = 80  # bytes that are looked at to say what was seen
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


class _Eager:
    """Gives what there is of *raw*: who waits for a whole buffer loses it at a break."""

    def __init__(self, raw: io.BufferedReader) -> None:
        self.read = raw.read1


def _eagerly(open_packed: Callable[..., Any], raw: io.BufferedReader) -> Any:
    return open_packed(_Eager(raw))


# These hand over all that came before a break; faster readers lose a buffer of it.
_UNPACK: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": partial(_eagerly, gzip.open),
    b"BZh": partial(_Members, begin=bz2.BZ2Decompressor),
    b"\xfd7zXZ\0": partial(
        _Members, begin=partial(lzma.LZMADecompressor, format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    ),
    b"\x28\xb5\x2f\xfd": partial(_eagerly, partial(zstd.open, options=_ZSTD_WINDOW)),
}


def list_sequence_files(inputs: Iterable[str | Path]) -> Iterator[str]:
    """
    Give the files that *inputs* stand for: a directory stands for its sequence files, sorted.

    A directory without any is given as it is, for :func:`read_contigs` to complain about.
    """
    for name in map(str, inputs):
        # Not Path.is_dir, which raises where a name is too long or a directory may not be entered.
        found = _sequence_files(Path(name)) if name != STDIN and os.path.isdir(name) else [name]
        yield from found or [name]


def split_extensions(name: str) -> tuple[str, str]:
    """Part a file's *name* and the suffixes that say that it holds sequences, and how it is packed."""
    packed = os.path.splitext(name)
    plain = os.path.splitext(packed[0]) if packed[1].lower() in _PACKED else packed
    return (plain[0], name[len(plain[0]) :]) if plain[1].lower() in _SUFFIXES else (name, "")


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
        TooLarge: a record or its id is beyond what is read
        BrokenInput: the file breaks half way, or changed while it was read; the records before
            the break were given
    """
    with _open(path, stdin) as (text, has_changed):
        yield from _Reader(path, text, has_changed, name).contigs()


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
    return [str(path) for path in paths if split_extensions(path.name)[1] or _begins_so(path)]


def _begins_so(path: Path) -> bool:
    try:
        with _open(str(path), None) as (text, _):
            return text.read1(1) in (b">", b"@")
    except (UnreadableInput, *_DAMAGED):
        return False


@contextmanager
def _open(path: str, stdin: BinaryIO | None) -> Iterator[tuple[_Text, Callable[[], bool]]]:
    """
    Open *path* for reading text bytes, decompressed by what its first bytes say.

    Gives also what tells whether it has changed since.
    """
    with ExitStack() as closing:
        try:
            raw = closing.enter_context(_standard_input(stdin) if path == STDIN else open(path, "rb"))  # noqa: SIM115
            before = None if path == STDIN else _facts(raw.fileno())
            head = raw.peek(6)
        except IsADirectoryError as error:
            raise UnreadableInput(path, "a directory without sequence files") from error
        except (OSError, ValueError) as error:  # ValueError: a name with a zero byte in it
            raise UnreadableInput(path, _reason(error)) from error
        unpack = next((unpack for magic, unpack in _UNPACK.items() if head.startswith(magic)), None)
        text = closing.enter_context(unpack(raw)) if unpack else raw
        yield text, partial(_has_changed, path, raw, before)


def _facts(file: int | str) -> tuple[int, ...] | None:
    """Say which regular file this is, and how it is now; None for a pipe or a device."""
    facts = os.stat(file)
    if not S_ISREG(facts.st_mode):
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _has_changed(path: str, raw: BinaryIO, before: tuple[int, ...] | None) -> bool:
    """Whether the open file is no longer as it was, or no longer the one at *path*."""
    if before is None:
        return False
    try:
        return not before == _facts(raw.fileno()) == _facts(path)
    except OSError:
        return True


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

    def __init__(
        self, path: str, text: _Text, has_changed: Callable[[], bool], name: Callable[[bytes], bytes]
    ) -> None:
        self.path = path
        self._name = name
        self.records = 0
        self._text = text
        self._has_changed = has_changed
        self._line = 1  # of the record that is being read

    def contigs(self) -> Iterator[Contig]:
        blocks = self._blocks()
        first = self._skip_blank(blocks)
        if not first:
            return
        if first[:1] not in (b">", b"@"):
            while len(first) < _SHOWN and b"\n" not in first and (more := next(blocks, b"")):
                first += more
            raise self._wrong(0, f"expected '>' (FASTA) or '@' (FASTQ), saw {_shown(first)}")
        parse = self._fasta if first[:1] == b">" else self._fastq
        for contig in parse(chain([first], blocks)):
            self.records += 1
            yield contig

    def _blocks(self) -> Iterator[bytes]:
        """Give the text as it comes."""
        # read1 hands over what there is: what came before a break is not lost with it.
        try:
            while block := self._text.read1(_BLOCK):
                yield block
        except _DAMAGED as error:
            raise BrokenInput(self.path, self.records, _reason(error)) from error
        if self._has_changed():
            raise BrokenInput(self.path, self.records, "it changed while it was being read")

    def _skip_blank(self, blocks: Iterator[bytes]) -> bytes:
        """Give the beginning of the text, the blank lines before it left out; nothing if that is all."""
        head, mark = b"", _BYTE_ORDER_MARK  # which stands at the very beginning or nowhere
        for block in blocks:
            head += block
            if len(head) < len(mark) and mark.startswith(head):
                continue
            text = head.removeprefix(mark).lstrip()
            mark = b""
            self._line += head.count(b"\n") - text.count(b"\n")
            head = text
            if head:
                break
        return head

    def _fasta(self, blocks: Iterable[bytes]) -> Iterator[Contig]:
        begun = io.BytesIO()  # of the record that may go on: what came in the blocks before, but
        pieces: list[bytes] = []  # for the last letter, and what is in this one
        for block in blocks:
            # Looking for the single letter is three times as fast as for "\n>".
            goes_on, *others = block.split(b">")
            if goes_on:
                pieces.append(goes_on)
            for piece in others:
                if pieces and pieces[-1].endswith(b"\n"):
                    yield self._fasta_record(_taken(begun, pieces))
                elif pieces:
                    pieces.append(b">")
                pieces.append(piece)
            text = b"".join(pieces)
            begun.write(text[:-1])
            pieces = [text[-1:]]
            self._bound(begun.tell() + len(pieces[0]))
        yield self._fasta_record(_taken(begun, pieces))

    def _fasta_record(self, text: bytes) -> Contig:
        if len(text) > LARGEST_RECORD:
            self._bound(len(text))
        header, end, body = text.partition(b"\n")
        letters = body.replace(b"\n", b"")
        contig = Contig(self._id(header), self._bases(letters, body))
        self._line += len(end) + len(body) - len(letters)
        return contig

    def _bound(self, letters: int) -> None:
        """See that the record that is being read has not got too many *letters*, before it gets more."""
        if letters > LARGEST_RECORD:
            reason = (
                f"a record of more than {LARGEST_RECORD:,} letters, header and line ends included, is not "
                "read. Cut it into several, or leave it out"
            )
            raise TooLarge(self.path, self._line, reason)

    def _lines(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Give the text in blocks of whole lines."""
        begun = io.BytesIO()  # a line may be longer than many blocks
        for block in blocks:
            end = block.rfind(b"\n") + 1
            if end:
                yield _taken(begun, [block[:end]])
            begun.write(block[end:])
            self._bound(begun.tell())
        if begun.tell():
            yield begun.getvalue()

    def _fastq(self, blocks: Iterable[bytes]) -> Iterator[Contig]:
        lines: list[bytes] = []
        begun = 0  # letters in the record that goes on
        for block in self._lines(blocks):
            may_be_large = begun + len(block) > LARGEST_RECORD
            lines += block.removesuffix(b"\n").split(b"\n")
            whole = len(lines) // 4 * 4
            for number in range(0, whole, 4):
                record = lines[number : number + 4]
                if may_be_large:
                    self._bound(sum(map(len, record)))
                if record[0][:1] == b"@" or any(line.strip() for line in record):
                    yield self._fastq_record(*record)
                else:
                    self._line += 4  # blank lines, as some programs leave at the end
            del lines[:whole]
            begun = sum(map(len, lines))
            self._bound(begun)
        if any(line.strip() for line in lines):
            raise BrokenInput(self.path, self.records, f"line {self._line:,}: the last record ends early")

    def _fastq_record(self, header: bytes, bases: bytes, plus: bytes, quality: bytes) -> Contig:
        if header[:1] != b"@":
            raise self._wrong(0, f"expected '@' and an id, saw {_shown(header)}")
        if plus[:1] != b"+":
            raise self._wrong(2, f"expected '+', saw {_shown(plus)}")
        if len(quality.rstrip()) != len(bases.rstrip()):
            raise self._wrong(3, "the quality line is not as long as the bases")
        contig = Contig(self._id(header[1:]), self._bases(bases, bases))
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

    def _id(self, header: bytes) -> bytes:
        if (size := len(first_word(header))) > LONGEST_ID:
            reason = f"an id of {size:,} letters; at most {LONGEST_ID:,} are read. Shorten it"
            raise TooLarge(self.path, self._line, reason)
        return self._name(header)

    def _wrong(self, line: int, reason: str) -> NotSequences:
        return NotSequences(self.path, self._line + line, reason)


def _taken(begun: io.BytesIO, pieces: list[bytes]) -> bytes:
    """Give *begun* and *pieces* as one, and empty them."""
    text = b"".join(pieces)
    pieces.clear()
    if begun.tell():
        begun.write(text)
        text = begun.getvalue()
        begun.seek(0)
        begun.truncate()
    return text


def _shown(text: bytes) -> str:
    """Show the beginning of a line that may be anything, binary included."""
    line = text[:_SHOWN].splitlines()[0] if text.strip() else b""
    return repr(line[:30].decode("latin-1")) if line else "an empty line"
