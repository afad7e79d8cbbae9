"""Every kernel between the matrix products gives its twin's answer, whatever the shape."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from virnuc_async.networks.kernels.add_norm import add_norm, add_norm_twin, normed_sum
from virnuc_async.networks.kernels.gated_gelu import gated_gelu, gated_gelu_twin
from virnuc_async.networks.kernels.gelu import gelu, gelu_twin
from virnuc_async.networks.kernels.rotary import rotate, rotate_twin
from virnuc_async.networks.rotary import rotary_angles

ROWS = st.integers(0, 4)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
WIDTHS = st.one_of(st.integers(1, 70), st.sampled_from([320, 640, 768, 1280, 2560, 5120]))

some = settings(max_examples=25)


def numbers(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Return the same random numbers for the same shape."""
    random = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=random) * scale).to(dtype)


def some_norm(width: int, dtype: torch.dtype, eps: float = 1e-5) -> nn.LayerNorm:
    norm = nn.LayerNorm(width, eps, dtype=dtype).requires_grad_(False)
    norm.weight.copy_(1 + numbers(width, dtype=dtype, scale=0.2))
    norm.bias.copy_(numbers(width, dtype=dtype, scale=0.2))
    return norm


def assert_rounded(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Check that *found* is *exact* within 1e-6 in FP32, and rounded once to *dtype*."""
    assert found.dtype == dtype
    assert found.shape == exact.shape
    step = 0.0 if dtype is torch.float32 else torch.finfo(dtype).eps
    # Triton's interpreter cuts BF16 off; all else is rounded to the nearest number.
    is_cut_off = dtype is torch.bfloat16 and not found.is_cuda
    allowed = exact.abs() * (step if is_cut_off else step / 2) * 1.001 + exact.abs() * 1e-6 + 1e-6
    beyond = (found.cpu().float() - exact).abs() - allowed
    assert (beyond <= 0).all(), float(beyond.max())


@some
@given(rows=ROWS, width=WIDTHS, dtype=DTYPES)
def test_gelu(device: torch.device, rows: int, width: int, dtype: torch.dtype) -> None:
    x = numbers(rows, width, dtype=dtype)
    given = x.to(device, copy=True)
    found = gelu(given)
    assert found.data_ptr() == given.data_ptr()
    assert_rounded(found, gelu_twin(x), dtype)


@some
@given(rows=ROWS, width=WIDTHS, dtype=DTYPES)
def test_gated_gelu(device: torch.device, rows: int, width: int, dtype: torch.dtype) -> None:
    x = numbers(rows, 2 * width, dtype=dtype)
    assert_rounded(gated_gelu(x.to(device, copy=True)), gated_gelu_twin(x), dtype)


@some
@given(
    rows=ROWS, width=WIDTHS, dtype=DTYPES, eps=st.sampled_from([1e-5, 1e-12]), mean=st.sampled_from([0, 2])
)
def test_add_norm(
    device: torch.device, rows: int, width: int, dtype: torch.dtype, eps: float, mean: int
) -> None:
    x, residual = numbers(rows, width, dtype=dtype), numbers(rows, width, dtype=dtype).flip(1) + mean
    norm = some_norm(width, dtype, eps)
    total, normed = add_norm_twin(x, residual, norm)
    norm = norm.to(device)
    found = add_norm(x.to(device, copy=True), residual.to(device, copy=True), norm)
    assert_rounded(found[0], total, dtype)
    assert_rounded(found[1], normed, dtype)
    kept = residual.to(device, copy=True)
    alone = normed_sum(x.to(device, copy=True), kept, norm)
    assert torch.equal(alone, found[1])
    assert torch.equal(kept.cpu(), residual)


@some
@given(rows=ROWS, heads=st.integers(1, 7), half=st.integers(1, 40), dtype=DTYPES)
def test_rotary(device: torch.device, rows: int, heads: int, half: int, dtype: torch.dtype) -> None:
    qkv = numbers(rows, 3, heads, 2 * half, dtype=dtype)
    angles = rotary_angles(torch.arange(rows) * 300, 2 * half)
    given = qkv.to(device, copy=True)
    found = rotate(given, angles.to(device))
    assert_rounded(found, rotate_twin(qkv, angles), dtype)
    assert torch.equal(found, given[:, :2])
    assert torch.equal(given[:, 2].cpu(), qkv[:, 2])


def test_rotary_of_all_heads_of_the_published_shapes(device: torch.device) -> None:
    for heads, width in ((20, 16), (40, 64), (40, 128)):
        qkv = numbers(2, 3, heads, width, dtype=torch.float32)
        angles = rotary_angles(torch.tensor([1, 1025]), width)
        given = qkv.to(device, copy=True)
        found = rotate(given, angles.to(device))
        assert_rounded(found, rotate_twin(qkv, angles), torch.float32)


def test_an_infinite_number_stays_in_its_row(device: torch.device) -> None:
    x, residual = torch.ones(3, 40), torch.ones(3, 40)
    x[1, 7] = torch.inf
    norm = some_norm(40, torch.float32)
    expected = add_norm_twin(x, residual, norm)
    found = add_norm(x.to(device), residual.to(device), norm.to(device))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=1e-6, equal_nan=True)
