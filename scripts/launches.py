"""
Count what a layer of each encoder launches on a GPU, and what its elementwise kernels read and write.

Nothing is computed: the networks run on torch's meta device, or on fake tensors, and Triton's kernels are
recorded where they would be launched. Neither a GPU nor a driver is needed.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton_launches import TritonLaunch, replaced_launches

from virnuc_async.networks import fp8
from virnuc_async.networks.attention import memory_efficient, sdpa_by_length, triton_kernel, varlen
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.kernels import add_norm, gated_gelu, gelu, quantize, rotary
from virnuc_async.networks.linear import use_operations
from virnuc_async.networks.operations import Operations
from virnuc_async.networks.packing import Packed, dummy_batch, pack
from virnuc_async.networks.shapes import NucleotideShape, ProteinShape

TOKENS = 16_384
ENCODERS = ("ESM-2 3B", "DNABERT-S")
DTYPES = {
    "BF16": torch.bfloat16,
    "FP16": torch.float16,
    "FP32": torch.float32,
    "FP8": torch.bfloat16,  # between its products
}
WAYS = ("plain", "kernels")
# DNABERT-S has no products in FP8.
CASES = [
    (name, precision, way)
    for name, precision, way in product(ENCODERS, DTYPES, WAYS)
    if (name, precision) != ("DNABERT-S", "FP8")
]
_ROW = 168  # tokens of an ORF of a whole fragment of 500 bases
_KERNELS = Operations(gelu.gelu, gated_gelu.gated_gelu, add_norm.add_norm, add_norm.normed_sum, rotary.rotate)
_FP8_KERNELS = fp8.Operations(quantize.quantize, quantize.quantized_gelu, quantize.quantized_add_norm)

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_scaled_mm"}
_ATTENTION = {"scaled_dot_product_attention", "_efficient_attention_forward", "_varlen_attn"}
# What launches nothing, beside what torch marks as a view.
_FREE = {"_unsafe_view", "detach", "lift_fresh", "empty", "empty_strided", "empty_like", "new_empty"}


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel: its name, its kind, and the bytes that it reads and writes."""

    name: str
    kind: str  # product, attention or elementwise
    bytes: int
    variant: str = ""  # of a Triton kernel: launches of equal variants share a compilation


class HostWaits(Exception):
    """A copy between host and device that the host would wait for."""


class Launches(TorchDispatchMode):
    """Every kernel that torch would launch in the block is appended to *found*."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Launch] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the import of torch's compiler takes 2 s

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call *operation*, or those that it consists of, and record what is launched."""
        kwargs = kwargs or {}
        if operation.namespace == "prim":
            return operation(*args, **kwargs)
        name = operation._schema.name.split("::")[1]
        if name not in _ATTENTION and operation._can_decompose():
            with self:
                return operation.decompose(*args, **kwargs)
        _check_no_wait(name, args, kwargs)
        result = operation(*args, **kwargs)
        if not operation.is_view and name not in _FREE:
            read, written = _read(name, list(tensors((args, kwargs)))), list(tensors(result))
            self.found.append(Launch(name, _kind(name), sum(map(_bytes, read + written))))
        return result


@dataclass(frozen=True, slots=True)
class Cost:
    """The launches of a layer, of each kind, and the bytes that the elementwise ones read and write."""

    products: int
    attention: int
    elementwise: int
    bytes: int

    @classmethod
    def of(cls, launches: Iterable[Launch]) -> "Cost":
        """Return the sum of *launches*."""
        found = list(launches)
        count = [sum(one.kind == kind for one in found) for kind in ("product", "attention", "elementwise")]
        return cls(*count, sum(one.bytes for one in found if one.kind == "elementwise"))

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(
            self.products - other.products,
            self.attention - other.attention,
            self.elementwise - other.elementwise,
            self.bytes - other.bytes,
        )

    @property
    def launches(self) -> int:
        """All launches."""
        return self.products + self.attention + self.elementwise


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within the block, every kernel that torch or Triton would launch is appended to the list."""
    with Launches() as torch_launches:
        found = torch_launches.found
        with replaced_launches(lambda launch: found.append(_of_triton(launch))):
            yield found


def _of_triton(launch: TritonLaunch) -> Launch:
    size = sum(_bytes(_touched(launch.name, tensor)) for tensor in launch.loaded + launch.stored)
    return Launch(launch.name, _kind(launch.name), size, launch.variant)


def _touched(kernel: str, tensor: Tensor) -> Tensor:
    """Return what a kernel uses of the *tensor* that it is given."""
    is_product = kernel == "_rotate" and tensor.dim() == 4  # T 3 H D
    return tensor[:, :2] if is_product else tensor  # not the values


def tensors(tree: object) -> Iterator[Tensor]:
    """Yield the tensors of nested arguments or results."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _bytes(tensor: Tensor) -> int:
    """Return the size of *tensor*; what is repeated by broadcasting is read once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    count = 1
    for size, stride in sizes:
        count *= size if stride else 1
    return count * tensor.element_size()


def _kind(name: str) -> str:
    if name in _PRODUCTS:
        return "product"
    return "attention" if name in _ATTENTION or "attend" in name or "attention" in name else "elementwise"


def _read(name: str, given: list[Tensor]) -> list[Tensor]:
    """Return those of the *given* tensors whose numbers the operation needs."""
    if name.startswith("new_") or name.endswith("_like"):
        return []
    return given[1:] if name in ("copy_", "fill_", "zero_") else given


def _check_no_wait(name: str, args: Any, kwargs: Any) -> None:
    if name == "_to_copy":
        devices, is_queued = [args[0].device, kwargs.get("device")], kwargs.get("non_blocking")
    elif name == "copy_":
        devices, is_queued = [args[1].device, args[0].device], args[2:] == (True,)
    else:
        return
    source, target = (torch.device(device or args[0].device).type for device in devices)
    if source != target and not is_queued:
        raise HostWaits(f"{name} from {source} to {target}")


def batch(device: str, lengths: Sequence[int]) -> Packed:
    """Return a batch of rows of *lengths* tokens on *device*, where it has no numbers."""
    packed = pack(dummy_batch(*lengths))
    return Packed(*(torch.empty_like(part, device=device) for part in packed.tensors), packed.runs)


def uniform(tokens: int) -> list[int]:
    """Return the lengths of rows of *tokens* together, most of them as long as a fragment's whole ORF."""
    rows, rest = divmod(tokens, _ROW)
    return [_ROW] * rows + [rest] * (rest > 0)


def encoder(name: str, layers: int, precision: str) -> DnabertS | Esm2:
    """Return the encoder called *name* in its published width, with *layers*, on torch's meta device."""
    with torch.device("meta"):
        if name == "DNABERT-S":
            network: DnabertS | Esm2 = DnabertS(NucleotideShape(layers, 768, 12, 3072, 4096))
        else:
            network = Esm2(ProteinShape(layers, 2560, 40))
    return network.to(DTYPES[precision]).requires_grad_(False).eval()


def prepare(network: DnabertS | Esm2, precision: str, way: str) -> None:
    """Let *network* compute as on a GPU where every kernel of the *way* can be used."""
    is_esm2, is_plain = isinstance(network, Esm2), way == "plain"
    if is_esm2 and precision != "FP32":
        network.attention = varlen
    elif is_plain:  # torch's own kernels take no slopes, and FlashAttention no FP32
        network.attention = memory_efficient if is_esm2 else sdpa_by_length
    else:
        network.attention = triton_kernel
    if not is_plain:
        use_operations(network, _KERNELS)
        if is_esm2:
            for layer in network.layers:
                layer.rotate = _KERNELS.rotate
    if precision == "FP8":
        fp8.use_fp8(network, fp8.PLAIN if is_plain else _FP8_KERNELS)


def cost_of_layer(name: str, precision: str, way: str) -> Cost:
    """Return what one more layer of the encoder called *name* costs, in a batch of 16,384 tokens."""
    costs = []
    for layers in (1, 2):
        network = encoder(name, layers, precision)
        prepare(network, precision, way)
        with torch.inference_mode(), recorded() as found:
            network.embeddings(batch("meta", uniform(TOKENS)))
        costs.append(Cost.of(found))
    return costs[1] - costs[0]


def rows() -> Iterator[dict[str, str | int]]:
    """Yield the cost of a layer of each encoder, in each precision and way."""
    for name, precision, way in CASES:
        cost = cost_of_layer(name, precision, way)
        yield {
            "encoder": name,
            "precision": precision,
            "way": way,
            "launches": cost.launches,
            **asdict(cost),
        }


def table(found: Iterable[Mapping[str, Any]]) -> str:
    """Return *found* as the table of docs/explanation/performance.md."""
    lines = ["| encoder | precision | way | launches | products | attention | elementwise | GB |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in found:
        *cells, size = row.values()
        lines.append("| " + " | ".join([*map(str, cells), f"{size / 1e9:.2f}"]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Count, print the table, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="write the rows to this JSON file")
    output = parser.parse_args().output
    found = list(rows())
    print(table(found), end="")
    if output:
        output.write_text(json.dumps({"tokens": TOKENS, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
