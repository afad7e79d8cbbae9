"""What a store keeps of the speed and the memory of devices over time."""

import json
import math
import time
from contextlib import closing
from pathlib import Path

import pytest
from fakes import Rules, fake_devices
from harness import PipelineHarness
from hypothesis import given
from hypothesis import strategies as st

from virnuc_async.engine.device_state import DeviceState
from virnuc_async.engine.gpu_memory import MemoryUse
from virnuc_async.errors import DamagedStore, NoDevicesLeft
from virnuc_async.pipeline import execute
from virnuc_async.runs.device_history import (
    HISTORY,
    MOST_POINTS,
    DeviceHistory,
    DevicePoint,
    is_history,
    read_history,
)
from virnuc_async.runs.plan import Intervals, Plan
from virnuc_async.runs.store import Store, open_finished


def point(begin: float, seconds: float = 10.0, orfs: int = 5, tokens: int = 100) -> DevicePoint:
    return DevicePoint(begin, begin + seconds, seconds, orfs, tokens)


def test_speed_is_that_of_the_time_of_work() -> None:
    assert point(0.0).orfs_per_second == 0.5
    assert point(0.0).tokens_per_second == 10.0
    assert DevicePoint(0.0, 0.0, 0.0, 5, 100).tokens_per_second == 0.0


def test_two_points_become_one() -> None:
    before = DevicePoint(100.0, 110.0, 10.0, 5, 100, 7, 90.0, 60.0)
    later = DevicePoint(110.0, 140.0, 30.0, 1, 20, 9, 50.0, None)
    assert before.joined(later) == DevicePoint(100.0, 140.0, 40.0, 6, 120, 9, 60.0, 60.0)


def test_two_sessions_become_one_point_last() -> None:
    history = DeviceHistory()
    for begin in (0.0, 1000.0, 1010.0, 1020.0):
        history.add("cpu:0", point(begin), most=3)
    # The first is another session: it is left alone, though it is as short as the others.
    assert [(one.begin, one.end) for one in history.devices["cpu:0"]] == [
        (0.0, 10.0),
        (1000.0, 1020.0),
        (1020.0, 1030.0),
    ]
    for begin in (5000.0, 9000.0):
        history.add("cpu:0", point(begin), most=3)
    last = history.devices["cpu:0"]
    assert [(one.begin, one.end, one.seconds) for one in last] == [
        (0.0, 10.0, 10.0),
        (1000.0, 1030.0, 30.0),
        (5000.0, 9010.0, 20.0),
    ]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 30), st.integers(0, 9)), max_size=60))
def test_points_are_bounded_and_nothing_of_the_work_is_lost(
    stretches: list[tuple[float, float, int]],
) -> None:
    history, now = DeviceHistory(), 0.0
    for gap, seconds, orfs in stretches:
        history.add("cpu:0", point(now + gap, seconds, orfs, 10 * orfs), most=8)
        now += gap + seconds
    points = history.devices.get("cpu:0", [])
    assert len(points) <= 8
    assert sum(one.orfs for one in points) == sum(orfs for _, _, orfs in stretches)
    assert sum(one.tokens for one in points) == sum(10 * orfs for _, _, orfs in stretches)
    assert math.isclose(sum(one.seconds for one in points), sum(seconds for _, seconds, _ in stretches))
    assert [one.begin for one in points] == sorted(one.begin for one in points)
    assert all(one.begin <= one.end for one in points)
    assert is_history(json.loads(json.dumps(history.to_json())))
    assert DeviceHistory.from_json(json.loads(json.dumps(history.to_json()))) == history


def test_a_year_is_as_many_points_as_an_hour() -> None:
    history = DeviceHistory()
    for number in range(3000):
        history.add("cpu:0", point(10.0 * number))
    points = history.devices["cpu:0"]
    assert len(points) == MOST_POINTS
    # Neighbours differ by a factor of two or so: the beginning is not coarser than the end.
    lengths = [one.seconds for one in points]
    assert max(lengths[:-1]) <= 4 * min(lengths[:-1])


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"version": "1", "devices": {}},
        {"version": 1},
        {"version": 1, "devices": {"cpu:0": {}}},
        {"version": 1, "devices": {"cpu:0": [[0, 1, 1, 1, 1, None, None]]}},
        {"version": 1, "devices": {"cpu:0": [[0, 1, 1, 1.5, 1, None, None, None]]}},
        {"version": 1, "devices": {"cpu:0": [[0, 1, -1, 1, 1, None, None, None]]}},
        {"version": 1, "devices": {"cpu:0": [[2, 1, 1, 1, 1, None, None, None]]}},
        {"version": 1, "devices": {"cpu:0": [[0, 1, "1", 1, 1, None, None, None]]}},
        {"version": 1, "devices": {"cpu:0": [[0, 1, 1, 1, 1, float("nan"), None, None]]}},
    ],
)
def test_what_makes_no_sense_is_no_history(value: object) -> None:
    assert not is_history(value)


def test_one_of_another_version_is_not_read() -> None:
    later = {"version": 2, "devices": [1]}
    assert is_history(later)
    assert DeviceHistory.from_json(later) == DeviceHistory()


def test_a_store_that_has_a_senseless_one_is_damaged(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        assert read_history(store) == DeviceHistory()
        store.set_meta(HISTORY, {"version": 1, "devices": {"cpu:0": [3]}})
        with pytest.raises(DamagedStore, match="device history of the run makes no sense"):
            read_history(store)


async def test_a_run_keeps_what_its_devices_did_in_all_sessions(bench: PipelineHarness) -> None:
    began = time.time()
    with pytest.raises(NoDevicesLeft):
        await bench.run(Rules(lost={"fake:0": 2, "fake:1": 1}), devices=2)
    with closing(Store(bench.out / "out")) as store:
        interrupted = read_history(store)
    assert sum(one.orfs for points in interrupted.devices.values() for one in points) > 0
    summary = await bench.run(devices=2)
    with closing(open_finished(bench.out / "out")) as store:
        history = read_history(store)
    assert set(history.devices) == {"fake:0", "fake:1"}
    for name, points in interrupted.devices.items():
        assert history.devices[name][: len(points)] == points
    points = [one for points in history.devices.values() for one in points]
    assert sum(one.orfs for one in points) == summary.counts["orfs"]
    assert sum(one.tokens for one in points) == sum(device["tokens"] for device in summary.devices)
    assert all(began - 1 < one.begin <= one.end < time.time() + 1 for one in points)


async def test_a_point_has_what_is_known_of_the_device(bench: PipelineHarness) -> None:
    state = DeviceState(MemoryUse(3 << 30, 80 << 30), 88.0, 55.0)
    plan = Plan(
        (str(bench.source),),
        bench.settings,
        bench.bundle,
        fake_devices(1),
        bench.window,
        lambda _: state,
        intervals=Intervals(devices=0.01),
    )
    await execute(plan, bench.out / "out", Rules().scorer)
    with closing(open_finished(bench.out / "out")) as store:
        points = read_history(store).devices["fake:0"]
    assert {(one.memory, one.utilization, one.temperature) for one in points} == {(3 << 30, 88.0, 55.0)}


async def test_a_finished_run_asked_for_again_adds_nothing(bench: PipelineHarness) -> None:
    await bench.run()
    with closing(open_finished(bench.out / "out")) as store:
        before = store.get_meta(HISTORY)
    await bench.run()
    with closing(open_finished(bench.out / "out")) as store:
        assert store.get_meta(HISTORY) == before
