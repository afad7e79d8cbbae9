"""Which kernels are used, and what is said about those that are not."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from subprocess import CalledProcessError
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
import triton
from torch import Tensor

from virnuc_async.networks import fp8
from virnuc_async.networks.kernels import add_norm, gated_gelu, gelu, rotary
from virnuc_async.networks.kernels.selection import Missing, first_launches, select, warning_of
from virnuc_async.networks.operations import PLAIN, Operations
from virnuc_async.networks.operations import gated_gelu as plain_gated_gelu

SHAPES = {"rotate": (3, 8), "add_norm": (24,), "normed_sum": (24,), "gelu": (96,), "gated_gelu": (40,)}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RUN_GOES_ON = "the run is slower, but right, without the kernels for "


def selected(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Operations, str | None]:
    with first_launches():
        operations, missing = select(SHAPES, device, dtype)
    return operations, warning_of(missing)


def raising(error: Exception) -> Callable[..., NoReturn]:
    def launch(*_: Any) -> NoReturn:
        raise error

    return launch


def wrong(x: Tensor) -> Tensor:
    return x


def just_wrong(x: Tensor) -> Tensor:
    found = gelu.gelu_twin(x).to(x.dtype)
    found[1, -1] += 0.05
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_that_give_their_twins_answer_are_used(device: torch.device, dtype: torch.dtype) -> None:
    kernels = Operations(
        gelu=gelu.gelu,
        gated_gelu=gated_gelu.gated_gelu,
        add_norm=add_norm.add_norm,
        normed_sum=add_norm.normed_sum,
        rotate=rotary.rotate,
    )
    assert selected(device, dtype) == (kernels, None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", [wrong, just_wrong])
def test_a_kernel_with_a_wrong_answer_is_not_used(
    device: torch.device, dtype: torch.dtype, kernel: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gelu, "gelu", kernel)
    operations, warning = selected(device, dtype)
    assert operations.gelu is PLAIN.gelu
    assert operations.gated_gelu is gated_gelu.gated_gelu
    assert warning == f"{RUN_GOES_ON}GELU: wrong answer on a sample"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("Failed to find C compiler. Please\nspecify"),
            "Failed to find C compiler. Please specify",
        ),
        (CalledProcessError(1, "gcc"), "Command 'gcc' returned non-zero exit status 1."),
        (AssertionError("libcuda.so cannot found!\n"), "libcuda.so cannot found!"),
        (PermissionError(13, "Permission denied", "/c"), "[Errno 13] Permission denied: '/c'"),
        (
            triton.runtime.OutOfResources(99, 9, "shared memory"),
            "out of resource: shared memory, Required: 99",
        ),
        (
            RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
            "device kernel image is invalid",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_kernel_that_cannot_be_compiled_or_launched_is_not_used(
    device: torch.device, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((gelu, "gelu"), (add_norm, "add_norm"), (add_norm, "normed_sum")):
        monkeypatch.setattr(module, name, raising(error))
    operations, warning = selected(device)
    assert (operations.gelu, operations.add_norm) == (PLAIN.gelu, PLAIN.add_norm)
    assert operations.rotate is rotary.rotate
    assert warning is not None
    assert warning.startswith(f"{RUN_GOES_ON}residual sum and norm, GELU: ")
    assert said in warning
    assert "\n" not in warning


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    ],
    ids=["memory", "failure"],
)
def test_a_device_without_memory_or_that_fails_is_no_reason_to_go_on(
    device: torch.device, error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotary, "rotate", raising(error))
    with pytest.raises(type(error)):
        selected(device)
    assert selected_after(monkeypatch, device) is not None


def selected_after(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> Operations:
    """Return what is selected when nothing is wrong any more: the lock is free again."""
    monkeypatch.undo()
    return selected(device)[0]


def test_tritons_lack_of_memory_is_torchs(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gelu, "gelu", raising(RuntimeError("Triton Error [CUDA]: out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        selected(device)


def test_without_triton_the_operations_are_plain(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    for module in (gelu, gated_gelu, add_norm, rotary):
        monkeypatch.delitem(sys.modules, module.__name__)
    operations, warning = selected(device)
    assert operations == PLAIN
    assert operations.gated_gelu is plain_gated_gelu
    assert warning == (
        f"{RUN_GOES_ON}rotary positions, residual sum and norm, GELU, gated GELU: "
        "Triton cannot be imported: import of triton halted; None in sys.modules"
    )


def test_replicas_that_load_at_the_same_time_select_one_after_the_other(device: torch.device) -> None:
    with ThreadPoolExecutor(4) as threads:
        both = list(threads.map(selected, [device] * 4))
    assert both == [both[0]] * 4
    assert both[0][1] is None


class Launches:
    """Instead of a kernel: what its launches would have been compiled for on a GPU."""

    def __init__(self, module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        kernel = triton.runtime.jit.JITFunction(getattr(module, name).fn)
        backend = triton.compiler.make_backend(triton.backends.compiler.GPUTarget("cuda", 90, 32))
        bind = triton.runtime.jit.create_function_from_signature
        self._bind = bind(kernel.signature, kernel.params, backend)
        self.keys: set[str] = set()
        monkeypatch.setattr(module, name, self)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._launch

    def _launch(self, *args: Any, **kwargs: Any) -> None:
        _, specialization, options = self._bind(*args, **kwargs)
        self.keys.add(f"{specialization} {options}")


def test_batches_of_nine_sizes_are_one_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = ((gelu, "_gelu"), (gated_gelu, "_gated_gelu"), (add_norm, "_add_norm"), (rotary, "_rotate"))
    launches = [Launches(module, name, monkeypatch) for module, name in kernels]
    norm = torch.nn.LayerNorm(32)
    for tokens in (1, 2, 3, 16, 17, 100, 1024, 4096, 5001):
        gelu.gelu(torch.empty(tokens, 96))
        gated_gelu.gated_gelu(torch.empty(tokens, 96))
        add_norm.add_norm(torch.empty(tokens, 32), torch.empty(tokens, 32), norm)
        rotary.rotate(torch.empty(tokens, 3, 2, 16), torch.empty(tokens, 2, 8))
    assert [len(kernel.keys) for kernel in launches] == [1, 1, 1, 1]
    # Other types of numbers are other kernels.
    gelu.gelu(torch.empty(9, 96, dtype=torch.bfloat16))
    assert len(launches[0].keys) == 2


def test_a_kernel_that_both_encoders_miss_is_named_once() -> None:
    missing = [
        Missing("norm", "no"),
        Missing("GELU", "no"),
        Missing("rotary", "wrong"),
        Missing("norm", "no"),
    ]
    assert warning_of(missing) == f"{RUN_GOES_ON}norm, GELU: no; rotary: wrong"


@pytest.mark.parametrize(
    ("matches", "reason"),
    [(lambda *_: False, "wrong answer on a sample"), (raising(RuntimeError("no\ncompiler")), "no compiler")],
)
def test_fp8_without_its_kernels_says_so(
    matches: Callable[..., bool], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fp8, "matches_plain", matches)
    norm = SimpleNamespace(weight=SimpleNamespace(is_cuda=True, device=torch.device("cpu")))
    missing: list[Missing] = []
    assert fp8._fastest_operations(norm, missing) is fp8.PLAIN  # type: ignore[arg-type]
    assert warning_of(missing) == f"{RUN_GOES_ON}quantization: {reason}"
