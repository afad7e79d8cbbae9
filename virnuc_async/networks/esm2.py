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

from virnuc_async.sequences.tokens import ESM2_ALPHABET

from .attention import Attention, sdpa_by_length, select_kernel
from .linear import Linear, can_prepack, prepack
from .loading import embedding
from .packing import Packed, mean_pool, positions
from .shapes import ProteinShape

_TOKEN_DROPOUT_SCALE = 1 - 0.15 * 0.8
_MOST_RESIDUES = 1024  # the published features average no more of a protein than this


class Layer(nn.Module):
    """One transformer layer in two regions, before and after attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self._rotate = _rotate_halves
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = Linear(width, 4 * width)
        self.down = Linear(4 * width, width)

    def before(self, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give queries, keys and values of *x* (T, C), each (T, H, D), positions turned in."""
        qkv = self.qkv(self.attention_norm(x)).view(len(x), 3, self.heads, -1)  # T 3 H D
        turned = self._rotate(qkv[:, :2], turns)
        return turned[:, 0], turned[:, 1], qkv[:, 2]

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add what attention (T, H, D) and then the MLP make of *x* (T, C)."""
        x = self.out.linear_add(attended.flatten(1), x)
        return self.down.linear_add(self.up.gelu(self.mlp_norm(x)), x)

    def pair(self) -> None:
        """Put the two numbers that are turned together beside each other, in queries and keys."""
        width = self.qkv.in_features
        # 0, D/2, 1, D/2 + 1, ... of each head. Queries and keys alike: their products stay.
        rows = torch.arange(3 * width).view(3, self.heads, 2, -1)
        rows = torch.cat((rows[:2].transpose(2, 3).flatten(), rows[2].flatten()))
        paired = Linear(width, 3 * width, device="meta")
        tensors = {"weight": self.qkv.weight[rows], "bias": self.qkv.bias[rows]}
        paired.load_state_dict(tensors, assign=True)
        self.qkv = paired.requires_grad_(False)
        self._rotate = _rotate_pairs


class Esm2(nn.Module):
    """The encoder alone: token ids to the last layer's normed states."""

    def __init__(self, shape: ProteinShape) -> None:
        super().__init__()
        self.heads, self.head_width = shape.heads, shape.width // shape.heads
        self.attention: Attention = sdpa_by_length
        self.embed = embedding(len(ESM2_ALPHABET), shape.width)
        self.layers = nn.ModuleList(Layer(shape.width, shape.heads) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, packed: Packed) -> Tensor:
        """Give the last hidden state of every token, (T, C)."""
        turns = _turns(positions(packed), self.head_width)
        attend = self.attention(packed, None)
        x = self.embed(packed.ids) * _TOKEN_DROPOUT_SCALE
        for layer in cast(Iterable[Layer], self.layers):
            q, k, v = layer.before(x, turns)
            x = layer.after(x, attend(q, k, v))
        return self.norm(x)  # type: ignore[no-any-return]

    def prepack(self) -> None:
        """Prepare for inference on the CPU, where it can be done faster than the plain way."""
        if can_prepack(self.norm.weight.dtype):
            for layer in cast(Iterable[Layer], self.layers):
                layer.pair()
            prepack(self)

    def use_fastest_attention(self) -> None:
        """Prepare for inference on a GPU, on which the weights are."""
        like = self.norm.weight
        self.attention = select_kernel(like.device, like.dtype, self.heads, self.head_width, biased=False)

    def embeddings(self, packed: Packed) -> Tensor:
        """Average over the residues of each row, the first 1,024 of them: (B, C) in FP32."""
        return mean_pool(self(packed), packed, first=1, most=_MOST_RESIDUES)


def _turns(at: Tensor, width: int) -> Tensor:
    # FP32 whatever the run's precision: in BF16, positions above 256 would fall together.
    rates = 1 / 10000 ** (torch.arange(0, width, 2, device=at.device).float() / width)
    angles = torch.outer(at.float(), rates)  # T D/2
    return torch.stack((angles.cos(), angles.sin()), -1)[:, None, None]  # T 1 1 D/2 2


def _rotate_halves(x: Tensor, turns: Tensor) -> Tensor:
    cos, sin = turns.unbind(-1)
    left, right = x.float().chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(x.dtype)


def _rotate_pairs(x: Tensor, turns: Tensor) -> Tensor:
    """Turn *x* in place. One pass as complex numbers: 0.7 ms where halves take 13, at width 320."""
    wide = x.float()  # x itself in FP32
    torch.view_as_complex(wide.view(*x.shape[:-1], -1, 2)).mul_(torch.view_as_complex(turns))
    return x if wide is x else x.copy_(wide)
