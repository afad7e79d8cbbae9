"""Our writer of safetensors files: the bytes of safetensors' own, with little memory."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from running import python
from safetensors.torch import load_file, save_file
from torch import Tensor

from virnuc_async.networks.saving import Stacked, save


def some_tensors() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "b.weight": torch.randn(3, 5),
        "a.weight": torch.randn(7).bfloat16(),
        "c": torch.randn(2, 2, 2).half(),
        "wide": torch.randn(3).double(),
        "count": torch.tensor(9),
        "few": torch.arange(3, dtype=torch.int32),
        "none": torch.empty(0, 4),
        "turned": torch.randn(4, 6).T,
    }


def test_the_file_equals_safetensors_own_to_the_byte(tmp_path: Path) -> None:
    tensors = some_tensors()
    save(tensors, tmp_path / "ours")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    tensors = some_tensors()
    save(tensors, tmp_path / "x")
    found = load_file(tmp_path / "x")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FileExistsError):
        save(some_tensors(), tmp_path / "x")
    assert (tmp_path / "x").read_text() == "mine"


def test_a_tensor_in_parts_is_written_as_one(tmp_path: Path) -> None:
    torch.manual_seed(2)
    parts = tuple(torch.randn(count, 4) for count in (1, 3, 2))
    save({"x": Stacked(parts), "a": torch.ones(1)}, tmp_path / "ours")
    save_file({"x": torch.cat(parts), "a": torch.ones(1)}, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


class CreatedOnRequest(Mapping[str, Tensor]):
    """Tensors that are created when they are requested, and counted."""

    def __init__(self, count: int) -> None:
        self.count, self.created = count, 0

    def __getitem__(self, name: str) -> Tensor:
        self.created += 1
        return torch.full((8,), float(name))

    def __iter__(self) -> Iterator[str]:
        return map(str, range(self.count))

    def __len__(self) -> int:
        return self.count


def test_each_tensor_is_requested_for_the_header_and_for_its_bytes(tmp_path: Path) -> None:
    tensors = CreatedOnRequest(20)
    save(tensors, tmp_path / "x")
    assert tensors.created == 40
    assert load_file(tmp_path / "x")["13"].tolist() == [13.0] * 8


IMPORT = """
import threading, time, torch
from pathlib import Path
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.shapes import ProteinShape
from virnuc_async.networks.saving import save
from virnuc_async.models.checkpoint_formats import as_stacked, read_protein

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) << 10

def watch():
    while not done.wait(0.001):
        most[0] = max(most[0], anonymous())

source, target = Path({source!r}), Path({target!r})
read_protein(Path({small!r}))  # imports and permanent caches are not counted
before, most, done = anonymous(), [0], threading.Event()
watching = threading.Thread(target=watch)
watching.start()
save(as_stacked(read_protein(source)[0]), target)
done.set()
watching.join()
print(max(most[0], anonymous()) - before, target.stat().st_size)
"""


@pytest.mark.slow
def test_an_import_copies_no_tensor(golden: Path, tmp_path: Path) -> None:
    width, layers = 1280, 8  # 630 MB in FP32
    letter = {name: torch.ones(width, width) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    model: dict[str, Tensor] = {"embed_tokens.weight": torch.ones(33, width)}
    for number in range(layers):
        layer = f"layers.{number}"
        for name, weight in letter.items():
            model |= {f"{layer}.self_attn.{name}.weight": weight.clone()}
            model |= {f"{layer}.self_attn.{name}.bias": torch.ones(width)}
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            model |= {f"{layer}.{name}.{part}": torch.ones(width) for part in ("weight", "bias")}
        model |= {
            f"{layer}.fc1.weight": torch.ones(4 * width, width),
            f"{layer}.fc1.bias": torch.ones(4 * width),
        }
        model |= {f"{layer}.fc2.weight": torch.ones(width, 4 * width), f"{layer}.fc2.bias": torch.ones(width)}
    model |= {f"emb_layer_norm_after.{part}": torch.ones(width) for part in ("weight", "bias")}
    source, target = tmp_path / "fake.pt", tmp_path / "protein.safetensors"
    settings = torch.load(golden / "upstream" / "models" / "esm2_t3_tiny.pt", weights_only=False)["cfg"]
    settings["model"].encoder_attention_heads = 20
    torch.save({"model": model, "cfg": settings}, source)
    small = golden / "upstream" / "models" / "esm2_t3_tiny.pt"
    most, size = map(
        int, python(IMPORT.format(source=str(source), target=str(target), small=str(small))).split()
    )
    assert size > 600_000_000
    assert most < 20_000_000  # its largest tensors have 26 MB
    print(f"{most / 1e6:.0f} MB for a file of {size / 1e6:.0f} MB")
