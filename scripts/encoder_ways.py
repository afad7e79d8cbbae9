"""An encoder with random weights, ready to compute in one of our ways; and what its work amounts to."""

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from random_bundle import scaled

from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.linear import can_prepack
from virnuc_async.networks.shapes import NucleotideShape, ProteinShape

Encoder = DnabertS | Esm2
Shape = NucleotideShape | ProteinShape

DTYPES = {"FP32": torch.float32, "BF16": torch.bfloat16, "FP16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
PLAIN = "plain"  # torch's own operations, the reference of the other ways


def ways(device: torch.device) -> tuple[str, str]:
    """Return the ways to compute on *device*: plain, and what a run uses there."""
    return (PLAIN, "packed") if device.type == "cpu" else (PLAIN, "kernels")


def random_encoder(shape: Shape, dtype: torch.dtype, device: torch.device) -> Encoder:
    """Return an encoder with random weights, which are made on *device*."""
    with torch.device("meta"):
        network = DnabertS(shape) if isinstance(shape, NucleotideShape) else Esm2(shape)
    return scaled(network.to(dtype).to_empty(device=device))


def prepared(network: Encoder, way: str) -> Encoder:
    """Return a copy of *network* that computes in one *way*; weights that stay as they are, are shared."""
    ready = copy.deepcopy(network, {id(tensor): tensor for tensor in network.parameters()})
    if way == "packed":
        ready.prepack()
    elif way == "kernels":
        ready.use_fastest_attention()
    return ready


def flop(shape: Shape, lengths: NDArray[np.int64]) -> float:
    """Return the floating-point operations of the linear layers and of attention on rows of *lengths*."""
    products = sum(outputs * inputs for outputs, inputs in products_of(shape))
    linear = 2 * products * int(lengths.sum())
    attention = 4 * shape.width * int((lengths**2).sum())
    return float(shape.layers * (linear + attention))


def products_of(shape: Shape) -> tuple[tuple[int, int], ...]:
    """Return outputs and inputs of each linear layer of a layer."""
    width = shape.width
    inner = shape.intermediate if isinstance(shape, NucleotideShape) else 4 * width
    up = 2 * inner if isinstance(shape, NucleotideShape) else inner  # a gated one has two in one
    return (3 * width, width), (width, width), (up, width), (width, inner)


def matrix_rate(
    products: Sequence[tuple[int, int]], tokens: int, dtype: torch.dtype, device: torch.device
) -> float:
    """Return the FLOP/s of *products* alone, the better of torch and oneDNN."""
    work, seconds = 0.0, 0.0
    for outputs, inputs in products:
        x = torch.randn(tokens, inputs, device=device, dtype=dtype)
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        candidates: list[Callable[[], Any]] = [lambda x=x, w=weight: torch.mm(x, w.T)]
        if device.type == "cpu" and can_prepack(dtype):
            packed = torch.ops.mkldnn._reorder_linear_weight(weight)
            candidates.append(
                lambda x=x, w=packed: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")
            )
        work += 2 * tokens * outputs * inputs
        seconds += min(seconds_each(way, device, 8) for way in candidates)
    return work / seconds


def seconds_each(work: Callable[[], Any], device: torch.device, times: int) -> float:
    """Return the seconds that a call of *work* takes: on a GPU the mean of several, between two events."""
    if device.type == "cpu":
        work()
        return min(timed(work, device)[0] for _ in range(min(times, 3)))
    for _ in range(2):
        work()
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    started.record()
    for _ in range(times):
        work()
    ended.record()
    ended.synchronize()
    return float(started.elapsed_time(ended)) / 1000 / times


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Return the seconds that *work* takes, and its result."""
    synchronize(device)
    started = time.perf_counter()
    result = work()
    synchronize(device)
    return time.perf_counter() - started, result


def synchronize(device: torch.device) -> None:
    """Wait until *device* has done all that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
