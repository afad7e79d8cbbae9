"""Networks that compute in FP32 with the weights of one in half precision."""

import copy
import weakref

import pytest
import torch
from golden_networks import EXACT, EsmPair, GoldenDnabert, some_proteins
from support import packed
from torch import nn
from torch.testing import assert_close

from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.linear import UpcastLinear
from virnuc_async.networks.packing import Packed, pack
from virnuc_async.networks.upcast import upcast
from virnuc_async.sequences.tokens import OrfTokenizer


def check(network: Esm2 | DnabertS, rows: Packed, dtype: torch.dtype, is_packed: bool) -> None:
    """Check that *network* in *dtype* gives, up-cast, what FP32 gives with its rounded weights."""
    half = copy.deepcopy(network).to(dtype)
    expected = copy.deepcopy(half).float().embeddings(rows)
    if is_packed:
        half.prepack()
    before = half.embeddings(rows)
    again = upcast(half)
    assert_close(again.embeddings(rows), expected, **EXACT)
    assert not torch.equal(before, expected)
    assert torch.equal(half.embeddings(rows), before)
    # No matrix is there in FP32 but the table of the tokens.
    matrices = [name for name, tensor in again.named_parameters() if tensor.ndim == 2]
    assert matrices == ["embed.weight"]


WAYS = pytest.mark.parametrize(
    ("dtype", "is_packed"), [(torch.float16, False), (torch.bfloat16, False), (torch.bfloat16, True)], ids=str
)


@WAYS
def test_the_embeddings_of_proteins_are_those_of_fp32(dtype: torch.dtype, is_packed: bool, pair: EsmPair):
    check(pair.ours, pack(OrfTokenizer.residues(None, some_proteins(5, 166, 1, 40))), dtype, is_packed)


@WAYS
def test_the_embeddings_of_bases_are_those_of_fp32(
    dtype: torch.dtype, is_packed: bool, dnabert: GoldenDnabert
):
    check(dnabert.network, packed([dnabert.ids(case) for case in dnabert.cases[:3]]), dtype, is_packed)


def test_a_matrix_lives_in_fp32_only_while_it_is_used():
    weight = torch.ones(4, 3, dtype=torch.float16)
    layer = UpcastLinear(lambda: weight, None)
    used = layer.weight
    alive = weakref.ref(used)
    assert used.dtype == torch.float32
    del used
    assert alive() is None
    assert isinstance(layer, nn.Linear)
    assert torch.equal(layer(torch.ones(2, 3)), torch.full((2, 4), 3.0))
