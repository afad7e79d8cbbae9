"""The settings that are decided for all shards of a run, as a plan has them."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from virnuc_async.outputs.options import RULES
from virnuc_async.settings import Settings

# Beside precision and tokens per batch, which are decided by the devices. All others are of one machine.
_PLANNED_SETTINGS = (
    *("model", "threshold", "verdict_by", "fpr", "embeddings", "report", "calibrated", "calls", "regions"),
    *("viral_fasta", "pairs", "formats", "min_length", "layout"),
)


def planned_settings(settings: Settings) -> dict[str, Any]:
    """Return what a plan has of *settings*, as JSON has it; a directory of a model with its whole path."""
    values = {name: getattr(settings, name) for name in _PLANNED_SETTINGS}
    model = str(settings.model)
    values |= {name: asdict(values[name]) for name in RULES if values[name] is not None}
    values["model"] = os.path.abspath(model) if os.path.isdir(model) else model
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found


def with_planned(values: Mapping[str, Any], machine: Settings) -> Settings:
    """
    Return *machine* with the settings that :func:`planned_settings` gave.

    Raises:
        UsageError, TypeError: they make no sense
    """
    known = {name: values[name] for name in _PLANNED_SETTINGS if name in values}
    rules = {name: kind(**known[name]) for name, kind in RULES.items() if known.get(name) is not None}
    return replace(machine, **known | rules)
