"""The name that users import: what it hands on, and that it is the same thing."""

import importlib

import pytest

import virnuc_async
import virnucpro_async


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("run_pipeline", "pipeline"),
        ("Summary", "results"),
        ("logger", "progress"),
        ("Settings", "settings"),
        ("Precision", "settings"),
        ("Pairing", "settings"),
        ("VirnucError", "failures"),
    ],
)
def test_hands_on_the_public_names(name: str, module: str) -> None:
    assert name in virnucpro_async.__all__
    assert getattr(virnucpro_async, name) is getattr(importlib.import_module(f"virnuc_async.{module}"), name)


def test_version_and_unknown_names() -> None:
    assert virnucpro_async.__version__ == virnuc_async.__version__
    with pytest.raises(AttributeError, match="has no attribute 'run_pipelines'"):
        virnucpro_async.run_pipelines  # noqa: B018
