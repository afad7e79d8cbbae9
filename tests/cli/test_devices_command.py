"""``devices``, and the GPUs that a command sees."""

import re
from pathlib import Path

import torch
from running import predict, python, run, summary


def test_devices_are_named_as_the_option_takes_them(good: Path, out: Path) -> None:
    ended = run("devices")
    assert (ended.code, ended.err) == (0, "")
    header, *_, cpu = [re.split(r"  +", line) for line in ended.out.splitlines()]
    assert header == ["device", "model", "memory", "capability", "precision", "tokens per batch", "used"]
    name, model, memory, capability, precision, tokens, used = cpu
    assert (name, capability, precision, tokens) == ("cpu", "-", "FP32", "2,048")
    assert model.startswith("CPU (")
    assert re.fullmatch(r"\d+ GiB", memory)
    has_gpu = torch.cuda.is_available()
    assert used == ("no: there are GPUs" if has_gpu else "yes: no GPU that CUDA can use")
    assert predict(good, out, "--devices", name).code == 0
    assert summary(out)["devices"][0]["kind"] == model


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
