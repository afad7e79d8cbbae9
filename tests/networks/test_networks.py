import copy
import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import esm
import numpy as np
import pytest
import torch
import weights
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support import CPU, beside, packed, pieces, ragged, read_embeddings, read_table
from torch import Tensor, nn
from torch.testing import assert_close

from virnuc_async.errors import BadBundle
from virnuc_async.models.bundle import Bundle
from virnuc_async.models.checkpoint_formats import ESM2_HEADS, read_nucleotide, read_protein
from virnuc_async.networks import esm2
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.dnabert_s import DnabertS, slopes
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.loading import load
from virnuc_async.networks.packing import Packed, Run, dummy_batch, mean_pool, pack, positions
from virnuc_async.networks.shapes import ClassifierShape, NucleotideShape, ProteinShape
from virnuc_async.sequences.tokens import OrfTokenizer

exact = {"rtol": 0, "atol": 1e-5}  # FP32, two or three layers
DNABERT_SETS = ("tiny_h48_l2_a6", "tiny_h64_l3_a4", "tiny_h96_l2_a12", "wide_full_h768_l2_a12_i3072")


def filled(network: Callable[[], nn.Module], tensors: dict[str, Tensor]) -> nn.Module:
    """Build a network around *tensors*."""
    with torch.device("meta"):
        built = network()
    built.load_state_dict(tensors, assign=True)
    return built.requires_grad_(False).eval()


def cosines(a: Tensor, b: Tensor) -> Tensor:
    return nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)


# DNABERT-S, against the published bert_layers.py


class Golden(NamedTuple):
    """A golden set: the network, what its inputs are called, what goes in and comes out."""

    network: DnabertS
    shape: NucleotideShape
    cases: tuple[str, ...]
    arrays: dict[str, np.ndarray]

    def ids(self, case: str) -> list[int]:
        return self.arrays[f"{case}/ids"].tolist()

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])


@pytest.fixture(scope="module", params=DNABERT_SETS)
def dnabert(request, golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    path = golden / "dnabert" / request.param
    described = json.loads(path.with_suffix(".json").read_bytes())
    directory = tmp_path_factory.mktemp(request.param)
    (directory / "config.json").write_text(json.dumps(described["config"]))
    made = {name: torch.from_numpy(values) for name, values in weights.dnabert(described["config"]).items()}
    save_file(made, directory / "model.safetensors")
    tensors, shape = read_nucleotide(directory)
    cases = tuple(case["name"] for case in described["cases"])
    return Golden(
        filled(lambda: DnabertS(shape), tensors), shape, cases, dict(np.load(path.with_suffix(".npz")))
    )


@pytest.mark.parametrize("name", DNABERT_SETS[:3])
def test_the_golden_weights_are_made_again_exactly(name: str, golden: Path):
    wanted = load_file(beside("dnabert") / f"{name}.safetensors")
    made = weights.dnabert(json.loads((golden / "dnabert" / f"{name}.json").read_bytes())["config"])
    assert made.keys() == wanted.keys()
    assert all(np.array_equal(made[tensor], wanted[tensor].numpy()) for tensor in wanted)


def test_dnabert_means(dnabert: Golden):
    for case in dnabert.cases:
        found = dnabert.network.embeddings(packed([dnabert.ids(case)]))
        assert found.dtype == torch.float32
        assert_close(found[0], dnabert.tensor(f"{case}/mean"), **exact)
        assert_close(found[0].double(), dnabert.tensor(f"{case}/mean64"), **exact)


def test_dnabert_hidden_states(dnabert: Golden):
    given_states = [case for case in dnabert.cases if f"{case}/hidden" in dnabert.arrays]
    assert len(given_states) >= 4
    for case in given_states:
        hidden = dnabert.network(packed([dnabert.ids(case)]))
        assert_close(hidden, dnabert.tensor(f"{case}/hidden"), **exact)


@pytest.mark.parametrize("dnabert", DNABERT_SETS[1:3], indirect=True)
def test_dnabert_states_after_each_layer(dnabert: Golden):
    states = dnabert.tensor("len17/states")
    assert len(states) == dnabert.shape.layers + 1
    layers = dnabert.network.layers
    for number, wanted in enumerate(states):
        dnabert.network.layers = layers[:number]
        assert_close(dnabert.network(packed([dnabert.ids("len17")])), wanted, **exact)
    dnabert.network.layers = layers


def test_dnabert_padded_batch_of_upstream_equals_our_packed_one(dnabert: Golden):
    ids, mask = dnabert.arrays["batch/ids"], dnabert.arrays["batch/mask"].astype(bool)
    rows = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
    assert len({len(row) for row in rows}) > 1
    assert_close(dnabert.network.embeddings(packed(rows)), dnabert.tensor("batch/mean"), **exact)


def test_dnabert_mixed_lengths_in_one_batch_equal_one_at_a_time(dnabert: Golden):
    cases = [*dnabert.cases, *dnabert.cases[:2]]
    together = dnabert.network.embeddings(packed([dnabert.ids(case) for case in cases]))
    for case, row in zip(cases, together, strict=True):
        assert_close(row, dnabert.tensor(f"{case}/mean"), **exact)


def test_dnabert_slopes(dnabert: Golden):
    found = torch.tensor(slopes(dnabert.shape.heads))
    assert_close(found, dnabert.tensor("slopes"), rtol=1e-6, atol=0)


def test_slopes_are_as_published():
    assert slopes(1) == [2**-8]
    assert slopes(4) == [2**-2, 2**-4, 2**-6, 2**-8]
    assert slopes(6) == [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]
    assert slopes(12) == [2**-k for k in (1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5)]


def test_dnabert_in_bf16_is_close_to_fp32(dnabert: Golden):
    tensors = {name: tensor.bfloat16() for name, tensor in dnabert.network.state_dict().items()}
    half = filled(lambda: DnabertS(dnabert.shape), tensors)
    rows = packed([dnabert.ids(case) for case in dnabert.cases])
    found = half.embeddings(rows)
    assert half(rows).dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert cosines(found, dnabert.network.embeddings(rows)).min() > 0.999


# ESM-2, against fair-esm


class Pair(NamedTuple):
    theirs: esm.ESM2
    ours: Esm2
    shape: ProteinShape


@pytest.fixture(scope="module", params=[(2, 40, 4), (3, 64, 1), (2, 96, 12)], ids=str)
def pair(request, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """fair-esm's own class with weights as large as in a trained network, and ours with the same."""
    layers, width, heads = request.param
    torch.manual_seed(sum(request.param))
    theirs = esm.ESM2(layers, width, heads).requires_grad_(False).eval()
    for name, tensor in theirs.state_dict().items():
        if "layer_norm" in name:
            tensor.uniform_(0.5, 1.5) if name.endswith("weight") else tensor.uniform_(-0.3, 0.3)
        elif name.endswith("bias"):
            tensor.normal_(0, 0.1)
        elif "inv_freq" not in name:
            tensor.normal_(0, 1 if "embed_tokens" in name else 1.5 * width**-0.5)
    path = tmp_path_factory.mktemp("esm") / "esm2_tiny.pt"
    settings = Namespace(encoder_layers=layers, encoder_embed_dim=width, encoder_attention_heads=heads)
    model = {f"encoder.sentence_encoder.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"cfg": {"model": settings}, "model": model}, path)
    tensors, shape = read_protein(path)
    assert shape == ProteinShape(layers, width, heads)
    return Pair(theirs, filled(lambda: Esm2(shape), tensors), shape)


def some_proteins(*lengths: int) -> list[bytes]:
    rng = np.random.default_rng(7)
    return [
        rng.choice(list(b"LAGVSERTIDPKQNFYMHWCXBUZO"), size).astype(np.uint8).tobytes() for size in lengths
    ]


def fair_esm_states(model: esm.ESM2, protein: bytes) -> Tensor:
    _, _, tokens = model.alphabet.get_batch_converter()([("", protein.decode())])
    return model(tokens, repr_layers=[model.num_layers])["representations"][model.num_layers][0]


def test_esm2_hidden_states(pair: Pair):
    for protein in some_proteins(1, 2, 3, 17, 166, 700):
        found = pair.ours(pack(OrfTokenizer.residues(None, [protein])))
        assert_close(found, fair_esm_states(pair.theirs, protein), **exact)


def test_esm2_means_of_several_lengths_in_one_batch(pair: Pair):
    proteins = some_proteins(5, 166, 1, 99, 166, 5, 42, 100)
    found = pair.ours.embeddings(pack(OrfTokenizer.residues(None, proteins)))
    assert found.dtype == torch.float32
    for protein, row in zip(proteins, found, strict=True):
        assert_close(row, fair_esm_states(pair.theirs, protein)[1:-1].mean(0), **exact)


@pytest.mark.parametrize("length", [1_023, 1_024, 1_025, 1_400])
def test_esm2_averages_the_first_1024_residues_of_an_uncut_protein(pair: Pair, length: int):
    protein, short = some_proteins(length, 3)
    found = pair.ours.embeddings(pack(OrfTokenizer.residues(None, [short, protein])))
    # Upstream's own words: t[i, 1 : truncate_len + 1].mean(0)
    wanted = fair_esm_states(pair.theirs, protein)[1 : min(length, 1_024) + 1].mean(0)
    assert_close(found[1], wanted, **exact)


def test_esm2_in_bf16_is_close_to_fp32(pair: Pair):
    tensors = {name: tensor.bfloat16() for name, tensor in pair.ours.state_dict().items()}
    half = filled(lambda: Esm2(pair.shape), tensors)
    rows = pack(OrfTokenizer.residues(None, some_proteins(5, 166, 1, 600)))
    found = half.embeddings(rows)
    assert half(rows).dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert cosines(found, pair.ours.embeddings(rows)).min() > 0.999


# Weights packed for the CPU, against the plain way


def prepacked(network: Esm2 | DnabertS, dtype: torch.dtype) -> Esm2 | DnabertS:
    """Give a copy of *network* in *dtype* and packed."""
    ready = copy.deepcopy(network).to(dtype)
    ready.prepack()
    assert not any(isinstance(module, nn.Linear) for module in ready.modules())
    return ready


def some_rows() -> Packed:
    return pack(OrfTokenizer.residues(None, some_proteins(5, 166, 1, 600, 166)))


def some_bases(dnabert: Golden) -> Packed:
    return packed([dnabert.ids(case) for case in dnabert.cases])


def test_packed_esm2_is_the_plain_one(pair: Pair):
    wanted, rows = pair.ours(some_rows()), some_rows()
    assert_close(prepacked(pair.ours, torch.float32)(rows), wanted, **exact)
    half = prepacked(pair.ours, torch.bfloat16)
    assert half(rows).dtype == torch.bfloat16
    assert cosines(half.embeddings(rows), pair.ours.embeddings(rows)).min() > 0.999


def test_packed_dnabert_is_the_plain_one(dnabert: Golden):
    ready = prepacked(dnabert.network, torch.float32)
    for case in dnabert.cases:
        found = ready.embeddings(packed([dnabert.ids(case)]))[0]
        assert_close(found, dnabert.tensor(f"{case}/mean"), **exact)
    rows = some_bases(dnabert)
    found = prepacked(dnabert.network, torch.bfloat16).embeddings(rows)
    assert cosines(found, dnabert.network.embeddings(rows)).min() > 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_networks_give_the_same_bits_for_any_number_of_threads(
    pair: Pair, dnabert: Golden, dtype: torch.dtype
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
        assert_close(alone, plain(features), **exact)
        try:
            for threads in (2, 3):
                torch.set_num_threads(threads)
                assert torch.equal(ready(features), alone)
        finally:
            torch.set_num_threads(1)


def test_a_torch_that_cannot_pack_computes_the_plain_way(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(esm2, "can_prepack", lambda dtype: False)
    ready = copy.deepcopy(pair.ours)
    ready.prepack()
    assert torch.equal(ready(some_rows()), pair.ours(some_rows()))


# The three networks together, against upstream


def test_upstreams_embeddings_and_scores(golden: Path, expected: Path, golden_bundle: Bundle):
    tokenizer = OrfTokenizer(golden_bundle.tokenizer())
    shapes, place = golden_bundle.shapes, golden_bundle.directory
    with torch.device("meta"):
        bases, residues = DnabertS(shapes.nucleotide), Esm2(shapes.protein)
        classifier = Classifier(shapes.classifier)
    load(bases, place / "nucleotide.safetensors", CPU, torch.float32)
    load(residues, place / "protein.safetensors", CPU, torch.float32)
    load(classifier, place / "classifier.safetensors", CPU, torch.float32)
    cut = list(pieces(golden / "upstream" / "input.fa", golden_bundle.length))
    names = [f"{piece.id}{orf.frame.name}" for piece in cut for orf in piece.orfs]
    orfs = [orf for piece in cut for orf in piece.orfs]
    left = bases.embeddings(pack(tokenizer.nucleotides([orf.bases for orf in orfs])))
    right = residues.embeddings(pack(tokenizer.residues([orf.protein for orf in orfs])))
    features = torch.cat((left, right), 1)
    scores = classifier(features)

    merged = torch.load(expected / "merged.pt", weights_only=True)
    assert names == merged["ids"]
    assert_close(features, merged["data"], **exact)
    dnabert_s, esm2 = read_embeddings(expected)
    wanted = torch.stack([torch.cat((dnabert_s[name], esm2[name])) for name in names])
    assert_close(features, wanted, **exact)
    _, *rows = read_table(expected / "prediction_results.txt")
    assert names == [row[0] for row in rows]
    assert_close(scores, torch.tensor([[float(row[2]), float(row[3])] for row in rows]), **exact)
    labels = ["virus" if others < virus else "others" for others, virus in scores.tolist()]
    assert labels == [row[1] for row in rows]


def test_the_classifier_is_linear_norm_relu_linear_softmax():
    torch.manual_seed(1)
    network = Classifier(ClassifierShape(inputs=5, hidden=4)).eval()
    network.norm.running_mean.normal_()
    network.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 5)
    hidden = x @ network.hidden.weight.T + network.hidden.bias
    normed = (hidden - network.norm.running_mean) / (network.norm.running_var + 1e-5).sqrt()
    logits = normed.clamp(min=0) @ network.output.weight.T + network.output.bias
    assert_close(network.logits(x), logits)
    assert_close(network(x), logits.exp() / logits.exp().sum(1, keepdim=True))


# Packing

ROWS = st.lists(st.lists(st.integers(0, 99), min_size=3, max_size=9), min_size=1, max_size=9)


@given(ROWS)
def test_packing_sorts_by_length_and_remembers_the_places(rows: list[list[int]]):
    batch = packed(rows)
    ordered = sorted(rows, key=len, reverse=True)
    assert batch.ids.tolist() == sum(ordered, [])
    assert [ordered[place] for place in batch.inverse_order.tolist()] == rows
    assert batch.longest == max(map(len, rows))
    assert [run.length for run in batch.runs] == sorted({len(row) for row in rows}, reverse=True)
    viewed = [row for view in batch.views(batch.ids) for row in view.tolist()]
    assert viewed == ordered
    assert positions(batch).tolist() == [at for row in ordered for at in range(len(row))]
    assert batch.cu_seqlens.diff().tolist() == list(map(len, ordered))
    copy = batch.to(CPU)
    assert copy.runs == batch.runs
    assert all(map(torch.equal, copy.tensors, batch.tensors))


@given(ROWS, st.sampled_from([(0, None), (1, None), (1, 1), (1, 4)]))
def test_means_are_those_of_each_row(rows: list[list[int]], inner: tuple[int, int | None]):
    first, most = inner
    batch = packed(rows)
    found = mean_pool(batch.ids[:, None] * torch.tensor([1.0, -2.0]), batch, first, most)
    for row, (once, twice) in zip(rows, found.tolist(), strict=True):
        part = row[first : len(row) - first][:most]
        assert once == pytest.approx(sum(part) / len(part))
        assert twice == pytest.approx(-2 * sum(part) / len(part))


def test_a_sample_has_the_lengths_and_known_tokens():
    batch = pack(dummy_batch(3, 5))
    assert batch.cu_seqlens.tolist() == [0, 5, 8]
    assert set(batch.ids.tolist()) == {4}


def test_runs_are_views():
    tokens = torch.arange(16).reshape(8, 2)
    batch = packed([[0] * 3, [0] * 2, [0] * 3])
    assert batch.runs == (Run(count=2, length=3), Run(count=1, length=2))
    first, second = batch.views(tokens)
    assert first.tolist() == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]
    assert second.tolist() == [[[12, 13], [14, 15]]]
    assert second.data_ptr() == tokens[6:].data_ptr()


# Loading

SHAPE = ClassifierShape(inputs=6, hidden=4)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    torch.manual_seed(3)
    tensors = dict(Classifier(SHAPE).state_dict())
    save_file(tensors, tmp_path / "classifier.safetensors")
    return tmp_path / "classifier.safetensors", tensors


def loaded(path: Path, dtype: torch.dtype = torch.float32) -> Classifier:
    with torch.device("meta"):
        network = Classifier(SHAPE)
    return load(network, path, CPU, dtype)


def test_loading_gives_the_files_tensors_ready_for_inference(saved):
    path, tensors = saved
    network = loaded(path)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in tensors.items())
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_loading_casts_floating_point_alone(saved):
    path, tensors = saved
    state = loaded(path, torch.bfloat16).state_dict()
    assert torch.equal(state["hidden.weight"], tensors["hidden.weight"].bfloat16())
    assert state["norm.num_batches_tracked"].dtype == torch.int64


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows what is mapped")
def test_weights_on_the_cpu_are_the_files_pages(saved):
    path, _ = saved
    network = loaded(path)
    at = network.hidden.weight.data_ptr()
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    places = [line[0].split("-") for line in lines if line[-1] == str(path)]
    assert any(int(start, 16) <= at < int(end, 16) for start, end in places)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("output.bias"), "1 tensors are missing: output.bias"),
        (lambda t: t.update(more=torch.zeros(1)), "1 tensors are unknown: more"),
        (
            lambda t: [t.pop(name) for name in list(t) if name.startswith("norm")],
            "5 tensors are missing: norm.bias, norm.num_batches_tracked, norm.running_mean, ...",
        ),
        (
            lambda t: t.update({"hidden.bias": torch.zeros(5)}),
            "hidden.bias has the shape (5,), not (4,)",
        ),
        (
            lambda t: t.update({"hidden.weight": torch.zeros(6, 4)}),
            "hidden.weight has the shape (6, 4), not (4, 6)",
        ),
        (
            lambda t: t.update({"hidden.weight": torch.zeros(4, 6, dtype=torch.int32)}),
            "hidden.weight holds torch.int32",
        ),
    ],
)
def test_loading_is_strict(saved, change, reason: str):
    path, tensors = saved
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(BadBundle) as caught:
        loaded(path)
    assert str(caught.value) == f"{path} is not a usable bundle: {reason}"


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02]q\0.", b"\xff" * 99])
def test_what_is_no_safetensors_file(content: bytes, tmp_path: Path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadBundle, match="is not a usable bundle: "):
        loaded(path)


@pytest.mark.parametrize("missing", [1, 100, 400])
def test_a_truncated_file(saved, missing: int):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(BadBundle, match="is not a usable bundle: "):
        loaded(path)


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(BadBundle, match=r"no\.safetensors is not a usable bundle: No such file"):
        loaded(tmp_path / "no.safetensors")


def test_ragged_rows_are_packed_whatever_their_order():
    assert pack(ragged([[1], [2, 3], [4]])).ids.tolist() == [2, 3, 1, 4]


# How many numbers there are


@pytest.mark.parametrize(
    ("shape", "network"),
    [
        *((ProteinShape(*size, heads), Esm2) for size, heads in ESM2_HEADS.items()),
        (ClassifierShape(3328, 512), Classifier),
    ],
)
def test_parameters_are_counted(
    shape: ProteinShape | ClassifierShape, network: Callable[[Any], nn.Module]
) -> None:
    with torch.device("meta"):
        tensors = network(shape).state_dict()
    assert shape.parameters == sum(tensor.numel() for tensor in tensors.values())
