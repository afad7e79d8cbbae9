"""
Compare the scores of contigs, ``mean_p_virus`` and ``log_odds``, on held-out genomes, and choose the penalty.

Contigs are subsequences of genomes, at random places and on either strand, of several lengths. All lengths
count the same, and so do both classes; within a class, groups and genomes count by the square root of their
subsequences. Genomes are dealt into two halves: the penalty is chosen on one half and reported on the other.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from genomes import Piece, read_pieces, reverse_complement
from measured import facts, save, table
from numpy.typing import NDArray

from virnuc_async import Settings, run_pipeline
from virnuc_async.learning.metrics import METRICS, ClusterBootstrap, Ranking
from virnuc_async.models.bundle import Bundle, find
from virnuc_async.models.calibration import logits
from virnuc_async.models.contig_score import CONTIG_SCORE, ContigScore
from virnuc_async.outputs.verdicts import label_contigs, vote
from virnuc_async.runs.store import Store

Numbers = NDArray[np.float64]
SHOWN = {"auroc": "AUROC", "tpr_at_1_percent_fpr": "sensitivity at 1 % FPR"}
PENALTIES = np.arange(0, 41) / 20  # 0 to 2
ROOM = 20  # bases more than a subsequence: with less, its place hardly varies


@dataclass(frozen=True, slots=True)
class Contigs:
    """The subsequences that have a scored fragment, in columns."""

    length: NDArray[np.int64]
    is_viral: NDArray[np.bool_]
    group: NDArray[np.int64]
    genome: NDArray[np.int64]
    fragments: NDArray[np.int64]  # scored or not
    scored: NDArray[np.int64]
    mean: Numbers  # P(virus)
    log_odds: Numbers  # of P(virus), added up, without a penalty
    log_ratios: Numbers  # of P(virus) and P(others), the highest of each fragment, added up

    def __len__(self) -> int:
        return len(self.length)

    def part(self, rows: NDArray[np.bool_]) -> "Contigs":
        """Return some of them."""
        return Contigs(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def weights(self) -> Numbers:
        """Return how much each of them counts; those of a length and a class add up to 1."""
        weights = np.ones(len(self))
        keys = np.column_stack((self.length, self.is_viral, self.group, self.genome))
        # From the genomes upward: each level's parts count by the square root of their rows.
        for level in (4, 3):
            names, index, rows = np.unique(keys[:, :level], axis=0, return_inverse=True, return_counts=True)
            totals = np.bincount(index.ravel(), weights)
            weights *= (np.sqrt(rows) / totals)[index.ravel()]
        _, index = np.unique(keys[:, :2], axis=0, return_inverse=True)
        return weights / np.bincount(index.ravel(), weights)[index.ravel()]


def subsequences(pieces: Sequence[Piece], length: int, count: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number of a piece and a subsequence of it, *count* times for each that is long enough."""
    random = np.random.default_rng([seed, length])
    for number, piece in enumerate(pieces):
        for draw in range(count if len(piece.bases) >= length else 0):
            start = int(random.integers(len(piece.bases) - length + 1))
            bases = piece.bases[start : start + length]
            has_room = len(piece.bases) >= length + ROOM
            is_reverse = random.random() < 0.5 if has_room else draw % 2 == 1
            yield number, reverse_complement(bases) if is_reverse else bases


def score(options: argparse.Namespace, pieces: Sequence[Piece]) -> Contigs:
    """Return the scores of subsequences of *pieces*; a run that is there already is used."""
    options.work.mkdir(parents=True, exist_ok=True)
    path, numbers, lengths = options.work / "subsequences.fa", [], []
    with open(path, "wb") as file:
        for length in options.lengths:
            for number, bases in subsequences(pieces, length, options.subsequences, options.seed):
                file.write(b">%d_%d\n%s\n" % (length, number, bases))
                numbers.append(number)
                lengths.append(length)
    anyio.run(run_pipeline, path, options.work / "run", Settings(model=options.model, devices=("cpu",)))
    groups, genomes = (
        np.unique([getattr(piece, name) for piece in pieces], return_inverse=True)[1]
        for name in ("group", "genome")
    )
    # A phage may have the name of its host.
    are_viral = np.array([piece.viral for piece in pieces])
    genomes = 2 * genomes + are_viral
    of = np.array(numbers)
    labels = (np.array(lengths), are_viral[of], groups[of], genomes[of])
    columns = _scores(options.work / "run")
    scored = columns[1] > 0
    return Contigs(*(column[scored] for column in (*labels, *columns)))


def _scores(directory: Path) -> tuple[NDArray[Any], ...]:
    """Return what the run in *directory* has of each contig: the last five columns of :class:`Contigs`."""
    parts = []
    with closing(Store(directory)) as store:
        for block in store.reader.blocks():
            votes, verdicts = vote(block), label_contigs(block, 0.0)
            size = len(block.contigs)
            ratios = np.log(np.clip(votes.highest, 1e-7, 1)) - np.log(np.clip(votes.others, 1e-7, 1))
            parts.append(
                (
                    block.contigs["fragments"].astype(np.int64),
                    verdicts.fragments_with_orf,
                    verdicts.mean_p_virus,
                    np.bincount(votes.rows, logits(votes.highest), size),
                    np.bincount(votes.rows, ratios.astype(np.float64), size),
                )
            )
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def ranked(contigs: Contigs, scores: Numbers) -> Callable[[Numbers], Numbers]:
    """Return a function from weights to AUROC and sensitivity at 1 % false positives."""
    truth = contigs.is_viral
    ranking, rows = (
        Ranking(scores, truth, truth, np.zeros(len(truth))),
        [METRICS.index(name) for name in SHOWN],
    )
    return lambda weights: ranking.metrics(weights)[rows]


def metrics(contigs: Contigs, scores: Numbers, weights: Numbers) -> Numbers:
    """Return AUROC and sensitivity at 1 % false positives."""
    return ranked(contigs, scores)(weights)


def compare(contigs: Contigs, scores: Mapping[str, Numbers], options: argparse.Namespace) -> dict[str, Any]:
    """Return the metrics of each of *scores* with their intervals, and those of the last one's advantage."""
    weights, names = contigs.weights(), list(scores)
    bootstrap = ClusterBootstrap(contigs.genome, contigs.is_viral, options.resamples, options.seed)
    clusters = np.unique(contigs.genome, return_inverse=True)[1]
    rankings = [ranked(contigs, scores[name]) for name in names]
    values = np.array([metrics_of(weights) for metrics_of in rankings])
    draws = (weights * draw[clusters] for draw in bootstrap.draws())
    resampled = np.array([[metrics_of(drawn) for metrics_of in rankings] for drawn in draws])
    found: dict[str, Any] = {
        "contigs": len(contigs),
        "viral_genomes": len(np.unique(contigs.genome[contigs.is_viral])),
        "other_genomes": len(np.unique(contigs.genome[~contigs.is_viral])),
    }
    gains = (values[-1] - values[0], resampled[:, -1] - resampled[:, 0])
    for name, value, drawn in [
        *((name, values[at], resampled[:, at]) for at, name in enumerate(names)),
        ("gain", *gains),
    ]:
        low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
        found[name] = {
            metric: [round(float(number), 4) for number in (value[at], low[at], high[at])]
            for at, metric in enumerate(SHOWN)
        }
    return found


def best_penalty(contigs: Contigs, sums: Numbers, fragments: NDArray[np.int64]) -> tuple[float, float]:
    """Return the penalty for each of *fragments* with the highest AUROC over all lengths, and that AUROC."""
    weights = contigs.weights()
    areas = [float(metrics(contigs, sums - each * fragments, weights)[0]) for each in PENALTIES]
    return float(PENALTIES[int(np.argmax(areas))]), round(max(areas), 4)


def choose(contigs: Contigs, options: argparse.Namespace) -> dict[str, Any]:
    """Return the penalty, and what it is worth on genomes that it was not chosen on."""
    random = np.random.default_rng(options.seed)
    names, index = np.unique(contigs.genome, return_inverse=True)
    half = (random.permutation(len(names)) % 2 == 0)[index]
    penalty, _ = best_penalty(contigs, contigs.log_odds, contigs.fragments)
    halves = []
    for chosen_on, reported_on in ((half, ~half), (~half, half)):
        mine, other = contigs.part(chosen_on), contigs.part(reported_on)
        found = best_penalty(mine, mine.log_odds, mine.fragments)[0]
        scores = {"mean": other.mean, "log_odds": other.log_odds - found * other.fragments}
        halves.append({"penalty": found, "on_the_other": compare(other, scores, options)})
    ways = {
        "log odds, all fragments": (contigs.log_odds, contigs.fragments),
        "log odds, scored fragments": (contigs.log_odds, contigs.scored),
        "log ratios, all fragments": (contigs.log_ratios, contigs.fragments),
        "log ratios, scored fragments": (contigs.log_ratios, contigs.scored),
    }
    tried = [_tried(contigs, name, *way) for name, way in ways.items()]
    weights = contigs.weights()
    curve = {
        f"{each:g}": [
            round(float(value), 4)
            for value in metrics(contigs, contigs.log_odds - each * contigs.fragments, weights)
        ]
        for each in PENALTIES[::5]
    }
    return {"penalty": penalty, "halves": halves, "ways": tried, "by_penalty": curve}


def _tried(contigs: Contigs, name: str, sums: Numbers, fragments: NDArray[np.int64]) -> dict[str, Any]:
    penalty, _ = best_penalty(contigs, sums, fragments)
    found = metrics(contigs, sums - penalty * fragments, contigs.weights())
    shown = dict(zip(SHOWN, (round(float(value), 4) for value in found), strict=True))
    return {"score": name, "penalty": penalty, **shown}


def write_penalty(bundle: Bundle, found: Mapping[str, Any], command: str) -> None:
    """Write *found* as the penalty of *bundle*."""
    entry = ContigScore(bundle.fingerprint, found["penalty"]).as_dict(command=command, **found["ways"][0])
    (bundle.directory / CONTIG_SCORE).write_text(json.dumps(entry, indent=2) + "\n", "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print and write the metrics for each length, and for all together."""
    options = _arguments(arguments)
    contigs, bundle = score(options, read_pieces(options.genomes, options.split)), find(options.model)
    found = choose(contigs, options)
    lengths = {}
    for length in options.lengths:
        own = contigs.part(contigs.length == length)
        log_odds = own.log_odds - found["penalty"] * own.fragments
        lengths[str(length)] = compare(own, {"mean": own.mean, "log_odds": log_odds}, options)
    log_odds = contigs.log_odds - found["penalty"] * contigs.fragments
    lengths["together"] = compare(contigs, {"mean": contigs.mean, "log_odds": log_odds}, options)
    described = facts(options.shown)
    model = {"name": bundle.name, "fingerprint": bundle.fingerprint}
    result = described | {"model": model, "result": {"lengths": lengths, **found}}
    if options.output:
        save(options.output, result)
    if options.write_penalty:
        write_penalty(bundle, found, described["command"])
    print(f"penalty: {found['penalty']:g}", table(list(_rows(lengths))), table(found["ways"]), sep="\n\n")


def _rows(lengths: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for length, row in lengths.items():
        shown = {
            f"{title}, {name}": "{:.3f} ({:.3f} to {:.3f})".format(*row[name][metric])
            for metric, title in SHOWN.items()
            for name in ("mean", "log_odds", "gain")
        }
        counts = {name: row[name] for name in ("contigs", "viral_genomes", "other_genomes")}
        yield {"bp": length, **counts, **shown}


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--genomes", type=Path, required=True, help="directory of {train,val}.*.fna.gz")
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument("--model", default="tiny-500", help="name or directory of a bundle")
    parser.add_argument("--lengths", default="300,500,1000,2000,3000,5000", help="bases of a contig")
    parser.add_argument("--subsequences", type=int, default=2, help="of each length and record")
    parser.add_argument("--resamples", type=int, default=200, help="of the genomes, for the intervals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="directory where the scores are kept")
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    parser.add_argument("--write-penalty", action="store_true", help="write it into the model's directory")
    options = parser.parse_args(arguments)
    options.lengths = [int(length) for length in options.lengths.split(",")]
    options.shown = ["--genomes", "GENOMES", "--work", "WORK"]  # no paths of this machine
    return options


if __name__ == "__main__":
    main()
