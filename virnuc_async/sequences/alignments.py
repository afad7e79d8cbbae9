"""
Reads in BAM, CRAM and SAM files, aligned or not, as they came from the sequencer.

Read with pysam (htslib), an optional dependency, which is imported when there is such a file. Secondary
and supplementary records repeat a read, and are left out. htslib reads through a pipe: standard input and
files that are read ahead give it the same bytes as a file does.
"""

import io
import os
import re
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Any

from virnuc_async.errors import BrokenInput, UnreadableInput
from virnuc_async.text import plural

from .decompression import DAMAGED
from .fastx import Contig, describe_error
from .segments import START, SeekPoint

_BAM, _CRAM = b"BAM\1", b"CRAM"
_SAM = re.compile(
    rb"@(HD\tVN:|SQ\tSN:|RG\tID:|PG\tID:|CO\t)|[!-?A-~]{1,254}\t\d+\t[!-~]+\t\d+\t\d+\t(\*|(\d+[MIDNSHP=X])+)\t"
)
_GZIP = b"\x1f\x8b"
_HEAD = 512  # bytes that show what a file is
# A file is complete if it ends with an empty block: the SAM specification, sections 4.1.2, and of CRAM 9.
_ENDS = {
    "BAM": bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000"),
    "CRAM": bytes.fromhex("e0454f4600000000"),
}
_UNOPENED = ("Could not open", "SAM? file", "file does not")  # as pysam begins its errors then
_LONGEST_END = 64  # bytes
_PAIRED, _SECONDARY, _SUPPLEMENTARY = 0x1, 0x100, 0x800

Note = Callable[[str], object]


class Notes:
    """What readers have to say about files goes to whoever listens."""

    def __init__(self) -> None:
        self.listener: Note = lambda _: None
        self.kinds: dict[str, str] = {}  # of the records in each file, by its path

    def __call__(self, text: str) -> None:
        """Pass *text* to the listener."""
        self.listener(text)


def alignment_format(raw: io.BufferedReader) -> str | None:
    """Return what a file is whose bytes, compressed by gzip or not, follow: BAM, CRAM, SAM, or None."""
    try:
        head = text = raw.peek(_HEAD)
    except OSError:
        return None  # as any other file finds out when it is read
    if head.startswith(_GZIP):
        try:
            text = zlib.decompressobj(31).decompress(head, _HEAD)
        except zlib.error:
            return None
    if text.startswith(_BAM):
        return "BAM"
    if head.startswith(_CRAM):
        return "CRAM"
    # What htslib takes for bzip2 by its first letters, it ends the process for.
    return "SAM" if _SAM.match(text) and not text.startswith(b"BZh") else None


def can_read_alignments() -> bool:
    """Return whether pysam is installed."""
    return find_spec("pysam") is not None


class AlignmentParser:
    """Parses the records of one file; counts those that it yields, and has the text of the last one."""

    is_fastq = True  # what ``text`` is

    def __init__(
        self,
        path: str,
        kind: str,
        raw: io.BufferedReader,
        has_changed: Callable[[], bool],
        name: Callable[[bytes], bytes],
        note: Note,
    ) -> None:
        self.path = path
        self.records = 0
        self.references: tuple[tuple[str, int], ...] = ()  # names and lengths; when the first record is there
        self._raw = raw
        self._kind = kind
        self._has_changed = has_changed
        self._name = name
        self._note = note
        self._left_out: Counter[str] = Counter()
        self._last: Any = None  # record of those that were yielded

    @property
    def text(self) -> tuple[bytes, ...]:
        """The record that was yielded last as FASTQ, in two parts: its header, and all else."""
        bases = self._last.get_forward_sequence() or ""
        # Without qualities: what samtools fastq writes then, Phred 1.
        scores = self._last.get_forward_qualities()
        quality = '"' * len(bases) if scores is None else "".join(chr(33 + score) for score in scores)
        return f"@{self._last.query_name or ''}".encode(), f"\n{bases}\n+\n{quality}\n".encode()

    def contigs(self, start: SeekPoint = START) -> Generator[Contig, None, None]:
        """
        Yield the bases of every primary record in order, as they were sequenced, from that of *start* on.

        Those before it are read, too, and passed over. It is noted what the file has that is left out.

        Raises:
            UnreadableInput: pysam is not installed
            BrokenInput: the file breaks half way, or changed while it was read
        """
        with closing(self.all_records()) as records:
            for record in records:
                if not self._is_primary(record):
                    continue
                if self.records >= start.record:
                    contig = self._contig(record)
                    self._last = record
                    yield contig
                self.records += 1
        if self._left_out:
            counts = " and ".join(plural(count, f"{what} record") for what, count in self._left_out.items())
            self._note(f"{self.path}: left out {counts}, which repeat reads")

    def all_records(self) -> Generator[Any, None, None]:
        """
        Yield every record as pysam has it.

        Raises:
            UnreadableInput, BrokenInput: as :meth:`contigs` does
        """
        pump = _Pump(self._raw)
        try:
            with pump, closing(self._read(pump)) as records:
                yield from records
            self._check_end(pump.tail)
        except DAMAGED as error:
            reason = self._reason(pump.error or error)
            raise BrokenInput(self.path, self.records, reason) from error

    def has_mates(self) -> bool:
        """Return whether the first read is one of a pair, by its flags; reads that and no more."""
        with _Pump(self._raw) as pump, closing(self._read(pump)) as records:
            return any(record.flag & _PAIRED for record in islice(records, 1))

    def _read(self, pump: "_Pump") -> Generator[Any, None, None]:
        try:
            pysam = import_module("pysam")
        except ImportError as error:
            raise UnreadableInput(self.path, _missing(self._kind)) from error
        with _quiet(pysam), _opened(pysam, pump) as file:
            self.references = tuple(zip(file.references, file.lengths, strict=True))
            yield from file.fetch(until_eof=True)

    def _is_primary(self, record: Any) -> bool:
        """Return whether *record* is not left out; count it if it is."""
        if record.flag & (_SECONDARY | _SUPPLEMENTARY):
            self._left_out["supplementary" if record.flag & _SUPPLEMENTARY else "secondary"] += 1
            return False
        return True

    def _contig(self, record: Any) -> Contig:
        bases = (record.get_forward_sequence() or "").encode("ascii")
        if b"=" in bases:
            reason = "a base is '=', the same as in the reference. Convert the file first: samtools fastq"
            raise BrokenInput(self.path, self.records, reason)
        return Contig(self._name((record.query_name or "").encode("ascii")), bases)

    def _check_end(self, tail: bytes) -> None:
        """Raise an error if the end is missing: a file that is cut between two blocks is read without one."""
        if _ENDS.get(self._kind, b"") not in tail:
            raise EOFError("the block that ends a complete file is missing")
        if self._has_changed():
            raise BrokenInput(self.path, self.records, "it changed while it was being read")

    def _reason(self, error: BaseException) -> str:
        reason = describe_error(error)
        if not self.records and (self._kind == "SAM" or reason.startswith(_UNOPENED)):
            reason = f"its header is missing, not complete or damaged ({reason})"
        if self._kind == "CRAM" and "reference" in reason.lower():
            reason += ". Convert it first: samtools fastq --reference REF.fa IN.cram > OUT.fq"
        return reason


class _Pump:
    """Writes what *raw* has to a pipe, by a thread of its own, for a library that reads files alone."""

    def __init__(self, raw: io.BufferedReader) -> None:
        self.tail = b""  # of what was read
        self.error: BaseException | None = None  # of reading
        self._raw = raw
        self._thread = threading.Thread(target=self._run, name="pump", daemon=True)

    def __enter__(self) -> "_Pump":
        read_end, self._write_end = os.pipe()
        self.reader = os.fdopen(read_end, "rb")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A thread that writes finds the pipe broken then.
        self.reader.close()
        self._thread.join()

    def _run(self) -> None:
        try:
            with open(self._write_end, "wb", buffering=0) as pipe:
                while block := self._raw.read1():
                    self.tail = (self.tail + block)[-_LONGEST_END:]
                    _write_all(pipe, block)
        except BrokenPipeError:
            pass  # the reader has found what it looked for, or an error
        except DAMAGED as error:
            self.error = error


def _write_all(pipe: io.FileIO, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[pipe.write(view) :]


@contextmanager
def _opened(pysam: Any, pump: _Pump) -> Iterator[Any]:
    # Without sequences in the header a file is of reads that are not aligned.
    file: Any = None
    with _failed_close_unsaid():
        try:
            file = pysam.AlignmentFile(pump.reader, "r", check_sq=False)
        except (OSError, ValueError) as error:
            # Another one, without the frames that keep the file.
            failure = type(error)(*error.args)
    if file is None:
        raise failure
    try:
        yield file
    finally:
        with suppress(OSError):  # of a file that is damaged, which has been raised
            file.close()


@contextmanager
def _failed_close_unsaid() -> Iterator[None]:
    """Keep quiet about a file that was not opened, for a reason that is raised, and then not closed."""
    before = sys.excepthook, sys.unraisablehook
    # pysam's destructor has no caller to raise it to: it is given to both.
    sys.excepthook, sys.unraisablehook = (lambda *_: None), (lambda _: None)
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = before


@contextmanager
def _quiet(pysam: Any) -> Iterator[None]:
    """Keep htslib from printing: what it has to say is raised, too."""
    before = pysam.set_verbosity(0)
    try:
        yield
    finally:
        pysam.set_verbosity(before)


def _missing(kind: str) -> str:
    install = "pip install 'virnuc-async[bam]'"
    return f"a {kind} file, which needs pysam: {install}. Or convert it first: samtools fastq"
