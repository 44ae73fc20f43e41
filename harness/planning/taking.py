"""What a trial takes from the trials that it requires, once these have run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from harness.identity import Requirement
from harness.planning.plan import TUNED, Plan, PlannedTrial
from harness.recording.records import Result, Status

WORST = (Status.DIVERGED, Status.OUT_OF_MEMORY, Status.TIMED_OUT, Status.SCREENED)
"""Ends that a point of the tuned spaces is to blame for: they rank worst, and so does one that a rule has stopped."""


class Missing(Exception):
    """Something that a trial takes is not there."""


def take(trial: PlannedTrial, plan: Plan, results: Mapping[str, Result]) -> dict[str, Any]:
    """What a trial takes, by path in its content.

    Args:
        trial: the trial.
        plan: the plan that it belongs to.
        results: the results of the trials that it requires, as far as there are any.

    Raises:
        Missing: if one of them has no result, or none that has what is taken.
    """
    values: dict[str, Any] = {}
    for required in trial.spec.requires:
        if required.path != TUNED:
            values[required.path] = _value(required, results)
    if tuned := [required for required in trial.spec.requires if required.path == TUNED]:
        values |= _choose(trial, tuned, plan, results)
    return values


def _value(required: Requirement, results: Mapping[str, Result]) -> float | str:
    result = results.get(required.hash)
    value = result.taken(required.taken) if result else None
    if value is None:
        ended = "has not run" if result is None else f"is {result.status} without it"
        raise Missing(f"needs {required.taken} of trial {required.hash}, which {ended}")
    return value


def _choose(trial: PlannedTrial, tuned: list[Requirement], plan: Plan, results: Mapping[str, Result]) -> dict[str, Any]:
    """The values of the point with the best mean over the seeds of tuning; of equal ones the first.

    Raises:
        Missing: if a trial of tuning has no result, or every point has a trial that ended badly.
    """
    sources = plan.by_hash
    sign = 1 if plan.metrics[trial.spec.task][1] == "max" else -1
    costs: dict[int, list[float]] = {}
    for required in tuned:
        point = sources[required.hash].tuning
        assert point is not None
        costs.setdefault(point, []).append(_cost(required, results, sign))
    best = min(costs, key=lambda point: sum(costs[point]))
    if math.isinf(sum(costs[best])):
        raise Missing(f"needs a point of tuning that went well, of {len(costs)} none did")
    chosen = next(sources[r.hash] for r in tuned if sources[r.hash].tuning == best)
    return differing(trial, chosen)


def _cost(required: Requirement, results: Mapping[str, Result], sign: int) -> float:
    result = results.get(required.hash)
    if result is not None and result.status in WORST:
        return math.inf
    return -sign * float(_value(required, results))


def differing(trial: PlannedTrial, chosen: PlannedTrial) -> dict[str, Any]:
    """The values of those fields that a trial leaves open, as another trial has them."""
    values = {
        f"recipe.{name}": chosen.spec.recipe[name]
        for name, value in trial.spec.recipe.items()
        if value is None and chosen.spec.recipe[name] is not None
    }
    for index, (own, other) in enumerate(zip(trial.spec.methods, chosen.spec.methods, strict=True)):
        for name, value in own.options.items():
            if value is None and other.options[name] is not None:
                values[f"methods.{index}.{name}"] = other.options[name]
    return values
