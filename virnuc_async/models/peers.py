"""
The ESM-2 networks of fair-esm and transformers with a bundle's weights, compared with ours.

Both packages only provide the code of their networks: these are built from a bundle's shape, get the
tensors of its ``protein.safetensors``, and compute the same proteins on the same device in FP32.
Nothing is downloaded, and no code from a model repository is executed. DNABERT-S has no such peer: its
published network exists only as code in a model repository.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from esm.data import Alphabet
from esm.model.esm2 import ESM2
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import EsmConfig, EsmModel

from virnuc_async.errors import PeerUnavailable
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.linear import can_prepack
from virnuc_async.networks.loading import load
from virnuc_async.networks.packing import pack
from virnuc_async.networks.shapes import ProteinShape
from virnuc_async.sequences.tokens import OrfTokenizer, Ragged

from .bundle import Bundle

MIN_COSINE = 0.9999
MAX_DEVIATION = 1e-4  # of one number; times the embedding's largest number where that is above 1

_BATCH_TOKENS = 2048  # of a padded batch, padding included, as in the published program
_MAX_RESIDUES = 1024  # the published embedding is the mean of at most this many
_PAD = 1
_MAX_ROUNDS = 5  # small networks take milliseconds, of which the first call is not representative

_Numbers = NDArray[np.float64]
Weights = Mapping[str, Tensor]  # under our names
States = Callable[[Tensor], Tensor]  # padded ids (B, T) to the last hidden states (B, T, C)

# Our names of modules to those of each package; q, k and v are one module of ours.
_FAIR_ESM_NAMES = {
    "embed": "embed_tokens",
    "norm": "emb_layer_norm_after",
    "layers": "layers",
    "attention_norm": "self_attn_layer_norm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "mlp_norm": "final_layer_norm",
    "up": "fc1",
    "down": "fc2",
}
_TRANSFORMERS_NAMES = {
    "embed": "embeddings.word_embeddings",
    "norm": "encoder.emb_layer_norm_after",
    "layers": "encoder.layer",
    "attention_norm": "attention.LayerNorm",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "out": "attention.output.dense",
    "mlp_norm": "LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
}


@dataclass(frozen=True, slots=True)
class PeerResult:
    """How the embeddings of a peer and ours of the same proteins agree; the worst of all proteins."""

    peer: str  # package and version
    deviation: float  # the largest absolute difference of a number
    max_deviation: float  # that is tolerated
    cosine: float  # the lowest
    tokens_per_second: float  # residues with <cls> and <eos>, without padding
    our_tokens_per_second: float

    @property
    def agrees(self) -> bool:
        """Whether both embeddings are equal within the tolerance; NaN is not."""
        return self.deviation <= self.max_deviation and self.cosine >= MIN_COSINE


def compare_with_peers(
    bundle: Bundle,
    proteins: Sequence[bytes],
    device: torch.device,
    on_peer: Callable[[str], object] = lambda _: None,
    max_seconds: float = 2.0,
) -> list[PeerResult]:
    """
    Return how each peer agrees with our ESM-2 on the embeddings of *proteins*, in FP32 on *device*.

    *on_peer* is called with the name of each network before it is built. One network at a time is
    in memory. Each is timed in several calls until they have taken *max_seconds*.

    Raises:
        BadBundle: the weights do not match the bundle's description
        PeerUnavailable: a package has another ESM-2 than the one known here
    """
    on_peer("virnuc-async")
    ours, our_seconds = _measure(lambda: _our_embedder(bundle, proteins, device), device, max_seconds)
    tokens = sum(len(protein) + 2 for protein in proteins)
    results = []
    builders: dict[str, Callable[[ProteinShape, Weights], States]] = {
        "fair-esm": lambda shape, weights: fair_esm_states(fair_esm(shape, weights).to(device)),
        "transformers": lambda shape, weights: hugging_face_states(hugging_face(shape, weights).to(device)),
    }
    for peer, build in builders.items():
        on_peer(peer)
        make = partial(_peer_embedder, build, bundle, proteins, device)
        theirs, seconds = _measure(make, device, max_seconds)
        results.append(
            PeerResult(
                peer=f"{peer} {version(peer)}",
                deviation=float(np.abs(ours - theirs).max()),
                max_deviation=MAX_DEVIATION * max(1.0, float(np.abs(theirs).max())),
                cosine=_lowest_cosine(ours, theirs),
                tokens_per_second=tokens / seconds,
                our_tokens_per_second=tokens / our_seconds,
            )
        )
    return results


def fair_esm(shape: ProteinShape, weights: Weights) -> ESM2:
    """
    Return fair-esm's ESM-2 with *weights*; its language head is random.

    Raises:
        PeerUnavailable: fair-esm's network has other tensors
    """
    return _with_weights(
        "fair-esm",
        lambda layers: ESM2(layers, shape.width, shape.heads),
        shape.layers,
        _rename(weights, _FAIR_ESM_NAMES),
    )


def hugging_face(shape: ProteinShape, weights: Weights) -> EsmModel:
    """
    Return transformers' ESM-2 with *weights*.

    Raises:
        PeerUnavailable: transformers' network has other tensors
    """
    return _with_weights(
        "transformers",
        lambda layers: EsmModel(hugging_face_config(shape, layers), add_pooling_layer=False),
        shape.layers,
        _rename(weights, _TRANSFORMERS_NAMES),
    )


def hugging_face_config(shape: ProteinShape, layers: int) -> EsmConfig:
    """Return transformers' configuration of an ESM-2 with *shape*, but for the number of *layers*."""
    return EsmConfig(
        vocab_size=33,
        hidden_size=shape.width,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=1026,
        position_embedding_type="rotary",
        token_dropout=True,
        emb_layer_norm_before=False,
        layer_norm_eps=1e-5,
        pad_token_id=_PAD,
        mask_token_id=32,
    )


def fair_esm_states(network: ESM2) -> States:
    """Return a function that computes the last hidden states of fair-esm's *network*."""
    last = network.num_layers

    def states(ids: Tensor) -> Tensor:
        return network(ids, repr_layers=[last])["representations"][last]  # type: ignore[no-any-return]

    return states


def hugging_face_states(network: EsmModel) -> States:
    """Return a function that computes the last hidden states of transformers' *network*."""

    def states(ids: Tensor) -> Tensor:
        return network(ids, attention_mask=ids.ne(_PAD)).last_hidden_state  # type: ignore[no-any-return]

    return states


def embed_padded(states: States, rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return the embedding (B, C) of each of *rows*, token ids, computed in padded batches."""
    means: list[Tensor] = [torch.empty(0)] * len(rows)
    for numbers, ids in padded_batches(rows):
        hidden = states(ids.to(device))
        for line, number in enumerate(numbers):
            residues = min(len(rows[number]) - 2, _MAX_RESIDUES)
            means[number] = hidden[line, 1 : 1 + residues].float().mean(0)
    return torch.stack(means)


def padded_batches(
    rows: Sequence[Sequence[int]], max_tokens: int = _BATCH_TOKENS
) -> Iterator[tuple[list[int], Tensor]]:
    """
    Yield batches as fair-esm forms them, shortest rows first: the numbers of the rows, and their ids.

    A batch has at most *max_tokens*, padding included, or is a single row.
    """
    numbers: list[int] = []
    for number in sorted(range(len(rows)), key=lambda number: len(rows[number])):
        if numbers and len(rows[number]) * (len(numbers) + 1) > max_tokens:
            yield numbers, _padded(rows, numbers)
            numbers = []
        numbers.append(number)
    if numbers:
        yield numbers, _padded(rows, numbers)


def _padded(rows: Sequence[Sequence[int]], numbers: Sequence[int]) -> Tensor:
    ids = torch.full((len(numbers), max(len(rows[number]) for number in numbers)), _PAD)
    for line, number in enumerate(numbers):
        ids[line, : len(rows[number])] = torch.tensor(rows[number])
    return ids


def _our_embedder(bundle: Bundle, proteins: Sequence[bytes], device: torch.device) -> Callable[[], Tensor]:
    with torch.device("meta"):
        network = Esm2(bundle.shapes.protein)
    packed = device.type == "cpu" and can_prepack(torch.float32)
    load(network, bundle.directory / "protein.safetensors", device, torch.float32, packed=packed)
    if device.type != "cpu":
        network.use_gpu_kernels()
    rows: Ragged = OrfTokenizer(bundle.tokenizer()).residues(proteins)
    return lambda: network.embeddings(pack(rows).to(device))


def _peer_embedder(
    build: Callable[[ProteinShape, Weights], States],
    bundle: Bundle,
    proteins: Sequence[bytes],
    device: torch.device,
) -> Callable[[], Tensor]:
    weights = load_file(bundle.directory / "protein.safetensors")
    states = build(bundle.shapes.protein, {name: tensor.float() for name, tensor in weights.items()})
    # By fair-esm's own alphabet: the tokens are compared, too.
    alphabet = Alphabet.from_architecture("ESM-1b")
    rows = [
        [alphabet.cls_idx, *map(alphabet.get_idx, protein.decode("ascii")), alphabet.eos_idx]
        for protein in proteins
    ]
    return lambda: embed_padded(states, rows, device)


@torch.inference_mode()
def _measure(
    make: Callable[[], Callable[[], Tensor]], device: torch.device, max_seconds: float
) -> tuple[_Numbers, float]:
    """Return the embeddings by the embedder that *make* returns, and the seconds of its fastest call."""
    # Kernels are launched on the GPU that the thread has selected, wherever their tensors are.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        # Made here, so that its network is freed before the next one is built.
        embed = make()
        seconds: list[float] = []
        while not seconds or (len(seconds) < _MAX_ROUNDS and sum(seconds) < max_seconds):
            started = time.perf_counter()
            embeddings = embed()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
        return embeddings.double().cpu().numpy(), min(seconds)


def _lowest_cosine(some: _Numbers, others: _Numbers) -> float:
    # Zeros and numbers that are not finite make NaN, which is never within the tolerance.
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(some, axis=1) * np.linalg.norm(others, axis=1)
        return float(((some * others).sum(1) / lengths).min())


def _rename(weights: Weights, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return *weights* under the *names* of another package, with q, k and v apart."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        *layer, module, kind = name.split(".")  # layers.3.qkv.weight, or norm.bias
        prefix = f"{names['layers']}.{layer[1]}." if layer else ""
        parts = zip("qkv", tensor.chunk(3), strict=True) if module == "qkv" else [(module, tensor)]
        renamed |= {f"{prefix}{names[part]}.{kind}": value for part, value in parts}
    return renamed


def _with_weights(peer: str, build: Callable[[int], Any], layers: int, weights: Weights) -> Any:
    """
    Return the network of *layers* that *build* makes, with *weights*.

    What a bundle does not have (rotary frequencies, fair-esm's language head) is taken from a network of
    one layer: to initialize all layers would take minutes and twice the memory.
    """
    single = build(1)
    with torch.device("meta"):
        network = build(layers)
    # Never used, and the only part whose size depends on the number of layers.
    network.contact_head = nn.Identity()
    initial = {**dict(single.named_buffers()), **single.state_dict()}
    state = {name: initial[_in_first_layer(name)] for name in network.state_dict() if name not in weights}
    try:
        network.load_state_dict({**state, **weights}, assign=True)
    except RuntimeError as error:
        raise PeerUnavailable(peer, " ".join(str(error).split())[:300]) from error
    for name, buffer in list(network.named_buffers()):
        if buffer.is_meta:  # in no state_dict
            owner, _, own_name = name.rpartition(".")
            setattr(network.get_submodule(owner), own_name, initial[_in_first_layer(name)])
    return network.requires_grad_(False).eval()


def _in_first_layer(name: str) -> str:
    return re.sub(r"(layers?)\.\d+\.", r"\1.0.", name)
