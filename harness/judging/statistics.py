"""Statistics of results over seeds and tasks: means, aggregates with their intervals, profiles, failures, correlations.

A score matrix has one row per seed and one column per task, higher is better. `-inf` is a failure that ranks worst.
Comparisons by seed are in `harness.judging.paired`, ranks in `harness.judging.ranks`, times in `harness.judging.times`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its subpackages load where they are first used: the leaderboard needs none of `stats`
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, stdtrit

Array = NDArray[np.float64]


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None]:
    r"""The mean and the half-width of its confidence interval.

    Student's interval, :math:`t_{n-1,(1+c)/2}\, s/\sqrt n`, with :math:`s` the sample standard deviation.

    Args:
        values: one number per seed.
        level: the confidence :math:`c`.

    Returns:
        Mean and half-width; the half-width is None for a single value, of which nothing is known but itself.

    Raises:
        ValueError: if there are no values.

    >>> mean, half = mean_interval([1.0, 2.0, 3.0])
    >>> mean, round(half, 4)
    (2.0, 2.4841)
    """
    if not values:
        raise ValueError("values: found none, at least one is needed")
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    deviation = math.hypot(*(value - mean for value in values)) / math.sqrt(len(values) - 1)  # squares could overflow
    return mean, float(stdtrit(len(values) - 1, (1 + level) / 2)) * deviation / math.sqrt(len(values))


def mean(scores: Array) -> Array:
    """The mean over tasks of the means over seeds. Scores (…, seeds, tasks)."""
    return scores.mean(axis=(-2, -1))


def median(scores: Array) -> Array:
    """The median over tasks of the means over seeds. Scores (…, seeds, tasks)."""
    return np.median(scores.mean(axis=-2), axis=-1)


def interquartile_mean(scores: Array) -> Array:
    """The mean of the middle half of all scores, seeds and tasks together (arXiv 2108.13264). Scores (…, seeds, tasks).

    >>> float(interquartile_mean(np.array([[0.0, 1.0], [2.0, 100.0]])))
    1.5
    """
    return scipy.stats.trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1)


def optimality_gap(scores: Array, goal: float = 1.0) -> Array:
    """How far scores lie below a goal on average; what is above it counts as there (arXiv 2108.13264)."""
    return goal - np.minimum(scores, goal).mean(axis=(-2, -1))


AGGREGATES: dict[str, Callable[[Array], Array]] = {
    "interquartile mean": interquartile_mean,
    "mean": mean,
    "median": median,
    "optimality gap": optimality_gap,
}


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; None for bounds that one seed cannot give."""

    value: float
    low: float | None
    high: float | None


def _resamples(scores: Array, count: int, generator: np.random.Generator) -> Array:
    """Score matrices in which the seeds of each task were drawn anew, task by task: (count, seeds, tasks)."""
    seeds, tasks = scores.shape
    rows = generator.integers(0, seeds, size=(count, seeds, tasks))
    return scores[rows, np.arange(tasks)]


def _reach(seeds: int, confidence: float) -> float:
    r"""How many bootstrap standard errors an interval reaches to either side: :math:`\sqrt{n/(n-1)}/\sqrt{1-c}`.

    The root undoes that the bootstrap of :math:`n` seeds is too narrow by :math:`\sqrt{(n-1)/n}` (Hesterberg 2015,
    arXiv 1411.5279); the rest is Chebyshev's inequality, which takes no shape of the scores for granted. For the mean on one task
    the interval is the mean :math:`\pm s/\sqrt{n(1-c)}`.
    """
    return math.sqrt(seeds / (seeds - 1) / (1 - confidence))


FEWEST_SEEDS, FEWEST_DEGREES = 5, 8
"""Seeds, and degrees of freedom (tasks times seeds less one), below which an aggregate has no interval.

From there on Chebyshev's factor holds 95 % of normal, log-normal, two-moded and tied scores in simulations. Below, standard errors
are off by too much for any factor: three seeds of two modes agree in a quarter of all cases.
"""


def has_interval(seeds: int, tasks: int) -> bool:
    """Whether an aggregate over so many seeds and tasks has an interval: from five seeds on, on one task from nine.

    >>> has_interval(5, 2), has_interval(3, 20), has_interval(8, 1), has_interval(9, 1)
    (True, False, False, True)
    """
    return seeds >= FEWEST_SEEDS and tasks * (seeds - 1) >= FEWEST_DEGREES


def aggregate(
    scores: ArrayLike,
    statistic: Callable[[Array], Array] = interquartile_mean,
    *,
    confidence: float = 0.95,
    count: int = 2000,
    percentile: bool = False,
) -> Estimate:
    """A statistic of a score matrix with its stratified bootstrap interval: seeds are drawn anew within each task.

    Args:
        scores: (seeds, tasks), finite.
        statistic: of matrices (…, seeds, tasks).
        confidence: of the interval.
        count: how many resamples; they are the same each time.
        percentile: the percentiles of the resamples, as rliable has it, from two seeds on; too narrow at few seeds.

    Returns:
        The value, with an interval where `has_interval` says that there is one.

    >>> estimate = aggregate([[1.0, 2.0], [2.0, 4.0], [3.0, 3.0], [4.0, 0.0], [5.0, 1.0]], mean)
    >>> estimate.value, estimate.low < 2.5 < estimate.high
    (2.5, True)
    >>> aggregate([[1.0, 2.0], [2.0, 4.0], [3.0, 3.0]], mean)
    Estimate(value=2.5, low=None, high=None)
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"scores: found shape {values.shape}, allowed: finite numbers of shape (seeds, tasks)")
    value = float(statistic(values))
    if not (len(values) > 1 if percentile else has_interval(*values.shape)):
        return Estimate(value, None, None)
    found = statistic(_resamples(values, count, np.random.default_rng(0)))
    if percentile:
        low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
        return Estimate(value, float(low), float(high))
    half = _reach(len(values), confidence) * float(found.std())
    return Estimate(value, value - half, value + half)


def aggregates(scores: ArrayLike, *, count: int = 2000) -> dict[str, Estimate]:
    """The four aggregates of a score matrix, each with an interval that holds the truth in 95 % at least.

    It is that of `aggregate`. That of the median reaches at least from the median of the lower bounds of the tasks' means to
    that of their upper ones: means of few skewed scores lie below the truth on most tasks alike, which no resample of them shows.

    What it holds is simulated, not proven: no interval of a mean holds its level for every distribution (Bahadur and Savage
    1956, Ann. Math. Stat. 27). In simulations of 1 to 30 tasks that vary alike and of up to 20 seeds it held in 95 % at least for
    scores that are normal, log-normal, of two modes, or tied; for normal ones in 99.5 %, being about twice as wide as they need.
    Where one of ten tasks varied ten times as much as the others, five seeds held the mean in 94 % at least.

    Args:
        scores: (seeds, tasks), finite.
        count: how many resamples.

    >>> found = aggregates([[0.0, 0.0, 2.0]] * 4 + [[2.0, 2.0, 4.0]] * 4)
    >>> found["median"].value, round(found["median"].low, 2), round(found["median"].high, 2)
    (1.0, -0.69, 2.69)
    """
    values = np.asarray(scores, dtype=np.float64)
    found = {name: aggregate(values, statistic, count=count) for name, statistic in AGGREGATES.items()}
    median = found["median"]
    if median.low is not None and median.high is not None:
        means = values.mean(axis=0)
        halves = _reach(len(values), 0.95) * values.std(axis=0) / math.sqrt(len(values))
        lower, upper = float(np.median(means - halves)), float(np.median(means + halves))
        found["median"] = Estimate(median.value, min(median.low, lower), max(median.high, upper))
    return found


def share_interval(count: ArrayLike, total: float, confidence: float = 0.95) -> tuple[Array, Array]:
    r"""Clopper and Pearson's interval of shares: both bounds are quantiles of beta distributions.

    With :math:`k` of :math:`n` independent runs the bounds are :math:`B_{α/2}(k, n-k+1)` and
    :math:`B_{1-α/2}(k+1, n-k)`. It covers at least its confidence at any :math:`n`, also where the runs of some tasks
    succeed more often than those of others (Hoeffding 1956, Ann. Math. Stat. 27).

    Args:
        count: how many, of any shape; no whole number where ties count half.
        total: of how many.
        confidence: of the interval.

    Returns:
        The lower and the upper bounds, in the shape of `count`.
    """
    found = np.asarray(count, dtype=np.float64)
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):
        low = np.where(found > 0, betaincinv(found, total - found + 1, tail), 0.0)
        high = np.where(found < total, betaincinv(found + 1, total - found, 1 - tail), 1.0)
    return low, high


def profile(scores: ArrayLike, thresholds: ArrayLike) -> Array:
    """The share of all scores above each threshold (arXiv 2108.13264); a failure is above none.

    >>> profile([[0.1, 0.9], [0.5, 0.7]], [0.0, 0.5, 0.8]).tolist()
    [1.0, 0.5, 0.25]
    """
    values, levels = np.asarray(scores, dtype=np.float64), np.asarray(thresholds, dtype=np.float64)
    return (values[..., None] > levels).mean(axis=(0, 1))


def profile_band(scores: ArrayLike, thresholds: ArrayLike, confidence: float = 0.95) -> tuple[Array, Array]:
    """The interval of the profile at each threshold, threshold by threshold; that of a share of runs.

    Resampled runs, as rliable has it, would leave no band at all where the few seeds of each task agree.
    """
    runs = np.size(scores)
    return share_interval(profile(scores, thresholds) * runs, runs, confidence)


def probability_of_improvement(ours: ArrayLike, theirs: ArrayLike, confidence: float = 0.95) -> Estimate:
    r"""The chance that a run of one method beats a run of the other on a task, a tie counting half, averaged over tasks.

    The Mann-Whitney statistic over the number of pairs (arXiv 2108.13264). Scores (seeds, tasks). The interval is that of as
    many pairs as there are seeds and tasks: the variance of the statistic on a task is at most that of :math:`n` pairs that
    share no run, :math:`θ(1-θ)/n` (Birnbaum and Klose 1957, Ann. Math. Stat. 28).

    >>> estimate = probability_of_improvement([[1.0], [3.0]], [[2.0], [3.0]])
    >>> estimate.value, round(estimate.low, 3), round(estimate.high, 3)
    (0.375, 0.003, 0.969)
    """
    x, y = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    pairs = min(x.size, y.size)
    value = float(((x[:, None] > y) + 0.5 * (x[:, None] == y)).mean())
    if min(len(x), len(y)) < 2:
        return Estimate(value, None, None)
    low, high = share_interval(value * pairs, pairs, confidence)
    return Estimate(value, float(low), float(high))


def failure_rate(failed: int, trials: int, confidence: float = 0.95) -> Estimate:
    """The share of trials that failed, with Clopper and Pearson's interval.

    >>> rate = failure_rate(0, 10)
    >>> rate.value, rate.low, round(rate.high, 4)
    (0.0, 0.0, 0.3085)
    """
    if not 0 <= failed <= trials or not trials:
        raise ValueError(f"failed: found {failed} of {trials} trials")
    low, high = share_interval(failed, trials, confidence)
    return Estimate(failed / trials, float(low), float(high))


def rank_correlation(x: Sequence[float], y: Sequence[float], kind: str = "spearman") -> float | None:
    """Spearman's ρ or Kendall's τ-b; None where one side does not vary. `-inf` ranks lowest.

    >>> round(rank_correlation([1, 2, 3, 4], [1, 3, 2, float("inf")]), 3)
    0.8
    """
    if kind not in ("spearman", "kendall"):
        raise ValueError(f"kind: found {kind!r}, allowed: spearman, kendall")
    if len(x) < 2 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    a, b = scipy.stats.rankdata(x), scipy.stats.rankdata(y)
    found = scipy.stats.spearmanr(a, b) if kind == "spearman" else scipy.stats.kendalltau(a, b)
    return float(found.statistic)
