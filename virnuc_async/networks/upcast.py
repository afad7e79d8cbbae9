"""A network in FP32 that shares the weights of one in half precision."""

import copy
from typing import TypeVar

from torch import nn

from .attention import sdpa_by_length
from .dnabert_s import DnabertS
from .esm2 import Esm2, Layer
from .fp8 import Fp8Linear, Fp8Norm
from .linear import Linear, PackedGatedLinear, PackedLinear
from .rotary import rotate_halves, rotate_interleaved

Encoder = TypeVar("Encoder", DnabertS, Esm2)


def upcast(encoder: Encoder) -> Encoder:
    """
    Return *encoder* in FP32 and in plain torch; its matrices are those of *encoder*, see UpcastLinear.

    What is computed with it equals FP32 with the rounded weights, whatever overflows in half precision.
    """
    # What deepcopy finds here it takes instead of a copy.
    replaced: dict[int, object] = {id(encoder.attention): sdpa_by_length}
    for module in encoder.modules():
        if isinstance(module, Linear | PackedLinear | PackedGatedLinear | Fp8Linear | Fp8Norm):
            replaced[id(module)] = module.upcast()
            replaced.update((id(part), part) for part in module.parameters())
        elif isinstance(module, Layer) and module.rotate is not rotate_interleaved:
            replaced[id(module.rotate)] = rotate_halves  # instead of a kernel
    for parameter in encoder.parameters():
        if id(parameter) not in replaced:
            replaced[id(parameter)] = nn.Parameter(parameter.float(), requires_grad=False)
    return copy.deepcopy(encoder, replaced)
