"""The other examples: the notebook, the smallest service, and the script for many samples."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from aiohttp.test_utils import TestClient, TestServer
from nbclient import NotebookClient
from running import ROOT, verdicts

EXAMPLES = ROOT / "docs" / "examples"
sys.path.insert(0, str(EXAMPLES))
from aiohttp_service import create_app  # noqa: E402


def test_the_notebook_runs_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    results = [
        output["data"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "execute_result"
    ]
    assert "36 viral" in results[0]["text/html"]
    assert "virus" in results[1]["text/plain"]
    assert json.loads(results[-1]["text/plain"].replace("(", "[").replace(")", "]"))[0] > 100


async def test_the_smallest_service() -> None:
    async with TestClient(TestServer(create_app())) as client:
        answer = await client.post("/predict", json=[["a b", "GCA" * 40], ["none", "TTAATTAATTAA"]])
        assert [row[:2] for row in await answer.json()] == [["a", "others"], ["none", "no_orf"]]
        refused = await client.post("/predict", json=[["a", "ACGE"]])
        assert refused.status == 422
        assert "'E' is not a nucleotide letter" in await refused.text()


def test_many_samples(tmp_path: Path) -> None:
    (tmp_path / "one.fa").write_text(f">one\n{'GCA' * 100}\n")
    shutil.copy(EXAMPLES / "metagenome.fa.gz", tmp_path)
    names = ["missing.fa", "one.fa", "metagenome.fa.gz"]
    command = [sys.executable, str(EXAMPLES / "many_samples.py"), str(tmp_path / "out")]
    done = subprocess.run(
        [*command, *(str(tmp_path / name) for name in names)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split("\t")[:3] for line in done.stdout.splitlines()] == [
        ["one.fa", "1", "0"],
        ["metagenome.fa.gz", "60", "36"],
    ]
    assert done.stderr.count("missing.fa: No such file or directory") == 2
    assert verdicts(tmp_path / "out" / "one.fa") == {"one": "others"}
