"""The model of a cluster: what goes in comes out, and the cases that can be worked out by hand."""

import json
from dataclasses import asdict, fields, replace
from math import ceil, inf
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cluster_picture
import pytest
import simulate
from cluster_model import Gpu, Outcome, Parameters, Shared, Simulation, Spent, parts_of, plan_of
from simulate_cluster import STUDIES
from support import ROOT

SVG = "{http://www.w3.org/2000/svg}"
# Twenty GPUs with ten shards each, much of which is lost.
SMALL = Parameters(gpus=20, orfs=200 * 64 * 8234, gigabytes=8, files=3, losses_per_hour=0.5, format="gzip")
# Nothing is shared, nothing is lost, and all GPUs are as fast.
IDEAL = replace(
    SMALL, format="bgzf", losses_per_hour=0, spread=0, slow_share=0, bandwidth=1e9, deal_seconds=0
)


def run(parameters: Parameters) -> Outcome:
    return Simulation(parameters).run()


@pytest.mark.parametrize("store", ["scratch", "shared"])
@pytest.mark.parametrize("form", ["gzip", "bgzf"])
@pytest.mark.parametrize("workers", ["kept", "job"])
@pytest.mark.parametrize("losses", [0.0, 0.5, 3.0])
def test_every_shard_is_done_once_and_all_time_is_accounted_for(
    store: str, form: str, workers: str, losses: float
) -> None:
    of = replace(SMALL, store=store, format=form, workers=workers, losses_per_hour=losses, spread=0)
    of = replace(of, slow_share=0, attempts=1000)
    outcome = run(of)
    assert outcome.done == len(list(parts_of(of)))
    assert (outcome.losses > 0) == (losses > 0)
    assert outcome.spent[Spent.SCORING] * of.orfs_per_second == pytest.approx(of.orfs)
    assert sum(outcome.spent.values()) == pytest.approx(of.gpus * outcome.seconds)
    assert all(seconds >= 0 for seconds in outcome.spent.values())
    lost = outcome.repeated_orfs
    assert lost <= outcome.losses * of.orfs_per_batch if store == "shared" else (lost > 0) == (losses > 0)


def test_without_losses_and_with_equal_speeds_the_time_is_that_of_the_rounds() -> None:
    outcome = run(IDEAL)
    parts = list(parts_of(IDEAL))
    orfs = parts[0].orfs
    published = orfs * (IDEAL.store_bytes + IDEAL.row_bytes) / (IDEAL.stream * 1e9)
    scored = orfs / IDEAL.orfs_per_second + orfs * IDEAL.rows_microseconds / 1e6
    each = IDEAL.open_seconds + scored + published
    start = IDEAL.start_seconds + IDEAL.import_seconds + IDEAL.start_bytes / (IDEAL.stream * 1e9)
    rounds = ceil(len(parts) / IDEAL.gpus)
    assert outcome.seconds == pytest.approx(start + rounds * each)
    assert outcome.efficiency == pytest.approx(
        IDEAL.orfs / IDEAL.orfs_per_second / IDEAL.gpus / outcome.seconds
    )


def test_a_storage_is_shared_equally_when_all_begin_at_once() -> None:
    slow = replace(IDEAL, bandwidth=0.5)
    more = run(slow).spent[Spent.LOADING] - run(IDEAL).spent[Spent.LOADING]
    each = slow.start_bytes / 1e9
    assert more == pytest.approx(slow.gpus * (each / (0.5 / slow.gpus) - each / slow.stream))


def test_what_is_read_over_of_gzip_is_all_before_each_shard_in_its_file() -> None:
    of = replace(IDEAL, format="gzip", model_gigabytes=0, image_gigabytes=0, store_bytes=0, text_bytes=0)
    parts = list(parts_of(of))
    bases, size = of.bases / of.files, of.segment_megabases * 1e6
    assert [part.skipped for part in parts] == pytest.approx([n * size % bases for n in range(len(parts))])
    before = sum(part.skipped for part in parts)
    outcome = run(of)
    assert outcome.storage_bytes == pytest.approx(before / of.bases * of.gigabytes * 1e9)
    assert outcome.spent[Spent.SKIMMING] == pytest.approx(before / (of.skim_megabases * 1e6))


def test_flushed_writes_limit_a_shared_store() -> None:
    of = replace(IDEAL, store="shared", operations=10.0)
    outcome = run(of)
    written = of.orfs / of.orfs_per_batch * of.operations_per_batch
    assert outcome.seconds == pytest.approx(written / of.operations, rel=0.15)
    assert max(outcome.spent, key=outcome.spent.__getitem__) is Spent.STALLED


def test_a_shard_is_set_aside_after_so_many_gpus() -> None:
    of = replace(SMALL, gpus=3, segments_per_shard=100, losses_per_hour=60.0)
    outcome = run(of)
    assert (outcome.done, outcome.set_aside) == (0, list(range(of.shards)))
    assert outcome.spent[Spent.SCORING] == pytest.approx(0, abs=1e-6)


def test_a_seed_gives_the_same_run() -> None:
    once, again, other = (run(replace(SMALL, seed=seed)) for seed in (1, 1, 2))
    assert asdict(once) == asdict(again) != asdict(other)


CHANGED: dict[str, Any] = {
    "format": "bgzf",
    "workers": "job",
    "store": "shared",
    "plan_cores": 2,
    "tables": "parquet",
}
SHARED = ("takeover_seconds", "operations", "operations_per_batch", "orfs_per_batch", "rebuild_orfs")


@pytest.mark.parametrize("name", [one.name for one in fields(Parameters)])
def test_every_parameter_counts(name: str) -> None:
    base = replace(SMALL, bandwidth=2.0, losses_per_hour=5.0, operations=100.0, slow_share=0.5)
    if name.startswith("parquet"):
        base = replace(base, tables="parquet")
    if name in SHARED:
        base = replace(base, store="shared", notice_seconds=1.0)
    value: Any = getattr(base, name)
    more = CHANGED[name] if name in CHANGED else value + 1 if isinstance(value, int) else value * 1.3
    changed = replace(base, **{name: more})
    assert _all_of(changed) != _all_of(base)


def _all_of(parameters: Parameters) -> list[Any]:
    return [asdict(run(parameters)), parameters.plan_seconds, parameters.merge_seconds]


def test_shares_of_a_capacity() -> None:
    shared, (a, b, c) = Shared(12.0, 10.0), (Gpu(number, 1.0) for number in range(3))
    assert (shared.first, shared.due) == (None, inf)
    shared.begin(a, 20.0, 0.0)
    assert (shared.first, shared.due) == (a, 2.0)  # alone: at most 10 a second
    shared.begin(b, 30.0, 1.0)
    assert (shared.first, shared.due) == (a, pytest.approx(1 + 10 / 6))  # together: 6 each
    shared.begin(c, 100.0, 2.0)
    assert shared.end(a, 2.5) == pytest.approx(20 - 10 - 6 - 2)  # stopped early, with 4 a second since 2.0
    assert shared.end(a, 2.5) == 0
    assert (shared.first, shared.due) == (b, pytest.approx(2.5 + (30 - 6 - 2) / 6))
    shared.set_capacity(2.0, 3.0)
    assert shared.due == pytest.approx(3 + (30 - 6 - 2 - 3) / 1)
    assert shared.end(b, shared.due) == pytest.approx(0)


def test_segments_are_those_of_a_plan() -> None:
    plan = plan_of(SMALL)
    assert len(plan.segments) == SMALL.segments == SMALL.shards == 200
    assert plan.bases == round(SMALL.bases)
    assert replace(SMALL, segments_per_shard=7).shards == 29
    assert sum(part.orfs for part in parts_of(SMALL)) == pytest.approx(SMALL.orfs)


def test_plan_and_merge_are_done_by_one_machine() -> None:
    of = replace(SMALL, files=3, plan_megabases=50, plan_cores=2, gigabytes=6, bandwidth=20, stream=0.5)
    bases = 200 * 64
    assert of.plan_seconds == pytest.approx(2 * bases / 3 / 50)  # two cores take three files in two rounds
    assert replace(of, plan_cores=16).plan_seconds == pytest.approx(bases / 3 / 50)
    assert replace(of, gigabytes=600).plan_seconds == pytest.approx(600 / (2 * 0.5))  # of two streams
    text = replace(of, merge_microseconds=2.0, text_bytes=100, parquet_bytes=10)
    assert text.merge_seconds == pytest.approx(of.orfs * (2e-6 + 2 * 100 / 0.5e9))
    assert replace(text, tables="parquet").merge_seconds == pytest.approx(of.orfs * (2e-6 + 2 * 10 / 0.5e9))


def test_combinations_are_simulated_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "cluster.json"
    words = ["--gpus", "2,4", "--store", "shared,scratch", "--orfs", "1e7", "--losses-per-hour", "0.5"]
    simulate.main([*words, "--output", str(output)])
    found = json.loads(output.read_text())
    assert [(point["gpus"], point["store"]) for point in found["points"]] == [
        (2, "shared"),
        (2, "scratch"),
        (4, "shared"),
        (4, "scratch"),
    ]
    assert found["simulated"] is True
    assert found["parameters"]["orfs"] == {"value": 1e7, "unit": "ORFs", "source": "chosen"}
    assert all(one["source"] for one in found["parameters"].values())
    of = Parameters(gpus=4, store="scratch", orfs=1e7, losses_per_hour=0.5)
    assert found["points"][3]["efficiency"] == run(of).efficiency
    assert sum(found["points"][3]["shares"].values()) == pytest.approx(1)
    assert "| gpus | store | shards |" in capsys.readouterr().out


def test_a_word_that_is_no_choice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        simulate.main(["--gpus", "2", "--format", "zip"])
    assert "one of bgzf, gzip, not 'zip'" in capsys.readouterr().err


def test_studies_vary_parameters_that_there_are() -> None:
    names = {one.name for one in fields(Parameters)}
    assert all(set(study) <= names for study in STUDIES.values())


def test_the_picture_shows_all_time_of_every_point(tmp_path: Path) -> None:
    points, output = tmp_path / "points.json", tmp_path / "cluster.svg"
    words = ["--gpus", "1,1200", "--orfs", "1e9", "--output"]
    simulate.main([*words, str(points)])
    cluster_picture.main(["--input", str(points), "--study", "", "--output", str(output)])
    of = json.loads(points.read_text())["points"]
    svg = ElementTree.parse(output).getroot()
    rects = [one for one in svg.iter(f"{SVG}rect") if one.find(f"{SVG}title") is not None]
    widths = [float(one.attrib["width"]) for one in rects]
    assert len(widths) == 2 * 5
    scoring = [point["shares"]["scoring"] for point in of]
    for bar, share in zip((widths[:5], widths[5:]), scoring, strict=True):
        assert sum(bar) == pytest.approx(520, abs=0.3)
        assert bar[0] == pytest.approx(520 * share, abs=0.1)
    texts = [one.text for one in svg.iter(f"{SVG}text")]
    assert {"1 GPU", "1,200 GPUs", "without a shard"} <= set(texts)
    assert f"{of[1]['efficiency']:.1%} in {of[1]['shards_minutes'] / 60:.1f} hours" in texts


def test_what_is_published_is_what_the_model_says() -> None:
    benchmarks = ROOT / "docs" / "benchmarks"
    published = json.loads((benchmarks / "cluster-simulated.json").read_text())
    for one in fields(Parameters):
        found, source = published["parameters"][one.name], one.metadata["source"]
        assert (found["value"], found["source"]) == (one.default, source)
        if source.startswith("measured: ") and ".json" in source:
            assert (benchmarks / source.removeprefix("measured: ").split(",")[0]).is_file()
    (point,) = [one for one in published["points"] if (one["study"], one.get("gpus")) == ("GPUs", 1000)]
    outcome = run(Parameters())
    assert point["efficiency"] == pytest.approx(outcome.efficiency)
    assert point["efficiency_of_held"] == pytest.approx(outcome.efficiency_of_held)
    assert outcome.efficiency_of_held > 0.95
    page = (ROOT / "docs" / "scale.md").read_text("utf-8")
    assert f"{100 * outcome.efficiency:.1f} % | {100 * outcome.efficiency_of_held:.1f} % |" in page
