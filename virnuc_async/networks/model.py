"""
The three networks of a bundle on one device: load, prepare, embed, classify. Uses no threads.

Nothing here waits for a GPU: all work is queued on its current stream.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .classifier import Classifier
from .dnabert_s import DnabertS
from .esm2 import Esm2
from .fp8 import use_fp8
from .kernels.selection import Missing, warning_of
from .linear import can_prepack
from .loading import Network, load
from .shapes import Shapes
from .upcast import upcast

Encoder = DnabertS | Esm2


class Outputs(NamedTuple):
    """Tensors of a batch on the device; row i is the batch's ORF i."""

    probabilities: Tensor  # (B, 2): others, virus
    is_finite: Tensor  # (3, B): the output of DNABERT-S, of ESM-2, of the classifier
    features: Tensor  # (B, C): the bases' embedding, then the residues'


class Model:
    """DNABERT-S, ESM-2 and the classifier on one device; the encoders in one precision."""

    def __init__(self, nucleotide: DnabertS, protein: Esm2, classifier: Classifier) -> None:
        self.nucleotide = nucleotide
        self.protein = protein
        self.classifier = classifier
        self._upcast: Model | None = None
        self._missing: list[Missing] = []  # kernels of FP8

    @classmethod
    def load(
        cls,
        directory: Path,
        shapes: Shapes,
        device: torch.device,
        dtype: torch.dtype,
        before_each: Callable[[], None] = lambda: None,
        fp8: bool = False,
    ) -> "Model":
        """
        Load the networks of the bundle in *directory*; *before_each* is called before each tensor.

        On the CPU, weights are packed where this torch and this processor can. With *fp8*, ESM-2 multiplies
        in FP8, and *dtype* is BF16.

        Raises:
            BadBundle: a file does not match *shapes*
            UnsuitablePrecision: a weight is too large for *dtype*, or FP8 has no products of its matrices
        """
        with torch.device("meta"):
            nucleotide, protein = DnabertS(shapes.nucleotide), Esm2(shapes.protein)
            classifier = Classifier(shapes.classifier)

        def loaded(network: Network, name: str, dtype: torch.dtype, packs: bool = True) -> Network:
            packed = packs and device.type == "cpu" and can_prepack(dtype)
            return load(network, directory / f"{name}.safetensors", device, dtype, before_each, packed)

        model = cls(
            loaded(nucleotide, "nucleotide", dtype),
            loaded(protein, "protein", dtype, packs=not fp8),
            loaded(classifier, "classifier", torch.float32),
        )
        if fp8:
            model._missing = use_fp8(model.protein)
        return model

    def use_gpu_kernels(self) -> str | None:
        """Select the fastest correct kernels of each encoder; return a warning if some cannot be used."""
        missing = [*self.nucleotide.use_gpu_kernels(), *self.protein.use_gpu_kernels(), *self._missing]
        return warning_of(missing)

    def in_fp32(self) -> "Model":
        """Return the same networks in FP32; they share the weights and up-cast one matrix at a time."""
        if self._upcast is None:
            self._upcast = Model(upcast(self.nucleotide), upcast(self.protein), self.classifier)
        return self._upcast

    def classify(self, bases: Tensor, residues: Tensor) -> Outputs:
        """Return the scores of the embeddings *bases* and *residues* (B, C each)."""
        features = torch.cat((bases, residues), 1)
        probabilities = self.classifier(features)
        is_finite = torch.stack([part.isfinite().all(1) for part in (bases, residues, probabilities)])
        return Outputs(probabilities, is_finite, features)


def similarity(some: Tensor, others: Tensor) -> Tensor:
    """Return the cosine of each pair of rows, or less if their lengths differ."""
    return 2 * (some * others).sum(1) / (some * some + others * others).sum(1)
