"""The targets for a GPU, compared with the lines that ``scripts/gpu_check.py`` wrote."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_Row = dict[str, Any]
_OTHERS = ("fair-esm", "transformers")


@dataclass(frozen=True, slots=True)
class Target:
    """A number that is wanted, and how it follows from the rows of a step; None if they do not have it."""

    what: str
    step: str
    limit: float
    is_upper: bool
    value: Callable[[Sequence[_Row]], float | None]


def _forward(name: str, precision: str) -> Callable[[Sequence[_Row]], float | None]:
    """Return what reads *name* of ESM-2's largest batch by our kernels."""
    return lambda rows: _first(
        rows, name, measured="forward", encoder="ESM-2", precision=precision, way="kernels"
    )


def _attention(rows: Sequence[_Row]) -> float | None:
    wanted = {"measured": "kernels", "encoder": "ESM-2", "precision": "BF16", "way": "kernels"}
    return _first(rows, "attention ms a layer", **wanted)


def _against_fair_esm(rows: Sequence[_Row]) -> float | None:
    return _first(rows, "x fair-esm FP32", measured="encoder", engine="kernels BF16", tokens="168")


def _against_best(rows: Sequence[_Row]) -> float | None:
    for row in _matching(rows, measured="encoder", engine="kernels BF16", tokens="168"):
        return min(value for name, value in row.items() if name.startswith(tuple(f"x {o}" for o in _OTHERS)))
    return None


def _fp8_over_bf16(rows: Sequence[_Row]) -> float | None:
    fp8, bf16 = (_forward("tokens/s", precision)(rows) for precision in ("FP8", "BF16"))
    return fp8 / bf16 if fp8 and bf16 else None


def _fp8_over_matrix_rate(rows: Sequence[_Row]) -> float | None:
    share, own = _forward("of the matrix rate", "FP8")(rows), _forward("matrix TFLOP/s", "FP8")(rows)
    bf16 = _forward("matrix TFLOP/s", "BF16")(rows)
    return share * own / bf16 if share and own and bf16 else None


def _fp8_labels(rows: Sequence[_Row]) -> float | None:
    return _first(rows, "same labels", measured="labels", precision="fp8")


TARGETS = (
    Target("BF16, share of the matrix rate", "profile", 0.8, False, _forward("of the matrix rate", "BF16")),
    Target("attention, ms a layer", "profile", 0.3, True, _attention),
    Target("host, ms a batch", "profile", 8.0, True, _forward("host ms", "BF16")),
    Target("BF16, times fair-esm FP32", "encoders", 10.0, False, _against_fair_esm),
    Target("BF16, times the best peer", "encoders", 1.3, False, _against_best),
    Target("FP8, times our BF16", "profile", 1.35, False, _fp8_over_bf16),
    Target("FP8, times the BF16 matrix rate", "profile", 1.15, False, _fp8_over_matrix_rate),
    Target("FP8, labels equal to FP32's", "pipeline", 0.999, False, _fp8_labels),
)


def describe_targets(directory: Path) -> Iterator[str]:
    """Yield a line for each target that the lines in *directory* have a number for."""
    for target in TARGETS:
        value = target.value(_rows(directory / f"{target.step}.jsonl"))
        if value is not None:
            is_met = value <= target.limit if target.is_upper else value >= target.limit
            limit = f"at {'most' if target.is_upper else 'least'} {target.limit:g}"
            yield f"{target.what}: {value:.3g} ({limit}: {'met' if is_met else 'missed'})"


def _rows(path: Path) -> list[_Row]:
    if not path.exists():
        return []
    # The last line of a step that was killed may be cut.
    lines = path.read_text("utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def _matching(rows: Sequence[_Row], **wanted: object) -> Iterator[_Row]:
    return (row for row in rows if all(row.get(name) == value for name, value in wanted.items()))


def _first(rows: Sequence[_Row], name: str, **wanted: object) -> float | None:
    return next((float(row[name]) for row in _matching(rows, **wanted)), None)
