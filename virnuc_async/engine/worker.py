"""Batches that a device has scored."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virnuc_async.errors import Stage
from virnuc_async.sequences.batches import Batch


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """A batch that was scored, ready to be kept; row i is the batch's ORF i."""

    batch: Batch
    device: str
    seconds: float
    probabilities: NDArray[np.float32]  # (B, 2): others, virus
    embeddings: NDArray[np.float32] | None  # (B, C)
    failures: Mapping[int, tuple[Stage, str]]  # row -> where and why this ORF got no score
