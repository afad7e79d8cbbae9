"""
Reference results of a model for a few ORFs, which other installations are verified against.

A reference is one small file, ``reference.json``. It contains the letters and the scores of each ORF;
and of each embedding a sketch: its length and 32 signed sums. The file is small for a model of any width,
and two embeddings that differ have different sketches.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnuc_async.errors import BadReference, NoReference
from virnuc_async.fileio import atomic_write, read_json, sha256
from virnuc_async.settings import Precision
from virnuc_async.text import is_printable

from .bundle import REFERENCE, Bundle, save_manifest

SUMS = 32

_FORMAT = 1
_MAX_SIZE = 1 << 20  # bytes of a reference.json
_MAX_LETTERS = 10_000  # of one ORF
_MIN_LENGTH, _MAX_LENGTH = 1e-30, 1e30  # of an embedding; FP32 represents them and their squares
_PUBLISHED = Path(__file__).parent / "published-reference.json"

_Numbers = NDArray[np.float64]
_Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a correct installation may deviate from its reference, for its worst ORF."""

    score: float  # absolute
    distance: float  # between the sums of two sketches, relative to their length
    cosine: float  # between the sums of two sketches, at least
    length: float  # of an embedding, relative


@dataclass(frozen=True, slots=True)
class EmbeddingSketch:
    """A sketch of the embeddings (N, C) of one network: a signed random projection and the lengths."""

    lengths: _Numbers  # (N,)
    sums: _Numbers  # (N, SUMS)

    def __post_init__(self) -> None:
        if self.lengths.ndim != 1:
            raise ValueError("the lengths are not a list")
        if self.sums.shape != (len(self.lengths), SUMS):
            raise ValueError(f"the sums have the shape {self.sums.shape}")


@dataclass(frozen=True, slots=True)
class Reference:
    """The ORFs, and the results of the model; row i belongs to ORF i."""

    source: str  # who computed it, and how
    is_ours: bool  # computed by this program
    ids: tuple[str, ...]
    bases: tuple[bytes, ...]
    proteins: tuple[bytes, ...]
    scores: _Numbers | None  # (N, 2): non-viral, viral; None if unknown
    nucleotide: EmbeddingSketch
    protein: EmbeddingSketch

    def __post_init__(self) -> None:
        rows = {len(self.bases), len(self.proteins), len(self.nucleotide.lengths), len(self.protein.lengths)}
        if rows != {len(self.ids)} or not self.ids:
            raise ValueError("the numbers of rows differ, or are zero")
        if self.scores is not None and self.scores.shape != (len(self.ids), 2):
            raise ValueError(f"the scores have the shape {self.scores.shape}")

    def __len__(self) -> int:
        return len(self.ids)

    def tolerance(self, precision: Precision) -> Tolerance:
        """Return how far another installation may deviate from this, in *precision*."""
        if precision in _REDUCED:
            return _REDUCED[precision]
        return _SAME_PROGRAM if self.is_ours else _ANOTHER_PROGRAM


# Measured with scripts/measure_reference.py, see docs/reference/model-bundle.md: in BF16, embeddings of
# networks of 2 to 33 layers deviated by 1.5e-2 from FP64, and scores by 2e-3. The least certain published
# ORF is 0.05 of a score away from the other label. In FP16, which has three bits more, they deviated by
# 2e-3 and 6e-4. In FP8, by plain torch on a CPU, 9.3e-2 and 1.6e-2.
_REDUCED = {
    Precision.BF16: Tolerance(score=0.05, distance=0.05, cosine=0.999, length=0.02),
    Precision.FP16: Tolerance(score=0.01, distance=0.01, cosine=0.9999, length=0.005),
    Precision.FP8: Tolerance(score=0.05, distance=0.2, cosine=0.98, length=0.02),
}
# In FP32 they deviated by 2e-6 and 2e-7, as sums in another order do. A reference of this program allows
# fifty times that; one of another program on another device is less certain.
_ANOTHER_PROGRAM = Tolerance(score=1e-3, distance=1e-3, cosine=0.99999, length=1e-3)
_SAME_PROGRAM = Tolerance(score=1e-4, distance=1e-4, cosine=0.999999, length=1e-4)


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far the results of a device deviate from the reference, for the worst ORF."""

    score: float | None  # None: the scores of one side are unknown
    distance: float
    cosine: float
    length: float
    labels: int  # equal to the reference's, or undecided there
    of: int

    def is_within(self, tolerance: Tolerance) -> bool:
        """Return whether all values are within *tolerance*; NaN never is."""
        return (
            (self.score is None or self.score <= tolerance.score)
            and self.distance <= tolerance.distance
            and self.cosine >= tolerance.cosine
            and self.length <= tolerance.length
            and self.labels == self.of
        )

    def excess(self, tolerance: Tolerance) -> str:
        """Return what is not within *tolerance*, for a message."""
        values = [
            ("scores", self.score, tolerance.score),
            ("embeddings", self.distance, tolerance.distance),
            ("lengths of embeddings", self.length, tolerance.length),
        ]
        parts = [
            f"{name} deviate by {value:.2g} (at most {most:g})"
            for name, value, most in values
            if value is not None and not value <= most
        ]
        if not self.cosine >= tolerance.cosine:
            parts.append(f"a cosine is {self.cosine:.4f} (at least {tolerance.cosine:g})")
        if self.labels < self.of:
            parts.append(f"{self.labels} of {self.of} labels are equal")
        return ", ".join(parts)


def sign_matrix(width: int) -> _Numbers:
    """
    Return the fixed (width, 32) matrix of 1 and -1 that embeddings are multiplied with.

    Row i, column k is -1 where the top bit of output 32 i + k, counted from 0, of splitmix64 with the seed 0
    is set: a formula, since the random numbers of a library may change.
    """
    with np.errstate(over="ignore"):
        z = (np.arange(width * SUMS, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.where(z >> np.uint64(63), -1.0, 1.0).reshape(width, SUMS)


def sketch(embeddings: _Floats) -> EmbeddingSketch:
    """Return the sketch of *embeddings* (N, C)."""
    exact = embeddings.astype(np.float64)
    return EmbeddingSketch(np.linalg.norm(exact, axis=1), exact @ sign_matrix(exact.shape[1]))


def compare(expected: Reference, found: Reference, tolerance: Tolerance) -> Deviation:
    """Return how far *found* deviates from *expected*, with labels compared by *tolerance*."""
    pairs = ((found.nucleotide, expected.nucleotide), (found.protein, expected.protein))
    score, labels, of = _compare_scores(expected.scores, found.scores, tolerance.score)
    # With numpy, since its max is NaN if any number is. Zeros from a device divide by zero: just wrong.
    with np.errstate(all="ignore"):
        cosines = [_dot(a.sums, b.sums) / _length(a.sums) / _length(b.sums) for a, b in pairs]
        return Deviation(
            score=score,
            distance=float(np.max([_length(a.sums - b.sums) / _length(b.sums) for a, b in pairs])),
            cosine=float(np.min(cosines)),
            length=float(np.max([np.abs(a.lengths / b.lengths - 1) for a, b in pairs])),
            labels=labels,
            of=of,
        )


def _compare_scores(
    expected: _Numbers | None, found: _Numbers | None, tolerance: float
) -> tuple[float | None, int, int]:
    """Return the largest deviation, the number of equal labels, and the number of labels."""
    if expected is None or found is None:
        return None, 0, 0
    # A label that a deviation within the tolerance may change counts as equal.
    is_undecided = np.abs(expected[:, 0] - expected[:, 1]) <= 2 * tolerance
    is_equal = is_undecided | (expected.argmax(1) == found.argmax(1))
    return float(np.abs(found - expected).max()), int(is_equal.sum()), len(is_equal)


def _dot(a: _Numbers, b: _Numbers) -> _Numbers:
    return np.asarray((a * b).sum(1))


def _length(sums: _Numbers) -> _Numbers:
    return np.sqrt(_dot(sums, sums))


def reference_of(bundle: Bundle) -> Reference:
    """
    Read the reference of *bundle*.

    Raises:
        NoReference: it has none
        BadReference: it is invalid
    """
    if REFERENCE not in bundle.checksums:
        raise NoReference(bundle.name)
    return read_reference(bundle.directory / REFERENCE)


def published_reference(length: int) -> Reference:
    """Return the reference of the published models; only the classifier for 500 bases has scores."""
    reference = read_reference(_PUBLISHED)
    return reference if length == 500 else replace(reference, scores=None)


def read_reference(path: Path) -> Reference:
    """
    Read a ``reference.json``.

    Raises:
        BadReference: it cannot be read, or is invalid
    """
    try:
        described = read_json(path, _MAX_SIZE)
        if described["format"] != _FORMAT:
            raise BadReference(str(path), f"its format is {described['format']!r:.99}, not {_FORMAT}")
        return _parse_reference(described)
    except OSError as error:
        raise BadReference(str(path), error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadReference(str(path), f"{error!r:.200}") from error


def _parse_reference(described: Mapping[str, Any]) -> Reference:
    orfs, scores = described["orfs"], described["scores"]
    return Reference(
        source=_check_line(described["source"]),
        is_ours=described["computed_by"] == "virnuc-async",
        ids=tuple(_check_line(orf["id"]) for orf in orfs),
        bases=tuple(_parse_letters(orf["bases"]) for orf in orfs),
        proteins=tuple(_parse_letters(orf["protein"]) for orf in orfs),
        scores=None if scores is None else _parse_probabilities(scores),
        nucleotide=_parse_sketch(described["nucleotide"]),
        protein=_parse_sketch(described["protein"]),
    )


def _parse_sketch(described: Mapping[str, Any]) -> EmbeddingSketch:
    found = EmbeddingSketch(_parse_finite(described["lengths"]), _parse_finite(described["sums"]))
    # Nothing can be compared with an embedding of length 0, or one whose square overflows.
    for lengths in (found.lengths, np.abs(found.sums).max(1)):
        if not ((lengths > _MIN_LENGTH) & (lengths < _MAX_LENGTH)).all():
            raise ValueError("an embedding is zero, or too large")
    return found


def _parse_probabilities(numbers: Any) -> _Numbers:
    array = _parse_finite(numbers)
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError("the scores are not probabilities")
    return array


def _parse_finite(numbers: Any) -> _Numbers:
    array = np.array(numbers, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("a number is not finite")
    return array


def _check_line(text: Any) -> str:
    """Return *text*, which is untrusted, if it is safe to show on a terminal; raise ValueError if not."""
    if not is_printable(text):
        raise ValueError(f"not a line of text: {text!r:.99}")
    return text


def _parse_letters(text: Any) -> bytes:
    if not isinstance(text, str) or not 1 <= len(text) <= _MAX_LETTERS:
        raise ValueError("an ORF has no letters, or too many")
    if not (text.isascii() and text.isalpha() and text.isupper()):
        raise ValueError(f"{text!r:.99} are not upper-case letters")
    return text.encode("ascii")


def set_reference(bundle: Bundle, reference: Reference) -> Bundle:
    """Write *reference* into *bundle*, and return the bundle; its fingerprint does not change."""
    parts = {name: checksum for name, checksum in bundle.checksums.items() if name != REFERENCE}
    # In this order, bundle.json never describes another file than the existing one.
    save_manifest(replace(bundle, checksums=parts))
    write_reference(bundle.directory, reference)
    return save_manifest(replace(bundle, checksums=parts | {REFERENCE: sha256(bundle.directory / REFERENCE)}))


def write_reference(directory: Path, reference: Reference) -> None:
    """Write *reference* into the bundle in *directory*, atomically."""
    with atomic_write(directory / REFERENCE) as file:
        file.write(_to_json(reference).encode("utf-8"))


def _to_json(reference: Reference) -> str:
    letters = zip(reference.ids, reference.bases, reference.proteins, strict=True)
    described = {
        "format": _FORMAT,
        "source": reference.source,
        "computed_by": "virnuc-async" if reference.is_ours else "another program",
        "orfs": [
            {"id": id, "bases": bases.decode(), "protein": protein.decode()} for id, bases, protein in letters
        ],
        "scores": None if reference.scores is None else _to_lists(reference.scores),
        "nucleotide": _sketch_to_json(reference.nucleotide),
        "protein": _sketch_to_json(reference.protein),
    }
    return json.dumps(described, indent=1) + "\n"


def _sketch_to_json(sketch: EmbeddingSketch) -> dict[str, Any]:
    return {"lengths": _to_lists(sketch.lengths), "sums": _to_lists(sketch.sums)}


def _to_lists(numbers: _Numbers) -> Any:
    """Return *numbers* as nested lists, with as many digits as FP32 has."""
    flat = np.array([float(f"{number:.9g}") for number in numbers.ravel()])
    return flat.reshape(numbers.shape).tolist()
