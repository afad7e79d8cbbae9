"""References that models are verified against: their contents, invalid ones, and tolerances."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import beside, read_table

from virnuc_async.errors import BadReference, NoReference
from virnuc_async.models.bundle import Bundle, find
from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle
from virnuc_async.models.reference import (
    SUMS,
    EmbeddingSketch,
    Reference,
    compare,
    published_reference,
    read_reference,
    reference_of,
    set_reference,
    sign_matrix,
    sketch,
    write_reference,
)
from virnuc_async.settings import Precision

FP32, BF16, FP16, FP8 = Precision.FP32, Precision.BF16, Precision.FP16, Precision.FP8


@pytest.fixture
def bundle(golden_parts: CheckpointPaths, tmp_path: Path) -> Bundle:
    return import_bundle(golden_parts, tmp_path / "golden", "golden", 500, licence="MIT", notice="a toy")


@pytest.fixture
def reference() -> Reference:
    return published_reference(500)


# The sums


def test_signs_are_those_of_splitmix64() -> None:
    # Its first outputs for the seed 0, as the original program prints them.
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert sign_matrix(2).shape == (2, SUMS)
    assert sign_matrix(2)[0, :4].tolist() == [-1.0 if output >> 63 else 1.0 for output in known]


def test_signs_do_not_depend_on_the_width() -> None:
    assert np.array_equal(sign_matrix(2560)[:768], sign_matrix(768))


def test_columns_are_nearly_orthogonal() -> None:
    products = sign_matrix(2560).T @ sign_matrix(2560) / 2560
    assert np.abs(products - np.eye(SUMS)).max() < 0.1


def test_a_sketch_preserves_lengths_and_distances() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(200, 768))
    b = a + 0.1 * rng.normal(size=a.shape)
    first, second = sketch(a), sketch(b)
    distances = np.linalg.norm(first.sums - second.sums, axis=1) / np.linalg.norm(first.sums, axis=1)
    # With 32 signed sums, a relative distance is right within a factor of two.
    assert 0.05 < distances.min() < 0.1 < distances.max() < 0.2
    assert first.lengths == pytest.approx(np.linalg.norm(a, axis=1))


# The published reference


def test_the_published_reference_equals_the_published_run(reference: Reference) -> None:
    row = 0
    for run in ("test_with_orfs", "test_fixed_500bp"):
        directory = beside("real") / run
        merged = torch.load(directory / "merged.pt", weights_only=True)
        letters = [(directory / name).read_text("ascii").split() for name in ("nucleotide.fa", "protein.faa")]
        bases, proteins = (dict(zip(words[::2], words[1::2], strict=True)) for words in letters)
        nucleotide, protein = sketch(merged["data"][:, :768].numpy()), sketch(merged["data"][:, 768:].numpy())
        for at, (id, _, *scores) in enumerate(read_table(directory / "prediction_results.txt")[1:]):
            assert merged["ids"][at] == reference.ids[row] == id
            assert reference.bases[row].decode() == bases[f">{id}"]
            assert reference.proteins[row].decode() == proteins[f">{id}"]
            assert reference.scores is not None
            assert [str(np.float32(score)) for score in reference.scores[row]] == scores
            for ours, theirs in ((reference.nucleotide, nucleotide), (reference.protein, protein)):
                assert ours.lengths[row] == pytest.approx(theirs.lengths[at], rel=1e-8)
                assert ours.sums[row] == pytest.approx(theirs.sums[at], rel=1e-7, abs=1e-7)
            row += 1
    assert row == len(reference) == 8


def test_one_published_classifier_has_scores(reference: Reference) -> None:
    other = published_reference(300)
    assert other.scores is None
    assert np.array_equal(other.protein.sums, reference.protein.sums)
    assert not reference.is_ours
    assert "broadinstitute/virnucpro-broad (MIT)" in reference.source


# Comparing


def moved(reference: Reference, by: float, which: str = "protein") -> Reference:
    """Return *reference* with one sum changed by a share of the length of its row."""
    old: EmbeddingSketch = getattr(reference, which)
    sums = old.sums.copy()
    sums[3, 5] += by * np.linalg.norm(sums[3])
    return replace(reference, **{which: EmbeddingSketch(old.lengths, sums)})


@pytest.mark.parametrize("which", ["protein", "nucleotide"])
@pytest.mark.parametrize("precision", [FP32, BF16, FP16, FP8])
def test_the_distance_is_the_change(precision: Precision, which: str, reference: Reference) -> None:
    tolerance = reference.tolerance(precision)
    for share in (0.5, 2):
        found = compare(reference, moved(reference, share * tolerance.distance, which), tolerance)
        assert found.distance == pytest.approx(share * tolerance.distance)
        assert found.is_within(tolerance) == (share < 1)


@pytest.mark.parametrize("precision", [FP32, BF16, FP16, FP8])
def test_scores_and_lengths_are_compared(precision: Precision, reference: Reference) -> None:
    tolerance = reference.tolerance(precision)
    assert reference.scores is not None
    for share in (0.5, 2):
        scores = reference.scores + np.array([1, -1]) * share * tolerance.score
        found = compare(reference, replace(reference, scores=scores), tolerance)
        assert found.score == pytest.approx(share * tolerance.score)
        assert found.is_within(tolerance) == (share < 1)
        longer = replace(
            reference.protein, lengths=reference.protein.lengths * (1 + share * tolerance.length)
        )
        found = compare(reference, replace(reference, protein=longer), tolerance)
        assert found.length == pytest.approx(share * tolerance.length)
        assert found.is_within(tolerance) == (share < 1)


def test_labels_are_compared_unless_undecided(reference: Reference) -> None:
    swapped = reference.scores[:, ::-1]  # type: ignore[index]
    found = compare(reference, replace(reference, scores=swapped), reference.tolerance(FP32))
    assert (found.labels, found.of) == (0, 8)
    wide = replace(reference.tolerance(BF16), score=0.051)
    # The scores of one ORF are 0.55 and 0.45.
    assert compare(reference, replace(reference, scores=swapped), wide).labels == 1


@pytest.mark.parametrize("precision", [FP32, BF16, FP16, FP8])
def test_nan_is_never_within_the_tolerance(precision: Precision, reference: Reference) -> None:
    tolerance = reference.tolerance(precision)
    assert compare(reference, reference, tolerance).is_within(tolerance)
    for at in (0, 7):
        for which in ("nucleotide", "protein"):
            old: EmbeddingSketch = getattr(reference, which)
            sums, lengths = old.sums.copy(), old.lengths.copy()
            sums[at, 0] = lengths[at] = np.nan
            for broken in (EmbeddingSketch(lengths, old.sums), EmbeddingSketch(old.lengths, sums)):
                found = compare(reference, replace(reference, **{which: broken}), tolerance)
                assert not found.is_within(tolerance)
        scores = np.array(reference.scores)
        scores[at] = np.nan
        assert not compare(reference, replace(reference, scores=scores), tolerance).is_within(tolerance)


def test_a_device_that_returns_zeros_is_wrong(reference: Reference) -> None:
    tolerance = reference.tolerance(BF16)
    zeros = EmbeddingSketch(np.zeros(len(reference)), np.zeros((len(reference), SUMS)))
    found = compare(reference, replace(reference, protein=zeros), tolerance)
    assert (found.distance, found.length) == (1, 1)
    assert np.isnan(found.cosine)
    assert not found.is_within(tolerance)


def test_without_scores_the_embeddings_decide() -> None:
    reference = published_reference(300)
    tolerance = reference.tolerance(FP32)
    found = compare(reference, published_reference(500), tolerance)
    assert (found.score, found.labels, found.of) == (None, 0, 0)
    assert found.is_within(tolerance)
    assert not compare(reference, moved(reference, 0.1), tolerance).is_within(tolerance)


# The file


def test_a_reference_is_read_back(reference: Reference, tmp_path: Path) -> None:
    for written in (reference, replace(reference, scores=None, is_ours=True, source="me")):
        write_reference(tmp_path, written)
        found = read_reference(tmp_path / "reference.json")
        assert (found.source, found.is_ours, found.ids) == (written.source, written.is_ours, written.ids)
        assert (found.bases, found.proteins) == (written.bases, written.proteins)
        assert np.array_equal(found.protein.sums, written.protein.sums)
        assert (found.scores is None) == (written.scores is None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(format=2), "its format is 2, not 1"),
        (lambda d: d.pop("format"), "KeyError('format')"),
        (lambda d: d.pop("scores"), "KeyError('scores')"),
        (lambda d: d.update(orfs=[]), "the numbers of rows differ, or are zero"),
        (lambda d: d["orfs"].pop(), "the numbers of rows differ"),
        (lambda d: d["scores"].pop(), "the scores have the shape (7, 2)"),
        (lambda d: d.update(scores=[[1, 0, 0]] * 8), "the scores have the shape (8, 3)"),
        (lambda d: d.update(scores=[[1], [1, 2]]), "ValueError"),
        (lambda d: d["protein"].update(lengths=3), "the lengths are not a list"),
        (lambda d: d["protein"]["sums"].pop(), "the sums have the shape (7, 32)"),
        (lambda d: d["protein"]["sums"][0].pop(), "ValueError"),
        (lambda d: d["protein"]["lengths"].__setitem__(0, float("nan")), "a number is not finite"),
        (lambda d: d["nucleotide"]["sums"][0].__setitem__(0, "x"), "could not convert"),
        (lambda d: d["nucleotide"]["sums"].__setitem__(0, [0] * 32), "an embedding is zero"),
        (lambda d: d["protein"]["lengths"].__setitem__(7, 0), "an embedding is zero"),
        (lambda d: d["protein"]["lengths"].__setitem__(7, -1), "an embedding is zero"),
        (lambda d: d["protein"]["sums"][3].__setitem__(1, 1e300), "or too large"),
        (lambda d: d["scores"][0].__setitem__(0, -0.1), "the scores are not probabilities"),
        (lambda d: d["scores"][0].__setitem__(1, 1.1), "the scores are not probabilities"),
        (lambda d: d["orfs"][0].update(bases="acgt"), "are not upper-case letters"),
        (lambda d: d["orfs"][0].update(bases=""), "an ORF has no letters, or too many"),
        (lambda d: d["orfs"][0].update(protein="A" * 10_001), "an ORF has no letters, or too many"),
        (lambda d: d["orfs"][0].update(protein="É"), "are not upper-case letters"),
        (lambda d: d["orfs"][0].update(id="\x1b[2J"), "not a line of text"),
        (lambda d: d.update(source=["x"]), "not a line of text"),
        (lambda d: d.update(orfs=None), "TypeError"),
    ],
)
def test_an_invalid_reference(
    change: Callable[[dict[str, Any]], object], reason: str, reference: Reference, tmp_path: Path
) -> None:
    write_reference(tmp_path, reference)
    described = json.loads((tmp_path / "reference.json").read_bytes())
    change(described)
    (tmp_path / "reference.json").write_text(json.dumps(described))
    with pytest.raises(BadReference) as caught:
        read_reference(tmp_path / "reference.json")
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'reference.json'} is not a usable reference")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000, b" " * (1 << 20) + b"{}"]
)
def test_content_that_is_not_a_reference(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(BadReference):
        read_reference(tmp_path / "x.json")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadReference, match="No such file or directory"):
        read_reference(tmp_path / "x.json")


# In a bundle


def test_a_bundle_has_none_until_it_is_set(bundle: Bundle, reference: Reference) -> None:
    with pytest.raises(NoReference, match="'golden' has no reference .* 'models verify --record'"):
        reference_of(bundle)
    with_it = set_reference(bundle, reference)
    assert with_it == find(bundle.directory)
    assert np.array_equal(reference_of(with_it).protein.sums, reference.protein.sums)
    assert with_it.fingerprint == bundle.fingerprint
    assert (with_it.licence, with_it.notice, with_it.origin) == ("MIT", "a toy", bundle.origin)
    with_it.check()
    again = set_reference(with_it, replace(reference, source="another one"))
    assert reference_of(again).source == "another one"
    again.check()
    assert not [path.name for path in bundle.directory.iterdir() if path.name.startswith(".")]


def test_a_changed_reference_is_detected(bundle: Bundle, reference: Reference) -> None:
    with_it = set_reference(bundle, reference)
    path = bundle.directory / "reference.json"
    path.write_bytes(path.read_bytes().replace(b"0.9", b"0.8", 1))
    with pytest.raises(Exception, match=r"reference\.json has changed or is damaged"):
        with_it.check()
