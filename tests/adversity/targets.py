"""
What is fuzzed: each target takes any bytes and raises only if a promise is broken.

The first byte of an input says in which place the others stand. ``fuzz.py`` looks for inputs that
break a promise; those that were found lie in ``tests/data/crashes`` and are played by a test.
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
    BrokenInput,
    FeatureError,
    InputError,
)
from virnuc_async.models.bundle import PARTS, REFERENCE, find
from virnuc_async.models.checkpoint_formats import read_classifier, read_nucleotide, read_protein
from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle
from virnuc_async.models.reference import Reference, compare, read_reference, write_reference
from virnuc_async.runs.reuse_embeddings import Features, find_features
from virnuc_async.sequences import inputs as sequences
from virnuc_async.sequences.batches import ContigRow, Window, form_windows
from virnuc_async.sequences.fragments import cut
from virnuc_async.sequences.inputs import Contig, read_contigs
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.settings import Precision

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TESTS = Path(__file__).parents[1]
MODELS = TESTS / "data" / "golden" / "upstream" / "models"
SHIPPED = TESTS.parent / "virnuc_async" / "models" / "tiny-500"

Target = Callable[[bytes], None]


# The readers of sequences

_PACKS: tuple[Callable[[bytes], bytes], ...] = (
    bytes,
    lambda text: gzip.compress(text, 1),
    lambda text: bz2.compress(text, 1),
    lambda text: lzma.compress(text, preset=0),
    zstd.compress,
)
_LETTERS = frozenset(b"ACGTRYSWKMBDHVNXacgtryswkmbdhvnx")


def readers(data: bytes) -> None:
    """Read any bytes; or any text, packed whole so that mutations are of the text."""
    if not data:
        return
    content = _PACKS[data[0] % len(_PACKS)](data[1:])
    at_once, in_bits = (_reading(content, size) for size in (1 << 18, 1 + data[0] % 61))
    _see_that_they_agree(*at_once, *in_bits)


def _reading(content: bytes, block: int) -> tuple[list[Contig], InputError | None]:
    found: list[Contig] = []
    failure: InputError | None = None
    kept = sequences._BLOCK, sequences.LARGEST_RECORD, sequences.LONGEST_ID
    sequences._BLOCK, sequences.LARGEST_RECORD, sequences.LONGEST_ID = block, 1_000, 50
    try:
        for contig in read_contigs("-", io.BytesIO(content)):
            found.append(contig)
            assert len(contig.id) <= 50
            assert not contig.id or contig.id.split() == [contig.id]
            assert len(contig.bases) <= 1_000
            assert _LETTERS.issuperset(contig.bases)
    except InputError as error:
        failure = error
    finally:
        sequences._BLOCK, sequences.LARGEST_RECORD, sequences.LONGEST_ID = kept
    assert failure is None or (str(failure).startswith("-: ") and len(str(failure)) < 999)
    return found, failure


def _see_that_they_agree(
    first: list[Contig], failure: InputError | None, second: list[Contig], other: InputError | None
) -> None:
    if isinstance(failure, BrokenInput) or isinstance(other, BrokenInput):
        # What a decompressor gives before a break depends on how much is asked of it at once.
        length = min(len(first), len(second))
        assert first[:length] == second[:length]
    else:
        assert first == second
        assert (type(failure), str(failure)) == (type(other), str(other))


# The importers


@cache
def _scratch() -> Path:
    """A place for the files of the importers' target; in memory where there is such a place."""
    memory = Path("/dev/shm")
    directory = Path(mkdtemp(dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, directory)
    return directory


@cache
def _members(path: Path) -> tuple[tuple[str, bytes], ...]:
    with zipfile.ZipFile(path) as archive:
        return tuple((name, archive.read(name)) for name in archive.namelist())


def _repacked(path: Path, program: bytes) -> bytes:
    """Give *path*, a file of torch's, with another pickle in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in _members(path):
            archive.writestr(name, program if name.endswith("/data.pkl") else content)
    return file.getvalue()


def _patched(content: bytes, data: bytes) -> bytes:
    """Change bytes of *content*: four bytes say each place, from which end, and what is to stand there."""
    changed = bytearray(content)
    for at in range(0, len(data) - 3, 4):
        place = int.from_bytes(data[at : at + 2], "big") * (1 if data[at + 2] % 2 else -1)
        changed[place % len(changed)] = data[at + 3]
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


_FORMS: tuple[Callable[[bytes], CheckpointPaths], ...] = (
    _as_protein,
    lambda data: _as_protein(_repacked(_PROTEIN, data)),
    _as_classifier,
    lambda data: _as_classifier(_repacked(_CLASSIFIER, data)),
    lambda data: _as_dnabert("pytorch_model.bin", _repacked(_WEIGHTS, data)),
    lambda data: _as_dnabert("config.json", data),
    lambda data: _as_dnabert("tokenizer.json", data),
    _as_safetensors,
    # Changed in a few places each: most bytes of any kind are refused by their first.
    lambda data: _as_protein(_patched(_PROTEIN.read_bytes(), data)),
    lambda data: _as_protein(_repacked(_PROTEIN, _patched(_program(_PROTEIN), data))),
    lambda data: _as_classifier(_patched(_CLASSIFIER.read_bytes(), data)),
    lambda data: _as_classifier(_repacked(_CLASSIFIER, _patched(_program(_CLASSIFIER), data))),
    lambda data: _as_dnabert("pytorch_model.bin", _repacked(_WEIGHTS, _patched(_program(_WEIGHTS), data))),
    lambda data: _as_dnabert("config.json", _patched((_DNABERT / "config.json").read_bytes(), data)),
    lambda data: _as_protein(_patched(_old_form(), data)),
)
_FIRST_PATCHED = 8


def imports(data: bytes) -> None:
    """Import any bytes in the place of each file, or of the pickle in it."""
    if not data:
        return
    said = ""
    with warnings.catch_warnings(action="error"):
        try:
            _import(_FORMS[data[0] % len(_FORMS)](data[1:]))
        except (BadCheckpoint, BadBundle) as failure:  # BadBundle: a network beyond all measure
            said = str(failure)
    assert len(said.splitlines()) < 2


def _import(parts: CheckpointPaths) -> None:
    if parts == CheckpointPaths(_PROTEIN, _DNABERT, _CLASSIFIER):
        return  # as they are
    with TemporaryDirectory(dir=_scratch()) as directory:
        import_bundle(parts, Path(directory) / "made", "made", 500).check()


# Bundles


def bundles(data: bytes) -> None:
    """Find a bundle with any description, or any tokenizer, and use what can be used without weights."""
    if not data:
        return
    directory = _scratch() / "bundle"
    if not directory.exists():
        shutil.copytree(SHIPPED, directory)
    name = ("bundle.json", "tokenizer.json")[data[0] % 2]
    (directory / name).write_bytes(data[1:])
    said = ""
    try:
        bundle = find(directory)
        assert len(bundle.fingerprint) == 16
        assert set(bundle.checksums) - {REFERENCE} == set(PARTS)
        assert f"{bundle.name}{bundle.notice}{bundle.licence}".isprintable()
        OrfTokenizer(bundle.tokenizer())
    except BadBundle as failure:
        said = str(failure)
    finally:
        shutil.copyfile(SHIPPED / name, directory / name)
    assert len(said) < 9_999


# References

# What a value of a reference is replaced with: a byte chooses.
_STRANGE: tuple[object, ...] = (
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
    """Give the shipped reference with one ORF of the eight, as text."""
    described = json.loads((SHIPPED / REFERENCE).read_bytes())
    described["orfs"] = [{"id": "x", "bases": "GCAGCA", "protein": "AA"}]
    described["scores"] = described["scores"][:1]
    for part in ("nucleotide", "protein"):
        described[part] = {name: rows[:1] for name, rows in described[part].items()}
    return json.dumps(described)


def _replaced(data: bytes) -> bytes:
    """Give the small reference with other values in some places: two bytes say where, and what."""
    described = json.loads(_small_reference())
    for where, what in zip(data[::2], data[1::2], strict=False):
        places = list(_places(described))
        if places:
            holder, key = places[where % len(places)]
            holder[key] = deepcopy(_STRANGE[what % len(_STRANGE)])
    return json.dumps(described).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Give every place in *value* that holds another one."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in inner:
        yield value, key
        if not isinstance(value, list) or key < 2:  # of 32 numbers, all alike, two are enough
            yield from _places(held)


def references(data: bytes) -> None:
    """Read any reference; one that is taken can be tokenized, compared and written again."""
    if not data:
        return
    directory = _scratch() / "reference"
    directory.mkdir(exist_ok=True)
    (directory / REFERENCE).write_bytes(data[1:] if data[0] % 2 else _replaced(data[1:]))
    said = ""
    with warnings.catch_warnings(action="error"):
        try:
            reference = read_reference(directory / REFERENCE)
            assert f"{reference.source}{''.join(reference.ids)}".isprintable()
            assert len(batch_of(find("tiny-500"), reference).orfs) == len(reference)
            for precision in (Precision.FP32, Precision.BF16):
                tolerance = reference.tolerance(precision)
                assert compare(reference, reference, tolerance).is_within(tolerance)
            write_reference(directory, reference)
            _see_that_they_are_alike(reference, read_reference(directory / REFERENCE))
        except BadReference as failure:
            said = str(failure)
    assert len(said.splitlines()) < 2
    assert len(said) < 999


def _see_that_they_are_alike(one: Reference, other: Reference) -> None:
    assert (one.source, one.ids, one.bases, one.proteins) == (
        other.source,
        other.ids,
        other.bases,
        other.proteins,
    )
    for kept, again in ((one.nucleotide, other.nucleotide), (one.protein, other.protein)):
        np.testing.assert_allclose(kept.sums, again.sums, rtol=1e-8)
        np.testing.assert_allclose(kept.lengths, again.lengths, rtol=1e-8)


# Windows


@cache
def _tokenizer() -> OrfTokenizer:
    return OrfTokenizer(find("tiny-500").tokenizer())


_BASES = bytes(b"ACGTacgtNR"[byte % 10] for byte in range(256))


def windows(data: bytes) -> None:
    """Cut, translate and pack any records, in windows of two sizes: nothing is lost or twice there."""
    if len(data) < 2:
        return
    length, size = 1 + data[0] % 90, 1 + data[1] % 40
    contigs = [Contig(b"c%d" % n, line.translate(_BASES)) for n, line in enumerate(data[2:].split(b"\n"))]

    def read(_: str) -> Iterator[Contig]:
        return iter(contigs)

    small, large = (list(form_windows(["x"], read, length, _tokenizer(), n)) for n in (size, 10_000))
    for column in ("origins", "residues", "nucleotides"):
        np.testing.assert_array_equal(*(_joined(some, column) for some in (small, large)))
    rows = [row for window in small for row in window.contigs]
    assert [(row.number, row.id, row.length) for row in rows] == [
        (number, contig.id, len(contig.bases)) for number, contig in enumerate(contigs)
    ]
    _see_that_all_is_covered(rows, length)
    for window in small:
        batches = list(window.batches(64))
        orfs = sorted(orf for batch in batches for orf in batch.orfs.tolist())
        assert orfs == list(range(window.first, window.first + len(window.origins)))


def _see_that_all_is_covered(rows: Iterable[ContigRow], length: int) -> None:
    for row in rows:
        ranges = list(cut(row.length, length))
        assert len(ranges) == row.fragments
        assert all(end - begin <= length for begin, end in ranges)
        reached = 0
        for begin, end in ranges:
            assert begin <= reached < end
            reached = end
        assert reached == row.length


def _joined(some: list[Window], column: str) -> np.ndarray:
    values = [getattr(window, column) for window in some]
    return np.concatenate([getattr(value, "ids", value) for value in values])


# Features of earlier work

_WIDTHS = (4, 6)
_FEATURE_NAMES = ("x_DNABERT_S.pt", "x_ESM.pt", "x_merged.pt")


@cache
def _feature_file(name: str) -> Path:
    """Give a small file of the form that *name* says, of three ORFs."""
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
    """Read any bytes as a file of features, or as the pickle in one; what is taken is what can be found."""
    if not data:
        return
    name, way = _FEATURE_NAMES[data[0] % 3], data[0] // 3 % 3
    seed = _feature_file(name)
    program = data[1:] if way == 1 else _patched(_program(seed), data[1:])
    directory = _scratch() / "features"
    directory.mkdir(exist_ok=True)
    (directory / name).write_bytes(data[1:] if way == 0 else _repacked(seed, program))
    said = ""
    with warnings.catch_warnings(action="error"):
        known = Features(list(find_features(directory, _scratch())), _WIDTHS)
        try:
            for _ in known.read(_scratch()):
                assert known.found_text().startswith("found 1 file of features")
        except FeatureError as failure:
            said = str(failure)
        finally:
            known.close()
            (directory / name).unlink()
    assert len(said.splitlines()) < 2


TARGETS: dict[str, Target] = {
    "readers": readers,
    "import": imports,
    "bundles": bundles,
    "references": references,
    "windows": windows,
    "features": features,
}


def seeds(name: str) -> Iterator[bytes]:
    """Give small, real inputs of a target."""
    fasta, fastq = b">a x\nACGTN\nacgt\n>b\n\n>c\nAC-GU\n", b"@a\nACGT\n+\nIIII\n@b\nA\n+\nI\n\n\n"
    if name == "readers":
        for text in (
            fasta,
            fastq,
            b"\xef\xbb\xbf\n" + fasta.replace(b"\n", b"\r\n"),
            b">" * 60,
            b"@@\nA\n+\n@\n",
        ):
            yield from (bytes([number]) + text for number in range(len(_PACKS)))
            yield from (b"\0" + pack(text) + pack(b"") + pack(text) for pack in _PACKS[1:])
    elif name == "import":
        yield b"\0" + _old_form()
        for number, path in ((1, _PROTEIN), (3, _CLASSIFIER), (4, _WEIGHTS)):
            yield bytes([number]) + _program(path)
        yield b"\2" + _CLASSIFIER.read_bytes()
        yield from (bytes([n]) + (_DNABERT / name).read_bytes() for n, name in ((5, "config.json"),))
        yield b"\6" + json.dumps(_small_tokenizer()).encode()
        yield b"\7" + (SHIPPED / "classifier.safetensors").read_bytes()[:2_000]
        for number in range(_FIRST_PATCHED, len(_FORMS)):
            yield from (bytes([number]) + patch for patch in (b"", b"\0\1\0\7", b"\0\x50\1A\3\0\0\xff"))
    elif name == "bundles":
        yield b"\0" + (SHIPPED / "bundle.json").read_bytes()
        yield b"\1" + json.dumps(_small_tokenizer()).encode()
    elif name == "references":
        yield b"\1" + _small_reference().encode()
        yield from (bytes([0, where, what]) for where in range(24) for what in range(len(_STRANGE)))
    elif name == "features":
        for number, form in enumerate(_FEATURE_NAMES):
            yield bytes([number]) + _feature_file(form).read_bytes()
            yield bytes([3 + number]) + _program(_feature_file(form))
            yield from (bytes([6 + number]) + patch for patch in (b"", b"\0\1\0\7", b"\0\x50\1A\3\0\0\xff"))
    else:
        yield bytes([20, 3]) + b"\n".join(
            [b"GCAGCAGCAGCAGCA" * 5, b"", b"AC", b"TTAATTAATTAATTAA" * 3, b"ACGTN" * 20]
        )


@cache
def _old_form() -> bytes:
    file = io.BytesIO()
    found = torch.load(_PROTEIN, weights_only=False)
    some = {name: tensor for name, tensor in found["model"].items() if tensor.numel() < 100}
    torch.save({"model": some, "cfg": found["cfg"]}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def _small_tokenizer() -> dict[str, object]:
    tokenizer: dict[str, object] = json.loads((SHIPPED / "tokenizer.json").read_bytes())
    model = tokenizer["model"]
    assert isinstance(model, dict)
    few = {token: number for token, number in model["vocab"].items() if number < 20}
    tokenizer["model"] = model | {"vocab": few, "merges": []}
    return tokenizer
