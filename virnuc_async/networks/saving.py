"""Tensors into a safetensors file, one at a time."""

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

# As the format names them, in the order in which its writer puts them: wide ones first, so that all
# are aligned. There are more, which no checkpoint of these networks was seen to have.
DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """
    Write *tensors* to *path*, byte for byte as safetensors' own writer does.

    That one wants all of them in memory, and a second time as bytes. Here each is asked for when it
    is written and forgotten afterwards: a mapping that makes them then, or that maps a file, needs
    memory for one of them.
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
            file.write(_bytes(tensors[name]))
        file.flush()
        os.fsync(file.fileno())


def _layout(tensors: Mapping[str, Tensor]) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Give what there is to write, in the order of the file."""
    found = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    return sorted(found, key=lambda one: (list(DTYPES).index(one[1]), one[0]))


def _bytes(tensor: Tensor) -> memoryview:
    # Seen as bytes by torch: numpy knows no bfloat16.
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
