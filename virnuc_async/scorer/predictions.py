"""What a scorer says of records: typed objects, and tables of them for pandas, Arrow and notebooks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from virnuc_async.errors import UsageError
from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.outputs.columns import printed_numbers
from virnuc_async.outputs.verdicts import LABELS, LOG_ODDS, VERDICT, verdict_columns
from virnuc_async.runs.blocks import FRAMES, SCORE, Block
from virnuc_async.sequences.fragments import ranges

if TYPE_CHECKING:
    import pandas
    import pyarrow

Level = Literal["contigs", "fragments", "orfs"]

_MOST_SHOWN = 20  # rows in a notebook


def _no_scores() -> NDArray[np.void]:
    return np.empty(0, SCORE)


@dataclass(frozen=True, slots=True)
class OrfScore:
    """The score of a stop-free frame of a fragment."""

    frame: str  # F1 to R3
    p_others: float
    p_virus: float


@dataclass(frozen=True, slots=True)
class FragmentScore:
    """The scores of a fragment with an ORF; its own are the highest of its ORFs."""

    number: int  # within the contig, from 1
    start: int  # on the contig, from 0
    end: int  # behind its last base
    p_others: float
    p_virus: float
    is_viral: bool
    orfs: tuple[OrfScore, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """
    What is predicted of one record; the columns of ``contigs.tsv``, and the scores behind them.

    Numbers that there is no scored fragment for are None.
    """

    contig: str  # the record's id, up to the first white space
    length: int  # in bases
    fragments: int
    fragments_with_orf: int
    viral_fragments: int
    viral_fraction: float | None
    mean_p_virus: float | None
    max_p_virus: float | None
    verdict: str  # virus, others or no_orf
    log_odds: float | None = None
    p_virus_calibrated: float | None = None  # None also if the model has no calibration
    q: float | None = None  # None also if the model has no calibration
    failures: tuple[str, ...] = ()  # of ORFs that have no score, and why
    _scores: NDArray[np.void] = field(default_factory=_no_scores, repr=False, compare=False)
    _fragment_length: int = field(default=0, repr=False, compare=False)

    @property
    def is_viral(self) -> bool:
        """Whether the verdict is ``virus``."""
        return self.verdict == "virus"

    @property
    def fragment_scores(self) -> tuple[FragmentScore, ...]:
        """The fragments with a scored ORF, in order."""
        scores = self._scores
        numbers = scores["fragment"]
        firsts = np.flatnonzero(np.diff(numbers, prepend=0))
        found = numbers[firsts].astype(np.int64)
        places = ranges(np.array([self.length]), np.zeros_like(found), found - 1, self._fragment_length)
        parts = np.split(scores, firsts)[1:]
        return tuple(map(_fragment, found.tolist(), places.tolist(), parts))


class Predictions(Sequence[Prediction]):
    """Predictions in the order of the records, and as tables."""

    def __init__(self, predictions: Sequence[Prediction] = ()) -> None:
        self._all = tuple(predictions)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> "Predictions": ...
    def __getitem__(self, index: int | slice) -> "Prediction | Predictions":
        """Return one prediction, or some of them."""
        return Predictions(self._all[index]) if isinstance(index, slice) else self._all[index]

    def __len__(self) -> int:
        return len(self._all)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Predictions) and self._all == other._all

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        viral = sum(one.is_viral for one in self._all)
        return f"<Predictions [{len(self._all):,} records, {viral:,} viral]>"

    def _repr_html_(self) -> str:
        """Return the first rows as a table for a notebook."""
        names = _CONTIG_COLUMNS
        head = "".join(f"<th>{name}</th>" for name in names)
        rows = (
            "<tr>" + "".join(f"<td>{escape(_cell(getattr(one, name)))}</td>" for name in names) + "</tr>"
            for one in self._all[:_MOST_SHOWN]
        )
        more = len(self._all) - _MOST_SHOWN
        rest = f"<p>and {more:,} more</p>" if more > 0 else ""
        return f"<p>{escape(repr(self))}</p><table><tr>{head}</tr>{''.join(rows)}</table>{rest}"

    def to_pandas(self, level: Level = "contigs") -> "pandas.DataFrame":
        """
        Return a table with a row for each record, fragment or ORF.

        Raises:
            UsageError: pandas is not installed, or there is no such *level*
        """
        columns = self._columns(level)
        frame: pandas.DataFrame = _needed("pandas").DataFrame(columns)
        return frame

    def to_arrow(self, level: Level = "contigs") -> "pyarrow.Table":
        """
        Return a table with a row for each record, fragment or ORF.

        Raises:
            UsageError: pyarrow is not installed, or there is no such *level*
        """
        columns = self._columns(level)
        table: pyarrow.Table = _needed("pyarrow").table(columns)
        return table

    def _columns(self, level: str) -> dict[str, list[Any]]:
        if level not in _ROWS:
            raise UsageError(f"level must be one of {', '.join(_ROWS)}, not {level!r}")
        names, rows_of = _ROWS[level]
        rows = [row for one in self._all for row in rows_of(one)]
        return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def predictions_of(
    block: Block,
    fragment_length: int,
    rule: VerdictRule,
    failures: "dict[int, list[str]]",
) -> list[Prediction]:
    """Return the predictions of the records of *block*, whose verdicts are those of a run's tables."""
    if not block.ids:
        return []
    columns = verdict_columns(block, rule)
    names = [name.decode("utf-8", "surrogateescape") for name in block.ids.split(b"\n")[:-1]]
    numbers = block.contigs["number"]
    known = [one.name for one in fields(Prediction) if one.name in columns]
    values = zip(*(_plain(name, columns[name]) for name in known), strict=True)
    parts = np.split(block.scores, np.searchsorted(block.scores["contig"], numbers))[1:]
    found = zip(names, block.contigs["length"].tolist(), numbers.tolist(), parts, values, strict=True)
    return [
        Prediction(
            contig=name,
            length=length,
            failures=tuple(failures.get(number, ())),
            _scores=scores,
            _fragment_length=fragment_length,
            **dict(zip(known, row, strict=True)),
        )
        for name, length, number, scores, row in found
    ]


def _plain(name: str, column: NDArray[Any]) -> list[Any]:
    """Return a column as Python's own values, with None for NaN."""
    if name == VERDICT:
        return [LABELS[label] for label in column.tolist()]
    if column.dtype.kind != "f":
        return list(column.tolist())
    # As a table prints them.
    printed = column if name == LOG_ODDS else column.astype(np.float32)
    return [None if np.isnan(value) else float(str(value)) for value in printed]


def _fragment(number: int, place: tuple[int, int], scores: NDArray[np.void]) -> FragmentScore:
    columns = (scores["frame"].tolist(), _printed(scores["others"]), _printed(scores["virus"]))
    orfs = tuple(
        OrfScore(FRAMES[frame].decode(), others, virus) for frame, others, virus in zip(*columns, strict=True)
    )
    others, virus = (max(column) for column in columns[1:])
    start, end = place
    return FragmentScore(number, start, end, others, virus, virus >= others, orfs)


def _printed(scores: NDArray[np.float32]) -> list[float]:
    """Return *scores* as whoever reads them from a table gets them."""
    return list(printed_numbers(scores).tolist())


def _contig_rows(one: Prediction) -> Iterator[tuple[Any, ...]]:
    yield tuple(getattr(one, name) for name in _CONTIG_COLUMNS)


def _fragment_rows(one: Prediction) -> Iterator[tuple[Any, ...]]:
    for part in one.fragment_scores:
        yield one.contig, part.number, part.start, part.end, part.p_others, part.p_virus, part.is_viral


def _orf_rows(one: Prediction) -> Iterator[tuple[Any, ...]]:
    for part in one.fragment_scores:
        for orf in part.orfs:
            yield one.contig, part.number, orf.frame, orf.p_others, orf.p_virus


_CONTIG_COLUMNS = tuple(
    one.name for one in fields(Prediction) if one.name != "failures" and not one.name.startswith("_")
)
_FRAGMENT_COLUMNS = ("contig", "fragment", "start", "end", "p_others", "p_virus", "is_viral")
_ORF_COLUMNS = ("contig", "fragment", "frame", "p_others", "p_virus")
_Rows = Callable[[Prediction], Iterator[tuple[Any, ...]]]
_ROWS: dict[str, tuple[tuple[str, ...], _Rows]] = {
    "contigs": (_CONTIG_COLUMNS, _contig_rows),
    "fragments": (_FRAGMENT_COLUMNS, _fragment_rows),
    "orfs": (_ORF_COLUMNS, _orf_rows),
}


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _needed(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise UsageError(f"{module} is not installed: pip install {module}") from None
