"""``models verify --peers``: fair-esm's and transformers' ESM-2 with a bundle's weights agree with ours."""

import re
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import random_bundle
import torch
from esm.model.esm2 import ESM2
from running import Ran, python, run
from safetensors.torch import load_file, save_file
from support import CPU
from torch import Tensor
from transformers import EsmModel

import virnuc_async.models
from virnuc_async.cli.peers_table import compare_on_devices
from virnuc_async.engine.devices import Device
from virnuc_async.errors import DeviceLost, PeerUnavailable
from virnuc_async.models import peers
from virnuc_async.models.bundle import Bundle, find, write_manifest
from virnuc_async.models.checkpoint_formats import read_protein
from virnuc_async.models.peers import compare_with_peers
from virnuc_async.models.reference import published_reference
from virnuc_async.networks import esm2
from virnuc_async.networks.shapes import NucleotideShape, ProteinShape

PEERS = ["fair-esm 2.0.0", f"transformers {version('transformers')}"]
SHAPE = ProteinShape(2, 40, 4)


def verify(model: Path | str, *more: str) -> Ran:
    return run("models", "verify", model, "--peers", "--devices", "cpu", *more)


def rows(ended: Ran) -> list[list[str]]:
    """Return the rows of the table that was printed, without its header."""
    return [re.split(r"  +", line) for line in ended.out.splitlines()[1:]]


def some_proteins(*lengths: int) -> list[bytes]:
    rng = np.random.default_rng(7)
    letters = list(b"LAGVSERTIDPKQNFYMHWCXBUZO")
    return [rng.choice(letters, size).astype(np.uint8).tobytes() for size in lengths]


def random_weights(shape: ProteinShape) -> dict[str, Tensor]:
    """Return weights as large as a trained network's, under our names."""
    return dict(random_bundle.scaled(esm2.Esm2(shape)).state_dict())


@pytest.fixture
def model(golden_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the golden bundle, to change."""
    return Path(shutil.copytree(golden_bundle.directory, tmp_path / "golden"))


def change(model: Path, name: str, value: float) -> None:
    """Set one weight of ESM-2, and describe the bundle again: its files are intact."""
    path = model / "protein.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[1] = value
    save_file(tensors, path)
    bundle = find(model)
    write_manifest(model, bundle.name, bundle.length, bundle.shapes, bundle.origin)


# The command


def test_golden_networks_agree(golden_bundle: Bundle) -> None:
    ended = verify(golden_bundle.directory)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[0].split("  ")[0] == "device"
    assert [row[:2] + row[-1:] for row in rows(ended)] == [["cpu:0", peer, "agrees"] for peer in PEERS]
    for _, _, embeddings, cosine, theirs, ours, _ in rows(ended):
        deviation, allowed = embeddings.split()
        assert 0 < float(deviation) < 1e-5
        assert 1e-4 <= float(allowed.strip("()")) < 1e-2
        assert float(cosine) > 0.999999
        assert int(theirs.replace(",", "")) > 0
        assert int(ours.replace(",", "")) > 0
    assert len({row[5] for row in rows(ended)}) == 1  # ours is measured once
    assert "8 ORFs, compared with other programs' ESM-2 in FP32" in ended.err
    assert "cosine is at least 0.9999 and no number of an embedding differs by more than 1e-04" in ended.err
    assert "DNABERT-S is not compared: its published network needs remote code" in ended.err


def test_the_table_has_the_results(golden_bundle: Bundle) -> None:
    proteins = published_reference(golden_bundle.length).proteins
    results = compare_with_peers(golden_bundle, proteins, CPU, max_seconds=0)
    for row, result in zip(rows(verify(golden_bundle.directory)), results, strict=True):
        assert row[2] == f"{result.deviation:.1e} ({result.max_deviation:.0e})"
        assert row[3] == f"{result.cosine:.7f}"


def test_the_orfs_are_those_of_the_reference(model: Path) -> None:
    reference = Path(virnuc_async.models.__file__).parent / "published-reference.json"
    text = reference.read_text()
    # The first protein is now a single residue, which decides nothing but the number of tokens.
    protein = published_reference(500).proteins[0].decode()
    (model / "reference.json").write_text(text.replace(protein, "M", 1))
    bundle = find(model)
    write_manifest(model, bundle.name, bundle.length, bundle.shapes, bundle.origin)
    ended = verify(model)
    assert ended.code == 0, ended.err
    proteins = (b"M", *published_reference(500).proteins[1:])
    for row, result in zip(
        rows(ended), compare_with_peers(bundle, proteins, CPU, max_seconds=0), strict=True
    ):
        assert row[2] == f"{result.deviation:.1e} ({result.max_deviation:.0e})"


def test_two_replicas_on_one_device_are_compared_once(golden_bundle: Bundle) -> None:
    ended = run("models", "verify", golden_bundle.directory, "--peers", "--devices", "cpu,cpu")
    assert [row[0] for row in rows(ended)] == ["cpu:0", "cpu:0"]  # one for each peer


def test_our_network_with_another_scale_differs_from_both(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(esm2, "_TOKEN_DROPOUT_SCALE", 1.0)
    ended = verify(model)
    assert ended.code == 1
    assert [row[-1] for row in rows(ended)] == ["DIFFERS"] * 2
    for row in rows(ended):
        deviation, allowed = row[2].split()
        assert float(deviation) > float(allowed.strip("()"))
    messages = [line for line in ended.err.splitlines() if "differ from ours" in line]
    assert len(messages) == 2
    for message, peer in zip(messages, PEERS, strict=True):
        assert f"golden-{find(model).length}: the embeddings of {peer} differ from ours on cpu:0" in message


@pytest.mark.parametrize("damaged", [0, 1])
@pytest.mark.parametrize("name", ["up", "mlp_norm"])
def test_the_peer_with_a_damaged_weight_is_named(
    damaged: int, name: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = ("fair_esm", "hugging_face")[damaged]
    build = getattr(peers, builder)

    def build_damaged(shape: ProteinShape, weights: Mapping[str, Tensor]) -> object:
        changed = {name: tensor.clone() for name, tensor in weights.items()}
        changed[f"layers.0.{name}.weight"].view(-1)[1] += 1
        return build(shape, changed)

    monkeypatch.setattr(peers, builder, build_damaged)
    ended = verify(model)
    assert ended.code == 1
    expected = ["agrees", "agrees"]
    expected[damaged] = "DIFFERS"
    assert [row[-1] for row in rows(ended)] == expected
    (message,) = (line for line in ended.err.splitlines() if "differ from ours" in line)
    assert f"the embeddings of {PEERS[damaged]} differ" in message
    assert PEERS[1 - damaged] not in message


def test_weights_that_give_nan_agree_with_nothing(model: Path) -> None:
    change(model, "layers.0.down.bias", float("nan"))
    ended = verify(model)
    assert ended.code == 1
    assert [(row[2][:3], row[3], row[-1]) for row in rows(ended)] == [("nan", "nan", "DIFFERS")] * 2


def test_a_changed_weight_changes_all_networks_alike(model: Path) -> None:
    change(model, "layers.1.up.weight", 3.0)
    assert verify(model).code == 0


def test_damaged_files_are_refused_first(model: Path) -> None:
    with open(model / "protein.safetensors", "ab") as file:
        file.write(b"!")
    ended = verify(model)
    assert (ended.code, ended.out) == (1, "")
    assert "protein.safetensors has changed or is damaged" in ended.err


def test_quiet_prints_only_what_differs(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verify(model, "--quiet") == (0, "", "")
    monkeypatch.setattr(esm2, "_TOKEN_DROPOUT_SCALE", 1.0)
    ended = verify(model, "--quiet")
    assert (ended.code, ended.out) == (1, "")
    assert len(ended.err.splitlines()) == 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--precision", "bf16"), "--peers compares in FP32: leave out --precision, or use --precision fp32"),
        (("--record",), "argument --record: not allowed with argument --peers"),
    ],
)
def test_options_that_do_not_go_together(option: tuple[str, ...], message: str, model: Path) -> None:
    ended = verify(model, *option)
    assert (ended.code, ended.out) == (64, "")
    assert message in ended.err


@pytest.mark.parametrize("missing", ["esm.model.esm2", "transformers"])
def test_a_missing_package(missing: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "virnuc_async.models.peers")
    monkeypatch.delattr(virnuc_async.models, "peers")
    ended = verify(model)
    assert (ended.code, ended.out) == (1, "")
    assert f"import of {missing} halted" in ended.err
    assert "repair it with: pip install --force-reinstall fair-esm==2.0.0 'transformers>=4.50'" in ended.err


def test_other_commands_import_neither_package() -> None:
    script = """
import sys
import virnuc_async.pipeline, virnuc_async.learning.training, virnuc_async.engine.verification
from virnuc_async.cli.main import main
assert main(["models", "verify", "tiny-500", "--devices", "cpu", "--quiet"]) == 0
print({"esm", "transformers"} & sys.modules.keys())
"""
    assert python(script) == "set()\n"


# The networks


def test_random_weights_in_the_shape_of_the_8m_model_agree(tmp_path: Path) -> None:
    shape = random_bundle.SHAPES["8M"]
    assert (shape.layers, shape.width, shape.heads) == (6, 320, 20)
    random_bundle.write(tmp_path / "8M", shape, NucleotideShape(1, 32, 2, 64, 300))
    results = compare_with_peers(find(tmp_path / "8M"), some_proteins(166, 3, 80), CPU, max_seconds=0)
    assert [result.peer for result in results] == PEERS
    for result in results:
        assert result.agrees
        assert result.deviation < 2e-5


@pytest.mark.parametrize("lengths", [(1,), (1, 2, 3), (1_023, 5), (1_024,), (1_025, 1_025), (2_100, 7)])
def test_proteins_of_all_lengths_agree(golden_bundle: Bundle, lengths: tuple[int, ...]) -> None:
    for result in compare_with_peers(golden_bundle, some_proteins(*lengths), CPU, max_seconds=0):
        assert result.agrees
        assert result.deviation < 1e-5


def test_each_network_is_reported_before_it_is_built(golden_bundle: Bundle) -> None:
    reported: list[str] = []
    compare_with_peers(golden_bundle, [b"MK"], CPU, reported.append)
    assert reported == ["virnuc-async", "fair-esm", "transformers"]


def test_the_deviation_is_the_largest_of_any_number(
    golden_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def states(network: object) -> peers.States:
        # The first residue's state is the embedding of a protein of one residue.
        return lambda ids: torch.full((*ids.shape, golden_bundle.shapes.protein.width), 50.0)

    monkeypatch.setattr(peers, "fair_esm_states", states)
    fair_esm, transformers = compare_with_peers(golden_bundle, [b"M", b"K"], CPU, max_seconds=0)
    assert transformers.agrees
    assert not fair_esm.agrees
    assert fair_esm.max_deviation == pytest.approx(50 * 1e-4)
    assert 40 < fair_esm.deviation < 60
    assert fair_esm.cosine < 0.9


def same(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    return tensors.keys() == weights.keys() and all(
        torch.equal(tensors[name], weights[name]) for name in weights
    )


def test_an_import_of_transformers_network_returns_the_weights(tmp_path: Path) -> None:
    weights = random_weights(SHAPE)
    network = peers.hugging_face(SHAPE, weights)
    tensors = {name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(network.config.to_json_string())
    tensors, shape = read_protein(tmp_path)
    assert shape == SHAPE
    assert same(tensors, weights)


def test_an_import_of_fair_esms_network_returns_the_weights(tmp_path: Path) -> None:
    weights = random_weights(SHAPE)
    network = peers.fair_esm(SHAPE, weights)
    settings = Namespace(encoder_attention_heads=SHAPE.heads)
    torch.save({"cfg": {"model": settings}, "model": dict(network.state_dict())}, tmp_path / "esm2.pt")
    tensors, shape = read_protein(tmp_path / "esm2.pt")
    assert shape == SHAPE
    assert same(tensors, weights)


@torch.inference_mode()
def test_networks_compute_what_those_built_by_the_packages_alone_do() -> None:
    weights, ids = random_weights(SHAPE), torch.tensor([[0, 20, 5, 9, 2], [0, 8, 2, 1, 1]])
    ready = peers.fair_esm(SHAPE, weights)
    plain = ESM2(SHAPE.layers, SHAPE.width, SHAPE.heads).eval()
    # Its language head shares a tensor with the embedding.
    state = {name: tensor for name, tensor in ready.state_dict().items() if "lm_head" not in name}
    assert not plain.load_state_dict(state, strict=False).unexpected_keys
    assert torch.equal(peers.fair_esm_states(ready)(ids), peers.fair_esm_states(plain)(ids))
    hub = peers.hugging_face(SHAPE, weights)
    own = EsmModel(peers.hugging_face_config(SHAPE, SHAPE.layers), add_pooling_layer=False).eval()
    assert not own.load_state_dict(hub.state_dict(), strict=False).unexpected_keys
    assert torch.equal(peers.hugging_face_states(hub)(ids), peers.hugging_face_states(own)(ids))


@pytest.mark.parametrize("build", [peers.fair_esm, peers.hugging_face])
@pytest.mark.parametrize(
    ("name", "tensor"), [("layers.7.up.bias", torch.zeros(160)), ("layers.1.up.bias", torch.zeros(3))]
)
def test_a_network_with_other_tensors_is_refused(
    build: Callable[[ProteinShape, peers.Weights], object], name: str, tensor: Tensor
) -> None:
    with pytest.raises(PeerUnavailable, match=r"Error\(s\) in loading state_dict for E"):
        build(SHAPE, random_weights(SHAPE) | {name: tensor})


def test_padded_batches_are_shortest_first_and_have_few_tokens() -> None:
    rows = [[0, *[5] * size, 2] for size in (4, 1, 9, 2, 1)]
    batches = list(peers.padded_batches(rows, max_tokens=12))
    assert [numbers for numbers, _ in batches] == [[1, 4, 3], [0], [2]]
    numbers, ids = batches[0]
    assert ids.tolist() == [[0, 5, 2, 1], [0, 5, 2, 1], [0, 5, 5, 2]]
    assert [tuple(ids.shape) for _, ids in batches] == [(3, 4), (1, 6), (1, 11)]
    assert sorted(number for numbers, _ in batches for number in numbers) == list(range(5))


def test_networks_are_built_and_computed_with_their_gpu_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of Triton is launched on the thread's own GPU, which is the first one otherwise."""
    selected, used = ["cuda:0"], []

    @contextmanager
    def select(device: torch.device) -> Iterator[None]:
        selected.append(str(device))
        yield
        selected.pop()

    def compute() -> Tensor:
        used.append(selected[-1])
        return torch.ones(1)

    def make() -> Callable[[], Tensor]:
        used.append(selected[-1])
        return compute

    monkeypatch.setattr(torch.cuda, "device", select)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: used.append(selected[-1]))
    peers._measure(make, torch.device("cuda", 1), 0.0)
    assert set(used) == {"cuda:1"}
    assert len(used) >= 3
    assert selected == ["cuda:0"]


def test_a_card_that_does_not_answer_is_named(golden_bundle: Bundle) -> None:
    card = Device("cuda:1", "unknown GPU", 0, (0, 0), index=1, failure="GPU is lost")
    with pytest.raises(DeviceLost, match="cuda:1 failed: GPU is lost"):
        compare_on_devices(golden_bundle, [card], lambda _: None)
