"""Write tensors to a safetensors file, one at a time."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

# The format's names, in the order of safetensors' own writer: wide types first, so that all are
# aligned. Other types of the format are left out: no checkpoint of these networks uses them.
DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}


@dataclass(frozen=True, slots=True)
class Stacked:
    """A tensor in *parts*, to be concatenated along the first dimension."""

    parts: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the concatenated tensor."""
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """The type of all parts."""
        return self.parts[0].dtype


def save(tensors: Mapping[str, Tensor | Stacked], path: Path) -> None:
    """
    Write *tensors* to the new file *path*, byte for byte as safetensors' own writer does.

    That writer needs all tensors in memory, and a second time as bytes. Here each tensor is requested
    when it is written and released afterwards; tensors of a memory-mapped file are not copied.
    """
    described: dict[str, dict[str, object]] = {}
    end = 0
    for name, dtype, shape in _layout(tensors):
        begin, end = end, end + dtype.itemsize * prod(shape)
        described[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in described:
            tensor = tensors[name]
            for part in tensor.parts if isinstance(tensor, Stacked) else (tensor,):
                file.write(_bytes(part))
        file.flush()
        os.fsync(file.fileno())


def _layout(tensors: Mapping[str, Tensor | Stacked]) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Return name, type and shape of each tensor, in the order of the file."""
    found = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    return sorted(found, key=lambda one: (list(DTYPES).index(one[1]), one[0]))


def _bytes(tensor: Tensor) -> memoryview:
    # Viewed as bytes in torch: numpy has no bfloat16.
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
