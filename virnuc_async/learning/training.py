"""
Training of a classifier on labelled sequences, from files to a bundle with a model card.

The encoders do not change: the pipeline of predictions computes their embeddings once. The data, the settings
and the seed determine every byte of the classifier.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from virnuc_async._version import __version__
from virnuc_async.errors import (
    RunMismatchError,
    SharedSequences,
    UsageError,
)
from virnuc_async.fileio import (
    atomic_directory,
    link_or_copy,
    require_empty_directory,
    writing_to,
)
from virnuc_async.log import ThrottledProgress, logger
from virnuc_async.models.bundle import ENCODERS, Bundle, find, write_manifest
from virnuc_async.models.checkpoints import read_values
from virnuc_async.models.contig_score import NO_PENALTY
from virnuc_async.networks.shapes import ClassifierShape, Shapes
from virnuc_async.runs.blocks import Block
from virnuc_async.runs.output_directory import STORE, require_free_names
from virnuc_async.runs.reader import RunReader
from virnuc_async.runs.store import Store
from virnuc_async.settings import Pairing, Settings
from virnuc_async.text import plural

from .dataset import (
    EXCLUDED,
    SPLIT_NAMES,
    TEST,
    TRAINING,
    VALIDATION,
    LabelledFiles,
    Records,
    Splits,
    SubsequenceSampler,
    check_splits,
    read_records,
    split_fragments,
    split_records,
)
from .evaluation import (
    PipelineRunner,
    bundle_summary,
    check_record_count,
    clear_leftovers,
    collect_levels,
    compute_metrics,
    write_subsequences,
)
from .leakage import K, shared_kmer_fraction
from .options import EvaluationOptions, LeakPolicy, Recipe, Split
from .reports import model_card
from .trainer import Examples, fit, predict_probabilities

REPORT, CARD = "training.json", "README.md"
_RUN, _SUBSEQUENCES, _EPOCHS = "features", "stretches", "epochs.pt"  # in the work directory


@dataclass(frozen=True, slots=True)
class Task:
    """The inputs, the outputs and the options of one training."""

    data: LabelledFiles
    output: Path  # the directory of the new bundle
    work: Path  # the features and the checkpoint, from which an interrupted training resumes
    settings: Settings  # of the pipeline; its model provides the encoders
    split: Split = Split()
    recipe: Recipe = Recipe()
    augment: bool = False  # train on random subsequences of both strands, not on the fragments of records
    evaluation: EvaluationOptions = EvaluationOptions()
    command: str = ""

    @property
    def sampler(self) -> SubsequenceSampler | None:
        """What cuts the subsequences, if *augment* is set."""
        length = find(self.settings.model, self.settings.cache_dir).length
        return SubsequenceSampler(length, self.recipe.seed) if self.augment else None


def train(task: Task, run_pipeline: PipelineRunner) -> tuple[Bundle, dict[str, Any]]:
    """
    Train a classifier on the encoders of a bundle, write a new bundle, and return it with its report.

    Raises:
        InputError, LabelError, NoRecords: the labelled sequences cannot be used
        UsageError: the output directory is not a valid name of a model
        ForeignDirectoryError: the output exists, or the work directory contains other files
        TrainingDiverged: the loss is NaN or infinite
        CannotWrite: the disk is full, or a directory cannot be written
        the errors of *run_pipeline*
    """
    _check_directories(task)
    _check_name(task.output.absolute().name)
    clear_leftovers(task.output.absolute().parent)
    clear_leftovers(task.work)
    base, records = find(task.settings.model, task.settings.cache_dir), read_records(task.data)
    record_splits, leakage = _split(task, records)
    record_index = _compute_features(task, records, run_pipeline)
    with closing(Store(task.work / _RUN)) as store:
        check_record_count(store.reader, len(record_index))
        examples = read_examples(store.reader, records, record_index)
        splits = _orf_splits(task.split, examples, record_splits, task.recipe.seed)
        check_splits(examples.are_viral, splits, "ORFs")
        fitted = fit(examples, splits, task.recipe, task.work / _EPOCHS)
        probabilities = predict_probabilities(examples, np.flatnonzero(splits == TEST), fitted.weights)
        test_blocks = _with_scores(store.reader, probabilities, splits == TEST)
        levels = collect_levels(test_blocks, record_index, task.settings.threshold, NO_PENALTY)
    report = {
        "version": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "command": task.command,
        "base": bundle_summary(base),
        "data": _data_summary(task, records),
        "split": {**asdict(task.split), "sides": _split_summary(examples, splits), "leakage": leakage},
        "recipe": {**asdict(task.recipe), "augment": task.augment},
        "history": fitted.history,
        "best_epoch": fitted.best_epoch,
        "test": compute_metrics(levels, records, task.evaluation),
    }
    bundle = write_bundle(base, fitted.weights, task, report)
    logger.info("{} is in {}", bundle.name, bundle.directory)
    return bundle, report


def _check_directories(task: Task) -> None:
    with writing_to(task.output):
        require_empty_directory(task.output)
    with writing_to(task.work):
        # The run below it checks its own directory.
        if not (task.work / _RUN / STORE).is_file():
            require_free_names(task.work, lambda name: name == _EPOCHS, "training", "Choose another --work")


def _check_name(name: str) -> None:
    # Checked first: training takes long, and the bundle could not be written at its end.
    if not name.isprintable() or not name:
        raise UsageError(f"invalid model name {name!r}: the model is named after the output directory")


def _split(task: Task, records: Records) -> tuple[Splits | None, dict[str, Any] | None]:
    """Return the split of each record and the result of the leakage check; None if fragments are split."""
    options = task.split
    if options.by_fragment:
        logger.warning(
            "fragments are split at random, as published: fragments of one sequence are in several splits, "
            "so the results are optimistic. They do not show how the model performs on new sequences"
        )
        return None, None
    splits = split_records(records, options.validation, options.test, task.recipe.seed)
    logger.info("searching for {}-mers that held-out records share with training records", K)
    held_out = int((splits != TRAINING).sum())
    is_leaking = _shared_fractions(task.data, splits) > options.leakage_share
    leaking = int(is_leaking.sum())
    if leaking and options.leakage is LeakPolicy.REFUSE:
        raise SharedSequences(leaking, held_out, K)
    if options.leakage is LeakPolicy.DROP:
        splits[is_leaking] = EXCLUDED
    _log_leakage(options.leakage, leaking, held_out)
    return splits, {
        "length": K,
        "held_out_records": held_out,
        "sharing": leaking,
        "done": str(options.leakage),
    }


def _shared_fractions(data: LabelledFiles, splits: Splits) -> NDArray[np.float64]:
    """Return the fraction of each held-out record's k-mers that occur in the data it must be new to."""
    progress = ThrottledProgress("{} bases searched so far")

    def read() -> Iterator[bytes]:
        for contig in data.contigs():
            progress.advance(len(contig.bases))
            yield contig.bases

    # Validation data decide when training stops, so test records must be new to them too.
    seen = (splits == TRAINING) | (splits == VALIDATION)
    of_test = shared_kmer_fraction(read, splits == TEST, seen)
    return of_test + shared_kmer_fraction(read, splits == VALIDATION, splits == TRAINING)


def _log_leakage(policy: LeakPolicy, leaking: int, held_out: int) -> None:
    what = f"{leaking:,} of {plural(held_out, 'held-out record')} share {K}-mers with training records"
    if leaking and policy is LeakPolicy.KEEP:
        logger.warning("{} and are kept: the results are optimistic", what)
    else:
        logger.info("{}{}", what, " and are left out" if leaking else "")


def _compute_features(task: Task, records: Records, run_pipeline: PipelineRunner) -> NDArray[np.int64]:
    """Compute the embeddings of all ORFs; return the record index of each sequence that was read."""
    # Options that affect only the verdicts are reset, so that changing them does not start another run.
    settings = replace(
        task.settings,
        embeddings=True,
        calibrated=False,
        pairs=Pairing.OFF,
        allow_duplicates=True,
        threshold=Settings().threshold,
    )
    sampler = task.sampler
    if sampler is None:
        run_pipeline(task.data.paths, task.work / _RUN, settings)
        return np.arange(len(records))
    path = write_subsequences(sampler, task.data, records, task.work / _SUBSEQUENCES)
    run_pipeline([str(path)], task.work / _RUN, settings)
    return sampler.record_index(records)


def read_examples(reader: RunReader, records: Records, record_index: NDArray[np.int64]) -> Examples:
    """
    Return the features of a finished run with the labels of their records; *record_index* is of each contig.

    Raises:
        RunMismatchError: the numbers of features and scores differ
    """
    path = reader.directory.path / "merged_features.pt"
    features = read_values(path)["data"].numpy()
    contigs, fragments = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for block in reader.blocks():
        contigs.append(block.scores["contig"])
        fragments.append(block.scores["fragment"].astype(np.int64))
    contig, fragment = np.concatenate(contigs), np.concatenate(fragments)
    if len(features) != len(contig):
        raise RunMismatchError(str(reader.directory), [f"{path.name} is from another run"])
    is_new = np.append(True, (np.diff(contig) != 0) | (np.diff(fragment) != 0))
    own = record_index[contig]
    fragment_index = np.cumsum(is_new[: len(own)]) - 1
    return Examples(features, own, fragment_index, records.are_viral[own], records.groups[own])


def _orf_splits(split: Split, examples: Examples, record_splits: Splits | None, seed: int) -> Splits:
    if record_splits is not None:
        return record_splits[examples.record_index]
    count = int(examples.fragment_index.max(initial=-1)) + 1
    return split_fragments(count, split.validation, split.test, seed)[examples.fragment_index]


def _with_scores(
    reader: RunReader, probabilities: NDArray[np.float32], selected: NDArray[np.bool_]
) -> Iterator[Block]:
    """Yield the blocks of *reader* with *probabilities* as scores, and only the *selected* ORFs."""
    first = 0
    for block in reader.blocks():
        own = slice(first, first + len(block.scores))
        scores = block.scores.copy()
        scores["others"], scores["virus"] = probabilities[own].T
        yield replace(block, scores=scores[selected[own]])
        first = own.stop


def _data_summary(task: Task, records: Records) -> dict[str, Any]:
    data = task.data
    return {
        "viral": [Path(path).name for path in data.viral],
        "nonviral": [Path(path).name for path in data.nonviral],
        "clustered_by": data.clusters.name if data.clusters else "genome= in the header, else the record",
        "grouped_by": data.groups.name if data.groups else "group= in the header, else the class",
        "clusters": len(records.cluster_names),
        "groups": records.group_summaries(),
    }


def _split_summary(examples: Examples, splits: Splits) -> dict[str, dict[str, int]]:
    """Return the number of records, fragments and ORFs in each split."""
    summary = {}
    for split, name in enumerate(SPLIT_NAMES):
        own = splits == split
        summary[name] = {
            "records": len(np.unique(examples.record_index[own])),
            "fragments": len(np.unique(examples.fragment_index[own])),
            "orfs": int(own.sum()),
            "viral_orfs": int(examples.are_viral[own].sum()),
        }
    return summary


def write_bundle(base: Bundle, weights: Mapping[str, Tensor], task: Task, report: dict[str, Any]) -> Bundle:
    """
    Write the new bundle next to its place, and move it there when it is complete.

    Raises:
        CannotWrite: the disk is full, or the directory cannot be written
    """
    output = task.output.absolute()
    with writing_to(output), atomic_directory(output) as directory:
        for name in ENCODERS:
            link_or_copy(base.directory / name, directory / name)
        (directory / "classifier.safetensors").write_bytes(save(dict(weights)))
        (directory / REPORT).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
        (directory / CARD).write_text(model_card(output.name, report), "utf-8", "surrogateescape")
        _write_manifest(directory, base, task)
    return find(output)


def _write_manifest(directory: Path, base: Bundle, task: Task) -> Bundle:
    inputs = base.shapes.classifier.inputs
    shapes = Shapes(base.shapes.protein, base.shapes.nucleotide, ClassifierShape(inputs, task.recipe.hidden))
    origin = {**base.origin, "classifier": f"trained by virnuc-async {__version__}, see {CARD}"}
    notices = [f"the encoders are those of {base.name}: {base.notice}"] if base.notice else []
    if task.split.by_fragment:
        notices.append(f"the results in {CARD} are optimistic: they are from a random split of fragments.")
    more = {"licence": base.licence, "notice": " ".join(notices)}
    return write_manifest(directory, task.output.absolute().name, base.length, shapes, origin, **more)
