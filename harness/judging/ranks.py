"""Ranks of methods over tasks, and which of them differ: Friedman's test and Nemenyi's critical difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # `stats` loads where it is first used
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Ranking:
    """Methods by mean rank over tasks, the best first."""

    ranks: dict[str, float]
    """Mean rank of each method; 1 is the best."""
    p: float | None
    """Friedman's: of no difference between any of them. None for fewer than three methods or two tasks."""
    critical_difference: float | None
    """Two methods whose mean ranks are further apart differ (Nemenyi)."""
    groups: list[list[str]]
    """Longest runs of methods that cannot be told apart: the bars of the rank plot."""


def rank_rows(scores: ArrayLike) -> NDArray[np.float64]:
    """The rank of each method on each task, 1 for the best, ties sharing their mean. Scores (tasks, methods).

    >>> rank_rows([[0.9, 0.7, float("-inf")], [0.5, 0.5, 0.1]]).tolist()
    [[1.0, 2.0, 3.0], [1.5, 1.5, 3.0]]
    """
    return scipy.stats.rankdata(-np.asarray(scores, dtype=np.float64), axis=1)


def critical_difference(methods: int, tasks: int, level: float = 0.05) -> float:
    r"""Nemenyi's :math:`q_{α} \sqrt{k(k+1)/6N}` with the studentised range over √2 (Demšar 2006, JMLR 7).

    >>> round(critical_difference(5, 30), 3)
    1.114
    """
    quantile = float(scipy.stats.studentized_range.isf(level, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * tasks))


def ranking(scores: Mapping[str, Sequence[float]], level: float = 0.05) -> Ranking:
    """Ranks methods over tasks.

    Args:
        scores: for each method its score on every task, in one order, higher is better; `-inf` ranks worst.
        level: of the critical difference.
    """
    names = list(scores)
    ranks = rank_rows(np.array([scores[name] for name in names]).T)
    means = dict(sorted(zip(names, ranks.mean(axis=0).tolist(), strict=True), key=lambda pair: pair[1]))
    tasks = len(ranks)
    if len(names) < 3 or tasks < 2:
        return Ranking(means, None, None, [])
    same = bool((ranks == ranks[:, :1]).all())  # then the statistic is 0 / 0
    p = 1.0 if same else float(scipy.stats.friedmanchisquare(*ranks.T).pvalue)
    difference = critical_difference(len(names), tasks, level)
    return Ranking(means, p, difference, _groups(means, difference))


def _groups(means: Mapping[str, float], difference: float) -> list[list[str]]:
    names = list(means)
    groups: list[list[str]] = []
    for first in names:
        group = [name for name in names if 0 <= means[name] - means[first] <= difference]
        if len(group) > 1 and not any(set(group) <= set(other) for other in groups):
            groups.append(group)
    return groups
