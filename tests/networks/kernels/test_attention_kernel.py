"""The attention kernel in Triton's interpreter, compared with the formula in FP64."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from golden_networks import EXACT, esm_pair, read_dnabert
from hypothesis import given, settings
from hypothesis import strategies as st
from support import packed
from torch import Tensor
from torch.testing import assert_close

from virnuc_async.networks.attention import sdpa_by_length, triton_kernel
from virnuc_async.networks.dnabert_s import slopes
from virnuc_async.networks.kernels.attention import Blocks, attention
from virnuc_async.networks.shapes import ProteinShape

# Several tiles and blocks of keys, ends within one and at its border, and single tokens.
LENGTHS = (130, 64, 17, 1, 1)
TENSOR_CORES = Blocks(64, 4, widen=False)


def numbers(lengths: Sequence[int], heads: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return queries, keys and values side by side as a linear layer gives them: (T, 3, H, D)."""
    random = torch.Generator().manual_seed(sum(lengths) + heads + width)
    return torch.randn(sum(lengths), 3, heads, width, generator=random).to(dtype)


def check(lengths: Sequence[int], qkv: Tensor, bias: Tensor | None, blocks: Blocks | None = None) -> None:
    """Check the kernel's answer for *qkv* to one rounding of each result, and of each weight."""
    batch = packed([[4] * length for length in lengths])
    found = attention(batch, bias, blocks)(*qkv.unbind(1))
    assert found.is_contiguous()
    assert found.dtype == qkv.dtype
    if not lengths:
        return
    q, k, v = qkv.double().unbind(1)
    reference = sdpa_by_length(batch, None if bias is None else bias.double())
    expected, of_sizes = reference(q, k, v), reference(q, k, v.abs())
    rounding = 2e-7 if qkv.dtype == torch.float32 else torch.finfo(qkv.dtype).eps
    are_weights_rounded = blocks is not None and not blocks.widen
    error = (found.double() - expected).abs()
    bound = rounding * (expected.abs() + are_weights_rounded * of_sizes) + 1e-6
    assert (error <= bound).all(), f"{(error - bound).max():.1e} too much"


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), max_size=4),
    heads=st.integers(1, 3),
    width=st.sampled_from([1, 6, 8, 16, 24, 48]),
    biased=st.booleans(),
)
def test_any_lengths_heads_and_widths(lengths: list[int], heads: int, width: int, biased: bool) -> None:
    bias = torch.tensor(slopes(heads)) if biased else None
    check(lengths, numbers(lengths, heads, width, torch.float32), bias)


@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "ALiBi"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_precision_over_several_tiles(dtype: torch.dtype, biased: bool) -> None:
    bias = torch.tensor([0.1]) if biased else None
    check(LENGTHS, numbers(LENGTHS, 1, 64, dtype), bias)


def test_the_blocks_of_tensor_cores() -> None:
    # The interpreter cannot multiply BF16.
    check(LENGTHS, numbers(LENGTHS, 1, 64, torch.float16), torch.tensor([0.1]), TENSOR_CORES)


def test_rotated_queries_and_keys_lie_apart_from_the_values() -> None:
    qkv = numbers([9, 3], 2, 8, torch.float32)
    batch = packed([[4] * 9, [4] * 3])
    q, k = qkv[:, :2].contiguous().unbind(1)
    attend = attention(batch)
    assert torch.equal(attend(q, k, qkv[:, 2]), attend(*qkv.unbind(1)))


def test_scores_of_thousands_overflow_nowhere() -> None:
    qkv = numbers([40], 1, 16, torch.float32)
    qkv[:, :2] *= 30
    batch, bias = packed([[4] * 40]), torch.tensor([8.0])
    # An FP32 score of 4,000 is exact to 2e-4, and so is its weight.
    expected = sdpa_by_length(batch, bias)(*qkv.unbind(1))
    assert_close(attention(batch, bias)(*qkv.unbind(1)), expected, rtol=0, atol=2e-3)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_a_number_that_is_not_finite_stays_in_its_sequence() -> None:
    lengths = [20, 18, 5]
    qkv = numbers(lengths, 1, 16, torch.float32)
    batch = packed([[4] * length for length in lengths])
    clean = attention(batch)(*qkv.unbind(1))
    qkv[20:38] = torch.nan
    found = attention(batch)(*qkv.unbind(1))
    assert found[20:38].isnan().all()
    assert torch.equal(found[:20], clean[:20])
    assert torch.equal(found[38:], clean[38:])


@pytest.mark.parametrize(
    ("capability", "dtype", "blocks"),
    [
        ((7, 5), torch.float16, Blocks(16, 8, widen=True)),
        ((8, 0), torch.float32, Blocks(16, 4, widen=True)),
        ((8, 0), torch.float16, TENSOR_CORES),
        ((12, 0), torch.bfloat16, TENSOR_CORES),
    ],
)
def test_tensor_cores_are_used_where_triton_has_them(
    capability: tuple[int, int], dtype: torch.dtype, blocks: Blocks
) -> None:
    assert Blocks.of(dtype, capability) == blocks


def test_esm2_is_the_same_with_it(tmp_path: Path) -> None:
    network = esm_pair(ProteinShape(2, 40, 4), tmp_path / "esm2_tiny.pt").ours
    batch = packed([[0, 5, 9, 2], [0, 7, 7, 7, 11, 2], [0, 4, 2]])
    plain = network.embeddings(batch)
    network.attention = triton_kernel
    assert_close(network.embeddings(batch), plain, **EXACT)


def test_dnabert_s_is_the_same_with_it(golden: Path, tmp_path: Path) -> None:
    pair = read_dnabert(golden / "dnabert" / "tiny_h64_l3_a4", tmp_path)
    network = pair.network
    batch = packed([[1, 5, 9, 2], [1, 7, 7, 7, 11, 2], [1, 4, 2]])
    plain = network.embeddings(batch)
    network.attention = triton_kernel
    assert_close(network.embeddings(batch), plain, **EXACT)
