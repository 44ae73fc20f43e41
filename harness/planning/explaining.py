"""Where each value of a trial came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from harness.identity import Part
from harness.planning.plan import TUNED, Plan


class Explained(NamedTuple):
    """One value of a trial and where it came from."""

    field: str
    value: Any
    origin: str


def explain(plan: Plan, prefix: str) -> list[Explained]:
    """Every value of the trial whose hash begins with `prefix`, and where it came from.

    Raises:
        GridError: if no trial has such a hash, or several do.
    """
    trial = plan.trial(prefix)
    spec = trial.spec
    values: dict[str, Any] = {"task": spec.task, "method": spec.method}
    values |= {f"task.{name}": value for name, value in spec.task_options.items()}
    for part in spec.methods:
        values |= {f"method.{part.name}.{name}": value for name, value in part.options.items()}
    values |= {f"recipe.{name}": value for name, value in spec.recipe.items()}
    values |= {f"seed.{name}": value for name, value in spec.seed.items()}
    for part in spec.probes:
        values |= {f"probe.{part.name}.{name}": value for name, value in part.options.items()}
    values |= {"threads": spec.threads, "device": spec.device, "data": spec.data, "version": spec.task_version}
    values |= {"stacked": spec.stacked}
    for required in spec.requires:
        if required.path != TUNED:
            values[shown(required.path, spec.methods)] = f"{required.taken} of trial {required.hash}"
    return [Explained(name, value, trial.origins.get(name, "default")) for name, value in values.items()]


def shown(path: str, methods: Sequence[Part]) -> str:
    """A path in a trial's content as people read it: `methods.0.beta` is `method.balanced_adam.beta`."""
    family, *rest = path.split(".")
    return ".".join(["method", methods[int(rest[0])].name, *rest[1:]]) if family == "methods" else path
