"""Record what Triton would launch, in place of launching it: no driver, no GPU, nothing compiled."""

import ast
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction, MockTensor, create_function_from_signature

_TARGET = GPUTarget("cuda", 90, 32)  # an H100


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

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        record(_launch(kernel, args, kwargs))

    kinds = (JITFunction, InterpretedFunction)
    launches = [kind.run for kind in kinds]
    for kind in kinds:
        kind.run = run
    try:
        yield
    finally:
        for kind, launch in zip(kinds, launches, strict=True):
            kind.run = launch


def _launch(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TritonLaunch:
    # With the interpreter a kernel is not compiled: what it would be compiled from is its function.
    compiled = JITFunction(kernel.fn) if isinstance(kernel, InterpretedFunction) else kernel
    parameters = compiled.signature.parameters
    own = {name: value for name, value in kwargs.items() if name in parameters}
    given = compiled.signature.bind(*args, **own).arguments
    pointers = _Pointers(given)
    pointers.visit(ast.parse(compiled.src))
    # What only functions that the kernel calls see is taken as loaded.
    loaded = [
        value for name, value in given.items() if name in pointers.loaded or name not in pointers.stored
    ]
    stored = [value for name, value in given.items() if name in pointers.stored]
    return TritonLaunch(
        compiled.__name__, _tensors(loaded), _tensors(stored), _variant(compiled, args, kwargs)
    )


def _tensors(tree: object) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _variant(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return what Triton's cache of compiled kernels is looked up by."""
    specialize = create_function_from_signature(kernel.signature, kernel.params, make_backend(_TARGET))
    args, kwargs = tree_map(_address, (args, kwargs))
    _, specialization, options = specialize(*args, **kwargs)
    return str((specialization, options))


class _Address(MockTensor):
    """A tensor's type and alignment, for which it needs no memory."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor.dtype)
        self._offset = tensor.storage_offset() * tensor.element_size()

    def data_ptr(self) -> int:
        """Return the address, if the memory of the tensor began at 0."""
        return self._offset


def _address(value: Any) -> Any:
    return _Address(value) if isinstance(value, Tensor) else value


class _Pointers(ast.NodeVisitor):
    """The parameters of a kernel whose memory it loads and stores, by the text of its function."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self._sources = {name: {name} for name in given}
        self.loaded: set[str] = set()
        self.stored: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        """Follow only the branch of a constant."""
        if isinstance(node.test, ast.Name) and isinstance(self._given.get(node.test.id), bool):
            branch = node.body if self._given[node.test.id] else node.orelse
            for statement in branch:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Follow an address that is given a name."""
        self.generic_visit(node)
        (target,) = node.targets
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            sources = [self._of(value) for value in node.value.elts]
            for part, source in zip(target.elts, sources, strict=True):
                self._name(part, source)
        else:
            self._name(target, self._of(node.value))

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Follow an address that is moved."""
        self.generic_visit(node)
        self._name(node.target, self._of(node.target) | self._of(node.value))

    def visit_Call(self, node: ast.Call) -> None:
        """Note a load or a store."""
        self.generic_visit(node)
        if _called(node) == "load":
            self.loaded |= self._of(node.args[0])
        if _called(node) == "store":
            self.stored |= self._of(node.args[0])

    def _name(self, target: ast.AST, source: set[str]) -> None:
        for part in ast.walk(target):
            if isinstance(part, ast.Name):
                self._sources[part.id] = source

    def _of(self, node: ast.AST) -> set[str]:
        """Return the parameters that an address is computed from; a loaded number is none."""
        if isinstance(node, ast.Name):
            return self._sources.get(node.id, set())
        if isinstance(node, ast.Call) and _called(node) == "load":
            return set()
        return {name for child in ast.iter_child_nodes(node) for name in self._of(child)}


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else ""
