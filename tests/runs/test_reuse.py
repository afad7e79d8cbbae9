"""Runs that reuse embeddings of earlier runs: the same results with less work, or a refusal."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import Rules, fake_devices
from running import predict, summary, tables
from support import TABLES, assert_published_scores, beside

from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Replica, Scores
from virnuc_async.errors import (
    AmbiguousFeatures,
    BadFeatures,
    DeviceLost,
    DeviceOutOfMemory,
    FeatureMismatchError,
    NoDevicesLeft,
    NoFeatures,
    RunMismatchError,
)
from virnuc_async.models.bundle import Bundle
from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.packing import Packed
from virnuc_async.outputs.summary import Summary
from virnuc_async.pipeline import execute, run_pipeline
from virnuc_async.runs.plan import Plan
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.sequences.windows import Cut, form_windows
from virnuc_async.settings import Precision, Settings

CSV = "prediction_results_highestscore.csv"
Keeps = Callable[[int], bool]  # whether features of the ORF of this number are there


@pytest.fixture(scope="session")
def bundle(golden_parts: CheckpointPaths, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return import_bundle(golden_parts, tmp_path_factory.mktemp("bundle"), "golden", 500)


def ids_of(expected: Path) -> list[str]:
    return list(torch.load(expected / "merged.pt", weights_only=True)["ids"])


def leave_bases(expected: Path, path: Path, keeps: Keeps = lambda _: True) -> None:
    found = torch.load(expected / "dnabert.pt", weights_only=True)
    numbers = {id: number for number, id in enumerate(ids_of(expected))}
    rows = [row for row in found["data"] if keeps(numbers[row["label"]])]
    torch.save({"nucleotide": [row["label"] for row in rows], "data": rows}, path)


def leave_residues(expected: Path, path: Path, keeps: Keeps = lambda _: True) -> None:
    found = torch.load(expected / "esm.pt", weights_only=True)
    numbers = {id: number for number, id in enumerate(ids_of(expected))}
    kept = [at for at, id in enumerate(found["proteins"]) if keeps(numbers[id])]
    proteins, data = ([found[key][at] for at in kept] for key in ("proteins", "data"))
    torch.save({"proteins": proteins, "data": [row.clone() for row in data]}, path)


def leave_merged(
    expected: Path, path: Path, change: Callable[[list[str], torch.Tensor], Any] | None = None
) -> None:
    """Write both embeddings after *change*."""
    found = torch.load(expected / "merged.pt", weights_only=True)
    ids, data = found["ids"], found["data"]
    if change:
        ids, data = change(ids, data)
    torch.save({"ids": ids, "data": data.clone()}, path)


def third(rest: int) -> Keeps:
    return lambda number: number % 3 == rest


# What was left -> of which ORFs bases and residues are known.
LEFT: dict[str, tuple[Keeps, Keeps]] = {
    "both": (lambda _: True, lambda _: True),
    "bases": (lambda _: True, lambda _: False),
    "residues": (lambda _: False, lambda _: True),
    "half of both": (lambda number: number % 2 == 0, lambda number: number % 2 == 0),
    "some of each": (lambda number: number % 3 != 0, lambda number: number % 4 != 0),
}


def leave(expected: Path, directory: Path, left: str) -> None:
    bases, residues = LEFT[left]
    if left != "residues":
        leave_bases(expected, directory / "chunk_DNABERT_S.pt", bases)
    if left != "bases":
        leave_residues(expected, directory / "chunk_ESM.pt", residues)


class Ran:
    """The sequences that each encoder computed."""

    def __init__(self) -> None:
        self.bases: list[tuple[int, ...]] = []
        self.residues: list[tuple[int, ...]] = []

    def watch(self, kind: type[DnabertS] | type[Esm2], patch: pytest.MonkeyPatch) -> None:
        seen = self.bases if kind is DnabertS else self.residues
        embeddings = kind.embeddings

        def watched(network: Any, packed: Packed) -> torch.Tensor:
            borders = packed.cu_seqlens.tolist()
            rows = [tuple(packed.ids[at:end].tolist()) for at, end in zip(borders, borders[1:], strict=False)]
            seen.extend(rows)
            return embeddings(network, packed)

        patch.setattr(kind, "embeddings", watched)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    watched = Ran()
    for kind in (DnabertS, Esm2):
        watched.watch(kind, monkeypatch)
    return watched


def settings(bundle: Bundle, old: Path | None, **others: Any) -> Settings:
    return Settings(bundle.directory, **{"devices": ("cpu",), "reuse_features": old} | others)


# The same results


@pytest.mark.parametrize("left", LEFT)
async def test_the_published_answer_from_published_features(
    left: str, source: Path, expected: Path, golden_bundle: Bundle, old: Path, tmp_path: Path
) -> None:
    leave(expected, old, left)
    for count in (1, 3):
        chosen = settings(golden_bundle, old, devices=("cpu",) * count, tokens_per_batch=500, embeddings=True)
        ended = await run_pipeline([source], tmp_path / str(count), chosen)
        assert ended.reproducible
    assert_published_scores(tmp_path / "1", expected)
    assert (tmp_path / "1" / CSV).read_bytes() == (expected / CSV).read_bytes()
    assert tables(tmp_path / "1") == tables(tmp_path / "3")
    bases, residues = LEFT[left]
    assert ended.counts["orfs_reused"] == sum(
        bases(number) or residues(number) for number in range(ended.counts["orfs"])
    )


@pytest.mark.parametrize("left", LEFT)
async def test_embeddings_that_are_reused_are_written_as_they_were(
    left: str, source: Path, expected: Path, golden_bundle: Bundle, old: Path, tmp_path: Path
) -> None:
    leave(expected, old, left)
    await run_pipeline([source], tmp_path / "out", settings(golden_bundle, old, embeddings=True))
    found = torch.load(tmp_path / "out" / "merged_features.pt", weights_only=True)
    published = torch.load(expected / "merged.pt", weights_only=True)
    assert found["ids"] == published["ids"]
    torch.testing.assert_close(found["data"], published["data"], rtol=0, atol=1e-5)
    width = golden_bundle.shapes.nucleotide.width
    for number, (ours, theirs) in enumerate(zip(found["data"], published["data"], strict=True)):
        for keeps, part in zip(LEFT[left], (slice(width), slice(width, None)), strict=True):
            assert not keeps(number) or torch.equal(ours[part], theirs[part])


async def test_what_a_run_of_ours_wrote_gives_its_bytes_again(
    source: Path, bundle: Bundle, ran: Ran, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    await run_pipeline([source], first, settings(bundle, None, embeddings=True))
    before = len(ran.residues)
    await run_pipeline([source], second, settings(bundle, first, embeddings=True))
    assert len(ran.residues) - before == 8
    assert tables(second) == tables(first)
    ours, again = (torch.load(out / "merged_features.pt", weights_only=True) for out in (first, second))
    assert ours["ids"] == again["ids"]
    assert torch.equal(ours["data"], again["data"])


async def test_bf16_takes_features_of_fp32(
    source: Path, expected: Path, golden_bundle: Bundle, old: Path, tmp_path: Path
) -> None:
    leave_merged(expected, old / "chunk_merged.pt")
    chosen = settings(golden_bundle, old, precision=Precision.BF16)
    await run_pipeline([source], tmp_path / "out", chosen)
    assert_published_scores(tmp_path / "out", expected)  # of FP32: only what is compared is in BF16


# Less work


@pytest.mark.parametrize("left", LEFT)
async def test_only_what_is_missing_is_computed(
    left: str, source: Path, golden: Path, bundle: Bundle, old: Path, ran: Ran
) -> None:
    """In addition to the spot checks: eight ORFs and the first one of each file."""
    leave(golden / "upstream/expected_500", old, left)
    await run_pipeline([source], old.with_name("out"), settings(bundle, old))
    for keeps, seen, every in zip(
        LEFT[left], (ran.bases, ran.residues), tokens_of_orfs(bundle, source), strict=True
    ):
        missing = [own for number, own in enumerate(every) if not keeps(number)]
        compared = list(seen)
        for own in missing:
            compared.remove(own)
        assert all(compared.remove(own) is None for own in list(compared) if own in every)
        assert not compared
        assert 4 <= len(seen) - len(missing) <= 10 or len(missing) == len(every) == len(seen)


def tokens_of_orfs(bundle: Bundle, source: Path) -> list[list[tuple[int, ...]]]:
    """Return the tokens of each ORF for each encoder, in input order."""
    tokenizer = OrfTokenizer(bundle.tokenizer())
    (window,) = form_windows([str(source)], read_contigs, Cut(bundle.length, 10**6), tokenizer)
    return [
        [tuple(rows.take(np.array([row])).ids.tolist()) for row in range(len(rows))]
        for rows in (window.nucleotides, window.residues)
    ]


# Refusals


def others_ids(ids: list[str], data: torch.Tensor) -> tuple[list[str], torch.Tensor]:
    return [*ids[1:], ids[0]], data


def other_bases(ids: list[str], data: torch.Tensor) -> tuple[list[str], torch.Tensor]:
    return ids, torch.cat((data[:, :96].roll(1, 0), data[:, 96:]), 1)


def other_residues(ids: list[str], data: torch.Tensor) -> tuple[list[str], torch.Tensor]:
    return ids, torch.cat((data[:, :96], data[:, 96:].roll(1, 0)), 1)


def another_model(ids: list[str], data: torch.Tensor) -> tuple[list[str], torch.Tensor]:
    return ids, torch.rand(data.shape, generator=torch.Generator().manual_seed(0))


def sums(ids: list[str], data: torch.Tensor) -> tuple[list[str], torch.Tensor]:
    return ids, data * 2  # of the same direction


def nothing(ids: list[str], data: torch.Tensor) -> tuple[list[str], torch.Tensor]:
    return ids, torch.zeros_like(data)


@pytest.mark.parametrize("change", [others_ids, other_bases, other_residues, another_model, sums, nothing])
async def test_features_of_something_else_are_refused(
    change: Any, source: Path, expected: Path, golden_bundle: Bundle, old: Path, tmp_path: Path
) -> None:
    leave_merged(expected, old / "chunk_merged.pt", change)
    chosen, out = settings(golden_bundle, old, tokens_per_batch=500), tmp_path / "out"
    for _ in range(2):  # resuming does not help
        with pytest.raises(FeatureMismatchError) as caught:
            await run_pipeline([source], out, chosen)
        assert caught.value.id in ids_of(expected)
        assert caught.value.paths == (str(old / "chunk_merged.pt"),)
        assert not caught.value.similarity >= 0.999
        assert not [name for name in TABLES if (out / name).exists()]
    assert "a different sequence or a different model" in str(caught.value)
    summary = await run_pipeline([source], out, settings(golden_bundle, None, overwrite=True))
    assert summary.finished
    assert "orfs_reused" not in summary.counts


async def test_features_that_are_wrong_from_some_orf_on_are_refused(
    source: Path, golden: Path, bundle: Bundle, old: Path, tmp_path: Path
) -> None:
    def wrong_at_the_end(ids: list[str], data: torch.Tensor) -> tuple[list[str], torch.Tensor]:
        return ids, torch.cat((data[:40], data[40:].roll(1, 0)))

    leave_merged(golden / "upstream/expected_500", old / "x_merged.pt", wrong_at_the_end)
    out = tmp_path / "out"
    device = Device("cpu:0", "CPU", 1 << 30, threads=1)
    plan = Plan((str(source),), settings(bundle, old), bundle, (device,), window=15)
    with pytest.raises(FeatureMismatchError):
        await execute(plan, out, Replica)
    assert json.loads((out / "summary.json").read_bytes())["counts"]["batches"] >= 1
    assert not [name for name in TABLES if (out / name).exists()]


async def test_what_a_device_says_of_the_features_counts(bench: "PipelineHarness") -> None:
    with pytest.raises(FeatureMismatchError, match=r"is 0\.99800, below 0\.999"):
        await bench.run(Rules(similarity=0.998))
    assert (await bench.run(Rules(similarity=0.9991))).finished


async def test_a_bad_file_is_refused_before_anything_is_scored_and_the_directory_is_free(
    bench: "PipelineHarness", old: Path
) -> None:
    torch.save({"ids": ["a"], "data": torch.ones(1, 4)}, old / "z_merged.pt")
    rules = Rules()
    with pytest.raises(BadFeatures, match=r"z_merged\.pt cannot be reused: it has features of 4 numbers"):
        await bench.run(rules)
    assert not rules.proofs
    assert [path.name for path in (bench.out / "out").iterdir()] == ["run.sqlite3"]
    (old / "z_merged.pt").unlink()
    assert (await bench.run()).finished  # there is no need to overwrite anything


async def test_no_features_leave_nothing_behind(
    source: Path, bundle: Bundle, old: Path, tmp_path: Path
) -> None:
    for directory in (old, old / "missing"):
        with pytest.raises(NoFeatures):
            await run_pipeline([source], tmp_path / "out", settings(bundle, directory))
    assert not (tmp_path / "out").exists()


async def test_reads_that_share_an_id_are_refused_where_features_have_it(
    golden: Path, bundle: Bundle, old: Path, tmp_path: Path
) -> None:
    reads = tmp_path / "reads.fq"
    reads.write_bytes(b"@r\nGCAGCA\n+\nIIIIII\n@r\nGCAGCC\n+\nIIIIII\n")
    torch.save({"ids": ["r_chunk_1F1"], "data": torch.ones(1, 160)}, old / "x_merged.pt")
    with pytest.raises(AmbiguousFeatures) as caught:
        await run_pipeline([reads], tmp_path / "out", settings(bundle, old))
    assert caught.value.id == "r_chunk_1F1"
    assert not [name for name in TABLES if (tmp_path / "out" / name).exists()]
    torch.save({"ids": ["s_chunk_1F1"], "data": torch.ones(1, 160)}, old / "x_merged.pt")
    await run_pipeline([reads], tmp_path / "out2", settings(bundle, old))
    await run_pipeline([reads], tmp_path / "plain", settings(bundle, None))
    assert tables(tmp_path / "out2") == tables(tmp_path / "plain")
    said = "WARNING  features were reused for 0 of 12 ORFs"
    assert said in (tmp_path / "out2" / "run.log").read_text()


# Interrupted


class PipelineHarness:
    """Runs the golden input on fake devices, with features of some ORFs; there is much to do."""

    def __init__(self, source: Path, bundle: Bundle, old: Path | None, out: Path) -> None:
        self.source, self.bundle, self.old, self.out = source, bundle, old, out
        self.overwrite = False

    async def run(self, rules: Rules | None = None, devices: int = 1, out: str = "out") -> Summary:
        chosen = Settings(tokens_per_batch=400, reuse_features=self.old, overwrite=self.overwrite)
        plan = Plan((str(self.source),), chosen, self.bundle, fake_devices(devices), window=15)
        return await execute(plan, self.out / out, (rules or Rules()).scorer)


@pytest.fixture
def bench(source: Path, golden: Path, bundle: Bundle, old: Path, tmp_path: Path) -> PipelineHarness:
    leave(golden / "upstream/expected_500", old, "some of each")
    return PipelineHarness(source, bundle, old, tmp_path)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("batches", [0, 1, 4])
async def test_cancelled_it_ends_and_resumes(bench: PipelineHarness, count: int, batches: int) -> None:
    await bench.run(devices=count, out="calm")
    rules = Rules(pause_after=batches)
    task = asyncio.create_task(bench.run(rules, devices=count))
    await rules.paused.wait()
    task.cancel()
    rules.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    out = bench.out / "out"
    assert {path.name for path in out.iterdir()} == {
        "run.sqlite3",
        "run.log",
        "summary.json",
        "progress.json",
    }
    again = Rules()
    ended = await bench.run(again, devices=count)
    assert len(rules.seen) + len(again.seen) == ended.counts["batches"]
    assert tables(out) == tables(bench.out / "calm")
    assert ended.counts["orfs_reused"] == sum(number % 3 != 0 or number % 4 != 0 for number in range(53))


async def test_cancelled_at_any_moment(bench: PipelineHarness) -> None:
    await bench.run(out="calm")
    for step in range(15):
        task = asyncio.create_task(bench.run())
        await asyncio.sleep(0.004 * step)
        task.cancel()
        await asyncio.wait([task])
        assert not task.cancelled() or not list((bench.out / "out").glob(".*"))
    assert (await bench.run()).finished
    assert tables(bench.out / "out") == tables(bench.out / "calm")


async def test_a_lost_device_and_a_resume_give_the_same_bytes(
    source: Path, golden: Path, bundle: Bundle, old: Path, tmp_path: Path
) -> None:
    class Mortal(Replica):
        async def score(self, batch: Batch) -> Scores:
            if self._batches >= 3:
                raise DeviceLost(self.name, "it fell off the bus")
            return await super().score(batch)

    leave(golden / "upstream/expected_500", old, "some of each")
    chosen = settings(bundle, old, tokens_per_batch=300, embeddings=True)
    device = Device("cpu:0", "CPU", 1 << 30, threads=1)
    plan = Plan((str(source),), chosen, bundle, (device,), window=15)
    await execute(plan, tmp_path / "calm", Replica)
    with pytest.raises(NoDevicesLeft):
        await execute(plan, tmp_path / "out", Mortal)
    ended = await execute(plan, tmp_path / "out", Replica)
    assert tables(tmp_path / "out") == tables(tmp_path / "calm")
    ours, calm = (
        torch.load(tmp_path / out / "merged_features.pt", weights_only=True) for out in ("out", "calm")
    )
    assert torch.equal(ours["data"], calm["data"])
    assert (await execute(plan, tmp_path / "out", Mortal)).counts == ended.counts  # all is done


async def test_halves_know_their_own_part(
    source: Path, expected: Path, golden_bundle: Bundle, old: Path, tmp_path: Path
) -> None:
    class Small(Replica):
        async def warm_up(self, tokens: int) -> None:
            if tokens > 300:
                raise DeviceOutOfMemory(self.name, tokens)

    leave(expected, old, "some of each")
    device = Device("cpu:0", "CPU", 1 << 30, threads=1)
    plan = Plan((str(source),), settings(golden_bundle, old), golden_bundle, (device,))
    ended = await execute(plan, tmp_path / "out", Small)
    assert not ended.reproducible
    assert_published_scores(tmp_path / "out", expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("other", "reused features: chunk_ESM.pt has changed"),
        ("more", "reused features: more_ESM.pt was added"),
        ("less", "reused features: chunk_ESM.pt was removed"),
        ("none", "reused features: chunk_DNABERT_S.pt was removed, chunk_ESM.pt was removed"),
    ],
)
async def test_other_features_are_another_run(
    bench: PipelineHarness, golden: Path, change: str, said: str
) -> None:
    with pytest.raises(NoDevicesLeft):
        await bench.run(Rules(lost={"fake:0": 2}))
    file = bench.old / "chunk_ESM.pt"
    if change == "none":
        bench.old = None
    elif change == "less":
        file.unlink()
    else:
        name = file if change == "other" else bench.old / "more_ESM.pt"
        leave_residues(golden / "upstream/expected_500", name, third(0))
    with pytest.raises(RunMismatchError) as caught:
        await bench.run()
    assert caught.value.differences == (said,)
    bench.overwrite = True
    assert (await bench.run()).finished


async def test_the_same_features_elsewhere_are_the_same_run(bench: PipelineHarness) -> None:
    with pytest.raises(NoDevicesLeft):
        await bench.run(Rules(lost={"fake:0": 2}))
    bench.old = bench.old.rename(bench.old.with_name("moved"))
    assert (await bench.run()).finished


# The published models' own


@pytest.mark.parametrize("files", [("dnabert.pt", "esm.pt"), ("merged.pt",)])
@pytest.mark.parametrize("name", ["test_with_orfs", "test_fixed_500bp"])
async def test_features_of_the_published_models(
    name: str, files: tuple[str, ...], bundle: Bundle, old: Path, tmp_path: Path
) -> None:
    """Read, joined and looked up at the published widths; there is no network of that size here."""
    real = beside("real") / name
    for file in files:
        ours = {"dnabert.pt": "x_DNABERT_S.pt", "esm.pt": "x_ESM.pt", "merged.pt": "x_merged.pt"}[file]
        (old / ours).write_bytes((real / file).read_bytes())
    shapes = bundle.shapes
    wide = replace(
        bundle,
        shapes=replace(
            shapes,
            nucleotide=replace(shapes.nucleotide, width=768),
            protein=replace(shapes.protein, width=2560),
        ),
    )
    rules = Rules()
    plan = Plan((str(real / "input.fa"),), settings(wide, old, tokens_per_batch=70), wide, fake_devices(2), 2)
    ended = await execute(plan, tmp_path / "out", rules.scorer)
    published = torch.load(real / "merged.pt", weights_only=True)["data"].numpy()
    rows = sorted(
        (orf, np.concatenate((bases, residues)).tolist())
        for _, batch in rules.seen
        for orf, bases, residues in zip(batch.orfs, batch.known.bases, batch.known.residues, strict=True)
    )
    assert [orf for orf, _ in rows] == list(range(4))
    assert [row for _, row in rows] == published.tolist()
    assert ended.counts["orfs_reused"] == 4
    assert all(len(batch.known.compared) == len(batch) for _, batch in rules.seen)


# The command


def test_the_command_reuses_features(
    source: Path, golden: Path, bundle: Bundle, old: Path, tmp_path: Path
) -> None:
    leave(golden / "upstream/expected_500", old, "some of each")
    out = tmp_path / "out"
    words = (source, out, "--model", bundle.directory, "--reuse-features", old)
    ended = predict(*words)
    assert ended.code == 0
    assert "found 2 files of features, of 48 ORFs: 26 with both embeddings" in ended.err
    assert "features were reused for 48 of 53 ORFs: 26 with both embeddings, " in ended.err
    assert_published_scores(out, golden / "upstream/expected_500")
    before = tables(out)
    assert predict(*words).code == 0
    assert tables(out) == before
    facts = summary(out)
    assert (facts["counts"]["orfs_reused"], facts["settings"]["reuse_features"]) == (48, str(old))


def test_the_command_says_what_to_do_about_features(
    source: Path, golden: Path, bundle: Bundle, old: Path, tmp_path: Path
) -> None:
    words = (source, tmp_path / "out", "--model", bundle.directory, "--reuse-features", old)
    ended = predict(*words)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == (
        f"virnuc-async: no features to reuse in {old}: no file there is named *_DNABERT_S.pt or "
        "*_DNABERT.pt or *_ESM.pt or *_merged.pt or merged_features.pt\n"
    )
    (old / "x_ESM.pt").write_bytes(b"PK")
    ended = predict(*words)
    assert ended.code == 1
    assert ended.err.startswith(f"virnuc-async: {old / 'x_ESM.pt'} cannot be reused: damaged")
    (old / "x_ESM.pt").unlink()
    leave_merged(golden / "upstream/expected_500", old / "x_merged.pt", others_ids)
    ended = predict(*words)
    assert ended.code == 1
    assert f"in {old / 'x_merged.pt'} are of a different sequence or a different model" in ended.err
