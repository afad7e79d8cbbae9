"""``models verify``: a right model passes, a wrong one fails and its deviation is shown."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from running import Ran, run
from safetensors.torch import load_file, save_file

from virnuc_async.cli.console import status_lines
from virnuc_async.downloads.source import git_blob
from virnuc_async.engine import verification
from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Replica
from virnuc_async.engine.verification import precisions_of
from virnuc_async.errors import Stage
from virnuc_async.models import bundle as bundles
from virnuc_async.models.bundle import Bundle, find, write_manifest
from virnuc_async.models.import_checkpoint import CheckpointPaths
from virnuc_async.models.reference import published_reference, reference_of
from virnuc_async.settings import Precision


@pytest.fixture(scope="module")
def recorded(golden_parts: CheckpointPaths, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The golden networks with a recorded reference."""
    directory = tmp_path_factory.mktemp("models") / "golden"
    words = ("--protein", golden_parts.protein, "--nucleotide", golden_parts.nucleotide)
    more = ("--classifier", golden_parts.classifier, "--length", "500", "--name", "golden")
    ended = run("models", "import", *words, *more, "--output", directory, "--reference", "record")
    assert ended.code == 0, ended.err
    return find(directory)


@pytest.fixture
def model(recorded: Bundle, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return Path(shutil.copytree(recorded.directory, tmp_path / "model"))


def verify(model: Path | str, *more: str) -> Ran:
    cpu = () if "--devices" in more else ("--devices", "cpu")
    return run("models", "verify", model, *cpu, *more)


def nudge(model: Path, part: str, name: str, by: float) -> None:
    """Change one weight and write the manifest again: the files are intact, but different."""
    path = model / f"{part}.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[1] += by
    save_file(tensors, path)
    bundle = find(model)
    write_manifest(model, bundle.name, bundle.length, bundle.shapes, bundle.origin)


def rows(ended: Ran) -> list[list[str]]:
    """Return the rows of the printed table, without its header."""
    return [re.split(r"  +", line) for line in ended.out.splitlines()[1:]]


@pytest.mark.parametrize("count", [1, 3])
def test_a_right_model_passes_on_every_replica(count: int, model: Path) -> None:
    ended = verify(model, "--devices", ",".join(["cpu"] * count))
    assert ended.code == 0
    assert [row[:2] + row[6:] for row in rows(ended)] == [
        [f"cpu:{number}", "FP32", "8 of 8", "right"] for number in range(count)
    ]
    assert "golden: 8 ORFs, compared with virnuc-async" in ended.err
    assert re.search(r" on CPU \(.*\) in FP32$", ended.err, re.MULTILINE)


@pytest.mark.parametrize(
    ("precision", "score", "distance", "cosine"),
    [("bf16", "5e-02", "5e-02", "0.999"), ("fp16", "1e-02", "1e-02", "0.9999")],
)
def test_half_precisions_pass_by_their_own_tolerance(
    precision: str, score: str, distance: str, cosine: str, model: Path
) -> None:
    ended = verify(model, "--precision", precision)
    assert ended.code == 0
    ((_, name, scores, embeddings, cosines, _, labels, result),) = rows(ended)
    assert (name, labels, result) == (precision.upper(), "8 of 8", "right")
    assert scores.endswith(f" ({score})")
    far, allowed = embeddings.split()
    assert (1e-4 < float(far) < float(distance), allowed) == (True, f"({distance})")  # would not pass in FP32
    assert cosines.endswith(f" ({cosine})")


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("protein", "layers.0.up.weight"),
        ("nucleotide", "layers.1.down.weight"),
        ("classifier", "output.weight"),
    ],
)
def test_a_changed_weight_fails_and_its_deviation_is_shown(part: str, name: str, model: Path) -> None:
    nudge(model, part, name, by=1.0)
    ended = verify(model)
    assert ended.code == 1
    ((_, _, scores, embeddings, _, _, _, result),) = rows(ended)
    assert result == "WRONG"
    worst, allowed = (scores if part == "classifier" else embeddings).split()
    assert float(worst) > 1e-4
    assert allowed == "(1e-04)"
    assert "golden does not give the expected scores on cpu:0 in FP32. Its files are intact" in ended.err


def test_another_model_does_not_match_the_published_reference(model: Path) -> None:
    source = Path(find("tiny-500").directory).parent / "published-reference.json"
    shutil.copy(source, model / "reference.json")
    bundle = find(model)
    write_manifest(model, bundle.name, bundle.length, bundle.shapes, bundle.origin)
    ended = verify(model)
    assert ended.code == 1
    assert "compared with a run of the original VirNucPro" in ended.err
    assert rows(ended)[0][-1] == "WRONG"


def test_the_shipped_model_is_right_and_has_a_reference_of_ours() -> None:
    ended = verify("tiny-500")
    assert ended.code == 0
    assert reference_of(find("tiny-500")).is_ours
    assert find("tiny-500").fingerprint == "60aaaf8097fb3852"  # as before it had a reference


def test_a_model_without_a_reference(model: Path) -> None:
    (model / "reference.json").unlink()
    bundle = find(model)
    write_manifest(model, bundle.name, bundle.length, bundle.shapes, bundle.origin)
    ended = verify(model)
    assert (ended.code, ended.out) == (1, "")
    assert "the model 'golden' has no reference" in ended.err
    assert "'models verify --record'" in ended.err
    assert verify(model, "--record").code == 0
    assert verify(model).code == 0


def test_a_damaged_model_is_reported_before_it_is_loaded(model: Path) -> None:
    with open(model / "protein.safetensors", "ab") as file:
        file.write(b"!")
    ended = verify(model)
    assert ended.code == 1
    assert "protein.safetensors has changed or is damaged" in ended.err


def test_quiet_prints_only_what_is_wrong(model: Path) -> None:
    assert verify(model, "--quiet") == (0, "", "")
    nudge(model, "classifier", "output.weight", by=1.0)
    ended = verify(model, "--quiet")
    assert (ended.code, ended.out) == (1, "")
    assert len(ended.err.splitlines()) == 1


def test_a_device_that_fails_is_a_row(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Replica):
        def _submit(self, batch):
            if self.name == "cpu:1":
                with self._errors.translated(batch.tokens, Stage.PROTEIN):
                    raise torch.OutOfMemoryError("no room")
            return super()._submit(batch)

    monkeypatch.setattr(verification, "Replica", Full)
    ended = verify(model, "--devices", "cpu,cpu")
    assert ended.code == 1
    assert [row[-1][:7] for row in rows(ended)] == ["right", "failed:"]
    assert "golden could not be verified on cpu:1 in FP32: cpu:1 ran out of memory" in ended.err


def test_every_precision_that_a_device_supports() -> None:
    cpu = Device("cpu:0", "CPU", 1)
    versions = ((6, 1), (7, 0), (7, 5), (8, 0), (8, 9), (9, 0))
    gpus = (Device("cuda:0", "GPU", 1, capability=version) for version in versions)
    found = [" ".join(precisions_of(device, Precision.AUTO)) for device in (cpu, *gpus)]
    all_but_fp8 = "fp32 bf16 fp16"
    assert found == ["fp32", "fp32", "fp32 fp16", "fp32 fp16", all_but_fp8, *[f"{all_but_fp8} fp8"] * 2]
    assert precisions_of(cpu, Precision.BF16) == (Precision.BF16,)


# References at import


def imported(parts: CheckpointPaths, directory: Path, *more: str | Path) -> Ran:
    words = ("--protein", parts.protein, "--nucleotide", parts.nucleotide, "--classifier", parts.classifier)
    return run(
        *("models", "import", *words, "--length", "500", "--name", "mine", "--output", directory), *more
    )


def test_an_imported_model_has_the_reference_that_was_named(
    golden_parts: CheckpointPaths, recorded: Bundle, tmp_path: Path
) -> None:
    named = ("--reference", recorded.directory / "reference.json")
    assert imported(golden_parts, tmp_path / "a", *named).code == 0
    assert verify(tmp_path / "a").code == 0
    for more in ((), ("--reference", "none")):
        directory = tmp_path / f"without{len(more)}"
        assert imported(golden_parts, directory, *more).code == 0
        assert not (directory / "reference.json").exists()
    ended = imported(golden_parts, tmp_path / "b", "--reference", tmp_path / "missing.json")
    assert ended.code == 1
    assert "is not a usable reference: No such file" in ended.err
    assert not (tmp_path / "b").exists()


def test_a_published_classifier_brings_its_reference(
    golden_parts: CheckpointPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bundles.CLASSIFIERS, 500, git_blob(golden_parts.classifier))
    assert imported(golden_parts, tmp_path / "a").code == 0
    assert reference_of(find(tmp_path / "a")).source == published_reference(500).source
    described = json.loads((tmp_path / "a" / "bundle.json").read_bytes())
    assert "reference.json" in described["files"]
    assert verify(tmp_path / "a").code == 1  # these are not the published encoders


def test_info_shows_the_source_of_the_reference(model: Path) -> None:
    assert re.search(r"^reference +virnuc-async .* in FP32$", run("models", "info", model).out, re.MULTILINE)
    (model / "reference.json").unlink()
    bundle = find(model)
    write_manifest(model, bundle.name, bundle.length, bundle.shapes, bundle.origin)
    assert re.search(r"^reference +none$", run("models", "info", model).out, re.MULTILINE)


def test_what_takes_long_is_said_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for quiet in (False, True):
        with status_lines(quiet, interval=0.05) as report_status:
            report_status("cpu:0 in FP32")
            time.sleep(0.12)
            report_status("")
            time.sleep(0.12)
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == ["cpu:0 in FP32", "cpu:0 in FP32 (0 s)"]
    assert len(said) < 5
