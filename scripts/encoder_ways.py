"""An encoder with random weights, ready to compute in one of our ways; and what its work amounts to."""

import copy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from random_bundle import scaled
from torch import Tensor

from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.fp8 import use_fp8
from virnuc_async.networks.kernels.selection import warning_of
from virnuc_async.networks.linear import can_prepack
from virnuc_async.networks.shapes import NucleotideShape, ProteinShape

Encoder = DnabertS | Esm2
Shape = NucleotideShape | ProteinShape

FP8 = "FP8"  # of ESM-2's products alone; all else is in BF16
DTYPES = {"FP32": torch.float32, "BF16": torch.bfloat16, "FP16": torch.float16, FP8: torch.bfloat16}
FP32 = torch.float32
PLAIN = "plain"  # torch's own operations, the reference of the other ways


def ways(device: torch.device) -> tuple[str, str]:
    """Return the ways to compute on *device*: plain, and what a run uses there."""
    return (PLAIN, "packed") if device.type == "cpu" else (PLAIN, "kernels")


def precisions(device: torch.device) -> list[str]:
    """Return the precisions to measure on *device*: those that it computes in without emulation."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)
    lowest = {"FP32": (0, 0), "BF16": (8, 0), "FP16": (7, 0), FP8: (8, 9)}
    found = [name for name, needed in lowest.items() if capability >= needed]
    return found if device.type == "cuda" else ["FP32", "BF16"]


def random_encoder(shape: Shape, dtype: torch.dtype, device: torch.device) -> Encoder:
    """Return an encoder with random weights, which are made on *device*."""
    with torch.device("meta"):
        network = DnabertS(shape) if isinstance(shape, NucleotideShape) else Esm2(shape)
    return scaled(network.to(dtype).to_empty(device=device))


def prepared(network: Encoder, way: str, precision: str = "") -> Encoder:
    """Return a copy of *network* that computes in one *way*; weights that stay as they are, are shared."""
    ready = copy.deepcopy(network, {id(tensor): tensor for tensor in network.parameters()})
    if precision == FP8 and isinstance(ready, Esm2):
        use_fp8(ready)
    if way == "packed":
        ready.prepack()
    elif way == "kernels" and (warning := warning_of(ready.use_gpu_kernels())):
        print(warning, file=sys.stderr)
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
    products: Sequence[tuple[int, int]], tokens: int, precision: str, device: torch.device
) -> float:
    """Return the FLOP/s of *products* alone, on a CPU the better of torch and oneDNN."""
    work, seconds = 0.0, 0.0
    for outputs, inputs in products:
        x = torch.randn(tokens, inputs, device=device, dtype=DTYPES[precision])
        weight = torch.randn(outputs, inputs, device=device, dtype=DTYPES[precision])
        work += 2 * tokens * outputs * inputs
        seconds += min(seconds_each(way, device, 8) for way in _products(x, weight, precision))
    return work / seconds


def _products(x: Tensor, weight: Tensor, precision: str) -> Iterator[Callable[[], Tensor]]:
    """Yield the ways to multiply *x* by *weight* transposed."""
    if precision == FP8:
        x, weight = x.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn)
        rows, columns = x.new_ones(len(x), 1, dtype=FP32), x.new_ones(1, len(weight), dtype=FP32)
        options = {"scale_a": rows, "scale_b": columns, "out_dtype": torch.bfloat16, "use_fast_accum": True}
        yield lambda: torch._scaled_mm(x, weight.t(), **options)
        return
    yield lambda: torch.mm(x, weight.t())
    if x.device.type == "cpu" and can_prepack(x.dtype):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        yield lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


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
