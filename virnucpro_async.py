"""
The public name of the program: ``python -m virnucpro_async`` and ``from virnucpro_async import ...``.

What it hands on is loaded when it is first asked for: torch takes seconds to import, and ``--help``
needs none of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from virnuc_async import __version__
from virnuc_async.cli import run
from virnuc_async.failures import VirnucError
from virnuc_async.settings import Pairing, Precision, Settings

if TYPE_CHECKING:
    from virnuc_async.pipeline import run_pipeline
    from virnuc_async.progress import logger
    from virnuc_async.results import Summary

__all__ = [
    "Pairing",
    "Precision",
    "Settings",
    "Summary",
    "VirnucError",
    "__version__",
    "logger",
    "run_pipeline",
]

_LATER = {"Summary": "results", "logger": "progress", "run_pipeline": "pipeline"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"virnuc_async.{_LATER[name]}"), name)


if __name__ == "__main__":
    run()
