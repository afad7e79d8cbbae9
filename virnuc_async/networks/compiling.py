"""
The two regions of a layer, before and after attention, compiled for a GPU.

All layers are alike, so that one compilation a region serves all of them, and batches of any
number of tokens. The CPU has weights packed for it instead (see ``linear.py``).
"""

from collections.abc import Iterable
from threading import Lock
from typing import cast

import torch
from torch import nn

from virnuc_async.settings import Compile

from .packing import Packed

# A run must be long enough to win back some ten seconds of compiling on each device. Plain
# FASTA of this size is about 60,000 fragments of 500 bases.
_WORTH_BYTES = 32 << 20

# torch.compile is not safe in several threads at once.
_LOCK = Lock()

_REGIONS = ("before", "after")


def decide_compile(wanted: Compile, on_gpu: bool, input_bytes: int | None) -> bool:
    """Say whether to compile: on a GPU, as wanted, else where *input_bytes* (None: unknown) are many."""
    if not on_gpu or wanted is Compile.OFF:
        return False
    return wanted is Compile.ON or (input_bytes is not None and input_bytes >= _WORTH_BYTES)


def compile_layers(network: nn.Module, sample: Packed) -> str | None:
    """
    Compile the layers' regions and run *sample*, two sequences or more; no later batch compiles anything.

    Gives a warning where this machine cannot compile; *network* then stays as it was.
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
            return f"the kernels could not be compiled, so the run goes on without: {reason}"
    return None
