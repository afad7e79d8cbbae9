"""The model of a layer's time: its launches and traffic are those that are counted, its times add up."""

import json

import pytest
from random_bundle import SHAPES
from roofline import CARDS, FP8, KERNELS, PLAIN, Card, Layer, launches, times
from support import ROOT

from virnuc_async.networks.shapes import ProteinShape


@pytest.mark.parametrize(
    ("way", "precision", "name"),
    [(PLAIN, "BF16", "plain"), (KERNELS, "BF16", "kernels"), (FP8, "FP8", "kernels")],
)
def test_launches_and_traffic_are_those_that_are_counted(way: str, precision: str, name: str) -> None:
    counted = json.loads((ROOT / "docs" / "benchmarks" / "launches.json").read_text())
    rows = [row for row in counted["rows"] if (row["precision"], row["way"]) == (precision, name)]
    for row in (row for row in rows if row["encoder"] == "ESM-2 3B"):
        layer = Layer(SHAPES["3B"], counted["tokens"], way)
        assert len(layer.launches) == row["launches"]
        # Counted are also the weights of norms and the angles of rotary positions.
        assert layer.traffic() == pytest.approx(row["bytes"], rel=0.02)


def test_our_kernels_are_within_what_was_planned() -> None:
    plain, kernels, fp8 = launches(SHAPES["3B"], 16_384)
    assert (plain["launches"], kernels["launches"], fp8["launches"]) == (19, 9, 10)
    assert kernels["elementwise traffic, GB"] == pytest.approx(20 * 2560 * 16_384 * 2 / 1e9)
    assert fp8["elementwise traffic, GB"] < kernels["elementwise traffic, GB"] < 1.7
    rotary = [one for one in Layer(SHAPES["3B"], 16_384, PLAIN).launches if one.name in ROTARY]
    assert sum(one.bytes for one in rotary) / 1e9 == pytest.approx(4.03, abs=0.01)


ROTARY = {"widen", "left cos", "right sin", "right cos", "left sin", "difference", "sum", "join", "narrow"}


def test_a_time_is_the_longer_one_of_operations_and_bytes() -> None:
    shape, tokens = ProteinShape(1, 10, 2), 100
    layer = Layer(shape, tokens, KERNELS)
    products, attention = 24 * 10 * 10 * tokens, 4 * 168 * 10 * tokens
    assert layer.flop() == products + attention
    slow = Card("all is operations", {"BF16": 1.0}, 1e30)
    assert layer.seconds(slow) == pytest.approx(products + attention)
    narrow = Card("all is bytes", {"BF16": 1e30}, 1.0)
    moved = (3 + 1) + (1 + 1) + (1 + 4) + (4 + 1) + 4 + 20  # in and out of products; attention; the others
    assert layer.seconds(narrow) == pytest.approx(2 * (moved * 10 * tokens + 12 * 10 * 10))


def test_fp8_is_modelled_where_a_card_has_it() -> None:
    rows = list(times(SHAPES["3B"], 16_384))
    assert {row["card"] for row in rows if row["way"] == FP8} == {"H100 SXM", "H200 SXM"}
    by_way = {(row["card"], row["way"]): row["ms a layer"] for row in rows}
    for card in CARDS:
        assert by_way[card.name, KERNELS] < by_way[card.name, PLAIN]
