"""ESM-2 with products in FP8: what it computes, without a GPU that multiplies in FP8."""

import copy

import pytest
import torch
from golden_networks import EXACT, EsmPair, cosines, esm_pair, some_proteins
from torch import Tensor, nn
from torch.testing import assert_close

from virnuc_async.errors import UnsuitablePrecision
from virnuc_async.networks.fp8 import PLAIN, Fp8Linear, Fp8Norm, matches_plain, use_fp8
from virnuc_async.networks.linear import Linear
from virnuc_async.networks.packing import Packed, pack
from virnuc_async.networks.quantized import FP8, LARGEST, Quantized, quantize
from virnuc_async.networks.shapes import ProteinShape
from virnuc_async.networks.upcast import upcast
from virnuc_async.sequences.tokens import OrfTokenizer


@pytest.fixture(scope="module", params=[(3, 64, 1), (2, 96, 12), (6, 320, 20)], ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EsmPair:
    """fair-esm's ESM-2 and ours with the same random weights; 16 divides all sizes."""
    return esm_pair(ProteinShape(*request.param), tmp_path_factory.mktemp("esm") / "esm2_tiny.pt")


def some_rows() -> Packed:
    return pack(OrfTokenizer.residues(None, some_proteins(5, 166, 1, 60, 166)))


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_embeddings_are_close_to_fp32(pair: EsmPair):
    network = copy.deepcopy(pair.ours).bfloat16()
    use_fp8(network)
    rows = some_rows()
    assert network(rows).dtype == torch.bfloat16
    expected, found = pair.ours.embeddings(rows), network.embeddings(rows)
    # In BF16 it is 0.9999: these are products in FP8.
    assert 0.98 < cosines(found, expected).min() < 0.9999
    for layer in network.layers:
        for linear in (layer.qkv, layer.out, layer.up, layer.down):
            assert isinstance(linear, Fp8Linear)
            assert linear._values.dtype == FP8
    assert type(network.norm) is nn.LayerNorm


def test_up_cast_it_is_fp32_with_the_rounded_weights(pair: EsmPair):
    network = copy.deepcopy(pair.ours).bfloat16()
    expected = copy.deepcopy(network).float()
    use_fp8(network)
    for layer, plain in zip(network.layers, expected.layers, strict=True):
        for name in ("qkv", "out", "up", "down"):
            plain.get_submodule(name).weight.data = getattr(layer, name)._weight()
    rows = some_rows()
    assert_close(upcast(network).embeddings(rows), expected.embeddings(rows), **EXACT)


def test_every_output_and_every_token_has_its_own_scale():
    layer = Linear(32, 48).bfloat16().requires_grad_(False)
    layer.weight.copy_(random(48, 32) * torch.logspace(-6, 2, 48)[:, None])
    x = (random(5, 32, seed=2) * torch.logspace(-3, 3, 5)[:, None]).bfloat16()
    layer.bias.zero_()
    weight = layer.weight.float()
    error = (Fp8Linear(layer)(x).float() - nn.functional.linear(x.float(), weight)).abs()
    assert (error < 0.02 * x.float().norm(dim=1, keepdim=True) * weight.norm(dim=1)).all()


def test_bias_gelu_sum_and_norm():
    layer = Linear(32, 48).bfloat16().requires_grad_(False)
    fp8, x, residual = Fp8Linear(layer), random(7, 32).bfloat16(), random(7, 48, seed=3).bfloat16()
    product = fp8(x)
    without_bias = copy.deepcopy(fp8)
    without_bias._bias = None
    assert_close(product.float(), without_bias(x).float() + layer.bias.float(), rtol=2**-7, atol=2**-8)
    assert torch.equal(product, fp8(quantize(x)))
    gelu = fp8.linear_gelu(x)
    assert_close(gelu.dequantized(), nn.functional.gelu(product.float()), rtol=1 / 16, atol=1e-2)
    norm = nn.LayerNorm(48).bfloat16().requires_grad_(False)
    total, normed = fp8.add_norm(x, residual, norm)
    assert torch.equal(total, product + residual)
    assert torch.equal(normed, norm(total))
    quantized_total, quantized = fp8.add_norm(x, residual, Fp8Norm(norm))
    assert torch.equal(quantized_total, total)
    assert isinstance(quantized, Quantized)
    assert_close(quantized.dequantized(), normed.float(), rtol=1 / 16, atol=2e-2)


@pytest.mark.skipif(
    torch.__version__ < "2.12",
    reason="before, torch multiplies without scales of rows on CPUs",
)
def test_torchs_product_in_fp8_is_the_twins():
    layer = Linear(64, 32).bfloat16().requires_grad_(False)
    fp8, rows = Fp8Linear(layer), quantize(random(9, 64))
    scales = {"scale_a": rows.scales, "scale_b": fp8._scales.t()}
    found = torch._scaled_mm(
        rows.values, fp8._values.t(), **scales, bias=layer.bias, out_dtype=torch.bfloat16
    )
    assert_close(found, fp8.product_twin(rows), rtol=2**-6, atol=2**-7)


def test_a_number_that_is_not_finite_stays_in_its_row():
    x = random(4, 32).bfloat16()
    x[2, 5] = torch.inf
    found = Fp8Linear(Linear(32, 16).bfloat16().requires_grad_(False))(x)
    assert found.isfinite().all(1).tolist() == [True, True, False, True]


def test_sizes_that_16_does_not_divide(tmp_path):
    network = esm_pair(ProteinShape(2, 40, 4), tmp_path / "esm2.pt").ours
    with pytest.raises(UnsuitablePrecision) as caught:
        use_fp8(network.bfloat16())
    assert str(caught.value) == (
        "cannot compute in FP8: ESM-2 has a matrix of 120 x 40 numbers, and 16 must divide both. "
        "Use --precision bf16"
    )


def test_kernels_with_another_answer_are_not_used():
    norm = nn.LayerNorm(64).bfloat16().requires_grad_(False)
    assert matches_plain(PLAIN, norm)

    def doubled(x: Tensor) -> Quantized:
        values, scales = PLAIN.gelu(x)
        return Quantized(values, 2 * scales)

    def biased(x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Quantized]:
        return PLAIN.add_norm(x + 1, residual, norm)

    assert not matches_plain(PLAIN._replace(gelu=doubled), norm)
    assert not matches_plain(PLAIN._replace(add_norm=biased), norm)
    assert not matches_plain(PLAIN._replace(quantize=lambda x: quantize(x + LARGEST)), norm)
