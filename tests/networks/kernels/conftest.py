"""Kernels on the GPU, or without one in Triton's interpreter on the CPU."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton", exc_type=ImportError)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Return the device that the kernels of these tests run on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def no_warnings_about_infinite_numbers() -> Iterator[None]:
    """The interpreter computes with numpy, which warns where a GPU does not."""
    with np.errstate(invalid="ignore"):
        yield
