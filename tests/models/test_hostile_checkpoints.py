"""Checkpoints that try to execute code: nothing of them is executed."""

import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import Gadget, pickled, refusal, unzipped, zipped
from torch import nn

from virnuc_async.models.checkpoint_formats import read_classifier, read_nucleotide, read_protein


class Trap(nn.Module):
    """A class that acts when its state is set."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        open(state["mark"], "w").close()


GADGETS: dict[str, tuple[Callable[[Path], object], str]] = {
    "system": (lambda mark: Gadget(os.system, f"touch {mark}"), "posix.system"),
    "eval": (lambda mark: Gadget(eval, f"__import__('pathlib').Path({str(mark)!r}).touch()"), "eval"),
    "exec": (lambda mark: Gadget(exec, f"import pathlib; pathlib.Path({str(mark)!r}).touch()"), "exec"),
    "open": (lambda mark: Gadget(open, str(mark), "w"), "io.open"),
    "popen": (lambda mark: Gadget(subprocess.Popen, ["touch", str(mark)]), "commands.Popen"),
    "touch": (lambda mark: Gadget(Path.touch, mark), "getattr"),
    "class": (lambda mark: _trap(mark), f"{Trap.__module__}.Trap"),
}


def _trap(mark: Path) -> Trap:
    trap = Trap()
    trap.mark = str(mark)
    return trap


@pytest.mark.parametrize("wrap", [zipped, unzipped, pickled])
@pytest.mark.parametrize("name", GADGETS)
def test_nothing_of_a_hostile_file_is_executed(name: str, wrap, as_main, dnabert: Path, tmp_path: Path):
    make, named = GADGETS[name]
    mark = tmp_path / "executed"
    module = as_main()
    module.more = make(mark)
    for read, path, found in (
        (read_protein, tmp_path / "x.pt", {"model": {"a": make(mark)}, "cfg": None}),
        (read_protein, tmp_path / "x.pt", {"model": {}, "cfg": {"model": make(mark)}}),
        (read_nucleotide, dnabert, {"embeddings.word_embeddings.weight": make(mark)}),
        (read_nucleotide, dnabert, make(mark)),
        (read_classifier, tmp_path / "x.pth", module),
        (read_classifier, tmp_path / "x.pth", make(mark)),
    ):
        file = path / "pytorch_model.bin" if path.is_dir() else path
        file.write_bytes(wrap(found))
        reason = refusal(read, path)
        assert reason.endswith("; no code from it was executed")
        if wrap is zipped:
            assert f"({named})" in reason
        assert not mark.exists()


def test_the_gadgets_work_when_they_are_unpickled(tmp_path: Path):
    for number, (make, _) in enumerate(GADGETS.values()):
        mark = tmp_path / str(number)
        result = pickle.loads(pickle.dumps(make(mark)))
        if isinstance(result, subprocess.Popen):
            result.wait()
        if hasattr(result, "close"):
            result.close()
        assert mark.exists()
