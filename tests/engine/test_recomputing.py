"""ORFs whose numbers half precision cannot hold are computed again in FP32."""

import io
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import Rules
from harness import PipelineHarness
from safetensors.torch import load_file, save_file

from virnuc_async.engine.devices import Device
from virnuc_async.engine.engine import Engine
from virnuc_async.engine.replica import Replica, Scores
from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.errors import Stage
from virnuc_async.models.bundle import Bundle, find, write_manifest
from virnuc_async.sequences.batches import Batch, PrecomputedEmbeddings, SpotCheck
from virnuc_async.sequences.tokens import ESM2_ALPHABET
from virnuc_async.settings import Precision, Settings

CPU = Device("cpu:0", "CPU", 1 << 30, threads=1)
TRYPTOPHAN = ESM2_ALPHABET.index("W")
HALF = 40_000.0  # FP16 can hold it, and not twice as much


def changed(bundle: Bundle, directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Bundle:
    """Return a copy of *bundle* in *directory*, in FP16, whose ESM-2 is changed."""
    directory.mkdir()
    for part in ("protein", "nucleotide"):
        tensors = load_file(bundle.directory / f"{part}.safetensors")
        if part == "protein":
            change(tensors)
        save_file(
            {name: tensor.half() for name, tensor in tensors.items()}, directory / f"{part}.safetensors"
        )
    for name in ("classifier.safetensors", "tokenizer.json"):
        (directory / name).write_bytes((bundle.directory / name).read_bytes())
    write_manifest(directory, "changed", bundle.length, bundle.shapes, bundle.origin)
    return find(directory)


@pytest.fixture(scope="module")
def overflowing(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of proteins with a tryptophan, a sum is above the range of FP16."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["layers.0.out.bias"][3] = HALF
        tensors["embed.weight"][TRYPTOPHAN, 3] = HALF

    return changed(bundle, tmp_path_factory.mktemp("bundles") / "overflowing", change)


@pytest.fixture
async def batches(bench: PipelineHarness) -> list[Batch]:
    rules = Rules()
    await bench.run(rules)
    return [batch for _, batch in rules.seen]


def with_tryptophan(batch: Batch) -> np.ndarray:
    rows = np.split(batch.residues.ids, np.cumsum(batch.residues.lengths)[:-1])
    return np.array([TRYPTOPHAN in row for row in rows])


async def score(bundle: Bundle, precision: str, *batches: Batch) -> list[Scores]:
    replica = Replica(CPU, bundle, Precision(precision), embeddings=True)
    try:
        await replica.load()
        return [await replica.score(batch) for batch in batches]
    finally:
        await replica.close()


async def test_their_values_are_those_of_fp32(overflowing: Bundle, batches: list[Batch]) -> None:
    in_fp16, in_fp32 = await score(overflowing, "fp16", *batches), await score(overflowing, "fp32", *batches)
    found = 0
    for half, full in zip(in_fp16, in_fp32, strict=True):
        again = with_tryptophan(half.batch)
        assert half.recomputed == again.sum()
        assert full.recomputed == 0
        assert half.embeddings is not None
        assert full.embeddings is not None
        assert not half.stage_codes.any()
        np.testing.assert_allclose(half.probabilities[again], full.probabilities[again], rtol=0, atol=1e-5)
        np.testing.assert_allclose(half.embeddings[again], full.embeddings[again], rtol=0, atol=1e-5)
        # All others are as FP16 gives them.
        assert not (half.embeddings[~again] == full.embeddings[~again]).all(1).any()
        found += half.recomputed
    assert 10 < found < sum(map(len, batches)) - 10


async def test_what_fp32_cannot_hold_either_has_failed(
    bundle: Bundle, batches: list[Batch], tmp_path: Path
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["embed.weight"][TRYPTOPHAN, 3] = torch.nan

    batch = batches[0]
    (scores,) = await score(changed(bundle, tmp_path / "changed", change), "fp16", batch)
    again = with_tryptophan(batch)
    assert scores.recomputed == again.sum() > 0
    assert (scores.stage_codes == np.where(again, 2, 0)).all()


async def test_spot_checks_of_known_embeddings_are_computed_again(
    overflowing: Bundle, batches: list[Batch]
) -> None:
    batch = next(batch for batch in batches if 0 < with_tryptophan(batch).sum() < len(batch))
    (scores,) = await score(overflowing, "fp32", batch)
    assert scores.embeddings is not None
    width = overflowing.shapes.nucleotide.width
    bases, residues = scores.embeddings[:, :width], scores.embeddings[:, width:]
    again = with_tryptophan(batch)
    rows = (int(np.flatnonzero(~again)[0]), int(np.flatnonzero(again)[0]))
    checks = tuple(SpotCheck(row, f"orf{row}", ("a file",)) for row in rows)
    known = PrecomputedEmbeddings(bases.copy(), residues.copy(), checks)
    (found,) = await score(overflowing, "fp16", replace(batch, known=known))
    assert found.recomputed == 1
    assert found.similarity.shape == (2, 2)
    np.testing.assert_allclose(found.similarity, 1, atol=1e-4)
    np.testing.assert_allclose(found.probabilities, scores.probabilities, atol=1e-6)


async def scored_by(replica: Replica, batches: list[Batch]) -> list[ScoredBatch]:
    async def pending() -> AsyncGenerator[Batch, None]:
        for batch in batches:
            yield batch

    engine = Engine([CPU], lambda device: replica, 10_000)
    async with engine.score(pending()) as scored:
        return [one async for one in scored]


async def test_a_batch_that_does_not_fit_in_fp32_is_halved(overflowing: Bundle, batches: list[Batch]) -> None:
    class Full(Replica):
        def _submit_in_fp32(self, batch: Batch) -> Any:
            with self._errors.translated(batch.tokens, Stage.PROTEIN):
                if batch.tokens > 150:
                    raise torch.OutOfMemoryError("no room")
            return super()._submit_in_fp32(batch)

    expected = {
        int(orf): values
        for scores in await score(overflowing, "fp32", *batches)
        for orf, values, again in zip(
            scores.batch.orfs, scores.probabilities, with_tryptophan(scores.batch), strict=True
        )
        if again
    }
    done = await scored_by(Full(CPU, overflowing, Precision.FP16), batches)
    assert len(done) > len(batches)
    failed = 0
    for one in done:
        for row in np.flatnonzero(with_tryptophan(one.batch)):
            if row in one.failures:
                failed += 1
                assert len(one.batch) == 1
                assert one.failures[row] == (
                    Stage.PROTEIN,
                    f"cpu:0 ran out of memory on a batch of {one.batch.tokens} tokens",
                )
            else:
                np.testing.assert_allclose(
                    one.probabilities[row], expected[int(one.batch.orfs[row])], rtol=0, atol=1e-5
                )
    assert 0 < failed < len(expected)
    assert sum(one.recomputed for one in done) == len(expected) - failed


async def test_a_run_counts_them_and_says_so_once(bench: PipelineHarness, messages: io.StringIO) -> None:
    lengths = list(bench.orfs().values())
    longest = max(lengths, key=lengths.count)
    bench.settings = Settings(tokens_per_batch=400, precision="fp16")
    summary = await bench.run(Rules(recomputed=longest))
    assert summary.counts["orfs_recomputed"] == lengths.count(longest) > 1
    said = "ORFs with numbers that FP16 cannot hold are computed again in FP32; summary.json counts them"
    assert messages.getvalue().count(said) == 1
    # A finished run has the count in its store.
    assert (await bench.run(Rules())).counts == summary.counts
    in_fp32 = Settings(tokens_per_batch=400, precision="fp32")
    bench.settings = in_fp32
    assert "orfs_recomputed" not in (await bench.run(Rules(), out="other")).counts


async def test_a_resumed_run_counts_those_of_all_sessions(
    bench: PipelineHarness, messages: io.StringIO
) -> None:
    lengths = list(bench.orfs().values())
    bench.settings = Settings(tokens_per_batch=400, precision="fp16")
    rules = Rules(recomputed=max(lengths, key=lengths.count), lost={"fake:0": 4})
    with pytest.raises(Exception, match="too many devices failed"):
        await bench.run(rules)
    rules.lost.clear()
    summary = await bench.run(rules)
    assert summary.counts["orfs_recomputed"] == lengths.count(rules.recomputed)
    assert 0 < summary.session["batches_before"] < summary.counts["batches"]
    assert messages.getvalue().count("are computed again in FP32") == 1
