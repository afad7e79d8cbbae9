"""``tables``: what is made again of a finished run is what a fresh run with these settings writes."""

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from running import predict, python, rows, run, some_reads, summary
from stored_runs import Record, store_run
from support import DATA, ROOT, fasta

from virnuc_async.fileio import read_lines
from virnuc_async.models.bundle import Bundle, find
from virnuc_async.models.calibration import (
    CALIBRATION,
    Calibration,
    Cut,
    LogOddsCalibration,
    Method,
    Thresholds,
)
from virnuc_async.outputs.written import Written
from virnuc_async.runs.store import Store, open_finished

VOLATILE = {"run.log", "run.sqlite3", "run.lock", "summary.json", "progress.json", "report.html"}
OPTIONS = [
    "--threshold 0.9 --min-length 150",
    "--pairs off --calls --regions --region-min-contig 600 --region-min-length 300",
    "--pairs interleaved --no-calibration",
    "--min-fragments 1 --id-pattern r([0-9])",
    "--verdict-by log_odds --threshold 0.9",
    "--fpr 0.25",
    "--fpr 0.1 --verdict-by mean --no-calibration",
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two files of mates with reads of many lengths, some contigs, and a file that breaks."""
    directory = tmp_path_factory.mktemp("inputs")
    mates = [directory / "reads_R1.fq", directory / "reads_R2.fq"]
    for seed, path in enumerate(mates):
        reads = some_reads(8, 240, seed).values()
        records = ((at, read[: 240 - 20 * ((at + 3 * seed) % 8)]) for at, read in enumerate(reads))
        path.write_text("".join(f"@r{at}\n{read}\n+\n{'I' * len(read)}\n" for at, read in records))
    lines = [line.decode() for _, line in read_lines(str(DATA / "golden" / "upstream" / "input.fa"), 10**9)]
    contigs = [directory / "contigs.fa", directory / "broken.fa"]
    contigs[0].write_text("\n".join(lines[:30]) + "\n")
    contigs[1].write_text(fasta(some_reads(3, 300, 7).items()) + ">x\nMEEPLQ\n")
    return [*mates, *contigs]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a model with a calibration."""
    directory = tmp_path_factory.mktemp("models") / "mine"
    shutil.copytree(find("tiny-500").directory, directory)
    set_calibration(directory, 2.0)
    return find(directory)


def set_calibration(model: Path, temperature: float) -> None:
    (model / CALIBRATION).unlink(missing_ok=True)
    bundle = find(model)
    of_means = Thresholds(20, 10, (Cut(0.9, 0, 3), Cut(0.7, 2, 6)))
    of_log_odds = Thresholds(20, 10, (Cut(6.5, 0, 3), Cut(1.25, 5, 8)))
    added = LogOddsCalibration(bundle.penalty, Method.TEMPERATURE, 3.0, (), of_means, of_log_odds)
    found = Calibration(bundle.fingerprint, Method.TEMPERATURE, temperature, (), 0.01, 0.5, added)
    (model / CALIBRATION).write_text(json.dumps(found.as_dict()))


@pytest.fixture(scope="module")
def base(inputs: Sequence[Path], model: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "out"
    assert predict(*inputs, out, "--model", model.directory).code == 2
    return out


@pytest.fixture
def out(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "out")


def files(directory: Path) -> dict[str, bytes]:
    """Return the content of all files of a run that are the same each time."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name not in VOLATILE}


@pytest.mark.parametrize("options", OPTIONS)
def test_equal_to_a_fresh_run(
    options: str, out: Path, inputs: Sequence[Path], model: Bundle, tmp_path: Path
) -> None:
    words, before = options.split(), files(out)
    assert predict(*inputs, tmp_path / "fresh", "--model", model.directory, *words).code == 2
    expected = files(tmp_path / "fresh")
    ended = run("tables", out, *words)
    assert (ended.code, ended.err) == (2, "")
    assert files(out) == expected != before
    facts, fresh = summary(out), summary(tmp_path / "fresh")
    assert (facts["counts"], facts["settings"]) == (fresh["counts"], fresh["settings"])
    again = predict(*inputs, out, "--model", model.directory, *words)
    assert "this run is finished already, and its files are unchanged" in again.err
    assert files(out) == expected


def test_each_option_changes_something_and_the_others_stay(out: Path) -> None:
    options = "--threshold 0.9", "--min-length 150", "--pairs off", "--calls", "--regions", "--no-calibration"
    options += "--verdict-by mean", "--fpr 0.25"
    before, seen = files(out), [files(out)]
    for option in options:
        run("tables", out, *option.split())
        assert files(out) not in seen
        seen.append(files(out))
    run("tables", out)
    assert files(out) == seen[-1]
    back = "--threshold 0.5 --min-length 0 --pairs auto --no-calls --no-regions --calibration"
    assert run("tables", out, "--verdict-by", "fraction", *back.split()).code == 2
    assert files(out) == before


def test_what_verdicts_are_by_stays_until_another_is_given(out: Path) -> None:
    def by(*options: str) -> tuple[object, ...]:
        assert run("tables", out, *options).code == 2
        settings = summary(out)["settings"]
        return tuple(settings[name] for name in ("verdict_by", "threshold", "fpr", "verdict_threshold"))

    assert by("--fpr", "0.25") == ("log_odds", 0.5, 0.25, 1.25)
    assert by("--calls") == ("log_odds", 0.5, 0.25, 1.25)
    assert by("--verdict-by", "mean") == ("mean", 0.5, 0.25, 0.7)
    assert by("--fpr", "0.05") == ("mean", 0.5, 0.05, 0.9)
    assert by("--threshold", "0.8") == ("mean", 0.8, None, 0.8)
    assert by("--verdict-by", "fraction") == ("fraction", 0.8, None, 0.8)
    assert by("--fpr", "0.25")[0] == "log_odds"
    assert by("--verdict-by", "fraction") == ("fraction", 0.5, None, 0.5)


def test_verdicts_that_are_refused(out: Path) -> None:
    for options, message in (
        (("--fpr", "0.04"), "show no rate below 0.05. "),
        (("--fpr", "0.25", "--threshold", "0.7"), "choose a threshold or a false positive rate, not both"),
        (("--fpr", "0.25", "--verdict-by", "fraction"), "is one of verdicts by mean or log_odds, not by"),
    ):
        before = files(out)
        ended = run("tables", out, *options)
        assert message in ended.err
        assert files(out) == before


def test_another_directory(base: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    ended = run("tables", base, "--threshold", "0.9", "--output", tmp_path / "a" / "new")
    assert ended.out.endswith(
        f"Tables are in {tmp_path}/a/new; 1 failure in {tmp_path}/a/new/failed_files.txt\n"
    )
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    copy = shutil.copytree(base, tmp_path / "copy")
    run("tables", copy, "--threshold", "0.9")
    assert files(tmp_path / "a" / "new") == files(copy)
    assert summary(tmp_path / "a" / "new") == summary(copy)
    # Not over the files of another run, nor over its own.
    refused = run("tables", base, "--output", tmp_path / "a" / "new")
    assert (refused.code, refused.out) == (1, "")
    assert "contains 'contigs.tsv', " in refused.err
    refused = run("tables", base, "--output", copy)
    reason = "without --output, the files of the run itself are replaced"
    assert refused.err == (
        f"virnuc-async: {copy}: contains a run. Choose a new or empty directory; {reason}\n"
    )


def test_one_table(base: Path, tmp_path: Path) -> None:
    options = ("--min-length", 200, "--calls")
    assert run("tables", base, *options, "--output", tmp_path / "all").code == 2
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    for name, file in (
        ("predictions", "prediction_results.txt"),
        ("fragments", "fragments.tsv"),
        ("contigs", "contigs.tsv"),
        ("calls", "contig_calls.tsv"),
        ("pairs", "pairs.tsv"),
        ("failed_files.txt", "failed_files.txt"),
    ):
        printed = run("tables", base, *options, "--table", name)
        assert (printed.code, printed.err) == (0, "")
        content = (tmp_path / "all" / file).read_bytes()
        assert printed.out.encode() == content
        assert content.count(b"\n") > 1 or name == "failed_files.txt"
    assert run("tables", base, *options, "--table", "pairs", "--to", tmp_path / "one.gz").code == 0
    assert (
        gzip.decompress((tmp_path / "one.gz").read_bytes()) == (tmp_path / "all" / "pairs.tsv").read_bytes()
    )
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_ids_of_any_bytes_reach_standard_output(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_bytes(b">\xe9\xff\n" + b"GCA" * 50 + b"\n")
    predict(tmp_path / "a.fa", tmp_path / "out")
    command = [sys.executable, "-m", "virnuc_async", "tables", tmp_path / "out", "--table", "contigs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert done.stdout == (tmp_path / "out" / "contigs.tsv").read_bytes()
    assert b"\n\xe9\xff\t" in done.stdout


def test_a_reader_that_has_had_enough(tmp_path: Path) -> None:
    reads = {f"{name:x>9999}": letters for name, letters in some_reads(30, 60).items()}
    (tmp_path / "a.fa").write_text(fasta(reads.items()))
    predict(tmp_path / "a.fa", tmp_path / "out")
    command = f"{sys.executable} -m virnuc_async tables {tmp_path}/out --table predictions | head -n 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"Sequence_ID\tPrediction\tscore1\tscore2\n", b"")


def test_a_full_disk_behind_standard_output(base: Path) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "virnuc_async", "tables", base, "--table", "contigs"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"virnuc-async: standard output: No space left on device\n")


def test_nothing_of_this_needs_torch(out: Path) -> None:
    script = f"""
import sys
from virnuc_async.cli.main import main
out = {str(out)!r}
commands = ["tables", out, "--threshold", "0.9"], ["tables", out, "--table", "contigs", "--to", out + "/t"]
commands = *commands, ["calls", out, "--min-fragments", "2"]
print(*map(main, commands), sorted({{"torch", "transformers", "esm"}} & sys.modules.keys()))
"""
    assert python(script).splitlines()[-1] == "2 0 0 []"


def test_a_calibration_that_came_later(out: Path, model: Bundle, tmp_path: Path) -> None:
    later = shutil.copytree(model.directory, tmp_path / "later")
    set_calibration(later, 3.0)
    before = rows(out / "contigs.tsv")
    run("tables", out)
    assert rows(out / "contigs.tsv") == before
    assert run("tables", out, "--model", later).code == 2
    expected = find(later).calibration
    assert expected is not None
    assert [row[:-2] for row in rows(out / "contigs.tsv")] == [row[:-2] for row in before]
    assert rows(out / "contigs.tsv") != before
    again = run("tables", out, "--no-calibration")
    assert (again.code, rows(out / "contigs.tsv")[0][-1]) == (2, "log_odds")
    # The store knows it from then on.
    shutil.rmtree(later)
    run("tables", out, "--calibration")
    assert rows(out / "contigs.tsv")[0][-2:] == ["p_virus_calibrated", "q"]


def test_another_model_is_refused(base: Path, bundle: Bundle) -> None:
    ended = run("tables", base, "--model", bundle.directory)
    assert ended.code == 64
    assert ended.err.startswith(f"virnuc-async: this is not the model of the run in {base}: tiny-500 (")
    assert ended.err.endswith(f" -> golden ({bundle.fingerprint})\n")


def test_a_run_of_an_earlier_version(out: Path, model: Bundle, base: Path) -> None:
    store = open_finished(out)
    written = Written.of(store)
    assert written is not None
    written._replace(model=None, flagged=None).keep(store)
    store.close()
    # Its model is not known by its name, or is one of another calibration.
    assert run("tables", out, "--model", model.directory).code == 2
    assert files(out) == files(base)


@pytest.mark.parametrize("command", ["tables", "calls"])
def test_without_a_finished_run(command: str, tmp_path: Path) -> None:
    ended = run(command, tmp_path / "none")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == f"virnuc-async: {tmp_path}/none: there is no such directory\n"
    assert not (tmp_path / "none").exists()
    assert run(command, tmp_path).err == (
        f"virnuc-async: {tmp_path}: contains no run of this program: there is no run.sqlite3\n"
    )
    assert "a file, not a directory" in run(command, __file__).err
    store_run(tmp_path / "begun", [Record(b"a", ())]).close()
    assert run(command, tmp_path / "begun").err == (
        f"virnuc-async: {tmp_path}/begun: not all of its run is scored. Repeat the command that began it\n"
    )


def test_a_run_that_was_not_written_to_its_end(out: Path) -> None:
    store = Store(out)
    store.set_meta("written", {})
    store.close()
    assert run("tables", out).err == (
        f"virnuc-async: {out}: its files have not all been written yet. Repeat the command that began it\n"
    )


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"{}")])
def test_a_summary_that_is_lost(
    change: Callable[[Path], object], out: Path, inputs: Sequence[Path], model: Bundle
) -> None:
    change(out / "summary.json")
    before = files(out)
    assert run("tables", out, "--threshold", 0.9).err == (
        f"virnuc-async: {out}: its summary.json is missing or has changed. Repeat the command that began it\n"
    )
    assert files(out) == before
    predict(*inputs, out, "--model", model.directory)
    assert run("tables", out, "--threshold", 0.9).err == ""


def test_what_makes_no_sense(out: Path) -> None:
    for words, message in (
        ("--table nix", "no such table: 'nix'. Tables: predictions, fragments, contigs, calls, "),
        ("--to x", "--to is the place of one table: name it with --table"),
        ("--no-calls --min-fragments 2", "--no-calls, and rules of calls: choose one"),
        ("--threshold 2", "the threshold must be a number from 0 to 1, not 2.0"),
        ("--output x --table contigs", "argument --table: not allowed with argument --output"),
    ):
        ended = run("tables", out, *words.split())
        assert ended.code == 64
        assert ended.err.startswith(f"virnuc-async: {message}")


def test_files_that_a_user_has_changed_are_not_taken_for_ours(
    out: Path, inputs: Sequence[Path], model: Bundle
) -> None:
    before = files(out)
    (out / "contigs.tsv").write_bytes(b"edited")
    assert run("calls", out).code == 0
    assert "some of its files have changed" in predict(*inputs, out, "--model", model.directory).err
    assert (out / "contigs.tsv").read_bytes() == before["contigs.tsv"]
