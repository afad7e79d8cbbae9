"""VirNucPro's classifier: both embeddings of an ORF to "others" or "virus"."""

import torch
from torch import Tensor, nn

from .linear import Linear, can_prepack, prepack
from .shapes import ClassifierShape


class Classifier(nn.Module):
    """Linear, batch norm, ReLU, dropout, Linear, softmax; always computed in FP32."""

    def __init__(self, shape: ClassifierShape, dropout: float = 0.5) -> None:
        super().__init__()
        self.hidden = Linear(shape.inputs, shape.hidden)
        self.norm = nn.BatchNorm1d(shape.hidden)
        self.dropout = nn.Dropout(dropout)
        self.output = Linear(shape.hidden, 2)

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (B, 2), others and virus, of *features* (B, inputs), the bases' first."""
        return self.output(self.dropout(self.norm(self.hidden(features)).relu()))  # type: ignore[no-any-return]

    def forward(self, features: Tensor) -> Tensor:
        """Return P(others) and P(virus) of each row, (B, 2)."""
        return self.logits(features).softmax(1)

    def prepack(self) -> None:
        """Pack the weights for inference on the CPU: identical to the bit for any number of threads."""
        if can_prepack(torch.float32):
            prepack(self)
