"""Ray Tune's own rules that compare trials, ASHA and median stopping, on the trials of a grid.

`AsyncHyperBandScheduler` and `MedianStoppingRule` decide; all that is done here is to show them the grid's trials. A Tune trial
carries units, and a unit may carry several trials, so they are shown trials by hash: the validation score by the share
of training, as the records have it. Trials of one task are compared with each other.

The state is never saved: it is rebuilt from the records, replayed in (step, hash) order. What is decided belongs to the submission
that decided it. A trial that is stopped finds a verdict in its folder, commits and ends as screened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.utils import flatten_dict

from harness.planning.plan import Plan, PlannedTrial
from harness.recording.results import Results
from harness.screening import Screening

ROUNDING = 1e-9
"""Added to shares of training, so that 30 of 100 steps reach a rung at 3 times .1."""


@dataclass(frozen=True)
class Shown:
    """What Tune's rules see of a trial."""

    trial_id: str


class Neighbours(FIFOScheduler):
    """Runs units in order, and lets one of Tune's rules stop the trials that they carry.

    Args:
        screening: the rule, from which share of training on, and its number.
        plan: whose trials are compared, the finished ones too.
        running: the trials that may be stopped, by hash.
        results: where their records are.
    """

    def __init__(self, screening: Screening, plan: Plan, running: set[str], results: Results) -> None:
        super().__init__()
        self._screening, self._results, self._running = screening, results, running
        self._trials = {trial.hash: trial for trial in plan.trials}
        self._metrics = {trial.task_label: plan.metrics[trial.spec.task] for trial in plan.trials}
        self._rules = {task: tune_rule(screening, mode) for task, (_, mode) in self._metrics.items()}
        self._read: dict[str, int] = {}
        self._added: set[str] = set()
        self._stopped: set[str] = set()
        points = [(step, hash, score) for hash in sorted(self._trials) for step, score in self._new(hash)]
        for step, hash, score in sorted(points):
            self._show(self._trials[hash], step, score)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: the records know."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        self._look(result)
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self._look(result)

    def _look(self, result: dict[str, Any]) -> None:
        """Shows the rule what the trials of a unit have committed since the last look; Tune hands a flat result over."""
        ended = [name.removeprefix("ended/") for name in flatten_dict(result) if name.startswith("ended/")]
        for hash in [*ended, *result["running"]]:
            for step, score in self._new(hash):
                self._show(self._trials[hash], step, score)

    def _new(self, hash: str) -> Iterator[tuple[int, float]]:
        """Step and score of evaluations that were not read yet."""
        trial = self._trials[hash]
        records = self._results.trial(hash)
        commit = records.commit()
        if commit is None or commit.code != trial.code:
            return
        metric = self._metrics[trial.task_label][0]
        for record in records.read(commit.chunks[self._read.get(hash, 0) :]):
            if metric in record.get("metrics", {}):
                yield record["step"], record["metrics"][metric]
        self._read[hash] = len(commit.chunks)

    def _show(self, trial: PlannedTrial, step: int, score: float) -> None:
        rule, shown = self._rules[trial.task_label], Shown(trial.hash)
        if trial.hash not in self._added:
            self._added.add(trial.hash)
            rule.on_trial_add(None, shown)  # type: ignore[arg-type]
        length = trial.spec.length
        result = {"share": step / length + ROUNDING, "score": score}
        action = rule.on_trial_result(None, shown, result)  # type: ignore[arg-type]
        stops = action != TrialScheduler.CONTINUE and step < length
        if stops and trial.hash in self._running and trial.hash not in self._stopped:
            self._stopped.add(trial.hash)
            (metric, mode), name = self._metrics[trial.task_label], self._screening.rule
            found, allowed = bar(rule, shown, result["share"])
            side = "at least" if mode == "max" else "at most"
            reason = (
                f"{name} at step {step} of {length}: {metric} {found:.6g}, its neighbours allow {side} {allowed:.6g}"
            )
            self._results.trial(trial.hash).leave_verdict(self._screening.mark, trial.code, reason)


def bar(rule: AsyncHyperBandScheduler | MedianStoppingRule, stopped: Any, share: float) -> tuple[float, float]:
    """The score by which a rule has stopped a trial, and what it had to reach: as the rule computed them, which it does not tell.

    ASHA: the trial's score at the rung, and the quantile of those that were there before. Median: the trial's best score so
    far, and the median of the others' means.
    """
    if isinstance(rule, AsyncHyperBandScheduler):
        bracket = rule._trial_info[stopped.trial_id]
        rung = next(scores for _, scores in bracket._rungs if stopped.trial_id in scores)  # the highest comes first
        before = {trial: score for trial, score in rung.items() if trial != stopped.trial_id}
        sign = rule._metric_op or 1.0  # Tune keeps the scores so that more is better
        return sign * rung[stopped.trial_id], sign * float(bracket.cutoff(before))
    others = [other for other in rule._trials_beyond_time(share) if other != stopped]
    means = [rule._running_mean(other, share) for other in others]
    return float(rule._best_result(stopped)), float(np.median([mean for mean in means if math.isfinite(mean)]))


def tune_rule(screening: Screening, mode: str) -> AsyncHyperBandScheduler | MedianStoppingRule:
    """Tune's own scheduler for a rule, over shares of training."""
    about: dict[str, Any] = {"time_attr": "share", "metric": "score", "mode": mode, "grace_period": screening.at}
    if screening.rule == "asha":
        reduction = screening.options["reduction"]
        return AsyncHyperBandScheduler(**about, max_t=1, reduction_factor=reduction, stop_last_trials=False)
    samples = int(screening.options["samples"])
    # No hard stop: of a trial that goes on for some steps, or went on once, it then takes in the rest. It never waits for others.
    return MedianStoppingRule(**about, min_samples_required=samples, min_time_slice=math.inf, hard_stop=False)  # type: ignore[arg-type]
