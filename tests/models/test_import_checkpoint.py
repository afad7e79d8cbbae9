"""Bundles made from checkpoints: complete, or not at all."""

import json
import os
from pathlib import Path

import pytest
import torch
from checkpoint_files import dnabert_tensors, refusal, same
from running import files_no_larger_than
from safetensors.torch import load_file

from virnuc_async.errors import BadCheckpoint, ForeignDirectoryError
from virnuc_async.models.bundle import PARTS, Bundle, find
from virnuc_async.models.checkpoint_formats import read_classifier, read_nucleotide, read_protein
from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2


def test_an_imported_bundle(golden_parts: CheckpointPaths, tmp_path: Path):
    made = import_bundle(golden_parts, tmp_path / "deep" / "mine", "mine", 500)
    assert made == find(tmp_path / "deep" / "mine")
    assert sorted(path.name for path in made.directory.iterdir()) == sorted((*PARTS, "bundle.json"))
    assert made.tokenizer() == (golden_parts.nucleotide / "tokenizer.json").read_text("utf-8")
    for part, (tensors, shape), network in (
        ("protein", read_protein(golden_parts.protein), Esm2),
        ("nucleotide", read_nucleotide(golden_parts.nucleotide), DnabertS),
        ("classifier", read_classifier(golden_parts.classifier), Classifier),
    ):
        assert getattr(made.shapes, part) == shape
        assert same(load_file(made.directory / f"{part}.safetensors"), tensors)
        with torch.device("meta"):
            assert network(shape).state_dict().keys() == tensors.keys()
    made.check()


def test_an_imported_bundle_names_its_files_without_directories(
    golden_parts: CheckpointPaths, tmp_path: Path
):
    made = import_bundle(golden_parts, tmp_path / "mine", "mine", 500)
    assert made.origin["nucleotide"].startswith("dnabert/pytorch_model.bin, sha256 ")
    assert made.origin["classifier"].startswith("classifier.pth, sha256 4c25273d313815b4")
    assert str(golden_parts.protein.parent) not in (made.directory / "bundle.json").read_text("utf-8")


def test_importing_twice_gives_the_same_bundle(golden_parts: CheckpointPaths, tmp_path: Path):
    first, second = (import_bundle(golden_parts, tmp_path / name, name, 300) for name in "ab")
    assert first.fingerprint == second.fingerprint


def test_only_an_empty_directory_is_accepted(golden_parts: CheckpointPaths, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    import_bundle(golden_parts, tmp_path / "empty", "mine", 500)
    with pytest.raises(ForeignDirectoryError) as caught:
        import_bundle(golden_parts, tmp_path / "empty", "mine", 500)
    assert (
        str(caught.value) == f"{tmp_path / 'empty'}: exists and is not empty. Choose a new or empty directory"
    )


def test_a_full_disk_leaves_nothing_of_a_bundle(golden_parts: CheckpointPaths, tmp_path: Path):
    with files_no_larger_than(10_000), pytest.raises(OSError, match="File too large"):
        import_bundle(golden_parts, tmp_path / "mine", "mine", 500)
    assert not list(tmp_path.iterdir())


def test_parts_that_do_not_fit_each_other(golden_parts: CheckpointPaths, as_main, tmp_path: Path):
    torch.save(as_main(), tmp_path / "x.pth")
    parts = CheckpointPaths(golden_parts.protein, golden_parts.nucleotide, tmp_path / "x.pth")
    with pytest.raises(BadCheckpoint) as caught:
        import_bundle(parts, tmp_path / "mine", "mine", 500)
    assert caught.value.reason == "it takes 6 numbers, but the embeddings have 96 + 64 numbers"
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (None, "there is no tokenizer.json in it"),
        (b"{}", "Model missing"),
        (b"not json", "expected ident"),
        (b"\xff", "codec can't decode"),
    ],
)
def test_a_tokenizer_that_cannot_be_used(
    tokenizer: bytes | None, reason: str, golden_parts, dnabert, tmp_path
):
    (dnabert / "tokenizer.json").unlink()
    if tokenizer is not None:
        (dnabert / "tokenizer.json").write_bytes(tokenizer)
    parts = CheckpointPaths(golden_parts.protein, dnabert, golden_parts.classifier)
    assert reason in refusal(lambda _: import_bundle(parts, tmp_path / "mine", "mine", 500), dnabert)
    assert not (tmp_path / "mine").exists()


def test_a_tokenizer_of_more_tokens_than_the_network_has(
    golden_parts: CheckpointPaths, dnabert: Path, tmp_path: Path
):
    path = dnabert / "tokenizer.json"
    described = json.loads(path.read_bytes())
    described["model"]["vocab"] |= {f"TTTT{number}": number for number in range(1024, 1030)}
    path.write_text(json.dumps(described))
    parts = CheckpointPaths(golden_parts.protein, dnabert, golden_parts.classifier)
    found = refusal(lambda _: import_bundle(parts, tmp_path / "mine", "mine", 500), dnabert)
    assert found == "it has 1030 tokens, but the network 1024"


def test_every_file_of_an_imported_bundle_follows_the_umask(golden_bundle: Bundle):
    modes = {path.stat().st_mode & 0o777 for path in golden_bundle.directory.iterdir()}
    mask = os.umask(0)
    os.umask(mask)
    assert modes == {0o666 & ~mask}


def test_tensors_that_share_their_storage(dnabert: Path, golden_parts: CheckpointPaths, tmp_path: Path):
    tensors = dnabert_tensors(dnabert)
    norm = "encoder.layer.{}.mlp.layernorm.bias"
    tensors[norm.format(1)] = tensors[norm.format(0)]
    torch.save(tensors, dnabert / "pytorch_model.bin")
    parts = CheckpointPaths(golden_parts.protein, dnabert, golden_parts.classifier)
    made = import_bundle(parts, tmp_path / "made", "made", 500)
    written = load_file(made.directory / "nucleotide.safetensors")
    assert torch.equal(written["layers.1.mlp_norm.bias"], tensors[norm.format(0)])
