"""What the layers compute around their matrix products: in plain torch, or by kernels of a GPU."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from .rotary import rotate_halves


def gated_gelu(x: Tensor) -> Tensor:
    """Return gelu(gate) * up of the two halves of each row of *x* (T, 2 C): (T, C)."""
    gate, up = x.chunk(2, dim=1)
    return functional.gelu(gate) * up


def add_norm(x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Return the sum residual + x, (T, C), and norm(sum)."""
    total = residual + x
    return total, norm(total)


def normed_sum(x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Return norm(residual + x), (T, C)."""
    return norm(residual + x)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Operations:
    """
    The operations of a network's layers: those above, unless a kernel replaces one.

    A kernel may overwrite the tensors that it is given, but for norms and angles.
    """

    gelu: Callable[[Tensor], Tensor] = functional.gelu
    gated_gelu: Callable[[Tensor], Tensor] = gated_gelu
    add_norm: Callable[[Tensor, Tensor, nn.LayerNorm], tuple[Tensor, Tensor]] = add_norm
    normed_sum: Callable[[Tensor, Tensor, nn.LayerNorm], Tensor] = normed_sum
    rotate: Callable[[Tensor, Tensor], Tensor] = rotate_halves  # queries and keys of a product


PLAIN = Operations()
