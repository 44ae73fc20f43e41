"""What a grid has found out, as claims ask for it: scores by cell and seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.claim import ClaimError
from harness.judging.scores import Contrast, Scores, mean_bounds
from harness.judging.times import Point
from harness.planning.axes import told
from harness.planning.claims import better_when
from harness.planning.plan import Plan, PlannedTrial
from harness.recording.records import Result, Status

__all__ = ["Chosen", "Contrast", "Curves", "Evidence", "Scores", "units"]

T = TypeVar("T")
Curves = Callable[[str], Iterable[Mapping[str, Any]]]
"""The committed records of a trial, by its hash."""

WORST = (Status.DIVERGED, Status.OUT_OF_MEMORY, Status.TIMED_OUT)


@dataclass(frozen=True)
class Chosen:
    """One method on one task: its cells, and the one that validation prefers."""

    scores: Scores
    cells: tuple[str, ...]
    best: str
    seeds: int
    """How many seeds were spent on the choice."""

    def told(self) -> dict[str, Any]:
        """For a report."""
        return {"cell": self.best, "chosen from": len(self.cells), "chosen on seeds": self.seeds}


class Evidence:
    """Results of a plan, arranged by cell and seed.

    Args:
        plan: what the grid comes to.
        results: what came of its trials so far, by hash.
        curves: reads the records of a trial, for claims that need more than the end.
        seeds: how many of the seeds to look at; all unless given.
    """

    def __init__(
        self, plan: Plan, results: Mapping[str, Result], curves: Curves | None = None, seeds: int | None = None
    ) -> None:
        self.plan, self.results, self.curves = plan, results, curves
        self.stream, values = units(plan)
        self.units = values[:seeds]
        self._read: dict[tuple[str, ...], Any] = {}
        self._names = {trial.task_label: trial.spec.task for trial in plan.reported}
        self._labels = {trial.method_label for trial in plan.reported}
        self._trials: dict[str, dict[str, dict[int, list[PlannedTrial]]]] = {}
        for trial in plan.reported:
            if trial.spec.seed[self.stream] not in self.units:
                continue
            cells = self._trials.setdefault(trial.task_label, {})
            by_unit = cells.setdefault(trial.cell, {})
            by_unit.setdefault(trial.spec.seed[self.stream], []).append(trial)

    def trial(self, task: str, cell: str) -> PlannedTrial:
        """One trial of a cell: what its seeds share."""
        return next(iter(self._trials[task][cell].values()))[0]

    def by_unit(self, task: str, cell: str) -> list[PlannedTrial]:
        """The trial of a cell for each seed.

        Raises:
            ClaimError: where several streams vary, and a seed has several trials.
        """
        found = self.units_of(task, cell)
        if any(len(trials) > 1 for trials in found):
            raise ClaimError(
                f"seeds: found several trials with one {self.stream}, allowed for this kind: streams that vary together"
            )
        return [trial for (trial,) in found]

    def units_of(self, task: str, cell: str) -> list[list[PlannedTrial]]:
        """All trials of a cell: a list for each seed, longer than one where several streams vary."""
        return list(self._trials[task][cell].values())

    def tasks(self, glob: str) -> list[str]:
        """The labels of the tasks that a glob matches, by label or name, in the order of the grid; a label means itself alone."""
        names = self._names
        if glob in names:
            return [glob]
        return [t for t in self.plan.tasks if t in names and (fnmatchcase(t, glob) or fnmatchcase(names[t], glob))]

    def cells(self, task: str, method: str, where: str = "*") -> list[str]:
        """The cells of a task whose method a glob matches, by label or name, and whose axes another.

        What is a label in this grid means that label alone, also where it is the name of other entries' method.
        """
        found = []
        for cell in self._trials.get(task, {}):
            trial = self.trial(task, cell)
            named = trial.method_label == method
            if method not in self._labels:
                named = trial.spec.method == method or fnmatchcase(trial.method_label, method)
            axes = axes_told(trial.axes)
            if named and any(fnmatchcase(part, where) for part in [", ".join(axes), *axes]):
                found.append(cell)
        return found

    def matched(self, task: str, method: str, where: str = "*") -> list[str]:
        """The same of a claim, which must be about something.

        Raises:
            ClaimError: if there are none.
        """
        found = self.cells(task, method, where)
        if not found:
            whose = method if where == "*" else f"{method} where {where}"
            raise ClaimError(f"found no trial of {whose} on {task}, allowed: methods and points that the task has")
        return found

    def methods(self, task: str, glob: str) -> list[str]:
        """The labels of the methods on a task that a glob matches."""
        return list(dict.fromkeys(self.trial(task, cell).method_label for cell in self.cells(task, glob)))

    def metric(self, task: str, by: str) -> str:
        """The metric that a claim compares by on a task."""
        return by or self.own(task)[0].replace("val/", "test/", 1)

    def own(self, task: str) -> list[str]:
        """The task's own metric, on validation, and its direction."""
        return self.plan.metrics[self._names[task]]

    def sign(self, task: str, metric: str, direction: str) -> float:
        """1 if more of the metric is better, -1 if less is.

        Raises:
            ClaimError: if nothing says.
        """
        better = direction or better_when(metric, self.own(task))
        if not better:
            raise ClaimError(f"direction: found nothing for {metric!r}, allowed: min, max")
        return 1.0 if better == "max" else -1.0

    def value(self, trial: PlannedTrial, metric: str) -> float | None:
        """A final metric of a trial, as it is, if it has one; `recipe.lr` is a number of its recipe."""
        result = self.results.get(trial.hash)
        if metric.startswith("recipe."):
            number = trial.spec.recipe.get(metric.removeprefix("recipe."))
            return float(number) if result and isinstance(number, int | float) else None
        return result.metrics.get(metric) if result else None

    def scores(self, task: str, cell: str, metric: str, direction: str = "") -> Scores:
        """The scores of a cell by seed, oriented so that higher is better."""
        sign = self.sign(task, metric, direction)

        def oriented(trial: PlannedTrial) -> float | None:
            value = self.value(trial, metric)
            return None if value is None else sign * value

        return self.collect(task, cell, oriented, metric)

    def collect(self, task: str, cell: str, read: Callable[[PlannedTrial], float | None], name: str) -> Scores:
        """A number of every finished trial of a cell, by seed, and bounds for the others."""
        n = len(self.units)
        low, high, present = np.zeros(n), np.zeros(n), np.zeros(n, dtype=bool)
        held: set[str] = set()
        by_unit = self._trials[task][cell]
        for index, unit in enumerate(self.units):
            bounds = [self._bounds(trial, read, name, held) for trial in by_unit.get(unit, [])]
            known = [bound for bound in bounds if bound is not None]
            if known and len(known) == len(bounds):
                low[index], high[index] = known[0] if len(known) == 1 else mean_bounds(known)
                present[index] = True
        hashes = frozenset(trial.hash for trials in by_unit.values() for trial in trials)
        return Scores(low, high, frozenset(held), present, np.ones(n, dtype=bool), hashes)

    def over(self, task: str, cells: Sequence[str], metric: str, numbers: NDArray[np.float64]) -> Scores:
        """Numbers by seed that were computed over all of some cells, whose runs end with a metric.

        What has no end holds the verdict back; a seed with a screened run, or without a number (nan), may be anything.
        """
        ends = [self.collect(task, cell, lambda trial: self.value(trial, metric), metric) for cell in cells]
        censored = np.any([(end.low < end.high) & end.present for end in ends], axis=0) | np.isnan(numbers)
        low, high = np.where(censored, -math.inf, numbers), np.where(censored, math.inf, numbers)
        return replace(Scores.combine(ends, "worst"), low=low, high=high)

    def _bounds(
        self, trial: PlannedTrial, read: Callable[[PlannedTrial], float | None], name: str, held: set[str]
    ) -> tuple[float, float] | None:
        result = self.results.get(trial.hash)
        status = result.status if result else None
        if status in WORST:
            return -math.inf, -math.inf
        if status is Status.SCREENED:
            return -math.inf, math.inf
        value = read(trial) if status is Status.FINISHED else None
        if value is None or math.isnan(value):
            ended = "not run yet" if status is None else f"without {name}" if status is Status.FINISHED else status
            held.add(f"{trial.cell}, seed {trial.spec.seed_label} ({trial.hash}): {ended}")
            return None
        return value, value

    def best(self, task: str, cells: Sequence[str], metric: str, direction: str = "") -> Chosen:
        """Scores at the validation-best of some cells."""
        return self.choose(task, cells, lambda cell: self.scores(task, cell, metric, direction), *self.own(task))

    def oracle(self, task: str, cells: Sequence[str], metric: str, direction: str = "") -> Scores:
        """Scores at the cell that is best by the metric itself: what one would have chosen knowing the results."""
        return self.choose(
            task, cells, lambda cell: self.scores(task, cell, metric, direction), metric, direction
        ).scores

    def choose(
        self, task: str, cells: Sequence[str], score: Callable[[str], Scores], vote: str, direction: str = ""
    ) -> Chosen:
        """Scores at the cell with the best mean of a metric, `vote`.

        With several cells the first third of the seeds chooses and the others judge: the best of many must not be better for
        having been the best. Choosing on the seeds that judge is wrong in 20 % of all cases at a level of 5 % (eight cells
        against one, ten seeds), and leaving out just the seed that is judged in 11 %.
        """
        if not cells:
            raise ClaimError(f"found no trials on {task}, allowed: methods that the task can be trained with")
        scores = [score(cell) for cell in cells]
        if len(cells) == 1:
            return Chosen(scores[0], tuple(cells), cells[0], 0)
        first = choosing_seeds(len(self.units))
        choosing = np.arange(len(self.units)) < first
        votes = [self.scores(task, cell, vote, direction) for cell in cells]
        known = np.all([v.present for v in votes], axis=0) | ~choosing
        table = np.array([np.where(v.present, v.low, -math.inf)[choosing].mean() for v in votes])
        best = int(np.argmax(table))
        chosen = replace(
            scores[best],
            held=scores[best].held if known.all() else frozenset().union(*(v.held for v in votes)),
            present=scores[best].present & known,
            judged=~choosing,
            trials=frozenset().union(*(part.trials for part in scores)),
        )
        return Chosen(chosen, tuple(cells), cells[best], first)

    def shared_points(self, task: str, ours: Sequence[str], theirs: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Pairs of cells that agree on every axis that both have, by what they agree on."""
        pairs: dict[str, tuple[str, str]] = {}
        for one in ours:
            for other in theirs:
                axes, others = self.trial(task, one).axes, self.trial(task, other).axes
                if all(axes[name] == others[name] for name in axes if name in others):
                    apart = axes_told({name: value for name, value in others.items() if name not in axes})
                    pairs[", ".join([*axes_told(axes), *(f"than {part}" for part in apart)])] = one, other
        return pairs

    def records(self, trial: PlannedTrial) -> Iterable[Mapping[str, Any]]:
        """The committed records of a trial.

        Raises:
            ClaimError: if they were not given.
        """
        if self.curves is None:
            raise ClaimError("found no learning curves, allowed: judging with the records of the trials")
        return self.curves(trial.hash)

    def once(self, key: tuple[str, ...], read: Callable[[], T]) -> T:
        """What is read of a trial's records, kept for the next claim that asks for it: most of a report's time is reading."""
        if key not in self._read:
            self._read[key] = read()
        found: T = self._read[key]
        return found

    def points(self, trial: PlannedTrial, metric: str) -> list[Point]:
        """A trial's evaluations, with the seconds of training until each."""
        return self.once((trial.hash, metric), lambda: self._points(trial, metric))

    def _points(self, trial: PlannedTrial, metric: str) -> list[Point]:
        points, seconds = [], 0.0
        for record in self.records(trial):
            metrics = record.get("metrics", {})
            seconds = metrics.get("time/train_seconds", seconds)
            if metric in metrics:
                points.append(Point(record["step"], seconds, metrics[metric]))
        return points

    def early(self, trial: PlannedTrial, metric: str, fraction: float) -> float | None:
        """A metric as it stood at a fraction of the training; at 1 as it ended."""
        if fraction >= 1:
            return self.value(trial, metric)
        due = [p.score for p in self.points(trial, metric) if p.step <= max(1.0, fraction * trial.spec.length)]
        return due[-1] if due else None

    @cached_property
    def tuning(self) -> dict[str, int]:
        """How many cells each method has on the task where it has most."""
        counts: dict[tuple[str, str], int] = {}
        for task, cells in self._trials.items():
            for cell in cells:
                key = task, self.trial(task, cell).spec.method
                counts[key] = counts.get(key, 0) + 1
        return {m: max(c for (_, method), c in counts.items() if method == m) for m in {key[1] for key in counts}}


def axes_told(axes: Mapping[str, Any]) -> list[str]:
    """The values of axes as labels tell them, without the family that each is of.

    >>> axes_told({"recipe.lr": 0.001, "task.hidden": [64, 64]})
    ['lr=0.001', 'hidden=64x64']
    """
    return told({name.partition(".")[2]: value for name, value in axes.items()})


def choosing_seeds(seeds: int) -> int:
    """How many of the seeds choose among cells: the first third, and one at least."""
    return max(1, seeds // 3)


def units(plan: Plan) -> tuple[str, list[int]]:
    """The stream that varies most over the seeds, and its values: trials that share one are no independent evidence.

    With `seeds: {init: 10, split: 2}` the ten values of `init` count, each as the mean over its splits.
    """
    values: dict[str, dict[int, None]] = {}
    for trial in plan.reported:
        for stream, value in trial.spec.seed.items():
            values.setdefault(stream, {})[value] = None
    stream = max(values, key=lambda name: len(values[name]))
    return stream, list(values[stream])
