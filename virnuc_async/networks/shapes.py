"""The dimensions of each network; what ``bundle.json`` holds of them. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProteinShape:
    """An ESM-2; its MLP is four times as wide as *width*."""

    layers: int
    width: int
    heads: int


@dataclass(frozen=True, slots=True)
class NucleotideShape:
    """A DNABERT-S; *intermediate* is the width of one half of the gated MLP."""

    layers: int
    width: int
    heads: int
    intermediate: int
    vocabulary: int
    eps: float = 1e-12


@dataclass(frozen=True, slots=True)
class ClassifierShape:
    """The MLP on both embeddings, *inputs* numbers together."""

    inputs: int
    hidden: int
