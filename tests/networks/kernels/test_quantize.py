"""The quantizing kernels and their twins in plain torch."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from virnuc_async.networks import quantized
from virnuc_async.networks.kernels import quantize as kernels
from virnuc_async.networks.kernels.add_norm import add_norm_twin
from virnuc_async.networks.kernels.gelu import gelu_twin
from virnuc_async.networks.quantized import FP8, LARGEST, Quantized

ROWS = st.integers(1, 4)
WIDTHS = st.sampled_from([1, 16, 40, 320, 1000])

some = settings(max_examples=10)


def numbers(rows: int, width: int, seed: int, scale: float = 1.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, width, generator=random) * scale).bfloat16()


def some_norm(width: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(width, dtype=torch.bfloat16).requires_grad_(False)
    norm.weight.copy_(numbers(1, width, 5)[0] + 1)
    norm.bias.copy_(numbers(1, width, 6)[0])
    return norm


def check(kernel: Callable[[torch.dtype], Quantized], twin: Quantized, exact: Tensor) -> None:
    """Check that *kernel* scales the rows of *exact*, and that both it and *twin* round them to FP8."""
    assert_close(twin.scales, exact.abs().amax(1, keepdim=True) / LARGEST, rtol=1e-6, atol=1e-38)
    assert_close(twin.dequantized(), exact, rtol=1 / 16, atol=float(twin.scales.max()) * 2**-10)
    before = kernel(torch.float32)
    assert before.values.cpu().abs().max() <= LARGEST
    assert_close(before.scales.cpu(), twin.scales, rtol=2e-6, atol=0)
    assert_close(before.dequantized().cpu(), exact, rtol=1e-5, atol=float(twin.scales.max()) * 1e-4)
    rounded = kernel(FP8)
    assert rounded.values.dtype == FP8
    found, expected = rounded.values.cpu().float(), twin.values.float()
    # Numbers in the middle between two of FP8 can become either.
    is_near = (found - expected).abs() <= expected.abs() / 8 + 2**-9
    if not rounded.values.is_cuda:
        # Triton's interpreter makes half of what it should round up to a power of two.
        is_near |= (expected.abs().log2() % 1 == 0) & ((found.abs() - expected.abs() / 2).abs() < 2**-9)
    assert is_near.all()


@some
@given(rows=ROWS, width=WIDTHS, seed=st.integers(0, 99), scale=st.sampled_from([1e-3, 1.0, 300.0, 1e30]))
def test_rows(device: torch.device, rows: int, width: int, seed: int, scale: float) -> None:
    x = numbers(rows, width, seed, scale)
    check(lambda dtype: kernels.quantize(x.to(device), dtype), quantized.quantize(x), x.float())


@some
@given(rows=ROWS, width=WIDTHS, seed=st.integers(0, 99), scale=st.sampled_from([1e-3, 1.0, 300.0]))
def test_their_gelu(device: torch.device, rows: int, width: int, seed: int, scale: float) -> None:
    x = numbers(rows, width, seed, scale)
    twin = quantized.quantized_gelu(x)
    check(lambda dtype: kernels.quantized_gelu(x.to(device), dtype), twin, gelu_twin(x))


@some
@given(rows=ROWS, width=st.sampled_from([16, 40, 320, 1000]), seed=st.integers(0, 99))
def test_residual_sums_and_their_norm(device: torch.device, rows: int, width: int, seed: int) -> None:
    x, residual = numbers(rows, width, seed), numbers(rows, width, seed + 1, 3.0)
    norm = some_norm(width)
    total, normed = add_norm_twin(x, residual, norm)
    twin_total, twin = quantized.quantized_add_norm(x, residual, norm)
    assert torch.equal(twin_total, total.bfloat16())
    norm = norm.to(device)

    def kernel(dtype: torch.dtype) -> Quantized:
        kept = residual.to(device, copy=True)
        found, rows = kernels.quantized_add_norm(x.to(device), kept, norm, dtype)
        assert found.data_ptr() == kept.data_ptr()
        # Triton's interpreter cuts BF16 off.
        assert_close(found.cpu().float(), total, rtol=2**-8 if found.is_cuda else 2**-7, atol=0)
        return rows

    check(kernel, twin, normed)


def test_rows_of_zeros_stay(device: torch.device) -> None:
    x = torch.tensor([[0.0] * 16, [1.0, -2.0] * 8]).bfloat16()
    for found in (kernels.quantize(x.to(device)), quantized.quantize(x)):
        assert found.values.cpu().float().abs().amax(1).tolist() == [0, LARGEST]
        assert torch.equal(found.dequantized().cpu(), x.float())


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_a_row_that_is_not_finite_stays_so(device: torch.device, number: float) -> None:
    x = torch.ones(2, 32).bfloat16()
    x[1, 3] = number
    # Triton's interpreter makes a number of an FP8 that is none.
    dtype = FP8 if device.type == "cuda" else torch.float32
    for found in (kernels.quantize(x.to(device), dtype), quantized.quantize(x)):
        sums = found.dequantized().cpu().sum(1)
        assert sums[0] == 32
        assert not sums[1].isfinite()


def test_no_rows() -> None:
    found = quantized.quantize(torch.empty(0, 16))
    assert (found.values.shape, found.scales.shape) == ((0, 16), (0, 1))
