"""Evaluation by the command: metrics that can be recomputed from the tables, the page, and resuming."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from half_made import MAKER, half_made
from running import OPEN, SHUT, Ran, predict, rows, run, some_reads
from support import fasta
from tiny_models import Toys, records, write_toys

from virnuc_async.learning.metrics import METRICS
from virnuc_async.models.bundle import Bundle
from virnuc_async.outputs.charts import unit_chart
from virnuc_async.outputs.html import render


@pytest.fixture(scope="module")
def long_toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    """Ten records of each class, of 1,200 bases: three fragments each."""
    return write_toys(tmp_path_factory.mktemp("toys"), 10, 1200)


@pytest.fixture(scope="module")
def done(long_toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("done") / "out"
    assert evaluate(long_toys, directory).code == 0
    return directory


def evaluate(toys: Toys, out: Path, *options: str | Path) -> Ran:
    given = {str(option) for option in options}
    lengths = () if "--lengths" in given else ("--lengths", "150,500")
    resamples = () if "--resamples" in given else ("--resamples", "20")
    cpu = ("--devices", "cpu")
    return run("evaluate", *toys.options, "--output", out, *cpu, *lengths, *resamples, *options)


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "evaluation.json").read_bytes())


def metrics(out: Path, data: str = "records", level: str = "contig") -> dict[str, float]:
    return {name: each["value"] for name, each in report(out)["at"][data][level]["figures"].items()}


def test_what_a_killed_process_left_beside_the_output_is_removed(done: Path, long_toys: Toys) -> None:
    with half_made(MAKER, "directory", done.parent / "killed"), half_made(MAKER, "write", done / "a.json"):
        pass
    assert evaluate(long_toys, done).code == 0
    assert not [*done.parent.glob(".*.partial"), *done.glob(".*.partial")]


# Metrics


def test_metrics_match_the_tables_of_predict(long_toys: Toys, done: Path, tmp_path: Path) -> None:
    assert predict(*long_toys, tmp_path / "out").code == 0
    lines = rows(tmp_path / "out" / "contigs.tsv")[1:]
    called = np.array([row[9] == "virus" for row in lines])
    scores = np.array([float(row[7]) for row in lines])
    truth = np.arange(20) < 10
    found = metrics(done)
    assert found["sensitivity"] == pytest.approx(called[truth].mean())
    assert found["specificity"] == pytest.approx(1 - called[~truth].mean())
    assert found["accuracy"] == pytest.approx((called == truth).mean())
    wins = [(v > n) + (v == n) / 2 for v in scores[truth] for n in scores[~truth]]
    assert found["auroc"] == pytest.approx(np.mean(wins), abs=1e-6)
    assert found["brier"] == pytest.approx(np.mean((scores - truth) ** 2), abs=1e-5)
    # ORFs and fragments are in the tables of the published program.
    orfs = rows(tmp_path / "out" / "prediction_results.txt")[1:]
    correct = [(row[1] == "virus") == row[0].startswith("v") for row in orfs]
    assert metrics(done, level="ORF")["accuracy"] == pytest.approx(np.mean(correct), abs=1e-6)
    fragments = rows(tmp_path / "out" / "prediction_results_highestscore.csv")[1:]
    correct = [(row[1] == "True") == row[0].startswith("v") for row in fragments]
    assert metrics(done, level="fragment")["accuracy"] == pytest.approx(np.mean(correct), abs=1e-6)
    levels = report(done)["at"]["records"]
    assert [levels[level]["rows"] for level in ("ORF", "fragment", "contig")] == [
        len(orfs),
        len(fragments),
        20,
    ]


def test_every_metric_has_an_interval(done: Path) -> None:
    for levels in report(done)["at"].values():
        for found in levels.values():
            assert tuple(found["figures"]) == METRICS
            assert found["clusters"] == 10  # genomes of two records each
            for name, each in found["figures"].items():
                if None not in each.values() and name not in ("ece", "brier"):  # both are biased upward
                    assert each["low"] - 1e-6 <= each["value"] <= each["high"] + 1e-6


def test_subsequences_have_their_lengths(long_toys: Toys, done: Path) -> None:
    assert list(report(done)["at"]) == ["records", "150 bp", "500 bp"]
    for length in (150, 500):
        lines = rows(done / f"length-{length}" / "run" / "contigs.tsv")[1:]
        assert [row[2] for row in lines] == [str(length)] * 20
        assert re.fullmatch(r"v0:\d+-\d+[+-]", lines[0][0])


def test_results_of_each_group(done: Path) -> None:
    groups = report(done)["at"]["records"]["contig"]["groups"]
    names = [(group["group"], group["class"], group["rows"], group["clusters"]) for group in groups]
    assert sorted(names) == [
        ("an", "nonviral", 6, 3),
        ("av", "viral", 6, 3),
        ("bn", "nonviral", 4, 2),
        ("bv", "viral", 4, 2),
    ]
    correct = sum(group["rows"] * group["right"]["value"] for group in groups)
    assert correct == pytest.approx(20 * metrics(done)["accuracy"], abs=1e-4)
    assert report(done)["data"]["groups"][0] == {
        "group": "av",
        "class": "viral",
        "records": 6,
        "bases": 7200,
        "clusters": 3,
    }


def test_records_without_an_orf_have_no_score(long_toys: Toys, tmp_path: Path) -> None:
    few = Toys(tmp_path / "v.fa", tmp_path / "n.fa")
    few.viral.write_text(fasta([("good", OPEN * 100), ("shut", SHUT), ("empty", "")]))
    few.nonviral.write_text(fasta([("other", "GCC" * 100)]))
    assert evaluate(few, tmp_path / "out", "--lengths", "100").code == 0
    found = report(tmp_path / "out")["at"]["records"]["contig"]
    assert (found["rows"], found["viral"]) == (2, 1)
    assert report(tmp_path / "out")["at"]["100 bp"]["contig"]["rows"] == 2


def test_imported_model(golden_bundle: Bundle, long_toys: Toys, tmp_path: Path) -> None:
    assert evaluate(long_toys, tmp_path / "out", "--model", golden_bundle.directory).code == 0
    model = report(tmp_path / "out")["model"]
    assert model == {
        "name": golden_bundle.name,
        "fingerprint": golden_bundle.fingerprint,
        "fragment_length": golden_bundle.length,
    }


# Tables and the page


def test_tables_on_the_terminal(long_toys: Toys, done: Path) -> None:
    ended = evaluate(long_toys, done)
    assert ended.code == 0
    assert "this run is finished already" in ended.err
    lines = ended.out.splitlines()
    assert lines[0].split()[:6] == ["data", "level", "rows", "viral", "clusters", "AUROC"]
    accuracy = metrics(done)["accuracy"]
    assert any(line.startswith("records  contig") and f" {accuracy:.3f} (" in line for line in lines)
    assert "\n150 bp\ngroup  class" in ended.out


class Tags(HTMLParser):
    """Collects the tags, links and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href") or name.startswith("on")
        ]
        if tag not in ("meta", "rect", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "rect", "polyline"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_page_is_self_contained(done: Path) -> None:
    found = Tags((done / "evaluation.html").read_text())
    assert found.links == []
    assert found.open == []
    assert not {"script", "link", "img", "iframe"} & found.tags
    assert {"svg", "polyline", "table"} <= found.tags
    assert "Evaluation of tiny-500" in found.texts
    assert {"ROC curve", "Precision-recall curve", "Reliability diagram"} <= set(found.texts)


def test_text_of_the_input_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>&'
    toys = write_toys(tmp_path, 4, 300)
    groups = tmp_path / "g.tsv"
    groups.write_text("".join(f"{kind}{number}\t{evil}\n" for kind in "vn" for number in range(4)))
    assert evaluate(toys, tmp_path / "out", "--groups", groups, "--lengths", "150").code == 0
    text = (tmp_path / "out" / "evaluation.html").read_text()
    assert "<script" not in text
    assert evil in Tags(text).texts
    chart = unit_chart(evil, evil, (evil, evil), {evil: []})
    section = {"name": evil, "charts": [chart], "groups": [[evil], [evil]]}
    page = {
        "title": evil,
        "summary": evil,
        "command": evil,
        "metrics": [[evil], [evil]],
        "sections": [section],
    }
    html = render("evaluation.html.j2", **page)
    assert "<script" not in html
    assert Tags(html).texts.count(evil) == 13


def test_groups_with_invalid_text(tmp_path: Path) -> None:
    toys = write_toys(tmp_path, 4, 300)
    content = toys.viral.read_bytes().replace(b"group=av", b"group=\xff\xfe")
    toys.viral.write_bytes(content.replace(b"group=bv", b"group=\x1b[31mred"))
    ended = evaluate(toys, tmp_path / "out", "--lengths", "150")
    assert ended.code == 0
    names = {group["group"] for group in report(tmp_path / "out")["data"]["groups"]}
    assert {r"\xff\xfe", r"\x1b[31mred"} <= names
    assert "\x1b" not in ended.out


# Determinism and resuming


def test_seed_determines_the_results(long_toys: Toys, done: Path, tmp_path: Path) -> None:
    def found(out: Path) -> dict[str, Any]:
        return report(out) | {"command": ""}

    assert evaluate(long_toys, tmp_path / "again").code == 0
    assert found(tmp_path / "again") == found(done)
    assert evaluate(long_toys, tmp_path / "other", "--seed", "1").code == 0
    assert found(tmp_path / "other") != found(done)
    subsequences = [(out / "length-150" / "stretches.fa").read_bytes() for out in (done, tmp_path / "other")]
    assert subsequences[0] != subsequences[1]


def test_options_change_the_results(long_toys: Toys, done: Path, tmp_path: Path) -> None:
    assert evaluate(long_toys, tmp_path / "one", "--subsequences", "3", "--lengths", "150").code == 0
    assert report(tmp_path / "one")["at"]["150 bp"]["contig"]["rows"] == 60
    assert evaluate(long_toys, tmp_path / "two", "--threshold", "0", "--lengths", "150").code == 0
    assert metrics(tmp_path / "two")["sensitivity"] == 1
    other = shutil.copytree(done, tmp_path / "three")
    assert evaluate(long_toys, other, "--resamples", "300").code == 0
    # Only the intervals change.
    assert metrics(other) == metrics(done)
    assert report(other)["at"] != report(done)["at"]
    clusters = tmp_path / "c.tsv"
    clusters.write_text("".join(f"{kind}{number}\t{number}\n" for kind in "vn" for number in range(10)))
    assert evaluate(long_toys, other, "--clusters", clusters).code == 0
    assert report(other)["data"]["clusters"] == 10
    assert report(other)["at"]["records"]["contig"]["clusters"] == 10


def test_finished_parts_are_not_scored_again(long_toys: Toys, done: Path, tmp_path: Path) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    (out / "evaluation.json").unlink()
    shutil.rmtree(out / "length-500")
    ended = evaluate(long_toys, out)
    assert ended.err.count("this run is finished already") == 1
    assert ended.err.count("inputs: moved or renamed: writing the tables of this finished run again") == 1
    assert ended.err.count("Tables are in") == 3
    assert report(out)["at"] == report(done)["at"]


def test_lengths_without_records_of_both_classes_are_skipped(tmp_path: Path) -> None:
    toys = write_toys(tmp_path, 4, 300)
    toys.nonviral.write_text(fasta(records(False, 4, 1200, 0)))
    ended = evaluate(toys, tmp_path / "out", "--lengths", "300,1000,5000")
    assert ended.code == 0
    for length in ("1,000", "5,000"):
        message = f"skipping subsequences of {length} bases: both classes need records of that length"
        assert f"WARNING: {message}" in ended.err
    assert list(report(tmp_path / "out")["at"]) == ["records", "300 bp"]


# What is refused


def test_directory_with_files_of_our_names(long_toys: Toys, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text("all of it")
    reason = "contains 'evaluation.json' and no evaluation, which would write files of these names"
    message = f"virnuc-async: {tmp_path}: {reason}. Choose a new or empty directory\n"
    assert evaluate(long_toys, tmp_path) == (1, "", message)
    ended = evaluate(long_toys, tmp_path / "evaluation.json")
    assert ended.err.endswith("is a file, not a directory. Choose a new or empty directory\n")


def test_directory_of_another_model(
    golden_bundle: Bundle, long_toys: Toys, done: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    before = (out / "evaluation.json").read_bytes()
    ended = evaluate(long_toys, out, "--model", golden_bundle.directory)
    assert ended.code == 1
    assert "contains a different run: " in ended.err
    assert (out / "evaluation.json").read_bytes() == before
    assert evaluate(long_toys, out, "--model", golden_bundle.directory, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--lengths", "0"), "lengths must be different numbers of bases, not [0]"),
        (("--lengths", "5,5"), "lengths must be different numbers of bases, not [5, 5]"),
        (("--subsequences", "0"), "subsequences must be at least 1, not 0"),
        (("--seed", "-1"), "the seed must be at least 0, not -1"),
        (("--viral", "-"), "labelled sequences are read more than once: name files, not standard input"),
    ],
)
def test_options_out_of_range(long_toys: Toys, tmp_path: Path, option: tuple[str, ...], message: str) -> None:
    assert evaluate(long_toys, tmp_path / "out", *option) == (64, "", f"virnuc-async: {message}\n")


def test_missing_classes_and_files(long_toys: Toys, tmp_path: Path) -> None:
    (tmp_path / "empty.fa").write_text("")
    ended = evaluate(Toys(tmp_path / "empty.fa", long_toys.nonviral), tmp_path / "out")
    message = "virnuc-async: nothing viral in the labelled sequences: both classes are needed\n"
    assert ended == (1, "", message)
    assert evaluate(Toys(tmp_path / "none.fa", long_toys.nonviral), tmp_path / "out").code == 1
    assert run("evaluate", "--viral", long_toys.viral, "--output", tmp_path / "out").code == 64


def test_random_labels_have_an_auroc_of_about_one_half(tmp_path: Path) -> None:
    toys = Toys(tmp_path / "v.fa", tmp_path / "n.fa")
    for path, seed in zip(toys, (1, 2), strict=True):
        path.write_text(fasta(some_reads(60, 150, seed).items()))
    assert evaluate(toys, tmp_path / "out", "--lengths", "100").code == 0
    auroc = report(tmp_path / "out")["at"]["records"]["contig"]["figures"]["auroc"]
    assert auroc["low"] < 0.5 < auroc["high"]
