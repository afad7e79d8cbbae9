"""Scorers on fake devices, and what their scores must be, found the slow way."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fakes import Rules, fake_devices, p_virus

from virnuc_async.models.bundle import Bundle
from virnuc_async.runs.plan import Plan
from virnuc_async.scorer.predictions import Prediction
from virnuc_async.scorer.request import ScoredWindow
from virnuc_async.scorer.scorer import Scorer
from virnuc_async.sequences.fastx import Contig
from virnuc_async.sequences.fragments import cut
from virnuc_async.sequences.orfs import open_frames
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.sequences.windows import Cut, form_windows
from virnuc_async.settings import Settings

Score = tuple[int, str, int, int, str, float]  # record, id, start, end, frame, P(virus)


class MakesScorer:
    """Makes scorers whose devices follow *rules*."""

    def __init__(self, bundle: Bundle, source: Path = Path(), out: Path = Path()) -> None:
        self.bundle, self.source, self.out = bundle, source, out
        self.rules = Rules()

    def __call__(self, budget: int = 400, window: int = 50, devices: int = 1, **options: Any) -> Scorer:
        settings = Settings(tokens_per_batch=budget)
        plan = Plan((), settings, self.bundle, fake_devices(devices), window)
        return Scorer.of(plan, self.rules.scorer, **options)

    def window(self, records: Sequence[tuple[str, str]]) -> ScoredWindow:
        """Return all *records* as one window."""
        contigs = [Contig(name.encode(), bases.encode()) for name, bases in records]
        tokenizer = OrfTokenizer(self.bundle.tokenizer())
        (window,) = form_windows(["-"], lambda _: iter(contigs), Cut(self.bundle.length), tokenizer)
        return ScoredWindow(window)


def scores_of(predictions: Iterable[Prediction]) -> list[Score]:
    return [
        (record, one.contig, part.start, part.end, orf.frame, orf.p_virus)
        for record, one in enumerate(predictions)
        for part in one.fragment_scores
        for orf in part.orfs
    ]


def expected_scores(records: Sequence[tuple[str, str]], bundle: Bundle) -> list[Score]:
    """Return the fakes' score of every ORF, record by record and fragment by fragment."""
    tokenizer = OrfTokenizer(bundle.tokenizer())
    found: list[Score] = []
    for record, (name, sequence) in enumerate(records):
        bases = sequence.upper().replace("U", "T").encode()
        for start, end in cut(len(bases), bundle.length):
            for orf in open_frames(bases[start:end], [(0, end - start)]):
                score = float(str(p_virus(tokenizer.residues([orf.protein]).ids.tolist())))
                found.append((record, name.split()[0], start, end, orf.frame.name, score))
    return found
