"""What needs a GPU: the CPU's results, streams under load, and running out of memory."""

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from support import TABLES, assert_published_scores, read_table

from virnuc_async.engine.devices import Device, available, choose
from virnuc_async.engine.replica import Replica
from virnuc_async.engine.verification import record, verify
from virnuc_async.errors import DeviceOutOfMemory, FeatureMismatchError
from virnuc_async.log import logger
from virnuc_async.models.bundle import Bundle, find
from virnuc_async.models.reference import reference_of
from virnuc_async.networks.attention import Attention, sdpa_by_length, sdpa_padded, select_kernel, varlen
from virnuc_async.networks.dnabert_s import slopes
from virnuc_async.networks.packing import dummy_batch, pack
from virnuc_async.pipeline import run_pipeline
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.tokens import OrfTokenizer, Ragged
from virnuc_async.sequences.windows import form_windows
from virnuc_async.settings import Precision, Settings

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


async def scored(device: Device, bundle: Bundle, source: str, precision: Precision) -> np.ndarray:
    """Return embeddings and scores of every ORF, two batches at a time as in the pipeline."""
    replica = Replica(device, bundle, precision, embeddings=True)
    try:
        assert await replica.load() is None
        done = []
        for pair in batched(batches(bundle, source, 2048)):
            done += await asyncio.gather(*map(replica.score, pair))
    finally:
        await replica.close()
    rows = np.concatenate([np.hstack((scores.embeddings, scores.probabilities)) for scores in done])
    return rows[np.argsort(np.concatenate([scores.batch.orfs for scores in done]))]


async def test_fp32_matches_the_cpu(gpu: Device, golden_bundle: Bundle, source: str) -> None:
    cpu = await scored(choose(Settings(devices=("cpu",)))[0], golden_bundle, source, Precision.FP32)
    ours = await scored(gpu, golden_bundle, source, Precision.FP32)
    np.testing.assert_allclose(ours, cpu, rtol=0, atol=1e-5)


async def test_bf16_is_close_to_fp32(gpu: Device, golden_bundle: Bundle, source: str) -> None:
    exact = await scored(gpu, golden_bundle, source, Precision.FP32)
    ours = await scored(gpu, golden_bundle, source, Precision.BF16)
    cosine = (ours * exact).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.999


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "ALiBi"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", [sdpa_by_length, sdpa_padded, varlen])
def test_every_attention_kernel(gpu: Device, kernel: Attention, dtype: torch.dtype, bias: bool) -> None:
    rows = dummy_batch(500, 168, 168, 168, 97, 52, 52, 3, 1)
    packed, random = pack(rows), torch.Generator().manual_seed(7)
    numbers = torch.randn(3, len(rows.ids), 12, 64, generator=random).to(dtype)
    steps = torch.tensor(slopes(12)) if bias else None
    expected = sdpa_by_length(packed, steps)(*numbers.float())
    try:
        steps = None if steps is None else steps.to(gpu.torch_device)
        found = kernel(packed.to(gpu.torch_device), steps)(*numbers.to(gpu.torch_device))
    except RuntimeError as error:
        assert kernel is varlen
        pytest.skip(f"no such kernel here: {error}")
    error = (found.float().cpu() - expected).abs().max()
    assert error < (1e-5 if dtype is torch.float32 else 2e-2)


def test_bf16_attention_has_no_padding(gpu: Device) -> None:
    if not gpu.has_bf16:
        pytest.skip("FlashAttention's kernels need capability 8.0")
    assert select_kernel(gpu.torch_device, torch.bfloat16, 40, 64, biased=False) is varlen
    assert select_kernel(gpu.torch_device, torch.bfloat16, 12, 64, biased=True) is not sdpa_by_length


async def test_batches_under_load_equal_those_one_at_a_time(
    gpu: Device, golden_bundle: Bundle, source: str
) -> None:
    """Buffers and streams: fifty batches of all sizes at the same time, and one after another."""
    replica = Replica(gpu, golden_bundle, Precision.FP32, embeddings=True)
    some = [batch for budget in (400, 900, 3000, 10**6) for batch in batches(golden_bundle, source, budget)]
    try:
        await replica.load()
        calm = [await replica.score(batch) for batch in some[:50]]
        loaded = await asyncio.gather(*map(replica.score, some[:50]))
    finally:
        await replica.close()
    for one, other in zip(calm, loaded, strict=True):
        assert np.array_equal(one.probabilities, other.probabilities)
        assert np.array_equal(one.embeddings, other.embeddings)  # type: ignore[arg-type]


async def test_a_proof_leaves_the_memory_reserved(gpu: Device, golden_bundle: Bundle, source: str) -> None:
    replica = Replica(gpu, golden_bundle, Precision.FP32)
    try:
        await replica.load()
        await replica.warm_up(1 << 16)
        before = torch.cuda.memory_reserved(gpu.torch_device)
        for batch in batches(golden_bundle, source, 1 << 15):
            await replica.score(batch)
        assert torch.cuda.memory_reserved(gpu.torch_device) == before
    finally:
        await replica.close()


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


async def test_reused_features_are_compared_and_scored(
    gpu: Device, golden_bundle: Bundle, source: str, expected: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    shutil.copyfile(expected / "merged.pt", old / "all_merged.pt")
    for precision in (Precision.FP32, Precision.BF16):  # only what is compared is computed
        out = tmp_path / precision
        settings = Settings(
            golden_bundle.directory, devices=(gpu.name,), precision=precision, reuse_features=old
        )
        summary = await run_pipeline([source], out, settings)
        assert summary.counts["orfs_reused"] == summary.counts["orfs"]
        assert_published_scores(out, expected)
    found = torch.load(old / "all_merged.pt", weights_only=True)
    torch.save({"ids": found["ids"], "data": found["data"].roll(1, 0)}, old / "all_merged.pt")
    with pytest.raises(FeatureMismatchError):
        await run_pipeline(
            [source], tmp_path / "others", Settings(golden_bundle.directory, reuse_features=old)
        )


async def test_running_out_of_memory_is_raised_and_the_device_still_works(
    gpu: Device, golden_bundle: Bundle, source: str
) -> None:
    batch = next(batches(golden_bundle, source, 10**6))
    rows = np.zeros(400_000, dtype=np.int64)
    # Hundreds of millions of tokens: more than fit on any card of today.
    huge = replace(
        batch,
        orfs=rows,
        origins=np.zeros((len(rows), 3), dtype=np.int64),
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


async def test_a_budget_that_is_too_large_is_halved_and_the_run_continues(
    gpu: Device, golden_bundle: Bundle, source: str, tmp_path: Path
) -> None:
    many = tmp_path / "many.fa"
    many.write_bytes(Path(source).read_bytes() * 50)
    settings = Settings(
        golden_bundle.directory, devices=(gpu.name,), precision=Precision.FP32, tokens_per_batch=10**7
    )
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    calm = await run_pipeline([many], tmp_path / "calm", settings)
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(peak / 3 / gpu.memory)
    try:
        tight = await run_pipeline([many], tmp_path / "tight", settings)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (calm.reproducible, tight.reproducible) == (True, False)
    assert tight.counts["failures"] == 0
    said = (tmp_path / "tight" / "run.log").read_text()
    assert "has not enough memory for batches of" in said or "ran out of memory on a batch of" in said
    wanted, found = (read_table(tmp_path / run / TABLES[0])[1:] for run in ("calm", "tight"))
    assert [row[0] for row in found] == [row[0] for row in wanted]
    scores = [np.array([row[2:] for row in rows], dtype=np.float64) for rows in (wanted, found)]
    assert "has not enough memory for batches of" in said or "ran out of memory on a batch of" in said
    expected, found = (read_table(tmp_path / run / TABLES[0])[1:] for run in ("calm", "tight"))
    assert [row[0] for row in found] == [row[0] for row in expected]
    scores = [np.array([row[2:] for row in rows], dtype=np.float64) for rows in (expected, found)]
    np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=1e-5)


async def test_cancelled_and_resumed_it_gives_the_same_bytes(
    gpu: Device, golden_bundle: Bundle, source: str, tmp_path: Path
) -> None:
    settings = Settings(golden_bundle.directory, devices=(gpu.name,), tokens_per_batch=300)
    calm = await run_pipeline([source], tmp_path / "calm", settings)
    some_done = asyncio.Event()
    sink = logger.add(lambda line: some_done.set() if " done on " in line else None, level="DEBUG")
    task = asyncio.create_task(run_pipeline([source], tmp_path / "cut", settings))
    await some_done.wait()
    logger.remove(sink)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    resumed = await run_pipeline([source], tmp_path / "cut", settings)
    assert resumed.finished
    assert resumed.counts == calm.counts
    for name in TABLES:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()


def batched(rows: Iterator[Batch]) -> Iterator[tuple[Batch, ...]]:
    """Yield *rows* two at a time."""
    while pair := tuple(islice(rows, 2)):
        yield pair


def _repeated(rows: Ragged, times: int) -> Ragged:
    return rows.take(np.zeros(times, dtype=np.int64))


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
async def test_a_gpu_matches_the_reference_of_a_cpu(
    golden_bundle: Bundle, precision: Precision, gpu: Device, tmp_path: Path
) -> None:
    directory = shutil.copytree(golden_bundle.directory, tmp_path / "model")
    bundle = await record(find(directory))
    assert (await verify(bundle, reference_of(bundle), gpu, precision)).is_right
