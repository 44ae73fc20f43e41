"""Claims about screening and cost: correlations and precisions by seed, and what a method saves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from harness.claim import ClaimError
from harness.judging.calibration import Run, accept
from harness.judging.calibration_runs import FINAL, JUDGED, label, run_of
from harness.judging.evidence import WORST, Contrast, Evidence
from harness.judging.scores import Scores
from harness.judging.statistics import rank_correlation
from harness.judging.times import time_to_target
from harness.planning.claims import better_when
from harness.planning.plan import PlannedTrial
from harness.recording.records import Result
from harness.screening import QUANTITIES, quantities

if TYPE_CHECKING:
    from harness.judging.measures import Correlated, Precision, Saves, Screening

Side = Literal["high", "low", "band"]


@dataclass(frozen=True)
class Rule:
    """What an early rule accepts: values between two bounds, both included."""

    low: float
    high: float

    def accepts(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which values it accepts; one that is missing (nan) is not."""
        return (values >= self.low) & (values <= self.high)


@dataclass(frozen=True)
class Judged:
    """What came of a rule: precision is 0 where it accepts nothing."""

    precision: float
    recall: float

    @staticmethod
    def of(accepted: NDArray[np.bool_], success: NDArray[np.bool_]) -> Judged:
        """Precision = TP / (TP + FP), recall = TP / (TP + FN).

        >>> Judged.of(np.array([True, True, False]), np.array([True, False, True]))
        Judged(precision=0.5, recall=0.5)
        """
        hits = int((accepted & success).sum())
        return Judged(
            hits / int(accepted.sum()) if accepted.any() else 0.0, hits / int(success.sum()) if success.any() else 1.0
        )


def best_rule(values: Sequence[float], success: Sequence[bool], recall: float, side: Side = "high") -> Rule:
    """The rule with the best precision among those that reach a recall; of equals, that with more recall.

    >>> best_rule([1.0, 2.0, 3.0, 4.0], [False, True, False, True], recall=1.0)
    Rule(low=2.0, high=inf)
    """
    numbers, wins = np.asarray(values, dtype=np.float64), np.asarray(success, dtype=bool)
    ends = np.unique(numbers[~np.isnan(numbers)])
    if side == "high":
        rules = [Rule(float(low), math.inf) for low in ends]
    elif side == "low":
        rules = [Rule(-math.inf, float(high)) for high in ends]
    else:
        rules = [Rule(float(low), float(high)) for i, low in enumerate(ends) for high in ends[i:]]
    best, reached = Rule(-math.inf, math.inf), (-1.0, -1.0)
    for rule in rules:
        judged = Judged.of(rule.accepts(numbers), wins)
        if judged.recall >= recall and (judged.precision, judged.recall) > reached:
            best, reached = rule, (judged.precision, judged.recall)
    return best


@dataclass(frozen=True)
class Runs:
    """The runs of one task by seed and cell: early values and whether they succeeded."""

    values: NDArray[np.float64]
    """(seeds, cells); nan where a run did not get that far."""
    success: NDArray[np.bool_]

    def left_out(self, seed: int, recall: float, side: Side) -> Judged:
        """One seed, judged by the rule that is best on the others."""
        rest = np.arange(len(self.values)) != seed
        rule = best_rule(self.values[rest].ravel().tolist(), self.success[rest].ravel().tolist(), recall, side)
        return Judged.of(rule.accepts(self.values[seed]), self.success[seed])

    def precisions(self, recall: float, side: Side) -> NDArray[np.float64]:
        """The precision on each seed, left out; zero for a single one, which leaves none to set thresholds on."""
        n = len(self.values)
        return np.array([self.left_out(seed, recall, side).precision if n > 1 else 0.0 for seed in range(n)])

    def in_sample(self, recall: float, side: Side) -> Judged:
        """All seeds, judged by the rule that is best on all of them: too good, and what papers often report."""
        rule = best_rule(self.values.ravel().tolist(), self.success.ravel().tolist(), recall, side)
        return Judged.of(rule.accepts(self.values.ravel()), self.success.ravel())


Read = Callable[[PlannedTrial], float | None]


def early_readers(evidence: Evidence, moment: float, *signals: str) -> dict[str, Read]:
    """What reads signals as they stood at a moment, by what they are called there."""
    when = f" at {moment:.0%} of training" if moment < 1 else ""
    return {name + when: partial(evidence.early, metric=name, fraction=moment) for name in signals if name}


def held_without(
    scores: Scores, evidence: Evidence, task: str, cells: Sequence[str], signals: Mapping[str, Read]
) -> Scores:
    """Scores over cells, held back by each finished run without one of the signals: what was not recorded decides nothing."""
    return scores.resting_on(
        [evidence.collect(task, cell, read, name) for cell in cells for name, read in signals.items()]
    )


def precision_by_seed(claim: Precision, evidence: Evidence, task: str) -> Contrast:
    """The precision of a rule on each seed left out, minus the bound or the precision of the other rule."""
    cells = evidence.matched(task, claim.of, claim.where)
    metric = evidence.metric(task, claim.by)
    sign = evidence.sign(task, metric, claim.direction)
    final = [evidence.scores(task, cell, metric, claim.direction) for cell in cells]
    success = np.array([s.low >= sign * (claim.success or 0.0) for s in final]).T

    def runs(name: str) -> Runs:
        early = [
            [_number(evidence.early(trial, name, claim.early)) for trial in evidence.by_unit(task, cell)]
            for cell in cells
        ]
        return Runs(np.array(early).T, success)

    ours = runs(claim.precision)
    numbers = ours.precisions(claim.recall, claim.accepts)
    details = {"in sample": vars(ours.in_sample(claim.recall, claim.accepts)), "left out": numbers.tolist()}
    if claim.than:
        theirs = runs(claim.than)
        details["in sample, other"] = vars(theirs.in_sample(claim.recall, claim.than_accepts))
        numbers = numbers - theirs.precisions(claim.recall, claim.than_accepts)
    else:
        numbers = numbers - (claim.above or 0.0)
    scores = evidence.over(task, cells, metric, numbers)
    signals = early_readers(evidence, claim.early, claim.precision, claim.than)
    return Contrast(task, held_without(scores, evidence, task, cells, signals), "precision", details)


def rules_by_seed(claim: Screening, evidence: Evidence, task: str) -> list[Contrast]:
    """The precision of a screening rule on each seed left out, minus that of each other rule, or of keeping all runs."""
    cells = evidence.matched(task, claim.of, claim.where)
    runs = label([run for cell in cells for run in _runs(claim, evidence, task, cell)])

    def precisions(rule: str) -> NDArray[np.float64]:
        _check_recorded(rule, runs, task)
        taken = accept(rule, runs, claim.recall, "seed") if rule else [True] * len(runs)
        return np.array([_precision(runs, taken, str(unit)) for unit in evidence.units])

    ours = precisions(claim.screening)
    contrasts = []
    for rule in claim.than or ("",):
        theirs = precisions(rule)
        details = {"left out": ours.tolist(), "left out, other": theirs.tolist()}
        name = f"{task} · {rule}" if rule else task
        contrasts.append(Contrast(name, evidence.over(task, cells, FINAL, ours - theirs), "precision", details))
    return contrasts


def _check_recorded(rule: str, runs: Sequence[Run], task: str) -> None:
    """Refuses a rule with a quantity that no run has: it would keep none, which says nothing of the rule."""
    recorded: set[str] = set().union(*(run.values for run in runs))
    missing = [QUANTITIES[name].metric for name in (quantities(rule) if rule else ()) if name not in recorded]
    if runs and missing:
        raise ClaimError(f"screening: found {rule!r}, allowed: what runs of {task} record early; none has {missing[0]}")


def _precision(runs: Sequence[Run], taken: Sequence[bool | None], seed: str) -> float:
    """The share of successes among the runs of a seed that a rule keeps; nan where it had no success to be fitted on."""
    own = [(run.success, kept) for run, kept in zip(runs, taken, strict=True) if run.seed == seed]
    if any(kept is None for _, kept in own):
        return math.nan
    kept = [success for success, kept in own if kept]
    return sum(kept) / len(kept) if kept else 0.0


def _runs(claim: Screening, evidence: Evidence, task: str, cell: str) -> list[Run]:
    """The runs of a cell that finished or diverged."""
    found = []
    for trial in evidence.by_unit(task, cell):
        result = evidence.results.get(trial.hash)
        if result and result.status in JUDGED:
            read = partial(_run, claim, evidence, trial, result)
            found.append(evidence.once((trial.hash, "run", str(claim.early)), read))
    return found


def _run(claim: Screening, evidence: Evidence, trial: PlannedTrial, result: Result) -> Run:
    seed, recipe = str(trial.spec.seed[evidence.stream]), trial.spec.recipe
    return run_of(trial.task_label, seed, recipe, evidence.records(trial), result, claim.early)


def correlation_by_seed(claim: Correlated, evidence: Evidence, task: str) -> Contrast:
    """The rank correlation over cells for each seed, minus the bound.

    A run that diverged ranks worst in the second metric, if that has a direction and the first is known; otherwise it is
    left out and counted. Where a side does not vary there is no correlation: it may be anything.
    """
    cells = evidence.matched(task, claim.of, claim.where)
    better = claim.direction or better_when(claim.against, evidence.own(task))
    worst = {"max": -math.inf, "min": math.inf}.get(better)
    numbers, left_out = [], 0
    for index in range(len(evidence.units)):
        pairs = []
        for cell in cells:
            trial = evidence.by_unit(task, cell)[index]
            result = evidence.results.get(trial.hash)
            status = result.status if result else None
            x = evidence.early(trial, claim.correlated, claim.early) if result else None
            y = worst if status in WORST else evidence.value(trial, claim.against)
            if x is None or y is None:
                left_out += 1
            else:
                pairs.append((x, y))
        found = rank_correlation([x for x, _ in pairs], [y for _, y in pairs], claim.kind)
        numbers.append((-1 if claim.inverse else 1) * _number(found))
    details = {"cells": len(cells), "runs left out": left_out, "correlations": numbers}
    scores = evidence.over(task, cells, claim.against, np.array(numbers) - claim.above)
    signals = early_readers(evidence, claim.early, claim.correlated)
    return Contrast(task, held_without(scores, evidence, task, cells, signals), claim.kind, details)


def saving(claim: Saves, evidence: Evidence, task: str) -> Contrast:
    """The share of the other's cost that may be used, minus what is used: positive where enough is saved."""
    own = evidence.own(task)
    metric = claim.by or own[0]
    better = "max" if claim.to is not None and evidence.sign(task, metric, claim.direction) > 0 else "min"

    def cost(trial: PlannedTrial) -> float | None:
        if claim.to is None:
            spent = evidence.value(trial, claim.by or "time/train_seconds")
            return None if spent is None else -spent
        return -time_to_target(evidence.points(trial, metric), claim.to, better, claim.clock)  # type: ignore[arg-type]

    name = "time to the target" if claim.to is not None else claim.by or "time/train_seconds"
    sides = []
    for glob in (claim.saves, claim.than):
        cells = evidence.matched(task, glob, claim.where)
        sides.append(evidence.choose(task, cells, lambda cell: evidence.collect(task, cell, cost, name), *own))
    ours, theirs = sides
    details = {"ours": ours.told(), "theirs": theirs.told()}
    return Contrast(task, ours.scores.minus(theirs.scores.times(1 - claim.at_least)), name, details)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
