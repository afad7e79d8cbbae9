"""Record what Triton would launch, in place of launching it: no driver, no GPU, nothing compiled."""

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, MockTensor, create_function_from_signature


@dataclass(frozen=True, slots=True)
class TritonLaunch:
    """A launch: the kernel's name, the tensors that it loads from and stores to, and its compiled variant."""

    name: str
    loaded: tuple[Tensor, ...]
    stored: tuple[Tensor, ...]
    variant: str  # launches of a kernel with equal variants share one compilation


@contextmanager
def replaced_launches(record: Callable[[TritonLaunch], None]) -> Iterator[None]:
    """Within the block, a launch of a kernel only calls *record*; not for use in several threads."""
    launch = JITFunction.run

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        record(_launch(kernel, args, kwargs))

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = launch


def _launch(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TritonLaunch:
    own = {name: value for name, value in kwargs.items() if name in kernel.signature.parameters}
    bound = kernel.signature.bind(*args, **own).arguments
    passed = {name: value for name, value in bound.items() if isinstance(value, Tensor)}
    pointers = _Pointers(bound)
    pointers.visit(ast.parse(kernel.src))
    # What only functions that the kernel calls see is taken as loaded.
    loaded = [passed[name] for name in passed if name in pointers.loaded or name not in pointers.stored]
    stored = [passed[name] for name in passed if name in pointers.stored]
    return TritonLaunch(kernel.__name__, tuple(loaded), tuple(stored), _variant(kernel, args, kwargs))


def _variant(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return what Triton's cache of compiled kernels is looked up by, on an H100."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    specialize = create_function_from_signature(kernel.signature, kernel.params, backend)
    addressed = [_address(value) for value in args]
    _, specialization, options = specialize(*addressed, **{key: _address(v) for key, v in kwargs.items()})
    return str((specialization, options))


def _address(value: Any) -> Any:
    return MockTensor(value.dtype, value.shape) if isinstance(value, Tensor) else value


class _Pointers(ast.NodeVisitor):
    """The parameters of a kernel whose memory it loads and stores, by the text of its function."""

    def __init__(self, parameters: Any) -> None:
        self._sources = {name: {name} for name in parameters}
        self.loaded: set[str] = set()
        self.stored: set[str] = set()

    def visit_Assign(self, node: ast.Assign) -> None:
        """Follow an address that is given a name."""
        self.generic_visit(node)
        for target in node.targets:
            for name in (part.id for part in ast.walk(target) if isinstance(part, ast.Name)):
                self._sources[name] = self._of(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Follow an address that is moved."""
        self.generic_visit(node)
        if isinstance(node.target, ast.Name):
            self._sources[node.target.id] = self._of(node.target) | self._of(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        """Note a load or a store."""
        self.generic_visit(node)
        if _called(node) == "load":
            self.loaded |= self._of(node.args[0])
        if _called(node) == "store":
            self.stored |= self._of(node.args[0])

    def _of(self, node: ast.AST) -> set[str]:
        """Return the parameters that an address is computed from; a loaded number is none."""
        if isinstance(node, ast.Name):
            return self._sources.get(node.id, set())
        if isinstance(node, ast.Call) and _called(node) == "load":
            return set()
        return {name for child in ast.iter_child_nodes(node) for name in self._of(child)}


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else ""
