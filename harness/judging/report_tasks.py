"""The methods on each task: every one at its validation-best cell, with intervals and marks for real differences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.judging.drawing import SERIES
from harness.judging.evidence import WORST, Chosen, Evidence
from harness.judging.paired import holm, ranked_failures, sign_flip_p, smallest_p
from harness.judging.scores import Scores
from harness.judging.statistics import mean_interval
from harness.planning.plan import Plan, PlannedTrial
from harness.recording.records import Result, Status


@dataclass(frozen=True)
class Row:
    """A cell, or a method at its best cell, on one task."""

    label: str
    """The method, or the cell without its task."""
    method: str
    cell: str
    mean: float | None
    low: float | None
    """Student's 95 % interval over seeds; None for a single one."""
    high: float | None
    finished: int
    """Seeds with all their trials finished; a seed has several where several streams vary."""
    seeds: int
    """Those that are counted: without the ones that chose the cell."""
    worst: int
    """Seeds with a trial that diverged or ran out of memory or time."""
    seconds: float | None
    """Mean seconds of training."""
    others: str = ""
    """How the trials ended that did not finish: `1 diverged, 2 not run`."""
    colour: int = 0
    """In figures: the same in all of a grid with at most eight methods."""
    chosen_from: int = 1
    mark: str = ""
    """Against the baseline: `better`, `worse`, `no difference shown`; empty for the baseline and where trials are missing."""
    p: float | None = None
    """Two-sided, after Holm over the methods of the task."""

    @property
    def choice(self) -> str:
        """Which of several cells it is: `lr=0.001, best of 3 on validation`."""
        if self.chosen_from == 1:
            return ""
        return f"{' · '.join(self.cell.split(' · ')[2:])}, best of {self.chosen_from} on validation"

    @property
    def title(self) -> str:
        """The label, and which of several cells it is."""
        return f"{self.label}: {self.choice}" if self.choice else self.label


@dataclass(frozen=True)
class TaskTable:
    """All methods on one task, the best first."""

    task: str
    metric: str
    better: str
    baseline: str
    rows: list[Row]
    """Each method at its validation-best cell."""
    cells: list[Row]
    """Every cell, where a method has several."""
    choice: str
    """Which seeds chose the cells, where a method has several."""
    note: str


def task_tables(plan: Plan, results: dict[str, Result]) -> list[TaskTable]:
    """The tables of all tasks of a plan that has trials left to show."""
    if not plan.reported:
        return []
    evidence = Evidence(plan, results)
    return [task_table(evidence, task) for task in evidence.tasks("*")]


def task_table(evidence: Evidence, task: str) -> TaskTable:
    """The methods on a task at their validation-best cells, each marked against the baseline.

    The marks are two-sided exact paired tests by seed, corrected over the methods of the table (Holm).
    """
    metric = evidence.metric(task, "")
    by_method = {name: evidence.cells(task, name) for name in evidence.plan.methods}
    by_method = {name: cells for name, cells in by_method.items() if cells}
    chosen = {name: evidence.best(task, cells, metric) for name, cells in by_method.items()}
    baseline = next(iter(chosen))
    rows = {}
    for name, choice in chosen.items():
        rows[name] = row(evidence, task, choice.best, name, choice)
    tests = {n: two_sided(c.scores.minus(chosen[baseline].scores)) for n, c in chosen.items() if n != baseline}
    known = {name: found for name, found in tests.items() if found is not None}
    adjusted = dict(zip(known, holm([p for p, _, _ in known.values()]), strict=True))
    level = evidence.plan.claims.level
    for name, p in adjusted.items():
        mark = "no difference shown" if p > level else "better" if known[name][1] > 0 else "worse"
        rows[name] = Row(**vars(rows[name]) | {"mark": mark, "p": p})
    cells = [row(evidence, task, cell, cell.partition(" · ")[2]) for cells in by_method.values() for cell in cells]
    return TaskTable(
        task=task,
        metric=metric,
        better="lower" if evidence.own(task)[1] == "min" else "higher",
        baseline=baseline,
        rows=coloured(evidence, ordered(evidence, task, list(rows.values()))),
        cells=ordered(evidence, task, cells) if len(cells) > len(rows) else [],
        choice=choice_note(chosen.values()),
        note=note(known, level, baseline),
    )


def choice_note(chosen: Iterable[Chosen]) -> str:
    """Which seeds chose the cells that are shown, and which its numbers are of; nothing where no method has several."""
    several = next((choice for choice in chosen if len(choice.cells) > 1), None)
    if several is None:
        return ""
    every, told = len(several.scores.judged), "Where a method has several cells, "
    if several.seeds == every:
        return f"{told}the only seed chose the one that is shown: its number is too good for having been the best."
    first = "first" if several.seeds == 1 else f"first {several.seeds}"
    return f"{told}the {first} of {every} seeds chose the one that is shown, and its numbers are those of the others."


def note(tests: dict[str, tuple[float, float, int]], level: float, baseline: str) -> str:
    """How the marks came about, and whether these seeds could have shown anything."""
    if not tests:
        return ""
    told = (
        f"Marks are against {baseline}: exact paired tests by seed, two-sided, {100 * level:g} % over the table (Holm)."
    )
    seeds = min(n for _, _, n in tests.values())
    if 2 * smallest_p(seeds) * len(tests) > level:
        told += f" {seeds} seeds are too few to show any difference among {len(tests) + 1} methods."
    return told


def two_sided(difference: Scores) -> tuple[float, float, int] | None:
    """The p-value of no difference, the side, and the number of seeds; None where trials are missing."""
    bounds = difference.bounds()
    if not difference.complete or not len(bounds[0]):
        return None
    above, below = (float(sign_flip_p(ranked_failures(b))[side]) for side, b in enumerate(bounds))
    return min(1.0, 2 * min(above, below)), 1.0 if above < below else -1.0, len(bounds[0])


def row(evidence: Evidence, task: str, cell: str, label: str, choice: Chosen | None = None) -> Row:
    """One cell: mean and interval over the seeds that finished; without those that chose it, if others are there."""
    metric = evidence.metric(task, "")
    seeds = counted(evidence, task, cell, choice)
    trials = [trial for own in seeds for trial in own]
    ended = [evidence.results[trial.hash] for trial in trials if trial.hash in evidence.results]
    values = [value for own in seeds if (value := seed_mean(evidence, own, metric)) is not None]
    mean, half = mean_interval(values) if values else (None, None)
    bounds = (None, None) if mean is None or half is None else (mean - half, mean + half)
    others = Counter(status for trial in trials if (status := end_of(evidence, trial)) != Status.FINISHED)
    finished = [result for result in ended if result.status is Status.FINISHED]
    seconds = [r.metrics["time/train_seconds"] for r in finished if "time/train_seconds" in r.metrics]
    return Row(
        label=label,
        method=evidence.trial(task, cell).method_label,
        cell=cell,
        mean=mean,
        low=bounds[0],
        high=bounds[1],
        finished=len(values),
        seeds=len(seeds),
        worst=sum(any(end_of(evidence, trial) in WORST for trial in own) for own in seeds),
        seconds=float(np.mean(seconds)) if seconds else None,
        others=", ".join(f"{count} {status}" for status, count in others.most_common()),
        chosen_from=len(choice.cells) if choice else 1,
    )


def counted(evidence: Evidence, task: str, cell: str, choice: Chosen | None) -> list[list[PlannedTrial]]:
    """The trials of a cell by seed: of the seeds that did not choose it, or of all where none is left."""
    every = evidence.units_of(task, cell)
    if choice is None or not choice.scores.judged.any():
        return every
    judged = dict(zip(evidence.units, choice.scores.judged, strict=True))
    return [trials for trials in every if judged[trials[0].spec.seed[evidence.stream]]]


def seed_mean(evidence: Evidence, trials: Sequence[PlannedTrial], metric: str) -> float | None:
    """A metric over the trials of one seed, which are no independent evidence; None unless all of them finished with it."""
    values = [evidence.value(trial, metric) for trial in trials if end_of(evidence, trial) == Status.FINISHED]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(trials) else None


def end_of(evidence: Evidence, trial: PlannedTrial) -> str:
    """How a trial ended, or `not run`."""
    result = evidence.results.get(trial.hash)
    return result.status if result else "not run"


def cell_trials(evidence: Evidence, task: str, cell: str) -> list[PlannedTrial]:
    """All trials of a cell, whatever streams they vary."""
    return [trial for trials in evidence.units_of(task, cell) for trial in trials]


def ordered(evidence: Evidence, task: str, rows: list[Row]) -> list[Row]:
    """The best first: fewer failures come before a better mean."""
    sign = 1.0 if evidence.own(task)[1] == "min" else -1.0

    def place(one: Row) -> tuple[float, float]:
        return one.worst / one.seeds, math.inf if one.mean is None else sign * one.mean

    return sorted(rows, key=place)


def coloured(evidence: Evidence, rows: list[Row]) -> list[Row]:
    """Rows with the colours of their methods; by place, where a grid has more methods than there are colours."""
    methods = evidence.plan.methods
    few = len(methods) <= SERIES
    places = [methods.index(row.method) if few else index for index, row in enumerate(rows)]
    return [replace(row, colour=place % SERIES) for row, place in zip(rows, places, strict=True)]
