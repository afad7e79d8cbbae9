"""Scores become verdicts, and verdicts become the tables that people read."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .store import FEATURES, ContigLine, Failure, ScoreLine, Store, orf_id

_BLOCK_BYTES = 64 << 20  # of features copied at a time


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the ORFs of a contig say together; means are over its fragments with an ORF."""

    fragments_with_orf: int
    viral_fragments: int
    viral_fraction: float
    mean_p_virus: float
    max_p_virus: float

    def label(self, threshold: float) -> str:
        """Give ``virus``, ``others``, or ``no_orf`` where nothing was scored."""
        if not self.fragments_with_orf:
            return "no_orf"
        return "virus" if self.viral_fraction >= threshold else "others"


@dataclass(frozen=True, slots=True)
class Summary:
    """The facts of a run, as ``summary.json`` holds them."""

    version: str
    command: str
    settings: dict[str, Any]
    bundle: dict[str, str]
    inputs: list[dict[str, Any]]
    counts: dict[str, int]
    devices: list[dict[str, Any]]
    seconds: dict[str, float]
    reproducible: bool
    finished: bool

    def as_dict(self) -> dict[str, Any]:
        """Give plain values that JSON can hold."""
        return asdict(self)


def judge(scores: Iterable[ScoreLine]) -> Verdict:
    """
    Let the fragments of one contig vote; *scores* are its ORFs', in order.

    A fragment is viral where its highest P(virus) is at least its highest P(others): the
    published rule, in which a tie is viral.
    """
    viral, highest = 0, []
    for _, orfs in groupby(scores, attrgetter("fragment")):
        others, virus = zip(*((orf.others, orf.virus) for orf in orfs), strict=True)
        viral += max(virus) >= max(others)
        highest.append(max(virus))
    count = len(highest)
    if not count:
        return Verdict(0, 0, 0.0, 0.0, 0.0)
    return Verdict(count, viral, viral / count, math.fsum(highest) / count, max(highest))


def predictions(store: Store) -> Iterator[bytes]:
    """Give the lines of ``prediction_results.txt``: every scored ORF in input order."""
    yield b"Sequence_ID\tPrediction\tscore1\tscore2\n"
    for contig, orfs in _by_contig(store):
        for orf in orfs:
            label = b"virus" if orf.virus > orf.others else b"others"
            name = orf_id(contig.id, orf.fragment, orf.frame)
            yield b"%s\t%s\t%s\t%s\n" % (name, label, _decimal(orf.others), _decimal(orf.virus))


def fragment_verdicts(store: Store) -> Iterator[bytes]:
    """Give the lines of ``prediction_results_highestscore.csv``: tabs, in spite of its name."""
    yield b"Modified_ID\tIs_Virus\n"
    for name, is_virus in store.fragments_by_id():
        yield b"%s\t%s\n" % (name, b"True" if is_virus else b"False")


def contig_verdicts(store: Store, threshold: float, tally: Counter[str]) -> Iterator[bytes]:
    """Give the lines of ``contigs.tsv``: every record in input order; count verdicts in *tally*."""
    yield (
        b"contig\tfile\tlength\tfragments\tfragments_with_orf\tviral_fragments\t"
        b"viral_fraction\tmean_p_virus\tmax_p_virus\tverdict\n"
    )
    for contig, orfs in _by_contig(store):
        verdict = judge(orfs)
        counts = (contig.length, contig.fragments, verdict.fragments_with_orf, verdict.viral_fragments)
        shares = (verdict.viral_fraction, verdict.mean_p_virus, verdict.max_p_virus)
        numbers = [b"%d" % number for number in counts] + [_decimal(share) for share in shares]
        label = verdict.label(threshold)
        tally[label] += 1
        yield b"\t".join((contig.id, _field(contig.file), *numbers, label.encode())) + b"\n"


def failed_line(failure: Failure) -> str:
    """Give a line of ``failed_files.txt``; fields never hold a bare pipe or line end."""
    fields = (failure.path, failure.stage, failure.message)
    return "|".join(map(_escaped, fields)) + "\n"


def save_features(store: Store, width: int, path: Path) -> None:
    """
    Write ``merged_features.pt``: the ids and embeddings of every scored ORF, in input order.

    *width* is that of both embeddings together. The numbers go from file to file in blocks; only
    the ids are held in memory.
    """
    ids, orfs = [], []
    for contig, scored in _by_contig(store):
        for orf in scored:
            ids.append(orf_id(contig.id, orf.fragment, orf.frame).decode("utf-8", "surrogateescape"))
            orfs.append(orf.orf)
    if not orfs:
        _save({"ids": ids, "data": torch.empty(0, width)}, path)
        return
    # Rows of failed ORFs are left out, so the rows are packed anew beside their first place.
    packed = path.with_suffix(".rows")
    every = np.memmap(store.directory / FEATURES, np.float32, "r").reshape(-1, width)
    step = max(1, _BLOCK_BYTES // (4 * width))
    # Written, not mapped for writing: a disk that is full ends a process that writes to a map.
    with open(packed, "wb") as file:
        for start in range(0, len(orfs), step):
            file.write(every[orfs[start : start + step]].data)
    data = np.memmap(packed, np.float32, "c", shape=(len(orfs), width))
    _save({"ids": ids, "data": torch.from_numpy(data)}, path)
    packed.unlink()


def _save(features: dict[str, Any], path: Path) -> None:
    try:
        with open(path, "wb") as file:
            torch.save(features, file)
    except RuntimeError as error:
        # torch hides behind an error of its own why the file could not be written.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _by_contig(store: Store) -> Iterator[tuple[ContigLine, list[ScoreLine]]]:
    """Join every record with its scored ORFs, by the record's number."""
    groups = groupby(store.scores(), attrgetter("contig"))
    number, orfs = next(groups, (None, iter(())))
    for contig in store.contigs():
        if contig.number != number:
            yield contig, []
            continue
        yield contig, list(orfs)
        number, orfs = next(groups, (None, iter(())))


def _decimal(number: float) -> bytes:
    """Print the shortest decimal that gives back the float32."""
    return str(np.float32(number)).encode()


def _field(text: bytes) -> bytes:
    return text.translate(bytes.maketrans(b"\t\n\r", b"   "))


def _escaped(text: str) -> str:
    for plain, escape in (("\\", "\\\\"), ("|", "\\|"), ("\r\n", "\\n"), ("\n", "\\n"), ("\r", "\\n")):
        text = text.replace(plain, escape)
    return text
