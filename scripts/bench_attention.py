"""
Compare the ways of attention on a CPU, in BF16 and FP32: the seconds of the processor for one layer.

Time of the processor on one thread, so that other load on the machine disturbs little; a ratio is the median
over rounds, in each of which every way computes the same numbers.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measured import facts, save, table
from torch import Tensor

from virnuc_async.networks.attention import Attend, products_by_length, sdpa_by_length
from virnuc_async.networks.dnabert_s import slopes
from virnuc_async.networks.packing import dummy_batch, pack


class Shape(NamedTuple):
    """A batch of sequences of one length, and the attention of a network."""

    count: int
    length: int
    heads: int
    width: int  # numbers of a head
    has_bias: bool = False


# ESM-2 8M, 150M and 3B, the shipped model's ESM-2 and DNABERT-S, and DNABERT-S as published.
SHAPES = (
    Shape(12, 168, 20, 16),
    Shape(39, 52, 20, 16),
    Shape(12, 168, 20, 32),
    Shape(12, 168, 40, 64),
    Shape(12, 168, 4, 16),
    Shape(12, 112, 8, 16, has_bias=True),
    Shape(12, 112, 12, 64, has_bias=True),
)
_NAMES = {torch.float32: "FP32", torch.bfloat16: "BF16"}


def measure(shape: Shape, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Return the row of one shape."""
    batch = pack(dummy_batch(*[shape.length] * shape.count))
    rates = torch.tensor(slopes(shape.heads)) if shape.has_bias else None
    numbers = torch.randn(len(batch.ids), 3, shape.heads, shape.width).to(dtype).unbind(1)
    ways = {"sdpa": sdpa_by_length(batch, rates), "products": products_by_length(batch, rates)}
    exact = sdpa_by_length(batch, rates)(*(x.float() for x in numbers))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, attend in ways.items():
            times[name].append(_seconds(lambda attend=attend: attend(*numbers)))
    row: dict[str, Any] = {"sequences": shape.count, "tokens": shape.length, "heads": shape.heads}
    row |= {"width": shape.width, "bias": "ALiBi" if shape.has_bias else "", "precision": _NAMES[dtype]}
    row |= {f"{name}, ms": 1000 * statistics.median(spent) for name, spent in times.items()}
    row["sdpa / products"] = statistics.median(
        a / b for a, b in zip(times["sdpa"], times["products"], strict=True)
    )
    return row | {f"{name}, error": f"{_error(way, numbers, exact):.1e}" for name, way in ways.items()}


def _error(attend: Attend, numbers: tuple[Tensor, ...], exact: Tensor) -> float:
    return float((attend(*numbers).float() - exact).square().mean().sqrt())


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    """Print the table, and save it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--repeats", type=int, default=15, help="rounds")
    parser.add_argument("--output", type=Path, help="a JSON file")
    options = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    with torch.inference_mode():
        rows = [measure(shape, dtype, options.repeats) for dtype in reversed(_NAMES) for shape in SHAPES]
    print(table(rows))
    if options.output:
        save(options.output, {**facts(sys.argv[1:]), "rows": rows})


if __name__ == "__main__":
    main()
