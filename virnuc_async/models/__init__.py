"""
Bundles of models, their checkpoints, references and calibrations, and files of embeddings.

The names below are imported when they are first used: they need torch, whose import takes seconds, and
a run that has nothing to compute does without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .feature_formats import read_features, save_features

__all__ = ["read_features", "save_features"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.feature_formats"), name)
