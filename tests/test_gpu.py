"""
What needs a GPU: the CPU's results, streams under load, and running out of memory.

``scripts/gpu_check.py`` runs this module alone, on machines that have torch and pytest but not the plugins
of pytest that the other tests use. So each test runs its own event loop.
"""

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import ParamSpec

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import TABLES, assert_published_scores, read_table
from torch import nn

from virnuc_async import engine
from virnuc_async.engine.devices import Device, available, choose, decide_precision
from virnuc_async.engine.replica import Replica
from virnuc_async.engine.transfers import HostMemory, copy_to, page_locked
from virnuc_async.engine.verification import record, verify
from virnuc_async.errors import DeviceOutOfMemory, FeatureMismatchError
from virnuc_async.log import logger
from virnuc_async.models.bundle import Bundle, find
from virnuc_async.models.reference import published_reference, reference_of
from virnuc_async.networks.attention import (
    Attention,
    memory_efficient,
    sdpa_by_length,
    select_kernel,
    triton_kernel,
    varlen,
)
from virnuc_async.networks.dnabert_s import slopes
from virnuc_async.networks.fp8 import Fp8Linear
from virnuc_async.networks.linear import Linear
from virnuc_async.networks.packing import dummy_batch, pack
from virnuc_async.networks.rotary import rotary_angles
from virnuc_async.pipeline import run_pipeline
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.tokens import ESM2_ALPHABET, OrfTokenizer
from virnuc_async.sequences.windows import Cut, form_windows
from virnuc_async.settings import Precision, Settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here that torch can use"),
]

MIB = 1 << 20
KERNELS = ("add_norm", "gelu", "gated_gelu", "rotary")
_Arguments = ParamSpec("_Arguments")


def in_a_loop(
    test: Callable[_Arguments, Coroutine[None, None, None]],
) -> Callable[_Arguments, None]:
    """Make an ordinary test of *test*, which awaits."""

    @wraps(test)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
        asyncio.run(test(*args, **kwargs), debug=True)

    return run


@pytest.fixture(scope="module")
def source(golden: Path) -> str:
    return str(golden / "upstream" / "input.fa")


@pytest.fixture
def gpu() -> Device:
    return available()[0]


def batches(bundle: Bundle, source: str, budget: int) -> Iterator[Batch]:
    tokenizer = OrfTokenizer(bundle.tokenizer())
    for window in form_windows([source], read_contigs, Cut(bundle.length, 10**6), tokenizer):
        yield from window.batches(budget)


@contextmanager
def limited_memory(gpu: Device, room: int) -> Iterator[None]:
    """Let this process take *room* more bytes of the GPU: the same on a card of 16 GB and of 141."""
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved(gpu.torch_device) + room
    torch.cuda.set_per_process_memory_fraction(allowed / gpu.memory, gpu.torch_device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu.torch_device)


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


@in_a_loop
async def test_fp32_matches_the_cpu(gpu: Device, golden_bundle: Bundle, source: str) -> None:
    cpu = await scored(choose(Settings(devices=("cpu",)))[0], golden_bundle, source, Precision.FP32)
    ours = await scored(gpu, golden_bundle, source, Precision.FP32)
    np.testing.assert_allclose(ours, cpu, rtol=0, atol=1e-5)


@in_a_loop
async def test_bf16_is_close_to_fp32(gpu: Device, golden_bundle: Bundle, source: str) -> None:
    exact = await scored(gpu, golden_bundle, source, Precision.FP32)
    ours = await scored(gpu, golden_bundle, source, Precision.BF16)
    assert cosines(ours, exact).min() > 0.999


@in_a_loop
async def test_fp8_gives_the_reference(gpu: Device) -> None:
    if not gpu.has_fp8:
        pytest.skip("FP8 needs capability 8.9")
    bundle = find("tiny-500")
    result = await verify(bundle, reference_of(bundle), gpu, Precision.FP8)
    assert result.is_right, result
    replica = engine.VerifiedReplica(gpu, bundle, Precision.FP8)
    try:
        await replica.load()
    finally:
        await replica.close()


def test_products_in_fp8_are_those_of_plain_torch(gpu: Device) -> None:
    if not gpu.has_fp8:
        pytest.skip("FP8 needs capability 8.9")
    random = torch.Generator().manual_seed(1)
    for inputs, outputs in ((64, 192), (2560, 2560), (10240, 2560)):
        layer = Linear(inputs, outputs, device="meta").bfloat16().to_empty(device="cpu")
        for part in layer.parameters():
            part.requires_grad_(False).copy_(torch.randn(part.shape, generator=random) / inputs**0.5)
        x = torch.randn(77, inputs, generator=random).bfloat16()
        fp8, on_gpu = Fp8Linear(layer), Fp8Linear(layer.to(gpu.torch_device))
        expected, found = fp8(x).float(), on_gpu(x.to(gpu.torch_device)).float().cpu()
        # A GPU may sum less exactly than in FP32.
        assert (found - expected).norm() < 0.01 * expected.norm()


@in_a_loop
async def test_orfs_that_fp16_cannot_hold_are_computed_again(
    gpu: Device, golden_bundle: Bundle, source: str, tmp_path: Path
) -> None:
    shutil.copytree(golden_bundle.directory, tmp_path / "model")
    path = tmp_path / "model" / "protein.safetensors"
    tensors = {name: tensor.half().float() for name, tensor in load_file(path).items()}
    tensors["layers.0.out.bias"][3] = tensors["embed.weight"][ESM2_ALPHABET.index("W"), 3] = 40_000
    save_file(tensors, path)
    batch = next(batches(golden_bundle, source, 2048))
    found = {}
    for precision in (Precision.FP16, Precision.FP32):
        bundle = replace(golden_bundle, directory=tmp_path / "model")
        replica = Replica(gpu, bundle, precision, embeddings=True)
        try:
            await replica.load()
            found[precision] = await replica.score(batch)
        finally:
            await replica.close()
    in_fp16, in_fp32 = found[Precision.FP16], found[Precision.FP32]
    assert 0 < in_fp16.recomputed < len(batch)
    assert not in_fp16.stage_codes.any()
    ends = np.cumsum(batch.residues.lengths)[:-1]
    again = [ESM2_ALPHABET.index("W") in row for row in np.split(batch.residues.ids, ends)]
    assert in_fp16.recomputed == sum(again)
    width = golden_bundle.shapes.nucleotide.width
    residues = [scores.embeddings[again, width:] for scores in (in_fp16, in_fp32)]
    np.testing.assert_allclose(*residues, rtol=0, atol=1e-4)


def cosines(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of rows."""
    return (some * others).sum(1) / np.linalg.norm(some, axis=1) / np.linalg.norm(others, axis=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("kernel", "bias"),
    [
        *((kernel, False) for kernel in (sdpa_by_length, varlen, memory_efficient, triton_kernel)),
        *((kernel, True) for kernel in (sdpa_by_length, triton_kernel)),
    ],
)
def test_every_attention_kernel(gpu: Device, kernel: Attention, dtype: torch.dtype, bias: bool) -> None:
    rows = dummy_batch(500, 168, 168, 168, 97, 52, 52, 3, 1)
    packed, random = pack(rows), torch.Generator().manual_seed(7)
    numbers = torch.randn(len(rows.ids), 3, 12, 64, generator=random).to(dtype)
    steps = torch.tensor(slopes(12)) if bias else None
    expected = sdpa_by_length(packed, steps)(*numbers.float().unbind(1))
    try:
        steps = None if steps is None else steps.to(gpu.torch_device)
        found = kernel(packed.to(gpu.torch_device), steps)(*numbers.to(gpu.torch_device).unbind(1))
    except RuntimeError as error:
        assert kernel in (varlen, memory_efficient)
        pytest.skip(f"no such kernel here: {error}")
    error = (found.float().cpu() - expected).abs().max()
    assert error < (1e-5 if dtype is torch.float32 else 2e-2)


def test_bf16_attention_has_no_padding(gpu: Device) -> None:
    if gpu.native_precision is not Precision.BF16:
        pytest.skip("FlashAttention's kernels need capability 8.0")
    assert select_kernel(gpu.torch_device, torch.bfloat16, 40, 64, biased=False) is varlen
    assert select_kernel(gpu.torch_device, torch.bfloat16, 12, 64, biased=True) is triton_kernel


@in_a_loop
async def test_fp16_is_close_to_fp32(gpu: Device, golden_bundle: Bundle, source: str) -> None:
    """Requested on a card of any capability, as it is used by itself on 7.0 and 7.5."""
    exact = await scored(gpu, golden_bundle, source, Precision.FP32)
    ours = await scored(gpu, golden_bundle, source, Precision.FP16)
    tolerance = published_reference(golden_bundle.length).tolerance(Precision.FP16)
    assert np.abs(ours[:, -2:] - exact[:, -2:]).max() <= tolerance.score
    assert cosines(ours, exact).min() > 0.9999


@in_a_loop
async def test_fp8_is_within_its_tolerance(gpu: Device, golden_bundle: Bundle, source: str) -> None:
    if not gpu.has_fp8:
        pytest.skip("FP8 needs capability 8.9")
    exact = await scored(gpu, golden_bundle, source, Precision.FP32)
    ours = await scored(gpu, golden_bundle, source, Precision.FP8)
    tolerance = published_reference(golden_bundle.length).tolerance(Precision.FP8)
    assert np.abs(ours[:, -2:] - exact[:, -2:]).max() <= tolerance.score
    assert cosines(ours, exact).min() >= tolerance.cosine


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_kernel_matches_its_twin_at_the_published_shapes(gpu: Device, dtype: torch.dtype) -> None:
    if dtype is torch.bfloat16 and gpu.native_precision is not Precision.BF16:
        pytest.skip("BF16 needs capability 8.0")
    kernels = pytest.importorskip("virnuc_async.networks.kernels", exc_type=ImportError)
    modules = {name: import_module(f"{kernels.__name__}.{name}") for name in KERNELS}
    random = torch.Generator(gpu.torch_device).manual_seed(3)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=gpu.torch_device).to(dtype)

    for rows, width, heads in ((1, 320, 20), (777, 2560, 40)):
        x, residual, norm = numbers(rows, width), numbers(rows, width), nn.LayerNorm(width)
        norm = norm.to(gpu.torch_device, dtype).requires_grad_(False)
        expected = modules["add_norm"].add_norm_twin(x, residual, norm)
        for found, twin in zip(modules["add_norm"].add_norm(x, residual, norm), expected, strict=True):
            assert_rounded(found, twin)
        x = numbers(rows, 4 * width)
        expected = modules["gelu"].gelu_twin(x)
        assert_rounded(modules["gelu"].gelu(x), expected)
        x = numbers(rows, 2 * 3072)
        assert_rounded(modules["gated_gelu"].gated_gelu(x), modules["gated_gelu"].gated_gelu_twin(x))
        qkv = numbers(rows, 3, heads, width // heads)
        angles = rotary_angles(torch.arange(rows, device=gpu.torch_device), width // heads)
        values, expected = qkv[:, 2].clone(), modules["rotary"].rotate_twin(qkv, angles)
        assert_rounded(modules["rotary"].rotate(qkv, angles), expected)
        assert torch.equal(qkv[:, 2], values)


def assert_rounded(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Check that *found* is *exact*, which is FP32, rounded once; sums of a GPU are in another order."""
    step = 0.0 if found.dtype is torch.float32 else torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.float(), exact, rtol=step, atol=4e-6)


@in_a_loop
async def test_no_kernel_is_compiled_after_the_first_batch(
    gpu: Device, golden_bundle: Bundle, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of nine sizes, among them such that Triton would compile kernels of their own for."""
    runtime = pytest.importorskip("triton", exc_type=ImportError).knobs.runtime
    compiled: list[str] = []

    def record(*_: object, repr: str, **__: object) -> None:
        compiled.append(repr)

    replica = Replica(gpu, golden_bundle, decide_precision([gpu], Precision.AUTO))
    whole = next(batches(golden_bundle, source, 10**6))
    try:
        await replica.load()
        await replica.score(whole)
        monkeypatch.setattr(runtime, "jit_cache_hook", record)
        for count in (1, 2, 3, 7, 8, 15, 16, 17, 33):
            some = np.arange(count)
            batch = replace(
                whole,
                orfs=whole.orfs[some],
                origins=whole.origins[some],
                nucleotides=whole.nucleotides.take(some),
                residues=whole.residues.take(some),
            )
            assert len((await replica.score(batch)).probabilities) == count
    finally:
        await replica.close()
    assert compiled == []


@in_a_loop
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


@in_a_loop
async def test_a_proof_leaves_the_memory_reserved(gpu: Device, golden_bundle: Bundle, source: str) -> None:
    replica = Replica(gpu, golden_bundle, Precision.FP32)
    try:
        await replica.load()
        await replica.warm_up(1 << 16)
        before = torch.cuda.memory_reserved(gpu.torch_device)
        for batch in batches(golden_bundle, source, 1 << 15):
            await replica.score(batch)
        # One segment of torch's allocator at most: a batch of many lengths has more small tensors.
        assert torch.cuda.memory_reserved(gpu.torch_device) - before <= 20 * MIB
    finally:
        await replica.close()


@in_a_loop
async def test_nothing_stays_allocated_after_close(gpu: Device, golden_bundle: Bundle, source: str) -> None:
    await scored(gpu, golden_bundle, source, Precision.FP32)  # what torch's libraries keep for themselves
    before = torch.cuda.memory_allocated(gpu.torch_device), torch.cuda.memory_reserved(gpu.torch_device)
    replica = Replica(gpu, golden_bundle, Precision.FP32)
    try:
        await replica.load()
        await replica.warm_up(1 << 16)
    finally:
        await replica.close()
    after = torch.cuda.memory_allocated(gpu.torch_device), torch.cuda.memory_reserved(gpu.torch_device)
    # cuBLAS keeps a workspace for each stream that it was used on.
    assert after[0] - before[0] <= 64 * MIB
    assert after[1] - before[1] <= 128 * MIB


@in_a_loop
async def test_two_replicas_load_at_the_same_time(gpu: Device, golden_bundle: Bundle, source: str) -> None:
    """In one process, as the devices of a run do, and each computes while the other one loads."""
    precision = decide_precision([gpu], Precision.AUTO)
    devices = [replace(gpu, name=f"{gpu.name}/{number}") for number in range(3)]
    replicas = [Replica(device, golden_bundle, precision) for device in devices]
    some = list(batches(golden_bundle, source, 600))

    async def work(replica: Replica) -> list[np.ndarray]:
        await replica.load()
        return [(await replica.score(batch)).probabilities for batch in some]

    try:
        found = await asyncio.gather(*map(work, replicas))
    finally:
        await asyncio.gather(*(replica.close() for replica in replicas))
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert np.array_equal(one, other)


def test_buffers_that_are_copied_are_pinned(gpu: Device) -> None:
    """Copies from and to other memory would make the host wait for the device."""
    memory, tensors = HostMemory(page_locked), pack(dummy_batch(20, 7)).tensors
    copied = copy_to(gpu.torch_device, tensors, memory)
    assert memory.take(8).is_pinned()
    assert all(tensor.is_cuda for tensor in copied)
    assert all(torch.equal(one.cpu(), other) for one, other in zip(copied, tensors, strict=True))


@in_a_loop
async def test_two_replicas_on_one_card_give_the_same_bytes(
    golden_bundle: Bundle, source: str, tmp_path: Path
) -> None:
    for count in (1, 2):
        settings = Settings(golden_bundle.directory, devices=("cuda:0",) * count, tokens_per_batch=600)
        summary = await run_pipeline([source], tmp_path / str(count), settings)
        assert len(summary.devices) == count
    for name in TABLES:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@in_a_loop
async def test_the_published_answer(
    golden_bundle: Bundle, source: str, expected: Path, tmp_path: Path
) -> None:
    await run_pipeline([source], tmp_path, Settings(golden_bundle.directory, precision=Precision.FP32))
    assert_published_scores(tmp_path, expected)


@in_a_loop
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


@in_a_loop
async def test_running_out_of_memory_is_raised_and_the_device_still_works(
    gpu: Device, golden_bundle: Bundle, source: str
) -> None:
    batch = next(batches(golden_bundle, source, 10**6))
    rows = np.zeros(10_000, dtype=np.int64)
    # More than a million tokens: their embeddings alone take several times the room that is left.
    huge = replace(
        batch,
        orfs=rows,
        origins=np.zeros((len(rows), 3), dtype=np.int64),
        nucleotides=batch.nucleotides.take(rows),
        residues=batch.residues.take(rows),
    )
    replica = Replica(gpu, golden_bundle, Precision.FP32)
    try:
        await replica.load()
        calm = await replica.score(batch)
        with limited_memory(gpu, 128 * MIB):
            with pytest.raises(DeviceOutOfMemory):
                await replica.score(huge)
            again = await replica.score(batch)
    finally:
        await replica.close()
    np.testing.assert_allclose(again.probabilities, calm.probabilities, rtol=0, atol=1e-6)


@in_a_loop
async def test_a_budget_that_is_too_large_is_halved_and_the_run_continues(
    gpu: Device, golden_bundle: Bundle, source: str, tmp_path: Path
) -> None:
    many = tmp_path / "many.fa"
    many.write_bytes(Path(source).read_bytes() * 50)
    settings = Settings(
        golden_bundle.directory, devices=(gpu.name,), precision=Precision.FP32, tokens_per_batch=1 << 17
    )
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(gpu.torch_device)
    before = torch.cuda.memory_allocated(gpu.torch_device)
    calm = await run_pipeline([many], tmp_path / "calm", settings)
    needed = torch.cuda.max_memory_allocated(gpu.torch_device) - before
    with limited_memory(gpu, needed // 3):
        tight = await run_pipeline([many], tmp_path / "tight", settings)
    assert (calm.reproducible, tight.reproducible) == (True, False)
    assert tight.counts["failures"] == 0
    said = (tmp_path / "tight" / "run.log").read_text()
    assert "has not enough memory for batches of" in said or "ran out of memory on a batch of" in said
    expected, found = (read_table(tmp_path / run / TABLES[0]) for run in ("calm", "tight"))
    # Not the labels: a score next to 0.5 may round to either side.
    assert [row[0] for row in found] == [row[0] for row in expected]
    scores = [np.array([row[2:] for row in rows[1:]], dtype=np.float64) for rows in (expected, found)]
    np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=1e-5)


@in_a_loop
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


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, Precision.FP16])
@in_a_loop
async def test_a_gpu_matches_the_reference_of_a_cpu(
    golden_bundle: Bundle, precision: Precision, gpu: Device, tmp_path: Path
) -> None:
    directory = shutil.copytree(golden_bundle.directory, tmp_path / "model")
    bundle = await record(find(directory))
    assert (await verify(bundle, reference_of(bundle), gpu, precision)).is_right
