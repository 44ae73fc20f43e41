"""The plan: the trials of a grid in stages, the cells left out with their reasons, and where each value came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from harness.identity import Part, Requirement, TrialSpec
from harness.planning.errors import GridError, listed
from harness.planning.grid import Resources

FORMAT = 1
"""Raised when the text of a plan changes its form."""


@dataclass(frozen=True)
class LeftOut:
    """A cell that is not run."""

    task: str
    method: str
    reason: str


@dataclass(frozen=True)
class Note:
    """A probe that is left out of a task's trials."""

    task: str
    probe: str
    reason: str


@dataclass(frozen=True)
class PlannedTrial:
    """One trial of a plan. What it shares with the other seeds of its cell is the same object in all of them."""

    spec: TrialSpec
    hash: str
    code: str
    """The digest of the source behind it: the same hash with another code is stale."""
    cell: str
    """The cell by name: `digits/mlp · adamw · lr=0.001`."""
    task_label: str
    method_label: str
    axes: dict[str, Any]
    """The values that lie on axes: `task.width`, `method.beta`, `recipe.lr`."""
    stage: int
    resources: Resources
    origins: dict[str, str]
    """Where each value came from, by name: `recipe.lr` from `recipes[1].set.lr`."""


@dataclass(frozen=True)
class Plan:
    """What a grid comes to."""

    name: str
    file: str
    tasks: list[str]
    """Labels in the order of the grid."""
    methods: list[str]
    """The same; the first is the baseline."""
    trials: list[PlannedTrial]
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    @property
    def stages(self) -> list[list[PlannedTrial]]:
        """The trials by stage: each stage needs results of earlier ones alone."""
        stages: list[list[PlannedTrial]] = [[] for _ in range(1 + max(trial.stage for trial in self.trials))]
        for trial in self.trials:
            stages[trial.stage].append(trial)
        return stages

    @property
    def digest(self) -> str:
        """The plan's identity: its name and its trials, whatever their order."""
        text = "\n".join([self.name, *sorted(trial.hash for trial in self.trials)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def trial(self, prefix: str) -> PlannedTrial:
        """The trial whose hash begins with `prefix`.

        Raises:
            GridError: if there is none, or more than one.
        """
        found = [trial for trial in self.trials if trial.hash.startswith(prefix)]
        if len(found) == 1:
            return found[0]
        some = [f"{trial.hash} ({trial.cell}, seed {trial.spec.seed_label})" for trial in (found or self.trials)[:3]]
        raise GridError(
            self.file,
            "trial",
            f"found {prefix!r}, the hash of {len(found)} trials, allowed: that of one, as {listed(some)}",
        )

    def to_json(self) -> str:
        """The plan as text: each cell once, its trials as seed, hash and requirements."""
        cells: dict[str, dict[str, Any]] = {}
        for trial in self.trials:
            if trial.cell not in cells:
                cells[trial.cell] = _cell_content(trial)
            requires = [list(vars(requirement).values()) for requirement in trial.spec.requires]
            cells[trial.cell]["trials"].append([trial.spec.seed, trial.hash, requires])
        content = {
            "format": FORMAT,
            "name": self.name,
            "file": self.file,
            "digest": self.digest,
            "tasks": self.tasks,
            "methods": self.methods,
            "cells": list(cells.values()),
            "left_out": [asdict(left) for left in self.left_out],
            "notes": [asdict(note) for note in self.notes],
        }
        return json.dumps(content, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Plan:
        """The reverse of `to_json`.

        Raises:
            ValueError: if the text is no plan of this form.
        """
        content = json.loads(text)
        if content.get("format") != FORMAT:
            raise ValueError(f"plan: found format {content.get('format')}, allowed: {FORMAT}")
        return Plan(
            name=content["name"],
            file=content["file"],
            tasks=content["tasks"],
            methods=content["methods"],
            trials=[trial for cell in content["cells"] for trial in _cell_trials(cell)],
            left_out=[LeftOut(**left) for left in content["left_out"]],
            notes=[Note(**note) for note in content["notes"]],
        )


def _cell_content(trial: PlannedTrial) -> dict[str, Any]:
    shared = {name: value for name, value in vars(trial).items() if name not in ("spec", "hash")}
    spec = json.loads(replace(trial.spec, seed={}, requires=[]).to_json())
    return shared | {"resources": asdict(trial.resources), "spec": spec, "trials": []}


def _cell_trials(cell: dict[str, Any]) -> Iterable[PlannedTrial]:
    trials = cell.pop("trials")
    shared = TrialSpec.from_json(json.dumps(cell.pop("spec")))
    cell["resources"] = Resources(**cell["resources"])
    for seed, hash, requires in trials:
        spec = replace(shared, seed=seed, requires=[Requirement(*required) for required in requires])
        yield PlannedTrial(spec=spec, hash=hash, **cell)


@dataclass(frozen=True)
class Explained:
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
    for required in spec.requires:
        values[shown(required.path, spec.methods)] = f"{required.metric} of trial {required.hash}"
    return [Explained(name, value, trial.origins.get(name, "default")) for name, value in values.items()]


def shown(path: str, methods: Sequence[Part]) -> str:
    """A path in a trial's content as people read it: `methods.0.beta` is `method.balanced_adam.beta`."""
    family, *rest = path.split(".")
    return path if family == "recipe" else f"method.{methods[int(rest[0])].name}.{rest[1]}"
