"""
The fuzzing targets: each takes any bytes, and raises only if a promise is broken.

The first byte of an input chooses how the rest is used. ``fuzz.py`` looks for inputs that break a
promise; those that it has found are in ``tests/data/crashes``, and a test runs them.
"""

import atexit
import bz2
import gzip
import io
import json
import lzma
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np
import torch

from virnuc_async.engine.verification import batch_of
from virnuc_async.errors import (
    BadBundle,
    BadCheckpoint,
    BadReference,
    FeatureError,
    InputError,
)
from virnuc_async.fileio import Directory
from virnuc_async.models.bundle import PARTS, REFERENCE, find
from virnuc_async.models.checkpoint_formats import read_classifier, read_nucleotide, read_protein
from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle
from virnuc_async.models.reference import Reference, compare, read_reference, write_reference
from virnuc_async.runs.feature_files import find_features
from virnuc_async.runs.reuse_embeddings import FeatureIndex
from virnuc_async.sequences.fastx import Contig, Limits
from virnuc_async.sequences.fragments import cut
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.sequences.windows import ContigRow, Cut, Window, form_windows
from virnuc_async.settings import Precision

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TESTS = Path(__file__).parents[1]
MODELS = TESTS / "data" / "golden" / "upstream" / "models"
SHIPPED = TESTS.parent / "virnuc_async" / "models" / "tiny-500"

Target = Callable[[bytes], None]


# Reading sequences

_COMPRESSORS: tuple[Callable[[bytes], bytes], ...] = (
    bytes,
    lambda text: gzip.compress(text, 1),
    lambda text: bz2.compress(text, 1),
    lambda text: lzma.compress(text, preset=0),
    zstd.compress,
)
_LETTERS = frozenset(b"ACGTRYSWKMBDHVNXacgtryswkmbdhvnx")


def readers(data: bytes) -> None:
    """Read any bytes, as they are or compressed: mutations then change the text within."""
    if not data:
        return
    content = _COMPRESSORS[data[0] % len(_COMPRESSORS)](data[1:])
    (large_blocks, failure), (small_blocks, other) = (_read(content, n) for n in (1 << 18, 1 + data[0] % 61))
    assert large_blocks == small_blocks
    assert (type(failure), str(failure)) == (type(other), str(other))


def _read(content: bytes, block: int) -> tuple[list[Contig], InputError | None]:
    found: list[Contig] = []
    failure: InputError | None = None
    limits = Limits(block=block, record=1_000, id=50)
    try:
        for contig in read_contigs("-", stdin=io.BytesIO(content), limits=limits):
            found.append(contig)
            assert len(contig.id) <= 50
            assert not contig.id or contig.id.split() == [contig.id]
            assert len(contig.bases) <= 1_000
            assert _LETTERS.issuperset(contig.bases)
    except InputError as error:
        failure = error
    assert failure is None or (str(failure).startswith("-: ") and len(str(failure)) < 999)
    return found, failure


# Importing checkpoints


@cache
def _scratch() -> Path:
    """Return a directory for the files of a target, in memory if possible."""
    memory = Path("/dev/shm")
    directory = Path(mkdtemp(dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, directory)
    return directory


@cache
def _members(path: Path) -> tuple[tuple[str, bytes], ...]:
    with zipfile.ZipFile(path) as archive:
        return tuple((name, archive.read(name)) for name in archive.namelist())


def _repacked(path: Path, program: bytes) -> bytes:
    """Return *path*, a file that torch wrote, with the pickle *program* in place of its own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in _members(path):
            archive.writestr(name, program if name.endswith("/data.pkl") else content)
    return file.getvalue()


def _patched(content: bytes, data: bytes) -> bytes:
    """Return *content* with changed bytes; four bytes of *data* encode position, end to count from, value."""
    changed = bytearray(content)
    for at in range(0, len(data) - 3, 4):
        position = int.from_bytes(data[at : at + 2], "big") * (1 if data[at + 2] % 2 else -1)
        changed[position % len(changed)] = data[at + 3]
    return bytes(changed)


def _program(path: Path) -> bytes:
    return next(content for name, content in _members(path) if name.endswith("/data.pkl"))


_PROTEIN, _CLASSIFIER, _DNABERT = MODELS / "esm2_t3_tiny.pt", MODELS / "classifier.pth", MODELS / "dnabert"
_WEIGHTS = _DNABERT / "pytorch_model.bin"


def _as_protein(content: bytes) -> CheckpointPaths:
    path = _scratch() / "x.pt"
    path.write_bytes(content)
    read_protein(path)
    return CheckpointPaths(path, _DNABERT, _CLASSIFIER)


def _as_classifier(content: bytes) -> CheckpointPaths:
    path = _scratch() / "x.pth"
    path.write_bytes(content)
    read_classifier(path)
    return CheckpointPaths(_PROTEIN, _DNABERT, path)


def _as_safetensors(content: bytes) -> CheckpointPaths:
    path = _scratch() / "x.safetensors"
    path.write_bytes(content)
    read_protein(path)
    return CheckpointPaths(path, _DNABERT, _CLASSIFIER)


def _as_dnabert(name: str, content: bytes) -> CheckpointPaths:
    directory = _scratch() / "dnabert"
    if not directory.exists():
        shutil.copytree(_DNABERT, directory)
    before = (directory / name).read_bytes()
    (directory / name).write_bytes(content)
    try:
        read_nucleotide(directory)
        _import(CheckpointPaths(_PROTEIN, directory, _CLASSIFIER))
    finally:
        (directory / name).write_bytes(before)
    return CheckpointPaths(_PROTEIN, _DNABERT, _CLASSIFIER)


_WAYS_TO_IMPORT: tuple[Callable[[bytes], CheckpointPaths], ...] = (
    _as_protein,
    lambda data: _as_protein(_repacked(_PROTEIN, data)),
    _as_classifier,
    lambda data: _as_classifier(_repacked(_CLASSIFIER, data)),
    lambda data: _as_dnabert("pytorch_model.bin", _repacked(_WEIGHTS, data)),
    lambda data: _as_dnabert("config.json", data),
    lambda data: _as_dnabert("tokenizer.json", data),
    _as_safetensors,
    # Valid files with a few changed bytes: most arbitrary bytes are refused because of their first ones.
    lambda data: _as_protein(_patched(_PROTEIN.read_bytes(), data)),
    lambda data: _as_protein(_repacked(_PROTEIN, _patched(_program(_PROTEIN), data))),
    lambda data: _as_classifier(_patched(_CLASSIFIER.read_bytes(), data)),
    lambda data: _as_classifier(_repacked(_CLASSIFIER, _patched(_program(_CLASSIFIER), data))),
    lambda data: _as_dnabert("pytorch_model.bin", _repacked(_WEIGHTS, _patched(_program(_WEIGHTS), data))),
    lambda data: _as_dnabert("config.json", _patched((_DNABERT / "config.json").read_bytes(), data)),
    lambda data: _as_protein(_patched(_legacy_checkpoint(), data)),
)
_FIRST_PATCHED = 8


def imports(data: bytes) -> None:
    """Import any bytes as one of the files, or as the pickle in it."""
    if not data:
        return
    message = ""
    with warnings.catch_warnings(action="error"):
        try:
            _import(_WAYS_TO_IMPORT[data[0] % len(_WAYS_TO_IMPORT)](data[1:]))
        except (BadCheckpoint, BadBundle) as error:  # BadBundle: the network is too large
            message = str(error)
    assert len(message.splitlines()) < 2


def _import(parts: CheckpointPaths) -> None:
    if parts == CheckpointPaths(_PROTEIN, _DNABERT, _CLASSIFIER):
        return  # without a change
    with TemporaryDirectory(dir=_scratch()) as directory:
        import_bundle(parts, Path(directory) / "made", "made", 500).check()


# Bundles


def bundles(data: bytes) -> None:
    """Open a bundle with any manifest or any tokenizer, and use all of it but the weights."""
    if not data:
        return
    directory = _scratch() / "bundle"
    if not directory.exists():
        shutil.copytree(SHIPPED, directory)
    name = ("bundle.json", "tokenizer.json")[data[0] % 2]
    (directory / name).write_bytes(data[1:])
    message = ""
    try:
        bundle = find(directory)
        assert len(bundle.fingerprint) == 16
        assert set(bundle.checksums) - {REFERENCE} == set(PARTS)
        assert f"{bundle.name}{bundle.notice}{bundle.licence}".isprintable()
        OrfTokenizer(bundle.tokenizer())
    except BadBundle as error:
        message = str(error)
    finally:
        shutil.copyfile(SHIPPED / name, directory / name)
    assert len(message) < 9_999


# References

# A byte chooses the value that replaces one of a reference.
_REPLACEMENTS: tuple[object, ...] = (
    *(
        None,
        True,
        0,
        -1,
        1,
        1e308,
        5e-324,
        float("nan"),
        float("inf"),
        1 << 70,
        "",
        "A",
        "ACGT",
        "MKV*",
        "\x1b[2J",
    ),
    *("\ud800", "A" * 10_001, "é", [], [[]], [1.0], [[1.0] * 32], [[0.0] * 32], [0.0], {}, {"id": "x"}),
)


@cache
def _small_reference() -> str:
    """Return the shipped reference as text, with one of its eight ORFs."""
    reference = json.loads((SHIPPED / REFERENCE).read_bytes())
    reference["orfs"] = [{"id": "x", "bases": "GCAGCA", "protein": "AA"}]
    reference["scores"] = reference["scores"][:1]
    for part in ("nucleotide", "protein"):
        reference[part] = {name: rows[:1] for name, rows in reference[part].items()}
    return json.dumps(reference)


def _replaced(data: bytes) -> bytes:
    """Return the small reference with replaced values; two bytes of *data* choose each place and value."""
    reference = json.loads(_small_reference())
    for where, what in zip(data[::2], data[1::2], strict=False):
        values = list(_nested_values(reference))
        if values:
            container, key = values[where % len(values)]
            container[key] = deepcopy(_REPLACEMENTS[what % len(_REPLACEMENTS)])
    return json.dumps(reference).encode()


def _nested_values(container: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the key of every value in *container*, however deep."""
    is_list = isinstance(container, list)
    items = container.items() if isinstance(container, dict) else enumerate(container) if is_list else ()
    for key, value in items:
        yield container, key
        if not is_list or key < 2:  # two of the 32 numbers of a row are enough
            yield from _nested_values(value)


def references(data: bytes) -> None:
    """Read any reference; a valid one can be tokenized, compared and written again."""
    if not data:
        return
    directory = _scratch() / "reference"
    directory.mkdir(exist_ok=True)
    (directory / REFERENCE).write_bytes(data[1:] if data[0] % 2 else _replaced(data[1:]))
    message = ""
    with warnings.catch_warnings(action="error"):
        try:
            reference = read_reference(directory / REFERENCE)
            assert f"{reference.source}{''.join(reference.ids)}".isprintable()
            assert len(batch_of(find("tiny-500"), reference).orfs) == len(reference)
            for precision in Precision:
                tolerance = reference.tolerance(precision)
                assert compare(reference, reference, tolerance).is_within(tolerance)
            write_reference(directory, reference)
            _assert_same_reference(reference, read_reference(directory / REFERENCE))
        except BadReference as error:
            message = str(error)
    assert len(message.splitlines()) < 2
    assert len(message) < 999


def _assert_same_reference(one: Reference, other: Reference) -> None:
    assert (one.source, one.ids, one.bases, one.proteins) == (
        other.source,
        other.ids,
        other.bases,
        other.proteins,
    )
    for first, second in ((one.nucleotide, other.nucleotide), (one.protein, other.protein)):
        np.testing.assert_allclose(first.sums, second.sums, rtol=1e-8)
        np.testing.assert_allclose(first.lengths, second.lengths, rtol=1e-8)


# Windows


@cache
def _tokenizer() -> OrfTokenizer:
    return OrfTokenizer(find("tiny-500").tokenizer())


_BASES = bytes(b"ACGTacgtNR"[byte % 10] for byte in range(256))


def windows(data: bytes) -> None:
    """Split, translate and pack any records, in windows of two sizes: nothing is lost or duplicated."""
    if len(data) < 2:
        return
    length, size = 1 + data[0] % 90, 1 + data[1] % 40
    contigs = [Contig(b"c%d" % n, line.translate(_BASES)) for n, line in enumerate(data[2:].split(b"\n"))]

    def read(_: str) -> Iterator[Contig]:
        return iter(contigs)

    small, large = (list(form_windows(["x"], read, Cut(length, n), _tokenizer())) for n in (size, 10_000))
    for column in ("origins", "residues", "nucleotides"):
        np.testing.assert_array_equal(*(_concatenate(windows, column) for windows in (small, large)))
    rows = [row for window in small for row in window.contigs]
    assert [(row.number, row.id, row.length) for row in rows] == [
        (number, contig.id, len(contig.bases)) for number, contig in enumerate(contigs)
    ]
    _assert_covered(rows, length)
    for window in small:
        batches = list(window.batches(64))
        orfs = sorted(orf for batch in batches for orf in batch.orfs.tolist())
        assert orfs == list(range(window.first, window.first + len(window.origins)))


def _assert_covered(rows: Iterable[ContigRow], length: int) -> None:
    for row in rows:
        ranges = list(cut(row.length, length))
        assert len(ranges) == row.fragments
        assert all(end - begin <= length for begin, end in ranges)
        reached = 0
        for begin, end in ranges:
            assert begin <= reached < end
            reached = end
        assert reached == row.length


def _concatenate(windows: list[Window], column: str) -> np.ndarray:
    values = [getattr(window, column) for window in windows]
    return np.concatenate([getattr(value, "ids", value) for value in values])


# Features of earlier runs

_WIDTHS = (4, 6)
_FEATURE_NAMES = ("x_DNABERT_S.pt", "x_ESM.pt", "x_merged.pt")


@cache
def _feature_file(name: str) -> Path:
    """Return a small file of three ORFs, in the format that *name* is for."""
    ids, path = ["a_chunk_1F1", "a_chunk_1R3", "b_chunk_2F2"], _scratch() / f"seed_{name}"
    numbers = torch.arange(30, dtype=torch.float32).reshape(3, 10)
    means = [
        {"label": id, "mean_representation": row[:4].tolist()} for id, row in zip(ids, numbers, strict=True)
    ]
    found = {
        "x_DNABERT_S.pt": {"nucleotide": ids, "data": means},
        "x_ESM.pt": {"proteins": ids, "data": [row[4:].clone() for row in numbers]},
        "x_merged.pt": {"ids": ids, "data": numbers},
    }
    torch.save(found[name], path)
    return path


def features(data: bytes) -> None:
    """Read any bytes as a file of features, or as the pickle in one."""
    if not data:
        return
    name, use = _FEATURE_NAMES[data[0] % 3], data[0] // 3 % 3
    seed = _feature_file(name)
    program = data[1:] if use == 1 else _patched(_program(seed), data[1:])
    directory = _scratch() / "features"
    directory.mkdir(exist_ok=True)
    (directory / name).write_bytes(data[1:] if use == 0 else _repacked(seed, program))
    message = ""
    with warnings.catch_warnings(action="error"):
        known = FeatureIndex(list(find_features(directory, _scratch())), _WIDTHS)
        try:
            for _ in known.read(Directory(_scratch())):
                assert known.found_text().startswith("found 1 file of features")
        except FeatureError as error:
            message = str(error)
        finally:
            known.close()
            (directory / name).unlink()
    assert len(message.splitlines()) < 2


TARGETS: dict[str, Target] = {
    "readers": readers,
    "import": imports,
    "bundles": bundles,
    "references": references,
    "windows": windows,
    "features": features,
}


def seeds(name: str) -> Iterator[bytes]:
    """Yield small, valid inputs of a target."""
    if name == "readers":
        yield from _reader_seeds()
    elif name == "import":
        yield b"\0" + _legacy_checkpoint()
        for number, path in ((1, _PROTEIN), (3, _CLASSIFIER), (4, _WEIGHTS)):
            yield bytes([number]) + _program(path)
        yield b"\2" + _CLASSIFIER.read_bytes()
        yield from (bytes([n]) + (_DNABERT / name).read_bytes() for n, name in ((5, "config.json"),))
        yield b"\6" + json.dumps(_small_tokenizer()).encode()
        yield b"\7" + (SHIPPED / "classifier.safetensors").read_bytes()[:2_000]
        for number in range(_FIRST_PATCHED, len(_WAYS_TO_IMPORT)):
            yield from (bytes([number]) + patch for patch in (b"", b"\0\1\0\7", b"\0\x50\1A\3\0\0\xff"))
    elif name == "bundles":
        yield b"\0" + (SHIPPED / "bundle.json").read_bytes()
        yield b"\1" + json.dumps(_small_tokenizer()).encode()
    elif name == "references":
        yield b"\1" + _small_reference().encode()
        yield from (bytes([0, where, what]) for where in range(24) for what in range(len(_REPLACEMENTS)))
    elif name == "features":
        for number, file in enumerate(_FEATURE_NAMES):
            yield bytes([number]) + _feature_file(file).read_bytes()
            yield bytes([3 + number]) + _program(_feature_file(file))
            yield from (bytes([6 + number]) + patch for patch in (b"", b"\0\1\0\7", b"\0\x50\1A\3\0\0\xff"))
    else:
        yield bytes([20, 3]) + b"\n".join(
            [b"GCAGCAGCAGCAGCA" * 5, b"", b"AC", b"TTAATTAATTAATTAA" * 3, b"ACGTN" * 20]
        )


def _reader_seeds() -> Iterator[bytes]:
    fasta, fastq = b">a x\nACGTN\nacgt\n>b\n\n>c\nAC-GU\n", b"@a\nACGT\n+\nIIII\n@b\nA\n+\nI\n\n\n"
    windows_fasta = b"\xef\xbb\xbf\n" + fasta.replace(b"\n", b"\r\n")
    for text in (fasta, fastq, windows_fasta, b">" * 60, b"@@\nA\n+\n@\n"):
        yield from (bytes([number]) + text for number in range(len(_COMPRESSORS)))
        for compress in _COMPRESSORS[1:]:
            yield b"\0" + compress(text) + compress(b"") + compress(text)


@cache
def _legacy_checkpoint() -> bytes:
    file = io.BytesIO()
    checkpoint = torch.load(_PROTEIN, weights_only=False)
    small = {name: tensor for name, tensor in checkpoint["model"].items() if tensor.numel() < 100}
    torch.save({"model": small, "cfg": checkpoint["cfg"]}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def _small_tokenizer() -> dict[str, object]:
    tokenizer: dict[str, object] = json.loads((SHIPPED / "tokenizer.json").read_bytes())
    model = tokenizer["model"]
    assert isinstance(model, dict)
    first_tokens = {token: number for token, number in model["vocab"].items() if number < 20}
    tokenizer["model"] = model | {"vocab": first_tokens, "merges": []}
    return tokenizer
