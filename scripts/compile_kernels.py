"""
Compile every GPU kernel for every architecture, without a GPU: registers, spilled bytes, shared memory.

The functions that launch the kernels are called with tensors on the CPU, in batches of nine sizes. Triton
compiles as it would on the GPU, because its driver is replaced by one that keeps the binary and runs
nothing. What this shows comes from the compiler: that a kernel compiles, once for all sizes, fits the
architecture's shared memory, and keeps its numbers in registers. It says nothing about speed.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
import triton
from measured import facts, table
from torch import Tensor, nn
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from virnuc_async.networks.dnabert_s import slopes
from virnuc_async.networks.kernels.add_norm import add_norm, normed_sum
from virnuc_async.networks.kernels.attention import Blocks, attention
from virnuc_async.networks.kernels.availability import kernel_errors
from virnuc_async.networks.kernels.gated_gelu import gated_gelu
from virnuc_async.networks.kernels.gelu import gelu
from virnuc_async.networks.kernels.quantize import quantize, quantized_add_norm, quantized_gelu
from virnuc_async.networks.kernels.rotary import rotate
from virnuc_async.networks.packing import dummy_batch, pack
from virnuc_async.networks.rotary import rotary_angles

# Bytes of shared memory that a block may have, by compute capability (CUDA C++ Programming Guide).
SHARED_LIMITS = {
    (7, 5): 64 << 10,
    (8, 0): 163 << 10,
    (8, 9): 99 << 10,
    (9, 0): 227 << 10,
    (10, 0): 227 << 10,
    (12, 0): 99 << 10,
}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# ESM-2 of every size: heads, and the numbers of each. Those of DNABERT-S are 12 of 64.
HEADS = {
    "8M": (20, 16),
    "35M": (20, 24),
    "150M": (20, 32),
    "650M": (20, 64),
    "3B": (40, 64),
    "15B": (40, 128),
}
SIZES = (1, 2, 15, 16, 17, 64, 100, 512, 1000)  # tokens of a batch: one, odd, aligned to 16, many

Capability = tuple[int, int]
FP8_CAPABILITY = (8, 9)  # the first that has FP8, with which the residuals are in BF16
# BF16 begins with capability 8.0; an earlier GPU runs in FP16 or FP32.
TARGETS = [(each, name) for each in SHARED_LIMITS for name in TYPES if name != "bf16" or each >= (8, 0)]


@dataclass(frozen=True, slots=True)
class Launch:
    """A call that launches one kernel, once, for a batch of some number of tokens."""

    function: Callable[..., object]  # of a module of virnuc_async/networks/kernels
    network: str
    run: Callable[[int], object]

    @property
    def module(self) -> str:
        return self.function.__module__.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Binary:
    """What the compiler made of a launch."""

    registers: int  # of a thread; 255 at most
    spilled: int  # bytes of a thread that are in memory instead
    shared: int  # bytes of a block


@dataclass(frozen=True, slots=True)
class Compiled:
    """A launch on one architecture: its binary, or why there is none."""

    module: str
    kernel: str
    network: str
    type: str
    capability: str
    binary: Binary | None
    error: str | None = None


class AbsentGpu:
    """Triton's driver of a GPU that is not there: it keeps the binaries that would be loaded."""

    def __init__(self, capability: Capability) -> None:
        self._architecture = 10 * capability[0] + capability[1]
        self._shared_limit = SHARED_LIMITS[capability]
        self.utils = self
        self.loaded: list[tuple[bytes, int]] = []

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._architecture, 32)

    def get_current_device(self) -> int:
        return self._architecture  # Triton keeps the binaries of each device apart

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self._shared_limit}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, ...]:
        self.loaded.append((binary, shared))
        return 0, 0, 0, 0, 1024  # module, function, registers, spills, threads of a block

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *arguments: None


def launches(dtype: torch.dtype, capability: Capability) -> Iterator[Launch]:
    """Yield every launch of the published networks with numbers of *dtype*."""
    blocks = Blocks.of(dtype, capability)
    for network, (heads, width) in HEADS.items():
        wide = heads * width
        yield Launch(attention, network, partial(_attend, (heads, width), None, blocks, dtype))
        yield Launch(rotate, network, partial(_rotate, heads, width, dtype))
        yield Launch(add_norm, network, partial(_sum, add_norm, wide, dtype))
        yield Launch(gelu, network, partial(_row_wise, gelu, 4 * wide, dtype))
        if dtype == torch.bfloat16 and capability >= FP8_CAPABILITY:
            yield Launch(quantize, network, partial(_row_wise, quantize, wide, dtype))
            yield Launch(quantized_gelu, network, partial(_row_wise, quantized_gelu, 4 * wide, dtype))
            yield Launch(quantized_add_norm, network, partial(_sum, quantized_add_norm, wide, dtype))
    alibi = torch.tensor(slopes(12))
    yield Launch(attention, "DNABERT-S", partial(_attend, (12, 64), alibi, blocks, dtype))
    yield Launch(normed_sum, "DNABERT-S", partial(_sum, normed_sum, 768, dtype))
    yield Launch(gated_gelu, "DNABERT-S", partial(_row_wise, gated_gelu, 2 * 3072, dtype))


def _attend(
    shape: tuple[int, int], bias: Tensor | None, blocks: Blocks, dtype: torch.dtype, tokens: int
) -> object:
    packed = pack(dummy_batch(tokens, *[3] * (tokens % 5)))
    qkv = torch.empty(len(packed.ids), 3, *shape, dtype=dtype)
    return attention(packed, bias, blocks)(*qkv.unbind(1))


def _rotate(heads: int, width: int, dtype: torch.dtype, tokens: int) -> object:
    qkv = torch.empty(tokens, 3, heads, width, dtype=dtype)
    return rotate(qkv, rotary_angles(torch.arange(tokens), width))


def _row_wise(function: Callable[..., object], width: int, dtype: torch.dtype, tokens: int) -> object:
    return function(torch.empty(tokens, width, dtype=dtype))


def _sum(function: Callable[..., object], width: int, dtype: torch.dtype, tokens: int) -> object:
    norm = nn.LayerNorm(width, dtype=dtype).requires_grad_(False)
    return function(*(torch.empty(tokens, width, dtype=dtype) for _ in range(2)), norm)


def compile_launch(launch: Launch, type_name: str, capability: Capability) -> Compiled:
    """Compile *launch* as a GPU of *capability* would, with batches of all SIZES."""
    gpu = AbsentGpu(capability)
    driver.set_active(gpu)
    names = (launch.module, launch.function.__name__, launch.network, type_name)
    result = partial(Compiled, *names, "{}.{}".format(*capability))
    try:
        for size in SIZES:
            launch.run(size)
    except kernel_errors() as error:
        return result(None, " ".join(str(error).split())[:300] or type(error).__name__)
    if len(gpu.loaded) != 1:
        return result(None, f"compiled {len(gpu.loaded)} times for {len(SIZES)} sizes of a batch")
    return result(_usage(*gpu.loaded[0]))


def _usage(binary: bytes, shared: int) -> Binary:
    """Return what *binary* takes, as NVIDIA's own tool reads it."""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", printed)
    assert found, printed
    return Binary(int(found[1]), int(found[2]), shared)


def compile_all(arguments: argparse.Namespace) -> Iterator[Compiled]:
    """Compile each launch that *arguments* select."""
    for capability, type_name in arguments.targets:
        for launch in launches(TYPES[type_name], capability):
            if _is_selected(launch, arguments):
                yield compile_launch(launch, type_name, capability)


def _is_selected(launch: Launch, arguments: argparse.Namespace) -> bool:
    wanted = (arguments.modules or [launch.module], arguments.networks or [launch.network])
    return launch.module in wanted[0] and launch.network in wanted[1]


def summary(compiled: Sequence[Compiled]) -> str:
    """Format the most registers, and the spilled bytes, of each kernel, type and capability."""
    cells: dict[tuple[str, str], dict[str, list[Compiled]]] = {}
    for row in compiled:
        cells.setdefault((row.kernel, row.type), {}).setdefault(row.capability, []).append(row)
    capabilities = dict.fromkeys(row.capability for row in compiled)
    return table(
        [
            {"kernel": kernel, "type": type_name, **{name: _cell(of.get(name, [])) for name in capabilities}}
            for (kernel, type_name), of in cells.items()
        ]
    )


def _cell(rows: Sequence[Compiled]) -> str:
    if not rows:
        return "-"
    binaries = [row.binary for row in rows if row.binary]
    if len(binaries) < len(rows):
        return "error"
    registers, spilled = (max(getattr(b, name) for b in binaries) for name in ("registers", "spilled"))
    return f"{registers}, {spilled} B spilled" if spilled else str(registers)


def report(compiled: Sequence[Compiled]) -> str:
    """Return what was compiled as JSON, each launch on a line."""
    head = json.dumps(facts(sys.argv[1:]), indent=2).removesuffix("\n}")
    rows = ",\n".join("    " + json.dumps(asdict(row)) for row in compiled)
    return f'{head},\n  "compiled": [\n{rows}\n  ]\n}}\n'


def _target(text: str) -> tuple[Capability, str]:
    """Parse a target such as 9.0:bf16."""
    capability, _, type_name = text.partition(":")
    major, minor = map(int, capability.split("."))
    if ((major, minor), type_name) not in TARGETS:
        raise ValueError(text)
    return (major, minor), type_name


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--targets", nargs="+", type=_target, default=TARGETS, help="such as 7.5:fp16 9.0:bf16"
    )
    parser.add_argument("--modules", nargs="+", help="of virnuc_async/networks/kernels")
    parser.add_argument("--networks", nargs="+", choices=[*HEADS, "DNABERT-S"])
    parser.add_argument("--output", type=Path, help="a JSON file")
    return parser


def main() -> int:
    arguments = parser().parse_args()
    compiled = []
    for row in compile_all(arguments):
        compiled.append(row)
        print(row.capability, row.type, row.kernel, row.network, row.error or row.binary, file=sys.stderr)
    print(summary(compiled) if compiled else "nothing selected")
    if arguments.output:
        arguments.output.write_text(report(compiled), "utf-8")
    return int(any(row.error for row in compiled) or not compiled)


if __name__ == "__main__":
    sys.exit(main())
