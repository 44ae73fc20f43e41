"""What Tune is given: units as a lazy list (one in `grid_search` costs time quadratic in its length), ears, and when to stop."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ray.tune import Callback, PlacementGroupFactory, Stopper
from ray.tune.experiment import Trial
from ray.tune.search.search_algorithm import SearchAlgorithm

from harness.resources import Resources
from harness.running.scheduling import Watch
from harness.running.units import Unit

MAX_FAILURES = 3
"""How often Tune takes a unit up again after infrastructure trouble; what an author's code does never counts."""


TOGETHER = 2.0
"""Seconds of work that short units are put together to."""


def bundles(resources: Resources) -> PlacementGroupFactory:
    """The placement group of a unit: one bundle for each rank, the first for the worker and its own rank."""
    return PlacementGroupFactory([resources.bundle] * resources.ranks)


class ListSearch(SearchAlgorithm):
    """Hands out units in the order given; each Tune trial is named by the first hash that it carries.

    Once a cell is known to be short, several of its units go into one Tune trial: Tune's own work is then shared.
    """

    def __init__(self, units: Sequence[Unit], watch: Watch, slots: int, attempt: int) -> None:
        self._units, self._watch, self._slots, self._attempt = units, watch, slots, attempt
        self._placements = {resources: bundles(resources) for resources in {unit.resources for unit in units}}
        self._next = 0
        self._spec: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: the results folder knows what is done."""
        return {}

    @property
    def total_samples(self) -> int:
        return len(self._units)

    def add_configurations(self, experiments: Any) -> None:
        experiment = experiments[0] if isinstance(experiments, list) else experiments
        self._spec = experiment.spec

    def next_trial(self) -> Trial | None:
        if self.is_finished():
            self.set_finished()
            return None
        first = self._units[self._next]
        together = self._units[self._next : self._next + self._count(first)]
        self._next += len(together)
        self._watch.carry(first.name, [unit.name for unit in together])
        return Trial(
            self._spec["run"],
            config={"units": [unit.name for unit in together]},
            trial_id=first.name,
            storage=self._spec["storage"],
            checkpoint_config=self._spec["checkpoint_config"],
            placement_group_factory=self._placements[first.resources],
            max_failures=MAX_FAILURES,
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: f"{trial.trial_id}-{self._attempt}",
        )

    def _count(self, first: Unit) -> int:
        """How many units go together: two seconds' worth, and never so many that a worker would have nothing to do."""
        seconds = self._watch.seconds(first.cell)
        if not seconds:
            return 1
        rest = self._units[self._next :]
        most = max(1, min(int(TOGETHER / (seconds * len(first.trials))), len(rest) // (2 * self._slots)))
        alike = itertools.takewhile(
            lambda unit: (unit.cell, unit.resources) == (first.cell, first.resources), rest[:most]
        )
        return sum(1 for _ in alike)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing to learn: the records say how a trial ended."""

    def is_finished(self) -> bool:
        return self._next >= len(self._units)

    def has_checkpoint(self, dirpath: str) -> bool:
        return False

    def save_to_dir(self, dirpath: str, **kwargs: Any) -> None:
        """Nothing to keep: the results folder knows what is done."""


class Hear(Callback):
    """Tells a `Watch` what becomes of units."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks, and what this one tells is of this process."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Trial, **info: Any) -> None:
        self._watch.start(trial.trial_id)

    def on_trial_result(self, iteration: int, trials: Any, trial: Trial, result: dict[str, Any], **info: Any) -> None:
        self._watch.report(result)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Trial, **info: Any) -> None:
        self._watch.take_back(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: Any, trial: Trial, **info: Any) -> None:
        self._watch.give_up(trial.trial_id)

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        self._watch.listener.tick()
        self._watch.look(lambda: any(trial.status == Trial.RUNNING for trial in trials))


class StopInVain(Stopper):
    """Starts nothing more once the results folder can no longer be written, or what waits can never start."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its stopper, and what this one asks is of this process."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self._watch.stalled or self._watch.outcome.unwritable())
