"""Short trials of real tasks, compared bit by bit: what the checks are made of."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.composition import unstackable
from harness.identity import Part, TrialSpec
from harness.recording.attempts import Attempt
from harness.recording.records import Status, TrialRecords
from harness.registry import Registry
from harness.task import FederatedWorkload
from harness.training import federation, loop
from harness.training.loop import Interrupted
from harness.training.state import Training
from harness.training.together import run_stack
from harness.training.trial import Course, build_recipe, set_up, settings

Checks = Iterator[tuple[str, Callable[[], bool]]]
"""Names of checks, and the checks."""

FAMILIES: dict[str, dict[str, Any]] = {
    "digits/mlp": {},
    "digits/cnn": {},
    "cartpole/ppo": {"evaluation_episodes": 2},
    "poisson/pinn": {},
    "digits/federated": {},
}
"""One task of every family, on which methods and probes are checked, with options that keep it short."""


@dataclass(frozen=True)
class Ran:
    """What a short trial left: the final weights, and its records without times."""

    weights: dict[str, Tensor]
    records: list[dict[str, Any]]
    training: Training

    def same_as(self, other: Ran) -> bool:
        """Equal to the bit."""
        return self.records == other.records and same(self.weights, other.weights)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def short_spec(
    registry: Registry, task: str, methods: Sequence[Part], probes: Sequence[Part] = (), **overrides: Any
) -> TrialSpec:
    """A trial of a few steps (a few rounds, for a federated task)."""
    item, small = registry.item("task", task), FAMILIES.get(task, {})
    options = {name: small.get(name, schema["default"]) for name, schema in item.options.items()} if small else {}
    built = registry.build_task(task, options)
    short = {"rounds": 3} if _counts_rounds(built.recipe_class) else {"steps": 20}
    cadence = {"evaluate_every": 2 if "rounds" in short else 8, "record_every": 1 if "rounds" in short else 4}
    recipe = asdict(build_recipe(built, short | cadence | overrides))
    return TrialSpec(task, options, built.version, list(methods), recipe, {"init": 0}, list(probes))


@dataclass(frozen=True)
class Bench:
    """Where checks run their trials: with what is registered, on a device."""

    registry: Registry
    device: str = "cpu"

    def spec(self, task: str, methods: Sequence[Part], probes: Sequence[Part] = (), **overrides: Any) -> TrialSpec:
        """`short_spec` on this device."""
        return replace(short_spec(self.registry, task, methods, probes, **overrides), device=self.device)

    def stacks(self, spec: TrialSpec) -> bool:
        """Whether seeds of a trial may be trained together here: on a GPU bits depend on how many there are."""
        return self.device == "cpu" and stacks(self.registry, spec)


def _counts_rounds(recipe_class: type) -> bool:
    return any(field.name == "rounds" for field in fields(recipe_class))


def run_short(registry: Registry, spec: TrialSpec, interrupt_at: int | None = None) -> Ran:
    """Runs a short trial; with `interrupt_at` it stops at that step, and goes on in a second attempt."""
    with tempfile.TemporaryDirectory() as folder, settings(spec):
        if interrupt_at is not None:
            with Attempt(Path(folder), spec.hash, spec.to_json(), "check") as attempt:
                try:
                    train_through(set_up(spec, registry, attempt), halt=lambda step: step == interrupt_at)
                except Interrupted:
                    pass
                else:
                    raise AssertionError(f"the trial did not stop at step {interrupt_at}")
        with Attempt(Path(folder), spec.hash, spec.to_json(), "check") as attempt:
            training = set_up(spec, registry, attempt)
            train_through(training)
            attempt.commit(training.state.step)
        records = [_timeless(record) for record in TrialRecords(Path(folder), spec.hash).records()]
    weights = {name: value.detach().clone() for name, value in training.state.model.state_dict().items()}
    return Ran(weights, records, training)


def train_through(training: Training, halt: Callable[[int], bool] = lambda step: False) -> None:
    """Runs a trial that is set up to its end, by steps or by rounds."""
    advance = federation.advance if isinstance(training.workload, FederatedWorkload) else loop.advance
    loop.train(training, advance, halt=halt)


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what may differ between two runs of one trial."""
    metrics = record.get("metrics", {})
    kept = {name: value for name, value in metrics.items() if not name.startswith(("time/", "system/"))}
    return {**record, "time": 0, "metrics": kept}


@lru_cache(maxsize=32)
def run_before(registry: Registry, spec: str) -> Ran:
    """A short trial as it came out when it first ran in this process."""
    return run_short(registry, TrialSpec.from_json(spec))


def finite_metrics(ran: Ran) -> bool:
    """Whether no metric is NaN, losses aside."""
    metrics = (record.get("metrics", {}) for record in ran.records)
    return all("loss" in name or value == value for values in metrics for name, value in values.items())


def stacks(registry: Registry, spec: TrialSpec) -> bool:
    """Whether seeds of a trial may be trained together."""
    task = registry.build_task(spec.task, spec.task_options)
    methods = [registry.build_method(part.name, part.options) for part in spec.methods]
    return not (task.unstackable(build_recipe(task, spec.recipe)) or unstackable(methods))


def same_in_every_stack(registry: Registry, spec: TrialSpec) -> bool:
    """Alone, and among two others."""
    (alone,) = _run_stacked(registry, spec, [1])
    return alone == _run_stacked(registry, spec, [0, 1, 2])[1]


def _run_stacked(registry: Registry, spec: TrialSpec, seeds: list[int]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The digest of the weights and the records of each seed."""
    specs = [replace(spec, seed={"init": seed}, stacked=True) for seed in seeds]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
        attempts = [held.enter_context(Attempt(Path(folder), s.hash, s.to_json(), "check")) for s in specs]
        courses = [Course(s, attempt, {}) for s, attempt in zip(specs, attempts, strict=True)]
        run_stack(courses, registry)
        ended = [course.result for course in courses]
        if wrong := [result.error for result in ended if result and result.status is not Status.FINISHED]:
            raise AssertionError(wrong[0])
        return [(r.weights, list(map(_timeless, TrialRecords(Path(folder), r.hash).records()))) for r in ended if r]
