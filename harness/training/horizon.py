"""The horizon of a run, estimated from its validation trajectory: what the refresh rule takes from a pilot."""

from __future__ import annotations

import math
from collections.abc import Sequence


def steps_to_best(trajectory: Sequence[tuple[int, float]]) -> dict[str, float]:
    """When the validation loss was at its best, in two readings.

    Args:
        trajectory: step and validation loss of every evaluation.

    Returns:
        `steps_to_best`, the first step with the lowest loss, and `steps_to_near_best`, the first with a loss within 0.1 %
        of it; nothing where no loss is finite.

    >>> steps_to_best([(100, 0.9), (200, 0.5002), (300, 0.5), (400, 0.6)])
    {'steps_to_best': 300.0, 'steps_to_near_best': 200.0}
    """
    scores = [(step, score) for step, score in trajectory if math.isfinite(score)]
    if not scores:
        return {}
    best = min(score for _, score in scores)
    near = best + 1e-3 * abs(best)
    return {
        "steps_to_best": float(next(step for step, score in scores if score == best)),
        "steps_to_near_best": float(next(step for step, score in scores if score <= near)),
    }
