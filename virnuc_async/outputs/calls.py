"""
The table of calls: ``contig_calls.tsv``, a call and a tier for each contig by the scores of its fragments.

The rules are those of the programs around VirNucPro (viral-ngs, ``virnucpro_contigs``), and so are the
columns. They read the scores from a table of fragments: what counts is a score as it is printed there.
"""

import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnuc_async.runs.blocks import Block
from virnuc_async.runs.reader import RunReader
from virnuc_async.settings import CallRules

from .columns import Chunks, encode_lines, printed_numbers
from .sorting import PIECES, RUN_BYTES, sort_lines
from .verdicts import vote

CALLS_TABLE = "contig_calls.tsv"
CALLS = ("Viral", "Non-viral", "Ambiguous")
TIERS = ("high_confidence", "moderate_confidence", "low_confidence", "review")
COLUMNS = (
    *("ID", "call", "tier", "weighted_delta", "n_chunks", "n_confident_viral", "n_confident_nonviral"),
    *("n_ambiguous", "viral_proportion", "nonviral_proportion"),
)

_SCORE = np.dtype("<f4")
_AT_ONCE = 4096  # lines of the table


class Evidence(NamedTuple):
    """What the fragments of a contig say."""

    weighted_delta: float  # mean of P(virus) - P(others), weighted by the square root of its size; -1 to 1
    fragments: int
    viral: int  # fragments that are confidently viral
    nonviral: int  # fragments that are confidently not
    ambiguous: int  # fragments with high scores of both

    @property
    def effective(self) -> int:
        """Fragments that are not ambiguous."""
        return self.fragments - self.ambiguous

    def proportion(self, confident: int) -> float:
        """Return which part of the effective fragments *confident* are; 0 if there are none."""
        return confident / self.effective if self.effective else 0.0


class CalledContig(NamedTuple):
    """A contig, or all with the same part of their ids, and what it is called."""

    name: str
    evidence: Evidence
    call: str
    tier: str

    def fields(self) -> tuple[str, ...]:
        """Return the columns of the table behind the name."""
        evidence = self.evidence
        counts = (evidence.fragments, evidence.viral, evidence.nonviral, evidence.ambiguous)
        shares = (f"{evidence.proportion(count):.3f}" for count in counts[1:3])
        return (self.call, self.tier, f"{evidence.weighted_delta:.3f}", *map(str, counts), *shares)


def call_chunks(
    reader: RunReader,
    rules: CallRules,
    tally: Counter[tuple[str, str]] | None = None,
    run_bytes: int = RUN_BYTES,
    pieces: int = PIECES,
) -> Chunks:
    """
    Yield ``contig_calls.tsv``, some lines at a time, in the natural order of the ids: 2 before 10.

    Contigs with one id, by the pattern of *rules* if it has one, get one call; those without a scored
    fragment get none. How many have which call and tier is counted in *tally*.
    """
    tally = Counter() if tally is None else tally
    yield "\t".join(COLUMNS).encode() + b"\n"
    with closing(called_contigs(reader, rules, run_bytes, pieces)) as groups:
        for group in groups:
            tally.update((contig.call, contig.tier) for contig in group)
            yield encode_lines(["\t".join((contig.name, *contig.fields())) for contig in group])


def called_contigs(
    reader: RunReader, rules: CallRules, run_bytes: int = RUN_BYTES, pieces: int = PIECES
) -> Generator[list[CalledContig], None, None]:
    """Yield every contig with a scored fragment, some at a time, in the natural order of the names."""
    contig_name = naming(rules.id_pattern)
    blocks = (list(_score_lines(block, contig_name)) for block in reader.blocks())
    with closing(sort_lines(blocks, reader.scratch, run_bytes, pieces)) as sorted_lines:
        for group in _groups(sorted_lines):
            found = ((name, weigh(scores[:, 0], scores[:, 1], rules)) for name, scores in group)
            yield [CalledContig(name, evidence, *call(evidence, rules)) for name, evidence in found]


def weigh(others: NDArray[np.float64], virus: NDArray[np.float64], rules: CallRules) -> Evidence:
    """Return what the fragments of a contig, with the highest scores *others* and *virus*, (F,) each, say."""
    deltas = virus - others
    weights = np.sqrt(np.abs(deltas))
    total = weights.sum()
    return Evidence(
        weighted_delta=float((deltas * weights).sum() / total if total else deltas.mean()),
        fragments=len(deltas),
        viral=int(((virus > rules.confident_score) & (others < rules.confident_other_score)).sum()),
        nonviral=int(((others > rules.confident_score) & (virus < rules.confident_other_score)).sum()),
        ambiguous=int(((virus > rules.ambiguous_score) & (others > rules.ambiguous_score)).sum()),
    )


def call(evidence: Evidence, rules: CallRules) -> tuple[str, str]:
    """Return the call and the tier of a contig."""
    delta = evidence.weighted_delta
    if abs(delta) <= rules.call_threshold:
        return "Ambiguous", "review"
    confident = evidence.viral if delta > 0 else evidence.nonviral
    is_supported = confident >= rules.min_confident and evidence.proportion(confident) >= rules.min_proportion
    if is_supported and evidence.fragments >= rules.min_fragments:
        tier = "high_confidence" if abs(delta) > rules.high_threshold else "moderate_confidence"
    else:
        is_low = is_supported or evidence.fragments >= rules.min_fragments
        tier = "low_confidence" if is_low else "review"
    return ("Viral" if delta > 0 else "Non-viral"), tier


def natural_key(name: str) -> str:
    """Return a text by which names sort with their numbers in the order of their values."""
    # Between the tab, which ends a name, and all letters: a shorter number sorts before a longer one.
    return re.sub(r"[0-9]+", _number_key, name)


def _number_key(digits: re.Match[str]) -> str:
    number = digits[0].lstrip("0")
    return f"\x1f{len(number):06}{number}"


def naming(pattern: str | None) -> Callable[[str], str]:
    """Return a function from a contig's id to what *pattern* takes of it: its first group, if it has one."""
    if pattern is None:
        return str
    search, group = re.compile(pattern).search, min(re.compile(pattern).groups, 1)

    def part(name: str) -> str:
        found = search(name)
        return (found and found[group]) or name

    return part


def _score_lines(block: Block, contig_name: Callable[[str], str]) -> Iterator[str]:
    """Yield a line for each contig with a scored fragment: what to sort it by, its name, its scores."""
    fragments, names = vote(block), block.names()
    pairs = np.column_stack((fragments.others, fragments.highest)).astype(_SCORE)
    starts = np.flatnonzero(np.diff(fragments.rows, prepend=-1)).tolist()
    rows = fragments.rows[starts].tolist()
    for row, start, end in zip(rows, starts, [*starts, len(pairs)][1:], strict=True):
        name = contig_name(names[row])
        yield f"{natural_key(name)}\t{name}\t{pairs[start:end].tobytes().hex()}"


def _groups(lists: Iterable[list[str]]) -> Iterator[list[tuple[str, NDArray[np.float64]]]]:
    """Yield each name and the scores of its fragments, (F, 2), some names at a time."""
    fields = (line.split("\t") for lines in lists for line in lines)
    group: list[tuple[str, NDArray[np.float64]]] = []
    for (_, name), lines in groupby(fields, lambda line: tuple(line[:2])):
        scores = np.frombuffer(b"".join(bytes.fromhex(line[2]) for line in lines), _SCORE)
        group.append((name, printed_numbers(scores).reshape(-1, 2)))
        if len(group) == _AT_ONCE:
            yield group
            group = []
    if group:
        yield group
