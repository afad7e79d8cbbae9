"""
Evaluation and calibration of a model on labelled sequences.

The pipeline of predictions scores everything, in runs below the output directory, so that an interrupted
evaluation resumes.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnuc_async._version import __version__
from virnuc_async.errors import RunMismatchError, UsageError
from virnuc_async.fileio import atomic_write, remove_leftovers, writing_to
from virnuc_async.log import logger
from virnuc_async.models.bundle import Bundle, find, is_shipped
from virnuc_async.models.calibration import CALIBRATION, Method, sigmoid
from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.outputs.summary import Summary
from virnuc_async.outputs.verdicts import label_contigs, vote
from virnuc_async.runs.blocks import Block
from virnuc_async.runs.output_directory import STORE, require_free_names
from virnuc_async.runs.reader import RunReader
from virnuc_async.runs.store import Store
from virnuc_async.settings import Pairing, Settings, VerdictBy

from .dataset import KINDS, LabelledFiles, Records, SubsequenceSampler, check_classes, read_records
from .fit_calibration import LabelledContigs, calibration_text
from .metrics import ClusterBootstrap, Ranking, auroc, interval_to_json, to_json
from .options import EvaluationOptions
from .reports import Report, evaluation_page

# Runs the pipeline on files in a directory, or resumes the run that is there.
PipelineRunner = Callable[[Sequence[str], Path, Settings], Summary]

JSON, HTML, RECORDS = "evaluation.json", "evaluation.html", "records"
_LENGTH, _SUBSEQUENCES = "length-", "stretches.fa"
CONTIG, CONTIG_LOG_ODDS = "contig", "contig by log_odds"
LEVELS = ("ORF", "fragment", CONTIG, CONTIG_LOG_ODDS)


@dataclass(frozen=True, slots=True)
class Level:
    """The scored ORFs, fragments or contigs, in columns."""

    scores: NDArray[np.floating]  # P(virus): highest of a fragment's ORFs, mean of a contig's; or log odds
    probabilities: NDArray[np.floating]  # what the scores are worth
    verdicts: NDArray[np.bool_]
    record_index: NDArray[np.int64]


def evaluate(
    data: LabelledFiles,
    out_dir: Path,
    settings: Settings,
    options: EvaluationOptions,
    run_pipeline: PipelineRunner,
    command: str = "",
) -> Report:
    """
    Evaluate ``settings.model`` on *data*, and write evaluation.json and evaluation.html into *out_dir*.

    Raises:
        InputError, LabelError, NoRecords: the labelled sequences cannot be used
        ForeignDirectoryError: *out_dir* contains other files
        CannotWrite: *out_dir* cannot be written
        the errors of *run_pipeline*
    """
    _check_directory(out_dir)
    clear_leftovers(out_dir.absolute().parent)
    bundle, records = find(settings.model, settings.cache_dir), read_records(data)
    scorer = _Scorer(data, records, out_dir, settings, run_pipeline, bundle.penalty)
    datasets = {RECORDS: scorer.score_records()}
    for length in options.lengths:
        sampler = SubsequenceSampler(length, options.seed, options.subsequences)
        if _has_both_classes(sampler, records):
            datasets[f"{length} bp"] = scorer.score_subsequences(sampler)
    report = {
        "version": __version__,
        "command": command,
        "model": bundle_summary(bundle),
        "data": {"clusters": len(records.cluster_names), "groups": records.group_summaries()},
        "settings": {**asdict(options), "threshold": settings.threshold},
        "at": {name: compute_metrics(levels, records, options) for name, levels in datasets.items()},
    }
    _write(out_dir / JSON, json.dumps(report, indent=2) + "\n")
    _write(out_dir / HTML, evaluation_page(report))
    logger.info("results written to {} and {}", out_dir / JSON, out_dir / HTML)
    return report


def calibrate(
    data: LabelledFiles,
    out_dir: Path,
    settings: Settings,
    method: Method,
    fpr: float,
    run_pipeline: PipelineRunner,
) -> Report:
    """
    Fit maps from contigs' scores to the truth of *data*, and write calibration.json into the bundle.

    Raises:
        UsageError: *fpr* is not between 0 and 1, or the model is part of the package
        InputError, LabelError, NoRecords: the labelled sequences cannot be used
        ForeignDirectoryError: *out_dir* contains other files
        CannotWrite: the bundle cannot be written
        the errors of *run_pipeline*
    """
    bundle = find(settings.model, settings.cache_dir)
    if not 0 < fpr < 1:
        raise UsageError(f"the false positive rate is a number between 0 and 1, not {fpr}")
    if is_shipped(bundle):
        raise UsageError(
            f"{bundle.name} comes with the program: copy {bundle.directory} and calibrate the copy"
        )
    _check_directory(out_dir)
    clear_leftovers(out_dir.absolute().parent)
    records = read_records(data)
    levels = _Scorer(data, records, out_dir, settings, run_pipeline, bundle.penalty).score_records()
    contigs = _labelled_contigs(levels, records, bundle.penalty)
    check_classes(contigs.truth, "the contigs that have a score")
    calibration = contigs.fit(bundle.fingerprint, method, fpr)
    report = calibration.as_dict(version=__version__, **contigs.results(calibration))
    if report["nonviral"] * fpr < 1:
        logger.warning(
            "{:,} nonviral contigs are too few to estimate a false positive rate of {:g}",
            report["nonviral"],
            fpr,
        )
    _write(bundle.directory / CALIBRATION, calibration_text(report))
    return report


def _labelled_contigs(levels: Mapping[str, Level], records: Records, penalty: float) -> LabelledContigs:
    index = levels[CONTIG].record_index
    means, log_odds = levels[CONTIG].scores.astype(np.float32), levels[CONTIG_LOG_ODDS].scores
    return LabelledContigs(
        means, log_odds.astype(np.float64), records.are_viral[index], records.clusters[index], penalty
    )


def _check_directory(out_dir: Path) -> None:
    """Check that the results in *out_dir* are of an evaluation; raise ForeignDirectoryError if not."""
    with writing_to(out_dir):
        # The runs below it check their own directories.
        if not (out_dir / RECORDS / STORE).is_file():
            require_free_names(out_dir, lambda name: name in (JSON, HTML), "evaluation")


def clear_leftovers(directory: Path) -> None:
    """Remove what killed processes left half made in *directory*; log what is not known to be left behind."""
    for line in remove_leftovers(directory):
        logger.warning("{}", line)


def _has_both_classes(sampler: SubsequenceSampler, records: Records) -> bool:
    kinds = set(records.are_viral[sampler.record_index(records)].tolist())
    if len(kinds) < len(KINDS):
        logger.warning(
            "skipping subsequences of {:,} bases: both classes need records of that length", sampler.length
        )
    return len(kinds) == len(KINDS)


@dataclass(frozen=True, slots=True)
class _Scorer:
    """Scores labelled sequences by runs of the pipeline below *out_dir*."""

    data: LabelledFiles
    records: Records
    out_dir: Path
    settings: Settings
    run_pipeline: PipelineRunner
    penalty: float  # of log_odds, for each fragment

    def score_records(self) -> dict[str, Level]:
        return self._score(self.data.paths, self.out_dir / RECORDS, np.arange(len(self.records)))

    def score_subsequences(self, sampler: SubsequenceSampler) -> dict[str, Level]:
        directory = self.out_dir / f"{_LENGTH}{sampler.length}"
        path = write_subsequences(sampler, self.data, self.records, directory)
        return self._score([str(path)], directory / "run", sampler.record_index(self.records))

    def _score(
        self, paths: Sequence[str], directory: Path, record_index: NDArray[np.int64]
    ) -> dict[str, Level]:
        settings = replace(self.settings, calibrated=False, pairs=Pairing.OFF, allow_duplicates=True)
        self.run_pipeline(paths, directory, settings)
        with closing(Store(directory)) as store:
            check_record_count(store.reader, len(record_index))
            return collect_levels(store.reader.blocks(), record_index, self.settings.threshold, self.penalty)


def write_subsequences(
    sampler: SubsequenceSampler, data: LabelledFiles, records: Records, directory: Path
) -> Path:
    """Write the subsequences of *sampler* into *directory*; raise CannotWrite if that fails."""
    path = directory / _SUBSEQUENCES
    with writing_to(directory, _SUBSEQUENCES):
        directory.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.writelines(sampler.subsequences(data, records))
    return path


def check_record_count(reader: RunReader, records: int) -> None:
    """Check that *reader* has as many records as were labelled; raise RunMismatchError if not."""
    # Scores and labels are joined by the numbers of the records.
    if reader.totals().contigs != records:
        raise RunMismatchError(str(reader.directory), ["the sequences have changed while they were read"])


def collect_levels(
    blocks: Iterable[Block], record_index: NDArray[np.int64], threshold: float, penalty: float
) -> dict[str, Level]:
    """
    Return the scored ORFs, fragments and contigs of *blocks*; *record_index* is of each contig.

    Verdicts on contigs are at *threshold*, of the fraction of viral fragments and of the probability that
    their log odds are, which lose *penalty* for each fragment.
    """
    parts: dict[str, list[Level]] = {name: [_empty_level()] for name in LEVELS}
    for block in blocks:
        if len(block.scores):
            for name, level in _block_levels(block, threshold, penalty):
                parts[name].append(replace(level, record_index=record_index[level.record_index]))
    return {name: _concatenate(levels) for name, levels in parts.items()}


def _block_levels(block: Block, threshold: float, penalty: float) -> Iterator[tuple[str, Level]]:
    """Yield the name of each level, and its rows in *block* with the number of each row's contig."""
    numbers, scores = block.contigs["number"], block.scores
    are_viral = scores["virus"] > scores["others"]
    yield "ORF", Level(scores["virus"], scores["virus"], are_viral, scores["contig"])
    votes = vote(block)
    yield "fragment", Level(votes.highest, votes.highest, votes.are_viral, numbers[votes.rows])
    verdicts = label_contigs(block, penalty)
    scored = verdicts.fragments_with_orf > 0
    means, log_odds = verdicts.mean_p_virus.astype(np.float32)[scored], verdicts.log_odds[scored]
    rules = (VerdictRule.at_probability(by, threshold) for by in (VerdictBy.FRACTION, VerdictBy.LOG_ODDS))
    by_fraction, by_log_odds = (verdicts.are_viral(rule)[scored] for rule in rules)
    yield CONTIG, Level(means, means, by_fraction, numbers[scored])
    yield CONTIG_LOG_ODDS, Level(log_odds, sigmoid(log_odds), by_log_odds, numbers[scored])


def _empty_level() -> Level:
    return Level(np.empty(0, np.float32), np.empty(0, np.float32), np.empty(0, bool), np.empty(0, np.int64))


def _concatenate(levels: Sequence[Level]) -> Level:
    columns = ([getattr(level, column.name) for level in levels] for column in fields(Level))
    return Level(*map(np.concatenate, columns))


def compute_metrics(levels: Mapping[str, Level], records: Records, options: EvaluationOptions) -> Report:
    """Return the metrics, curves and results of groups for each level."""
    return {name: _level_metrics(level, records, options) for name, level in levels.items()}


def _level_metrics(level: Level, records: Records, options: EvaluationOptions) -> Report:
    truth, clusters = records.are_viral[level.record_index], records.clusters[level.record_index]
    ranking = Ranking(level.scores, level.verdicts, truth, level.probabilities)
    bootstrap = ClusterBootstrap(clusters, truth, options.resamples, options.seed)
    return {
        "rows": len(truth),
        "viral": int(truth.sum()),
        "clusters": len(np.unique(clusters)),
        "figures": to_json(bootstrap.intervals(ranking)),
        "reliability": [each._asdict() for each in ranking.reliability()],
        "curves": ranking.curves(),
        "groups": list(_group_metrics(level, records, options)),
    }


def _group_metrics(level: Level, records: Records, options: EvaluationOptions) -> Iterator[Report]:
    """Yield the fraction of correct verdicts of each group, and its AUROC against the other class."""
    truth, groups = records.are_viral[level.record_index], records.groups[level.record_index]
    is_correct = level.verdicts == truth
    for number, (is_viral, name) in enumerate(records.group_names):
        own = groups == number
        with_other_class = own | (truth != is_viral)
        clusters = records.clusters[level.record_index[own]]
        bootstrap = ClusterBootstrap(clusters, truth[own], options.resamples, options.seed)
        area = auroc(level.scores[with_other_class], truth[with_other_class])
        yield {
            "group": name,
            "class": KINDS[is_viral],
            "rows": int(own.sum()),
            "clusters": len(np.unique(clusters)),
            "right": interval_to_json(bootstrap.fraction(is_correct[own])),
            "auroc": None if np.isnan(area) else round(area, 6),
        }


def _write(path: Path, text: str) -> None:
    with writing_to(path.parent, path.name), atomic_write(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def bundle_summary(bundle: Bundle) -> dict[str, Any]:
    """Return what reports contain about a model."""
    return {"name": bundle.name, "fingerprint": bundle.fingerprint, "fragment_length": bundle.length}
