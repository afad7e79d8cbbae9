"""
The whole forward at the published shapes on fake tensors of a GPU, in every precision and way.

Fake tensors have a shape, a dtype and a device, and no numbers. An operation that would make the host
wait for a number raises, and so does a copy that the host would wait for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import launches
import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Replica
from virnuc_async.networks import dnabert_s
from virnuc_async.networks.attention import memory_efficient, sdpa_by_length, triton_kernel, varlen
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.model import Model
from virnuc_async.networks.packing import dummy_batch
from virnuc_async.networks.quantized import FP8
from virnuc_async.networks.shapes import ClassifierShape
from virnuc_async.networks.upcast import upcast
from virnuc_async.sequences.batches import Batch, PrecomputedEmbeddings, SpotCheck
from virnuc_async.settings import Precision

GPU = torch.device("cuda:0")
LAYERS = {"ESM-2 3B": 36, "DNABERT-S": 12}
WIDTHS = {"ESM-2 3B": 2560, "DNABERT-S": 768}
# Torch's own kernels take no slopes.
ATTENTION = {
    "ESM-2 3B": (varlen, memory_efficient, triton_kernel, sdpa_by_length),
    "DNABERT-S": (triton_kernel, sdpa_by_length),
}

# Long, equal, short and empty proteins: an empty one still has its two special tokens.
LENGTHS = (1026, *[168] * 40, 167, 52, 52, 33, 3, 2, 2)

pytestmark = [
    pytest.mark.fake_cuda,
    pytest.mark.skipif(torch.version.cuda is None, reason="this torch was not built for GPUs"),
]


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no driver to ask for the capability."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@contextmanager
def on_fake_gpu(*networks: nn.Module) -> Iterator[None]:
    """Within the block, every tensor is a fake one; *networks* are moved from the meta device to the GPU."""
    states = [network.state_dict() for network in networks]
    with FakeTensorMode(), torch.inference_mode():
        for network, state in zip(networks, states, strict=True):
            weights = {
                name: torch.empty(like.shape, dtype=like.dtype, device=GPU) for name, like in state.items()
            }
            network.load_state_dict(weights, assign=True)
            network.requires_grad_(False).eval()
        dnabert_s._slopes_on(GPU, 12)  # once in a process, and the host waits for the copy
        try:
            yield
        finally:
            dnabert_s._slopes_on.cache_clear()  # a fake tensor belongs to its mode


def forms(network: DnabertS | Esm2) -> tuple[object, ...]:
    """Return shape, dtype and device of the hidden states, and of the embeddings."""
    batch = launches.batch("cuda:0", LENGTHS)
    with launches.recorded():
        return form(network(batch)), form(network.embeddings(batch))


def expected_forms(name: str, dtype: torch.dtype) -> tuple[object, ...]:
    width = WIDTHS[name]
    return ((sum(LENGTHS), width), dtype, GPU), ((len(LENGTHS), width), torch.float32, GPU)


@pytest.mark.parametrize(("name", "precision", "way"), launches.CASES)
def test_whole_forward(name, precision, way):
    network = launches.encoder(name, LAYERS[name], precision)
    with on_fake_gpu(network):
        launches.prepare(network, precision, way)
        for attention in (network.attention, *ATTENTION[name]):
            network.attention = attention
            assert forms(network) == expected_forms(name, launches.DTYPES[precision])


@pytest.mark.parametrize(("name", "precision"), [case[:2] for case in launches.CASES if "kernels" in case])
def test_what_is_not_finite_is_computed_again_in_fp32(name, precision):
    network = launches.encoder(name, LAYERS[name], precision)
    with on_fake_gpu(network):
        launches.prepare(network, precision, "kernels")
        assert forms(upcast(network)) == expected_forms(name, torch.float32)


def test_a_layer_of_esm2_3b_launches_at_most_11_kernels_that_move_at_most_1_7_gb():
    costs = []
    for layers in (1, 2):
        network = launches.encoder("ESM-2 3B", layers, "BF16")
        with on_fake_gpu(network):
            launches.prepare(network, "BF16", "kernels")
            with launches.recorded() as found:
                network(launches.batch("cuda:0", launches.uniform(launches.TOKENS)))
        costs.append(launches.Cost.of(found))
    layer = costs[1] - costs[0]
    assert layer.launches <= 11
    assert layer.bytes <= 1.7e9


class FakeTransfers:
    """Queues nothing: page-locked memory, streams and events need a driver."""

    def begin(self) -> None:
        self.results: list[torch.Tensor] = []

    def to_device(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        return [torch.empty(part.shape, dtype=part.dtype, device=GPU) for part in tensors]

    def end(self, results: Sequence[torch.Tensor]) -> None:
        self.results = list(results)


@pytest.mark.parametrize("checked", [(), (1, 3)])
@pytest.mark.parametrize("is_known", [False, True])
def test_what_a_replica_queues_for_a_batch(bundle, is_known, checked):
    with torch.device("meta"):
        classifier = Classifier(ClassifierShape(768 + 2560, 512))
    encoders = [launches.encoder(name, 1, "BF16") for name in ("DNABERT-S", "ESM-2 3B")]
    rows, count = dummy_batch(*LENGTHS), len(LENGTHS)
    known = PrecomputedEmbeddings(
        *(np.zeros((count, width), np.float32) if is_known else None for width in (768, 2560)),
        tuple(SpotCheck(row, "", ()) for row in checked),
    )
    batch = Batch(0, 0, "", np.arange(count), np.zeros((count, 3), np.int64), rows, rows, known)
    replica = Replica(Device("cuda:0", "", 1 << 37, (9, 0)), bundle, Precision.BF16, embeddings=True)
    transfers = FakeTransfers()
    with on_fake_gpu(*encoders, classifier):
        for encoder in encoders:
            launches.prepare(encoder, "BF16", "kernels")
        with launches.recorded():
            replica._queue(Model(*encoders, classifier), batch, transfers)
    assert [form(part) for part in transfers.results] == [
        ((count, 2), torch.float32, GPU),
        ((3, count), torch.bool, GPU),
        ((len(checked), 2), torch.float32, GPU),
        ((count, 3328), torch.float32, GPU),
    ]


def test_a_number_that_the_host_would_wait_for_is_an_error():
    with on_fake_gpu():
        with pytest.raises(DataDependentOutputException):
            torch.ones(2, device=GPU).sum().item()
        with pytest.raises(DynamicOutputShapeException):
            torch.ones(2, device=GPU).nonzero()


@pytest.mark.parametrize("scales", [(6, 1), (5, 2), (1, 5)])
def test_scales_of_another_shape_than_the_rows_of_a_product_are_an_error(scales):
    with on_fake_gpu():
        rows, weight = (torch.empty(count, 32, dtype=FP8, device=GPU) for count in (5, 48))
        ones = torch.empty(1, 48, device=GPU)

        def multiply(shape: tuple[int, int]) -> torch.Tensor:
            scale = torch.empty(shape, device=GPU)
            return torch._scaled_mm(rows, weight.t(), scale, ones, out_dtype=torch.bfloat16)

        assert form(multiply((5, 1))) == ((5, 48), torch.bfloat16, GPU)
        with pytest.raises(RuntimeError, match="scale"):
            multiply(scales)


def form(tensor: torch.Tensor) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
    return tuple(tensor.shape), tensor.dtype, tensor.device
