"""What the tests of checkpoints share: files of every form, and how they are refused."""

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running import memory_for_no_more_than
from torch import Tensor, nn

from virnuc_async.errors import BadCheckpoint

Tensors = dict[str, Tensor]


class MLPClassifier(nn.Module):
    """VirNucPro's own class, as in its training program."""

    def __init__(self, inputs: int = 6, hidden: int = 4) -> None:
        super().__init__()
        self.hidden_layer = nn.Linear(inputs, hidden)
        self.bn1 = nn.BatchNorm1d(hidden)
        self.dropout = nn.Dropout(0.5)
        self.output_layer = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_layer(self.dropout(torch.relu(self.bn1(self.hidden_layer(x)))))


def same(found: Tensors, expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


def filled(network: Callable[[], nn.Module], tensors: Tensors) -> nn.Module:
    with torch.device("meta"):
        built = network()
    built.load_state_dict(tensors, assign=True)
    return built.requires_grad_(False).eval()


def refusal(read: Callable[[Path], Any], path: Path) -> str:
    """Return the reason for which *read* refuses *path*; check that the message is one line."""
    with pytest.raises(BadCheckpoint) as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value) == f"{caught.value.path} cannot be imported: {caught.value.reason}"
    assert caught.value.path.startswith(str(path))
    return caught.value.reason


def edited(change: Callable[[dict[str, Any]], object], source: Path, target: Path) -> Path:
    """Write the values of *source*, changed, to *target*."""
    found = torch.load(source, weights_only=False)
    change(found)
    torch.save(found, target)
    return target


def pickled(found: object) -> bytes:
    return pickle.dumps(found, protocol=2)


def zipped(found: object) -> bytes:
    file = io.BytesIO()
    torch.save(found, file)
    return file.getvalue()


def unzipped(found: object) -> bytes:
    """Save in torch's old format, which would also keep the source text of modules."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Couldn't retrieve source code", UserWarning)
        torch.save(found, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def dnabert_tensors(directory: Path) -> Tensors:
    return torch.load(directory / "pytorch_model.bin", weights_only=True)


def refused_without_memory(read: Callable[[Path], Any], path: Path) -> str:
    """Check that *read* refuses *path* with hardly any memory; return the reason."""
    with memory_for_no_more_than(256 << 20):
        return refusal(read, path)


def repacked(source: Path, target: Path, compression: int, **members: bytes) -> Path:
    """Copy the zip file *source* with other *members*, named by the end of their names."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, members.get(name.rpartition("/")[2].replace(".", "_"), old.read(name)))
    return target


class Gadget:
    """Calls *function* when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call
