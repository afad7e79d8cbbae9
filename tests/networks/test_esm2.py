"""ESM-2, compared with fair-esm's own network and with upstream's rule for the mean."""

import pytest
import torch
from golden_networks import EXACT, EsmPair, build_with, cosines, some_proteins, states_by_fair_esm
from torch.testing import assert_close

from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.packing import pack
from virnuc_async.sequences.tokens import OrfTokenizer


def test_hidden_states(pair: EsmPair):
    for protein in some_proteins(1, 2, 3, 17, 166, 700):
        found = pair.ours(pack(OrfTokenizer.residues(None, [protein])))
        assert_close(found, states_by_fair_esm(pair.theirs, protein), **EXACT)


def test_embeddings_of_several_lengths_in_one_batch(pair: EsmPair):
    proteins = some_proteins(5, 166, 1, 99, 166, 5, 42, 100)
    found = pair.ours.embeddings(pack(OrfTokenizer.residues(None, proteins)))
    assert found.dtype == torch.float32
    for protein, row in zip(proteins, found, strict=True):
        assert_close(row, states_by_fair_esm(pair.theirs, protein)[1:-1].mean(0), **EXACT)


@pytest.mark.parametrize("length", [1_023, 1_024, 1_025, 1_400])
def test_embeddings_average_the_first_1024_residues_of_an_uncut_protein(pair: EsmPair, length: int):
    protein, short = some_proteins(length, 3)
    found = pair.ours.embeddings(pack(OrfTokenizer.residues(None, [short, protein])))
    # In upstream's code: t[i, 1 : truncate_len + 1].mean(0)
    expected = states_by_fair_esm(pair.theirs, protein)[1 : min(length, 1_024) + 1].mean(0)
    assert_close(found[1], expected, **EXACT)


@pytest.mark.parametrize(("dtype", "cosine"), [(torch.bfloat16, 0.999), (torch.float16, 0.99999)], ids=str)
def test_half_precisions_are_close_to_fp32(dtype: torch.dtype, cosine: float, pair: EsmPair):
    tensors = {name: tensor.to(dtype) for name, tensor in pair.ours.state_dict().items()}
    half = build_with(lambda: Esm2(pair.shape), tensors)
    rows = pack(OrfTokenizer.residues(None, some_proteins(5, 166, 1, 600)))
    found = half.embeddings(rows)
    assert half(rows).dtype == dtype
    assert found.dtype == torch.float32
    assert cosines(found, pair.ours.embeddings(rows)).min() > cosine
