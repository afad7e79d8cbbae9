"""A finished run that is asked for with other settings, none of which changes a score."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import Rules
from harness import PipelineHarness
from running import log, predict, python, summary, tables
from support import DATA

from virnuc_async.errors import CannotWrite, NoDevicesLeft, RunMismatchError
from virnuc_async.models.bundle import Bundle
from virnuc_async.models.calibration import Calibration, Method
from virnuc_async.runs.store import Store
from virnuc_async.settings import Pairing

FEATURES = "merged_features.pt"


async def again(bench: PipelineHarness, **settings: object) -> str:
    """Run with other settings; check that nothing is scored, and return what the log says."""
    path = bench.out / "out" / "run.log"
    said = len(path.read_text())
    bench.settings = replace(bench.settings, **settings)  # type: ignore[arg-type]
    rules = Rules()
    await bench.run(rules)
    assert not rules.seen
    assert not rules.proofs
    return path.read_text()[said:]


async def test_another_threshold(bench: PipelineHarness) -> None:
    before = (await bench.run()).counts["orfs"]
    text = await again(bench, threshold=0.7)
    assert "threshold: 0.5 -> 0.7: writing the tables of this finished run again" in text
    assert f"(0 ORFs scored now, {before} before, of " in text
    bench.settings = replace(bench.settings, threshold=0.7)
    await bench.run(out="fresh")
    assert bench.tables() == bench.tables("fresh")
    facts = summary(bench.out / "out")
    assert facts["settings"]["threshold"] == 0.7
    assert facts["session"] == {
        "orfs": 0,
        "batches": 0,
        "orfs_before": before,
        "batches_before": facts["counts"]["batches"],
    }
    assert facts["devices"] == summary(bench.out / "fresh")["devices"]
    assert "this run is finished already, and its files are unchanged" in await again(bench, threshold=0.7)


async def test_a_run_of_a_version_without_the_table_of_fragments(bench: PipelineHarness) -> None:
    await bench.run()
    before, store = bench.tables(), Store(bench.out / "out")
    written = store.get_meta("written")
    del written["files"]["fragments.tsv"]
    store.set_meta("written", written)
    store.close()
    (bench.out / "out" / "fragments.tsv").unlink()
    assert "some of its files have changed: writing them again" in await again(bench)
    assert bench.tables() == before
    assert "its files are unchanged" in await again(bench)


async def test_without_the_calibration(bench: PipelineHarness, bundle: Bundle) -> None:
    calibration = Calibration(bundle.fingerprint, Method.TEMPERATURE, 2.0, (), 0.01, 0.5)
    bench.bundle = replace(bundle, calibration=calibration)
    await bench.run()
    assert b"p_virus_calibrated" in bench.tables()["contigs.tsv"]
    text = await again(bench, calibrated=False)
    assert f"calibration: {calibration.fingerprint} -> None: writing the tables" in text
    assert b"p_virus_calibrated" not in bench.tables()["contigs.tsv"]


async def test_other_pairs(bench: PipelineHarness) -> None:
    await bench.run()
    assert "pairs: auto -> interleaved" in await again(bench, pairs=Pairing.INTERLEAVED)
    assert (bench.out / "out" / "failed_files.txt").exists()  # its 33 records are no pairs
    assert "pairs: interleaved -> off" in await again(bench, pairs=Pairing.OFF)
    assert not (bench.out / "out" / "failed_files.txt").exists()


async def test_an_input_under_another_name(bench: PipelineHarness, tmp_path: Path) -> None:
    text = bench.source.read_bytes()
    bench.source = tmp_path / "first.fa"
    bench.source.write_bytes(text)
    await bench.run()
    bench.source = bench.source.rename(tmp_path / "second.fa")
    assert "inputs: moved or renamed: writing the tables" in await again(bench)
    assert b"second.fa" in bench.tables()["contigs.tsv"]
    await bench.run(out="fresh")
    assert bench.tables() == bench.tables("fresh")


async def test_an_unfinished_run_goes_on_with_another_threshold(bench: PipelineHarness) -> None:
    with pytest.raises(NoDevicesLeft):
        await bench.run(Rules(lost={"fake:0": 3}))
    bench.settings = replace(bench.settings, threshold=0.7)
    rules = Rules()
    facts = await bench.run(rules)
    assert facts.session["batches_before"] == 3
    assert facts.session["batches"] == len(rules.seen) == facts.counts["batches"] - 3
    line = f"({facts.session['orfs']} ORFs scored now in "
    assert line in log(bench.out / "out")
    assert f" s, {facts.session['orfs_before']} before, of " in log(bench.out / "out")
    await bench.run(out="fresh")
    assert bench.tables() == bench.tables("fresh")


async def test_embeddings_are_kept_from_the_beginning_on_or_not_at_all(bench: PipelineHarness) -> None:
    await bench.run()
    bench.settings = replace(bench.settings, embeddings=True)
    with pytest.raises(RunMismatchError, match="embeddings: False -> True"):
        await bench.run()


async def test_embeddings_that_are_not_asked_for_again(bench: PipelineHarness) -> None:
    bench.settings = replace(bench.settings, embeddings=True)
    await bench.run()
    written = (bench.out / "out" / FEATURES).stat()
    assert "its files are unchanged" in await again(bench, embeddings=False)
    assert "threshold: 0.5 -> 0.7" in await again(bench, threshold=0.7)
    assert (bench.out / "out" / FEATURES).stat() == written
    assert "its files are unchanged" in await again(bench, embeddings=True)


async def test_embeddings_that_are_asked_for_again_at_the_end(bench: PipelineHarness) -> None:
    bench.settings = replace(bench.settings, embeddings=True)
    with pytest.raises(NoDevicesLeft):
        await bench.run(Rules(lost={"fake:0": 3}))
    bench.settings = replace(bench.settings, embeddings=False)
    await bench.run()
    assert not (bench.out / "out" / FEATURES).exists()
    assert "embeddings: False -> True: writing the tables" in await again(bench, embeddings=True)
    await bench.run(out="fresh")
    found, fresh = (torch.load(bench.out / out / FEATURES, weights_only=True) for out in ("out", "fresh"))
    assert found["ids"] == fresh["ids"]
    assert found["data"].equal(fresh["data"])


async def test_tables_that_were_not_all_written(bench: PipelineHarness) -> None:
    """A crash while they are written again leaves some of the old settings and some of the new."""
    await bench.run()
    bench.settings = replace(bench.settings, threshold=0.7)
    (bench.out / "out" / "contigs.tsv").unlink()
    (bench.out / "out" / "contigs.tsv").mkdir()  # cannot be replaced
    with pytest.raises(CannotWrite, match=r"contigs\.tsv"):
        await bench.run()
    (bench.out / "out" / "contigs.tsv").rmdir()
    assert "threshold: 0.5 -> 0.7" in await again(bench)
    await bench.run(out="fresh")
    assert bench.tables() == bench.tables("fresh")


def test_nothing_of_this_needs_torch(tmp_path: Path) -> None:
    """Its import takes seconds, and much longer where many programs start at once."""
    source, out = DATA / "golden" / "upstream" / "input.fa", tmp_path / "out"
    assert predict(source, out).code == 0
    first = tables(out)
    script = f"""
import sys
from virnuc_async.cli.main import main
code = main(["predict", {str(source)!r}, {str(out)!r}, "--threshold", "0.9", "--quiet"])
print(code, sorted({{"torch", "transformers", "esm"}} & sys.modules.keys()))
"""
    assert python(script).splitlines() == ["0 []"]
    assert tables(out) != first
    assert summary(out)["settings"]["threshold"] == 0.9
    assert "torch" in sys.modules
