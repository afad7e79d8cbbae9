"""What the files of a run are made by, as it is kept in the store."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from stored_runs import Record, ScoredOrf, store_run

from virnuc_async.errors import UsageError
from virnuc_async.models.calibration import Calibration, Method
from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.outputs.options import OPTION_CHECKS, OutputOptions
from virnuc_async.outputs.written import ModelFacts, Written
from virnuc_async.runs.store import Store
from virnuc_async.settings import CallRules, Pairing, Settings, VerdictBy

OPTIONS = OutputOptions(
    threshold=0.7,
    pairs=Pairing.OFF,
    calibration="abc",
    embeddings=True,
    calls=CallRules(min_fragments=2),
    min_length=300,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_run(tmp_path, [Record(b"a", (ScoredOrf(1, 0, 0.5, 0.5),))])


def test_every_field_is_checked() -> None:
    assert {field.name for field in fields(OutputOptions)} == set(OPTION_CHECKS)
    with pytest.raises(UsageError, match="the threshold must be a number from 0 to 1, not 2"):
        OutputOptions(threshold=2)


def test_they_are_taken_from_settings() -> None:
    settings = Settings(
        threshold=0.7,
        verdict_by=VerdictBy.MEAN,
        pairs=Pairing.OFF,
        embeddings=True,
        calls=CallRules(min_fragments=2),
        min_length=300,
    )
    calibration = Calibration("model", Method.TEMPERATURE, 2.0, (), 0.01, 0.5)
    rule = VerdictRule(VerdictBy.MEAN, 0.25, 1.5, calibration)
    expected = replace(OPTIONS, calibration=calibration.fingerprint, verdict_by=VerdictBy.MEAN, penalty=1.5)
    assert OutputOptions.of(settings, rule) == expected
    assert OutputOptions.of(replace(settings, threshold=0.5, fpr=0.1), rule) == replace(
        expected, threshold=0.5, fpr=0.1, fpr_threshold=0.25
    )
    assert OutputOptions.of(Settings(), VerdictRule()) == OutputOptions(penalty=0.0)


@pytest.mark.parametrize("options", [OPTIONS, OutputOptions()])
def test_a_store_keeps_them(options: OutputOptions, store: Store) -> None:
    calibration = Calibration("model", Method.ISOTONIC, 1.0, ((0.25, 0.5), (1.0, 1.0)), 0.01, 0.5)
    for model in (ModelFacts(300, calibration, 0.5, "mine"), ModelFacts(500, None)):
        written = Written(options, "paths", {"contigs.tsv": [1, 2]}, model, [0, 3])
        written.keep(store)
        found = Written.of(store)
        assert found == written
        assert isinstance(found.options.pairs, Pairing)
    store.close()


def test_what_earlier_versions_have_stored(store: Store) -> None:
    settings = {"threshold": 0.7, "pairs": "off", "calibration": "abc", "embeddings": True}
    rules = CallRules(min_fragments=2)
    value: dict[str, Any] = {"settings": {**settings, "calls": str(rules)}, "paths": "p", "files": {}}
    store.set_meta("written", value | {"calls": {"min_fragments": 2}})
    earlier = replace(OPTIONS, min_length=0)
    assert Written.of(store) == (earlier, "p", {}, None, None)
    # Before there were calls.
    store.set_meta("written", value | {"settings": settings})
    assert Written.of(store) == (replace(earlier, calls=None), "p", {}, None, None)
    store.close()


@pytest.mark.parametrize(
    "value", [None, {}, {"settings": 1}, {"options": {"threshold": 3}, "paths": "", "files": {}}]
)
def test_what_makes_no_sense_is_as_if_nothing_was_written(value: object, store: Store) -> None:
    store.set_meta("written", value if value is not None else {"options": {"calls": 7}})
    assert Written.of(store) is None
    store.close()


def test_files_that_were_asked_for_once_stay() -> None:
    asked = OutputOptions(threshold=0.9)
    assert asked.including(None) == asked
    assert asked.including(OPTIONS) == OutputOptions(0.9, embeddings=True, calls=OPTIONS.calls)
    assert replace(asked, calls=CallRules()).including(OPTIONS).calls == CallRules()


def test_differences() -> None:
    assert list(OPTIONS.differences(OutputOptions())) == [
        "calibration: abc -> None",
        "calls: min_fragments=2 -> None",
        "embeddings: True -> False",
        "min_length: 300 -> 0",
        "pairs: off -> auto",
        "threshold: 0.7 -> 0.5",
    ]
    assert not list(OPTIONS.differences(replace(OPTIONS)))
