"""A run in FP8 is refused where it does not give the model's reference; the GPU is a CPU that is trusted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Replica
from virnuc_async.engine.verification import VerifiedReplica, batch_of, compute, verify
from virnuc_async.errors import NoReference, UnsuitablePrecision
from virnuc_async.models.bundle import Bundle, find, write_manifest
from virnuc_async.models.contig_score import CONTIG_SCORE
from virnuc_async.models.reference import REFERENCE, Deviation, Reference, reference_of, set_reference
from virnuc_async.settings import Precision

CPU = Device("cpu:0", "CPU", 1 << 30, threads=1)


def tiny_copy(directory: Path) -> Bundle:
    """Return a copy of the demonstration model, to change."""
    directory.mkdir()
    for path in find("tiny-500").directory.iterdir():
        # What is fitted for the model does not fit another one.
        if path.is_file() and path.name != CONTIG_SCORE:
            (directory / path.name).write_bytes(path.read_bytes())
    return find(directory)


async def loaded(bundle: Bundle) -> np.ndarray:
    """Return the scores of the reference's ORFs by a replica that verifies itself, without embeddings."""
    replica = VerifiedReplica(CPU, bundle, Precision.FP8)
    try:
        await replica.load()
        scores = await replica.score(batch_of(bundle, reference_of(bundle)))
    finally:
        await replica.close()
    assert scores.embeddings is None
    return scores.probabilities


async def test_a_model_that_is_right_in_fp8_is_used() -> None:
    bundle = find("tiny-500")
    reference = reference_of(bundle)
    assert reference.scores is not None
    deviation = np.abs(await loaded(bundle) - reference.scores).max()
    assert 1e-4 < deviation < 0.05


async def test_a_model_that_is_not_is_refused(tmp_path: Path) -> None:
    bundle = tiny_copy(tmp_path / "model")
    reference = reference_of(bundle)
    assert reference.scores is not None
    moved = replace(reference, scores=np.clip(reference.scores + [[0.2, -0.2]], 0, 1))
    with pytest.raises(UnsuitablePrecision) as caught:
        await loaded(set_reference(bundle, moved))
    text = str(caught.value)
    assert text.startswith(
        f"cannot compute in FP8: cpu:0 does not give {bundle.name}'s reference: scores dev"
    )
    assert " (at most 0.05)" in text
    assert text.endswith(". Use --precision fp32")  # which is what a CPU computes fastest in


async def test_a_model_whose_embeddings_are_not_is_refused(tmp_path: Path) -> None:
    bundle = tiny_copy(tmp_path / "model")
    path = bundle.directory / "protein.safetensors"
    tensors = load_file(path)
    tensors["layers.0.up.weight"] *= -1
    save_file(tensors, path)
    write_manifest(bundle.directory, bundle.name, bundle.length, bundle.shapes, bundle.origin)
    with pytest.raises(UnsuitablePrecision, match=r"embeddings deviate by \d\.\d+ \(at most 0\.2\)"):
        await loaded(find(bundle.directory))


async def test_a_model_without_a_reference_is_refused(bundle: Bundle) -> None:
    assert REFERENCE not in bundle.checksums
    with pytest.raises(NoReference, match="'models verify --record' records one"):
        await loaded_without_reference(bundle)


async def loaded_without_reference(bundle: Bundle) -> None:
    replica = VerifiedReplica(CPU, bundle, Precision.FP8)
    try:
        await replica.load()
    finally:
        await replica.close()


async def test_a_cpu_is_not_verified_in_fp8() -> None:
    bundle = find("tiny-500")
    result = await verify(bundle, reference_of(bundle), CPU, Precision.FP8)
    assert not result.is_right
    assert isinstance(result.failure, UnsuitablePrecision)
    assert "it needs a GPU of capability 8.9 or higher, and cpu:0 is a CPU" in str(result.failure)


async def test_only_the_proteins_network_computes_in_fp8() -> None:
    bundle = find("tiny-500")
    orfs: Reference = reference_of(bundle)
    in_bf16, in_fp8 = [
        await compute(bundle, orfs, CPU, precision) for precision in (Precision.BF16, Precision.FP8)
    ]
    np.testing.assert_allclose(in_fp8.nucleotide.sums, in_bf16.nucleotide.sums, rtol=0, atol=1e-6)
    assert np.abs(in_fp8.protein.sums - in_bf16.protein.sums).max() > 1e-3
    assert in_fp8.source.endswith("in FP8")


async def test_orfs_that_overflow_are_computed_again(tmp_path: Path) -> None:
    bundle = tiny_copy(tmp_path / "model")
    path = bundle.directory / "protein.safetensors"
    tensors = load_file(path)
    # Rounded up to BF16, it is infinite.
    tensors["embed.weight"][5, 3] = torch.finfo(torch.float32).max
    save_file(tensors, path)
    write_manifest(bundle.directory, bundle.name, bundle.length, bundle.shapes, bundle.origin)
    replica = Replica(CPU, find(bundle.directory), Precision.FP8)
    try:
        await replica.load()
        scores = await replica.score(batch_of(bundle, reference_of(bundle)))
    finally:
        await replica.close()
    assert scores.recomputed > 0


def test_what_exceeds_the_tolerance_is_named() -> None:
    tolerance = reference_of(find("tiny-500")).tolerance(Precision.FP8)
    nothing = float("nan")
    found = Deviation(score=0.07, distance=0.31, cosine=0.9, length=nothing, labels=7, of=8)
    assert found.excess(tolerance) == (
        "scores deviate by 0.07 (at most 0.05), embeddings deviate by 0.31 (at most 0.2), lengths of "
        "embeddings deviate by nan (at most 0.02), a cosine is 0.9000 (at least 0.98), "
        "7 of 8 labels are equal"
    )
    right = Deviation(score=None, distance=0.1, cosine=0.99, length=0.01, labels=0, of=0)
    assert right.is_within(tolerance)
    assert right.excess(tolerance) == ""
