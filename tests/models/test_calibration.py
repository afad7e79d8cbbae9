"""Calibration: maps compared with slow versions, the command, and scores that do not change."""

import json
import math
import shutil
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import Ran, predict, rows, run, tables
from support import fasta
from tiny_models import Toys, records, write_toys

from virnuc_async.errors import BadBundle
from virnuc_async.models.bundle import find
from virnuc_async.models.calibration import (
    Calibration,
    Cut,
    LogOddsCalibration,
    Method,
    Thresholds,
    fit_isotonic,
    fit_scale,
    fit_thresholds,
    logits,
    read,
)
from virnuc_async.outputs.verdicts import next_printed

ROWS = st.lists(st.tuples(st.integers(0, 10).map(lambda n: n / 10), st.booleans()), min_size=1, max_size=12)
FPRS = st.sampled_from([0.001, 0.01, 0.05, 0.25, 0.29, 0.3, 0.5, 0.999])


def columns(found: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    scores, truth = zip(*found, strict=True)
    return np.array(scores), np.array(truth)


def isotonic(knots: tuple[tuple[float, float], ...]) -> Calibration:
    return Calibration("x", Method.ISOTONIC, 1.0, knots, 0.01, 0.5)


def scaled(temperature: float) -> Calibration:
    return Calibration("x", Method.TEMPERATURE, temperature, (), 0.01, 0.5)


def loss(temperature: float, scores: np.ndarray, truth: np.ndarray) -> float:
    viral = scaled(temperature).apply(scores)
    return float(-np.log(np.clip(np.where(truth, viral, 1 - viral), 1e-300, None)).mean())


# The maps


@given(ROWS)
def test_no_other_temperature_is_likelier(found: list[tuple[float, bool]]) -> None:
    scores, truth = columns(found)
    best = fit_scale(logits(scores), truth)
    least = loss(best, scores, truth)
    for exponent in np.linspace(-3.9, 3.9, 80):
        assert least <= loss(math.exp(exponent), scores, truth) + 1e-6


@given(ROWS)
def test_isotonic_is_the_closest_increasing_map(found: list[tuple[float, bool]]) -> None:
    scores, truth = columns(found)
    mapped = isotonic(fit_isotonic(scores, truth)).apply(scores)
    # The max-min formula of isotonic regression: slow, and without pooling.
    unique = sorted(set(scores.tolist()))
    for score, value in zip(scores.tolist(), mapped.tolist(), strict=True):
        lows = [low for low in unique if low <= score]
        highs = [high for high in unique if high >= score]
        expected = max(
            min(truth[(scores >= low) & (scores <= high)].mean() for high in highs) for low in lows
        )
        assert value == pytest.approx(expected)


@given(ROWS, st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_maps_increase_and_stay_between_0_and_1(found: list[tuple[float, bool]], tried: list[float]) -> None:
    scores, truth = columns(found)
    inputs = np.sort(np.array(tried))
    for fitted in (isotonic(fit_isotonic(scores, truth)), scaled(fit_scale(logits(scores), truth))):
        mapped = fitted.apply(inputs)
        assert (np.diff(mapped) >= -1e-12).all()
        assert ((mapped >= 0) & (mapped <= 1)).all()


def test_a_known_temperature_is_found() -> None:
    random = np.random.default_rng(0)
    log_odds = random.normal(0, 2, 20_000)
    truth = random.random(20_000) < 1 / (1 + np.exp(-log_odds / 2.5))
    assert fit_scale(log_odds, truth) == pytest.approx(2.5, rel=0.05)


def with_log_odds(made: Calibration, **changes: object) -> Calibration:
    """Return *made* with what this version adds."""
    some = Thresholds(200, 50, (Cut(0.75, 0, 3), Cut(0.5, 2, 10), Cut(0.25, 190, 50)))
    knots = ((-4.0, 0.0), (2.5, 0.9)) if made.method is Method.ISOTONIC else ()
    added = LogOddsCalibration(0.7, made.method, 3.0, knots, some, Thresholds(200, 50, (Cut(9.5, 0, 20),)))
    return replace(made, log_odds=replace(added, **changes))


def test_a_calibration_is_read_back() -> None:
    for made in (scaled(2.0), isotonic(((0.1, 0.0), (0.7, 0.9)))):
        assert read(json.loads(json.dumps(made.as_dict(viral=3)))) == made
        full = with_log_odds(made)
        assert read(json.loads(json.dumps(full.as_dict(viral=3)))) == full
        assert full.fingerprint != made.fingerprint != with_log_odds(made, penalty=0.8).fingerprint
    assert scaled(2.0).fingerprint != scaled(2.1).fingerprint


def test_a_calibration_of_an_earlier_version_is_the_same() -> None:
    described = {
        "format": 1,
        "of": "x",
        "method": "temperature",
        "temperature": 2.0,
        "knots": [],
        "fpr": 0.01,
        "threshold": 0.5,
        "version": "0.1.0",
    }
    found = read(described)
    assert (found, found.log_odds) == (scaled(2.0), None)
    # Or a finished run would be written again for nothing.
    assert found.fingerprint == "e491f38c48368c4d"
    assert read(found.as_dict()) == found


# Thresholds


def slow_cut(scores: np.ndarray, truth: np.ndarray, fpr: float) -> tuple[int, int]:
    """Return how many of either class the best threshold has, by trying each number in between."""
    allowed = Fraction(str(fpr)) * int((~truth).sum())
    tried = [number + 0.00005 for number in [-10.0, *scores.tolist()]]
    of_each = [((scores >= at)[~truth].sum(), (scores >= at)[truth].sum()) for at in tried]
    return max((int(nonviral), int(viral)) for nonviral, viral in of_each if nonviral <= allowed)


@given(ROWS, FPRS)
def test_thresholds_against_trying_all(found: list[tuple[float, bool]], fpr: float) -> None:
    scores, truth = columns([*found, (0.3, False)])
    for given_scores, above in ((scores, next_printed), (scores.astype(np.float32), next_single)):
        thresholds = fit_thresholds(given_scores, truth, fpr, above)
        cut = thresholds.at(fpr)
        assert (cut.nonviral, cut.viral) == slow_cut(scores, truth, fpr)
        reached = given_scores >= given_scores.dtype.type(cut.threshold)
        assert (reached[~truth].sum(), reached[truth].sum()) == (cut.nonviral, cut.viral)
        assert thresholds.can_tell(fpr) == (Fraction(str(fpr)) * int((~truth).sum()) >= 1)


def next_single(scores: np.ndarray) -> np.ndarray:
    return np.nextafter(scores.astype(np.float32), np.float32(2)).astype(np.float64)


def test_thresholds_of_many_contigs_are_few() -> None:
    scores = np.round(np.random.default_rng(0).normal(0, 3, 200_000), 4)
    truth = np.arange(200_000) % 2 == 0
    found = fit_thresholds(scores, truth, 0.0123, next_printed)
    assert len(found.cuts) < 900
    negatives = scores[~truth]
    for fpr in (0.0123, 1e-5, 0.0005, 0.001, 0.003, 0.01, 0.1, 0.5, 0.9):
        cut = found.at(fpr)
        assert cut.nonviral == (negatives >= cut.threshold).sum() <= fpr * len(negatives)
        assert cut.nonviral >= 0.985 * fpr * len(negatives) - 1
    assert found.at(0.0123).nonviral == 1230
    assert (found.can_tell(1e-5), found.can_tell(0.99e-5)) == (True, False)


def test_thresholds_that_make_no_sense() -> None:
    wrong = [(0.5, 1, 1)], [(0.5, 0, 0), (0.6, 1, 1)], [(math.nan, 0, 0)], [(0.5, 0, 0), (-math.inf, 1, 1)]
    for cuts in ([], *wrong):
        with pytest.raises(ValueError, match="the thresholds are not in order"):
            Thresholds(5, 5, tuple(Cut(*cut) for cut in cuts))


# The command


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    """Toy sequences, a few of which look like the other class."""
    toys = write_toys(tmp_path_factory.mktemp("toys"), 30, 300)
    viral, nonviral = (list(records(rich, 30, 300, 0)) for rich in (True, False))
    toys.viral.write_text(fasta([*viral[:25], *nonviral[25:]]))
    toys.nonviral.write_text(fasta([*nonviral[:25], *viral[25:]]))
    return toys


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(find("tiny-500").directory, tmp_path / "model")


def calibrate(toys: Toys, scores: Path, model: str | Path, *options: str | Path) -> Ran:
    arguments = (*toys.options, "--output", scores, "--model", model, "--devices", "cpu")
    return run("calibrate", *arguments, *options)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_a_column_is_added_and_nothing_else_changes(
    toys: Toys, model: Path, tmp_path: Path, method: str
) -> None:
    assert predict(*toys, tmp_path / "before", "--model", model).code == 0
    fingerprint = find(model).fingerprint
    ended = calibrate(toys, tmp_path / "scores", model, "--method", method)
    assert ended.code == 0
    assert f"predict --model {model} adds p_virus_calibrated and q to contigs.tsv" in ended.out
    assert find(model).fingerprint == fingerprint
    assert predict(*toys, tmp_path / "after", "--model", model).code == 0
    before, after = tables(tmp_path / "before"), tables(tmp_path / "after")
    for name in ("prediction_results.txt", "prediction_results_highestscore.csv"):
        assert before[name] == after[name]
    lines = rows(tmp_path / "after" / "contigs.tsv")
    assert [line[:-2] for line in lines] == rows(tmp_path / "before" / "contigs.tsv")
    assert lines[0][-3:] == ["log_odds", "p_virus_calibrated", "q"]
    found = find(model).calibration
    assert found is not None
    assert found.log_odds is not None
    columns = np.array([[float(line[at]) for at in (7, -2, -3, -1)] for line in lines[1:]]).T
    means, calibrated, log_odds, q = columns
    np.testing.assert_allclose(calibrated, found.apply(means.astype(np.float32)), atol=1e-7)
    np.testing.assert_allclose(q, found.log_odds.apply(log_odds), atol=1e-7)
    assert f"calibration             {method} ({found.fingerprint})" in run("models", "info", model).out


def test_contigs_without_a_score_have_none(model: Path, toys: Toys, tmp_path: Path) -> None:
    assert calibrate(toys, tmp_path / "scores", model).code == 0
    path = tmp_path / "shut.fa"
    path.write_text(fasta([("shut", "TTAATTAATTAATTAA"), ("open", "GCA" * 50)]))
    assert predict(path, tmp_path / "out", "--model", model).code == 0
    shut, opened = rows(tmp_path / "out" / "contigs.tsv")[1:]
    assert shut[-5:] == ["", "no_orf", "", "", ""]
    found = find(model).calibration
    assert found is not None
    mean = np.array([float(opened[7])], np.float32)
    assert mean[0] > 0
    assert float(opened[-2]) == pytest.approx(found.apply(mean)[0])


def test_thresholds_have_the_requested_rate(toys: Toys, model: Path, tmp_path: Path) -> None:
    for fpr in ("0.1", "0.3"):
        ended = calibrate(toys, tmp_path / "scores", model, "--fpr", fpr)
        assert ended.code == 0
        lines = rows(tmp_path / "scores" / "records" / "contigs.tsv")[1:]
        found = json.loads((model / "calibration.json").read_bytes())
        for column, prefix, name in ((7, "", "mean_p_virus"), (10, "log_odds_", "log_odds")):
            threshold, sensitivity = (
                found[prefix + what] for what in ("threshold", "sensitivity_at_threshold")
            )
            called = np.array([float(line[column]) for line in lines], np.float32) >= np.float32(threshold)
            assert called[30:].sum() == round(float(fpr) * 30)
            sensitivity = found[f"{prefix}sensitivity_at_threshold"]
            assert sensitivity == pytest.approx(called[:30].mean(), abs=1e-6)
            assert f"{name} >= {threshold:.10g}: false positive rate at most {fpr}" in ended.out
    ended = calibrate(toys, tmp_path / "scores", model)
    assert "WARNING: 30 nonviral contigs are too few to estimate a false positive rate of 0.01" in ended.err


def test_another_calibration_costs_no_scoring(toys: Toys, model: Path, tmp_path: Path) -> None:
    words = (*toys, tmp_path / "out", "--model", model)
    assert predict(*words).code == 0
    without = (tmp_path / "out" / "contigs.tsv").read_bytes()
    assert calibrate(toys, tmp_path / "scores", model).code == 0
    ended = predict(*words)
    assert ended.code == 0
    assert "calibration: None -> " in ended.err
    assert b"p_virus_calibrated" in (tmp_path / "out" / "contigs.tsv").read_bytes()
    assert predict(*words, "--no-calibration").code == 0
    assert (tmp_path / "out" / "contigs.tsv").read_bytes() == without
    (model / "calibration.json").unlink()
    assert "finished already" in predict(*words).err
    # Labelled sequences are scored without a calibration, even if there is one.
    assert calibrate(toys, tmp_path / "scores", model, "--method", "temperature").code == 0
    assert "finished already" in calibrate(toys, tmp_path / "scores", model).err


def test_invalid_calibrations(toys: Toys, model: Path, tmp_path: Path) -> None:
    assert calibrate(toys, tmp_path / "scores", model).code == 0
    path = model / "calibration.json"
    good = json.loads(path.read_bytes())
    invalid: list[dict[str, object] | str] = [
        good | {"of": "another"},
        good | {"format": 3},
        good | {"format": 1, "knots": [[0, "x"]]},
        {name: value for name, value in good.items() if name != "log_odds"},
        good | {"log_odds": None},
        good | {"log_odds": good["log_odds"] | {"penalty": 0.25}},
        good | {"log_odds": good["log_odds"] | {"knots": [[0, 2]]}},
        good | {"log_odds": good["log_odds"] | {"thresholds": {"nonviral": 30, "viral": 30, "cuts": []}}},
        good | {"method": "magic"},
        good | {"temperature": 0},
        good | {"temperature": None},
        good | {"method": "isotonic", "knots": []},
        good | {"method": "isotonic", "knots": [[0, 0.5], [1, 0.4]]},
        good | {"method": "isotonic", "knots": [[0, 2]]},
        good | {"method": "isotonic", "knots": [[0.1, 0.2, 0.3]]},
        "{",
        "[]",
    ]
    for content in invalid:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(BadBundle, match="calibration.json"):
            find(model)
    path.write_text(json.dumps(good))
    assert find(model).calibration == read(good)


def test_usage_that_is_refused(toys: Toys, model: Path, tmp_path: Path) -> None:
    ended = calibrate(toys, tmp_path / "scores", "tiny-500")
    assert ended.code == 64
    assert "tiny-500 comes with the program: copy " in ended.err
    ended = calibrate(toys, tmp_path / "scores", model, "--fpr", "1")
    message = "virnuc-async: the false positive rate is a number between 0 and 1, not 1.0\n"
    assert ended == (64, "", message)
    (tmp_path / "shut.fa").write_text(fasta([("shut", "TTAATTAATTAATTAA")]))
    ended = calibrate(Toys(tmp_path / "shut.fa", toys.nonviral), tmp_path / "other", model)
    assert "nothing viral in the contigs that have a score: both classes are needed" in ended.err
    assert not (model / "calibration.json").exists()


def test_calibrations_differ_by_method_and_clusters(toys: Toys, model: Path, tmp_path: Path) -> None:
    table = tmp_path / "c.tsv"
    table.write_text(
        "".join(f"{kind}{number}\t{number // 10}\n" for kind, number in product("vn", range(30)))
    )
    found = []
    warm = ("--method", "temperature")
    for options in (warm, (), (*warm, "--clusters", table)):
        assert calibrate(toys, tmp_path / "scores", model, *options).code == 0
        (model / "calibration.json").rename(tmp_path / "last.json")
        found.append(json.loads((tmp_path / "last.json").read_bytes()))
    assert found[0]["knots"] == [] != found[1]["knots"]
    assert found[0]["temperature"] == found[2]["temperature"]
    assert found[0]["ece_after"] != found[2]["ece_after"]
