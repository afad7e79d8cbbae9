"""
Kinds of devices: what they are called, and what a run computes with on them. Imports no torch.

Devices of one kind compute identical results, to the last bit.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple, Self

from virnuc_async.networks.shapes import Shapes
from virnuc_async.settings import Precision
from virnuc_async.text import plural

from .memory_account import account

BASE_BUDGET = {Precision.FP32: 2048, Precision.BF16: 3072, Precision.FP16: 3072, Precision.FP8: 3072}

_MAX_BUDGET = 16_384  # with more tokens a GPU is not faster, and a failed batch costs more
_BUDGET_STEP = 1024
_CPU = re.compile(r"CPU \([^()]+\)")
_GPU = re.compile(r"(.*\S) \(capability (\d+)\.(\d+)(?:, (\d+) multiprocessors?)?\)")

Capability = tuple[int, int]  # of a GPU, CUDA's


class GpuKind(NamedTuple):
    """A kind of GPU, or of a slice of one."""

    model: str  # as torch has it
    capability: Capability
    multiprocessors: int = 0  # 0: not known

    def __str__(self) -> str:
        major, minor = self.capability
        cores = f", {plural(self.multiprocessors, 'multiprocessor')}" if self.multiprocessors else ""
        return f"{self.model} (capability {major}.{minor}{cores})"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the kind that *text* is; None if it is none."""
        found = _GPU.fullmatch(text)
        if found is None:
            return None
        model, major, minor, cores = found.groups()
        return cls(model, (int(major), int(minor)), int(cores or 0))


def is_cpu_kind(text: str) -> bool:
    """Return whether *text* is a kind of CPU."""
    return _CPU.fullmatch(text) is not None


def native_precision(capability: Capability | None) -> Precision:
    """Return the precision that a GPU computes fastest in: BF16, FP16, or FP32 like a CPU, which has None."""
    known = capability or (0, 0)
    if known >= (8, 0):
        return Precision.BF16
    return Precision.FP16 if known >= (7, 0) else Precision.FP32


def has_fp8(capability: Capability | None) -> bool:
    """Return whether a GPU multiplies in FP8: from 8.9 on."""
    return capability is not None and capability >= (8, 9)


def budget_of(fitting: Iterable[int], precision: Precision) -> int:
    """Return the tokens of a batch where *fitting* are what each device has room for, 0 without any."""
    base = BASE_BUDGET[precision]
    # A card without room for the model does not decide for the others: it fails when it is loaded.
    smallest = min(filter(None, fitting), default=base)
    return max(base, min(smallest, _MAX_BUDGET) // _BUDGET_STEP * _BUDGET_STEP)


def budget_within(memory: int | None, precision: Precision, shapes: Shapes) -> int:
    """Return the tokens of a batch on a GPU with so many bytes of free *memory*; None: on a CPU."""
    # A CPU is not faster with larger batches.
    fitting = () if memory is None else (account(shapes, precision).tokens_within(memory),)
    return budget_of(fitting, precision)
