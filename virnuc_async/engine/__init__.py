"""
Devices and the replicas of a model that score batches on them.

The names below are imported when they are first used: they need torch, whose import takes seconds, and
a run that has nothing to compute does without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .devices import choose, decide_budget, decide_precision, leave_out_failed
    from .engine import Engine
    from .kept_replicas import KeptReplicas
    from .kinds import BASE_BUDGET
    from .replica import Replica
    from .verification import VerifiedReplica, replica_class

__all__ = [
    "BASE_BUDGET",
    "Engine",
    "KeptReplicas",
    "Replica",
    "VerifiedReplica",
    "choose",
    "decide_budget",
    "decide_precision",
    "leave_out_failed",
    "replica_class",
]

_MODULE_OF = dict.fromkeys(__all__, "devices") | {
    "BASE_BUDGET": "kinds",
    "Engine": "engine",
    "KeptReplicas": "kept_replicas",
    "Replica": "replica",
    "VerifiedReplica": "verification",
    "replica_class": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
