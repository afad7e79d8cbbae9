"""``--layout virnucpro``: for each input a directory with the tables that a run on it alone has."""

import os
from pathlib import Path

import pytest
from running import predict, rows, run, some_reads, summary
from support import fasta

from virnuc_async.outputs.layout import directory_names
from virnuc_async.runs.output_directory import is_in_merged

LAYOUT = ("--layout", "virnucpro")
NAMES = ["prediction_results.txt", "prediction_results_highestscore.csv"]


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    """Two files of one stem with a record of one name, and an empty one."""
    (tmp_path / "more").mkdir()
    paths = [tmp_path / "a.fa", tmp_path / "more" / "a.fastq", tmp_path / "none.fa"]
    paths[0].write_text(fasta([("x", "GCA" * 250), *some_reads(9, 200).items()]))
    bases = "GCT" * 200
    paths[1].write_text(f"@x\n{bases}\n+\n{'I' * len(bases)}\n")
    paths[2].write_bytes(b"")
    return paths


def scored_fragments(directory: Path) -> list[list[str]]:
    """Return the four columns of ``fragments.tsv``, sorted by name."""
    header, *found = [row[:4] for row in rows(directory / "fragments.tsv")]
    return [header, *sorted(found, key=lambda row: row[0].encode())]


def merged(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("*_merged"))


def test_each_input_has_the_tables_of_a_run_on_it_alone(inputs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(*inputs, out, *LAYOUT).code == 0
    assert merged(out) == ["a_2_merged", "a_merged", "none_merged"]
    for path, name in zip(inputs, ["a_merged", "a_2_merged", "none_merged"], strict=True):
        alone = tmp_path / f"alone-{name}"
        assert predict(path, alone).code == 0
        assert sorted(os.listdir(out / name)) == NAMES
        assert (out / name / NAMES[0]).read_bytes() == (alone / NAMES[0]).read_bytes()
        assert rows(out / name / NAMES[1]) == scored_fragments(alone)
    assert len(rows(out / "a_merged" / NAMES[1])) > 2
    # The run's own tables are what they are without it.
    assert predict(*inputs, tmp_path / "plain").code == 0
    for name in (*NAMES, "contigs.tsv", "fragments.tsv"):
        assert (out / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert (summary(out)["settings"]["layout"], summary(tmp_path / "plain")["settings"]["layout"]) == (
        "virnucpro",
        None,
    )


def test_it_is_kept_and_repaired(inputs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(inputs[0], out).code == 0
    assert merged(out) == []
    assert "layout: None -> virnucpro: writing the tables" in predict(inputs[0], out, *LAYOUT).err
    table = out / "a_merged" / NAMES[0]
    before = table.read_bytes()
    assert "its files are unchanged" in predict(inputs[0], out).err
    for change in (table.unlink, lambda: table.write_text("changed")):
        change()
        assert "some of its files have changed" in predict(inputs[0], out).err
        assert table.read_bytes() == before
    assert run("calls", out).code == 0
    assert "its files are unchanged" in predict(inputs[0], out).err


def test_tables_made_again_have_it(inputs: list[Path], tmp_path: Path) -> None:
    out, new = tmp_path / "out", tmp_path / "new"
    assert predict(*inputs[:2], out).code == 0
    assert run("tables", out, *LAYOUT, "--min-length", "700").code == 0
    assert merged(out) == ["a_2_merged", "a_merged"]
    assert {row[0] for row in rows(out / "a_merged" / NAMES[1])[1:]} == {"x_chunk_1", "x_chunk_2"}
    assert rows(out / "a_2_merged" / NAMES[1])[1:] == []
    assert run("tables", out, "--output", new).code == 0
    assert merged(new) == merged(out)
    assert "its files are unchanged" in predict(*inputs[:2], out, "--min-length", "700").err
    (tmp_path / "taken" / "a_merged").mkdir(parents=True)
    ended = run("tables", out, "--output", tmp_path / "taken")
    assert ended.code == 1
    assert "contains 'a_merged' and no run of this program" in ended.err


def test_directories_of_inputs_that_are_gone_are_removed(inputs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(*inputs[:2], out, *LAYOUT).code == 0
    (out / "a_2_merged" / "notes.txt").write_text("of the user")
    assert predict(inputs[0], out, "--overwrite").code == 0
    # What is not ours stays, and what was is not taken for the new run's.
    assert sorted(os.listdir(out / "a_2_merged")) == ["notes.txt"]
    assert merged(out) == ["a_2_merged"]
    assert predict(inputs[1], out, "--overwrite", *LAYOUT).code == 0
    assert sorted(os.listdir(out / "a_merged")) == NAMES


def test_a_link_in_the_place_of_a_directory(inputs: list[Path], tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert predict(inputs[0], out).code == 0
    (out / "a_merged").symlink_to(elsewhere)
    ended = predict(inputs[0], out, *LAYOUT)
    assert ended.code == 1
    assert f"virnuc-async: {out}: a_merged/{NAMES[0]}: Not a directory" in ended.err
    assert [*elsewhere.iterdir()] == []


def test_results_of_virnucpro_are_not_replaced(inputs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "a_merged").mkdir(parents=True)
    (out / "a_merged" / NAMES[0]).write_text("of another program")
    ended = predict(inputs[0], out, *LAYOUT)
    assert (ended.code, ended.err) == (
        1,
        f"virnuc-async: {out}: contains 'a_merged' and no run of this program, which would write files of "
        "these names. Choose a new or empty directory\n",
    )
    assert predict(inputs[0], out).code == 0
    assert (out / "a_merged" / NAMES[0]).read_text() == "of another program"


def test_names_of_directories() -> None:
    paths = ["d/a.fa", "e/a.fastq.gz", "a_2.fa", "a.bam", "b", "-", "sample.v1.fasta"]
    assert directory_names(paths) == [
        *("a_merged", "a_2_merged", "a_2_2_merged", "a_3_merged", "b_merged", "stdin_merged"),
        "sample.v1_merged",
    ]


@pytest.mark.parametrize(
    ("name", "is_ours"),
    [
        ("a_merged/prediction_results.txt", True),
        ("a_merged/prediction_results_highestscore.csv", True),
        ("a_merged/other.txt", False),
        ("../a_merged/prediction_results.txt", False),
        ("prediction_results.txt", False),
        ("a/prediction_results.txt", False),
    ],
)
def test_names_of_files_that_may_be_removed(name: str, is_ours: bool) -> None:
    assert is_in_merged(name) is is_ours
