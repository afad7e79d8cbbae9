"""
ESM-2 (Lin et al. 2023, Science 379:1123), as fair-esm 2.0.0 computes it, on packed tokens.

Pre-norm layers, rotary positions, exact GELU, and a final norm. The embeddings are scaled by
0.88 at inference too: the network was trained with 15 % of its tokens masked, 80 % of these by
zeros, and expects that average.
"""

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn

from virnuc_async.sequences.tokens import ESM2_ALPHABET

from .attention import Attention, fastest_on_cpu, sdpa_by_length, select_kernel
from .kernels.selection import Missing, first_launches, select
from .linear import Linear, can_prepack, prepack, use_operations
from .loading import embedding
from .packing import Packed, mean_pool, positions
from .rotary import complex_angles, rotary_angles, rotate_halves, rotate_interleaved
from .shapes import ProteinShape

_TOKEN_DROPOUT_SCALE = 1 - 0.15 * 0.8
_MAX_RESIDUES = 1024  # the published features average at most this many residues of a protein


class Layer(nn.Module):
    """One transformer layer, before and after attention; its norms follow the sums that they are of."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.rotate: Callable[[Tensor, Tensor], Tensor] = rotate_halves
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = Linear(width, 4 * width)
        self.down = Linear(4 * width, width)

    def pre_attention(self, normed: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of *normed* (T, C), (T, H, D) each; the first two are rotated."""
        qkv = self.qkv(normed).unflatten(1, (3, self.heads, -1))  # T 3 H D
        rotated = self.rotate(qkv, angles)
        return rotated[:, 0], rotated[:, 1], qkv[:, 2]

    def post_attention(self, x: Tensor, attended: Tensor, next_norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """Add the projected attention output (T, H, D), then the MLP's, to *x* (T, C); norm the sum."""
        x, normed = self.out.add_norm(attended.flatten(1), x, self.mlp_norm)
        return self.down.add_norm(self.up.linear_gelu(normed), x, next_norm)

    def prepack(self) -> None:
        """Pack the weights for inference on the CPU, if this torch and this processor can and none is yet."""
        if isinstance(self.qkv, Linear) and can_prepack(self.qkv.weight.dtype):
            self._interleave_heads()
            prepack(self)

    def _interleave_heads(self) -> None:
        """Reorder the rows of queries and keys so that the numbers of a rotated pair are neighbours."""
        width = self.qkv.in_features
        # 0, D/2, 1, D/2 + 1, ... of each head. The same in queries and keys: their products stay equal.
        rows = torch.arange(3 * width).view(3, self.heads, 2, -1)
        rows = torch.cat((rows[:2].transpose(2, 3).flatten(), rows[2].flatten()))
        interleaved = Linear(width, 3 * width, device="meta")
        tensors = {"weight": self.qkv.weight[rows], "bias": self.qkv.bias[rows]}
        interleaved.load_state_dict(tensors, assign=True)
        self.qkv = interleaved.requires_grad_(False)
        self.rotate = rotate_interleaved


class Esm2(nn.Module):
    """The encoder alone: token ids to the last layer's normalized states."""

    def __init__(self, shape: ProteinShape) -> None:
        super().__init__()
        self.heads, self.head_width = shape.heads, shape.width // shape.heads
        self.attention: Attention = sdpa_by_length
        self._angles = rotary_angles
        self.embed = embedding(len(ESM2_ALPHABET), shape.width)
        self.layers = nn.ModuleList(Layer(shape.width, shape.heads) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, packed: Packed) -> Tensor:
        """Return the last hidden state of every token, (T, C)."""
        angles = self._angles(positions(packed), self.head_width)
        attend = self.attention(packed, None)
        layers = list(cast(Iterable[Layer], self.layers))
        first, *others = [*(layer.attention_norm for layer in layers), self.norm]
        x = self.embed(packed.ids) * _TOKEN_DROPOUT_SCALE
        normed = first(x)
        for layer, next_norm in zip(layers, others, strict=True):
            q, k, v = layer.pre_attention(normed, angles)
            x, normed = layer.post_attention(x, attend(q, k, v), next_norm)
        return normed  # type: ignore[no-any-return]

    def prepack(self) -> None:
        """Pack the weights for inference on the CPU, if this torch and this processor can."""
        if can_prepack(self.norm.weight.dtype):
            for layer in cast(Iterable[Layer], self.layers):
                layer.prepack()
            self._angles = complex_angles
            self.attention = fastest_on_cpu(self.norm.weight.dtype)

    def use_gpu_kernels(self) -> list[Missing]:
        """Select the fastest correct kernels of the weights' device; return those that cannot be used."""
        like, heads, width = self.norm.weight, self.heads, self.head_width
        shapes = {"rotate": (heads, width), "add_norm": (heads * width,), "gelu": (4 * heads * width,)}
        with first_launches():
            self.attention = select_kernel(like.device, like.dtype, heads, width, biased=False)
            operations, missing = select(shapes, like.device, like.dtype)
        use_operations(self, operations)
        for layer in cast(Iterable[Layer], self.layers):
            layer.rotate = operations.rotate
        return missing

    def embeddings(self, packed: Packed) -> Tensor:
        """Return the mean over each row's residues, the first 1,024 of them: (B, C) in FP32."""
        return mean_pool(self(packed), packed, first=1, most=_MAX_RESIDUES)
