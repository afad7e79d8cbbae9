"""
A model of the time of an ESM-2 layer on a GPU: a roofline, not a measurement.

A layer is a list of launches. Each takes the longer of two times: its operations at the card's matrix rate,
or the bytes that it reads and writes, each tensor once, at the card's memory bandwidth. The rates are those
of the vendor's data sheets, which no program reaches, and what the host needs to launch is left out: the
shares are upper bounds, which show what a way of computing costs and not how fast a card is.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from measured import table
from random_bundle import SHAPES

from virnuc_async.networks.shapes import ProteinShape

ROW_TOKENS = 168  # of an ORF of a whole fragment of 500 bases
PRODUCT, ATTENTION, ELEMENTWISE = "product", "attention", "elementwise"
PLAIN, KERNELS, FP8 = "plain torch", "our kernels", "our kernels, FP8"


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU by its data sheet: FLOP/s of dense matrix products by precision, and bytes a second of memory."""

    name: str
    rates: Mapping[str, float]
    bandwidth: float


# The data sheets of H100 and H200 quote twice these rates, which are for sparse matrices.
CARDS = (
    Card("T4", {"FP16": 65e12}, 320e9),
    Card("A100 80 GB SXM", {"BF16": 312e12}, 2039e9),
    Card("H100 SXM", {"BF16": 989.4e12, "FP8": 1978.9e12}, 3350e9),
    Card("H200 SXM", {"BF16": 989.4e12, "FP8": 1978.9e12}, 4800e9),
)


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel: its operations, and the bytes that it reads and writes."""

    name: str
    kind: str
    flop: float
    bytes: float


class Layer:
    """The launches of a layer of ESM-2 for a batch, in half precision or with FP8 products."""

    def __init__(self, shape: ProteinShape, tokens: int, way: str) -> None:
        self._unit, self._width = tokens * shape.width, shape.width
        self._input = 1 if way == FP8 else 2  # bytes of each number that a product reads
        self.way = way
        self.launches = list(self._plain() if way == PLAIN else self._kernels())

    def seconds(self, card: Card) -> float:
        """Return the time of the layer on *card*."""
        rate = card.rates["FP8"] if self.way == FP8 else next(iter(card.rates.values()))
        return sum(max(one.flop / rate, one.bytes / card.bandwidth) for one in self.launches)

    def flop(self) -> float:
        """Return the operations of all launches."""
        return sum(launch.flop for launch in self.launches)

    def traffic(self) -> float:
        """Return the bytes that all but products and attention read and write."""
        return sum(launch.bytes for launch in self.launches if launch.kind == ELEMENTWISE)

    def _plain(self) -> Iterator[Launch]:
        yield self._product("qkv", 3, 1)
        # Queries and keys, two rows of the width, are widened to FP32, rotated in halves and narrowed.
        yield self._elementwise("widen", 2 * 2 + 2 * 4)
        for half in ("left cos", "right sin", "right cos", "left sin"):
            yield self._elementwise(half, 4 + 4)
        yield self._elementwise("difference", 3 * 4)
        yield self._elementwise("sum", 3 * 4)
        yield self._elementwise("join", 4 * 4)
        yield self._elementwise("narrow", 2 * 4 + 2 * 2)
        yield self._attention()
        yield self._product("out", 1, 1)
        yield from self._add_and_norm()
        yield self._product("up", 4, 1)
        yield self._elementwise("GELU", 8 * 2)
        yield self._product("down", 1, 4)
        yield from self._add_and_norm()

    def _add_and_norm(self) -> Iterator[Launch]:
        yield self._elementwise("add", 3 * 2)
        yield self._elementwise("norm", 2 * 2)

    def _kernels(self) -> Iterator[Launch]:
        yield self._product("qkv", 3, 1)
        yield self._elementwise("rotary", 4 * 2)
        yield self._attention()
        if self.way == FP8:
            yield self._elementwise("quantize", 2 + self._input)
        yield self._product("out", 1, 1)
        yield self._elementwise("add + norm", 3 * 2 + self._input)
        yield self._product("up", 4, 1)
        yield self._elementwise("GELU", 4 * 2 + 4 * self._input)
        yield self._product("down", 1, 4)
        yield self._elementwise("add + norm", 3 * 2 + self._input)

    def _product(self, name: str, outputs: int, inputs: int) -> Launch:
        """Return a product of so many times the width; its output is in half precision."""
        weights = self._width**2 * outputs * inputs * self._input
        moved = self._unit * (inputs * self._input + outputs * 2) + weights
        return Launch(name, PRODUCT, 2.0 * self._unit * self._width * outputs * inputs, moved)

    def _attention(self) -> Launch:
        return Launch("attention", ATTENTION, 4.0 * self._unit * ROW_TOKENS, self._unit * 4 * 2)

    def _elementwise(self, name: str, bytes_each: int) -> Launch:
        """Return a kernel that moves *bytes_each* for each number of (tokens, width)."""
        return Launch(name, ELEMENTWISE, 0.0, self._unit * bytes_each)


def launches(shape: ProteinShape, tokens: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each way: the launches of a layer, and the traffic of those that are elementwise."""
    for way in (PLAIN, KERNELS, FP8):
        layer = Layer(shape, tokens, way)
        row: dict[str, Any] = {"way": way, "launches": len(layer.launches)}
        for kind in (PRODUCT, ATTENTION, ELEMENTWISE):
            row[kind] = sum(launch.kind == kind for launch in layer.launches)
        yield row | {"elementwise traffic, GB": layer.traffic() / 1e9}


def times(shape: ProteinShape, tokens: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each card and way: the model's time, and its share of the card's matrix rate."""
    for card in CARDS:
        precision, half = next(iter(card.rates.items()))
        for way in (PLAIN, KERNELS, *((FP8,) if "FP8" in card.rates else ())):
            layer = Layer(shape, tokens, way)
            seconds = layer.seconds(card)
            yield {
                "card": card.name,
                "precision": "FP8" if way == FP8 else precision,
                "way": way,
                "ms a layer": 1000 * seconds,
                "of the half-precision rate": f"{layer.flop() / seconds / half:.0%}",
                "tokens/s": tokens / seconds / shape.layers,
            }


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--shape", choices=list(SHAPES), default="3B")
    parser.add_argument("--tokens", type=int, default=16_384, help="of a batch")
    options = parser.parse_args()
    for rows in (launches, times):
        print(f"{table(list(rows(SHAPES[options.shape], options.tokens)))}\n")


if __name__ == "__main__":
    main()
