"""A whole run: the published answer, as part of another program, and what its inputs may hold."""

import asyncio
import gzip
import os
import time
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from fakes import Rules, fake_devices, p_virus
from harness import PipelineHarness
from support import TABLES, assert_published_scores, read_table

from virnuc_async.errors import (
    CannotWrite,
    NoRecords,
    UnknownDevice,
    UsageError,
)
from virnuc_async.models.bundle import Bundle
from virnuc_async.pipeline import execute, run_pipeline
from virnuc_async.runs.plan import Intervals, Plan
from virnuc_async.runs.run_progress import RunProgress
from virnuc_async.sequences.fragments import cut
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.orfs import open_frames
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.settings import Settings


async def test_the_published_answer(
    source: Path, expected: Path, golden_bundle: Bundle, tmp_path: Path, count: int
) -> None:
    settings = Settings(golden_bundle.directory, devices=("cpu",) * count, embeddings=True)
    await run_pipeline([source], tmp_path, settings)
    assert_published_scores(tmp_path, expected)
    name = "prediction_results_highestscore.csv"
    assert (tmp_path / name).read_bytes() == (expected / name).read_bytes()
    features = torch.load(tmp_path / "merged_features.pt", weights_only=True)
    merged = torch.load(expected / "merged.pt", weights_only=True)
    assert features["ids"] == merged["ids"]
    torch.testing.assert_close(features["data"], merged["data"], rtol=0, atol=1e-5)


async def test_contigs_by_the_published_scores(
    source: Path, expected: Path, golden_bundle: Bundle, tmp_path: Path
) -> None:
    await run_pipeline([source], tmp_path, Settings(golden_bundle.directory, threshold=0.6))
    rows = read_table(tmp_path / "contigs.tsv")[1:]
    scores: dict[str, dict[str, tuple[float, float]]] = {}
    for name, _, others, virus in read_table(expected / "prediction_results.txt")[1:]:
        contig, _, orf = name.rpartition("_chunk_")
        best = scores.setdefault(contig, {}).setdefault(orf[:-2], (0.0, 0.0))
        scores[contig][orf[:-2]] = (max(best[0], float(others)), max(best[1], float(virus)))
    contigs = list(read_contigs(str(source)))
    assert [row[0] for row in rows] == [contig.id.decode() for contig in contigs]
    for contig, (name, file, length, fragments, with_orf, viral, *shares, verdict, _) in zip(
        contigs, rows, strict=True
    ):
        best = list(scores.get(name, {}).values())
        count = sum(virus >= others for others, virus in best)
        cuts = list(cut(len(contig.bases), golden_bundle.length))
        assert (file, int(length), int(fragments)) == (str(source), len(contig.bases), len(cuts))
        assert (int(with_orf), int(viral)) == (len(best), count)
        if not best:
            assert (*shares, verdict) == ("", "", "", "no_orf")
            continue
        share = count / len(best)
        means = np.mean([virus for _, virus in best]), max(virus for _, virus in best)
        np.testing.assert_allclose([float(share) for share in shares], [share, *means], rtol=0, atol=1e-5)
        assert verdict == ("virus" if share >= 0.6 else "others")


async def test_one_or_three_replicas_give_the_same_bytes(
    source: Path, bundle: Bundle, tmp_path: Path
) -> None:
    for devices in (1, 3):
        settings = Settings(bundle.directory, devices=("cpu",) * devices, tokens_per_batch=500)
        summary = await run_pipeline([source], tmp_path / str(devices), settings)
        assert summary.counts["batches"] > 6
        assert summary.reproducible
    for name in TABLES:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


async def test_runs_beside_other_tasks_and_beside_itself(
    source: Path, bundle: Bundle, tmp_path: Path
) -> None:
    """The host's loop goes on while two runs share it, and each run has its own answer."""
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    heart = asyncio.create_task(beat())
    half = tmp_path / "half.fa"
    half.write_bytes(source.read_bytes().split(b">Bas03")[0])
    settings = Settings(bundle.directory)
    one, other = await asyncio.gather(
        run_pipeline([source], tmp_path / "one", settings),
        run_pipeline([half], tmp_path / "other", settings),
    )
    heart.cancel()
    assert beats > 5
    assert (one.counts["contigs"], other.counts["contigs"]) == (33, 10)
    await run_pipeline([half], tmp_path / "alone", settings)
    for name in TABLES[:2]:
        assert (tmp_path / "other" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert (tmp_path / "one" / "run.log").read_text().count("Viral: ") == 1


async def test_prints_nothing(bench: PipelineHarness, capfd: pytest.CaptureFixture[str]) -> None:
    await bench.run()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("batches", [0, 1, 4])
async def test_cancelled_it_ends_and_resumes(bench: PipelineHarness, count: int, batches: int) -> None:
    await bench.run(devices=count, out="calm")
    rules = Rules(pause_after=batches)
    task = asyncio.create_task(bench.run(rules, devices=count))
    await rules.paused.wait()
    task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done()  # what the devices have begun is waited for
    rules.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not rules.open
    begun = len(rules.seen)
    assert batches <= begun <= batches + count  # each device ends the one that it has begun
    again = Rules()
    summary = await bench.run(again, devices=count)
    assert begun + len(again.seen) == summary.counts["batches"]  # none is lost, none is done twice
    assert bench.tables() == bench.tables("calm")
    assert summary.finished


async def test_cancelled_while_standard_input_is_silent(bundle: Bundle, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stdin, os.fdopen(writer, "wb") as pipe:
        with anyio.move_on_after(0.3) as scope:
            await run_pipeline(["-"], tmp_path / "out", Settings(bundle.directory), stdin=stdin)
        assert scope.cancelled_caught
        pipe.write(b">a\nACGT\n")


async def test_cancelled_at_any_moment_from_outside(bench: PipelineHarness) -> None:
    """A task's own cancellation, not a scope's, which knows no shield."""
    began = time.monotonic()
    await bench.run(out="calm")
    whole = time.monotonic() - began
    for step in range(20):
        task = asyncio.create_task(bench.run())
        await asyncio.sleep(whole * step / 20)
        task.cancel()
        await asyncio.wait([task])
    assert (await bench.run()).finished
    assert bench.tables() == bench.tables("calm")


async def test_scores_are_each_orfs_own(bench: PipelineHarness, count: int) -> None:
    """Joined by position: whichever device scored an ORF, the row holds the score of its residues."""
    rules = Rules()
    await bench.run(rules, devices=count)
    assert {name for name, _ in rules.seen} == {f"fake:{number}" for number in range(count)}
    tokenizer = OrfTokenizer(bench.bundle.tokenizer())
    rows = read_table(bench.out / "out" / "prediction_results.txt")[1:]
    wanted = []
    for contig in read_contigs(str(bench.source)):
        for number, (start, end) in enumerate(cut(len(contig.bases), bench.bundle.length), 1):
            for orf in open_frames(contig.bases[start:end], [(0, end - start)]):
                score = p_virus(tokenizer.residues([orf.protein]).ids.tolist())
                name = f"{contig.id.decode()}_chunk_{number}{orf.frame.name}"
                wanted.append([name, str(np.float32(1) - score), str(score)])
    assert [[name, others, virus] for name, _, others, virus in rows] == wanted


async def test_small_files_fill_batches_as_one_large_file_does(
    bench: PipelineHarness, tmp_path: Path
) -> None:
    rules = Rules()
    await bench.run(rules, out="one")
    records = bench.source.read_bytes().split(b">")[1:]
    directory = tmp_path / "many"
    directory.mkdir()
    for number, record in enumerate(records):
        (directory / f"{number:03}.fa.gz").write_bytes(gzip.compress(b">" + record))
    apart = Rules()
    plan = Plan(
        tuple(str(path) for path in sorted(directory.iterdir())),
        bench.settings,
        bench.bundle,
        fake_devices(1),
        bench.window,
    )
    summary = await execute(plan, tmp_path / "apart", apart.scorer)
    assert [batch.orfs.tolist() for _, batch in apart.seen] == [
        batch.orfs.tolist() for _, batch in rules.seen
    ]
    assert bench.tables("apart") | {"contigs.tsv": b""} == bench.tables("one") | {"contigs.tsv": b""}
    assert [entry["contigs"] for entry in summary.inputs] == [1] * len(records)


async def test_what_cannot_be_read_does_not_stop_the_rest(bench: PipelineHarness, tmp_path: Path) -> None:
    good, cut_short, empty, text = (tmp_path / name for name in ("good.fa", "cut.fq", "empty.fa", "text.fa"))
    good.write_bytes(b">g\nGCAGCAGCA\n")
    cut_short.write_bytes(b"@whole\nGCAGCA\n+\nIIIIII\n@half\nGCA\n")
    empty.write_bytes(b"\n")
    text.write_bytes(b"Dear reviewer,\n")
    missing = tmp_path / "missing.fa"
    paths = [str(path) for path in (missing, cut_short, empty, text, good)]
    plan = Plan(tuple(paths), bench.settings, bench.bundle, fake_devices(1))
    summary = await execute(plan, tmp_path / "out", Rules().scorer)
    assert [(entry["path"], entry["contigs"], entry["status"]) for entry in summary.inputs] == [
        (str(missing), 0, "failed"),
        (str(cut_short), 1, "broken"),
        (str(empty), 0, "empty"),
        (str(text), 0, "failed"),
        (str(good), 1, "read"),
    ]
    assert [row[0] for row in read_table(tmp_path / "out" / "contigs.tsv")[1:]] == ["whole", "g"]
    assert (tmp_path / "out" / "failed_files.txt").read_text().splitlines() == [
        f"{missing}|Input|No such file or directory",
        f"{cut_short}|Input|breaks after 1 record: line 5: the last record ends early",
        f"{text}|Input|line 1: expected '>' (FASTA) or '@' (FASTQ), saw 'Dear reviewer,'",
    ]
    assert f"{empty} holds no sequence" in (tmp_path / "out" / "run.log").read_text()


async def test_nothing_to_do_leaves_nothing_behind(bench: PipelineHarness, tmp_path: Path) -> None:
    empty, missing = tmp_path / "empty.fa", tmp_path / "missing.fa"
    empty.touch()
    rules = Rules()
    plan = Plan((str(empty), str(missing)), bench.settings, bench.bundle, fake_devices(1))
    with pytest.raises(NoRecords, match=r"in the 2 inputs\n.*missing\.fa: No such file"):
        await execute(plan, tmp_path / "out", rules.scorer)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", [str, Path, lambda path: [path], lambda path: iter([str(path)])])
async def test_one_input_is_one_file(form: Any, bundle: Bundle, source: Path, tmp_path: Path) -> None:
    """And not its letters, of which a full stop would be the whole directory."""
    few = tmp_path / "val.fa"
    few.write_text(">one\nGCAGCAGCA\n")
    settings = Settings(bundle.directory, devices="cpu")  # type: ignore[arg-type]
    summary = await run_pipeline(form(few), str(tmp_path / "out"), settings)
    assert summary.inputs == [{"path": str(few), "contigs": 1, "status": "read"}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], "out"), "an input is missing: there are none"),
        (("", "out"), "an input has an empty name"),
        ((None, "out"), "an input must be a path, or paths, not None"),
        ((["a.fa", 1], "out"), "an input must be a path, not 1"),
        (("a.fa", ""), "the output directory has an empty name"),
        (("a.fa", None), "the output directory must be a path, not None"),
        (("a.fa", "o\0"), "the output directory must be a path, not 'o\\x00': no name has a zero byte"),
        (("a.fa", "out", {"model": "x"}), "settings must be Settings, not {'model': 'x'}"),
    ],
)
async def test_arguments_of_other_types(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        await run_pipeline(*arguments)
    assert caught.value.reason == message


@pytest.mark.parametrize("name", ["n" * 300, "n/" * 3000])
async def test_an_output_directory_with_too_long_a_name(name: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="File name too long$"):
        await run_pipeline(source, tmp_path / name)


async def test_devices_that_do_not_exist(source: Path, bundle: Bundle, tmp_path: Path) -> None:
    for settings in (Settings(bundle.directory, devices=("cuda:9",)), Settings(gpus=(9,))):
        with pytest.raises(UnknownDevice, match="There are: .*cpu"):
            await run_pipeline([source], tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


async def test_a_program_is_told_how_far_a_run_is(
    source: Path, golden_bundle: Bundle, tmp_path: Path
) -> None:
    seen: list[RunProgress] = []
    plan = Plan(
        (str(source),) * 3,
        Settings(tokens_per_batch=400),
        golden_bundle,
        fake_devices(2),
        window=15,
        intervals=Intervals(progress=0.001),
        on_progress=seen.append,
    )
    summary = await execute(plan, tmp_path / "out", Rules().scorer)
    shares = [one.share for one in seen if one.share is not None]
    assert shares == sorted(shares)
    assert {one.state for one in seen} >= {"reading", "scoring", "writing"}
    last = seen[-1]
    assert (last.share, last.orfs, last.orfs_total) == (1.0, summary.counts["orfs"], summary.counts["orfs"])
    assert (last.files_done, last.files) == (3, 3)
    assert sum(device.orfs for device in last.devices) == summary.counts["orfs"]
    assert {device.name for device in last.devices} == {"fake:0", "fake:1"}


async def test_what_the_program_raises_ends_the_run(
    source: Path, golden_bundle: Bundle, tmp_path: Path
) -> None:
    def fail(_: RunProgress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run_pipeline(source, tmp_path / "out", Settings(golden_bundle.directory), on_progress=fail)
