"""plan.json: it is read as it was written, and whatever is not as it was is refused."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import bases, planned

from virnuc_async.distributed.plan import PLAN, RunPlan, Shard, read_plan, write_plan
from virnuc_async.errors import CannotWrite, NoPlan
from virnuc_async.settings import CallRules, Format, Pairing, RegionRules, Settings, ViralFasta

LENGTHS = [[700, 300, 900], [], [1200, 50]]
Files = st.lists(st.lists(st.integers(0, 2000), max_size=12), min_size=1, max_size=5)


def damaged(run: Path) -> str:
    """Return what is wrong with the plan in *run*."""
    with pytest.raises(NoPlan) as caught:
        read_plan(run)
    return str(caught.value)


def altered(plan: RunPlan, run: Path, **values: Any) -> str:
    """Return what is wrong with *plan* when it has other *values*, and a digest that is right."""
    write_plan(replace(plan, **values), run)
    return damaged(run).partition("is damaged (")[2].partition("). Plan")[0]


@settings(max_examples=40)
@given(Files, st.integers(1, 5000))
def test_a_plan_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[int]], size: int
) -> None:
    run, plan = tmp_path_factory.mktemp("run") / "new" / "deep", planned(files, size)
    write_plan(plan, run)
    assert read_plan(run) == plan
    assert read_plan(run).digest == plan.digest
    assert [path.name for path in run.iterdir()] == [PLAN]


def test_its_file(tmp_path: Path) -> None:
    plan = replace(planned(LENGTHS, 1000), notices=[["WARNING", "left out\n1 file"]], flagged=[1])
    write_plan(plan, tmp_path)
    text = (tmp_path / PLAN).read_text("ascii")
    value = json.loads(text)
    assert value["format"] == 1
    assert value["digest"] == plan.digest
    assert value["segments"][1] == {
        "file": 0,
        "record": 2,
        "contig": 2,
        "records": 2,
        "bases": 2100,
        "seek": [2, 200, 0, 1, False],
    }
    # A line for each file and each segment, for diff and grep.
    assert sum('"path"' in line for line in text.splitlines()) == 3
    assert sum('"seek"' in line for line in text.splitlines()) == 3
    assert read_plan(tmp_path) == plan


def test_a_path_of_any_bytes(tmp_path: Path) -> None:
    plan = planned(LENGTHS, 1000)
    path = os.fsdecode(b"/data/\xff.fa")
    plan = replace(plan, files=(replace(plan.files[0], path=path), *plan.files[1:]), is_utf8=False)
    write_plan(plan, tmp_path)
    assert read_plan(tmp_path).files[0].path == path


def test_the_settings_of_a_shard(tmp_path: Path) -> None:
    planned_for = Settings(
        model=tmp_path,
        devices=("cuda:7",),
        threads=3,
        threshold=0.7,
        embeddings=True,
        report=False,
        calibrated=False,
        calls=CallRules(min_fragments=2),
        regions=RegionRules(gap=3),
        viral_fasta=ViralFasta("/data/viral.fa", original_headers=True),
        pairs=Pairing.INTERLEAVED,
        formats=(Format.TSV, Format.PARQUET),
        min_length=99,
    )
    machine = Settings(devices=("cpu", "cpu"), threads=2, cache_dir=Path("/cache"), repair=True)
    write_plan(planned(LENGTHS, 1000, planned_for), tmp_path / "run")
    found = read_plan(tmp_path / "run").settings_on(machine)
    assert found == replace(
        planned_for,
        model=str(tmp_path),
        devices=("cpu", "cpu"),
        threads=2,
        cache_dir=Path("/cache"),
        repair=True,
        precision="fp32",
        tokens_per_batch=2048,
    )
    assert type(found.calls) is CallRules


def test_a_directory_of_a_model_has_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert planned(LENGTHS, 1, Settings(model="mine")).settings["model"] == str(tmp_path / "mine")
    assert planned(LENGTHS, 1, Settings(model="tiny-500")).settings["model"] == "tiny-500"


@given(Files, st.integers(1, 5000), st.integers(1, 9))
def test_shards_divide_the_segments(files: list[list[int]], size: int, count: int) -> None:
    plan = planned(files, size)
    parts = plan.divide(count)
    assert parts == [plan.segments_of(Shard(number, count)) for number in range(count)]
    assert [number for part in parts for number in part] == [*range(len(plan.segments))]
    # As equal as whole segments allow: the middle of each is in its shard's share.
    largest = max(segment.bases for segment in plan.segments)
    assert all(bases(plan, part) <= plan.bases / count + largest for part in parts)
    for shard in (Shard(number, count) for number in range(count)):
        span, part = plan.span(shard), parts[shard.number]
        assert (span is None) == (not part)
        if span is not None:
            assert span.first_segment == part[0]
            assert span.first_contig == plan.segments[part[0]].contig
            ends = plan.segments[part[-1] + 1 :]
            assert span.end == ((ends[0].file, ends[0].record) if ends else None)


def test_as_many_shards_as_segments_have_one_each() -> None:
    plan = planned([[10] * 8 + [3]], 10)  # divided by bases, two would share one shard, and one have none
    assert plan.divide(9) == [range(number, number + 1) for number in range(9)]
    assert plan.divide(11)[8:] == [range(8, 9), range(0), range(0)]
    assert [len(part) for part in plan.divide(8)] == [1] * 7 + [2]


def test_no_directory_and_no_plan(tmp_path: Path) -> None:
    run = tmp_path / "run"
    how = f"Plan the run first: virnuc-async plan INPUT ... {run}"
    assert damaged(run) == f"{run}: there is no such directory. {how}"
    run.mkdir()
    assert damaged(run) == f"{run}: contains no plan.json. {how}"
    file = tmp_path / "file"
    file.touch()
    assert "there is no such directory" in damaged(file)


def test_another_format(tmp_path: Path) -> None:
    (tmp_path / PLAN).write_text('{"format": 2, "version": "9.1", "is": "unknown"}')
    reason = "its plan.json has the format 2, and this version of the program reads 1"
    assert damaged(tmp_path) == f"{tmp_path}: {reason}. Use the one that made it ('9.1')"


def test_another_version_is_read(tmp_path: Path) -> None:
    plan = replace(planned(LENGTHS, 1000), version="0.0.1")
    write_plan(plan, tmp_path)
    assert read_plan(tmp_path).version == "0.0.1"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"null", b"{}", b'{"format": 1}', b"[" * 99_999])
def test_a_file_that_is_no_plan(content: bytes, tmp_path: Path) -> None:
    (tmp_path / PLAN).write_bytes(content)
    text = damaged(tmp_path)
    assert text.startswith(f"{tmp_path}: its plan.json is damaged (")
    how = f"virnuc-async plan INPUT ... {tmp_path} --overwrite"
    assert text.endswith(f"). Plan the run again with the same inputs and options: {how}")


def test_a_pipe_and_a_directory_in_its_place(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / PLAN)
    assert "is damaged (it is not a plain file)" in damaged(tmp_path)
    (tmp_path / PLAN).unlink()
    (tmp_path / PLAN).mkdir()
    assert "is damaged (it is not a plain file)" in damaged(tmp_path)


@given(st.data())
def test_any_flipped_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    run, plan = tmp_path_factory.mktemp("run"), planned(LENGTHS, 1000)
    write_plan(plan, run)
    content = bytearray((run / PLAN).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (run / PLAN).write_bytes(content)
    with suppress(NoPlan):
        assert read_plan(run) == plan  # white space that became other white space


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"version": ""}, "version is ''"),
        ({"model": "a\x1bb"}, "model is 'a\\x1bb'"),
        ({"fingerprint": None}, "fingerprint is None"),
        ({"devices": 7}, "devices is 7"),
        ({"precision": "auto"}, "precision is 'auto'"),
        ({"precision": "fp64"}, "precision is 'fp64'"),
        ({"tokens_per_batch": 0}, "tokens per batch must be at least 1, not 0"),
        ({"tokens_per_batch": True}, "tokens per batch must be a whole number, not True"),
        ({"window": 1.5}, "window must be a whole number, not 1.5"),
        ({"segment_bases": -1}, "segment bases must be at least 1, not -1"),
        ({"is_utf8": 1}, "is utf8 must be True or False, not 1"),
        ({"settings": []}, "the settings are none"),
        ({"settings": {"threshold": 7}}, "the threshold must be a number from 0 to 1, not 7"),
        ({"settings": {"calls": {"no": 1}}}, "CallRules.__init__() got an unexpected keyword argument 'no'"),
        ({"flagged": [3]}, "flagged names files that there are not"),
        ({"flagged": [1, 0]}, "flagged names files that there are not"),
        ({"flagged": {}}, "flagged is no list"),
        ({"notices": [["SHOUT", "x"]]}, "notices[0] is ['SHOUT', 'x']"),
        ({"notices": [["INFO", 7]]}, "notices[0] is 7"),
        ({"files": (), "segments": ()}, "there are no files, or no segments"),
        ({"segments": ()}, "there are no files, or no segments"),
        ({"segment_bases": 2000}, "a segment has fewer than 2000 bases"),
    ],
)
def test_values_that_make_no_sense(values: dict[str, Any], reason: str, tmp_path: Path) -> None:
    assert altered(planned(LENGTHS, 1000), tmp_path, **values) == reason


@pytest.mark.parametrize(
    ("number", "values", "reason"),
    [
        (0, {"path": "relative.fa"}, "files[0].path is 'relative.fa'"),
        (0, {"path": None}, "files[0].path is None"),
        (1, {"fingerprint": [None]}, "files[1].fingerprint is [None]"),
        (1, {"size": -1}, "files[1].size is -1"),
        (2, {"records": True}, "files[2].records is True"),
        (2, {"bases": 1 << 62}, f"files[2].bases is {1 << 62}"),
        (0, {"kind": "genomes"}, "files[0].kind is 'genomes'"),
        (0, {"failure": 7}, "files[0].failure is 7"),
        (0, {"bases": 1899}, "the segments have other records than the files"),
        (1, {"records": 1}, "the segments have other records than the files"),
    ],
)
def test_files_that_make_no_sense(number: int, values: dict[str, Any], reason: str, tmp_path: Path) -> None:
    plan = planned(LENGTHS, 1000)
    files = [replace(file, **(values if at == number else {})) for at, file in enumerate(plan.files)]
    assert altered(plan, tmp_path, files=files) == reason


@pytest.mark.parametrize(
    ("number", "values", "reason"),
    [
        (1, {"file": 3}, "segment 1 is not where it should be"),
        (1, {"file": 1}, "segment 1 is not where it should be"),
        (1, {"record": 3}, "segment 1 is not where it should be"),
        (1, {"contig": 1}, "segment 1 is not where it should be"),
        (1, {"seek": (3, 0, 0, 1, False)}, "segment 1 is not where it should be"),
        (1, {"seek": (0, 0, 0, False)}, "segments[1].seek is [0, 0, 0, False]"),
        (1, {"seek": (0, -1, 0, 1, False)}, "segments[1].seek is -1"),
        (1, {"seek": (0, 0, 0, 1, 1)}, "segments[1].seek must be True or False, not 1"),
        (1, {"records": 1}, "the segments have other records than the files"),
        (0, {"contig": None}, "segments[0].contig is None"),
        (2, {"bases": "50"}, "segments[2].bases is '50'"),
    ],
)
def test_segments_that_make_no_sense(
    number: int, values: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    plan = planned(LENGTHS, 1000)
    changed = replace(plan, segments=())
    segments = [replace(one, **(values if at == number else {})) for at, one in enumerate(plan.segments)]
    assert altered(changed, tmp_path, segments=segments) == reason


def test_segments_that_do_not_follow_each_other(tmp_path: Path) -> None:
    plan = planned(LENGTHS, 1000)
    first, second, last = plan.segments
    # One record is in two segments, and another in none.
    segments = (replace(first, records=3), replace(second, records=1), last)
    assert altered(plan, tmp_path, segments=segments) == "the segments do not follow each other"


def test_a_plan_without_records(tmp_path: Path) -> None:
    plan = planned([[], []], 1000)
    write_plan(plan, tmp_path)
    assert read_plan(tmp_path) == plan
    assert plan.span(Shard(0, 3)) is not None
    assert [plan.span(Shard(number, 3)) for number in (1, 2)] == [None, None]


def test_equal_plans_have_equal_digests() -> None:
    plan = planned(LENGTHS, 1000)
    assert plan.digest == planned(LENGTHS, 1000).digest
    for name, value in asdict(plan).items():
        other = () if name in ("files", "segments") else [value, "other"]
        assert replace(plan, **{name: other}).digest != plan.digest


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite, match=r"plan\.json: Not a directory"):
        write_plan(planned(LENGTHS, 1000), tmp_path / "file" / "run")
