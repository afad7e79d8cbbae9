"""The options of VirNucPro's own command line: what each stands for, or that it says why it does nothing."""

import io
import re
from pathlib import Path

import pytest
from running import predict, run, summary, tables
from support import fasta

from virnuc_async.downloads.source import git_blob
from virnuc_async.models import bundle as bundles
from virnuc_async.models.bundle import Bundle
from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle

# Every option of the earlier program that does nothing here; and its reason's first words.
WITHOUT_EFFECT = {
    "-b 9": "both encoders",
    "--batch-size 9": "both encoders",
    "--num-workers 2": "one process",
    "-w 2": "one process",
    "--keep-intermediate": "there are no intermediate files",
    "-k": "there are no intermediate files",
    "--resume": "the same command resumes",
    "--dnabert-batch-size 9": "both encoders",
    "--parallel": "all devices",
    "--skip-checkpoint-validation": "all that is resumed",
    "--force-resume": "all that is resumed",
    "--dataloader-workers 2": "one process",
    "--pin-memory": "one process",
    "--expandable-segments": "each device",
    "--cache-clear-interval 2": "each device",
    "--cuda-streams": "each device",
    "--no-cuda-streams": "each device",
    "--persistent-models": "the model is loaded once",
    "--no-persistent-models": "the model is loaded once",
    "--v1-fallback": "there is one way",
    "--v1-attention": "there is one way",
}
CPU = ("-d", "cpu")


@pytest.fixture(scope="module")
def cache(golden_parts: CheckpointPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which golden networks are installed by the names of the published models."""
    directory = tmp_path_factory.mktemp("cache")
    for length in (300, 500):
        name = f"virnucpro-{length}"
        import_bundle(golden_parts, directory / "models" / name, name, length)
    return directory


@pytest.fixture
def installed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRNUC_ASYNC_CACHE_DIR", str(cache))


def model_of(out: Path) -> str:
    name = summary(out)["bundle"]["name"]
    assert isinstance(name, str)
    return name


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("length", ["300", "500"])
def test_a_line_of_the_earlier_program(
    length: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reads.fa").write_bytes(source.read_bytes())
    assert run("predict", "reads.fa", "-m", length, "-e", length, *CPU).code == 0
    assert model_of(tmp_path / "reads_predictions") == f"virnucpro-{length}"
    words = ("--model", f"virnucpro-{length}", "--devices", "cpu")
    assert run("predict", "reads.fa", "out", *words).code == 0
    assert tables(tmp_path / "reads_predictions") == tables(tmp_path / "out")


@pytest.mark.usefixtures("installed")
def test_the_model_of_a_path(
    model: Bundle, golden_parts: CheckpointPaths, good: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("predict", good, "-o", out, "-m", "custom", "-p", model.directory, *CPU).code == 0
    assert model_of(out) == "golden"
    classifier = golden_parts.classifier
    ended = run("predict", good, "-o", out, "--force", "-p", classifier, *CPU)
    assert (ended.code, ended.err.splitlines()) == (
        64,
        [
            f"virnuc-async: -p {classifier} is not a published classifier. Import it once, and give -p the "
            "directory of the model:",
            f"virnuc-async models import --classifier {classifier} --protein ESM2.pt "
            "--nucleotide DNABERT_S_DIR --length 500 --name NAME --output DIR",
        ],
    )
    # A published classifier is known by its content, whatever it is called.
    monkeypatch.setitem(bundles.CLASSIFIERS, 300, git_blob(classifier))
    assert run("predict", good, "-o", out, "--force", "-p", classifier, *CPU).code == 0
    assert model_of(out) == "virnucpro-300"
    ended = run("predict", good, "-o", out, "-m", "500", "-p", classifier, *CPU)
    message = "-m is 500, but the model 'virnucpro-300' is for fragments of 300 bases"
    assert ended == (64, "", f"virnuc-async: {message}\n")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("-e 300", 64, "-e is 300, but the model 'tiny-500' is for fragments of 500 bases"),
        (
            "-m 300 --model tiny-500",
            64,
            "-m is 300, but the model 'tiny-500' is for fragments of 500 bases",
        ),
        ("-m 300", 1, "no model 'virnucpro-300' here. Installed: tiny-500. Get it with: models download"),
        ("-m 400", 64, "argument -m/--model-type: invalid choice: '400'. Choices: 500, 300, custom"),
        ("-m custom", 64, "-m custom needs a model: -p DIR, or --model NAME"),
        ("-p a --model b", 64, "choose --model or -p, not both: each is a model"),
        ("-p no/such/model", 1, "no model 'no/such/model' here. Installed: tiny-500."),
        ("-d 1", 1, "no device 'cuda:1' here. There are: cpu"),
        ("-d cuda:1", 1, "no device 'cuda:1' here. There are: cpu"),
        ("-d cuda", 1, "no device 'cuda' here. There are: cpu"),
        ("-d tpu", 1, "no device 'tpu' here. There are: cpu"),
        ("-d cpu --gpus 0", 64, "choose devices or gpus, not both"),
        ("-d cpu --devices cpu", 64, "choose --devices or -d, not both"),
        ("-b many", 64, "argument --batch-size/-b: invalid int value: 'many'"),
        ("-t 0", 64, "threads must be at least 1, not 0"),
    ],
)
def test_contradictions_end_before_anything_is_written(
    words: str, code: int, message: str, good: Path, out: Path
) -> None:
    ended = run("predict", good, out, *words.split())
    assert (ended.code, ended.out) == (code, "")
    assert ended.err.splitlines()[-1 if code == 1 else 0].startswith(f"virnuc-async: {message}")
    assert not (out / "prediction_results.txt").exists()


def test_the_output_directory_need_not_be_named_for_one_file(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    good.rename(tmp_path / "sub" / "some.reads.fa")
    assert run("predict", "sub/some.reads.fa", *CPU).code == 0
    assert (tmp_path / "some.reads_predictions" / "contigs.tsv").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("good.fa",), "name an input before the output directory 'good.fa'"),
        (("good.fa", "--threads", "1"), "name an input before the output directory 'good.fa'"),
        (("directory", *CPU), "name an input before the output directory 'directory'"),
        (("new", *CPU), "name an input before the output directory 'new'"),
        (("good.fa", "good.fa", *CPU), "the last name must be the output directory, but 'good.fa' is a file"),
        (("--input", "good.fa", *CPU), "name an input and an output directory"),
    ],
)
def test_our_own_grammar_stays_as_it_is(
    words: tuple[str, ...], message: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "directory").mkdir()
    ended = run("predict", *words)
    assert (ended.code, ended.out) == (64, "")
    assert message in ended.err


def test_two_names_are_an_input_and_an_output(good: Path, out: Path) -> None:
    assert run("predict", good, out, *CPU).code == 0
    assert summary(out)["settings"]["devices"] == ["cpu"]


def test_devices_and_threads(good: Path, tmp_path: Path) -> None:
    for words, devices in (
        (("-d", "cpu"), ["cpu"]),
        (("-t", "1", "--device", "cpu"), ["cpu"]),
        (("--merge-threads", "1", "--device", "cpu"), ["cpu"]),
    ):
        out = tmp_path / "-".join(words)
        assert run("predict", good, out, *words).code == 0
        assert summary(out)["settings"]["devices"] == devices
        assert summary(out)["settings"]["threads"] == (1 if "1" in words else None)


def test_force_replaces_another_run_unless_it_is_to_be_resumed(good: Path, out: Path, model: Bundle) -> None:
    assert predict(good, out).code == 0
    other = (good, "-o", out, "--model", model.directory)
    for words in ((), ("--force", "--resume")):
        ended = predict(*other, *words)
        assert ended.code == 1
        assert "contains a different run" in ended.err
    assert predict(*other, "--force").code == 0
    assert model_of(out) == "golden"
    assert "this run is finished already" in predict(*other, "--resume", "--force").err
    assert "this run is finished already" not in predict(*other, "-f").err


def test_options_without_effect_change_nothing_and_are_named_in_one_line(
    good: Path, out: Path, good_tables: dict[str, bytes], tmp_path: Path
) -> None:
    ended = predict(good, out, *" ".join(WITHOUT_EFFECT).split())
    assert ended.code == 0
    assert {name: tables(out)[name] for name in good_tables if name != "contigs.tsv"} == {
        name: content for name, content in good_tables.items() if name != "contigs.tsv"
    }
    (line,) = [line for line in ended.err.splitlines() if "without effect" in line]
    reasons = {
        name: reason
        for names, reason in re.findall(r"(-[-\w, ]+) \(([^)]+)\)", line)
        for name in names.split(", ")
    }
    assert set(reasons) == {words.split()[0] for words in WITHOUT_EFFECT}
    for words, begins in WITHOUT_EFFECT.items():
        assert reasons[words.split()[0]].startswith(begins)
    assert predict(good, tmp_path / "quiet", "-b", "9", "--quiet", "--model", "tiny-500").err.count("-b") == 0


def test_no_bars_if_they_are_not_wanted(
    good: Path, tmp_path: Path, model: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    shown = {}
    for words in ((), ("--no-progress",)):
        terminal = Terminal(io.BytesIO(), "utf-8", write_through=True)
        out = tmp_path / f"out{len(words)}"
        ended = predict(good, out, "--model", model.directory, *words, stderr=terminal)
        assert ended.code == 0
        shown[words] = "\x1b[" in ended.err
    assert shown == {(): True, ("--no-progress",): False}


def test_earlier_options_take_little_place_in_the_help() -> None:
    help = run("predict", "--help").out
    assert "options of VirNucPro:" in help
    assert "--skip-checkpoint-validation" not in help
    listed = run("predict", "in.fa", "out", "--zzz").err
    assert "--threshold" in listed
    assert "--skip-checkpoint-validation" not in listed


def test_several_files_are_no_line_of_the_earlier_program(tmp_path: Path, out: Path) -> None:
    paths = [tmp_path / name for name in ("a.fa", "b.fa")]
    for path in paths:
        path.write_text(fasta([(path.stem, "GCA" * 20)]))
    assert run("predict", *paths, "-o", out, *CPU).code == 0
    assert [row.split("\t")[0] for row in (out / "contigs.tsv").read_text().splitlines()[1:]] == ["a", "b"]
