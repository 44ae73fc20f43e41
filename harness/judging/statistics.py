"""Statistics of results over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import stdtrit


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
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, float(stdtrit(len(values) - 1, (1 + level) / 2)) * deviation / math.sqrt(len(values))
