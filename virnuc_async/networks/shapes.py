"""The dimensions of each network, as ``bundle.json`` holds them. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProteinShape:
    """An ESM-2; its MLP is four times as wide as *width*."""

    layers: int
    width: int
    heads: int

    @property
    def parameters(self) -> int:
        """The number of parameters: embedding, layers, and the final norm."""
        layer = 12 * self.width**2 + 13 * self.width
        return 33 * self.width + self.layers * layer + 2 * self.width


@dataclass(frozen=True, slots=True)
class NucleotideShape:
    """A DNABERT-S; *intermediate* is the width of one half of the gated MLP."""

    layers: int
    width: int
    heads: int
    intermediate: int
    vocabulary: int
    eps: float = 1e-12

    @property
    def parameters(self) -> int:
        """The number of parameters: embedding, layers, and the norms."""
        layer = 4 * self.width**2 + 9 * self.width + 3 * self.intermediate * self.width
        return (self.vocabulary + 3) * self.width + self.layers * layer


@dataclass(frozen=True, slots=True)
class ClassifierShape:
    """The MLP on both embeddings, which have *inputs* numbers together."""

    inputs: int
    hidden: int

    @property
    def parameters(self) -> int:
        """The number of parameters, including the running mean, variance and count of the batch norm."""
        return (self.inputs + 1) * self.hidden + 4 * self.hidden + 1 + 2 * (self.hidden + 1)


@dataclass(frozen=True, slots=True)
class Shapes:
    """The dimensions of the three networks of a bundle."""

    protein: ProteinShape
    nucleotide: NucleotideShape
    classifier: ClassifierShape
