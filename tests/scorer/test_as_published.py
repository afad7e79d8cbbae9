"""The scorer with the shipped model: it says what the tables of a run say, in any loop of asyncio's."""

import asyncio
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import dnaio
import numpy as np
import pytest
import trio
import uvloop
from Bio import SeqIO
from running import ROOT, predict, rows

from virnuc_async import FragmentScore, Prediction, Predictions, Scorer, Settings, UsageError, run_pipeline
from virnuc_async.scorer.predictions import OrfScore
from virnuc_async.sequences.inputs import read_contigs

EXAMPLE = ROOT / "docs" / "examples" / "metagenome.fa.gz"
ON_CPU = Settings(devices=("cpu",))


async def scored(*requests: object) -> list[Predictions]:
    async with Scorer(ON_CPU) as scorer:
        return list(await asyncio.gather(*map(scorer.score, requests)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of the example."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert predict(EXAMPLE, out).code == 0
    return out


@pytest.fixture(scope="module")
def found() -> Predictions:
    """Return the predictions of the example."""
    return asyncio.run(scored(EXAMPLE))[0]


def printed(name: str, value: object) -> str:
    text = "" if value is None else str(value)
    return f"{value:.4f}" if name == "log_odds" and text else text


def test_contigs_are_those_of_the_table(run: Path, found: Predictions) -> None:
    header, *lines = rows(run / "contigs.tsv")
    known = [name for name in header if name != "file"]
    expected = [[field for name, field in zip(header, line, strict=True) if name != "file"] for line in lines]
    assert [[printed(name, getattr(one, name)) for name in known] for one in found] == expected


def test_fragments_and_orfs_are_those_of_the_tables(run: Path, found: Predictions) -> None:
    _, *fragments = rows(run / "fragments.tsv")
    parts = [(one.contig, part) for one in found for part in one.fragment_scores]
    assert [
        [str(part.is_viral), str(part.p_others), str(part.p_virus), contig, str(part.number), str(part.start)]
        for contig, part in parts
    ] == [line[1:7] for line in fragments]
    _, *orfs = rows(run / "prediction_results.txt")
    assert [
        [f"{contig}_chunk_{part.number}{orf.frame}", str(orf.p_others), str(orf.p_virus)]
        for contig, part in parts
        for orf in part.orfs
    ] == [[line[0], *line[2:]] for line in orfs]


def test_pandas_and_arrow_have_the_rows_of_the_tables(run: Path, found: Predictions) -> None:
    for level, table in (
        ("contigs", "contigs.tsv"),
        ("fragments", "fragments.tsv"),
        ("orfs", "prediction_results.txt"),
    ):
        frame, arrow = found.to_pandas(level), found.to_arrow(level)  # type: ignore[arg-type]
        assert len(frame) == arrow.num_rows == len(rows(run / table)) - 1
        assert list(frame.columns) == arrow.column_names
        assert frame["contig"].tolist() == arrow.column("contig").to_pylist()
    contigs = found.to_pandas()
    assert contigs["verdict"].tolist() == [line[9] for line in rows(run / "contigs.tsv")[1:]]
    assert contigs.loc[0, "mean_p_virus"] == found[0].mean_p_virus
    with pytest.raises(UsageError, match="level must be one of contigs, fragments, orfs, not 'reads'"):
        found.to_pandas("reads")  # type: ignore[arg-type]


def test_records_of_biopython_and_dnaio_are_those_of_the_file(found: Predictions) -> None:
    text = "".join(f">{name} more\n{bases}\n" for name, bases in example())
    biopython = list(SeqIO.parse(io.StringIO(text), "fasta"))
    with dnaio.open(io.BytesIO(text.encode())) as file:
        records = list(file)
    assert asyncio.run(scored(biopython)) == asyncio.run(scored(records)) == [found]


def example() -> Sequence[tuple[str, str]]:
    return [(contig.id.decode(), contig.bases.decode()) for contig in read_contigs(str(EXAMPLE))]


def test_requests_that_share_batches_are_right_within_the_tolerance(found: Predictions) -> None:
    shared = asyncio.run(scored(*([record] for record in example()[:20])))
    for one, (alone,) in zip(found, shared, strict=False):
        assert alone.contig == one.contig
        pairs = zip(scores(alone), scores(one), strict=True)
        assert all(abs(left - right) < 1e-5 for left, right in pairs)


def scores(one: Prediction) -> list[float]:
    return [orf.p_virus for part in one.fragment_scores for orf in part.orfs]


def test_runs_in_uvloop(found: Predictions) -> None:
    assert uvloop.run(scored(EXAMPLE)) == [found]


def test_trio_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    async def enter() -> None:
        async with Scorer(ON_CPU):
            pass

    for call in (enter, partial(run_pipeline, EXAMPLE, tmp_path / "out")):
        with pytest.raises(UsageError, match="runs in asyncio's event loop, and this is another one"):
            trio.run(call)
    assert not (tmp_path / "out").exists()


def test_a_notebook_shows_a_table_in_which_ids_are_text() -> None:
    one = Prediction("<b>x</b>", 3, 1, 1, 1, 1.0, 0.5, 0.5, "virus")
    shown = Predictions([one] * 25)._repr_html_()
    assert "&lt;b&gt;x&lt;/b&gt;" in shown
    assert "<b>" not in shown
    assert shown.count("<tr>") == 21
    assert "and 5 more" in shown


def test_predictions_are_a_sequence(found: Predictions) -> None:
    assert isinstance(found[0], Prediction)
    assert isinstance(found[:2], Predictions)
    assert found[1:2] == Predictions([found[1]])
    assert [one.is_viral for one in found].count(True) == 36
    assert isinstance(found[0].fragment_scores[0], FragmentScore)
    assert isinstance(found[0].fragment_scores[0].orfs[0], OrfScore)
    assert repr(found) == "<Predictions [60 records, 36 viral]>"
    assert np.isfinite([one.max_p_virus for one in found if one.max_p_virus is not None]).all()
