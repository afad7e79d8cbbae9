"""The files for MultiQC: what is in them, and what MultiQC makes of them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import OPEN, SHUT, predict
from support import fasta

from virnuc_async.outputs.multiqc import STATISTICS, VERDICTS, sample_names


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.fa", "/data/b.fq.gz", "-"], ["a", "b", "stdin"]),
        (["x/reads.fa", "y/reads.fa"], ["x_reads", "y_reads"]),
        (["x/reads.fa", "x/reads.fq", "x/reads_2.fa"], ["x_reads", "x_reads_2", "reads_2"]),
        (["a.fa", "a.fa", "a_2.fa"], [f"{Path.cwd().name}_a", f"{Path.cwd().name}_a_2", "a_2"]),
        (["a.contigs", os.fsdecode(b"\xff\x1b.fa")], ["a.contigs", r"\xff\x1b"]),
    ],
)
def test_each_input_has_a_name_of_its_own(paths: list[str], names: list[str]) -> None:
    assert sample_names(paths) == names


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("multiqc")
    (directory / "first.fa").write_text(fasta([("a", OPEN * 60), ("b", OPEN * 90), ("c", SHUT * 5)]))
    (directory / "second.fa").write_text(fasta([("d", SHUT * 5)]))
    (directory / "none.fa").write_text("")
    names = [directory / name for name in ("first.fa", "second.fa", "none.fa")]
    assert predict(*names, directory / "out").code == 0
    return directory / "out"


def content(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / name).read_bytes())


def test_a_sample_for_each_input(out: Path) -> None:
    verdicts = [line.split("\t")[-1] for line in (out / "contigs.tsv").read_text().splitlines()[1:]]
    viral = verdicts.count("virus")
    assert content(out, VERDICTS)["data"] == {
        "first": {"virus": viral, "others": 2 - viral, "no_orf": 1},
        "second": {"virus": 0, "others": 0, "no_orf": 1},
        "none": {"virus": 0, "others": 0, "no_orf": 0},
    }
    assert content(out, STATISTICS)["data"] == {
        "first": {"viral_percent": 50.0 * viral, "viral": viral, "sequences": 3},
        "second": {"viral": 0, "sequences": 1},
        "none": {"viral": 0, "sequences": 0},
    }


@pytest.mark.multiqc
@pytest.mark.timeout(180)
def test_multiqc_shows_them(out: Path, tmp_path: Path) -> None:
    pytest.importorskip("multiqc")
    command = [sys.executable, "-m", "multiqc", str(out), "--outdir", str(tmp_path), "--strict", "--no-ansi"]
    environment = {**os.environ, "MULTIQC_NO_VERSION_CHECK": "1"}
    ended = subprocess.run([*command, "--no-version-check"], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    data = tmp_path / "multiqc_data"
    rows = [line.split("\t") for line in (data / "multiqc_general_stats.txt").read_text().splitlines()]
    found = {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[1:]}
    expected = content(out, STATISTICS)["data"]
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        shown = {key.rpartition("-")[2]: float(value) for key, value in found[name].items() if value}
        assert shown == pytest.approx(values)
    page = (tmp_path / "multiqc_report.html").read_text()
    assert "Viral sequences" in page
    assert "virnuc_verdicts" in page
