"""Weights from safetensors files: exact, memory-mapped, and strictly checked."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import CPU
from torch import Tensor

from virnuc_async.errors import BadBundle, UnsuitablePrecision
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.loading import load
from virnuc_async.networks.shapes import ClassifierShape

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


def test_the_files_tensors_are_loaded_ready_for_inference(saved):
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
def test_other_files_than_safetensors(content: bytes, tmp_path: Path):
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


@pytest.mark.parametrize("number", [65504.0, 65505.0, -1e6, float("inf"), float("nan")])
def test_a_weight_that_fp16_cannot_hold_is_named(number: float, saved):
    path, tensors = saved
    tensors["hidden.weight"][2, 1] = number
    save_file(tensors, path)
    assert loaded(path, torch.bfloat16).hidden.weight.dtype == torch.bfloat16
    if number in (65505.0, -1e6):
        with pytest.raises(UnsuitablePrecision) as caught:
            loaded(path, torch.float16)
        reason = f"hidden.weight in {path} has the number {abs(number):.6g}"
        assert (caught.value.precision, caught.value.reason) == ("FP16", reason)
    else:  # what is not finite in the file stays what it is
        weight = loaded(path, torch.float16).hidden.weight
        assert torch.equal(weight.nan_to_num(7), tensors["hidden.weight"].half().nan_to_num(7))
