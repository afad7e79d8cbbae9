"""DNABERT-S, compared with outputs of the published bert_layers.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import weights
from golden_networks import DNABERT_SETS, EXACT, GoldenDnabert, build_with, cosines
from safetensors.torch import load_file
from support import beside, packed
from torch.testing import assert_close

from virnuc_async.networks.dnabert_s import DnabertS, slopes


@pytest.mark.parametrize("name", DNABERT_SETS[:3])
def test_the_golden_weights_are_reproduced_exactly(name: str, golden: Path):
    expected = load_file(beside("dnabert") / f"{name}.safetensors")
    computed = weights.dnabert(json.loads((golden / "dnabert" / f"{name}.json").read_bytes())["config"])
    assert computed.keys() == expected.keys()
    assert all(np.array_equal(computed[tensor], expected[tensor].numpy()) for tensor in expected)


def test_embeddings(dnabert: GoldenDnabert):
    for case in dnabert.cases:
        found = dnabert.network.embeddings(packed([dnabert.ids(case)]))
        assert found.dtype == torch.float32
        assert_close(found[0], dnabert.tensor(f"{case}/mean"), **EXACT)
        assert_close(found[0].double(), dnabert.tensor(f"{case}/mean64"), **EXACT)


def test_hidden_states(dnabert: GoldenDnabert):
    with_states = [case for case in dnabert.cases if f"{case}/hidden" in dnabert.arrays]
    assert len(with_states) >= 4
    for case in with_states:
        hidden = dnabert.network(packed([dnabert.ids(case)]))
        assert_close(hidden, dnabert.tensor(f"{case}/hidden"), **EXACT)


@pytest.mark.parametrize("dnabert", DNABERT_SETS[1:3], indirect=True)
def test_states_after_each_layer(dnabert: GoldenDnabert):
    states = dnabert.tensor("len17/states")
    assert len(states) == dnabert.shape.layers + 1
    layers = dnabert.network.layers
    for number, expected in enumerate(states):
        dnabert.network.layers = layers[:number]
        assert_close(dnabert.network(packed([dnabert.ids("len17")])), expected, **EXACT)
    dnabert.network.layers = layers


def test_upstreams_padded_batch_equals_our_packed_one(dnabert: GoldenDnabert):
    ids, mask = dnabert.arrays["batch/ids"], dnabert.arrays["batch/mask"].astype(bool)
    rows = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
    assert len({len(row) for row in rows}) > 1
    assert_close(dnabert.network.embeddings(packed(rows)), dnabert.tensor("batch/mean"), **EXACT)


def test_mixed_lengths_in_one_batch_equal_one_at_a_time(dnabert: GoldenDnabert):
    cases = [*dnabert.cases, *dnabert.cases[:2]]
    together = dnabert.network.embeddings(packed([dnabert.ids(case) for case in cases]))
    for case, row in zip(cases, together, strict=True):
        assert_close(row, dnabert.tensor(f"{case}/mean"), **EXACT)


def test_slopes_of_the_golden_network(dnabert: GoldenDnabert):
    found = torch.tensor(slopes(dnabert.shape.heads))
    assert_close(found, dnabert.tensor("slopes"), rtol=1e-6, atol=0)


def test_slopes_are_as_published():
    assert slopes(1) == [2**-8]
    assert slopes(4) == [2**-2, 2**-4, 2**-6, 2**-8]
    assert slopes(6) == [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]
    assert slopes(12) == [2**-k for k in (1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5)]


@pytest.mark.parametrize(("dtype", "cosine"), [(torch.bfloat16, 0.999), (torch.float16, 0.99999)], ids=str)
def test_half_precisions_are_close_to_fp32(dtype: torch.dtype, cosine: float, dnabert: GoldenDnabert):
    tensors = {name: tensor.to(dtype) for name, tensor in dnabert.network.state_dict().items()}
    half = build_with(lambda: DnabertS(dnabert.shape), tensors)
    rows = packed([dnabert.ids(case) for case in dnabert.cases])
    found = half.embeddings(rows)
    assert half(rows).dtype == dtype
    assert found.dtype == torch.float32
    assert cosines(found, dnabert.network.embeddings(rows)).min() > cosine
