"""What only a GPU can show: the same numbers as the CPU's, streams under load, memory that runs out."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from support import TABLES, assert_published_scores

from virnuc_async.batches import Batch, form_windows
from virnuc_async.bundles import Bundle
from virnuc_async.devices import Device, available, choose
from virnuc_async.failures import DeviceOutOfMemory
from virnuc_async.pipeline import run_pipeline
from virnuc_async.replica import Replica
from virnuc_async.sequences import read_contigs
from virnuc_async.settings import Precision, Settings
from virnuc_async.tokens import OrfTokenizer, Ragged

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here that torch can use"),
]


@pytest.fixture(scope="module")
def source(golden: Path) -> str:
    return str(golden / "upstream" / "input.fa")


@pytest.fixture
def gpu() -> Device:
    return available()[0]


def batches(bundle: Bundle, source: str, budget: int) -> Iterator[Batch]:
    tokenizer = OrfTokenizer(bundle.tokenizer())
    for window in form_windows([source], read_contigs, bundle.length, tokenizer, 10**6):
        yield from window.batches(budget)


async def scored(
    device: Device, bundle: Bundle, source: str, precision: Precision, compiled: bool = False
) -> np.ndarray:
    """Give embeddings and scores of every ORF, with two batches at once as the pipeline does."""
    replica = Replica(device, bundle, precision, embeddings=True, compiled=compiled)
    try:
        assert await replica.load() is None
        done = []
        for pair in batched(batches(bundle, source, 2048)):
            done += await asyncio.gather(*map(replica.score, pair))
    finally:
        await replica.close()
    rows = np.concatenate([np.hstack((scores.embeddings, scores.probabilities)) for scores in done])
    return rows[np.argsort(np.concatenate([scores.batch.orfs for scores in done]))]


async def test_fp32_is_the_cpus_answer(gpu: Device, golden_bundle: Bundle, source: str) -> None:
    cpu = await scored(choose(Settings(devices=("cpu",)))[0], golden_bundle, source, Precision.FP32)
    ours = await scored(gpu, golden_bundle, source, Precision.FP32)
    np.testing.assert_allclose(ours, cpu, rtol=0, atol=1e-5)


async def test_compiled_kernels_give_the_same_answer(gpu: Device, golden_bundle: Bundle, source: str) -> None:
    plain = await scored(gpu, golden_bundle, source, Precision.FP32)
    ours = await scored(gpu, golden_bundle, source, Precision.FP32, compiled=True)
    np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-5)


async def test_bf16_is_near_it(gpu: Device, golden_bundle: Bundle, source: str) -> None:
    exact = await scored(gpu, golden_bundle, source, Precision.FP32)
    ours = await scored(gpu, golden_bundle, source, Precision.BF16)
    cosine = (ours * exact).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.999


async def test_two_replicas_on_one_card_give_the_same_bytes(
    golden_bundle: Bundle, source: str, tmp_path: Path
) -> None:
    for count in (1, 2):
        settings = Settings(golden_bundle.directory, devices=("cuda:0",) * count, tokens_per_batch=600)
        summary = await run_pipeline([source], tmp_path / str(count), settings)
        assert len(summary.devices) == count
    for name in TABLES:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


async def test_the_published_answer(
    golden_bundle: Bundle, source: str, expected: Path, tmp_path: Path
) -> None:
    await run_pipeline([source], tmp_path, Settings(golden_bundle.directory, precision=Precision.FP32))
    assert_published_scores(tmp_path, expected)


async def test_memory_that_runs_out_is_said_and_the_device_goes_on(
    gpu: Device, golden_bundle: Bundle, source: str
) -> None:
    batch = next(batches(golden_bundle, source, 10**6))
    rows = np.zeros(400_000, dtype=np.int64)
    # Hundreds of millions of tokens: more than any card of today has room for.
    huge = replace(
        batch,
        orfs=rows,
        places=np.zeros((len(rows), 3), dtype=np.int64),
        nucleotides=_repeated(batch.nucleotides, len(rows)),
        residues=_repeated(batch.residues, len(rows)),
    )
    replica = Replica(gpu, golden_bundle, Precision.FP32)
    try:
        await replica.load()
        with pytest.raises(DeviceOutOfMemory):
            await replica.score(huge)
        assert np.isfinite((await replica.score(batch)).probabilities).all()
    finally:
        await replica.close()


def batched(rows: Iterator[Batch]) -> Iterator[tuple[Batch, ...]]:
    """Give *rows* two at a time."""
    while pair := tuple(islice(rows, 2)):
        yield pair


def _repeated(rows: Ragged, times: int) -> Ragged:
    return rows.take(np.zeros(times, dtype=np.int64))
