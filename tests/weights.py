"""
The weights of the golden DNABERT-S networks, computed from the names of their tensors.

Every number is a hash of its tensor's name and its index: no 90 MB of weights are stored, and the tests
do not depend on the random numbers of a library.
"""

from collections.abc import Mapping
from math import prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD = (1 << 64) - 1


def dnabert(config: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of the network that *config*, in Hugging Face's form, describes."""
    return {name: _tensor(name, shape) for name, shape in _shapes(config).items()}


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
        **_affine("embeddings.LayerNorm", width),
        **_affine("pooler.dense", width, width),
    }
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        shapes |= {
            **_affine(f"{layer}.attention.self.Wqkv", 3 * width, width),
            **_affine(f"{layer}.attention.output.dense", width, width),
            **_affine(f"{layer}.attention.output.LayerNorm", width),
            f"{layer}.mlp.gated_layers.weight": (2 * inner, width),
            **_affine(f"{layer}.mlp.wo", width, inner),
            **_affine(f"{layer}.mlp.layernorm", width),
        }
    return shapes


def _affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _tensor(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    offset, scale = _range(name, shape)
    return (offset + scale * _uniform(name, prod(shape))).astype(np.float32).reshape(shape)


def _range(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return the centre and the half range of a tensor's values, as large as in a trained network."""
    if "layernorm" in name.lower():
        return (1.0, 0.3) if name.endswith("weight") else (0.0, 0.2)
    if "embeddings" in name:
        return (0.0, 0.3) if "token_type" in name else (0.0, 1.0)
    if name.endswith("bias"):
        return 0.0, 0.1
    gain = 1.2 if "Wqkv" in name else 1.5 if ".wo." in name else 1.0
    return 0.0, gain * sqrt(3 / shape[1])


def _uniform(name: str, count: int) -> NDArray[np.float64]:
    """Return *count* numbers in [-1, 1): the top 24 bits of splitmix64, seeded by the name."""
    seed = 0xCBF29CE484222325  # FNV-1a
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & _WORD
    with np.errstate(over="ignore"):
        z = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 2**23 - 1
