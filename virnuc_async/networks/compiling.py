"""
Compile the two regions of a layer, before and after attention, for a GPU.

All layers have the same shape, so one compilation of a region serves all layers and batches of any
number of tokens. On the CPU the weights are packed instead (see ``linear.py``).
"""

from collections.abc import Iterable
from threading import Lock
from typing import cast

import torch
from torch import nn

from .packing import Packed

# torch.compile is not safe in several threads at the same time.
_LOCK = Lock()

_REGIONS = ("pre_attention", "post_attention")


def compile_layers(network: nn.Module, sample: Packed) -> str | None:
    """
    Compile the layers' regions with *sample*, two sequences or more, so that no later batch has to.

    Return a warning if this machine cannot compile; *network* is then unchanged.
    """
    layers = list(cast(Iterable[nn.Module], network.layers))
    with _LOCK, torch.inference_mode():
        for layer in layers:
            for region in _REGIONS:
                setattr(layer, region, torch.compile(getattr(layer, region), dynamic=True, fullgraph=True))
        try:
            network.embeddings(sample)  # type: ignore[operator]
        except torch._dynamo.exc.TorchDynamoException as error:
            for layer in layers:
                for region in _REGIONS:
                    delattr(layer, region)
            reason = " ".join(str(error).split("\n\n")[0].split())
            return f"the kernels could not be compiled, so the run continues without them: {reason}"
    return None
