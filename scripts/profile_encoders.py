"""
Profile both encoders at a published shape, with random weights made on the device; each part by itself.

ceilings: the rates of matrix products and of a large copy. bf16, fp16, fp8: each encoder's forward,
by our kernels and in plain torch. streams: DNABERT-S on a stream of its own. graphs: a replayed CUDA graph.
Times of a GPU are between two events around several calls.
"""

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_ways import (
    DTYPES,
    FP8,
    PLAIN,
    Encoder,
    Shape,
    flop,
    matrix_rate,
    precisions,
    prepared,
    products_of,
    random_encoder,
    seconds_each,
    synchronize,
    timed,
    ways,
)
from json_lines import TIME_IS_UP, Lines
from measured import facts
from random_bundle import NUCLEOTIDE_SHAPES, PROTEIN_SHAPES
from torch.profiler import ProfilerActivity, profile

from virnuc_async.engine.memory_account import nucleotide_numbers, protein_numbers
from virnuc_async.networks.packing import Packed, pack
from virnuc_async.networks.shapes import NucleotideShape
from virnuc_async.sequences.tokens import Ragged

_ROW_TOKENS = {"ESM-2": 168, "DNABERT-S": 112}  # of a fragment of 500 bases, by and large
_SQUARE = 8192  # of the matrix product that a card's rate is usually quoted for
_COPIED_BYTES = 4 << 30
_CALLS = 8
_IS_ATTENTION = re.compile("attention|attend|flash|fmha|aten::bmm|softmax", re.IGNORECASE)
_Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """What the parts share."""

    lines: Lines
    device: torch.device
    shape: str
    tokens: tuple[int, ...]  # of a batch
    square: int
    copied: int

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shape of each encoder."""
        return {"ESM-2": PROTEIN_SHAPES[self.shape], "DNABERT-S": NUCLEOTIDE_SHAPES[self.shape]}

    @property
    def is_gpu(self) -> bool:
        """Whether the device has kernels, streams and events."""
        return self.device.type == "cuda"


def rows_of(encoder: str, tokens: int) -> Ragged:
    """Return rows of one length, of *tokens* tokens at most."""
    length = _ROW_TOKENS[encoder]
    count = max(1, tokens // length)
    ids = np.random.default_rng(length).integers(5, 24, count * length).astype(np.int32)
    return Ragged(ids, np.full(count, length, np.int64))


def batch_of(encoder: str, tokens: int, device: torch.device) -> tuple[Packed, Ragged]:
    """Return such rows on *device*, and on the host."""
    rows = rows_of(encoder, tokens)
    return pack(rows).to(device), rows


# Parts


def ceilings(setting: Setting) -> None:
    """Measure what the device can do: squares, the products of each encoder's layers, and a copy."""
    for name in precisions(setting.device):
        sizes = {f"{setting.square} cubed": ((setting.square, setting.square),)}
        sizes |= {encoder: products_of(shape) for encoder, shape in setting.shapes.items()}
        for what, products in sizes.items():
            if setting.lines.is_time_up:
                setting.lines.not_reached(f"ceiling {name} {what}")
                continue
            tokens = setting.square if "cubed" in what else setting.tokens[0]
            rate = matrix_rate(products, tokens, name, setting.device)
            row: _Row = {
                "measured": "ceiling",
                "of": what,
                "precision": name,
                "tokens": tokens,
                "TFLOP/s": rate / 1e12,
            }
            setting.lines.write(row)
    source = torch.empty(setting.copied, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    seconds = seconds_each(lambda: target.copy_(source), setting.device, _CALLS)
    # Each byte is read and written.
    setting.lines.write({"measured": "ceiling", "of": "copy", "GB/s": 2 * setting.copied / seconds / 1e9})


def forwards(precision: str, setting: Setting) -> None:
    """Measure the forward of each encoder in *precision*, in each way and for each size of a batch."""
    if precision not in precisions(setting.device):
        setting.lines.write({"measured": "forward", "precision": precision, "none": "not on this device"})
        return
    square = matrix_rate(((setting.square, setting.square),), setting.square, precision, setting.device)
    for encoder, shape in setting.shapes.items():
        if precision == FP8 and encoder != "ESM-2":
            continue  # it stays in BF16
        network = random_encoder(shape, DTYPES[precision], setting.device)
        # What a run uses first: it is what matters if the time is up.
        for way in reversed(ways(setting.device)):
            if precision == FP8 and way == PLAIN:
                continue  # its kernels come with it
            ready = prepared(network, way, precision)
            what: _Row = {"encoder": encoder, "precision": precision, "way": way}
            for tokens in setting.tokens:
                if setting.lines.is_time_up:
                    setting.lines.not_reached(" ".join(map(str, [*what.values(), tokens])))
                    continue
                found = forward(ready, shape, batch_of(encoder, tokens, setting.device), setting)
                found["of the matrix rate"] = found.pop("FLOP/s") / square
                row = {"measured": "forward", **what, "tokens": tokens, **found}
                setting.lines.write(row | {"matrix TFLOP/s": square / 1e12})
            if not setting.lines.is_time_up:
                row = {"measured": "kernels", **what, "tokens": setting.tokens[0]}
                setting.lines.write(row | kernel_times(ready, encoder, setting))


def forward(network: Encoder, shape: Shape, batch: tuple[Packed, Ragged], setting: Setting) -> _Row:
    """Measure one forward: on the device, on the host, and in memory."""
    packed, rows = batch
    work = partial(network.embeddings, packed)
    seconds = seconds_each(work, setting.device, _CALLS)
    like = next(network.parameters())
    return {
        "rows": len(rows.lengths),
        "ms": 1000 * seconds,
        "FLOP/s": flop(shape, rows.lengths) / seconds,
        "tokens/s": len(rows.ids) / seconds,
        "host ms": 1000 * host_seconds(work, setting.device),
        "activations bytes": activations(work, setting.device),
        "account bytes": like.element_size() * numbers_per_token(shape) * len(rows.ids),
    }


def numbers_per_token(shape: Shape) -> int:
    """Return how many activations of a token there are at the same time, as the engine's account has it."""
    return nucleotide_numbers(shape) if isinstance(shape, NucleotideShape) else protein_numbers(shape)


def activations(work: Callable[[], object], device: torch.device) -> int | None:
    """Return the most bytes of a GPU that *work* takes beside what is there before it."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    timed(work, device)
    return torch.cuda.max_memory_allocated(device) - before


def host_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long the host takes to queue *work* on an idle device; on a CPU, to do it."""
    found = []
    for _ in range(5 if device.type == "cuda" else 1):
        synchronize(device)
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    synchronize(device)
    return statistics.median(found)


def kernel_times(network: Encoder, encoder: str, setting: Setting) -> _Row:
    """Return the time and the number of launches of each kernel of a forward, as the profiler sees them."""
    packed, _ = batch_of(encoder, setting.tokens[0], setting.device)
    activity = ProfilerActivity.CUDA if setting.is_gpu else ProfilerActivity.CPU
    network.embeddings(packed)
    with profile(activities=[activity]) as profiled:
        network.embeddings(packed)
        synchronize(setting.device)
    layers = len(network.layers)
    found = [(event.key, event.count, _own_ms(event, setting.is_gpu)) for event in profiled.key_averages()]
    found = sorted(((key, count, ms) for key, count, ms in found if ms > 0), key=lambda row: -row[2])
    return {
        "kernels": [{"name": key[:120], "calls": count, "ms": round(ms, 4)} for key, count, ms in found[:30]],
        "launches a layer": sum(count for _, count, _ in found) / layers,
        "attention ms a layer": sum(ms for key, _, ms in found if _IS_ATTENTION.search(key)) / layers,
    }


def _own_ms(event: Any, is_gpu: bool) -> float:
    return float(event.self_device_time_total if is_gpu else event.self_cpu_time_total) / 1000


def streams(setting: Setting) -> None:
    """Measure both encoders one after the other, and DNABERT-S on a stream of its own."""
    if not setting.is_gpu:
        setting.lines.write({"measured": "streams", "none": "a CPU has none"})
        return
    networks = _networks(setting)
    for tokens in setting.tokens:
        if setting.lines.is_time_up:
            setting.lines.not_reached(f"streams {tokens}")
            continue
        works = [
            partial(network.embeddings, batch_of(encoder, tokens, setting.device)[0])
            for encoder, network in networks.items()
        ]
        one = seconds_each(lambda works=works: [work() for work in works], setting.device, _CALLS)
        two = seconds_each(partial(_side_by_side, works), setting.device, _CALLS)
        row = {"one stream, ms": 1000 * one, "two streams, ms": 1000 * two, "two over one": two / one}
        setting.lines.write({"measured": "streams", "tokens": tokens, **row})


def _side_by_side(works: Sequence[Callable[[], object]]) -> None:
    """Queue each of *works* on a stream; the current one waits for all."""
    current = torch.cuda.current_stream()
    first, *others = works
    sides = [torch.cuda.Stream() for _ in others]
    for side, work in zip(sides, others, strict=True):
        side.wait_stream(current)
        with torch.cuda.stream(side):
            work()
    first()
    for side in sides:
        current.wait_stream(side)


def graphs(setting: Setting) -> None:
    """Measure a CUDA graph of each encoder's forward; only whether it would gain, nothing uses graphs."""
    if not setting.is_gpu:
        setting.lines.write({"measured": "graph", "none": "a CPU has none"})
        return
    for encoder, network in _networks(setting).items():
        packed, _ = batch_of(encoder, setting.tokens[-1], setting.device)
        row: _Row = {"measured": "graph", "encoder": encoder, "tokens": setting.tokens[-1]}
        try:
            row |= graph_times(partial(network.embeddings, packed), setting.device)
        except RuntimeError as reason:  # something in it cannot be captured, which is an answer
            row["none"] = str(reason)[:400]
        setting.lines.write(row)


def graph_times(work: Callable[[], object], device: torch.device) -> _Row:
    """Return the times of *work* as it is, and as a graph."""
    row = {"eager ms": 1000 * seconds_each(work, device, _CALLS)}
    row["eager host ms"] = 1000 * host_seconds(work, device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    row["replayed ms"] = 1000 * seconds_each(graph.replay, device, _CALLS)
    row["replayed host ms"] = 1000 * host_seconds(graph.replay, device)
    return row


def _networks(setting: Setting) -> dict[str, Encoder]:
    """Return both encoders as a run uses them."""
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {
        encoder: prepared(random_encoder(shape, dtype, setting.device), ways(setting.device)[1])
        for encoder, shape in setting.shapes.items()
    }


PARTS: dict[str, Callable[[Setting], None]] = {
    "ceilings": ceilings,
    "bf16": partial(forwards, "BF16"),
    "fp16": partial(forwards, "FP16"),
    "fp8": partial(forwards, FP8),
    "streams": streams,
    "graphs": graphs,
}


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("part", choices=list(PARTS))
    add("--device", type=torch.device, default=torch.device("cuda"))
    add("--shape", choices=list(PROTEIN_SHAPES), default="3B", help="of ESM-2; DNABERT-S has its own")
    add("--tokens", type=_sizes, default=(32_768, 16_384), help="of a batch, such as 32768,16384")
    add("--square", type=int, default=_SQUARE, help="the size of the matrices of the ceiling")
    add("--copied", type=int, default=_COPIED_BYTES, help="bytes of the copy of the ceiling")
    add("--lines", type=Path, help="a file that rows of JSON are appended to")
    add("--until", type=float, help="seconds since 1970, after which nothing new begins")
    return parser.parse_args(words)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


@torch.inference_mode()
def main(words: Sequence[str] | None = None) -> int:
    """Run a part; return the exit code."""
    options = _arguments(words)
    lines = Lines(options.lines, options.until)
    lines.write({"measured": "facts", "part": options.part, **facts(list(words or sys.argv[1:]))})
    shared = (options.device, options.shape, options.tokens, options.square, options.copied)
    PARTS[options.part](Setting(lines, *shared))
    return TIME_IS_UP if lines.left_out else 0


if __name__ == "__main__":
    sys.exit(main())
