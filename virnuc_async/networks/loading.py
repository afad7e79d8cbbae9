"""Load weights from a safetensors file directly into a network, one tensor at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from virnuc_async.errors import BadBundle, UnsuitablePrecision

Network = TypeVar("Network", bound=nn.Module)


def embedding(count: int, width: int) -> nn.Embedding:
    """Return an embedding table of *count* rows of zeros, to be filled by :func:`load`."""
    # torch's own constructor draws random numbers, for which the meta device imports the compiler: 1 s.
    return nn.Embedding.from_pretrained(torch.zeros(count, width), freeze=False)  # type: ignore[no-any-return, no-untyped-call]


def load(
    network: Network,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    before_each: Callable[[], None] = lambda: None,
) -> Network:
    """
    Return *network*, built on the meta device, with the tensors of *path*, ready for inference.

    *before_each* is called before each tensor; an error that it raises ends the loading.

    The file is memory-mapped: on the CPU and in the file's own dtype the weights are its pages.

    Raises:
        BadBundle: *path* is not a safetensors file, or a tensor is missing, unknown or of another shape
        UnsuitablePrecision: a weight is too large for *dtype*
    """
    expected = network.state_dict()
    weights = {}
    try:
        with safe_open(path, framework="pt") as file:
            _check_names(path, set(file.keys()), set(expected))
            for name, like in expected.items():
                before_each()
                tensor = file.get_tensor(name)
                if tensor.shape != like.shape:
                    shapes = f"{tuple(tensor.shape)}, not {tuple(like.shape)}"
                    raise BadBundle(str(path), f"{name} has the shape {shapes}")
                if tensor.is_floating_point() != like.is_floating_point():
                    raise BadBundle(str(path), f"{name} holds {tensor.dtype}")
                _check_range(path, name, tensor, dtype)
                weights[name] = tensor.to(device, dtype if tensor.is_floating_point() else None)
    except (OSError, SafetensorError) as error:
        raise BadBundle(str(path), str(error)) from error
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(False).eval()


def _check_range(path: Path, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    # FP16 alone has a smaller range than the types of files; of the largest it would make an infinity.
    if dtype != torch.float16 or not tensor.is_floating_point() or tensor.dtype == torch.float16:
        return
    largest = max(abs(float(end)) for end in tensor.aminmax())
    if torch.finfo(dtype).max < largest < torch.inf:
        raise UnsuitablePrecision("FP16", f"{name} in {path} has the number {largest:.6g}", "fp32")


def _check_names(path: Path, found: set[str], expected: set[str]) -> None:
    for names, word in ((expected - found, "missing"), (found - expected, "unknown")):
        if names:
            some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise BadBundle(str(path), f"{len(names)} tensors are {word}: {some}")
