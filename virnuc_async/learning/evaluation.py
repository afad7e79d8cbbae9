"""
A bundle and labelled sequences become figures: what the model is worth on them.

Everything is scored by the engine that predicts, in runs of their own below the output directory, so
that an evaluation that was interrupted goes on where it stopped.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnuc_async._version import __version__
from virnuc_async.errors import CannotWrite, ForeignDirectoryError, RunMismatchError, UsageError
from virnuc_async.fileio import atomic_write
from virnuc_async.log import logger
from virnuc_async.models.bundle import Bundle, find, is_shipped
from virnuc_async.models.calibration import CALIBRATION, Calibration, Method, fit_isotonic, fit_temperature
from virnuc_async.outputs.html import chart, heading, page, paragraph, table
from virnuc_async.outputs.predictions import label_contigs, vote
from virnuc_async.outputs.summary import Summary
from virnuc_async.runs.store import Block, Store
from virnuc_async.settings import Pairing, Settings
from virnuc_async.text import plural

from .dataset import KINDS, LabelledFiles, Records, SubsequenceSampler, check_classes, read_records
from .metrics import METRICS, ClusterBootstrap, Ranking, auroc, plain, plain_interval, threshold_for
from .options import EvaluationOptions

# Runs the pipeline in a directory, or resumes what is there.
Engine = Callable[[Sequence[str], Path, Settings], Summary]

JSON, HTML, RECORDS = "evaluation.json", "evaluation.html", "records"
_LENGTH, _STRETCHES = "length-", "stretches.fa"
_FOLDS = 5  # of the clusters, to see what a calibration is worth
_SHOWN = ("auroc", "auprc", "accuracy", "sensitivity", "specificity", "mcc", "tpr_at_5_percent_fpr", "ece")
_HEADS = ("AUROC", "AUPRC", "accuracy", "sens.", "spec.", "MCC", "TPR at 5% FPR", "ECE")

Report = dict[str, Any]  # what JSON holds


@dataclass(frozen=True, slots=True)
class Level:
    """What is scored on its own, in columns: an ORF, a fragment, or a contig."""

    scores: NDArray[np.float32]  # P(virus): of a fragment its highest, of a contig the mean of these
    verdicts: NDArray[np.bool_]
    owners: NDArray[np.int64]  # the record of each


def evaluate(
    data: LabelledFiles,
    out_dir: Path,
    settings: Settings,
    measuring: EvaluationOptions,
    engine: Engine,
    command: str = "",
) -> Report:
    """
    Measure ``settings.model`` on *data*; write ``evaluation.json`` and ``evaluation.html`` into *out_dir*.

    Raises:
        InputError, LabelError, NoRecords: the labelled sequences
        what the engine raises
    """
    _check_ours(out_dir)
    bundle, records = find(settings.model, settings.cache_dir), read_records(data)
    places = {RECORDS: _on_records(data, records, out_dir, settings, engine)}
    for length in measuring.lengths:
        cutting = SubsequenceSampler(length, measuring.seed, measuring.subsequences)
        if _is_measurable(cutting, records):
            places[f"{length} bp"] = _on_stretches(cutting, data, records, out_dir, settings, engine)
    report = {
        "version": __version__,
        "command": command,
        "model": bundle_facts(bundle),
        "data": {"clusters": len(records.cluster_names), "groups": records.told()},
        "settings": {**asdict(measuring), "threshold": settings.threshold},
        "at": {name: measured(place, records, measuring) for name, place in places.items()},
    }
    _write(out_dir / JSON, json.dumps(report, indent=2) + "\n")
    _write(out_dir / HTML, rendered(report))
    logger.info("figures are in {} and {}", out_dir / JSON, out_dir / HTML)
    return report


def calibrate(
    data: LabelledFiles, out_dir: Path, settings: Settings, method: Method, fpr: float, engine: Engine
) -> Report:
    """
    Map contigs' mean P(virus) to what holds on *data*; write ``calibration.json`` into the bundle.

    Raises:
        UsageError: *fpr* is no share, or the model is one of the package's own
        InputError, LabelError, NoRecords: the labelled sequences
        what the engine raises
    """
    bundle = find(settings.model, settings.cache_dir)
    if not 0 < fpr < 1:
        raise UsageError(f"the false positive rate is a number between 0 and 1, not {fpr}")
    if is_shipped(bundle):
        raise UsageError(
            f"{bundle.name} comes with the program: copy {bundle.directory} and calibrate the copy"
        )
    _check_ours(out_dir)
    records = read_records(data)
    level = _on_records(data, records, out_dir, settings, engine)["contig"]
    truth = records.are_viral[level.owners]
    check_classes(truth, "the contigs that have a score")
    found = _calibration(bundle.fingerprint, method, level.scores, truth, fpr)
    facts = _calibration_facts(found, level, truth, records.clusters[level.owners])
    if facts["nonviral"] * fpr < 1:
        logger.warning("{:,} other contigs are too few to tell a rate of {:g}", facts["nonviral"], fpr)
    report = found.as_dict(version=__version__, **facts)
    _write(bundle.directory / CALIBRATION, json.dumps(report, indent=2) + "\n")
    return report


def _calibration(
    of: str, method: Method, scores: NDArray[np.float32], truth: NDArray[np.bool_], fpr: float
) -> Calibration:
    threshold = threshold_for(scores, truth, fpr)
    if method is Method.ISOTONIC:
        return Calibration(of, method, 1.0, fit_isotonic(scores, truth), fpr, threshold)
    return Calibration(of, method, fit_temperature(scores, truth), (), fpr, threshold)


def _calibration_facts(
    found: Calibration, level: Level, truth: NDArray[np.bool_], clusters: NDArray[np.int64]
) -> dict[str, Any]:
    """Give what a calibration is worth, by maps fitted without the clusters that they are tried on."""
    folds = np.random.default_rng(0).permutation(clusters.max() + 1)[clusters] % _FOLDS
    tried = level.scores.astype(np.float64)
    for fold in range(_FOLDS):
        own = folds == fold
        if own.any() and 0 < truth[~own].sum() < (~own).sum():
            without = _calibration(found.of, found.method, level.scores[~own], truth[~own], found.fpr)
            tried[own] = without.apply(level.scores[own])
    called = level.scores >= np.float32(found.threshold)
    return {
        "viral": int(truth.sum()),
        "nonviral": int((~truth).sum()),
        "sensitivity_at_threshold": round(float(called[truth].mean()), 6),
        "ece_before": round(_error(level.scores, truth), 6),
        "ece_after": round(_error(tried, truth), 6),
    }


def _error(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    return float(Ranking(scores, truth, truth).figures()[METRICS.index("ece")])


def _check_ours(out_dir: Path) -> None:
    """Refuse a directory with other things in it than an evaluation."""
    names = sorted(path.name for path in out_dir.iterdir()) if out_dir.is_dir() else []
    strangers = [name for name in names if name not in (JSON, HTML, RECORDS) and not name.startswith(_LENGTH)]
    if strangers or out_dir.is_file():
        what = f"holds {strangers[0]!r} and no evaluation" if strangers else "is a file, not a directory"
        raise ForeignDirectoryError(str(out_dir), f"{what}. Choose a new or empty directory")


def _is_measurable(cutting: SubsequenceSampler, records: Records) -> bool:
    kinds = set(records.are_viral[cutting.owners(records)].tolist())
    if len(kinds) < len(KINDS):
        logger.warning(
            "not both classes have records of {:,} bases: nothing is measured there", cutting.length
        )
    return len(kinds) == len(KINDS)


def _on_records(
    data: LabelledFiles, records: Records, out_dir: Path, settings: Settings, engine: Engine
) -> dict[str, Level]:
    directory = out_dir / RECORDS
    engine(data.paths, directory, replace(settings, calibrated=False, pairs=Pairing.OFF))
    return _levels_in(directory, np.arange(len(records)), settings.threshold)


def _on_stretches(
    cutting: SubsequenceSampler,
    data: LabelledFiles,
    records: Records,
    out_dir: Path,
    settings: Settings,
    engine: Engine,
) -> dict[str, Level]:
    directory = out_dir / f"{_LENGTH}{cutting.length}"
    path = write_stretches(cutting, data, records, directory)
    engine([str(path)], directory / "run", replace(settings, calibrated=False, pairs=Pairing.OFF))
    return _levels_in(directory / "run", cutting.owners(records), settings.threshold)


def write_stretches(
    cutting: SubsequenceSampler, data: LabelledFiles, records: Records, directory: Path
) -> Path:
    """Write the stretches of *cutting* into *directory*, the same ones each time."""
    path = directory / _STRETCHES
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.writelines(cutting.stretches(data, records))
    except OSError as error:
        raise CannotWrite(str(directory), f"{_STRETCHES}: {error.strerror or error}") from error
    return path


def _levels_in(directory: Path, owners: NDArray[np.int64], threshold: float) -> dict[str, Level]:
    with closing(Store(directory)) as store:
        check_count(store, len(owners))
        return levels(store.blocks(), owners, threshold)


def check_count(store: Store, records: int) -> None:
    """
    See that *store* has as many records as were labelled: they are joined by their numbers.

    Raises:
        RunMismatchError: it has not
    """
    if store.count("contigs") != records:
        raise RunMismatchError(str(store.directory), ["the sequences have changed while they were read"])


def levels(blocks: Iterable[Block], owners: NDArray[np.int64], threshold: float) -> dict[str, Level]:
    """Give what *blocks* say of ORFs, fragments and contigs; *owners* has the record of each contig."""
    parts: dict[str, list[Level]] = {"ORF": [_nothing()], "fragment": [_nothing()], "contig": [_nothing()]}
    for block in blocks:
        for name, level in _of_block(block, threshold):
            parts[name].append(replace(level, owners=owners[level.owners]))
    return {name: _joined(those) for name, those in parts.items()}


def _of_block(block: Block, threshold: float) -> Iterator[tuple[str, Level]]:
    """Give the levels of a block; their owners are the numbers of contigs."""
    numbers, scores = block.contigs["number"], block.scores
    if len(scores):
        yield "ORF", Level(scores["virus"], scores["virus"] > scores["others"], scores["contig"])
        votes = vote(block)
        yield "fragment", Level(votes.highest, votes.are_viral, numbers[votes.rows])
        verdicts = label_contigs(block)
        some = verdicts.fragments_with_orf > 0
        means, are_viral = verdicts.mean_p_virus.astype(np.float32), verdicts.viral_fraction >= threshold
        yield "contig", Level(means[some], are_viral[some], numbers[some])


def _nothing() -> Level:
    return Level(np.empty(0, np.float32), np.empty(0, bool), np.empty(0, np.int64))


def _joined(parts: Sequence[Level]) -> Level:
    return Level(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.verdicts for part in parts]),
        np.concatenate([part.owners for part in parts]),
    )


def measured(place: Mapping[str, Level], records: Records, measuring: EvaluationOptions) -> Report:
    """Give the figures of each level, and of each group."""
    return {name: _measured(level, records, measuring) for name, level in place.items()}


def _measured(level: Level, records: Records, measuring: EvaluationOptions) -> Report:
    truth, clusters = records.are_viral[level.owners], records.clusters[level.owners]
    ranking = Ranking(level.scores, level.verdicts, truth)
    resampler = ClusterBootstrap(clusters, truth, measuring.resamples, measuring.seed)
    return {
        "rows": len(truth),
        "viral": int(truth.sum()),
        "clusters": len(np.unique(clusters)),
        "figures": plain(resampler.intervals(ranking)),
        "reliability": [each._asdict() for each in ranking.reliability()],
        "curves": ranking.curves(),
        "groups": list(_by_group(level, records, measuring)),
    }


def _by_group(level: Level, records: Records, measuring: EvaluationOptions) -> Iterator[Report]:
    """Give how many of each group are called what they are, and how they rank against the other class."""
    truth, groups = records.are_viral[level.owners], records.groups[level.owners]
    right = level.verdicts == truth
    for number, (is_viral, name) in enumerate(records.group_names):
        own = groups == number
        clusters, against = records.clusters[level.owners[own]], own | (truth != is_viral)
        resampler = ClusterBootstrap(clusters, truth[own], measuring.resamples, measuring.seed)
        area = auroc(level.scores[against], truth[against])
        yield {
            "group": name,
            "class": KINDS[is_viral],
            "rows": int(own.sum()),
            "clusters": len(np.unique(clusters)),
            "right": plain_interval(resampler.share(right[own])),
            "auroc": None if np.isnan(area) else round(area, 6),
        }


def figure_rows(at: Mapping[str, Report]) -> list[list[str]]:
    """Give the figures as a table for people, its header first."""
    rows = [["of", "level", "rows", "viral", "clusters", *_HEADS]]
    for place, of_levels in at.items():
        for level, found in of_levels.items():
            counts = (f"{found[name]:,}" for name in ("rows", "viral", "clusters"))
            rows.append([place, level, *counts, *(_shown(found["figures"][name]) for name in _SHOWN)])
    return rows


def group_rows(of_levels: Mapping[str, Report]) -> list[list[str]]:
    """Give the groups' figures as a table for people, its header first."""
    rows = [["group", "class", "level", "rows", "clusters", "right", "AUROC against the other class"]]
    for level, found in of_levels.items():
        for group in found["groups"]:
            area = "-" if group["auroc"] is None else f"{group['auroc']:.3f}"
            facts = (f"{group['rows']:,}", f"{group['clusters']:,}", _shown(group["right"]), area)
            rows.append([group["group"], group["class"], level, *facts])
    return rows


def _shown(interval: Mapping[str, float | None]) -> str:
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    if value is None:
        return "-"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f}-{high:.3f})"


def rendered(report: Report) -> str:
    """Give a report as a page for people."""
    model, data = report["model"], report["data"]
    records = sum(group["records"] for group in data["groups"])
    facts = (
        f"{plural(records, 'labelled record')} in {plural(data['clusters'], 'cluster')}; "
        f"fragments of {model['fragment_length']} bp; model {model['fingerprint']}. In parentheses: 95 % of "
        f"{report['settings']['resamples']:,} resamples of the clusters. What has no stop-free frame has no "
        "score, and is not counted."
    )
    parts = [paragraph(facts), paragraph(report["command"]), table(figure_rows(report["at"]))]
    for place, of_levels in report["at"].items():
        parts += [heading(place), *_charts(of_levels), table(group_rows(of_levels))]
    return page(f"{model['name']}, measured", parts)


def _charts(of_levels: Mapping[str, Report]) -> Iterator[str]:
    curves = {level: found["curves"] for level, found in of_levels.items()}
    roc = {level: of_level["roc"] for level, of_level in curves.items()}
    yield chart("ROC curve", ("false positive rate", "true positive rate"), roc, diagonal=True)
    precision = {level: of_level["precision_recall"] for level, of_level in curves.items()}
    yield chart("precision and recall", ("recall", "precision"), precision)
    reliable = {
        level: [(each["mean_score"], each["share"]) for each in found["reliability"]]
        for level, found in of_levels.items()
    }
    yield chart("reliability", ("mean P(virus)", "share that is viral"), reliable, diagonal=True)


def _write(path: Path, text: str) -> None:
    try:
        with atomic_write(path) as file:
            file.write(text.encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise CannotWrite(str(path.parent), f"{path.name}: {error.strerror or error}") from error


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """Give what a report says of a model."""
    return {"name": bundle.name, "fingerprint": bundle.fingerprint, "fragment_length": bundle.length}
