"""
LabelledFiles sequences become a classifier, and the classifier a bundle that says what it is worth.

The encoders stay as they are: their embeddings are computed once, by the engine that predicts, and are
mapped from the disk while the classifier learns. Data, settings and seed decide every byte of it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from virnuc_async._version import __version__
from virnuc_async.errors import (
    BadCheckpoint,
    CannotWrite,
    ForeignDirectoryError,
    RunMismatchError,
    SharedSequences,
    TrainingDiverged,
    UsageError,
)
from virnuc_async.fileio import atomic_directory, atomic_write, link_or_copy
from virnuc_async.log import ThrottledProgress, logger
from virnuc_async.models.bundle import ENCODERS, Bundle, Shapes, find, write_manifest
from virnuc_async.models.checkpoints import read_values
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.shapes import ClassifierShape
from virnuc_async.runs.store import Block, Store
from virnuc_async.settings import (
    Balance,
    EvaluationOptions,
    LeakPolicy,
    Optimizer,
    Pairing,
    Recipe,
    Settings,
    Split,
)
from virnuc_async.text import plural

from .dataset import (
    LEFT_OUT,
    SIDES,
    TEST,
    TRAINING,
    VALIDATION,
    LabelledFiles,
    Records,
    Sides,
    SubsequenceSampler,
    check_sides,
    read_records,
    split_fragments,
    split_records,
)
from .evaluation import (
    Engine,
    Level,
    bundle_facts,
    check_count,
    levels,
    measured,
    write_stretches,
)
from .leakage import K, shared_kmer_fraction
from .reports import card

REPORT, CARD = "training.json", "README.md"
_RUN, _STRETCHES, _EPOCHS = "features", "stretches", "epochs.pt"  # what is in a work directory

_Weights = dict[str, Tensor]
_History = list[dict[str, float]]  # an epoch each


@dataclass(frozen=True, slots=True)
class Task:
    """All that a training is asked to do."""

    data: LabelledFiles
    output: Path  # the new bundle's directory
    work: Path  # what is resumed: features and epochs
    settings: Settings  # of the engine; its model has the encoders
    split: Split = Split()
    recipe: Recipe = Recipe()
    stretches: bool = False  # learn from stretches at random places of both strands, not from whole records
    measuring: EvaluationOptions = EvaluationOptions()
    command: str = ""

    @property
    def cutting(self) -> SubsequenceSampler | None:
        """How records are cut before they are learnt from."""
        length = find(self.settings.model, self.settings.cache_dir).length
        return SubsequenceSampler(length, self.recipe.seed) if self.stretches else None


@dataclass(frozen=True, slots=True)
class Examples:
    """Every scored ORF of the labelled sequences, in columns."""

    features: NDArray[np.float32]  # (ORFs, C), mapped from the disk
    owners: NDArray[np.int64]  # the record of each
    fragments: NDArray[np.int64]  # which of all fragments, from 0
    are_viral: NDArray[np.bool_]
    groups: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A classifier's weights at its best epoch, and how it came there."""

    weights: _Weights
    history: _History

    @property
    def best(self) -> int:
        """The number of the epoch, from 1, that the weights are of."""
        losses = [epoch["validation_loss"] for epoch in self.history]
        return 1 + losses.index(min(losses))


def train(task: Task, engine: Engine) -> tuple[Bundle, dict[str, Any]]:
    """
    Train a classifier on the encoders of a bundle, and write a new bundle; give it with its figures.

    Raises:
        InputError, LabelError, NoRecords: the labelled sequences, or what was learnt of them
        UsageError: the output's name
        ForeignDirectoryError: the output exists, or the work directory holds something else
        what the engine raises
    """
    _check_new(task)
    _check_name(task.output.absolute().name)
    base, records = find(task.settings.model, task.settings.cache_dir), read_records(task.data)
    of_records, leaks = _split(task, records)
    owners = _run_engine(task, records, engine)
    with closing(Store(task.work / _RUN)) as store:
        check_count(store, len(owners))
        examples = read_examples(store, records, owners)
        sides = _sides(task.split, examples, of_records, task.recipe.seed)
        check_sides(examples.are_viral, sides, "ORFs")
        fitted = fit(examples, sides, task.recipe, task.work / _EPOCHS)
        tested = _test(store, examples, sides, fitted, task.settings.threshold, owners)
    report = {
        "version": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "command": task.command,
        "base": bundle_facts(base),
        "data": _data_facts(task, records),
        "split": {**asdict(task.split), "sides": _side_facts(examples, sides), "leaks": leaks},
        "recipe": {**asdict(task.recipe), "stretches": task.stretches},
        "history": fitted.history,
        "best_epoch": fitted.best,
        "test": measured(tested, records, task.measuring),
    }
    bundle = write_bundle(base, fitted.weights, task, report)
    logger.info("{} is in {}", bundle.name, bundle.directory)
    return bundle, report


def _check_new(task: Task) -> None:
    output, work = task.output, task.work
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ForeignDirectoryError(
            str(output), "exists and is not empty. Choose a new directory for the bundle"
        )
    ours = (_RUN, _STRETCHES, _EPOCHS)
    names = sorted(path.name for path in work.iterdir()) if work.is_dir() else []
    if strangers := [name for name in names if name.lstrip(".").removesuffix(".partial") not in ours]:
        raise ForeignDirectoryError(
            str(work), f"holds {strangers[0]!r} and no training. Choose another --work"
        )


def _check_name(name: str) -> None:
    # The bundle is called so, and an hour later is too late to hear that it cannot be.
    if not name.isprintable() or not name:
        raise UsageError(f"a model cannot be called {name!r}: the output directory is its name")


def _split(task: Task, records: Records) -> tuple[Sides | None, dict[str, Any] | None]:
    """Put records on sides, and see what they share across them; None where fragments are split."""
    split = task.split
    if split.by_fragment:
        logger.warning(
            "fragments are split at random, as published: neighbours of one sequence stand on both sides, so "
            "the figures are optimistic. They say nothing of sequences that are new to the model"
        )
        return None, None
    sides = split_records(records, split.validation, split.test, task.recipe.seed)
    logger.info("looking for {}-mers that held-out records share with training ones", K)
    held = np.flatnonzero(sides != TRAINING)
    shares = _shared_across(task.data, sides)
    leaking = shares > split.leak_share
    found = int(leaking.sum())
    if found and split.leaks is LeakPolicy.REFUSE:
        raise SharedSequences(found, len(held), K)
    if split.leaks is LeakPolicy.DROP:
        sides[leaking] = LEFT_OUT
    _tell_leaks(split.leaks, found, len(held))
    return sides, {"length": K, "held_out_records": len(held), "sharing": found, "done": str(split.leaks)}


def _shared_across(data: LabelledFiles, sides: Sides) -> NDArray[np.float64]:
    """Give the share of each held-out record's k-mers that are also on a side it is to be new to."""

    pace = ThrottledProgress("{} bases looked at so far")

    def read() -> Iterator[bytes]:
        for contig in data.contigs():
            pace.advance(len(contig.bases))
            yield contig.bases

    # What says when to stop is part of training, as far as the test is concerned.
    of_test = shared_kmer_fraction(read, sides == TEST, (sides == TRAINING) | (sides == VALIDATION))
    return of_test + shared_kmer_fraction(read, sides == VALIDATION, sides == TRAINING)


def _tell_leaks(leaks: LeakPolicy, found: int, held: int) -> None:
    what = f"{found:,} of {plural(held, 'held-out record')} share {K}-mers with training ones"
    if found and leaks is LeakPolicy.KEEP:
        logger.warning("{}, and stay: the figures are optimistic", what)
    else:
        logger.info("{}{}", what, " and are left out" if found else "")


def _run_engine(task: Task, records: Records, engine: Engine) -> NDArray[np.int64]:
    """Have all ORFs embedded; give the record of each sequence that the engine read."""
    # What judges the scores of the old classifier decides nothing here, and features are not of it.
    threshold = Settings().threshold
    settings = replace(
        task.settings, embeddings=True, calibrated=False, pairs=Pairing.OFF, threshold=threshold
    )
    cutting = task.cutting
    if cutting is None:
        engine(task.data.paths, task.work / _RUN, settings)
        return np.arange(len(records))
    path = write_stretches(cutting, task.data, records, task.work / _STRETCHES)
    engine([str(path)], task.work / _RUN, settings)
    return cutting.owners(records)


def read_examples(store: Store, records: Records, owners: NDArray[np.int64]) -> Examples:
    """
    Join the features of a finished run to what is known of the records, by their numbers.

    Raises:
        RunMismatchError: there are not as many features as scores
    """
    path = store.directory / "merged_features.pt"
    features = read_values(path)["data"].numpy()
    contigs, fragments = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for block in store.blocks():
        contigs.append(block.scores["contig"])
        fragments.append(block.scores["fragment"].astype(np.int64))
    of_contigs, of_fragments = np.concatenate(contigs), np.concatenate(fragments)
    if len(features) != len(of_contigs):
        raise RunMismatchError(str(store.directory), [f"{path.name} is not of this run"])
    is_new = np.append(True, (np.diff(of_contigs) != 0) | (np.diff(of_fragments) != 0))
    own = owners[of_contigs]
    numbers = np.cumsum(is_new[: len(own)]) - 1
    return Examples(features, own, numbers, records.are_viral[own], records.groups[own])


def _sides(split: Split, examples: Examples, of_records: Sides | None, seed: int) -> Sides:
    """Give the side of each ORF."""
    if of_records is not None:
        return of_records[examples.owners]
    count = int(examples.fragments.max(initial=-1)) + 1
    return split_fragments(count, split.validation, split.test, seed)[examples.fragments]


def balanced(
    balance: Balance, are_viral: NDArray[np.bool_], groups: NDArray[np.int64]
) -> NDArray[np.float32]:
    """
    Give how much each ORF counts, 1 in the mean.

    By class, both count for half, however many they are. By group too, and within a class the groups
    share by the square root of their ORFs: a large one does not decide, and a tiny one is not learnt by
    heart.
    """
    keys = {
        Balance.NONE: np.zeros(len(groups), np.int64),
        Balance.CLASS: are_viral.astype(np.int64),
        Balance.GROUP: groups,
    }[balance]
    names, places, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    of_viral = np.zeros(len(names), bool)
    of_viral[places] = are_viral
    shares = np.sqrt(sizes)
    if balance is not Balance.NONE:
        for kind in (True, False):
            shares[of_viral == kind] /= 2 * shares[of_viral == kind].sum()
    else:
        shares = np.ones(1)
    weights: NDArray[np.float32] = (len(groups) * shares / sizes)[places].astype(np.float32)
    return weights


def fit(examples: Examples, sides: Sides, recipe: Recipe, checkpoint: Path) -> Fitted:
    """
    Train until the validation loss stops to fall; go on after the epochs in *checkpoint*, if it is of these.

    Torch's random numbers are those of *recipe*'s seed meanwhile, and are left as they were.
    """
    with _own_random_numbers():
        learner = _Learner(examples, sides, recipe)
        learner.resume(checkpoint)
        while not learner.is_done:
            learner.learn_epoch()
            learner.keep(checkpoint)
            logger.info("{}", learner.told())
    return Fitted(learner.best, learner.history)


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


class _Learner:
    """A classifier under way."""

    def __init__(self, examples: Examples, sides: Sides, recipe: Recipe) -> None:
        self.examples, self.recipe = examples, recipe
        self.rows = {side: np.flatnonzero(sides == side) for side in (TRAINING, VALIDATION)}
        self.weights = np.zeros(len(sides), np.float32)
        for rows in self.rows.values():
            own = examples.are_viral[rows], examples.groups[rows]
            self.weights[rows] = balanced(recipe.balance, *own)
        self.key = self._key(sides)
        self.pace = ThrottledProgress("{} ORFs learnt from so far")
        self.history: _History = []
        self.best: _Weights = {}
        self._seed(0)
        self.network = Classifier(ClassifierShape(examples.features.shape[1], recipe.hidden), recipe.dropout)
        self.optimizer = _optimizer(self.network, recipe)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, recipe.step, recipe.decay)

    def __repr__(self) -> str:
        return f"<_Learner [{len(self.history)} of {self.recipe.epochs} epochs]>"

    @property
    def is_done(self) -> bool:
        """Whether more epochs would change nothing, or are not wanted."""
        return self._is_over(self.history)

    def told(self) -> str:
        """Say how the last epoch went."""
        last = self.history[-1]
        return (
            f"epoch {len(self.history)}: training loss {last['training_loss']:.4f}, "
            f"validation loss {last['validation_loss']:.4f}"
        )

    def learn_epoch(self) -> None:
        """Go through all training ORFs once, in a new order."""
        # From the epoch's number, not from what was drawn before: a resumed training draws the same.
        self._seed(len(self.history) + 1)
        rows = self.rows[TRAINING]
        order = rows[torch.randperm(len(rows)).numpy()]
        rate = float(self.schedule.get_last_lr()[0])
        self.network.train()
        learnt = sum(self._learn(batch) for batch in _batches(order, self.recipe.batch))
        self.schedule.step()
        loss = self._validation_loss()
        self.history.append({"rate": rate, "training_loss": learnt / len(rows), "validation_loss": loss})
        if not np.isfinite(loss):
            raise TrainingDiverged(len(self.history), rate)
        if loss == min(epoch["validation_loss"] for epoch in self.history):
            self.best = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    def keep(self, path: Path) -> None:
        """Have the state after this epoch on the disk."""
        state = {
            "key": self.key,
            "history": self.history,
            "best": self.best,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        try:
            with atomic_write(path) as file:
                torch.save(state, file)
        except (OSError, RuntimeError) as error:
            # torch hides behind an error of its own why it stopped to write: a full disk, or a signal.
            reason = error if isinstance(error, OSError) else error.__context__ or error
            if isinstance(reason, OSError):
                raise CannotWrite(str(path.parent), f"{path.name}: {reason.strerror}") from error
            raise reason from None

    def resume(self, path: Path) -> None:
        """Go on after the epochs in *path*, if they are of this training."""
        if not path.exists():
            return
        try:
            state = read_values(path)
        except BadCheckpoint as error:
            logger.warning("{}: beginning with the first epoch", error)
            return
        if not isinstance(state, dict) or state.get("key") != self.key or self._is_beyond(state["history"]):
            logger.info(
                "the epochs so far are of other data, another recipe or number of threads: "
                "beginning with the first one"
            )
            return
        # Mapped from a file that the next epoch replaces: copied, not referred to.
        self.best = {name: tensor.clone() for name, tensor in state["best"].items()}
        self.history = state["history"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        logger.info("going on after {}", plural(len(self.history), "epoch"))

    def _is_over(self, history: _History) -> bool:
        losses = [epoch["validation_loss"] for epoch in history]
        stale = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        return stale >= self.recipe.patience or len(losses) >= self.recipe.epochs

    def _is_beyond(self, history: _History) -> bool:
        """Whether this recipe would have ended before: what came after decides nothing."""
        return any(self._is_over(history[:count]) for count in range(len(history)))

    def _key(self, sides: Sides) -> str:
        """Say which training this is: what it learns from, and how."""
        # How long to go on is not part of what was done so far.
        how = {key: value for key, value in asdict(self.recipe).items() if key not in ("epochs", "patience")}
        # The last digits depend on how many threads share a sum.
        digest = hashlib.sha256(json.dumps([how, torch.get_num_threads()]).encode())
        digest.update(sides.tobytes())
        digest.update(self.weights.tobytes())
        for first in range(0, len(self.examples.features), 1 << 16):
            digest.update(np.ascontiguousarray(self.examples.features[first : first + (1 << 16)]).data)
        return digest.hexdigest()

    def _seed(self, epoch: int) -> None:
        (state,) = np.random.SeedSequence([self.recipe.seed, epoch]).generate_state(1, np.uint64)
        torch.default_generator.manual_seed(int(state))

    def _learn(self, rows: NDArray[np.int64]) -> float:
        loss = self._loss(rows)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.pace.advance(len(rows))
        return loss.item() * len(rows)

    @torch.inference_mode()
    def _validation_loss(self) -> float:
        self.network.eval()
        rows = self.rows[VALIDATION]
        return sum(self._loss(batch).item() * len(batch) for batch in _batches(rows, _EVALUATED)) / len(rows)

    def _loss(self, rows: NDArray[np.int64]) -> Tensor:
        examples = self.examples
        truth = torch.from_numpy(examples.are_viral[rows].astype(np.int64))
        logits = self.network.logits(torch.from_numpy(examples.features[rows]))
        losses = functional.cross_entropy(logits, truth, reduction="none")
        return (losses * torch.from_numpy(self.weights[rows])).mean()


_EVALUATED = 4096  # rows that are evaluated at a time


def _optimizer(network: Classifier, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer is Optimizer.ADAMW:
        betas = (recipe.momentum, 0.999)
        return torch.optim.AdamW(network.parameters(), recipe.rate, betas, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        network.parameters(), recipe.rate, recipe.momentum, weight_decay=recipe.weight_decay
    )


def _batches(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Cut *rows*; a single one at the end goes with those before it, as it has no variance of its own."""
    starts = list(range(0, len(rows), size))
    if len(starts) > 1 and len(rows) - starts[-1] == 1:
        del starts[-1]
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        # In the order of the disk: the batch is the same, and is read in one go.
        yield np.sort(rows[start:end])


@torch.inference_mode()
def _probabilities(examples: Examples, rows: NDArray[np.int64], weights: _Weights) -> NDArray[np.float32]:
    """Give P(others) and P(virus) of *rows*, in the rows of an array for all."""
    hidden, inputs = weights["hidden.weight"].shape
    with torch.device("meta"):
        network = Classifier(ClassifierShape(inputs, hidden))
    network.load_state_dict(weights, assign=True)
    network.eval()
    found = np.zeros((len(examples.owners), 2), np.float32)
    for batch in _batches(rows, _EVALUATED):
        found[batch] = network(torch.from_numpy(examples.features[batch])).numpy()
    return found


def _test(
    store: Store,
    examples: Examples,
    sides: Sides,
    fitted: Fitted,
    threshold: float,
    owners: NDArray[np.int64],
) -> dict[str, Level]:
    """Give what the classifier makes of the test side, by the rules that predictions follow."""
    are_tested = sides == TEST
    found = _probabilities(examples, np.flatnonzero(are_tested), fitted.weights)

    def blocks() -> Iterator[Block]:
        first = 0
        for block in store.blocks():
            own = slice(first, first + len(block.scores))
            scores = block.scores.copy()
            scores["others"], scores["virus"] = found[own].T
            yield replace(block, scores=scores[are_tested[own]])
            first = own.stop

    return levels(blocks(), owners, threshold)


def _data_facts(task: Task, records: Records) -> dict[str, Any]:
    data = task.data
    return {
        "viral": [Path(path).name for path in data.viral],
        "nonviral": [Path(path).name for path in data.nonviral],
        "clustered_by": data.clusters.name if data.clusters else "genome= in the header, else the record",
        "grouped_by": data.groups.name if data.groups else "group= in the header, else the class",
        "clusters": len(records.cluster_names),
        "groups": records.told(),
    }


def _side_facts(examples: Examples, sides: Sides) -> dict[str, dict[str, int]]:
    """Give how much there is on each side that can be learnt or tested."""
    facts = {}
    for side, name in enumerate(SIDES):
        own = sides == side
        facts[name] = {
            "records": len(np.unique(examples.owners[own])),
            "fragments": len(np.unique(examples.fragments[own])),
            "orfs": int(own.sum()),
            "viral_orfs": int(examples.are_viral[own].sum()),
        }
    return facts


def write_bundle(base: Bundle, weights: Mapping[str, Tensor], task: Task, report: dict[str, Any]) -> Bundle:
    """
    Make the bundle beside its place and move it there when it is whole.

    Raises:
        CannotWrite: the disk is full, or the directory cannot be written
    """
    output = task.output.absolute()
    try:
        with atomic_directory(output) as made:
            for name in ENCODERS:
                link_or_copy(base.directory / name, made / name)
            (made / "classifier.safetensors").write_bytes(save(dict(weights)))
            (made / REPORT).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
            (made / CARD).write_text(card(output.name, report), "utf-8", "surrogateescape")
            _sealed(made, base, task)
    except OSError as error:
        raise CannotWrite(str(output), error.strerror or str(error)) from error
    return find(output)


def _sealed(made: Path, base: Bundle, task: Task) -> Bundle:
    shapes = base.shapes
    classifier = ClassifierShape(shapes.classifier.inputs, task.recipe.hidden)
    origin = {**base.origin, "classifier": f"trained by virnuc-async {__version__}, see {CARD}"}
    notices = [f"the encoders are those of {base.name}: {base.notice}"] if base.notice else []
    if task.split.by_fragment:
        notices.append(f"the figures in {CARD} are optimistic: they are of a random split of fragments.")
    more = {"licence": base.licence, "notice": " ".join(notices)}
    of_all = Shapes(shapes.protein, shapes.nucleotide, classifier)
    return write_manifest(made, task.output.absolute().name, base.length, of_all, origin, **more)
