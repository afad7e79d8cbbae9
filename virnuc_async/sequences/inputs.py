"""Input files: their names, what identifies their content, and the contigs in each."""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO, NamedTuple, Protocol

from virnuc_async.errors import InputChanged, InputError, UnreadableInput
from virnuc_async.text import is_url

from .alignments import AlignmentParser, Note, Notes, alignment_format, can_read_alignments
from .decompression import DAMAGED, TextStream, decompressed
from .fastx import BYTE_ORDER_MARK, DEFAULT_LIMITS, Contig, FastxParser, Limits, describe_error, first_word
from .files import OpenFile, Signature, file_signature, file_size, open_file, path_signature
from .remote import RemoteFile
from .segments import START, SeekPoint

STDIN = "-"
_LONG_SKIP = 1 << 28  # bytes of text that are worth more speed, which who can seek in the file has
_STREAM: list[int | str] = ["stream"]  # in the place of a fingerprint

_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16  # blocks of a file that are hashed, and the bytes of each
FASTA_SUFFIXES, FASTQ_SUFFIXES = (".fa", ".fasta", ".fas", ".fna", ".ffn"), (".fq", ".fastq")
_ALIGNMENT_SUFFIXES = (".bam", ".cram", ".sam")
READS, CONTIGS = KINDS = ("reads", "contigs")  # what records of FASTQ and alignments are, and of FASTA
_COMPRESSION_SUFFIXES = frozenset({".gz", ".bz2", ".xz", ".zst"})


class Reader(Protocol):
    """Reads the records of a file; called as ``read(path)`` or ``read(path, start)``."""

    def __call__(self, path: str, start: SeekPoint = ..., /) -> Iterator[Contig]:
        """Yield every record of *path*, those before *start* aside."""
        ...


def split_extensions(name: str) -> tuple[str, str]:
    """Split a file's *name* from the suffixes for sequences and their compression, as in ``.fa.gz``."""
    stem, packed = split_packed(name)
    plain, suffix = os.path.splitext(stem)
    is_known = suffix.lower() in (*FASTA_SUFFIXES, *FASTQ_SUFFIXES)
    return (plain, suffix + packed) if is_known else (name, "")


def split_packed(name: str) -> tuple[str, str]:
    """Split a file's *name* from the suffix of its compression, as in ``.gz``."""
    stem, packed = os.path.splitext(name)
    return (stem, packed) if packed.lower() in _COMPRESSION_SUFFIXES else (name, "")


def stem(path: str) -> str:
    """Return the name of an input without its directory and its suffixes; that of standard input is stdin."""
    name = os.path.basename(os.path.normpath(path))
    plain, suffix = split_extensions(name)
    return "stdin" if path == STDIN else plain if suffix else os.path.splitext(name)[0]


def read_contigs(
    path: str,
    start: SeekPoint = START,
    stdin: BinaryIO | None = None,
    *,
    open_file: OpenFile = open_file,
    limits: Limits = DEFAULT_LIMITS,
    notes: Notes | None = None,
) -> Iterator[Contig]:
    """
    Yield every record of *path* in order, from *start* on; ``-`` is *stdin*, which has no other start.

    From wherever they are read, the records and the error behind them are those of the whole file, with its
    lines and records counted from its beginning. At the end of a file, *notes* is told of records that were
    left out, and has the kind of those in it.

    Raises:
        UnreadableInput: nothing could be read
        NotSequences: the content is not DNA in FASTA or FASTQ, from the named line on
        TooLarge: a record or its id is longer than the limit
        BrokenInput: the file breaks half way, or changed while it was read; the records before
            the break were yielded
    """
    with open_input(path, stdin, open_file, start) as opened:
        notes = Notes() if notes is None else notes
        parser = parser_of(path, opened, first_word, limits, notes)
        try:
            yield from parser.contigs(start)
        finally:
            if kind := kind_of(parser):
                notes.kinds[path] = kind


def read_headers(path: str) -> Iterator[Contig]:
    """Yield every record of *path* with all of its header as its id; raises what read_contigs does."""
    with open_input(path, None, open_file) as opened:
        yield from parser_of(path, opened, bytes.strip).contigs()


def kind_of(parser: FastxParser | AlignmentParser) -> str | None:
    """Return of which kind the records are that *parser* has read; None if it has found out nothing."""
    if isinstance(parser, FastxParser) and not parser.is_fastq:
        return CONTIGS if parser.records else None
    return READS if isinstance(parser, AlignmentParser) or parser.records else None


def kind_by_name(path: str) -> str:
    """Return of which kind the records of *path* are, as its name says."""
    suffixes = split_extensions(path)[1].lower()
    is_reads = suffixes.startswith(FASTQ_SUFFIXES) or path.lower().endswith(_ALIGNMENT_SUFFIXES)
    return READS if is_reads else CONTIGS


@contextmanager
def open_records(path: str) -> Iterator[FastxParser | AlignmentParser]:
    """
    Open *path* to read its records, each with its text.

    Raises:
        UnreadableInput: it cannot be opened
    """
    with open_input(path, None, open_file) as opened:
        yield parser_of(path, opened)


class Opened(NamedTuple):
    """An input that is open, at its beginning or at an offset."""

    raw: io.BufferedReader
    text: TextStream  # decompressed
    has_changed: Callable[[], bool]  # since it was opened
    alignments: str | None  # what it is that has alignments: BAM, CRAM or SAM


def parser_of(
    path: str,
    opened: Opened,
    name: Callable[[bytes], bytes] = first_word,
    limits: Limits = DEFAULT_LIMITS,
    note: Note = lambda _: None,
) -> FastxParser | AlignmentParser:
    """Return what parses the records of *path*, which is *opened*, and makes their ids by *name*."""
    if kind := opened.alignments:
        return AlignmentParser(path, kind, opened.raw, opened.has_changed, name, note)
    return FastxParser(path, opened.text, opened.has_changed, name, limits)


def is_stream(path: str) -> bool:
    """Return whether *path* can be read only once: standard input, or a pipe."""
    if is_url(path):
        return False
    try:
        return path == STDIN or not (S_ISREG(mode := os.stat(path).st_mode) or S_ISDIR(mode))
    except (OSError, ValueError):
        return False


@dataclass(frozen=True, slots=True)
class InputVersion:
    """
    What an input was when it was looked at.

    ``fingerprint`` has the size of the file and a hash of 16 blocks spread over it, of all of it up to
    1 MiB; None if it cannot be read. What can be read only once is a stream, like any other.
    """

    fingerprint: list[int | str] | None
    signature: Signature | None = None  # of a file

    @classmethod
    def of(cls, path: str) -> "InputVersion":
        """Return what *path* is now."""
        if is_stream(path):
            return cls(_STREAM)
        try:
            with open_file(path) as file:
                size = file_size(file)
                return cls([size, _hash_samples(file, size)], file_signature(file))
        except (OSError, ValueError):
            return cls(None)

    @property
    def is_stream(self) -> bool:
        """Whether it can be read only once."""
        return self.fingerprint == _STREAM

    def is_of(self, path: str) -> bool:
        """Return whether *path* is still this; a file may have been moved or touched."""
        if self.is_stream:
            return True
        with suppress(OSError, ValueError):
            if self.signature is not None and path_signature(path) == self.signature:
                return True
        return InputVersion.of(path).fingerprint == self.fingerprint


def unchanged(read: Reader, versions: Mapping[str, InputVersion]) -> Reader:
    """
    Return a reader like *read*, for inputs that must be what they are in *versions*.

    Raises, from the reader:
        InputChanged: one is not, when it is opened, or was not at its end
    """

    def read_unchanged(path: str, start: SeekPoint = START, /) -> Iterator[Contig]:
        version = versions[path]
        if not version.is_of(path):
            raise InputChanged(path)
        yield from read(path) if start == START else read(path, start)
        if not version.is_of(path):
            raise InputChanged(path)

    return read_unchanged


def _hash_samples(file: io.BufferedReader, size: int) -> str:
    last = max(0, size - _SAMPLE_BYTES)
    starts = [last * number // (_SAMPLES - 1) for number in range(_SAMPLES)]
    if size <= _SAMPLE_BYTES * _SAMPLES:
        starts = list(range(0, size, _SAMPLE_BYTES))
    digest = hashlib.sha256()
    for sample in _read_samples(file, [(start, min(start + _SAMPLE_BYTES, size)) for start in starts]):
        digest.update(sample)
    return digest.hexdigest()


def _read_samples(file: io.BufferedReader, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    if isinstance(file.raw, RemoteFile):
        yield from file.raw.read_ranges(ranges)  # in the time of one
        return
    for start, end in ranges:
        file.seek(start)
        yield file.read(end - start)


class Beginning(NamedTuple):
    """What a file begins with."""

    head: bytes  # of its decompressed text, from its first letter on
    is_alignment: bool  # it is BAM, CRAM or SAM, and can be read


def look_into(path: str, size: int) -> Beginning:
    """
    Return what *path* begins with: about *size* bytes; it is opened once.

    Raises:
        UnreadableInput: it cannot be opened
        what is in DAMAGED: it breaks before that
    """
    with open_input(path, None, open_file) as (_, text, _, alignments):
        is_alignment = alignments is not None and can_read_alignments()
        head = b""
        while len(head) < size and (block := text.read1(size)):
            head = (head + block).removeprefix(BYTE_ORDER_MARK).lstrip()
        return Beginning(head, is_alignment)


@contextmanager
def open_alignments(path: str) -> Iterator[AlignmentParser]:
    """
    Open *path*, BAM, CRAM or SAM.

    Raises:
        UnreadableInput: it cannot be opened, or is of another format
    """
    with open_input(path, None, open_file) as (raw, _, has_changed, kind):
        if kind is None:
            raise UnreadableInput(path, "not a BAM, CRAM or SAM file")
        yield AlignmentParser(path, kind, raw, has_changed, first_word, lambda _: None)


def has_mates(path: str) -> bool:
    """Return whether the first read in *path*, a regular file, is one of a pair, by its flags."""
    with suppress(InputError, *DAMAGED), open_alignments(path) as alignments:
        return alignments.has_mates()
    return False


@contextmanager
def open_input(
    path: str, stdin: BinaryIO | None, open_file: OpenFile, start: SeekPoint = START
) -> Iterator[Opened]:
    """
    Open *path*, or *stdin* if that is meant, where *start* is in it, and find out what it is.

    Raises:
        UnreadableInput: it cannot be opened
    """
    with ExitStack() as stack:
        try:
            # Before it is opened: some of it may have been read ahead by then.
            before = None if path == STDIN else path_signature(path)
            raw = stack.enter_context(_standard_input(stdin) if path == STDIN else open_file(path))
            # Before its text is read, which takes the bytes: what a file is shows at its very beginning.
            alignments = alignment_format(raw)
            if start.offset or start.skip >= _LONG_SKIP:
                raw = stack.enter_context(_seek(raw, path, start.offset, open_file))
            text = stack.enter_context(decompressed(raw))
        except IsADirectoryError as error:
            raise UnreadableInput(path, _why_no_files(path)) from error
        except (OSError, ValueError) as error:  # ValueError: a name with a zero byte in it
            raise UnreadableInput(path, describe_error(error)) from error
        yield Opened(raw, text, partial(_has_changed, path, raw, before), alignments)


def _seek(raw: io.BufferedReader, path: str, offset: int, reopen: OpenFile) -> io.BufferedReader:
    """Return *raw* at *offset* of the file; opened directly if it is read ahead, which goes forward only."""
    for open_again in (reopen, open_file):
        if not raw.seekable():
            raw.close()
            raw = open_again(path)  # a file that was read ahead is so once
    raw.seek(offset)
    return raw


def _why_no_files(directory: str) -> str:
    try:
        if not is_url(directory):
            os.listdir(directory)
    except OSError as error:
        return describe_error(error)
    return "a directory without sequence files"


def _has_changed(path: str, raw: io.BufferedReader, before: Signature | None) -> bool:
    """Whether the open file is no longer as it was, or no longer the one at *path*."""
    if before is None:
        return False
    try:
        return not before == file_signature(raw) == path_signature(path)
    except OSError:
        return True


@contextmanager
def _standard_input(stdin: BinaryIO | None) -> Iterator[io.BufferedReader]:
    """Open *stdin* with a buffer; it is not closed, since it belongs to the caller."""
    if stdin is None:
        raise UnreadableInput(STDIN, "there is no standard input")
    if isinstance(stdin, io.BufferedReader):
        yield stdin
        return
    buffered = io.BufferedReader(stdin)  # type: ignore[type-var]
    try:
        yield buffered  # type: ignore[misc]
    finally:
        buffered.detach()
