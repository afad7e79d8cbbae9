"""Which score and which threshold verdicts are by: of settings and bundles, and through the command."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from running import Ran, predict, rows, run, summary
from support import fasta
from tiny_models import Toys, records, write_toys

from virnuc_async.errors import BadBundle, NoThreshold
from virnuc_async.models.bundle import Bundle, find
from virnuc_async.models.calibration import Calibration, Cut, LogOddsCalibration, Method, Thresholds
from virnuc_async.models.contig_score import ContigScore, read
from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.runs.plan import Plan
from virnuc_async.settings import Settings, VerdictBy

EARLIER = Calibration("x", Method.TEMPERATURE, 2.0, (), 0.01, 0.75)
OF_MEANS = Thresholds(200, 50, (Cut(0.875, 0, 3), Cut(0.625, 4, 10), Cut(0.25, 190, 50)))
OF_LOG_ODDS = Thresholds(200, 50, (Cut(9.5, 0, 20), Cut(2.25, 3, 40)))
ADDED = LogOddsCalibration(0.5, Method.TEMPERATURE, 3.0, (), OF_MEANS, OF_LOG_ODDS)


def rule_for(model: Bundle, settings: Settings) -> VerdictRule:
    """Return the rule that a run has."""
    return Plan((), settings, model).verdict_rule


def bundle(calibration: Calibration | None = None) -> Bundle:
    return replace(find("tiny-500"), name="mine", penalty=0.5, calibration=calibration)


@pytest.mark.parametrize(
    ("settings", "by", "threshold"),
    [
        (Settings(), "fraction", 0.5),
        (Settings(threshold=0.8), "fraction", 0.8),
        (Settings(threshold=0.8, verdict_by=VerdictBy.MEAN), "mean", 0.8),
        (Settings(verdict_by=VerdictBy.LOG_ODDS), "log_odds", 0.0),
        (Settings(threshold=0.75, verdict_by=VerdictBy.LOG_ODDS), "log_odds", math.log(3)),
        (Settings(fpr=0.02), "log_odds", 2.25),
        (Settings(fpr=0.0149), "log_odds", 9.5),  # 2 of 200, where 3 would be the next
        (Settings(fpr=0.015), "log_odds", 2.25),
        (Settings(fpr=0.02, verdict_by=VerdictBy.MEAN), "mean", 0.625),
        (Settings(fpr=0.0199, verdict_by=VerdictBy.MEAN), "mean", 0.875),
        (Settings(fpr=0.95, verdict_by=VerdictBy.MEAN), "mean", 0.25),
        (Settings(fpr=0.02, calibrated=False), "log_odds", 2.25),
    ],
)
def test_rule_of_settings(settings: Settings, by: str, threshold: float) -> None:
    calibration = replace(EARLIER, log_odds=ADDED)
    rule = rule_for(bundle(calibration), settings)
    assert (rule.by, rule.threshold, rule.penalty) == (by, pytest.approx(threshold), 0.5)
    assert rule.calibration == (calibration if settings.calibrated else None)
    if settings.fpr is None:
        assert rule_for(bundle(), settings) == replace(rule, calibration=None)


def test_what_a_rate_was_reached_by() -> None:
    rule = rule_for(bundle(replace(EARLIER, log_odds=ADDED)), Settings(fpr=0.02))
    assert str(rule) == (
        "log_odds >= 2.25 (which 0.015 of 200 nonviral and 0.8 of 50 viral contigs of the model's "
        "calibration reach)"
    )
    assert str(VerdictRule(VerdictBy.MEAN, 0.625)) == "mean_p_virus >= 0.625"


def test_a_calibration_of_an_earlier_version_has_one_threshold() -> None:
    old = bundle(EARLIER)
    rule = rule_for(old, Settings(fpr=0.01, verdict_by=VerdictBy.MEAN))
    assert (rule.by, rule.threshold) == (VerdictBy.MEAN, 0.75)
    for settings in (Settings(fpr=0.01), Settings(fpr=0.02, verdict_by=VerdictBy.MEAN)):
        with pytest.raises(NoThreshold, match="of an earlier version, has a threshold of mean_p_virus at a "):
            rule_for(old, settings)


@pytest.mark.parametrize(
    ("nonviral", "lowest"), [(200, "0.005"), (1721, "0.00059"), (30, "0.034"), (3, "0.34")]
)
def test_rates_that_too_few_contigs_can_tell(nonviral: int, lowest: str) -> None:
    thresholds = replace(OF_LOG_ODDS, nonviral=nonviral)
    mine = bundle(replace(EARLIER, log_odds=replace(ADDED, thresholds=thresholds)))
    with pytest.raises(NoThreshold) as caught:
        rule_for(mine, Settings(fpr=0.9 / nonviral))
    expected = f"the {nonviral:,} nonviral contigs of its calibration show no rate below {lowest}"
    assert caught.value.reason == expected
    assert rule_for(mine, Settings(fpr=float(lowest))).threshold in (9.5, 2.25)


def test_without_a_calibration() -> None:
    with pytest.raises(NoThreshold) as caught:
        rule_for(bundle(), Settings(fpr=0.01))
    assert (caught.value.name, caught.value.reason) == ("mine", "it has no calibration")


# The entry of the bundle


def copy(tmp_path: Path, content: object) -> Path:
    model = shutil.copytree(find("tiny-500").directory, tmp_path / "model", dirs_exist_ok=True)
    (model / "contig_score.json").write_text(json.dumps(content))
    return model


def test_the_penalty_is_an_entry_of_the_bundle(tmp_path: Path) -> None:
    of = find("tiny-500").fingerprint
    model = copy(tmp_path, ContigScore(of, 1.25).as_dict(note="ignored"))
    assert (find(model).penalty, find(model).fingerprint) == (1.25, of)
    assert read(ContigScore(of, 1.25).as_dict()) == ContigScore(of, 1.25)
    (model / "contig_score.json").unlink()
    assert find(model).penalty == 0


@pytest.mark.parametrize(
    "change",
    [{"of": "another"}, {"format": 2}, {"penalty": None}, {"penalty": math.inf}, {"penalty": math.nan}],
)
def test_invalid_entries(tmp_path: Path, change: dict[str, object]) -> None:
    good = ContigScore(find("tiny-500").fingerprint, 1.25).as_dict()
    with pytest.raises(BadBundle, match="contig_score.json"):
        find(copy(tmp_path, good | change))
    with pytest.raises(BadBundle, match="contig_score.json"):
        find(copy(tmp_path, []))


# The command


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    """Toy sequences of two fragments, a few of which look like the other class."""
    toys = write_toys(tmp_path_factory.mktemp("toys"), 20, 700)
    viral, nonviral = (list(records(rich, 20, 700, 0)) for rich in (True, False))
    toys.viral.write_text(fasta([*viral[:16], *nonviral[16:]]))
    toys.nonviral.write_text(fasta([*nonviral[:16], *viral[16:]]))
    return toys


@pytest.fixture(scope="module")
def model(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("calibrated")
    model = shutil.copytree(find("tiny-500").directory, directory / "model")
    more = ("--output", directory / "scores", "--model", model, "--devices", "cpu", "--fpr", "0.1")
    assert run("calibrate", *toys.options, *more).code == 0
    return model


@pytest.fixture(scope="module")
def scored(toys: Toys, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scored") / "out"
    assert predict(*toys, out, "--model", model).code == 0
    return out


@pytest.mark.parametrize(
    ("options", "by"),
    [
        (["--fpr", "0.1"], "log_odds"),
        (["--fpr", "0.3"], "log_odds"),
        (["--fpr", "0.1", "--verdict-by", "mean"], "mean"),
        (["--verdict-by", "mean", "--threshold", "0.7"], "mean"),
        (["--verdict-by", "log_odds", "--threshold", "0.9"], "log_odds"),
    ],
)
def test_verdicts_are_by_the_score_that_is_asked_for(
    toys: Toys, model: Path, scored: Path, tmp_path: Path, options: list[str], by: str
) -> None:
    out = shutil.copytree(scored, tmp_path / "out")
    before = rows(out / "contigs.tsv")
    ended = predict(*toys, out, "--model", model, *options)
    assert ended.code == 0
    # Nothing is scored for it, and nothing else changes.
    assert f"verdict_by: fraction -> {by}" in ended.err
    assert "(0 ORFs scored now, " in ended.err
    after = rows(out / "contigs.tsv")
    assert [row[:9] + row[10:] for row in after] == [row[:9] + row[10:] for row in before]
    assert [row[9] for row in after] != [row[9] for row in before]
    settings, fpr = summary(out)["settings"], float(options[1]) if options[0] == "--fpr" else None
    assert (settings["verdict_by"], settings["fpr"]) == (by, fpr)
    threshold = settings["verdict_threshold"]
    called = [float(row[{"mean": 7, "log_odds": 10}[by]]) >= threshold for row in after[1:]]
    assert [row[9] for row in after[1:]] == ["virus" if viral else "others" for viral in called]
    assert summary(out)["counts"]["viral_contigs"] == sum(called)
    if fpr:
        # The contigs that it was calibrated with: the rate is that which was asked for.
        assert sum(called[20:]) == round(20 * fpr)
        assert f"of 20 nonviral and {sum(called[:20]) / 20:.3g} of 20 viral contigs" in ended.err
    fresh = tmp_path / "fresh"
    assert predict(*toys, fresh, "--model", model, *options).code == 0
    assert (fresh / "contigs.tsv").read_bytes() == (out / "contigs.tsv").read_bytes()
    assert "its files are unchanged" in predict(*toys, out, "--model", model, *options).err


def refused(ended: Ran, code: int, message: str, out: Path) -> None:
    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err
    # Before anything is begun.
    assert not out.exists()


def test_rates_that_are_refused(toys: Toys, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = predict(*toys, out, "--model", model, "--fpr", "0.01")
    refused(ended, 1, "the 20 nonviral contigs of its calibration show no rate below 0.05. ", out)
    ended = predict(*toys, out, "--fpr", "0.1")
    message = "the model 'tiny-500' has no threshold for this false positive rate: it has no calibration. "
    refused(ended, 1, message, out)
    ended = predict(*toys, out, "--fpr", "0.1", "--threshold", "0.7", "--model", model)
    refused(ended, 64, "choose a threshold or a false positive rate, not both", out)
    ended = predict(*toys, out, "--fpr", "0.1", "--verdict-by", "fraction", "--model", model)
    refused(ended, 64, "a false positive rate is one of verdicts by mean or log_odds, not by fraction", out)


def test_another_calibration_writes_the_tables_again(
    toys: Toys, model: Path, scored: Path, tmp_path: Path
) -> None:
    out, other = shutil.copytree(scored, tmp_path / "out"), shutil.copytree(model, tmp_path / "model")
    words = (*toys, out, "--model", other, "--fpr", "0.1", "--no-calibration")
    assert predict(*words).code == 0
    header, *lines = rows(out / "contigs.tsv")
    assert header[-1] == "log_odds"
    viral = sum(row[9] == "virus" for row in lines)
    described = json.loads((other / "calibration.json").read_bytes())
    described["log_odds"]["thresholds"]["cuts"] = [[-1000.0, 0, 20]]
    (other / "calibration.json").write_text(json.dumps(described))
    ended = predict(*words)
    assert "fpr_threshold: " in ended.err
    assert viral < sum(row[9] == "virus" for row in rows(out / "contigs.tsv")[1:]) == 40
