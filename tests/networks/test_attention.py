"""Attention compared with the formula, and which kernel is selected; torch's operators are simulated."""

from collections.abc import Iterator
from itertools import pairwise
from subprocess import CalledProcessError
from typing import Any

import pytest
import torch
import triton
from hypothesis import given
from hypothesis import strategies as st
from support import CPU, packed
from torch import Tensor
from torch.testing import assert_close

from virnuc_async.networks import attention
from virnuc_async.networks.attention import (
    Attention,
    distance_bias,
    memory_efficient,
    products_by_length,
    sdpa_by_length,
    select_kernel,
    varlen,
)
from virnuc_async.networks.dnabert_s import slopes
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.packing import Packed
from virnuc_async.networks.shapes import ProteinShape

HEADS, WIDTH = 3, 8
SLOPES = torch.tensor(slopes(HEADS))
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)
BIASES = pytest.mark.parametrize("bias", [None, SLOPES], ids=["no bias", "ALiBi"])


def one_by_one(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, bias: Tensor | None) -> Tensor:
    """Attend by the formula, one sequence and one head at a time."""
    out = torch.empty_like(q)
    for first, end in pairwise(cu_seqlens.tolist()):
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
    """Both of torch's operators for sequences of any lengths, on a CPU; they may be wrong."""

    def __init__(self, operator: str) -> None:
        self.operator, self.error = operator, 0.0
        self.calls: list[int] = []

    def flash(self, q: Tensor, k: Tensor, v: Tensor, *limits: Any, **named: Any) -> tuple[Tensor, ...]:
        cu_seqlens, cu_seqlens_k, longest, longest_k, dropout, is_causal, *_ = limits
        assert (dropout, is_causal) == (0.0, False)
        out = self.attend((q, k, v), (cu_seqlens, cu_seqlens_k), (longest, longest_k))
        return out, q.new_empty(0), q.new_empty(0), q.new_empty(0), q.new_empty(0)

    def efficient(self, q: Tensor, k: Tensor, v: Tensor, *limits: Any, **named: Any) -> tuple[Any, ...]:
        bias, cu_seqlens, cu_seqlens_k, longest, longest_k, dropout, custom_mask_type = limits
        assert (bias, dropout, custom_mask_type, len(q)) == (None, 0.0, 0, 1)
        out = self.attend((q[0], k[0], v[0]), (cu_seqlens, cu_seqlens_k), (longest, longest_k))
        return out[None], q.new_empty(0), q.new_empty(0), q.new_empty(0), longest, longest

    def attend(
        self, inputs: tuple[Tensor, ...], cu_seqlens: tuple[Tensor, Tensor], longest: tuple[int, int]
    ) -> Tensor:
        assert cu_seqlens[0].dtype == torch.int32
        assert torch.equal(*cu_seqlens)
        assert longest[0] == longest[1] == cu_seqlens[0].diff().max()
        self.calls.append(len(inputs[0]))
        q, k, v = (x.float() for x in inputs)
        return one_by_one(q, k, v, cu_seqlens[0], None).to(inputs[0].dtype) + self.error


OPERATORS = {"flash": "_flash_attention_forward", "efficient": "_efficient_attention_forward"}
CHOICES: dict[str, Attention] = {"flash": varlen, "efficient": memory_efficient}


@pytest.fixture(params=OPERATORS)
def kernel(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    rule, library = Kernel(request.param), torch.library.Library("aten", "IMPL")
    # Without a kernel for the CPU, the operator raises.
    library.impl(OPERATORS[rule.operator], getattr(rule, rule.operator), "CPU")
    yield rule
    library._destroy()


@pytest.fixture(autouse=True)
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton works in the interpreter alone here, which other tests turn on."""

    def missing(packed: Packed, bias: Tensor | None) -> attention.Attend:
        raise ModuleNotFoundError("No module named 'triton'")

    monkeypatch.setattr(attention, "triton_kernel", missing)


@BIASES
@given(lengths=LENGTHS)
def test_sdpa_by_length(lengths: list[int], bias: Tensor | None) -> None:
    batch, (q, k, v) = sample(lengths)
    assert_close(sdpa_by_length(batch, bias)(q, k, v), one_by_one(q, k, v, batch.cu_seqlens, bias))


@BIASES
@given(lengths=LENGTHS)
def test_products_by_length(lengths: list[int], bias: Tensor | None) -> None:
    batch, (q, k, v) = sample(lengths)
    assert_close(products_by_length(batch, bias)(q, k, v), one_by_one(q, k, v, batch.cu_seqlens, bias))


@BIASES
def test_products_of_many_blocks_in_bf16(bias: Tensor | None) -> None:
    batch, numbers = sample([600] * 3 + [90] * 40 + [1, 1])
    half = [x.bfloat16() for x in numbers]
    expected = one_by_one(*(x.float() for x in half), batch.cu_seqlens, bias)
    found = products_by_length(batch, bias)(*half)
    assert found.dtype == torch.bfloat16
    # Scores up to 8, with 8 bits: weights that are wrong by 1.6 %.
    assert_close(found.float(), expected, rtol=0, atol=2e-2)


def test_sequences_with_many_scores_go_to_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_MANY_SCORES", HEADS * 9**2)
    batch, (q, k, v) = sample([10, 9, 9, 1])
    for bias in (None, SLOPES):
        found = products_by_length(batch, bias)(q, k, v)
        assert torch.equal(found[:10], sdpa_by_length(batch, bias)(q, k, v)[:10])
        assert_close(found, one_by_one(q, k, v, batch.cu_seqlens, bias))


def test_torch_kernels_for_any_lengths(kernel: Kernel) -> None:
    batch, (q, k, v) = sample([5, 9, 9, 1, 40])
    found = CHOICES[kernel.operator](batch, None)(q, k, v)
    assert_close(found, one_by_one(q, k, v, batch.cu_seqlens, None))
    assert kernel.calls == [64]


def test_the_bias_is_the_distance_times_the_slope() -> None:
    assert distance_bias(torch.tensor([0.5, 2.0]), 3).tolist() == [
        [[0, -0.5, -1], [-0.5, 0, -0.5], [-1, -0.5, 0]],
        [[0, -2, -4], [-2, 0, -2], [-4, -2, 0]],
    ]


def selected(dtype: torch.dtype = torch.bfloat16, *, biased: bool) -> Attention:
    return select_kernel(CPU, dtype, HEADS, WIDTH, biased)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_kernel_that_matches_is_selected(kernel: Kernel, dtype: torch.dtype) -> None:
    assert selected(dtype, biased=False) is CHOICES[kernel.operator]


def test_torch_kernels_are_not_selected_for_a_bias(kernel: Kernel) -> None:
    assert selected(biased=True) is sdpa_by_length
    assert kernel.calls == []


def test_the_reference_is_selected_if_no_other_kernel_is_available() -> None:
    assert selected(biased=False) is sdpa_by_length
    assert selected(biased=True) is sdpa_by_length


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    "refusal",
    [
        RuntimeError("Failed to find C compiler."),
        PermissionError("/nonexistent/.triton"),
        CalledProcessError(1, "gcc"),
        triton.TritonError("out of resource: shared memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_where_triton_cannot_compile_the_reference_is_selected(
    refusal: Exception, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "triton_kernel", failing_with(refusal))
    assert selected(biased=biased) is sdpa_by_length


@pytest.mark.parametrize("error", [0.1, float("nan")])
def test_a_wrong_kernel_is_not_selected(kernel: Kernel, error: float) -> None:
    kernel.error = error
    assert selected(biased=False) is sdpa_by_length


@pytest.mark.parametrize("biased", [False, True])
def test_a_wrong_kernel_of_this_package_is_not_selected(
    biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(packed: Packed, bias: Tensor | None) -> attention.Attend:
        # Right for all but the second tile of a sequence.
        attend = sdpa_by_length(packed, bias)
        second = packed.tiles[1, 0]
        return lambda q, k, v: attend(q, k, v).index_fill(0, second.long(), 0)

    monkeypatch.setattr(attention, "triton_kernel", wrong)
    assert selected(biased=biased) is sdpa_by_length


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), torch.AcceleratorError("lost")])
def test_a_failing_device_is_not_mistaken_for_an_unavailable_kernel(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "varlen", failing_with(error))
    with pytest.raises(type(error)):
        selected(biased=False)


def failing_with(error: Exception) -> Attention:
    def fail(packed: Packed, bias: Tensor | None) -> attention.Attend:
        raise error

    return fail


def test_esm2_with_the_fastest_attention_matches_the_plain_one(kernel: Kernel) -> None:
    torch.manual_seed(4)
    network = Esm2(ProteinShape(2, 32, 4)).requires_grad_(False).eval()
    batch = packed([[5] * 3, [7] * 30, [9, 8, 7] * 9, [4] * 4, [5, 6] * 15])
    for tensor in network.parameters():
        tensor.normal_(0, 0.3)
    plain = network.embeddings(batch)
    network.use_gpu_kernels()
    assert network.attention is CHOICES[kernel.operator]
    assert_close(network.embeddings(batch), plain, rtol=0, atol=1e-5)
    assert kernel.calls[1:] == [len(batch.ids)] * 2  # one a layer, after the check
