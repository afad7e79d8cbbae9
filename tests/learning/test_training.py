"""Training by the real command: what is learnt, that it is the same each time, and what is refused."""

import io
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import OPEN, SHUT, Ran, files_no_larger_than, predict, rows, run, start, wait_until
from safetensors.torch import load_file
from support import fasta
from tiny_models import Toys, records, write_shuffled, write_toys

from virnuc_async.errors import CannotWrite
from virnuc_async.learning.dataset import TEST, TRAINING, VALIDATION
from virnuc_async.learning.options import Balance, Recipe
from virnuc_async.learning.training import Examples, balanced, fit
from virnuc_async.models.bundle import Bundle, find

OTHER = "the epochs so far are of other data, another recipe or number of threads"
QUICK = ("--optimizer", "adamw", "--rate", "0.01", "--epochs", "5", "--resamples", "20")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    return write_toys(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def features(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory in which the features of *toys* are done."""
    directory = tmp_path_factory.mktemp("features")
    assert train(toys, directory / "model", "--work", directory / "work").code == 0
    (directory / "work" / "epochs.pt").unlink()
    return directory / "work"


@pytest.fixture
def work(features: Path, tmp_path: Path) -> Path:
    return shutil.copytree(features, tmp_path / "work")


def train(toys: Toys, output: Path, *options: str | Path) -> Ran:
    return run("train", *toys.options, "--output", output, "--devices", "cpu", *QUICK, *options)


def report(output: Path) -> dict[str, Any]:
    return json.loads((output / "training.json").read_bytes())


def weights(output: Path) -> bytes:
    return (output / "classifier.safetensors").read_bytes()


def area(output: Path, level: str = "fragment") -> float:
    return float(report(output)["test"][level]["figures"]["auroc"]["value"])


# What is learnt


def test_a_classifier_is_learnt_and_used(toys: Toys, work: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    ended = train(toys, output, "--work", work)
    assert ended.code == 0
    assert f"mine is in {output}. Use it with --model {output}\n" in ended.out
    assert re.search(r"^epoch 1: training loss \d\.\d+, validation loss \d\.\d+$", ended.err, re.MULTILINE)
    assert all(area(output, level) > 0.95 for level in ("ORF", "fragment", "contig"))
    # The same weights, met by the program as its user meets it.
    fresh = write_toys(tmp_path / "fresh", 10, seed=1)
    assert predict(*fresh, tmp_path / "out", "--model", output).code == 0
    verdicts = [row[-1] for row in rows(tmp_path / "out" / "contigs.tsv")[1:]]
    assert np.mean([verdict == "virus" for verdict in verdicts[:10]]) >= 0.9
    assert np.mean([verdict == "others" for verdict in verdicts[10:]]) >= 0.9


def test_labels_that_mean_nothing_are_not_learnt(tmp_path: Path) -> None:
    toys = write_shuffled(tmp_path, 150, 150)
    assert train(toys, tmp_path / "model", "--test", "0.4").code == 0
    assert 0.35 < area(tmp_path / "model") < 0.65


def test_a_bundle_is_whole(toys: Toys, work: Path, tmp_path: Path) -> None:
    output, base = tmp_path / "mine", find("tiny-500")
    assert train(toys, output, "--work", work, "--hidden", "7").code == 0
    bundle = find(output)
    bundle.check()
    assert (bundle.name, bundle.length, bundle.shapes.classifier.hidden) == ("mine", 500, 7)
    assert bundle.shapes.protein == base.shapes.protein
    assert bundle.fingerprint != base.fingerprint
    assert bundle.notice.startswith("the encoders are those of tiny-500: ")
    for name in ("protein.safetensors", "nucleotide.safetensors", "tokenizer.json"):
        assert bundle.checksums[name] == base.checksums[name]
    names = {"README.md", "training.json", "bundle.json", *bundle.checksums}
    assert {path.name for path in output.iterdir()} == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "work"]


def test_encoders_are_copied_where_they_cannot_be_linked(
    toys: Toys, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    linked, copied = tmp_path / "linked", tmp_path / "copied"
    assert train(toys, linked, "--work", work).code == 0
    monkeypatch.setattr(os, "link", refuse)
    assert train(toys, copied, "--work", work).code == 0
    assert find(copied).fingerprint == find(linked).fingerprint
    assert (copied / "protein.safetensors").stat().st_nlink == 1


def test_a_model_of_upstreams_files_is_trained_anew(
    golden_bundle: Bundle, toys: Toys, tmp_path: Path
) -> None:
    output = tmp_path / "mine"
    assert train(toys, output, "--model", golden_bundle.directory).code == 0
    bundle = find(output)
    assert bundle.length == golden_bundle.length
    assert not bundle.notice
    assert report(output)["base"]["fingerprint"] == golden_bundle.fingerprint
    assert area(output) > 0.8
    tensors = load_file(output / "classifier.safetensors")
    assert tensors["hidden.weight"].shape == (512, golden_bundle.shapes.classifier.inputs)


# The same each time


def test_seeds_decide_every_byte(toys: Toys, work: Path, tmp_path: Path) -> None:
    one, again, other = (tmp_path / name for name in ("one", "again", "other"))
    assert train(toys, one, "--work", work).code == 0
    assert train(toys, again).code == 0  # from nothing
    assert train(toys, other, "--work", work, "--seed", "1").code == 0
    assert weights(one) == weights(again) != weights(other)
    assert report(one)["split"] == report(again)["split"]
    assert report(one)["test"] == report(again)["test"]
    assert report(one)["split"] != report(other)["split"]


def test_random_numbers_of_others_are_left_alone(toys: Toys, work: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert train(toys, tmp_path / "one", "--work", work).code == 0
    assert torch.equal(torch.rand(3), expected)


def test_epochs_are_resumed(toys: Toys, work: Path, tmp_path: Path) -> None:
    shutil.copytree(work, tmp_path / "other")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert train(toys, whole, "--work", work, "--epochs", "6").code == 0
    assert train(toys, halves, "--work", tmp_path / "other", "--epochs", "2").code == 0
    shutil.rmtree(halves)
    ended = train(toys, halves, "--work", tmp_path / "other", "--epochs", "6")
    assert "going on after 2 epochs" in ended.err
    assert "epoch 3: " in ended.err
    assert "epoch 2: " not in ended.err
    assert weights(whole) == weights(halves)
    assert report(whole)["history"] == report(halves)["history"]


def test_epochs_of_another_recipe_or_damaged_ones_are_not_resumed(
    toys: Toys, work: Path, tmp_path: Path
) -> None:
    assert train(toys, tmp_path / "one", "--work", work).code == 0
    ended = train(toys, tmp_path / "two", "--work", work, "--dropout", "0.1")
    assert f"{OTHER}: beginning with the first one" in ended.err
    assert "epoch 1: " in ended.err
    (work / "epochs.pt").write_bytes(b"not torch's")
    ended = train(toys, tmp_path / "three", "--work", work, "--dropout", "0.1")
    assert "beginning with the first epoch" in ended.err
    assert weights(tmp_path / "two") == weights(tmp_path / "three") != weights(tmp_path / "one")


def test_epochs_of_another_number_of_threads_are_not_resumed(toys: Toys, work: Path, tmp_path: Path) -> None:
    assert train(toys, tmp_path / "one", "--work", work).code == 0
    torch.set_num_threads(2)
    try:
        ended = train(toys, tmp_path / "two", "--work", work)
    finally:
        torch.set_num_threads(1)
    assert OTHER in ended.err
    assert (report(tmp_path / "one")["threads"], report(tmp_path / "two")["threads"]) == (1, 2)


def test_epochs_beyond_the_end_decide_nothing(toys: Toys, work: Path, tmp_path: Path, plain: bytes) -> None:
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    assert train(toys, one, "--work", work, "--epochs", "9").code == 0
    assert train(toys, two, "--work", work).code == 0  # five epochs
    assert len(report(two)["history"]) == 5
    assert weights(two) == plain
    assert train(toys, again, "--work", work).code == 0
    assert weights(again) == plain


def test_a_training_that_diverges(toys: Toys, work: Path, tmp_path: Path) -> None:
    options = ("--optimizer", "sgd", "--rate", "1e30")
    for _ in range(2):
        ended = train(toys, tmp_path / "one", "--work", work, *options)
        assert ended.code == 1
        said = "the loss is NaN or infinite after epoch 1: choose a lower --rate than 1e+30"
        assert ended.err.endswith(f"virnuc-async: {said}\n")
    assert not (tmp_path / "one").exists()


def test_interrupted_features_are_resumed(tmp_path: Path) -> None:
    toys = write_toys(tmp_path, 120, 500)
    command = ("train", *toys.options, "--output", tmp_path / "model", "--devices", "cpu", *QUICK)
    said = tmp_path / "said.txt"
    process = start(*command, "--esm-batch-size", "300", "--verbose", stderr=said)
    wait_until(lambda: "batch 0.3 done" in said.read_text(), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    process.stdin.close()  # type: ignore[union-attr]
    assert said.read_text().endswith("Interrupted. The same command resumes this run.\n")
    assert not (tmp_path / "model").exists()
    ended = run(*command, "--esm-batch-size", "300")
    assert ended.code == 0
    assert re.search(r"resuming after \d+ ORFs of an earlier session", ended.err)
    assert area(tmp_path / "model") > 0.95


@pytest.mark.parametrize(
    ("ended_by", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_epochs_that_are_cut_off_are_resumed(
    toys: Toys,
    work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ended_by: signal.Signals,
    code: int,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in this process

    def command(place: Path, epochs: int) -> tuple[str | Path, ...]:
        names = (*toys.options, "--output", tmp_path / place.name.replace("work", "model"), "--work", place)
        return ("train", *names, "--devices", "cpu", *QUICK, "--patience", "100000", "--epochs", str(epochs))

    other = shutil.copytree(work, tmp_path / "work2")
    said = tmp_path / "said.txt"
    process = start(*command(work, 100_000), stderr=said)
    wait_until(lambda: "epoch 3: " in said.read_text(), process)
    process.send_signal(ended_by)
    assert process.wait() == code
    process.stdin.close()  # type: ignore[union-attr]
    said_last = said.read_text().endswith("Interrupted. The same command resumes this run.\n")
    assert said_last == (ended_by is not signal.SIGKILL)
    assert not (tmp_path / "model").exists()
    epochs = 3 + max(int(number) for number in re.findall(r"epoch (\d+): ", said.read_text()))
    ended = run(*command(work, epochs))
    assert ended.code == 0
    assert re.search(r"going on after \d+ epochs", ended.err)
    assert run(*command(other, epochs)).code == 0
    assert weights(tmp_path / "model") == weights(tmp_path / "model2")


# The split


def sides(output: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = report(output)["split"]["sides"]
    return found


def test_genomes_stand_on_one_side(toys: Toys, work: Path, tmp_path: Path) -> None:
    assert train(toys, tmp_path / "one", "--work", work).code == 0
    # Every genome has two records.
    assert all(facts["records"] % 2 == 0 for facts in sides(tmp_path / "one").values())
    assert report(tmp_path / "one")["data"]["clusters"] == 40
    everything = sum(facts["records"] for facts in sides(tmp_path / "one").values())
    assert everything == 80


def test_shares_of_the_sides(toys: Toys, work: Path, tmp_path: Path) -> None:
    assert train(toys, tmp_path / "one", "--work", work, "--validation", "0.3", "--test", "0.4").code == 0
    counts = [facts["records"] for facts in sides(tmp_path / "one").values()]
    assert counts == [24, 24, 32, 0]


def test_clusters_decide_the_sides(toys: Toys, work: Path, tmp_path: Path) -> None:
    table = tmp_path / "c.tsv"
    table.write_text(
        "".join(f"{kind}g{number}\t{kind}{number % 4}\n" for kind in "vn" for number in range(20))
    )
    assert train(toys, tmp_path / "one", "--work", work, "--clusters", table).code == 0
    assert report(tmp_path / "one")["data"]["clusters"] == 8
    assert report(tmp_path / "one")["data"]["clustered_by"] == "c.tsv"
    assert all(facts["records"] % 10 == 0 for facts in sides(tmp_path / "one").values())


def test_published_split_says_loudly_what_it_is(toys: Toys, work: Path, tmp_path: Path) -> None:
    long = write_toys(tmp_path / "long", 12, 2000)
    output = tmp_path / "one"
    ended = train(long, output, "--split-by-fragment")
    assert ended.code == 0
    assert "WARNING: fragments are split at random, as published: " in ended.err
    assert "the figures are optimistic" in ended.err
    assert "**These figures are optimistic.**" in (output / "README.md").read_text()
    assert report(output)["split"]["by_fragment"] is True
    assert report(output)["split"]["leakage"] is None
    assert "random split of fragments" in find(output).notice
    # Records are on several sides, fragments on one.
    assert sum(facts["records"] for facts in sides(output).values()) > 24
    assert sum(facts["fragments"] for facts in sides(output).values()) == 96


@pytest.fixture
def leaking(tmp_path: Path) -> Toys:
    """Toys of which every virus but the first has 40 bases of the first."""
    toys = write_toys(tmp_path / "leaking", 20, 300)
    viruses = list(records(True, 20, 300, 0))
    shared = viruses[0][1][60:120]
    toys.viral.write_text(fasta([(name, bases[:90] + shared + bases[150:]) for name, bases in viruses]))
    return toys


def test_planted_leaks_are_left_out_kept_or_refused(leaking: Toys, tmp_path: Path) -> None:
    work = ("--work", tmp_path / "work")
    assert train(leaking, tmp_path / "no", *work, "--leakage", "refuse") == (
        1,
        "",
        "looking for 31-mers that held-out records share with training ones\n"
        "virnuc-async: 6 of 12 held-out records share stretches of 31 bases with training ones, and "
        "figures on them would flatter. Cluster the sequences and name the table with --clusters, or have "
        "them left out with --leakage drop\n",
    )
    assert not (tmp_path / "work").exists()
    ended = train(leaking, tmp_path / "no", *work)
    assert ended.code == 1
    assert "6 of 12 held-out records share 31-mers with training ones and are left out" in ended.err
    assert ended.err.endswith("nothing viral in the ORFs for validation: both classes are needed\n")
    ended = train(leaking, tmp_path / "kept", *work, "--leakage", "keep")
    assert ended.code == 0
    assert "WARNING: 6 of 12 held-out records share 31-mers with training ones, and stay" in ended.err
    assert "**These figures are optimistic.**" in (tmp_path / "kept" / "README.md").read_text()
    leaks = report(tmp_path / "kept")["split"]["leakage"]
    assert leaks == {"length": 31, "held_out_records": 12, "sharing": 6, "done": "keep"}
    ended = train(leaking, tmp_path / "some", *work, "--leakage-share", "0.5")
    assert ended.code == 0
    assert "0 of 12 held-out records share" in ended.err


def test_leaking_records_alone_are_left_out(tmp_path: Path) -> None:
    toys = write_toys(tmp_path / "toys", 40, 300)
    viruses = list(records(True, 40, 300, 0))
    copied = viruses[0][1][30:270]
    # One record of each genome: half of what is held out.
    some = [
        (name, bases[:30] + copied + bases[270:] if at % 2 else bases)
        for at, (name, bases) in enumerate(viruses)
    ]
    toys.viral.write_text(fasta(some))
    assert train(toys, tmp_path / "one").code == 0
    found = sides(tmp_path / "one")
    assert found["left out"]["records"] == report(tmp_path / "one")["split"]["leakage"]["sharing"] == 6
    assert "6 of 24 held-out records share more than 0%" in (tmp_path / "one" / "README.md").read_text()


# Every flag does something


@pytest.mark.parametrize(
    "option",
    [
        ("--optimizer", "sgd"),
        ("--rate", "0.02"),
        ("--momentum", "0.5"),
        ("--weight-decay", "0.1"),
        ("--step", "1"),
        ("--epochs", "1"),
        ("--batch", "32"),
        ("--hidden", "16"),
        ("--dropout", "0"),
        ("--seed", "7"),
        ("--validation", "0.2"),
        ("--test", "0.1"),
        ("--augment",),
        ("--split-by-fragment",),
    ],
    ids=" ".join,
)
def test_options_change_the_classifier(
    toys: Toys, features: Path, tmp_path: Path, option: tuple[str, ...], plain: bytes
) -> None:
    work = () if option == ("--augment",) else ("--work", shutil.copytree(features, tmp_path / "work"))
    assert train(toys, tmp_path / "one", *work, *option).code == 0
    assert weights(tmp_path / "one") != plain


@pytest.fixture(scope="module")
def plain(toys: Toys, features: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("plain")
    assert train(toys, directory / "one", "--work", shutil.copytree(features, directory / "work")).code == 0
    return weights(directory / "one")


def test_decay_patience_and_threshold(toys: Toys, work: Path, tmp_path: Path) -> None:
    assert train(toys, tmp_path / "one", "--work", work, "--step", "1", "--decay", "0.5").code == 0
    rates = [epoch["rate"] for epoch in report(tmp_path / "one")["history"]]
    assert rates == pytest.approx([0.01 * 0.5**epoch for epoch in range(len(rates))])
    options = ("--rate", "0.5", "--epochs", "60", "--patience", "2")
    assert train(toys, tmp_path / "two", "--work", work, *options).code == 0
    found = report(tmp_path / "two")
    assert len(found["history"]) == found["best_epoch"] + 2 < 60
    ended = train(toys, tmp_path / "three", "--work", work, "--threshold", "0")
    assert "this run is finished already" in ended.err
    assert report(tmp_path / "three")["test"]["contig"]["figures"]["specificity"]["value"] == 0


def test_published_recipe_is_the_default() -> None:
    recipe = Recipe()
    assert (recipe.optimizer, recipe.rate, recipe.momentum) == ("sgd", 0.0002, 0.9)
    assert (recipe.step, recipe.decay, recipe.patience, recipe.batch) == (10, 0.85, 5, 256)
    assert (recipe.hidden, recipe.dropout) == (512, 0.5)


def test_balance() -> None:
    viral = np.array([True] * 20 + [False] * 80)
    groups = np.array([0] * 16 + [1] * 4 + [2] * 80)
    assert set(balanced(Balance.NONE, viral, groups).tolist()) == {1.0}
    by_class = balanced(Balance.CLASS, viral, groups)
    assert by_class[viral].sum() == pytest.approx(50)
    assert by_class[~viral].sum() == pytest.approx(50)
    by_group = balanced(Balance.GROUP, viral, groups)
    sums = [by_group[groups == number].sum() for number in range(3)]
    # Within the viral half, 16 and 4 ORFs share as 4 to 2.
    assert sums == pytest.approx([50 * 4 / 6, 50 * 2 / 6, 50])
    # Where classes are equal, that is the published recipe.
    even = np.array([True, False] * 10)
    assert set(balanced(Balance.CLASS, even, even.astype(np.int64)).tolist()) == {1.0}


def test_balance_changes_the_classifier(toys: Toys, tmp_path: Path) -> None:
    few = Toys(toys.viral, tmp_path / "few.fa")
    few.nonviral.write_text(fasta(records(False, 13, 400, 0)))
    found = set()
    for balance in Balance:
        assert train(few, tmp_path / balance, "--work", tmp_path / "work", "--balance", balance).code == 0
        found.add(weights(tmp_path / balance))
    assert len(found) == 3


def test_groups_are_measured(toys: Toys, work: Path, tmp_path: Path) -> None:
    assert train(toys, tmp_path / "one", "--work", work).code == 0
    names = {group["group"] for group in report(tmp_path / "one")["test"]["contig"]["groups"]}
    assert names == {"av", "bv", "an", "bn"}
    table = tmp_path / "g.tsv"
    table.write_text("".join(f"{kind}g{number}\tall|of|it\n" for kind in "vn" for number in range(20)))
    assert train(toys, tmp_path / "two", "--work", work, "--groups", table).code == 0
    names = {group["group"] for group in report(tmp_path / "two")["test"]["contig"]["groups"]}
    assert names == {"all|of|it"}
    assert "| all\\|of\\|it | viral | 40 | 16,000 | 20 |" in (tmp_path / "two" / "README.md").read_text()


# What is refused


def test_nothing_is_overwritten(toys: Toys, work: Path, tmp_path: Path) -> None:
    output = tmp_path / "one"
    output.mkdir()
    assert train(toys, output, "--work", work).code == 0  # an empty directory is as good as none
    before = weights(output)
    message = f"virnuc-async: {output}: exists and is not empty. Choose a new or empty directory\n"
    assert train(toys, output, "--work", work, "--seed", "1") == (1, "", message)
    assert weights(output) == before


def test_a_name_that_no_model_can_have(toys: Toys, tmp_path: Path) -> None:
    ended = train(toys, tmp_path / "one\x1b[31m")
    assert ended.code == 64
    assert "a model cannot be called 'one\\x1b[31m': the output directory is its name" in ended.err


def test_epochs_are_not_written_through_a_link(toys: Toys, work: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    for name in ("epochs.pt", ".epochs.pt.partial"):
        (work / name).symlink_to(tmp_path / "precious")
    assert train(toys, tmp_path / "one", "--work", work).code == 0
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_work_directory_of_something_else(toys: Toys, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("all of it")
    ended = train(toys, tmp_path / "one", "--work", tmp_path / "work")
    message = (
        f"virnuc-async: {tmp_path / 'work'}: contains 'thesis.txt' and no training. Choose another --work\n"
    )
    assert ended == (1, "", message)


def test_other_sequences_in_the_same_work_directory(toys: Toys, work: Path, tmp_path: Path) -> None:
    other = write_toys(tmp_path / "other", 10, seed=3)
    ended = train(other, tmp_path / "one", "--work", work)
    assert ended.code == 1
    assert "contains a different run: inputs" in ended.err
    assert train(other, tmp_path / "one", "--work", work, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--rate", "0"), "the rate must be a finite number above 0, not 0.0"),
        (("--dropout", "1"), "dropout must be at least 0 and below 1, not 1.0"),
        (("--momentum", "-1"), "momentum must be at least 0 and below 1, not -1.0"),
        (("--decay", "0"), "decay must be above 0 and at most 1, not 0.0"),
        (("--weight-decay", "-1"), "weight decay must be a finite number of at least 0, not -1.0"),
        (("--batch", "1"), "batch must be at least 2, not 1"),
        (("--hidden", "0"), "hidden must be at least 1, not 0"),
        (("--seed", "-1"), "the seed must be at least 0, not -1"),
        (
            ("--test", "1"),
            "validation and test must be fractions above 0 whose sum is below 1, not 0.1 and 1.0",
        ),
        (("--leakage-share", "2"), "the leakage share must be a number from 0 to 1, not 2.0"),
        (("--resamples", "0"), "resamples must be at least 1, not 0"),
    ],
)
def test_settings_out_of_range(toys: Toys, tmp_path: Path, option: tuple[str, ...], said: str) -> None:
    assert train(toys, tmp_path / "one", *option) == (64, "", f"virnuc-async: {said}\n")


def test_what_cannot_be_learnt_from(toys: Toys, tmp_path: Path) -> None:
    empty, shut = tmp_path / "empty.fa", tmp_path / "shut.fa"
    empty.write_text("")
    shut.write_text(fasta([(f"s{number}", SHUT) for number in range(5)]))
    said = {
        Toys(empty, toys.nonviral): "nothing viral in the labelled sequences: both classes are needed",
        Toys(toys.viral, empty): "nothing nonviral in the labelled sequences: both classes are needed",
        Toys(shut, toys.nonviral): "nothing viral in the ORFs for training: both classes are needed",
        Toys(tmp_path / "none.fa", toys.nonviral): f"{tmp_path / 'none.fa'}: No such file or directory",
    }
    for number, (those, message) in enumerate(said.items()):
        ended = train(those, tmp_path / f"model{number}")
        assert ended.code == 1
        assert ended.err.endswith(f"virnuc-async: {message}\n")
        assert not (tmp_path / f"model{number}").exists()
    few = tmp_path / "few.fa"
    few.write_text(fasta([("a", OPEN * 50), ("b", OPEN * 50)]))
    ended = train(Toys(few, toys.nonviral), tmp_path / "model")
    assert "2 clusters of viral records cannot be divided into 3 splits" in ended.err


def test_features_of_another_run_are_not_joined(toys: Toys, work: Path, tmp_path: Path) -> None:
    path = work / "features" / "merged_features.pt"
    found = torch.load(path, weights_only=True)
    torch.save({"ids": found["ids"][1:], "data": found["data"][1:].clone()}, path)
    # Written anew where they can be, else refused: never joined by position.
    ended = train(toys, tmp_path / "one", "--work", work)
    assert ended.code == 1
    assert "merged_features.pt" in ended.err


# The classifier alone


def some_examples(count: int) -> tuple[Examples, np.ndarray]:
    random = np.random.default_rng(0)
    viral = np.arange(count) % 2 == 0
    features = random.normal(0, 1, (count, 8)).astype(np.float32) + viral[:, None] * 0.5
    numbers = np.arange(count)
    sides = np.array([TRAINING, TRAINING, VALIDATION, VALIDATION, TEST, TEST], np.uint8)[numbers % 6]
    return Examples(features.astype(np.float32), numbers, numbers, viral, viral.astype(np.int64)), sides


class Interrupted(io.BytesIO):
    """A file in the middle of which Ctrl-C is pressed."""

    def write(self, content: Any) -> int:
        if self.tell():
            raise KeyboardInterrupt
        return super().write(content)


def test_interrupted_while_epochs_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples, sides = some_examples(66)
    with monkeypatch.context() as patch:
        patch.setattr("virnuc_async.fileio.create_new", lambda _: Interrupted())
        with pytest.raises(KeyboardInterrupt):  # of torch's, that is a RuntimeError
            fit(examples, sides, Recipe(epochs=2, hidden=4), tmp_path / "epochs.pt")
    assert fit(examples, sides, Recipe(epochs=2, hidden=4), tmp_path / "epochs.pt").history


def test_disk_that_is_full_while_epochs_are_written(tmp_path: Path) -> None:
    examples, sides = some_examples(66)
    with files_no_larger_than(1000), pytest.raises(CannotWrite, match=r"epochs\.pt: File too large"):
        fit(examples, sides, Recipe(epochs=2, hidden=4), tmp_path / "epochs.pt")
    assert not (tmp_path / "epochs.pt").exists()


@pytest.mark.parametrize("batch", [2, 7, 8, 99])
def test_every_training_row_is_learnt_from_whatever_the_batch(tmp_path: Path, batch: int) -> None:
    # 22 training rows: with batches of 7, the last one would be a single row, which has no variance.
    examples, sides = some_examples(66)
    fitted = fit(examples, sides, Recipe(batch=batch, epochs=3, hidden=4), tmp_path / "epochs.pt")
    batches = fitted.weights["norm.num_batches_tracked"].item()
    assert batches == fitted.best * len([start for start in range(0, 22, batch) if 22 - start > 1])


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    examples, sides = some_examples(120)
    recipe = Recipe(rate=0.5, batch=8, epochs=30, hidden=4, patience=4)
    fitted = fit(examples, sides, recipe, tmp_path / "epochs.pt")
    losses = [epoch["validation_loss"] for epoch in fitted.history]
    assert min(losses) == losses[fitted.best - 1]
    assert len(losses) == min(30, fitted.best + 4)
    short = Recipe(rate=0.5, batch=8, epochs=fitted.best, hidden=4, patience=4)
    again = fit(examples, sides, short, tmp_path / "other.pt")
    assert all(torch.equal(tensor, again.weights[name]) for name, tensor in fitted.weights.items())
