"""Scores by seed, higher is better, with all that is not known of them.

A score is a pair of bounds. A finished trial has both at its value; one that diverged or ran out of memory or time has
both at -inf, so that it ranks worst; a screened one lies anywhere between -inf and +inf. Failed, lost and missing trials
are no scores: they hold the verdict back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


ROUNDING = 1e-12
"""What is smaller, as a share of the numbers that it was computed from, is none."""


def _sum(a: Array, b: Array | float) -> Array:
    """A sum, exactly zero where rounding alone says otherwise: .93 - .92 - .01 is no win."""
    with np.errstate(invalid="ignore"):
        total = a + b
    nothing = np.isfinite(total) & (np.abs(total) <= ROUNDING * np.maximum(np.abs(a), np.abs(b)))
    return np.where(nothing, 0.0, total)


def _minus(a: Array, b: Array, both_infinite: float) -> Array:
    difference = _sum(a, -b)
    return np.where(np.isnan(difference), both_infinite, difference)


def mean_bounds(bounds: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The mean of several pairs of bounds; anything, where one failed and another may be anything.

    >>> mean_bounds([(1.0, 2.0), (3.0, 4.0)]), mean_bounds([(-math.inf, -math.inf), (-math.inf, math.inf)])
    ((2.0, 3.0), (-inf, inf))
    """
    lows, highs = zip(*bounds, strict=True)
    return float(np.mean(lows)), math.inf if math.inf in highs else float(np.mean(highs))


@dataclass(frozen=True)
class Scores:
    """One number for each seed, as bounds; higher is better."""

    low: Array
    high: Array
    held: frozenset[str] = frozenset()
    """What is missing, in words; the numbers at those seeds mean nothing."""
    present: NDArray[np.bool_] = field(default_factory=lambda: np.ones(0, dtype=bool))
    """Where a number is known or bounded."""
    judged: NDArray[np.bool_] = field(default_factory=lambda: np.ones(0, dtype=bool))
    """Seeds that count; the others were spent on choosing cells."""
    trials: frozenset[str] = frozenset()
    """The trials behind them, by hash."""

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return bool(self.present.all())

    def bounds(self) -> tuple[Array, Array]:
        """The bounds of the seeds that count."""
        return self.low[self.judged], self.high[self.judged]

    def minus(self, other: Scores) -> Scores:
        """Differences of two scores. Where both failed they are tied: both rank worst."""
        return self._with(other, _minus(self.low, other.high, 0.0), _minus(self.high, other.low, 0.0))

    def minus_difference(self, other: Scores) -> Scores:
        """Differences of two differences. Where both are infinite nothing is known."""
        return self._with(other, _minus(self.low, other.high, -math.inf), _minus(self.high, other.low, math.inf))

    def plus(self, number: float) -> Scores:
        """All scores moved by a number."""
        return replace(self, low=_sum(self.low, number), high=_sum(self.high, number))

    def times(self, factor: float) -> Scores:
        """All scores multiplied by a positive factor."""
        return replace(self, low=self.low * factor, high=self.high * factor)

    def tied(self, within: float) -> Scores:
        """Differences with those that are not larger than a bound set to zero."""
        if not within:
            return self
        reach = within * (1 + 1e-9)  # .93 - .92 is .010000000000000009
        low, high = (np.where(np.abs(bound) <= reach, 0.0, bound) for bound in (self.low, self.high))
        return replace(self, low=low, high=high)

    def over(self, other: Scores) -> Scores:
        """Scores as shares of the size of another one: as they are where that is infinite, anything where it is zero."""
        size = np.abs(other.low)
        divisor = np.where(np.isfinite(size) & (size > 0), size, 1.0)
        low = np.where(size == 0, -math.inf, self.low / divisor)
        high = np.where(size == 0, math.inf, self.high / divisor)
        return replace(self, low=low, high=high)

    def resting_on(self, others: Sequence[Scores]) -> Scores:
        """The same numbers, which others had a part in: what those lack holds these back."""
        return replace(
            self,
            held=self.held.union(*(other.held for other in others)),
            present=np.all([self.present, *(other.present for other in others)], axis=0),
            trials=self.trials.union(*(other.trials for other in others)),
        )

    def _with(self, other: Scores, low: Array, high: Array) -> Scores:
        return Scores(
            low=low,
            high=high,
            held=self.held | other.held,
            present=self.present & other.present,
            judged=self.judged & other.judged,
            trials=self.trials | other.trials,
        )

    @staticmethod
    def combine(parts: Sequence[Scores], how: Literal["mean", "worst"]) -> Scores:
        """The mean or the worst of several scores, seed by seed."""
        merge = np.mean if how == "mean" else np.min
        with np.errstate(invalid="ignore"):
            low, high = (merge([getattr(p, bound) for p in parts], axis=0) for bound in ("low", "high"))
        low = np.where(np.isnan(low), -math.inf, low)
        high = np.where(np.isnan(high), math.inf, high)
        held = frozenset().union(*(part.held for part in parts))
        trials = frozenset().union(*(part.trials for part in parts))
        present, judged = (np.all([getattr(p, mask) for p in parts], axis=0) for mask in ("present", "judged"))
        return Scores(low, high, held, present, judged, trials)


@dataclass(frozen=True)
class Contrast:
    """Numbers by seed that are above zero where the statement holds."""

    label: str
    scores: Scores
    unit: str = ""
    """What the numbers are: a difference of a metric, a logarithm, a correlation."""
    details: dict[str, Any] = field(default_factory=dict)
    """What a report shows beside it: cells chosen, how many they were chosen from, means."""
    group: str = ""
    """Contrasts of one group count as one, which holds where all of them do; without a name each is its own."""
