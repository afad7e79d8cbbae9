"""
Rows of numbers in FP8 (E4M3, 4 bits of significand), each with a scale of its own.

In plain torch; ``kernels/quantize.py`` does the same in one pass each on a GPU.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max  # 448


class Quantized(NamedTuple):
    """A matrix in FP8: *values* times the scale of their row."""

    values: Tensor  # (T, C)
    scales: Tensor  # (T, 1) in FP32

    def dequantized(self) -> Tensor:
        """Return the matrix in FP32."""
        return self.values.float() * self.scales


def quantize(x: Tensor) -> Quantized:
    """Return *x* (T, C) with the largest number of each row at the end of FP8's range."""
    wide = x.float()
    # A row of zeros has any scale but zero.
    scales = wide.abs().amax(1, keepdim=True).div(LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return Quantized((wide / scales).clamp(-LARGEST, LARGEST).to(FP8), scales)


def quantized_gelu(x: Tensor) -> Quantized:
    """Return gelu(x) of *x* (T, C), the exact one."""
    return quantize(functional.gelu(x.float()))


def quantized_norm(x: Tensor, norm: nn.LayerNorm) -> Quantized:
    """Return norm(x) of *x* (T, C)."""
    weight, bias = norm.weight.float(), norm.bias.float()
    return quantize(functional.layer_norm(x.float(), norm.normalized_shape, weight, bias, norm.eps))


def quantized_add_norm(x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Quantized]:
    """Return residual + x, in the type of *residual*, and the norm of this sum before it is rounded."""
    total = residual.float() + x.float()
    return total.to(residual.dtype), quantized_norm(total, norm)
