"""What Tune is given: units as a lazy list (one in `grid_search` costs time quadratic in its length), and ears."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.tune import Callback, PlacementGroupFactory
from ray.tune.experiment import Trial
from ray.tune.search.search_algorithm import SearchAlgorithm

from harness.running.scheduling import Watch
from harness.running.units import Request, Unit

MAX_FAILURES = 3
"""How often Tune takes a unit up again after infrastructure trouble; what an author's code does never counts."""


def bundles(request: Request) -> PlacementGroupFactory:
    """The placement group of a unit: one bundle."""
    bundle: dict[str, float] = {"CPU": request.cpus}
    if request.gpus:
        bundle["GPU"] = request.gpus
    if request.memory:
        bundle["memory"] = float(request.memory)
    return PlacementGroupFactory([bundle])


class ListSearch(SearchAlgorithm):
    """Hands out units one by one, in the order given; each Tune trial is named by the unit's first hash."""

    def __init__(self, units: Sequence[tuple[Unit, PlacementGroupFactory]], attempt: int) -> None:
        self._units = units
        self._attempt = attempt
        self._next = 0
        self._spec: dict[str, Any] = {}

    @property
    def total_samples(self) -> int:
        return len(self._units)

    def add_configurations(self, experiments: Any) -> None:
        experiment = experiments[0] if isinstance(experiments, list) else experiments
        self._spec = experiment.spec

    def next_trial(self) -> Trial | None:
        if self._next >= len(self._units):
            self.set_finished()
            return None
        unit, placement = self._units[self._next]
        self._next += 1
        return Trial(
            self._spec["run"],
            config={"unit": unit.name},
            trial_id=unit.name,
            storage=self._spec["storage"],
            checkpoint_config=self._spec["checkpoint_config"],
            placement_group_factory=placement,
            max_failures=MAX_FAILURES,
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: f"{trial.trial_id}-{self._attempt}",
        )

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

    def on_trial_error(self, iteration: int, trials: Any, trial: Trial, **info: Any) -> None:
        self._watch.give_up(trial.trial_id)

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        self._watch.listener.tick()
