"""``devices``, and the GPUs that a command sees."""

import re
from pathlib import Path

import pytest
import torch
from gpus import GIB, Gpu, Machine
from running import predict, python, run, summary

from virnuc_async.cli.commands.devices import HEADER
from virnuc_async.cli.main import main
from virnuc_async.engine.instruction_sets import has_native_bf16
from virnuc_async.engine.memory_account import account
from virnuc_async.models.bundle import Bundle
from virnuc_async.settings import Precision


def test_devices_are_named_as_the_option_takes_them(good: Path, out: Path) -> None:
    ended = run("devices")
    assert (ended.code, ended.err) == (0, "")
    header, *_, cpu = [re.split(r"  +", line) for line in ended.out.splitlines()]
    assert header == list(HEADER)
    name, model, memory, free, capability, precision, weights, tokens, activations, used = cpu
    assert (name, free, capability, activations) == ("cpu", "-", "-", "-")
    assert precision == ("FP32 (or BF16)" if has_native_bf16() else "FP32")
    assert (weights, tokens) == ("0.0 GiB", "2,048")
    assert model.startswith("CPU (")
    assert re.fullmatch(r"\d+ GiB", memory)
    has_gpu = torch.cuda.is_available()
    assert used == ("no: there are GPUs" if has_gpu else "yes: no GPU that CUDA can use")
    assert predict(good, out, "--devices", name).code == 0
    assert summary(out)["devices"][0]["kind"] == model


def rows(capsys: pytest.CaptureFixture[str], *options: str) -> list[list[str]]:
    assert main(["devices", *options]) == 0
    return [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()[1:]]


def test_the_account_of_a_models_memory(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpus = [
        Gpu("aa", free_memory=78 * GIB, reports_memory=True),
        Gpu("bb", is_broken=True),
        Gpu("cc", "T4", 7, 5, 16 * GIB, GIB // 2, 40, reports_memory=True),
    ]
    Machine(gpus, gpus).install(monkeypatch)
    needed = account(bundle.shapes, Precision.BF16)
    first, second, third, cpu = rows(capsys, "--model", str(bundle.directory))
    gib = f"{needed.weights / 2**30:.1f} GiB", f"{needed.activations(16_384) / 2**30:.1f} GiB"
    assert first == [
        *("cuda:0", "H100", "80 GiB", "78.0 GiB", "9.0", "BF16", gib[0], "16,384", gib[1], "yes"),
    ]
    assert second[:2] == ["cuda:1", "unknown GPU"]
    assert second[-1] == "no: CUDA error: uncorrectable ECC error encountered"
    assert third[:6] == ["cuda:2", "T4", "16 GiB", "0.5 GiB", "7.5", "FP16"]
    assert third[-1] == "yes, but the model does not fit into what is free"
    assert cpu[-1] == "no: there are GPUs"


def test_devices_of_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--model", "tiny-5000"]) == 1
    assert "tiny-5000" in capsys.readouterr().err


def test_gpus_are_chosen_before_torch_is_imported() -> None:
    script = """
import os, sys
from virnuc_async.cli.main import main
class ImportObserver:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("CUDA_DEVICE_ORDER"), os.environ["CUDA_VISIBLE_DEVICES"])
sys.meta_path.insert(0, ImportObserver())
os.environ["CUDA_VISIBLE_DEVICES"] = "7"
sys.stderr = sys.stdout
print(main(["predict", "--gpus", "98,99", "/dev/null", "no-such-directory"]))
"""
    order, message, code = python(script).splitlines()
    assert order == "PCI_BUS_ID 98,99"
    assert re.fullmatch(r"virnuc-async: no device 'GPU 98' here\. There are: .*", message)
    assert code == "1"
