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

from .attention import Attention, sdpa_by_length, select_kernel
from .linear import GatedLinear, Linear, can_prepack, prepack
from .loading import embedding
from .packing import Packed, mean_pool
from .shapes import NucleotideShape


class Layer(nn.Module):
    """One transformer layer in two regions, before and after attention."""

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

    def before(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give queries, keys and values of *x* (T, C), each (T, H, D)."""
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)
        return q, k, v

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add what attention (T, H, D) and then the MLP make of *x* (T, C), normed each time."""
        x = self.attention_norm(self.out.linear_add(attended.flatten(1), x))
        return self.mlp_norm(self.down.linear_add(self.gate_up(x), x))  # type: ignore[no-any-return]


class DnabertS(nn.Module):
    """The encoder alone: token ids to the last layer's states."""

    def __init__(self, shape: NucleotideShape) -> None:
        super().__init__()
        self.heads, self.head_width = shape.heads, shape.width // shape.heads
        self.attention: Attention = sdpa_by_length
        self.embed = embedding(shape.vocabulary, shape.width)
        self.token_type = nn.Parameter(torch.empty(shape.width))
        self.norm = nn.LayerNorm(shape.width, shape.eps)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))

    def forward(self, packed: Packed) -> Tensor:
        """Give the last hidden state of every token, (T, C)."""
        attend = self.attention(packed, _slopes_on(packed.ids.device, self.heads))
        x = self.norm(self.embed(packed.ids) + self.token_type)
        for layer in cast(Iterable[Layer], self.layers):
            q, k, v = layer.before(x)
            x = layer.after(x, attend(q, k, v))
        return x  # type: ignore[no-any-return]

    def prepack(self) -> None:
        """Prepare for inference on the CPU, where it can be done faster than the plain way."""
        if can_prepack(self.token_type.dtype):
            prepack(self)

    def use_fastest_attention(self) -> None:
        """Prepare for inference on a GPU, on which the weights are."""
        like = self.token_type
        self.attention = select_kernel(like.device, like.dtype, self.heads, self.head_width, biased=True)

    def embeddings(self, packed: Packed) -> Tensor:
        """Average over all tokens of each row, [CLS] and [SEP] too: (B, C) in FP32."""
        return mean_pool(self(packed), packed)


def slopes(heads: int) -> list[float]:
    """Give ALiBi's slope of each head; heads beyond a power of two lie between the others."""
    whole = 1 << (heads.bit_length() - 1)
    rates = [2 ** (-8 * (head + 1) / whole) for head in range(whole)]
    return rates if whole == heads else rates + slopes(2 * whole)[0::2][: heads - whole]


@cache
def _slopes_on(device: torch.device, heads: int) -> Tensor:
    # Kept: to copy it for every batch would make the host wait for the batch before.
    with torch.inference_mode(False):
        return torch.tensor(slopes(heads), device=device)
