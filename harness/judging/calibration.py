"""Early-stopping rules fitted and compared on finished runs: thresholds at a recall, and what they keep, save and lose.

A rule accepts a run by its early values (`harness.screening`); a run is a success by its final return. Thresholds have the
best precision among those that reach a recall over the successes. They are judged on the runs that they were fitted on, and
on runs held out: by seed, by learning rate, by environment.

Intervals are of a bootstrap clustered over learning rates and seeds, in which fitted thresholds are held fixed: they say how much
a number depends on which learning rates and seeds were judged, not how far the thresholds would move with other runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.screening import QUANTITIES, Bounds, decide, quantities

Protocol = Literal["in sample", "seed", "learning rate", "environment"]
PROTOCOLS: tuple[Protocol, ...] = ("in sample", "seed", "learning rate", "environment")
RECALLS = (0.5, 0.7, 0.8, 0.9)
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Run:
    """One finished run: what a rule saw of it early, and what became of it."""

    task: str
    lr: float
    seed: str
    values: dict[str, float]
    """Early values by quantity; what is missing is not accepted."""
    final: float
    """Final return; -inf for a run that diverged."""
    success: bool
    cost: float = 1.0
    """What the whole run costs, in any unit."""

    def group(self, protocol: Protocol) -> str:
        """What it is held out with."""
        groups = {"in sample": "", "seed": self.seed, "learning rate": repr(self.lr), "environment": self.task}
        return groups[protocol]


@dataclass(frozen=True)
class Judgement:
    """What came of a rule. None means undefined: there was no success to recall, or nothing was accepted."""

    rule: str
    target: float
    protocol: Protocol
    precision: float | None
    recall: float | None
    saved: float | None
    """Share of the compute that is saved by stopping what is not accepted."""
    regret: float | None
    """The best final return of a seed's runs minus the best of those kept, a mean over environments and seeds."""
    intervals: dict[str, Interval]
    """Of these four, by name: 95 %, all from the same draws of learning rates and seeds, the thresholds held fixed."""
    accepted: int = 0
    runs: int = 0


def fit(rule: str, runs: Sequence[Run], recall: float) -> Bounds | None:
    """The thresholds with the best precision among those that reach a recall; of equals, those with more recall,
    then the tighter ones.

    Ends of intervals are values of successful runs: any other threshold can be moved to one and keeps the same successes
    and no more failures. None if there is no success.

    >>> runs = [Run("t", 0.1, "0", {"return": r}, r, r > 15) for r in (10.0, 20.0, 30.0)]
    >>> fit("early_return", runs, recall=0.9)
    {'return': (20.0, inf)}
    """
    names = quantities(rule)
    success = np.array([run.success for run in runs], dtype=bool)
    if not success.any():
        return None
    *outer, (inner_bounds, inner) = [_sides(name, runs, success) for name in names]
    place = _best(_together([masks for _, masks in outer], len(runs)), inner, success, recall)
    ends = np.unravel_index(place[0], [len(bounds) for bounds, _ in outer]) if outer else ()
    chosen = [bounds[index] for index, (bounds, _) in zip(ends, outer, strict=True)]
    return dict(zip(names, [*chosen, inner_bounds[place[1]]], strict=True))


def _together(masks: Sequence[Bools], runs: int) -> Bools:
    """Every conjunction of one row of each."""
    combined = np.ones((1, runs), dtype=bool)
    for each in masks:
        combined = (combined[:, None] & each).reshape(-1, runs)
    return combined


def _best(outer: Bools, inner: Bools, success: Bools, recall: float, rows: int = 1024) -> tuple[int, int]:
    """The pair of masks over runs that accepts best together: a row of `outer` and one of `inner`.

    Counts are products of matrices, some rows at a time: a conjunction of four thresholds has millions of pairs. A mask that
    recalls too little by itself does so in every pair.
    """
    least = (recall - 1e-12) * success.sum()
    first, second = (np.flatnonzero((masks & success).sum(axis=1) >= least) for masks in (outer, inner))
    best, reached = (0, 0), (-1.0, -1)
    columns = inner[second].T.astype(np.float32)  # counts of runs are exact in it
    for start in range(0, len(first) * bool(len(second)), rows):
        block = outer[first[start : start + rows]]
        hits, taken = (block & success).astype(np.float32) @ columns, block.astype(np.float32) @ columns
        precisions = np.where(hits >= least, hits.astype(np.float64) / np.maximum(taken, 1), -1.0)
        score = float(precisions.max()), int(hits[precisions == precisions.max()].max())
        if score > reached:
            row, column = np.nonzero((precisions == score[0]) & (hits == score[1]))
            best, reached = (int(first[start + row[0]]), int(second[column[row == row[0]][-1]])), score
    return best


def _sides(name: str, runs: Sequence[Run], success: Bools) -> tuple[list[tuple[float, float]], Bools]:
    """Candidate intervals of a quantity, and which runs each accepts: (candidates, runs)."""
    values = np.array([run.values.get(name, math.nan) for run in runs])
    ends = np.unique(values[success & ~np.isnan(values)]).tolist()
    bounds = [(-math.inf, math.inf)]
    if QUANTITIES[name].side == "high":
        bounds += [(low, math.inf) for low in ends]
    else:
        bounds += [(low, high) for i, low in enumerate(ends) for high in ends[i:]]
    lows, highs = np.array(bounds).T[..., None]
    return bounds, (values >= lows) & (values <= highs)


def accept(rule: str, runs: Sequence[Run], recall: float, protocol: Protocol) -> list[bool | None]:
    """Whether each run is accepted by thresholds fitted without it; None where there was no success to fit on.

    Thresholds are those of the run's own environment, but where that is held out: then of all others together.
    """
    accepted: list[bool | None] = [None] * len(runs)
    tasks = sorted({run.task for run in runs})
    for task, group in itertools.product(tasks, sorted({run.group(protocol) for run in runs})):
        judged = [i for i, run in enumerate(runs) if run.task == task and run.group(protocol) == group]
        if not judged:
            continue
        if protocol == "environment":
            others = [run for run in runs if run.task != task]
        else:
            others = [r for r in runs if r.task == task and (protocol == "in sample" or r.group(protocol) != group)]
        bounds = fit(rule, others, recall)
        for index in judged:
            accepted[index] = None if bounds is None else not decide(bounds, runs[index].values)
    return accepted


def judge(
    rule: str, runs: Sequence[Run], recall: float, protocol: Protocol, at: float, resamples: int = 1000
) -> Judgement:
    """A rule at a recall under a protocol.

    Args:
        rule: as `oui` or `early_return + oui`.
        runs: finished runs, with their early values.
        recall: what the thresholds must reach where they are fitted.
        protocol: what is held out.
        at: the share of a run after which the rule decides.
        resamples: of the bootstrap.
    """
    decided = accept(rule, runs, recall, protocol)
    known = [i for i, taken in enumerate(decided) if taken is not None]
    kept = [runs[i] for i in known]
    taken = np.array([bool(decided[i]) for i in known], dtype=bool)
    accepted, judged = int(taken.sum()), len(kept)
    if not any(run.success for run in kept):
        return Judgement(rule, recall, protocol, None, None, None, None, {}, accepted, judged)
    found = {name: _defined(values) for name, values in _numbers(kept, taken, at, *_once(judged)).items()}
    drawn = _numbers(kept, taken, at, *_drawn(kept, resamples)).items()
    intervals = {name: interval for name, values in drawn if (interval := _interval(values))}
    return Judgement(rule, recall, protocol, **found, intervals=intervals, accepted=accepted, runs=judged)


def regret(runs: Sequence[Run], taken: Sequence[bool] | Bools) -> float:
    """The best final return of a seed's runs minus the best of those taken, a mean over environments and seeds.

    Where none of a seed's runs is kept, its worst one stands for what is left; a diverged one counts as the worst."""
    return float(_regrets(runs, np.asarray(taken, dtype=bool), *_once(len(runs)))[0])


def _numbers(runs: Sequence[Run], taken: Bools, at: float, by_lr: Floats, by_seed: Floats) -> dict[str, Floats]:
    """What comes of a rule in each draw, by name; nan where that is undefined.

    A run counts as often as both its learning rate and its seed were drawn: `by_lr` and `by_seed`, (draws, runs).
    """
    success, cost = np.array([run.success for run in runs]), np.array([run.cost for run in runs])
    times = by_lr * by_seed
    return {
        "precision": _ratio(times @ (taken & success), times @ taken),
        "recall": _ratio(times @ (taken & success), times @ success),
        "saved": _ratio(times @ (cost * ~taken), times @ cost) * (1 - at),
        "regret": _regrets(runs, taken, by_lr, by_seed),
    }


def _regrets(runs: Sequence[Run], taken: Bools, by_lr: Floats, by_seed: Floats) -> Floats:
    """The regret in each draw: a seed that is drawn twice counts twice, a learning rate is there or not."""
    there, finals = by_lr * by_seed > 0, np.array([run.final for run in runs])
    worst = np.where(there & np.isfinite(finals), finals, math.inf).min(axis=1, keepdims=True)
    finals = np.maximum(finals, np.where(np.isinf(worst), 0.0, worst))
    losses, counted = np.zeros((2, len(there)))
    for place in sorted({(run.task, run.seed) for run in runs}):
        own = np.array([(run.task, run.seed) == place for run in runs])
        here, ends = there[:, own], finals[:, own]
        best = np.where(here, ends, -math.inf).max(axis=1)
        left = np.where(here & taken[own], ends, -math.inf).max(axis=1)
        left = np.where(np.isinf(left), np.where(here, ends, math.inf).min(axis=1), left)
        times = by_seed[:, own][:, 0] * here.any(axis=1)
        losses += times * np.where(times > 0, best - left, 0.0)
        counted += times
    return _ratio(losses, counted)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Nan where the whole is nothing."""
    return np.divide(part, whole, out=np.full(len(whole), math.nan), where=whole > 0)


def _defined(values: Floats) -> float | None:
    return None if math.isnan(values[0]) else float(values[0])


def _interval(values: Floats) -> Interval | None:
    """The middle 95 % of the draws in which the number is defined."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def _once(runs: int) -> tuple[Floats, Floats]:
    """Every run as it is: one draw."""
    return np.ones((1, runs)), np.ones((1, runs))


def _drawn(runs: Sequence[Run], resamples: int) -> tuple[Floats, Floats]:
    """How often the learning rate and the seed of each run are drawn, with replacement: (resamples, runs) each."""
    lrs, seeds = sorted({run.lr for run in runs}), sorted({run.seed for run in runs})
    by_lr, by_seed = _resampled(len(lrs), len(seeds), resamples)
    return by_lr[:, [lrs.index(run.lr) for run in runs]], by_seed[:, [seeds.index(run.seed) for run in runs]]


@cache
def _resampled(lrs: int, seeds: int, resamples: int) -> tuple[Floats, Floats]:
    """How often each learning rate and each seed is drawn: (resamples, lrs) and (resamples, seeds)."""
    rng = np.random.default_rng(0)
    drawn = [
        [np.bincount(rng.integers(count, size=count), minlength=count) for count in (lrs, seeds)]
        for _ in range(resamples)
    ]
    by_lr, by_seed = (np.array([both[of] for both in drawn], dtype=np.float64) for of in (0, 1))
    return by_lr.reshape(-1, lrs), by_seed.reshape(-1, seeds)


def curve(rule: str, runs: Sequence[Run]) -> list[tuple[float, float]]:
    """Precision by recall, in sample: what `fit` reaches for each number of successes to recall, of runs of one environment."""
    success = np.array([run.success for run in runs], dtype=bool)
    if not success.any():
        return []
    fewest = _fewest_accepted([_sides(name, runs, success)[1] for name in quantities(rule)], success)
    points: list[tuple[float, float]] = []
    for hits in range(int(success.sum()), 0, -1):
        if math.isfinite(fewest[hits]):
            point = hits / int(success.sum()), hits / float(fewest[hits])
            # With a higher precision at more recall, that is what is reached here too.
            points.append(max([*points[-1:], point], key=lambda one: (one[1], one[0])))
        elif points:
            points.append(points[-1])
    return points[::-1]


def _fewest_accepted(masks: Sequence[Bools], success: Bools, rows: int = 1024) -> Floats:
    """The least number of runs that thresholds accept which keep so many successes, by that number; infinite if none does."""
    outer, inner = _together(masks[:-1], len(success)), masks[-1].T.astype(np.float32)
    fewest = np.full(int(success.sum()) + 1, math.inf)
    for start in range(0, len(outer), rows):
        block = outer[start : start + rows]
        hits, taken = (block & success).astype(np.float32) @ inner, block.astype(np.float32) @ inner
        np.minimum.at(fewest, hits.astype(np.int64).ravel(), taken.ravel().astype(np.float64))
    return fewest


def compare_rules(
    runs: Sequence[Run],
    rules: Iterable[str] = ("oui", "early_return", "early_return + oui", "clip_fraction", "kl", "flips", "lr"),
    recalls: Sequence[float] = RECALLS,
    at: float = 0.1,
    resamples: int = 1000,
) -> list[Judgement]:
    """Every rule at every recall under every protocol; holding out an environment needs two of them."""
    several = len({run.task for run in runs}) > 1
    return [
        judge(rule, runs, recall, protocol, at, resamples)
        for rule, recall, protocol in itertools.product(rules, recalls, PROTOCOLS)
        if several or protocol != "environment"
    ]
