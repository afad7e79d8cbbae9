"""Networks with weights packed for the CPU give the results of the plain ones."""

import copy

import pytest
import torch
from golden_networks import EXACT, EsmPair, GoldenDnabert, cosines, some_proteins
from support import packed
from torch import nn
from torch.testing import assert_close

from virnuc_async.networks import esm2
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.packing import Packed, pack
from virnuc_async.networks.shapes import ClassifierShape
from virnuc_async.sequences.tokens import OrfTokenizer


def prepacked(network: Esm2 | DnabertS, dtype: torch.dtype) -> Esm2 | DnabertS:
    """Return a packed copy of *network* in *dtype*."""
    ready = copy.deepcopy(network).to(dtype)
    ready.prepack()
    assert not any(isinstance(module, nn.Linear) for module in ready.modules())
    return ready


def some_rows() -> Packed:
    return pack(OrfTokenizer.residues(None, some_proteins(5, 166, 1, 600, 166)))


def some_bases(dnabert: GoldenDnabert) -> Packed:
    return packed([dnabert.ids(case) for case in dnabert.cases])


def test_packed_esm2_matches_the_plain_one(pair: EsmPair):
    expected, rows = pair.ours(some_rows()), some_rows()
    assert_close(prepacked(pair.ours, torch.float32)(rows), expected, **EXACT)
    half = prepacked(pair.ours, torch.bfloat16)
    assert half(rows).dtype == torch.bfloat16
    assert cosines(half.embeddings(rows), pair.ours.embeddings(rows)).min() > 0.999


def test_packed_dnabert_matches_the_plain_one(dnabert: GoldenDnabert):
    ready = prepacked(dnabert.network, torch.float32)
    for case in dnabert.cases:
        found = ready.embeddings(packed([dnabert.ids(case)]))[0]
        assert_close(found, dnabert.tensor(f"{case}/mean"), **EXACT)
    rows = some_bases(dnabert)
    found = prepacked(dnabert.network, torch.bfloat16).embeddings(rows)
    assert cosines(found, dnabert.network.embeddings(rows)).min() > 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_networks_give_the_same_bits_for_any_number_of_threads(
    pair: EsmPair, dnabert: GoldenDnabert, dtype: torch.dtype
):
    if pair.shape.heads == 1:
        pytest.skip("a single head's attention is one product, which MKL shares among threads")
    for ready, rows in (
        (prepacked(pair.ours, dtype), some_rows()),
        (prepacked(dnabert.network, dtype), some_bases(dnabert)),
    ):
        alone = ready.embeddings(rows)
        try:
            for threads in (2, 3):
                torch.set_num_threads(threads)
                assert torch.equal(ready.embeddings(rows), alone)
        finally:
            torch.set_num_threads(1)


@pytest.mark.parametrize(("inputs", "hidden"), [(3328, 512), (192, 1024), (32, 8)])
def test_a_packed_classifier_gives_the_same_bits_for_any_number_of_threads(inputs: int, hidden: int):
    torch.manual_seed(2)
    plain = Classifier(ClassifierShape(inputs, hidden)).eval()
    ready = copy.deepcopy(plain)
    ready.prepack()
    for rows in (1, 2, 16, 33, 100, 170):
        features = torch.randn(rows, inputs)
        alone = ready(features)
        assert_close(alone, plain(features), **EXACT)
        try:
            for threads in (2, 3):
                torch.set_num_threads(threads)
                assert torch.equal(ready(features), alone)
        finally:
            torch.set_num_threads(1)


def test_a_torch_that_cannot_pack_uses_the_plain_network(pair: EsmPair, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(esm2, "can_prepack", lambda dtype: False)
    ready = copy.deepcopy(pair.ours)
    ready.prepack()
    assert torch.equal(ready(some_rows()), pair.ours(some_rows()))
