"""
Compare the encoders with other programs' in rounds: in each round, every engine computes the same rows.

Weights are random, as large as a trained network's, and the same in all engines. A ratio is the median
over the rounds of the times within one round, and so is the fraction of the machine's matrix rate, which
is measured in every round too: other load on the machine slows all of them. Threads that spin while they
wait distort the results on a busy machine: set OMP_WAIT_POLICY=PASSIVE, as predict does.
"""

import argparse
import copy
import itertools
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
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
    timed,
    ways,
)
from esm.model.esm2 import ESM2
from esm_cpp_peer import EsmCpp, installed_version
from json_lines import TIME_IS_UP, Lines
from measured import facts, installed, save, table
from random_bundle import DNABERT_S, NUCLEOTIDE_SHAPES, PROTEIN_SHAPES, byte_pairs
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import EsmForMaskedLM, EsmModel

from virnuc_async.models.peers import (
    States,
    embed_padded,
    fair_esm,
    fair_esm_states,
    hugging_face,
    hugging_face_states,
)
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.packing import pack
from virnuc_async.networks.shapes import ProteinShape
from virnuc_async.sequences.batches import longest_first
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.tokens import OrfTokenizer, Ragged
from virnuc_async.sequences.windows import Cut, form_windows

OURS = ("plain", "packed", "kernels")
WORKS = ("168", "52", "mix")
REFERENCE = "fair-esm FP32"
FP32, BF16 = torch.float32, torch.bfloat16
_BOS, _EOS = 0, 2
_Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Work:
    """Rows to compute, longest first."""

    name: str
    rows: Ragged
    batch: int  # tokens

    @property
    def tokens(self) -> int:
        return len(self.rows.ids)

    def lists(self) -> list[list[int]]:
        """Return the rows one by one."""
        return [row.tolist() for row in np.split(self.rows.ids, np.cumsum(self.rows.lengths)[:-1])]

    def batches(self) -> Iterator[Ragged]:
        """Return the batches that the pipeline would form."""
        return (self.rows.take(some) for some in longest_first(self.rows.lengths, self.batch))


@dataclass(frozen=True, slots=True)
class Engine:
    """Something that embeds the rows of a work; *run* returns their means, or None."""

    name: str
    run: Callable[[Work], Tensor | None]


# Ours


def ours(network: Encoder, way: str, precision: str) -> Engine:
    """Make an engine of *network*, which stays unchanged, prepared in one *way*."""
    ready, device = prepared(network, way, precision), next(network.parameters()).device

    def run(work: Work) -> Tensor:
        return torch.cat([ready.embeddings(pack(rows).to(device)) for rows in work.batches()])

    return Engine(f"{way} {precision}", run)


def one_by_one(network: DnabertS, device: torch.device) -> Engine:
    """Make an engine of *network* that takes single rows, as published."""
    ready = copy.deepcopy(network).to(device)

    def run(work: Work) -> Tensor:
        rows = (work.rows.take(np.array([at])) for at in range(len(work.rows.lengths)))
        return torch.cat([ready.embeddings(pack(row).to(device)) for row in rows])

    return Engine("plain FP32, batch 1", run)


# Other programs


def padded(name: str, states: States, device: torch.device) -> Engine:
    """Make an engine of a network that computes *states* (B, T, C) of padded ids (B, T)."""

    return Engine(name, lambda work: embed_padded(states, work.lists(), device))


def fair_esm_engine(network: ESM2, dtype: torch.dtype, device: torch.device) -> Engine:
    """Make an engine of fair-esm's *network*: as published, or under autocast."""
    exact = fair_esm_states(network.to(device))
    context = nullcontext() if dtype is FP32 else torch.autocast(device.type, dtype)

    def states(ids: Tensor) -> Tensor:
        with context:
            return exact(ids)

    return padded(REFERENCE if dtype is FP32 else "fair-esm autocast BF16", states, device)


def _as_first_published(network: EsmModel, frequencies: Tensor) -> dict[str, Tensor]:
    """Return transformers' tensors with the rotary *frequencies*, which today's version leaves out."""
    whole = EsmForMaskedLM(network.config)  # its language head is random: it decides no embedding
    state = whole.state_dict() | {f"esm.{name}": tensor for name, tensor in network.state_dict().items()}
    for number in range(network.config.num_hidden_layers):
        name = f"esm.encoder.layer.{number}.attention.self.rotary_embeddings.inv_freq"
        state[name] = frequencies
    return {name: tensor.contiguous().clone() for name, tensor in state.items()}


def transformers_engine(network: EsmModel, dtype: torch.dtype, device: torch.device) -> Engine:
    """Make an engine of transformers' *network*, with its SDPA attention."""
    encoder = copy.deepcopy(network).to(device, dtype)
    return padded(f"transformers {'FP32' if dtype is FP32 else 'BF16'}", hugging_face_states(encoder), device)


# Work


def uniform(length: int, tokens: int, batch: int) -> Work:
    """Make random rows of *length* tokens each."""
    count = max(1, tokens // length)
    ids = np.random.default_rng(length).integers(4, 24, (count, length)).astype(np.int32)
    ids[:, 0], ids[:, -1] = _BOS, _EOS
    return Work(str(length), Ragged(ids.ravel(), np.full(count, length)), batch)


def real(path: Path, tokens: int, batch: int) -> tuple[Work, Work]:
    """Return the residues and the bases of ORFs from all parts of a FASTA file."""
    tokenizer = OrfTokenizer(byte_pairs(DNABERT_S.vocabulary))
    window = next(form_windows([str(path)], read_contigs, Cut(500, 1 << 20), tokenizer))
    count = max(1, round(tokens / window.residues.lengths.mean()))
    rows = np.linspace(0, len(window.residues.lengths) - 1, count).astype(np.int64)
    rows = rows[np.argsort(-window.residues.lengths[rows], kind="stable")]
    some = Work("mix", window.residues.take(rows), batch)
    rows = rows[np.argsort(-window.nucleotides.lengths[rows], kind="stable")]
    return some, Work("bases", window.nucleotides.take(rows), batch)


# Measuring


@dataclass(frozen=True, slots=True)
class Setting:
    """The settings that all measurements share."""

    device: torch.device
    repeats: int
    reference: str = REFERENCE
    lines: Lines = field(default_factory=lambda: Lines(None))


def measure(model: str, shape: Shape, engines: Sequence[Engine], work: Work, setting: Setting) -> list[_Row]:
    """Return a row for each of *engines*, which are run on *work* round by round until the time is up."""
    if setting.lines.is_time_up:
        setting.lines.not_reached(f"{model} {work.name}")
        return []
    means = {engine.name: engine.run(work) for engine in engines}  # warm
    rates: dict[str, list[float]] = {_precision_of(engine.name): [] for engine in engines}
    times: dict[str, list[float]] = {engine.name: [] for engine in engines}
    tokens = 2016 if setting.device.type == "cpu" else 16384
    for number in range(setting.repeats):
        if number and setting.lines.is_time_up:
            setting.lines.not_reached(f"{model} {work.name}: {setting.repeats - number} rounds")
            break
        for precision, found in rates.items():
            found.append(matrix_rate(products_of(shape), tokens, precision, setting.device))
        for engine in engines:
            times[engine.name].append(timed(lambda engine=engine: engine.run(work), setting.device)[0])
    rows = []
    for name, spent in times.items():
        rate = rates[_precision_of(name)]
        work_flop = flop(shape, work.rows.lengths)
        shares = [work_flop / seconds / peak for seconds, peak in zip(spent, rate, strict=True)]
        row: _Row = {"model": model, "tokens": work.name, "engine": name}
        row["seconds"] = statistics.median(spent)
        row["tokens/s"] = work.tokens / row["seconds"]
        row["of matrix rate"] = "" if "INT8" in name else round(statistics.median(shares), 3)
        row["matrix GFLOP/s"] = statistics.median(rate) / 1e9
        rows.append(row | _differences(means[name], means[setting.reference]))
        rows[-1] |= {f"x {peer}": _ratio(times[peer], spent) for peer in _peers(times, setting)}
        setting.lines.write({"measured": "encoder", **rows[-1]})
    return rows


def _precision_of(engine: str) -> str:
    return next((name for name in DTYPES if name in engine), "FP32")


def _peers(times: dict[str, list[float]], setting: Setting) -> list[str]:
    return [name for name in times if not name.startswith(OURS)] or [setting.reference]


def _ratio(theirs: Sequence[float], spent: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(theirs, spent, strict=True)), 2)


def _differences(found: Tensor | None, expected: Tensor | None) -> _Row:
    if found is None or expected is None:
        return {"deviation": "", "cosine": "", "same labels": ""}
    a, b = found.double().cpu(), expected.double().cpu()
    cosine = nn.functional.cosine_similarity(a, b, dim=-1).min()
    same = (_labels(a, b) == _labels(b, b)).double().mean()
    return {
        "deviation": f"{(a - b).abs().max():.1e}",
        "cosine": f"{cosine:.6f}",
        "same labels": f"{same:.4f}",
    }


def _labels(means: Tensor, like: Tensor) -> Tensor:
    """Classify *means* by a random network of the published depth, split at the mean score of *like*."""
    random = torch.Generator().manual_seed(2)
    inner = torch.randn(means.shape[1], 512, generator=random, dtype=torch.double)
    outer = torch.randn(512, generator=random, dtype=torch.double)
    centre, spread = like.mean(0), like.std(0) + 1e-9
    scores, all_scores = (((x - centre) / spread @ inner).relu() @ outer for x in (means, like))
    return scores > all_scores.mean()


# Commands


def protein_engines(shape: ProteinShape, options: argparse.Namespace, stack: ExitStack) -> list[Engine]:
    """Return every engine that *options* ask for; all of FP32 share their weights."""
    device = torch.device(options.device)
    network = random_encoder(shape, FP32, device)
    published, hub = fair_esm(shape, network.state_dict()), hugging_face(shape, network.state_dict())
    frequencies = published.layers[0].self_attn.rot_emb.inv_freq.clone()
    engines = every_way(network, options)
    engines += [fair_esm_engine(published, dtype, device) for dtype in (FP32, BF16)]
    engines += [transformers_engine(hub, dtype, device) for dtype in (FP32, BF16)]
    if options.esm_cpp_python and device.type == "cpu":
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        save_file(_as_first_published(hub, frequencies), place / "model.safetensors")
        for kind in ("FP32", "INT8"):
            peer = stack.enter_context(EsmCpp(options.esm_cpp_python, place / "model.safetensors", kind))
            engines.append(Engine(f"esm-cpp {kind}", lambda work, peer=peer: peer.run(work.lists())))
    return engines


def every_way(network: Encoder, options: argparse.Namespace) -> list[Engine]:
    """Return an engine for each of our ways and each precision; the weights are in memory once each."""
    copies = {DTYPES[name]: copied(network, DTYPES[name]) for name in options.precisions}
    found = itertools.product(ways(torch.device(options.device)), options.precisions)
    # FP8 comes with its kernels, and DNABERT-S has none of it.
    return [
        ours(copies[DTYPES[name]], way, name)
        for way, name in found
        if name != FP8 or (way != PLAIN and isinstance(network, Esm2))
    ]


def copied(network: Encoder, dtype: torch.dtype) -> Encoder:
    """Return a copy of *network* in *dtype*; in its own type, the network."""
    if next(network.parameters()).dtype is dtype:
        return network
    tensors = {
        id(tensor): nn.Parameter(tensor.to(dtype), requires_grad=False) for tensor in network.parameters()
    }
    return copy.deepcopy(network, tensors)


def bench_proteins(options: argparse.Namespace) -> Iterator[_Row]:
    """Yield the rows of the ESM-2 shapes that *options* name."""
    setting = Setting(torch.device(options.device), options.repeats, lines=options.lines)
    works = {
        "168": uniform(168, options.tokens, options.batch),
        "52": uniform(52, options.tokens, options.batch),
        "mix": real(options.fasta, options.tokens, options.batch)[0],
    }
    for model in options.shapes:
        with ExitStack() as stack:
            engines = protein_engines(PROTEIN_SHAPES[model], options, stack)
            for name in options.works:
                yield from measure(model, PROTEIN_SHAPES[model], engines, works[name], setting)


def bench_bases(options: argparse.Namespace) -> list[_Row]:
    """Return the rows of DNABERT-S in its real shape, compared with calls of one row each."""
    device, shape = torch.device(options.device), NUCLEOTIDE_SHAPES.get(options.shapes[-1], DNABERT_S)
    network = random_encoder(shape, FP32, device)
    engines = [*every_way(network, options), one_by_one(network, device)]
    work = real(options.fasta, options.tokens, options.batch)[1]
    setting = Setting(device, options.repeats, engines[-1].name, options.lines)
    return measure("DNABERT-S", shape, engines, work, setting)


def nucleotide_shares(proteins: Sequence[_Row], bases: Sequence[_Row]) -> Iterator[_Row]:
    """Yield DNABERT-S's time relative to that of each ESM-2, for the same ORFs and the same engine."""
    for protein, base in ((p, b) for b in bases for p in proteins):
        if protein["tokens"] == "mix" and protein["engine"] == base["engine"]:
            share = base["seconds"] / protein["seconds"]
            yield {
                "engine": base["engine"],
                "beside": protein["model"],
                "DNABERT-S over ESM-2": f"{share:.1%}",
            }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    cuda = torch.cuda.is_available()
    parser.add_argument(
        "--shapes", type=lambda text: text.split(","), default=["8M", "35M"], help=", ".join(PROTEIN_SHAPES)
    )
    parser.add_argument(
        "--works", type=lambda text: text.split(","), default=list(WORKS), help=", ".join(WORKS)
    )
    parser.add_argument("--device", default="cuda" if cuda else "cpu", help="cpu, cuda or cuda:1")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--tokens", type=int, default=1 << 16 if cuda else 2048, help="of a work")
    parser.add_argument("--batch", type=int, default=16384 if cuda else 2048, help="tokens of our batches")
    parser.add_argument("--fasta", type=Path, default=Path("docs/examples/metagenome.fa.gz"))
    parser.add_argument("--esm-cpp-python", type=Path, help="the interpreter of an environment with esm-cpp")
    parser.add_argument(
        "--precisions", type=lambda text: text.split(","), help="of ours (default: those of the device)"
    )
    parser.add_argument("--no-bases", action="store_true", help="without DNABERT-S")
    parser.add_argument("--output", type=Path, help="a JSON file")
    parser.add_argument("--lines", type=Path, help="a file that rows of JSON are appended to")
    parser.add_argument("--until", type=float, help="seconds since 1970, after which nothing new begins")
    options = parser.parse_args()
    options.precisions = options.precisions or precisions(torch.device(options.device))
    options.lines = Lines(options.lines, options.until)
    return options


def main() -> int:
    options = _arguments()
    about = facts(sys.argv[1:])
    about["versions"] |= {name: installed(name) for name in ("fair-esm", "transformers")}
    if options.esm_cpp_python:
        about["versions"]["esm-cpp"] = installed_version(options.esm_cpp_python)
    about["threads"] = torch.get_num_threads()
    about["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "")
    options.lines.write({"measured": "facts", **about})
    rows: list[_Row] = []
    with torch.inference_mode():
        for row in bench_proteins(options):
            rows.append(row)
            print(row["model"], row["tokens"], row["engine"], f"{row['tokens/s']:,.0f} tokens/s", flush=True)
        bases = [] if options.no_bases else bench_bases(options)
    shares = list(nucleotide_shares(rows, bases))
    for part in filter(None, (rows, bases, shares)):
        print(f"\n{table(part)}")
    if options.output:
        save(options.output, {**about, "proteins": rows, "bases": bases, "shares": shares})
    return TIME_IS_UP if options.lines.left_out else 0


if __name__ == "__main__":
    sys.exit(main())
