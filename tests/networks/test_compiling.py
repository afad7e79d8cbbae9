"""Regions that are compiled: the plain answer, one compilation for all layers, and what if it fails."""

from collections.abc import Iterator

import pytest
import torch
import torch._dynamo
from support import packed
from torch._dynamo.utils import counters
from torch._inductor import config
from torch.testing import assert_close

from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Replica
from virnuc_async.models.bundle import DEFAULT, find
from virnuc_async.networks.attention import sdpa_padded
from virnuc_async.networks.compiling import compile_layers, decide_compile
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.packing import Packed, pack
from virnuc_async.networks.shapes import NucleotideShape, ProteinShape
from virnuc_async.sequences.tokens import Ragged
from virnuc_async.settings import Compile, Precision

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
    return made(request.param)


def made(kind: type[Encoder]) -> Encoder:
    """Give a network of three layers with random weights."""
    torch.manual_seed(5)
    shapes = {Esm2: ProteinShape(3, 32, 4), DnabertS: NucleotideShape(3, 32, 4, 64, 40)}
    network = kind(shapes[kind]).requires_grad_(False).eval()
    for tensor in network.parameters():
        tensor.normal_(0, 0.3)
    return network


def batch(lengths: tuple[int, ...]) -> Packed:
    return packed([[(row * 7 + at) % 20 + 4 for at in range(size)] for row, size in enumerate(lengths)])


@torch.inference_mode()
def test_compiled_layers_give_the_plain_answer_and_compile_once(encoder: Encoder) -> None:
    wanted = [encoder.embeddings(batch(lengths)) for lengths in LENGTHS]
    before = counters["stats"]["unique_graphs"]
    assert compile_layers(encoder, SAMPLE) is None
    # Before and after attention: one each for all layers.
    assert counters["stats"]["unique_graphs"] == before + 2
    for lengths, plain in zip(LENGTHS, wanted, strict=True):
        assert_close(encoder.embeddings(batch(lengths)), plain, rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == before + 2


@torch.inference_mode()
def test_a_second_replica_uses_what_the_first_has_compiled() -> None:
    first, second = made(Esm2), made(Esm2)
    assert compile_layers(first, SAMPLE) is None
    before = counters["stats"]["unique_graphs"]
    assert compile_layers(second, SAMPLE) is None
    assert counters["stats"]["unique_graphs"] == before
    assert torch.equal(first.embeddings(batch((9, 4))), second.embeddings(batch((9, 4))))


@torch.inference_mode()
def test_without_a_compiler_the_plain_way_stays(encoder: Encoder) -> None:
    wanted = encoder.embeddings(batch((9, 4)))
    with config.patch({"cpp.cxx": ("/no/such/compiler",), "force_disable_caches": True}):
        warning = compile_layers(encoder, SAMPLE)
    assert warning is not None
    assert warning.startswith("the kernels could not be compiled, so the run goes on without: ")
    assert "compiler" in warning
    assert torch.equal(encoder.embeddings(batch((9, 4))), wanted)


def test_without_a_compiler_both_encoders_still_attend_the_fastest_way() -> None:
    class OnTheHost(Replica):
        """A GPU's replica that leaves its rows where they are."""

        def _packed(self, rows: Ragged) -> Packed:
            return pack(rows)

    gpu = Device("cuda:0", "GPU", 1 << 30, (9, 0))
    replica = OnTheHost(gpu, find(DEFAULT), Precision.FP32, compiled=True)
    encoders = made(DnabertS), made(Esm2)
    with config.patch({"cpp.cxx": ("/no/such/compiler",), "force_disable_caches": True}):
        warning = replica._speed_up(*encoders)
    assert warning is not None
    assert all(encoder.attention is sdpa_padded for encoder in encoders)


@pytest.mark.parametrize(
    ("wanted", "on_gpu", "input_bytes", "decision"),
    [
        (Compile.ON, True, 1, True),
        (Compile.ON, True, None, True),
        (Compile.OFF, True, 1 << 40, False),
        (Compile.AUTO, True, 1 << 40, True),
        (Compile.AUTO, True, 1 << 20, False),
        (Compile.AUTO, True, None, False),
        (Compile.AUTO, False, 1 << 40, False),
        (Compile.ON, False, 1 << 40, False),
    ],
)
def test_when_to_compile(wanted: Compile, on_gpu: bool, input_bytes: int | None, decision: bool) -> None:
    assert decide_compile(wanted, on_gpu, input_bytes) is decision
