"""Time to a target, and AlgoPerf's profiles and scores of it.

Rules: AlgoPerf 0.6, docs/DOCUMENTATION.md, "Scoring" (arXiv 2306.07179). A miss is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

LIMIT = 4.0
"""r_max: beyond this multiple of the fastest time a profile gives no credit."""


@dataclass(frozen=True)
class Point:
    """One evaluation: optimizer steps (rounds of a federated trial), seconds of training, and the score."""

    step: float
    seconds: float
    score: float


def time_to_target(
    points: Iterable[Point], target: float, better: Literal["max", "min"], clock: Literal["steps", "seconds"] = "steps"
) -> float:
    """When the score first reaches the target; infinite if it never does. The clock stands still in evaluations.

    >>> curve = [Point(10, 1.0, 0.5), Point(20, 2.0, 0.9), Point(30, 3.0, 0.8)]
    >>> time_to_target(curve, 0.8, "max", "seconds"), time_to_target(curve, 0.95, "max")
    (2.0, inf)
    """
    for point in points:
        if point.score >= target if better == "max" else point.score <= target:
            return point.step if clock == "steps" else point.seconds
    return math.inf


def performance_ratios(times: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """The time of each method over the fastest time, workload by workload; infinite where it missed the target."""
    table = np.array(list(times.values()), dtype=np.float64)
    fastest = table.min(axis=0)
    with np.errstate(invalid="ignore"):
        ratios = np.where(np.isfinite(table), table / fastest, np.inf)
    return {name: row.tolist() for name, row in zip(times, ratios, strict=True)}


def performance_profile(ratios: Sequence[float], factors: ArrayLike) -> NDArray[np.float64]:
    """ρ(τ): the share of workloads on which a method is within a factor τ of the fastest.

    >>> performance_profile([1.0, 2.0, 6.0, math.inf], [1.0, 2.0, 4.0]).tolist()
    [0.25, 0.5, 0.5]
    """
    found = np.asarray(ratios, dtype=np.float64)
    return (found[:, None] <= np.asarray(factors, dtype=np.float64)).mean(axis=0)


def benchmark_score(ratios: Sequence[float], limit: float = LIMIT) -> float:
    r"""AlgoPerf's :math:`\frac{1}{r_\max-1}\int_1^{r_\max} ρ(τ)\,dτ`, in closed form: ρ is a staircase.

    >>> benchmark_score([1.0, 2.5, 4.0, math.inf])
    0.375
    """
    credit = [max(0.0, limit - ratio) / (limit - 1) for ratio in ratios]
    return sum(credit) / len(credit)


def geometric_speedup(reference: Sequence[float], times: Sequence[float]) -> float:
    """The geometric mean over workloads of the reference's time over the method's; 0 if the method missed one.

    >>> round(geometric_speedup([2.0, 8.0], [1.0, 4.0]), 6)
    2.0
    """
    if not all(math.isfinite(time) for time in reference):
        raise ValueError("reference: found a missed target, allowed: finite times")
    return float(np.exp(np.mean(np.log(np.asarray(reference)) - np.log(np.asarray(times)))))
