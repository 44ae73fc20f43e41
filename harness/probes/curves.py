"""What a curve over steps comes to: smoothing, decay times, speed-ups, roughness."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def ema(values: Sequence[float], window: int) -> list[float]:
    r"""The exponential moving average with :math:`\alpha = 2 / (w + 1)`, begun at the first value.

    >>> ema([2.0, 2.0, 5.0], window=3)
    [2.0, 2.0, 3.5]
    """
    smoothed: list[float] = []
    for value in values:
        last = smoothed[-1] if smoothed else value
        smoothed.append(last + (value - last) * 2 / (window + 1))
    return smoothed


def decay_time(values: Sequence[float], q: float, steps: Sequence[float] | None = None) -> float:
    r"""The step from which a curve stays at or below `q` times the largest value that it has had: :math:`\tau_q`.

    The crossing is interpolated between two points, linearly in the logarithm. NaN if the curve does not stay below.

    Args:
        values: not negative.
        q: between 0 and 1.
        steps: where the values were measured; 0, 1, 2, ... unless given.

    >>> curve = [math.exp(-t / 300) for t in range(2000)]
    >>> round(decay_time(curve, 0.5), 9) == round(300 * math.log(2), 9)
    True
    """
    steps = range(len(values)) if steps is None else steps
    limits, highest = [], 0.0
    for value in values:
        highest = max(highest, value)
        limits.append(q * highest)
    index = len(values)
    while index and values[index - 1] <= limits[index - 1]:
        index -= 1
    if index == len(values):
        return math.nan
    if index == 0 or values[index] == 0:
        return float(steps[index])
    above = math.log(values[index - 1] / limits[index - 1])
    below = math.log(limits[index] / values[index])
    return steps[index - 1] + (steps[index] - steps[index - 1]) * above / (above + below)


def speed_up(slow: Sequence[float], fast: Sequence[float], q: float, steps: Sequence[float] | None = None) -> float:
    r"""How many times earlier one curve decays than another: :math:`S_q = \tau_q(\mathrm{slow}) / \tau_q(\mathrm{fast})`."""
    earlier = decay_time(fast, q, steps)
    return decay_time(slow, q, steps) / earlier if earlier else math.nan


def center(values: Sequence[float], steps: Sequence[float]) -> float:
    r"""The mean step under a curve, :math:`\sum_t t X_t / \sum_t X_t`: a decay time without a threshold."""
    total = math.fsum(values)
    return math.fsum(step * value for step, value in zip(steps, values, strict=True)) / total if total else math.nan


def roughness(values: Sequence[float]) -> float:
    r"""The mean size of a curve's first differences, :math:`\omega_1`.

    Source: arXiv 2601.21739, which takes it of the smoothed norm of the updates.

    >>> roughness([1, 2, 4])
    1.5
    """
    steps = [abs(after - before) for before, after in itertools.pairwise(values)]
    return math.fsum(steps) / len(steps) if steps else math.nan


def roughness2(values: Sequence[float]) -> float:
    r"""The mean size of a curve's second differences, :math:`\omega_2`.

    >>> roughness2([1, 2, 4])
    1.0
    """
    return roughness([after - before for before, after in itertools.pairwise(values)])
