"""
The penalty of ``log_odds``, the score of a contig that adds up the log odds of its fragments.

It is chosen on labelled sequences of many lengths, and stored with the networks of a bundle. It changes no
score of an ORF or a fragment.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

CONTIG_SCORE = "contig_score.json"
NO_PENALTY = 0.0  # of models that none was chosen for
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class ContigScore:
    """
    What ``log_odds`` loses for each fragment; *of* is the fingerprint of the bundle.

    Raises:
        ValueError: it is not a finite number
    """

    of: str
    penalty: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.penalty):
            raise ValueError(f"the penalty is {self.penalty}")

    def as_dict(self, **facts: Any) -> dict[str, Any]:
        """Return values for JSON; *facts* are added for the reader and ignored by :func:`read`."""
        return {"format": _FORMAT, **asdict(self), **facts}


def read(described: Mapping[str, Any]) -> ContigScore:
    """
    Return what :meth:`ContigScore.as_dict` described.

    Raises:
        ValueError, KeyError, TypeError: it is invalid
    """
    if described["format"] != _FORMAT:
        raise ValueError(f"its format is {described['format']}, this program reads {_FORMAT}")
    return ContigScore(of=str(described["of"]), penalty=float(described["penalty"]))
