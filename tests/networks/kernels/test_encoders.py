"""Whole encoders with kernels give the answers of plain ones."""

import copy
from pathlib import Path

import pytest
import torch
from golden_networks import cosines
from support import packed
from torch.testing import assert_close

from virnuc_async.models.bundle import Bundle
from virnuc_async.networks import attention
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2, Layer
from virnuc_async.networks.kernels.add_norm import add_norm, normed_sum
from virnuc_async.networks.kernels.gated_gelu import gated_gelu
from virnuc_async.networks.kernels.gelu import gelu
from virnuc_async.networks.kernels.rotary import rotate
from virnuc_async.networks.linear import Linear
from virnuc_async.networks.loading import load
from virnuc_async.networks.operations import PLAIN
from virnuc_async.networks.shapes import NucleotideShape, ProteinShape
from virnuc_async.networks.upcast import upcast

Encoder = Esm2 | DnabertS
ROWS = [[5] * 3, [7, 9] * 10, [9, 8, 7] * 5, [4, 5, 6], [5, 6, 11] * 5]


@pytest.fixture(autouse=True)
def _small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare attention on a few tokens: an interpreter takes seconds for the hundreds that a GPU gets."""
    monkeypatch.setattr(attention, "_SAMPLE", (33, 9, 1))


@pytest.fixture(scope="module")
def protein(bundle: Bundle) -> Esm2:
    return loaded(Esm2, bundle.shapes.protein, bundle.directory / "protein.safetensors")


@pytest.fixture(scope="module")
def nucleotide(bundle: Bundle) -> DnabertS:
    return loaded(DnabertS, bundle.shapes.nucleotide, bundle.directory / "nucleotide.safetensors")


def loaded(kind: type[Encoder], shape: ProteinShape | NucleotideShape, path: Path) -> Encoder:
    with torch.device("meta"):
        network = kind(shape)
    return load(network, path, torch.device("cpu"), torch.float32)


def with_kernels(encoder: Encoder, device: torch.device, dtype: torch.dtype) -> Encoder:
    ready = copy.deepcopy(encoder).to(device, dtype)
    assert ready.use_gpu_kernels() == []
    return ready


@torch.inference_mode()
@pytest.mark.parametrize("name", ["protein", "nucleotide"])
def test_an_encoder_with_kernels_gives_the_answer_of_the_plain_one(
    request: pytest.FixtureRequest, name: str, device: torch.device
) -> None:
    encoder, rows = request.getfixturevalue(name), packed(ROWS)
    expected = encoder.embeddings(rows)
    ready = with_kernels(encoder, device, torch.float32)
    assert_close(ready.embeddings(rows.to(device)).cpu(), expected, rtol=0, atol=1e-5)
    half = with_kernels(encoder, device, torch.float16)
    found = half.embeddings(rows.to(device)).cpu()
    assert cosines(found, expected).min() > 0.99999
    # What overflows in FP16 is computed again: in FP32 and plain torch, for which nothing is compiled.
    again = upcast(half)
    assert all(module.operations is PLAIN for module in again.modules() if isinstance(module, Linear))
    assert not any(module.rotate is rotate for module in again.modules() if isinstance(module, Layer))
    assert_close(again.embeddings(rows.to(device)).cpu(), expected, rtol=0, atol=1e-2)


def test_every_operation_of_a_layer_is_a_kernel(
    protein: Esm2, nucleotide: DnabertS, device: torch.device
) -> None:
    for layer in with_kernels(protein, device, torch.float32).layers:
        assert layer.rotate is rotate
        assert layer.up.operations.gelu is gelu
        assert layer.out.operations.add_norm is layer.down.operations.add_norm is add_norm
    for layer in with_kernels(nucleotide, device, torch.float32).layers:
        assert layer.gate_up.operations.gated_gelu is gated_gelu
        assert layer.out.operations.normed_sum is layer.down.operations.normed_sum is normed_sum
