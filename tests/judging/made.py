"""Grids with made-up results: what is true of them is known."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.identity import Part, TrialSpec
from harness.planning.claims import Claims, PlannedClaim, claim_hash
from harness.planning.plan import Plan, PlannedTrial
from harness.recording.records import Result, Status
from harness.registry import Registry
from harness.resources import Resources

Array = NDArray[np.float64]


def made_plan(
    claims: Sequence[dict[str, Any]] = (),
    *,
    tasks: Sequence[str] = ("t",),
    methods: Sequence[str] = ("a", "b"),
    seeds: int = 10,
    axes: Mapping[str, Sequence[float]] | None = None,
    level: float = 0.05,
    looks: Sequence[int] = (),
    registry: Registry | None = None,
) -> Plan:
    """A plan of tasks that are scored by `test/accuracy`; `axes` gives a method several learning rates."""
    trials = []
    for task in tasks:
        for method in methods:
            for rate in (axes or {}).get(method, [0.0]):
                chosen = {"recipe.lr": rate} if method in (axes or {}) else {}
                cell = f"{task} · {method}" + (f" · lr={rate}" if chosen else "")
                for seed in range(seeds):
                    spec = TrialSpec(task, {}, 1, [Part(method)], {"lr": rate, "steps": 100}, {"init": seed})
                    trials.append(
                        PlannedTrial(
                            spec=spec,
                            hash=spec.hash,
                            code="c",
                            cell=cell,
                            task_label=task,
                            method_label=method,
                            axes=chosen,
                            stage=0,
                            tuning=None,
                            resources=Resources(),
                            origins={},
                        )
                    )
    metrics = {task: ["val/accuracy", "max"] for task in tasks}
    known = registry or Registry()
    planned = tuple(
        PlannedClaim(kind, claim, known.build_claim(kind, claim).statement(), claim_hash(claim, level, looks))
        for claim in claims
        for kind in [next(name for name in claim if name in {item.name for item in known.items("claim")})]
    )
    return Plan(
        "made", "made.yaml", list(tasks), list(methods), trials, metrics, claims=Claims(planned, level, tuple(looks))
    )


def several_trials(plan: Plan, splits: int) -> Plan:
    """The same plan with several trials for each seed: the values of `init` count, each has all splits."""
    trials = [
        replace(trial, spec=spec, hash=spec.hash)
        for trial in plan.trials
        for split in range(splits)
        for spec in [replace(trial.spec, seed=trial.spec.seed | {"split": split})]
    ]
    return replace(plan, trials=trials)


def ended(
    plan: Plan, scores: Mapping[str, Array], metric: str = "test/accuracy", **more: Mapping[str, Array]
) -> dict[str, Result]:
    """Results with a score for each cell and seed; -inf diverged, +inf was screened, nan failed."""
    found = {}
    seen: dict[str, int] = {}
    for trial in plan.trials:
        index = seen.setdefault(trial.cell, 0)
        seen[trial.cell] += 1
        value = float(scores[trial.cell][index])
        status = {np.inf: Status.SCREENED, -np.inf: Status.DIVERGED}.get(value, Status.FINISHED)
        if np.isnan(value):
            status = Status.FAILED
        metrics = {metric: value, "val/accuracy": value} if status is Status.FINISHED else {}
        for name, table in more.items():
            metrics[name.replace("__", "/")] = float(table[trial.cell][index])
        found[trial.hash] = Result(trial.hash, status, "c", metrics, started=1.0, ended=2.0)
    return found
