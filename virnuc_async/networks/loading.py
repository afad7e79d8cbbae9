"""Load weights from a safetensors file directly into a network, one tensor at a time."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from ctypes import CDLL
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from virnuc_async.errors import BadBundle, UnsuitablePrecision
from virnuc_async.fileio import stat_signature

Network = TypeVar("Network", bound=nn.Module)


class _Packable(Protocol):
    def prepack(self) -> None: ...


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
    packed: bool = False,
) -> Network:
    """
    Return *network*, built on the meta device, with the tensors of *path*, ready for inference.

    *before_each* is called before each tensor; an error that it raises ends the loading. With *packed*,
    each layer is packed for the CPU before the next one is read.

    The file is memory-mapped: on the CPU, in the file's own dtype and not packed the weights are its pages.

    Raises:
        BadBundle: *path* is not a safetensors file, or a tensor is missing, unknown or of another shape
        UnsuitablePrecision: a weight is too large for *dtype*
    """
    names = set(network.state_dict())
    try:
        signature = stat_signature(str(path))
        for prefix, part in _parts(network):
            # Opened anew for each part: closing returns the mapped pages of the tensors that were copied.
            with safe_open(path, framework="pt") as file:
                _check_names(path, set(file.keys()), names)
                weights = {}
                for name, tensor in _read(path, file, prefix, part, before_each):
                    _check_range(path, prefix + name, tensor, dtype)
                    weights[name] = tensor.to(
                        device, dtype if tensor.is_floating_point() else None, copy=packed
                    )
            part.load_state_dict(weights, strict=False, assign=True)
            del weights
            part.requires_grad_(False)
            if packed:
                cast(_Packable, part).prepack()
                _return_freed_memory()
        if stat_signature(str(path)) != signature:
            raise BadBundle(str(path), "it was changed while it was read")
    except (OSError, SafetensorError) as error:
        raise BadBundle(str(path), getattr(error, "strerror", None) or str(error)) from error
    return network.eval()


def _parts(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each layer with the prefix of its tensors' names, then *network* for those of no layer."""
    for number, layer in enumerate(cast(Iterable[nn.Module], getattr(network, "layers", ()))):
        yield f"layers.{number}.", layer
    yield "", network


def _read(
    path: Path, file: Any, prefix: str, part: nn.Module, before_each: Callable[[], None]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that *part* still needs, and their names in it."""
    for name, like in part.state_dict().items():
        if not like.is_meta:
            continue
        before_each()
        tensor = file.get_tensor(prefix + name)
        if tensor.shape != like.shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(like.shape)}"
            raise BadBundle(str(path), f"{prefix}{name} has the shape {shapes}")
        if tensor.is_floating_point() != like.is_floating_point():
            raise BadBundle(str(path), f"{prefix}{name} holds {tensor.dtype}")
        yield name, tensor


def _return_freed_memory() -> None:
    # Small tensors that stay lie among large ones that were freed, which glibc then keeps: a layer's norms
    # and biases cost as much as a matrix. Other C libraries have no such function.
    with suppress(AttributeError):
        CDLL(None).malloc_trim(0)


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
