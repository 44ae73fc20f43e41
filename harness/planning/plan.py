"""The plan: the trials of a grid in stages, the cells left out with their reasons, and where each value came from."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from harness import sources
from harness.identity import Requirement, TrialSpec
from harness.inputs import unchanged, watching
from harness.planning.claims import Claims, PlannedClaim
from harness.planning.errors import GridError, listed
from harness.planning.grid import Grid
from harness.recording.environment import PACKAGES, version
from harness.recording.records import RecordsError, write_atomically
from harness.registry import Registry, cache_folder
from harness.resources import Resources
from harness.screening import Screening

FORMAT = 5
"""Raised when the text of a plan changes its form."""

TUNED = "tuned"
"""The path of a requirement on a trial of tuning: the best of these decides the values of all tuned fields."""

KEPT = 100
"""Plans that the cache keeps."""


@dataclass(frozen=True)
class LeftOut:
    """A cell that is not run."""

    task: str
    method: str
    reason: str


@dataclass(slots=True)  # not frozen for the reason that a `TrialSpec` is not
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
    tuning: int | None
    """The number of the point that it tries, for a trial of tuning."""
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
    metrics: dict[str, list[str]]
    """For each task by name, its metric and the direction in which that is better."""
    solved: dict[str, float] = field(default_factory=dict)
    """For each task by label, the final return from which a run counts as solved, where the task names one."""
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Probes that are left out of a task's trials, and why."""
    grid_text: str = ""
    """The grid as it was written, with what it extends and what the command line overrides."""
    claims: Claims = field(default_factory=Claims)
    screening: Screening | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    """Files of data, as they were when this was planned."""

    @property
    def stages(self) -> list[list[PlannedTrial]]:
        """The trials by stage: each stage needs results of earlier ones alone."""
        stages: list[list[PlannedTrial]] = [[] for _ in range(1 + max(trial.stage for trial in self.trials))]
        for trial in self.trials:
            stages[trial.stage].append(trial)
        return stages

    @cached_property
    def by_hash(self) -> dict[str, PlannedTrial]:
        """The trials by hash."""
        return {trial.hash: trial for trial in self.trials}

    @cached_property
    def reported(self) -> list[PlannedTrial]:
        """The trials that claims and reports are about: without those of tuning."""
        return [trial for trial in self.trials if trial.tuning is None]

    @cached_property
    def kept(self) -> dict[str, set[str]]:
        """The checkpoints that trials of this plan start from, by the hash of the trial that leaves them."""
        kept: dict[str, set[str]] = {}
        for required in (required for trial in self.trials for required in trial.spec.requires):
            if required.path == "start":
                kept.setdefault(required.hash, set()).add(required.taken)
        return kept

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
            "metrics": self.metrics,
            "solved": self.solved,
            "cells": list(cells.values()),
            "left_out": [asdict(left) for left in self.left_out],
            "notes": self.notes,
            "grid_text": self.grid_text,
            "claims": asdict(self.claims),
            "screening": asdict(self.screening) if self.screening else None,
            "inputs": self.inputs,
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
            metrics=content["metrics"],
            solved=content.get("solved", {}),  # not in the plans of earlier submissions
            trials=[trial for cell in content["cells"] for trial in _cell_trials(cell)],
            left_out=[LeftOut(**left) for left in content["left_out"]],
            notes=content["notes"],
            grid_text=content["grid_text"],
            claims=Claims(
                tuple(PlannedClaim(**claim) for claim in content["claims"]["listed"]),
                content["claims"]["level"],
                tuple(content["claims"]["looks"]),
            ),
            screening=Screening.from_content(content["screening"]),
            inputs=content["inputs"],
        )


def _cell_content(trial: PlannedTrial) -> dict[str, Any]:
    shared = {name: getattr(trial, name) for name in trial.__slots__ if name not in ("spec", "hash")}
    spec = json.loads(replace(trial.spec, seed={}, requires=[]).to_json())
    return shared | {"resources": asdict(trial.resources), "spec": spec, "trials": []}


def _cell_trials(cell: dict[str, Any]) -> Iterable[PlannedTrial]:
    trials = cell.pop("trials")
    shared = TrialSpec.from_json(json.dumps(cell.pop("spec")))
    cell["resources"] = Resources(**cell["resources"])
    trial = partial(TrialSpec, **shared.content())
    for seed, hash, requires in trials:
        spec = trial(seed=seed, requires=[Requirement(*required) for required in requires])
        yield PlannedTrial(spec=spec, hash=hash, **cell)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Garbage waits: a plan is very many small objects that stay, and the collector would go over them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def build_plan(grid: Grid, registry: Registry) -> Plan:
    """The plan of a grid: from the cache if the same grid was planned with the same code and versions.

    Only a grid that was not planned before needs torch.

    Raises:
        GridError: if a value is refused by the task or method that it goes to, two cells are the same trial, or no cell
            remains.
    """
    file = cache_folder() / "plans" / f"{_key(grid, registry)}.json"
    try:
        known = Plan.from_json(file.read_text())
        if unchanged(known.inputs):
            return replace(known, grid_text=grid.text)
    except (OSError, ValueError, TypeError, KeyError):
        pass  # not planned before, or by a version that wrote something else
    from harness.planning.assembly import assemble

    with watching() as inputs:
        plan = assemble(grid, registry)
    plan = replace(plan, inputs=dict(inputs))
    try:
        write_atomically(file, plan.to_json(), durable=False)
        for old in sorted(file.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
    except (OSError, RecordsError):
        pass  # a cache that cannot be written costs time, nothing else
    return plan


def _key(grid: Grid, registry: Registry) -> str:
    """A digest of all that a plan depends on: the grid, registered sources, this package, versions, the data folder."""
    core = ("composition", "identity", "options", "registry", "sources")
    files = [*Path(__file__).parent.glob("*.py"), *(sources.PROJECT / "harness" / f"{name}.py" for name in core)]
    versions = [platform.python_version(), *(f"{name}={version(name)}" for name in PACKAGES)]
    settings = [str(FORMAT), os.environ.get("HARNESS_DATA", ""), *versions]
    text = "\n".join([grid.digest, registry.digest(), sources.raw_digest(files), *settings])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
