"""
What a model gave for a few ORFs when it was known to be right, to hold other machines against.

A reference is one small file of figures, ``reference.json``. Of each ORF it has the letters and the
scores; of each embedding the length and 32 signed sums, so that a model of any width fits on a page,
and two embeddings that differ differ in these, too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnuc_async.errors import BadReference, NoReference
from virnuc_async.fileio import atomic_write, read_bounded, sha256
from virnuc_async.settings import Precision

from .bundle import REFERENCE, Bundle, save_manifest

SUMS = 32

_FORMAT = 1
_MOST_BYTES = 1 << 20
_MOST_LETTERS = 10_000  # of one ORF
_SHORTEST, _LONGEST = 1e-30, 1e30  # embeddings that FP32 can hold, well within
_PUBLISHED = Path(__file__).parent / "published-reference.json"

_Numbers = NDArray[np.float64]
_Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a right installation may be from its reference, at the worst of its ORFs."""

    score: float  # absolute
    distance: float  # of an embedding's sums, relative to their length
    cosine: float  # of an embedding's sums, at least
    length: float  # of an embedding, relative


@dataclass(frozen=True, slots=True)
class EmbeddingSketch:
    """What is kept of the embeddings (N, C) that one network gave."""

    lengths: _Numbers  # N
    sums: _Numbers  # N SUMS

    def __post_init__(self) -> None:
        if self.lengths.ndim != 1:
            raise ValueError("lengths that are no list")
        if self.sums.shape != (len(self.lengths), SUMS):
            raise ValueError(f"sums of the shape {self.sums.shape}")


@dataclass(frozen=True, slots=True)
class Reference:
    """The ORFs, and what the model gave; row i is the ORF i's."""

    source: str  # who computed it, and how
    is_ours: bool  # whether this program did
    ids: tuple[str, ...]
    bases: tuple[bytes, ...]
    proteins: tuple[bytes, ...]
    scores: _Numbers | None  # (N, 2): others, virus; None where nobody knows them
    nucleotide: EmbeddingSketch
    protein: EmbeddingSketch

    def __post_init__(self) -> None:
        rows = {len(self.bases), len(self.proteins), len(self.nucleotide.lengths), len(self.protein.lengths)}
        if rows != {len(self.ids)} or not self.ids:
            raise ValueError("not the same number of rows everywhere, or none")
        if self.scores is not None and self.scores.shape != (len(self.ids), 2):
            raise ValueError(f"scores of the shape {self.scores.shape}")

    def __len__(self) -> int:
        return len(self.ids)

    def tolerance(self, precision: Precision) -> Tolerance:
        """Give how far another machine may be from this, in *precision*."""
        if precision is Precision.BF16:
            return _BF16
        return _SAME_PROGRAM if self.is_ours else _ANOTHER_PROGRAM


# What is measured (scripts/measure_reference.py) is in docs/reference/model-bundle.md: in BF16, embeddings of
# networks of 2 to 33 layers were 1.4e-2 from FP64, and scores 2e-3. 0.05 of a score is also what the
# least certain published ORF is from the other label.
_BF16 = Tolerance(score=0.05, distance=0.05, cosine=0.999, length=0.02)
# In FP32 they were 2e-6 and 2e-7: as much as sums in another order make. Ours may be fifty times that;
# of what another program gave on another device, nobody knows so well.
_ANOTHER_PROGRAM = Tolerance(score=1e-3, distance=1e-3, cosine=0.99999, length=1e-3)
_SAME_PROGRAM = Tolerance(score=1e-4, distance=1e-4, cosine=0.999999, length=1e-4)


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far what a device gave is from the reference, at the worst of the ORFs."""

    score: float | None  # None: there is nothing to compare with
    distance: float
    cosine: float
    length: float
    labels: int  # that are those of the reference, or were undecided there
    of: int

    def is_within(self, tolerance: Tolerance) -> bool:
        """Whether an installation with it is right; what is not a number is not within anything."""
        return (
            (self.score is None or self.score <= tolerance.score)
            and self.distance <= tolerance.distance
            and self.cosine >= tolerance.cosine
            and self.length <= tolerance.length
            and self.labels == self.of
        )


def sign_matrix(width: int) -> _Numbers:
    """
    Give the (width, 32) matrix of 1 and -1 that embeddings are multiplied with, always the same.

    Row i, column k is -1 where the top bit is set of splitmix64's output 32 i + k, counted from 0, for
    the seed 0: a formula, since a library's random numbers may be others one day.
    """
    with np.errstate(over="ignore"):
        z = (np.arange(width * SUMS, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.where(z >> np.uint64(63), -1.0, 1.0).reshape(width, SUMS)


def sketch(embeddings: _Floats) -> EmbeddingSketch:
    """Give what is kept of *embeddings* (N, C)."""
    wide = embeddings.astype(np.float64)
    return EmbeddingSketch(np.linalg.norm(wide, axis=1), wide @ sign_matrix(wide.shape[1]))


def compare(wanted: Reference, found: Reference, tolerance: Tolerance) -> Deviation:
    """Say how far *found* is from *wanted*, both of the same ORFs; labels are compared by *tolerance*."""
    pairs = ((found.nucleotide, wanted.nucleotide), (found.protein, wanted.protein))
    score, labels, of = _of_scores(wanted.scores, found.scores, tolerance.score)
    # By numpy: of numbers, its max is not one if any is not. A device that gives zeros is just wrong.
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


def _of_scores(
    wanted: _Numbers | None, found: _Numbers | None, score: float
) -> tuple[float | None, int, int]:
    """Give the worst deviation, and how many labels are alike, of how many."""
    if wanted is None or found is None:
        return None, 0, 0
    # One that a deviation of *score* may turn counts as alike.
    is_undecided = np.abs(wanted[:, 0] - wanted[:, 1]) <= 2 * score
    is_alike = is_undecided | (wanted.argmax(1) == found.argmax(1))
    return float(np.abs(found - wanted).max()), int(is_alike.sum()), len(is_alike)


def _dot(a: _Numbers, b: _Numbers) -> _Numbers:
    return np.asarray((a * b).sum(1))


def _length(sums: _Numbers) -> _Numbers:
    return np.sqrt(_dot(sums, sums))


def reference_of(bundle: Bundle) -> Reference:
    """
    Read the reference of *bundle*.

    Raises:
        NoReference: it has none
        BadReference: what it has is not one
    """
    if REFERENCE not in bundle.checksums:
        raise NoReference(bundle.name)
    return read_reference(bundle.directory / REFERENCE)


def published_reference(length: int) -> Reference:
    """Give what the published models gave; scores only for the classifier for 500 bases."""
    reference = read_reference(_PUBLISHED)
    return reference if length == 500 else replace(reference, scores=None)


def read_reference(path: Path) -> Reference:
    """
    Read a ``reference.json``.

    Raises:
        BadReference: it is none
    """
    try:
        described = json.loads(read_bounded(path, _MOST_BYTES))
        if described["format"] != _FORMAT:
            raise BadReference(str(path), f"its format is {described['format']!r:.99}, not {_FORMAT}")
        return _reference(described)
    except OSError as error:
        raise BadReference(str(path), error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadReference(str(path), f"{error!r:.200}") from error


def _reference(described: Mapping[str, Any]) -> Reference:
    orfs, scores = described["orfs"], described["scores"]
    return Reference(
        source=_words(described["source"]),
        is_ours=described["computed_by"] == "virnuc-async",
        ids=tuple(_words(orf["id"]) for orf in orfs),
        bases=tuple(_letters(orf["bases"]) for orf in orfs),
        proteins=tuple(_letters(orf["protein"]) for orf in orfs),
        scores=None if scores is None else _probabilities(scores),
        nucleotide=_traces(described["nucleotide"]),
        protein=_traces(described["protein"]),
    )


def _traces(described: Mapping[str, Any]) -> EmbeddingSketch:
    found = EmbeddingSketch(_finite(described["lengths"]), _finite(described["sums"]))
    # Nothing can be compared with an embedding of no length, or of one whose square is no number.
    for lengths in (found.lengths, np.abs(found.sums).max(1)):
        if not ((lengths > _SHORTEST) & (lengths < _LONGEST)).all():
            raise ValueError("an embedding of no length, or beyond all measure")
    return found


def _probabilities(numbers: Any) -> _Numbers:
    array = _finite(numbers)
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError("scores that are no probabilities")
    return array


def _finite(numbers: Any) -> _Numbers:
    array = np.array(numbers, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("a number that is not finite")
    return array


def _words(text: Any) -> str:
    """Give *text* if a terminal can show it: it may come from anybody."""
    if not isinstance(text, str) or not text.isprintable():
        raise ValueError(f"not a line of text: {text!r:.99}")
    return text


def _letters(text: Any) -> bytes:
    if not isinstance(text, str) or not 1 <= len(text) <= _MOST_LETTERS:
        raise ValueError("no letters, or too many")
    if not (text.isascii() and text.isalpha() and text.isupper()):
        raise ValueError(f"{text!r:.99} are not upper-case letters")
    return text.encode("ascii")


def set_reference(bundle: Bundle, reference: Reference) -> Bundle:
    """Write *reference* into *bundle*, in the place of what it had; its scores stay what they are."""
    parts = {name: checksum for name, checksum in bundle.checksums.items() if name != REFERENCE}
    # In this order there is no moment at which bundle.json describes another file than is there.
    save_manifest(replace(bundle, checksums=parts))
    write_reference(bundle.directory, reference)
    return save_manifest(replace(bundle, checksums=parts | {REFERENCE: sha256(bundle.directory / REFERENCE)}))


def write_reference(directory: Path, reference: Reference) -> None:
    """Write *reference* where the bundle in *directory* is to have it, whole or not at all."""
    with atomic_write(directory / REFERENCE) as file:
        file.write(_as_json(reference).encode("utf-8"))


def _as_json(reference: Reference) -> str:
    letters = zip(reference.ids, reference.bases, reference.proteins, strict=True)
    described = {
        "format": _FORMAT,
        "source": reference.source,
        "computed_by": "virnuc-async" if reference.is_ours else "another program",
        "orfs": [
            {"id": id, "bases": bases.decode(), "protein": protein.decode()} for id, bases, protein in letters
        ],
        "scores": None if reference.scores is None else _figures(reference.scores),
        "nucleotide": _described(reference.nucleotide),
        "protein": _described(reference.protein),
    }
    return json.dumps(described, indent=1) + "\n"


def _described(sketch: EmbeddingSketch) -> dict[str, Any]:
    return {"lengths": _figures(sketch.lengths), "sums": _figures(sketch.sums)}


def _figures(numbers: _Numbers) -> Any:
    """Give *numbers* as nested lists, to as many digits as FP32 has."""
    flat = np.array([float(f"{number:.9g}") for number in numbers.ravel()])
    return flat.reshape(numbers.shape).tolist()
