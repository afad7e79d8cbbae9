"""The charts of a report: what they draw, and what they say to those who do not see them."""

import numpy as np
import pytest

from virnuc_async.outputs.charts import Line, unit_chart
from virnuc_async.outputs.overview import Histogram, Track
from virnuc_async.outputs.regions import Region
from virnuc_async.outputs.report_charts import device_charts, histogram_views, track_chart
from virnuc_async.runs.device_history import DevicePoint


def test_devices_over_the_time_that_they_have_worked() -> None:
    points = [
        DevicePoint(1000, 1060, 60, 600, 6000, 2**30),
        DevicePoint(9000, 9120, 120, 600, 6000, 2**31),  # another session
    ]
    charts = {chart.id: chart for chart in device_charts({"cpu:0": points, "cpu:1": points[:1]})}
    assert charts.keys() == {"speed", "memory"}
    (line,) = charts["speed"].lines
    assert line.parts == ([(0, 10), (1, 10), (1, 5), (3, 5)],)
    assert charts["speed"].x.name == "working time, minutes"
    assert charts["memory"].lines[0].parts == ([(0, 1), (1, 1), (1, 2), (3, 2)],)
    assert charts["memory"].description == "Memory in use of cpu:0; the highest value is 2"
    assert list(device_charts({})) == []


def test_a_value_that_is_not_known_interrupts_the_line() -> None:
    memory = [2**30, None, 2**30, 2**30]
    points = [DevicePoint(at, at + 1, 3600, 1, 1, value) for at, value in enumerate(memory)]
    chart = {chart.id: chart for chart in device_charts({"a": points})}["memory"]
    assert chart.x.name == "working time, hours"
    assert chart.lines[0].parts == ([(0, 1), (1, 1)], [(2, 1), (3, 1), (3, 1), (4, 1)])


def test_a_track_is_interrupted_where_there_is_no_score() -> None:
    columns = {"length": np.array([1000])}
    starts, ends = np.array([0, 90, 400]), np.array([100, 200, 500])
    region = Region(0, 200, 0.9, 2, "prophage_candidate")
    track = Track(columns, b"a", starts, ends, np.array([0.8, 1.0, 0.25]), [region])
    chart = track_chart(track, 3, "a")
    assert chart.id == "track-3"
    assert chart.lines[0].parts == (
        [(0, 0.8), (100, 0.8), (100, 1.0), (200, 1.0)],
        [(400, 0.25), (500, 0.25)],
    )
    assert chart.bands == ((0, 200, "1 to 200"),)
    assert chart.description == "Score of the fragments along a, 1,000 bases; viral regions: bases 1 to 200"
    assert "no viral region" in track_chart(track._replace(regions=[]), 0, "a").description


def test_a_histogram_has_an_outline_and_a_table() -> None:
    histogram = Histogram(np.array([1.0, 10.0, 100.0, 1000.0]), 2)
    histogram.counts[:] = [[0, 3, 0], [0, 0, 0]]
    (view,) = histogram_views("id", "Title", None, histogram, {"others": "others", "virus": "virus"})
    assert [line.parts for line in view.chart.lines] == [([(10, 3), (100, 3)],)]
    assert view.header == ("length of the sequence, bases", "others")
    assert view.rows == [("10 to 100", "3")]
    histogram.counts[:] = 0
    assert list(histogram_views("id", "Title", None, histogram, {"others": "others", "virus": "virus"})) == []


@pytest.mark.parametrize(
    ("line", "pixels"),
    [
        (Line("a", ([(0, 0), (1, 1)],), "k"), ["54.0,286.0 314.0,26.0"]),
        (Line("a", ([(0.5, 0.5)], [(1, 1)]), "k"), ["184.0,156.0", "314.0,26.0"]),
        (Line("a", ([(0.5, 0.5)],), "k", is_area=True), ["184.0,286.0 184.0,156.0 184.0,286.0"]),
        (Line("a", ([],), "k", is_area=True), [""]),
    ],
)
def test_points_become_pixels(line: Line, pixels: list[str]) -> None:
    chart = unit_chart("id", "title", ("x", "y"), {"a": []})
    assert list(chart.pixels(line)) == pixels
