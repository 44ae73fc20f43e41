"""Benchmark training methods: tasks x methods x seeds, every claim with its evidence.

A plugin needs nothing but this package::

    from harness import Method, register_method

Names are resolved on first use, so that importing `harness` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.claim import Claim
    from harness.method import Client, Method, Server, State, Update, weighted_sum
    from harness.probe import Probe
    from harness.recipe import Recipe
    from harness.registry import register_claim, register_method, register_probe, register_task
    from harness.task import Batch, FederatedWorkload, Objective, Task, Workload, WorkloadStack

__version__ = "0.1.0"

_HOMES = {
    "Batch": "harness.task",
    "Claim": "harness.claim",
    "Client": "harness.method",
    "FederatedWorkload": "harness.task",
    "Method": "harness.method",
    "Objective": "harness.task",
    "Probe": "harness.probe",
    "Recipe": "harness.recipe",
    "Server": "harness.method",
    "State": "harness.method",
    "Task": "harness.task",
    "Update": "harness.method",
    "Workload": "harness.task",
    "WorkloadStack": "harness.task",
    "register_claim": "harness.registry",
    "register_method": "harness.registry",
    "register_probe": "harness.registry",
    "register_task": "harness.registry",
    "weighted_sum": "harness.method",
}
__all__ = [
    "Batch",
    "Claim",
    "Client",
    "FederatedWorkload",
    "Method",
    "Objective",
    "Probe",
    "Recipe",
    "Server",
    "State",
    "Task",
    "Update",
    "Workload",
    "WorkloadStack",
    "register_claim",
    "register_method",
    "register_probe",
    "register_task",
    "weighted_sum",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
