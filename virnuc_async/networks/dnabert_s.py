"""
DNABERT-S (Zhou et al. 2024, arXiv:2402.08777): a MosaicBERT, on packed tokens.

Post-norm layers, a gated MLP whose first half is activated, no position embedding: attention is
biased by -slope * distance, with one slope a head (ALiBi; Press et al. 2022, arXiv:2108.12409).
"""

from collections.abc import Iterable
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from .attention import Attention, fastest_on_cpu, sdpa_by_length, select_kernel
from .kernels.selection import Missing, first_launches, select
from .linear import GatedLinear, Linear, can_prepack, prepack, use_operations
from .loading import embedding
from .packing import Packed, mean_pool
from .shapes import NucleotideShape


class Layer(nn.Module):
    """One transformer layer, before and after attention."""

    def __init__(self, shape: NucleotideShape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, shape.eps)
        self.gate_up = GatedLinear(width, shape.intermediate)
        self.down = Linear(shape.intermediate, width)
        self.mlp_norm = nn.LayerNorm(width, shape.eps)

    def pre_attention(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of *x* (T, C), each (T, H, D)."""
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)
        return q, k, v

    def post_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add the projected attention output (T, H, D), then the MLP's, to *x* (T, C); normalize each sum."""
        x = self.out.normed_sum(attended.flatten(1), x, self.attention_norm)
        return self.down.normed_sum(self.gate_up(x), x, self.mlp_norm)

    def prepack(self) -> None:
        """Pack the weights for inference on the CPU, if this torch and this processor can."""
        if can_prepack(self.mlp_norm.weight.dtype):
            prepack(self)


class DnabertS(nn.Module):
    """The encoder alone: token ids to the last layer's states."""

    def __init__(self, shape: NucleotideShape) -> None:
        super().__init__()
        self.heads, self.head_width = shape.heads, shape.width // shape.heads
        self.intermediate = shape.intermediate
        self.attention: Attention = sdpa_by_length
        self.embed = embedding(shape.vocabulary, shape.width)
        self.token_type = nn.Parameter(torch.empty(shape.width))
        self.norm = nn.LayerNorm(shape.width, shape.eps)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))

    def forward(self, packed: Packed) -> Tensor:
        """Return the last hidden state of every token, (T, C)."""
        attend = self.attention(packed, _slopes_on(packed.ids.device, self.heads))
        x = self.norm(self.embed(packed.ids) + self.token_type)
        for layer in cast(Iterable[Layer], self.layers):
            q, k, v = layer.pre_attention(x)
            x = layer.post_attention(x, attend(q, k, v))
        return x  # type: ignore[no-any-return]

    def prepack(self) -> None:
        """Pack the weights for inference on the CPU, if this torch and this processor can."""
        if can_prepack(self.token_type.dtype):
            for layer in cast(Iterable[Layer], self.layers):
                layer.prepack()
            self.attention = fastest_on_cpu(self.token_type.dtype)

    def use_gpu_kernels(self) -> list[Missing]:
        """Select the fastest correct kernels of the weights' device; return those that cannot be used."""
        like = self.token_type
        shapes = {"normed_sum": (len(like),), "gated_gelu": (self.intermediate,)}
        with first_launches():
            self.attention = select_kernel(like.device, like.dtype, self.heads, self.head_width, biased=True)
            operations, missing = select(shapes, like.device, like.dtype)
        use_operations(self, operations)
        return missing

    def embeddings(self, packed: Packed) -> Tensor:
        """Return the mean over all tokens of each row, [CLS] and [SEP] included: (B, C) in FP32."""
        return mean_pool(self(packed), packed)


def slopes(heads: int) -> list[float]:
    """Return ALiBi's slope of each head; those of heads beyond a power of two lie between the others."""
    power = 1 << (heads.bit_length() - 1)  # the largest power of two up to *heads*
    rates = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    return rates if power == heads else rates + slopes(2 * power)[0::2][: heads - power]


@cache
def _slopes_on(device: torch.device, heads: int) -> Tensor:
    # Cached: a copy to the device for every batch would make the host wait for the previous batch.
    with torch.inference_mode(False):
        return torch.tensor(slopes(heads), device=device)
