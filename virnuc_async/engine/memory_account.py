"""How much memory of a GPU a replica needs, from the shapes of its networks and the size of its batches."""

from dataclasses import dataclass

from virnuc_async.networks.shapes import NucleotideShape, ProteinShape, Shapes
from virnuc_async.settings import Precision

# Bytes of a number. FP8 is of products alone: weights are loaded in 16 bits and then quantized, and what
# products give is kept in 16 bits.
_BYTES = {Precision.FP32: 4}
_HALF = 2

# Of bases, as many tokens as letters where letters are unknown: three for a residue. See largest_batch.
_BASES_PER_RESIDUE = 3

# Outside of what torch counts, and not known from shapes: CUDA's context and the code of the kernels.
_CONTEXT = 700 << 20
_PRODUCTS = 64 << 20  # workspaces of cuBLAS and cuBLASLt
_MARGIN = 0.9  # of the free memory: blocks of other sizes leave gaps


@dataclass(frozen=True, slots=True)
class MemoryAccount:
    """The memory of one replica on a GPU, in bytes."""

    weights: int
    per_token: int  # activations of one residue token, or of the bases that it may have, at their peak
    workspaces: int
    context: int = _CONTEXT

    def activations(self, tokens: int) -> int:
        """Return what a batch of *tokens* residue tokens needs at its peak."""
        return tokens * self.per_token + self.workspaces

    def peak(self, tokens: int) -> int:
        """Return the most that torch allocates with batches of *tokens*: its max_memory_allocated."""
        return self.weights + self.activations(tokens)

    def tokens_within(self, free: int) -> int:
        """Return the residue tokens of the largest batch that fits with all else into *free* bytes, or 0."""
        room = int(_MARGIN * free) - self.context - self.weights - self.workspaces
        return max(0, room // self.per_token)


def account(shapes: Shapes, precision: Precision) -> MemoryAccount:
    """
    Return what a replica of networks of these *shapes* needs in *precision*, with this program's kernels.

    In plain torch, where a kernel cannot be used, it is up to twice as much: the first batch shows whether
    there is room for it.
    """
    size = _BYTES.get(precision, _HALF)
    # One encoder after the other: the second finds the memory of the first free.
    bases = _BASES_PER_RESIDUE * nucleotide_numbers(shapes.nucleotide)
    protein = size * protein_numbers(shapes.protein)
    if precision is Precision.FP8:
        protein += 5 * shapes.protein.width  # of what was attended and of the MLP's inner numbers
    # What half precision cannot hold is computed again with one matrix in FP32 at a time.
    largest_matrix = 0 if size == 4 else 4 * 4 * shapes.protein.width**2
    encoders = shapes.protein.parameters + shapes.nucleotide.parameters
    return MemoryAccount(
        weights=size * encoders + 4 * shapes.classifier.parameters,
        per_token=max(protein, size * bases),
        workspaces=largest_matrix + _PRODUCTS,
    )


def protein_numbers(shape: ProteinShape) -> int:
    """Return how many activations a token of an ESM-2 has at the same time, at most."""
    # The sum and its norm; queries, keys and values; what was attended, and its projection; the MLP's
    # inner numbers, activated in place, and their projection.
    return (2 + 3 + 2 + 4 + 1) * shape.width


def nucleotide_numbers(shape: NucleotideShape) -> int:
    """Return how many activations a token of a DNABERT-S has at the same time, at most."""
    # The sum; queries, keys and values; what was attended, and its projection; both halves of the MLP and
    # their product.
    return (1 + 3 + 2) * shape.width + 3 * shape.intermediate
