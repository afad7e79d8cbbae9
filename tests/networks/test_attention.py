"""Every attention kernel compared with the formula; FlashAttention's operator is simulated on the CPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CPU, packed
from torch import Tensor
from torch.testing import assert_close

from virnuc_async.networks import attention
from virnuc_async.networks.attention import (
    Attention,
    distance_bias,
    sdpa_by_length,
    sdpa_padded,
    select_kernel,
    varlen,
)
from virnuc_async.networks.dnabert_s import DnabertS, slopes
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.packing import Packed
from virnuc_async.networks.shapes import NucleotideShape, ProteinShape

HEADS, WIDTH = 3, 8
SLOPES = torch.tensor(slopes(HEADS))
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)
BIASES = pytest.mark.parametrize("bias", [None, SLOPES], ids=["no bias", "ALiBi"])


def one_by_one(q: Tensor, k: Tensor, v: Tensor, batch: Packed, bias: Tensor | None) -> Tensor:
    """Attend by the formula, one sequence and one head at a time."""
    out, cu_seqlens = torch.empty_like(q), batch.cu_seqlens.tolist()
    for first, end in zip(cu_seqlens, cu_seqlens[1:], strict=False):
        for head in range(q.shape[1]):
            logits = q[first:end, head] @ k[first:end, head].T / q.shape[2] ** 0.5
            if bias is not None:
                at = torch.arange(end - first)
                logits = logits - bias[head] * (at[:, None] - at).abs()
            out[first:end, head] = logits.softmax(1) @ v[first:end, head]
    return out


def sample(lengths: list[int]) -> tuple[Packed, Tensor]:
    """Return a batch with queries, keys and values, views of one tensor as in the networks."""
    numbers = torch.randn(sum(lengths), 3, HEADS, WIDTH, generator=torch.Generator().manual_seed(3))
    return packed([[4] * length for length in lengths]), numbers.unbind(1)


class Kernel:
    """FlashAttention's operator on a CPU; it may not support a bias, or be wrong."""

    def __init__(self) -> None:
        self.supports_slopes, self.error = True, 0.0
        self.calls: list[tuple[int, bool]] = []

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens: Tensor,
        cu_seqlens_k: Tensor,
        longest: int,
        *rest: Any,
        **named: Any,
    ) -> tuple[Tensor, ...]:
        assert cu_seqlens.dtype == torch.int32
        assert torch.equal(cu_seqlens, cu_seqlens_k)
        assert rest[:3] == (longest, 0.0, False)
        assert longest == cu_seqlens.diff().max()
        bias = named["alibi_slopes"]
        if bias is not None and not self.supports_slopes:
            raise RuntimeError("This flash attention build does not support alibi.")
        self.calls.append((len(q), bias is not None))
        batch = Packed(cu_seqlens, cu_seqlens, cu_seqlens, ())
        out = one_by_one(q.float(), k.float(), v.float(), batch, bias).to(q.dtype) + self.error
        return out, q.new_empty(0), q.new_empty(0), q.new_empty(0), q.new_empty(0)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    rule, library = Kernel(), torch.library.Library("aten", "IMPL")
    # Without a kernel for the CPU, the operator raises.
    library.impl("_flash_attention_forward", lambda *args, **named: rule(*args, **_with_slopes(named)), "CPU")
    yield rule
    library._destroy()


def _with_slopes(named: dict[str, Any]) -> dict[str, Any]:
    return {"alibi_slopes": None} | named


@BIASES
@given(lengths=LENGTHS)
def test_sdpa_by_length(lengths: list[int], bias: Tensor | None) -> None:
    batch, (q, k, v) = sample(lengths)
    assert_close(sdpa_by_length(batch, bias)(q, k, v), one_by_one(q, k, v, batch, bias))


@BIASES
@given(lengths=LENGTHS)
def test_sdpa_padded(lengths: list[int], bias: Tensor | None) -> None:
    batch, (q, k, v) = sample(lengths)
    assert_close(sdpa_padded(batch, bias)(q, k, v), one_by_one(q, k, v, batch, bias))


@BIASES
def test_varlen(bias: Tensor | None, kernel: Kernel) -> None:
    batch, (q, k, v) = sample([5, 9, 9, 1, 40])
    assert_close(varlen(batch, bias)(q, k, v), one_by_one(q, k, v, batch, bias))
    assert kernel.calls == [(64, bias is not None)]


@settings(max_examples=50)
@given(lengths=LENGTHS, max_scores=st.integers(1, 4000))
def test_blocks_contain_every_sequence_once_and_have_few_scores(lengths: list[int], max_scores: int) -> None:
    runs = sample(lengths)[0].runs
    ranges = list(attention._block_ranges(runs, max_scores))
    ordered = sorted(lengths, reverse=True)
    assert [at for first, end, _, _ in ranges for at in range(first, end)] == list(range(len(lengths)))
    for first, end, longest, is_ragged in ranges:
        assert longest == ordered[first]
        assert is_ragged == (len(set(ordered[first:end])) > 1)
        assert ordered[end - 1] >= 0.75 * longest
        assert end - first == 1 or (end - first) * longest**2 <= max_scores


def test_equal_lengths_without_a_bias_need_no_mask() -> None:
    batch, _ = sample([7] * 5)
    (block,) = attention._blocks(batch, None)
    assert block.mask is None
    assert block.read.tolist() == torch.arange(35).view(5, 7).tolist()


def test_the_bias_is_the_distance_times_the_slope() -> None:
    assert distance_bias(torch.tensor([0.5, 2.0]), 3).tolist() == [
        [[0, -0.5, -1], [-0.5, 0, -0.5], [-1, -0.5, 0]],
        [[0, -2, -4], [-2, 0, -2], [-4, -2, 0]],
    ]


def selected(dtype: torch.dtype = torch.bfloat16, *, biased: bool) -> Attention:
    return select_kernel(CPU, dtype, HEADS, WIDTH, biased)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_a_kernel_that_matches_is_selected(kernel: Kernel, dtype: torch.dtype, biased: bool) -> None:
    assert selected(dtype, biased=biased) is varlen


def test_a_kernel_that_is_not_available_is_not_selected() -> None:
    assert selected(biased=False) is sdpa_padded
    assert selected(biased=True) is sdpa_padded


def test_a_kernel_without_slopes_is_selected_only_without_a_bias(kernel: Kernel) -> None:
    kernel.supports_slopes = False
    assert selected(biased=False) is varlen
    assert selected(biased=True) is sdpa_padded


@pytest.mark.parametrize("error", [0.1, float("nan")])
def test_a_wrong_kernel_is_not_selected(kernel: Kernel, error: float) -> None:
    kernel.error = error
    assert selected(biased=False) is sdpa_padded


def test_the_reference_is_selected_if_all_other_kernels_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(packed: Packed, bias: Tensor | None) -> attention.Attend:
        return lambda q, k, v: q

    monkeypatch.setattr(attention, "sdpa_padded", wrong)
    assert selected(biased=False) is sdpa_by_length


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), torch.AcceleratorError("lost")])
def test_a_failing_device_is_not_mistaken_for_an_unavailable_kernel(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(packed: Packed, bias: Tensor | None) -> attention.Attend:
        raise error

    monkeypatch.setattr(attention, "varlen", failing)
    with pytest.raises(type(error)):
        selected(biased=False)


@pytest.mark.parametrize("name", ["kernel", "blocks"])
@pytest.mark.parametrize("kind", [Esm2, DnabertS])
def test_networks_with_the_fastest_attention_match_the_plain_ones(
    kind: type[Esm2 | DnabertS], name: str, request: pytest.FixtureRequest
) -> None:
    shapes = {Esm2: ProteinShape(2, 32, 4), DnabertS: NucleotideShape(2, 32, 4, 64, 40)}
    torch.manual_seed(4)
    network = kind(shapes[kind]).requires_grad_(False).eval()
    batch = packed([[5] * 3, [7] * 30, [9, 8, 7] * 9, [4] * 4, [5, 6] * 15])
    for tensor in network.parameters():
        tensor.normal_(0, 0.3)
    plain = network.embeddings(batch)
    rule = request.getfixturevalue("kernel") if name == "kernel" else None
    network.use_fastest_attention()
    assert network.attention is (varlen if rule else sdpa_padded)
    assert_close(network.embeddings(batch), plain, rtol=0, atol=1e-5)
    if rule:
        assert rule.calls[1:] == [(len(batch.ids), kind is DnabertS)] * 2  # one a layer, after the check
