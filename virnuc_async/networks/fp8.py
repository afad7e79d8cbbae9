"""
ESM-2 with matrix products in FP8: each token, and each output of a layer, has a scale of its own.

What is between two products is quantized by the pass that computes it: norms and GELU. Residual sums,
queries, keys, values and softmax are in BF16. DNABERT-S stays in BF16 as a whole: it is a twentieth of the
work, and its norms are residuals as well.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from virnuc_async.errors import UnsuitablePrecision

from .esm2 import Esm2, Layer
from .kernels.availability import kernel_errors, why_unavailable
from .kernels.selection import WRONG_ANSWER, Missing, first_launches
from .linear import Linear, UpcastLinear
from .quantized import Quantized, quantize, quantized_add_norm, quantized_gelu, quantized_norm

_ALIGNMENT = 16  # numbers: torch's products require it of both sides of a matrix


class Operations(NamedTuple):
    """What is done between two products: functions of ``quantized.py``, or the kernels that replace them."""

    quantize: Callable[[Tensor], Quantized]
    gelu: Callable[[Tensor], Quantized]
    add_norm: Callable[[Tensor, Tensor, nn.LayerNorm], tuple[Tensor, Quantized]]


PLAIN = Operations(quantize, quantized_gelu, quantized_add_norm)


class Fp8Norm(nn.LayerNorm):
    """A LayerNorm that only products are computed of: its output is quantized."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        nn.Module.__init__(self)
        self.normalized_shape, self.eps = norm.normalized_shape, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Quantized:  # type: ignore[override]
        """Return norm(x)."""
        return quantized_norm(x, self)

    def upcast(self) -> nn.LayerNorm:
        """Return the same norm in FP32, not quantized."""
        norm = nn.LayerNorm(self.normalized_shape, self.eps, device="meta")
        tensors = {"weight": self.weight.float(), "bias": self.bias.float()}
        norm.load_state_dict(tensors, assign=True)
        return norm.requires_grad_(False)


class Fp8Linear(nn.Module):
    """A :class:`Linear` that multiplies in FP8; what it is given is quantized, or it does that first."""

    def __init__(self, layer: Linear, operations: Operations = PLAIN) -> None:
        super().__init__()
        weight = quantize(layer.weight.detach())
        self._values, self._scales = weight  # (N, K), and (N, 1)
        self._bias = layer.bias
        self._operations = operations

    def forward(self, x: Tensor | Quantized) -> Tensor:
        """Return layer(x) in BF16."""
        rows = self._operations.quantize(x) if isinstance(x, Tensor) else x
        if rows.values.is_cpu:
            return self.product_twin(rows)
        return torch._scaled_mm(
            rows.values,
            self._values.t(),  # by columns, as the product requires it
            scale_a=rows.scales,
            scale_b=self._scales.t(),
            bias=self._bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )

    def product_twin(self, rows: Quantized) -> Tensor:
        """Return layer(rows), summed in FP32 and rounded to BF16, without FP8's products."""
        bias = None if self._bias is None else self._bias.float()
        return functional.linear(rows.dequantized(), self._weight(), bias).bfloat16()

    def linear_gelu(self, x: Tensor | Quantized) -> Quantized:
        """Return gelu(layer(x))."""
        return self._operations.gelu(self(x))

    def add_norm(
        self, x: Tensor | Quantized, residual: Tensor, norm: nn.LayerNorm
    ) -> tuple[Tensor, Tensor | Quantized]:
        """Return the sum residual + layer(x), and norm(sum); the latter quantized if *norm* does that."""
        if isinstance(norm, Fp8Norm):
            return self._operations.add_norm(self(x), residual, norm)
        total = residual + self(x)
        return total, norm(total)

    def upcast(self) -> UpcastLinear:
        """Return the same layer in FP32, which uses the weights of this one."""
        return UpcastLinear(self._weight, self._bias)

    def _weight(self) -> Tensor:
        return Quantized(self._values, self._scales).dequantized()


def use_fp8(network: Esm2, operations: Operations | None = None) -> list[Missing]:
    """
    Replace the layers of *network*, which is in BF16, by those that multiply in FP8.

    Without *operations*: kernels on a GPU, if they match plain torch there, else plain torch; return what is
    missing then.

    Raises:
        UnsuitablePrecision: it has a matrix of a size that FP8 has no products for
    """
    missing: list[Missing] = []
    operations = operations or _fastest_operations(network.norm, missing)
    for layer in cast(Iterable[Layer], network.layers):
        for name in ("qkv", "out", "up", "down"):
            linear = cast(Linear, getattr(layer, name))
            if linear.in_features % _ALIGNMENT or linear.out_features % _ALIGNMENT:
                shape = f"{linear.out_features} x {linear.in_features}"
                reason = f"ESM-2 has a matrix of {shape} numbers, and {_ALIGNMENT} must divide both"
                raise UnsuitablePrecision("FP8", reason, "bf16")
            setattr(layer, name, Fp8Linear(linear, operations))
        for name in ("attention_norm", "mlp_norm"):
            setattr(layer, name, Fp8Norm(getattr(layer, name)))
    return missing


def _fastest_operations(norm: nn.LayerNorm, missing: list[Missing]) -> Operations:
    """
    Return the kernels if *norm* is on a GPU and they match plain torch there, else plain torch.

    What is *missing* on a GPU, and why, is added to the list.
    """
    if not norm.weight.is_cuda:
        return PLAIN
    try:
        kernels = import_module("virnuc_async.networks.kernels.quantize")
        fast = Operations(kernels.quantize, kernels.quantized_gelu, kernels.quantized_add_norm)
        with first_launches():
            if matches_plain(fast, norm):
                return fast
            reason = WRONG_ANSWER
    except kernel_errors() as error:
        reason = why_unavailable(error, norm.weight.device)
    missing.append(Missing("quantization", reason))
    return PLAIN


def matches_plain(operations: Operations, norm: nn.LayerNorm) -> bool:
    """Return whether *operations* give what plain torch gives, on a sample."""
    device, width = norm.weight.device, norm.normalized_shape[0]
    random = torch.Generator().manual_seed(1)
    x, residual, wide = (
        torch.randn(8, columns, generator=random).bfloat16().to(device)
        for columns in (width, width, 4 * width)
    )
    total, normed = operations.add_norm(x.clone(), residual.clone(), norm)
    plain_total, plain_normed = PLAIN.add_norm(x, residual, norm)
    return torch.allclose(total.float(), plain_total.float(), rtol=2**-7) and all(
        _are_close(found, expected)
        for found, expected in (
            (operations.quantize(x), PLAIN.quantize(x)),
            (operations.gelu(wide), PLAIN.gelu(wide)),
            (normed, plain_normed),
        )
    )


def _are_close(found: Quantized, expected: Quantized) -> bool:
    # A number in the middle of two that FP8 has may become either.
    difference = (found.values.float() - expected.values.float()).abs()
    is_close = (difference <= expected.values.float().abs() / 8 + 2**-9).all()
    return bool(is_close) and torch.allclose(found.scales, expected.scales, rtol=1e-4)
