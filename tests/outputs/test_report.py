"""The report: what is in it, for many kinds of runs, and that no result is lost with it."""

import errno
import json
import os
import re
from base64 import b64decode
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from running import OPEN, SHUT, log, predict, run, summary, tables
from stored_runs import Record, ScoredOrf, store_run
from support import fasta

from virnuc_async.models.citations import PUBLICATIONS
from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.outputs import report as reports
from virnuc_async.outputs import writer
from virnuc_async.outputs.columns import Chunks
from virnuc_async.outputs.methods import methods_text
from virnuc_async.outputs.options import OutputOptions
from virnuc_async.outputs.output_files import REPORT_FILES, FinishedRun, OutputFile
from virnuc_async.outputs.report import report_chunks
from virnuc_async.outputs.summary import Summary
from virnuc_async.runs.mate_check import PairedFiles

REPORTS = {file.name for file in REPORT_FILES}
RECORDS = [("one", OPEN * 60), ("two", OPEN * 200), ("none", SHUT * 5)]
PAIRS = fasta([(f"{name}/{mate}", OPEN * 60) for name in "ab" for mate in (1, 2)])


class Page(HTMLParser):
    """The elements of a page with their attributes, its texts, and the data that its script reads."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.source = (directory / "report.html").read_text("utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.rows: dict[str, Any] = {}
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "input"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1] == ("script", {"type": "application/json", "id": "rows"}):
            self.rows = self.rows or json.loads(data)
        elif self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    def attributes(self, name: str) -> list[str]:
        return [value or "" for _, found in self.elements for key, value in found.items() if key == name]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    (directory / "a.fa").write_text(fasta(RECORDS))
    (directory / "b.fa").write_text(fasta([("other", OPEN * 50)]))
    (directory / "c.fa").write_text(">x\n!\n")
    assert predict(*(directory / name for name in ("a.fa", "b.fa", "c.fa")), directory / "out").code == 2
    return directory / "out"


@pytest.fixture(scope="module")
def page(out: Path) -> Page:
    return Page(out)


def test_it_has_the_numbers_of_the_run(page: Page, out: Path) -> None:
    counts = summary(out)["counts"]
    assert page.open == []
    title = f"{counts['viral_contigs']} of 4 contigs predicted to be viral"
    assert page.texts.count(title) == 2
    assert "1 failure: not everything could be read or scored; see below." in page.texts
    assert f"{counts['fragments']:,} fragments of 500 bp" in page.text
    lines = [line.split("\t") for line in (out / "contigs.tsv").read_text().splitlines()]
    at = {one["key"]: place for place, one in enumerate(page.rows["columns"])}
    found = {row[0]: row for row in page.rows["rows"]}
    for line in lines[1:]:
        expected = dict(zip(lines[0], line, strict=True))
        row = found[expected["contig"]]
        assert page.rows["files"][row[at["file"]]] == expected["file"]
        assert row[at["verdict"]] == expected["verdict"]
        assert row[at["length"]] == int(expected["length"])
        mean = expected["mean_p_virus"]
        assert row[at["mean_p_virus"]] == (pytest.approx(float(mean), abs=1e-4) if mean else None)


def test_it_has_what_failed_in_words(page: Page, out: Path) -> None:
    (line,) = (out / "failed_files.txt").read_text().splitlines()
    path, stage, message = line.split("|")
    assert f"{path} : {message} ({stage})" in page.text


def test_the_methods_can_be_pasted(page: Page, out: Path) -> None:
    facts = Summary(**summary(out))
    assert methods_text(facts, 500, VerdictRule()) in page.texts
    known = (facts.bundle["fingerprint"], "4 sequences from 3 input files", "32-bit", "PyTorch 2.")
    for part in ("virnuc-async", *known):
        assert part in methods_text(facts, 500, VerdictRule())
    for publication in PUBLICATIONS:
        assert publication.title in page.text
        assert publication.url in page.attributes("href")


def test_it_loads_nothing(page: Page) -> None:
    assert page.attributes("src") == []
    assert not {"link", "img", "iframe", "object", "base", "form action"} & {tag for tag, _ in page.elements}
    addresses = {publication.url for publication in PUBLICATIONS}
    assert {link for link in page.attributes("href") if not link.startswith("#")} == addresses
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", page.source)


def test_links_lead_to_their_sections(page: Page) -> None:
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.attributes("href") if link.startswith("#")} <= set(ids)
    labels = " ".join(page.attributes("aria-labelledby") + page.attributes("aria-controls")).split()
    assert set(labels) <= set(ids)


def test_the_policy_allows_its_own_style_and_script_alone(page: Page) -> None:
    (policy,) = (found["content"] for tag, found in page.elements if "http-equiv" in found)
    rules = dict(rule.split(" ", 1) for rule in (policy or "").split("; "))
    none = "'none'"
    assert rules.keys() == {"default-src", "style-src", "script-src", "base-uri", "form-action"}
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == none
    for kind, element in (("style-src", "style"), ("script-src", "script")):
        (source,) = re.findall(f"<{element}>(.*?)</{element}>", page.source, re.DOTALL)
        found = re.fullmatch("'sha256-(.*)'", rules[kind])
        assert found
        assert b64decode(found[1]) == sha256(source.encode()).digest()
    assert not page.attributes("style")
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]


@pytest.mark.parametrize(
    ("text", "options", "code", "shown"),
    [
        ("", (), 0, ["0 of 0 contigs predicted", "There is no sequence.", "Nothing failed"]),
        (">x\nGATTACAGATTACA\n", (), 0, ["of 1 contig predicted", "All 1 sequence."]),
        (fasta([("a", SHUT * 5)]), (), 0, ["0 of 1 contig predicted", "No device has scored anything."]),
        (PAIRS, ("--pairs", "interleaved"), 0, ["Read pairs: ", " of 2 called virus"]),
        (fasta(RECORDS), ("--threshold", "0.75"), 0, ["if at least 75 % of its scored fragments"]),
        (fasta(RECORDS), ("--verdict-by", "log_odds"), 0, ["if its log_odds were at least 0, and"]),
        (fasta(RECORDS), ("--precision", "bf16"), 0, ["in bfloat16 on CPU"]),
        (fasta(RECORDS), ("--calls",), 0, ["contig_calls.tsv"]),
    ],
    ids=["empty", "one", "no_orf", "pairs", "threshold", "log_odds", "bf16", "calls"],
)
def test_kinds_of_runs(
    text: str, options: tuple[str, ...], code: int, shown: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a.fa").write_text(text)
    assert predict(tmp_path / "a.fa", tmp_path / "out", *options).code == code
    page = Page(tmp_path / "out")
    assert page.open == []
    for part in shown:
        assert part in page.text


def test_none_is_written_on_request(tmp_path: Path) -> None:
    source, out = tmp_path / "a.fa", tmp_path / "out"
    source.write_text(fasta(RECORDS))
    assert predict(source, out, "--no-report").code == 0
    assert not REPORTS & {path.name for path in out.iterdir()}
    before = tables(out)
    assert "report: False -> True" in predict(source, out).err
    assert {path.name for path in out.iterdir()} >= REPORTS
    assert tables(out) == before
    # Once written, files stay.
    assert "its files are unchanged" in predict(source, out, "--no-report").err
    assert {path.name for path in out.iterdir()} >= REPORTS


def test_one_that_is_lost_is_written_again(tmp_path: Path) -> None:
    source, out = tmp_path / "a.fa", tmp_path / "out"
    source.write_text(fasta(RECORDS))
    assert predict(source, out).code == 0
    (out / "report.html").unlink()
    assert "some of its files have changed" in predict(source, out).err
    assert Page(out).open == []


def test_the_command_makes_the_same_again(tmp_path: Path) -> None:
    source, out = tmp_path / "a.fa", tmp_path / "out"
    source.write_text(PAIRS)
    assert predict(source, out, "--pairs", "interleaved", "--threshold", "0.6").code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "run.sqlite3"}
    for name in REPORTS:
        (out / name).unlink()
    ended = run("report", out)
    assert (ended.code, ended.out, ended.err) == (0, f"{out / 'report.html'}\n", "")
    after = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "run.sqlite3"}
    assert after == before
    again = predict(source, out, "--pairs", "interleaved", "--threshold", "0.6")
    assert "its files are unchanged" in again.err


def test_the_command_makes_one_that_there_was_not(tmp_path: Path) -> None:
    source, out = tmp_path / "a.fa", tmp_path / "out"
    source.write_text(fasta(RECORDS))
    assert predict(source, out, "--no-report").code == 0
    assert run("report", out).code == 0
    assert {path.name for path in out.iterdir()} >= REPORTS
    assert "its files are unchanged" in predict(source, out).err
    # The facts of the sessions are in the summary.
    (out / "summary.json").unlink()
    assert "its summary.json is missing or has changed" in run("report", out).err
    assert "contains no run" in run("report", tmp_path).err


def test_tables_with_other_settings_have_a_report_of_their_own(tmp_path: Path) -> None:
    source, out = tmp_path / "a.fa", tmp_path / "out"
    source.write_text(fasta(RECORDS))
    assert predict(source, out).code == 0
    assert run("tables", out, "--threshold", "0.75", "--min-length", "100").code == 0
    page = Page(out)
    assert "if at least 75 % of its scored fragments" in page.text
    assert "1 sequence of fewer than 100 bases" in page.text
    assert len(page.rows["rows"]) == 2


def test_a_full_disk_loses_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: FinishedRun) -> Chunks:
        yield b"begun"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source, out = tmp_path / "a.fa", tmp_path / "out"
    source.write_text(fasta(RECORDS))
    assert predict(source, tmp_path / "calm").code == 0
    monkeypatch.setattr(writer, "REPORT_FILES", (OutputFile("report.html", fails),))
    ended = predict(source, out)
    assert ended.code == 0
    assert "all tables are written" in ended.err
    assert "all tables are written" in log(out)
    assert tables(out) == tables(tmp_path / "calm")
    assert summary(out)["finished"]
    assert not (out / "report.html").exists()
    monkeypatch.undo()
    assert predict(source, out).code == 0
    assert Page(out).open == []


@pytest.fixture
def made_up(tmp_path: Path) -> Iterator[FinishedRun]:
    """A run with more of everything than a report shows, and with long names that are hard to write."""
    scores = [ScoredOrf(1, 0, 0.1, 0.9)]
    records = [Record(b"%d" % number + b"\x00<\xff" * 4000, tuple(scores)) for number in range(2500)]
    store = store_run(tmp_path, records)
    store.finish()
    yield FinishedRun(
        store.reader,
        OutputOptions(),
        100,
        VerdictRule(),
        lambda _: PairedFiles([], 0, [], []),
        partial(_made_up_summary, len(records)),
    )
    store.close()


def _made_up_summary(contigs: int, _: FinishedRun) -> Summary:
    names = ("contigs", "fragments", "orfs", "batches", "viral_contigs")
    inputs = [{"path": "p" * 4000, "contigs": contigs, "status": "read"}]
    bundle, times = {"name": "m", "fingerprint": "f"}, {"total": 0.0}
    counts = dict.fromkeys(names, contigs) | {"failures": 0}
    return Summary("0", "", {}, bundle, inputs, counts, [], times, {}, True, True)


def test_its_size_is_bounded(made_up: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_bytes(b"".join(report_chunks(made_up)))
    assert (tmp_path / "report.html").stat().st_size < 3_000_000
    page = Page(tmp_path)
    assert len(page.rows["rows"]) == 2000
    assert "The 2,000 most telling of 2,500 sequences; all of them are in contigs.tsv." in page.text


def test_only_some_of_many_inputs_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MOST_INPUTS", 1)
    for name in ("a.fa", "b.fa", "c.fa"):
        (tmp_path / name).write_text(fasta(RECORDS))
    assert predict(*sorted(tmp_path.glob("*.fa")), tmp_path / "out").code == 0
    page = Page(tmp_path / "out")
    assert "The first 1 of 3 inputs; all of them are in samples.tsv" in page.text
    assert page.rows["files"] == [str(path) for path in sorted(tmp_path.glob("*.fa"))]
