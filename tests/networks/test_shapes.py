"""The numbers of parameters that shapes report."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from virnuc_async.models.checkpoint_formats import ESM2_HEADS
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.shapes import ClassifierShape, ProteinShape


@pytest.mark.parametrize(
    ("shape", "network"),
    [
        *((ProteinShape(*size, heads), Esm2) for size, heads in ESM2_HEADS.items()),
        (ClassifierShape(3328, 512), Classifier),
    ],
)
def test_parameters_are_counted(
    shape: ProteinShape | ClassifierShape, network: Callable[[Any], nn.Module]
) -> None:
    with torch.device("meta"):
        tensors = network(shape).state_dict()
    assert shape.parameters == sum(tensor.numel() for tensor in tensors.values())
