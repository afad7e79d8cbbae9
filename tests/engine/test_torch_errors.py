"""Errors of torch become errors of this program."""

import pytest
import torch

from virnuc_async.engine.torch_errors import is_responsive, translate_torch_errors
from virnuc_async.errors import DeviceLost, DeviceOutOfMemory, Stage

CUBLAS = "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`\nmore"


def translate(error: Exception, responsive: bool = True) -> None:
    """Raise *error* in the block."""
    with translate_torch_errors("cuda:1", 900, Stage.PROTEIN, lambda: responsive):
        raise error


@pytest.mark.parametrize("responsive", [True, False])
def test_out_of_memory(responsive: bool) -> None:
    with pytest.raises(DeviceOutOfMemory) as caught:
        translate(torch.OutOfMemoryError("CUDA out of memory"), responsive)
    assert (caught.value.device, caught.value.tokens, caught.value.stage) == ("cuda:1", 900, Stage.PROTEIN)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.parametrize("responsive", [True, False])
def test_an_accelerator_error_means_a_lost_device(responsive: bool) -> None:
    with pytest.raises(DeviceLost, match="cuda:1 failed: CUDA error: device-side assert triggered$"):
        translate(torch.AcceleratorError("CUDA error: device-side assert triggered\nmore"), responsive)


def test_an_error_without_a_type_of_an_unresponsive_device() -> None:
    with pytest.raises(DeviceLost, match="cuda:1 failed: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"):
        translate(RuntimeError(CUBLAS), responsive=False)


@pytest.mark.parametrize("error", [RuntimeError(CUBLAS), ValueError("bug"), DeviceLost("cuda:1", "gone")])
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        translate(error)
    assert caught.value is error


def test_the_cpu_is_responsive() -> None:
    assert is_responsive(torch.device("cpu"))


def test_a_device_that_raises_is_not_responsive(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: device lost")

    monkeypatch.setattr(torch, "ones", fail)
    assert not is_responsive(torch.device("cpu"))
