"""
ESM-2 (Lin et al. 2023, Science 379:1123), as fair-esm 2.0.0 computes it, on packed tokens.

Pre-norm layers, rotary positions, exact GELU, and a final norm. The embeddings are scaled by
0.88 at inference too: the network was trained with 15 % of its tokens hidden, 80 % of them by
zeroes, and expects that average.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..tokens import ESM2_ALPHABET
from .packing import Packed, attend, means, positions
from .shapes import ProteinShape

_TOKEN_DROPOUT_SCALE = 1 - 0.15 * 0.8
_MOST_RESIDUES = 1024  # the published features average no more of a protein than this


class Layer(nn.Module):
    """One transformer layer in two regions, before and after attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def before(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give queries, keys and values of *x* (T, C), each (T, H, D), positions turned in."""
        qkv = self.qkv(self.attention_norm(x)).view(len(x), 3, self.heads, -1)  # T 3 H D
        turned = _rotate(qkv[:, :2], cos, sin)
        return turned[:, 0], turned[:, 1], qkv[:, 2]

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add what attention (T, H, D) and then the MLP make of *x* (T, C)."""
        x = x + self.out(attended.flatten(1))
        return x + self.down(functional.gelu(self.up(self.mlp_norm(x))))  # type: ignore[no-any-return]


class Esm2(nn.Module):
    """The encoder alone: token ids to the last layer's normed states."""

    def __init__(self, shape: ProteinShape) -> None:
        super().__init__()
        self.head_width = shape.width // shape.heads
        self.embed = nn.Embedding(len(ESM2_ALPHABET), shape.width)
        self.layers = nn.ModuleList(Layer(shape.width, shape.heads) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, packed: Packed) -> Tensor:
        """Give the last hidden state of every token, (T, C)."""
        cos, sin = _rotary_tables(positions(packed), self.head_width)
        x = self.embed(packed.ids) * _TOKEN_DROPOUT_SCALE
        for layer in cast(Iterable[Layer], self.layers):
            q, k, v = layer.before(x, cos, sin)
            x = layer.after(x, attend(q, k, v, packed))
        return self.norm(x)  # type: ignore[no-any-return]

    def embeddings(self, packed: Packed) -> Tensor:
        """Average over the residues of each row, the first 1,024 of them: (B, C) in FP32."""
        return means(self(packed), packed, first=1, most=_MOST_RESIDUES)


def _rotary_tables(at: Tensor, width: int) -> tuple[Tensor, Tensor]:
    # FP32 whatever the run's precision: in BF16, positions above 256 would fall together.
    rates = 1 / 10000 ** (torch.arange(0, width, 2, device=at.device).float() / width)
    angles = torch.outer(at.float(), rates).repeat(1, 2)  # T D
    return angles.cos()[:, None, None], angles.sin()[:, None, None]  # T 1 1 D


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.float().chunk(2, dim=-1)
    return (torch.cat((left, right), -1) * cos + torch.cat((-right, left), -1) * sin).to(x.dtype)
