"""Compiled layers: same results, one compilation for all layers, and a failing compiler."""

from collections.abc import Iterator

import pytest
import torch
import torch._dynamo
from support import packed
from torch._dynamo.utils import counters
from torch._inductor import config
from torch.testing import assert_close

from virnuc_async.networks.attention import sdpa_padded
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.compiling import compile_layers
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.model import Model
from virnuc_async.networks.packing import Packed
from virnuc_async.networks.shapes import ClassifierShape, NucleotideShape, ProteinShape

# torch's own, from the compiler's imports
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

Encoder = Esm2 | DnabertS
SAMPLE = packed([[4, 5, 6, 7], [4, 5, 6]])
LENGTHS = ((9, 9, 9), (31, 8, 8, 3), (4,), (120, 64, 64))  # of batches


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=[Esm2, DnabertS])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return build(request.param)


def build(kind: type[Encoder]) -> Encoder:
    """Return a network of three layers with random weights."""
    torch.manual_seed(5)
    shapes = {Esm2: ProteinShape(3, 32, 4), DnabertS: NucleotideShape(3, 32, 4, 64, 40)}
    network = kind(shapes[kind]).requires_grad_(False).eval()
    for tensor in network.parameters():
        tensor.normal_(0, 0.3)
    return network


def batch(lengths: tuple[int, ...]) -> Packed:
    return packed([[(row * 7 + at) % 20 + 4 for at in range(size)] for row, size in enumerate(lengths)])


@pytest.mark.slow
@torch.inference_mode()
def test_compiled_layers_match_the_plain_ones_and_compile_once(encoder: Encoder) -> None:
    expected = [encoder.embeddings(batch(lengths)) for lengths in LENGTHS]
    before = counters["stats"]["unique_graphs"]
    assert compile_layers(encoder, SAMPLE) is None
    # One graph for each region, before and after attention; all layers share it.
    assert counters["stats"]["unique_graphs"] == before + 2
    for lengths, plain in zip(LENGTHS, expected, strict=True):
        assert_close(encoder.embeddings(batch(lengths)), plain, rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == before + 2


@torch.inference_mode()
def test_a_second_network_reuses_the_kernels_of_the_first() -> None:
    first, second = build(Esm2), build(Esm2)
    assert compile_layers(first, SAMPLE) is None
    before = counters["stats"]["unique_graphs"]
    assert compile_layers(second, SAMPLE) is None
    assert counters["stats"]["unique_graphs"] == before
    assert torch.equal(first.embeddings(batch((9, 4))), second.embeddings(batch((9, 4))))


@torch.inference_mode()
def test_without_a_compiler_the_network_is_unchanged(encoder: Encoder) -> None:
    expected = encoder.embeddings(batch((9, 4)))
    with config.patch({"cpp.cxx": ("/no/such/compiler",), "force_disable_caches": True}):
        warning = compile_layers(encoder, SAMPLE)
    assert warning is not None
    assert warning.startswith("the kernels could not be compiled, so the run continues without them: ")
    assert "compiler" in warning
    assert torch.equal(encoder.embeddings(batch((9, 4))), expected)


def test_without_a_compiler_both_encoders_still_use_the_fastest_attention() -> None:
    encoders = build(DnabertS), build(Esm2)
    model = Model(*encoders, Classifier(ClassifierShape(64, 4)))
    with config.patch({"cpp.cxx": ("/no/such/compiler",), "force_disable_caches": True}):
        warning = model.use_gpu_kernels(SAMPLE)
    assert warning is not None
    assert all(encoder.attention is sdpa_padded for encoder in encoders)
