"""
Formats that are not read: what they are, and the command that makes FASTA or FASTQ of them.

They are detected from the content; a reader of sequences has found by then that it cannot read it.
"""

import re
from collections.abc import Sequence

from .line_ends import is_nucleotides

HEAD_BYTES = 512  # that tell a format: a tar archive has its mark at byte 257

_UTF16 = "UTF-16 text. Convert it first: iconv -f UTF-16 -t UTF-8 IN > OUT"
_UTF32 = "UTF-32 text. Convert it first: iconv -f UTF-32 -t UTF-8 IN > OUT"
_TWICE = "a compressed file within a compressed file. Decompress it once first: "
_ARCHIVE = "Extract its files first: "
_SAM = "a SAM file. Convert it first: samtools fastq IN.sam > OUT.fq"
_WRAPPED = (
    "the bases are on several lines; FASTQ is read with four lines per record. "
    "Convert it first: seqtk seq -l0 IN.fq > OUT.fq"
)

_SIGNATURES: dict[bytes, str] = {
    b"\xff\xfe\0\0": _UTF32,
    b"\0\0\xfe\xff": _UTF32,
    b"\xff\xfe": _UTF16,
    b"\xfe\xff": _UTF16,
    b"\0>": _UTF16,
    b"\0@": _UTF16,
    b"\x1f\x8b": _TWICE + "gzip -dc IN > OUT",
    b"BZh": _TWICE + "bzip2 -dc IN > OUT",
    b"\xfd7zXZ\0": _TWICE + "xz -dc IN > OUT",
    b"\x28\xb5\x2f\xfd": _TWICE + "zstd -dc IN > OUT",
    b"PK\x03\x04": f"a ZIP archive. {_ARCHIVE}unzip IN.zip",
    b"PK\x05\x06": "an empty ZIP archive",
    b"7z\xbc\xaf\x27\x1c": f"a 7z archive. {_ARCHIVE}7z x IN.7z",
    b"Rar!\x1a\x07": f"a RAR archive. {_ARCHIVE}unrar x IN.rar",
    b"\x1f\x9d": "a file of compress (.Z). Decompress it first: gzip -dc IN.Z > OUT",
    b"\x04\x22\x4d\x18": "an LZ4 file. Decompress it first: lz4 -dc IN > OUT",
    b"LZIP": "a lzip file. Decompress it first: lzip -dc IN > OUT",
    b"\x89LZO": "a lzop file. Decompress it first: lzop -dc IN > OUT",
    b"BAM\1": "a BAM file. Convert it first: samtools fastq IN.bam > OUT.fq",
    b"CRAM": "a CRAM file. Convert it first: samtools fastq IN.cram > OUT.fq",
    b"NCBI.sra": "an SRA archive. Convert it first: fasterq-dump IN.sra",
    b"\x43\x27\x41\x1a": "a 2bit file. Convert it first: twoBitToFa IN.2bit OUT.fa",
    b"\x1a\x41\x27\x43": "a 2bit file. Convert it first: twoBitToFa IN.2bit OUT.fa",
    b"\x89HDF\r\n": "an HDF5 file (FAST5 of nanopores?). Basecall it first: dorado basecaller",
    b"\x89HDF\n": "an HDF5 file (FAST5 of nanopores?). Basecall it first: dorado basecaller",
    b"\x8bPOD\r\n": "a POD5 file. Basecall it first: dorado basecaller",
    b"\x8bPOD\n": "a POD5 file. Basecall it first: dorado basecaller",
    b".sff": "an SFF file. Convert it first: sff2fastq IN.sff > OUT.fq",
    b"ABIF": "a trace file (AB1). Convert it first: seqret -sformat abi IN.ab1 fasta::OUT.fa",
    b"%PDF": "a PDF document. Save its sequences as plain text in FASTA",
    b"\xd0\xcf\x11\xe0": "a document of Microsoft Office. Save its sequences as plain text in FASTA",
    b"{\\rtf": "a rich text document. Save it as plain text: textutil -convert txt IN.rtf",
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself. Get that first: git lfs pull",
    b"##gff-version": "a GFF file. Give the FASTA file of its sequences",
    b"##fileformat=VCF": "a VCF file. Give the FASTA file of its sequences",
    b"LOCUS ": "a GenBank file. Convert it first: seqret -sformat genbank IN.gb fasta::OUT.fa",
    b"ID   ": "an EMBL file. Convert it first: seqret -sformat embl IN.embl fasta::OUT.fa",
    b"CLUSTAL": "a Clustal alignment. Convert it first: seqret IN.aln fasta::OUT.fa",
    b"# STOCKHOLM": "a Stockholm alignment. Convert it first: esl-reformat fasta IN.sto > OUT.fa",
    b"#NEXUS": "a NEXUS file. Convert it first: seqret -sformat nexus IN.nex fasta::OUT.fa",
    b";": "FASTA with comments. Remove them first: grep -v '^;' IN > OUT.fa",
}

_PATTERNS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"<!doctype\s+html|<html|<head|<body", re.IGNORECASE), "a web page (HTML)"),
    (re.compile(rb"<"), "an XML file"),
    (re.compile(rb"[\[{]\s*[\"\[{\]}]"), "a JSON file"),
    (
        re.compile(rb"[HS]\t(VN:Z:|[^\t\n]+\t[ACGTNacgtn*])"),
        "an assembly graph (GFA). Convert it first: gfatools gfa2fa IN.gfa > OUT.fa",
    ),
    (re.compile(rb"[^\t\n]+\t\d+\t[^\t\n]+\t\d+\t\d+\t(\*|(\d+[MIDNSHP=X])+)\t"), _SAM),
    (
        re.compile(rb"\d+[ \t]+\d+\s*\n"),
        "a PHYLIP alignment. Convert it first: seqret -sformat phylip IN.phy fasta::OUT.fa",
    ),
)
_INSTEAD = {
    "a web page (HTML)": ". The download went wrong, or needs a login: get the file again",
    "an XML file": ". Download the sequences in FASTA",
    "a JSON file": ". Give the sequences in FASTA",
}
_SAM_HEADER = re.compile(rb"@(HD\tVN:|SQ\tSN:|RG\tID:|PG\tID:|CO\t)")


def foreign_format(head: bytes) -> str | None:
    """Return what a file is that begins with *head*, not '>' or '@', and what to do; None: unknown."""
    for signature, text in _SIGNATURES.items():
        if head.startswith(signature):
            return text
    if head[257:262] == b"ustar":
        return f"a tar archive. {_ARCHIVE}tar -xf IN.tar"
    for pattern, text in _PATTERNS:
        if pattern.match(head):
            return text + _INSTEAD.get(text, "")
    return None


def foreign_fastq(lines: Sequence[bytes]) -> str | None:
    """Return what a file is with these *lines* where a record of FASTQ was expected; None: unknown."""
    if _SAM_HEADER.match(lines[0]):
        return _SAM
    if is_utf16(b"\n".join(lines)):
        return _UTF16
    if len(lines) > 2 and is_nucleotides(lines[1]) and is_nucleotides(lines[2]):
        return _WRAPPED
    return None


def foreign_bases(text: bytes) -> str | None:
    """Return what a file is with *text* where bases were expected; None: unknown."""
    return _UTF16 if is_utf16(text) else None


def is_utf16(text: bytes) -> bool:
    """Whether half of *text* is zeros, line ends aside, as in the UTF-16 of letters."""
    zeros = text.count(0)
    return zeros > 1 and 2 * zeros >= len(text.translate(None, b"\r\n"))
