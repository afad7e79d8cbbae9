"""What a contig's fragments are worth together, computed slowly and by other means than the program."""

import math
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal


def log_odds(virus: Sequence[float], fragments: int, penalty: float = 0.0) -> str:
    """Return the field ``log_odds`` of a contig with so many fragments; scored ones have *virus*."""
    if not virus:
        return ""
    inside = [min(max(float(score), 1e-7), 1 - 1e-7) for score in virus]
    total = sum(Decimal(math.log(score / (1 - score))) for score in inside) - Decimal(penalty) * fragments
    text = str(total.quantize(Decimal("0.0001"), ROUND_HALF_EVEN))
    return text.removeprefix("-") if float(text) == 0 else text
