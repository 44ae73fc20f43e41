"""Is a signal an early observable? How soon it ranks runs as they will end, and whether it tells regimes apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.claim import ClaimError, OverCells
from harness.judging.measures import fraction
from harness.judging.statistics import rank_correlation
from harness.planning.claims import better_when
from harness.registry import register_claim

if TYPE_CHECKING:
    from harness.judging.evidence import Contrast, Evidence
    from harness.planning.plan import PlannedTrial

Array = NDArray[np.float64]

REACHED = 0.9
"""The share of its last rank correlation from which on a signal counts as telling how runs end."""
SETTLED = 0.05
"""The share of its range within which a signal counts as where it ends."""
REGIMES = ("under", "well", "over")
FACTOR = 5.0
"""How far from the best value of an axis the middle regime reaches, on both sides."""


@register_claim("earlier")
class Earlier(OverCells):
    r"""A signal ranks runs as they will end earlier than another signal does, on every task.

    The earliness of a signal X for the final metric Y over the cells of a task is, by seed, the least :math:`t / T` at which
    :math:`|\rho(X(t), Y)| \ge 0.9\,|\rho(X(T), Y)|`, with Spearman's :math:`\rho`. It says nothing of how large the last
    correlation is: ask `correlated` for that beside it. Where a signal does not vary at the end it is undefined: a tie.
    """

    earlier: str = ""
    than: str = ""

    needs = frozenset({"than"})

    def check(self) -> None:
        if self.earlier == self.than:
            raise ClaimError(f"than: found {self.than!r} itself, allowed: another metric")

    def contrast(self, evidence: Evidence, task: str) -> Contrast:
        from harness.judging.evidence import Contrast
        from harness.judging.screening import held_without

        cells = evidence.matched(task, self.of, self.where)
        metric = evidence.metric(task, self.by)
        names = self.earlier, self.than
        sides = [earliness_by_seed(evidence, task, cells, name, metric, self.direction) for name in names]
        ours, theirs = (np.array([math.nan if each is None else each for each in side]) for side in sides)
        scores = evidence.over(task, cells, metric, np.nan_to_num(theirs - ours))
        signals = {name: partial(last_recorded, evidence, name) for name in names}
        scores = held_without(scores, evidence, task, cells, signals)
        details = {"earliness": sides[0], "earliness, other": sides[1]}
        return Contrast(task, scores, "share of the training", details)

    def sentence(self) -> str:
        return (
            f"{self.earlier} ranks the cells of {self.of} earlier than {self.than} does, as they end {self.measure()}"
        )


@register_claim("separates")
class Separates(OverCells):
    r"""Early in training a signal tells the regimes of an axis apart, on every task: its AUC is above a bound.

    With :math:`w^*` the value of the axis whose mean of the metric (`by`, or the task's own on validation) is best, a cell is
    *under* below :math:`w^*/5`, *over* above :math:`5 w^*`, and *well* set between. The AUC is the mean over pairs of regimes of
    the chance that a run of the one has more of the signal than a run of the other, ties half (Hand and Till 2001,
    doi 10.1023/A:1010920819831);
    which of the two has more is taken from the other seeds. It is .5 for a signal that says nothing.
    """

    separates: str = ""
    axis: str = "weight_decay"
    early: float = 0.1
    above: float | None = None
    than: str = ""

    def check(self) -> None:
        fraction("early", self.early)
        if bool(self.than) == (self.above is not None):
            raise ClaimError("than: found both or none of than and above, allowed: one")
        if self.above is not None and not 0 <= self.above < 1:
            raise ClaimError(f"above: found {self.above:g}, allowed: from 0 to below 1")

    def contrast(self, evidence: Evidence, task: str) -> Contrast:
        from harness.judging.evidence import Contrast
        from harness.judging.screening import early_readers, held_without

        cells = evidence.matched(task, self.of, self.where)
        vote = self.by or evidence.own(task)[0]
        regimes = regimes_of(evidence, task, cells, self.axis, vote, self.direction)
        names = [] if regimes is None else [regimes.named[cell] for cell in cells]
        self._check_several(axis_values(evidence, task, cells, self.axis), regimes, task)

        def auc(signal: str) -> Array:
            values = early_values(evidence, task, cells, signal, self.early)
            return auc_by_seed(values, names) if names else np.full(len(values), math.nan)

        ours = auc(self.separates)
        details: dict[str, object] = {"regimes": dict(zip(cells, names, strict=False)), "auc": ours.tolist()}
        numbers = ours - (self.above or 0.0)
        if self.than:
            theirs = auc(self.than)
            numbers, details["auc, other"] = ours - theirs, theirs.tolist()
        scores = evidence.over(task, cells, vote, numbers)
        signals = early_readers(evidence, self.early, self.separates, self.than)
        return Contrast(task, held_without(scores, evidence, task, cells, signals), "AUC", details)

    def _check_several(self, values: Mapping[str, float], regimes: Regimes | None, task: str) -> None:
        """Refuses cells that are all in one regime: of whichever value, while none is known to be best."""
        for best in values.values() if regimes is None else [regimes.best]:
            if len({regime(value, best) for value in values.values()}) > 1:
                return
        raise ClaimError(
            f"axis: found {self.axis!r} with all its values on {task} in one regime, allowed: an axis with values further apart"
        )

    def sentence(self) -> str:
        bound = f"an AUC above that of {self.than}" if self.than else f"an AUC above {self.above:g}"
        when = f"at {self.early:.0%} of training"
        return f"{self.separates} {when} tells the regimes of {self.axis} of {self.of} apart with {bound} on {self.scope()}"


def last_recorded(evidence: Evidence, signal: str, trial: PlannedTrial) -> float | None:
    """A signal as it was recorded last."""
    points = evidence.points(trial, signal)
    return points[-1].score if points else None


def earliness_by_seed(
    evidence: Evidence, task: str, cells: Sequence[str], signal: str, metric: str, direction: str = ""
) -> list[float | None]:
    """The earliness of a signal over cells, for each seed; a run that diverged ranks worst in the metric."""
    from harness.judging.evidence import WORST

    better = direction or better_when(metric, evidence.own(task))
    worst = {"max": -math.inf, "min": math.inf}.get(better)
    found = []
    for index in range(len(evidence.units)):
        curves, ends = [], []
        for cell in cells:
            trial = evidence.by_unit(task, cell)[index]
            result = evidence.results.get(trial.hash)
            end = worst if result and result.status in WORST else evidence.value(trial, metric)
            curve = [(point.step / trial.spec.length, point.score) for point in evidence.points(trial, signal)]
            if end is not None and curve:
                curves.append(curve)
                ends.append(end)
        found.append(earliness(curves, ends))
    return found


def earliness(curves: Sequence[Sequence[tuple[float, float]]], ends: Sequence[float]) -> float | None:
    """The earliest moment at which a signal ranks runs nearly as it does in the end.

    Args:
        curves: of each run, moments from 0 to 1 in order and the signal there.
        ends: the final metric of each run.

    Returns:
        The moment, or None where the signal at the end, or the metric, is the same for all runs.

    >>> slow, fast = [(0.0, 0.0), (0.5, 1.0), (1.0, 1.0)], [(0.0, 0.0), (0.5, 2.0), (1.0, 3.0)]
    >>> earliness([slow, fast], [0.1, 0.9])
    0.5
    """

    def correlation(moment: float) -> float | None:
        values = [[value for at, value in curve if at <= moment] for curve in curves]
        known = [(seen[-1], end) for seen, end in zip(values, ends, strict=True) if seen]
        found = rank_correlation([x for x, _ in known], [y for _, y in known])
        return None if found is None else abs(found)

    last = correlation(math.inf)
    if last is None:
        return None
    moments = sorted({at for curve in curves for at, _ in curve})
    tolerance = 1e-12
    return next(moment for moment in moments if (correlation(moment) or 0.0) >= REACHED * last - tolerance)


def settling(curve: Sequence[tuple[float, float]]) -> float | None:
    """The moment from which on a signal stays within 5 % of its range of where it ends; None for a constant.

    >>> settling([(0.1, 1.0), (0.4, 0.31), (0.7, 0.29), (1.0, 0.3)])
    0.4
    """
    values = [value for _, value in curve]
    if len(set(values)) < 2 or not all(map(math.isfinite, values)):
        return None
    near = SETTLED * (max(values) - min(values))
    settled = curve[-1][0]
    for moment, value in reversed(curve):
        if abs(value - values[-1]) > near:
            break
        settled = moment
    return settled


@dataclass(frozen=True)
class Regimes:
    """The cells of a task by regime."""

    best: float
    """The value of the axis with the best mean of the metric over the seeds."""
    named: dict[str, str]


def axis_values(evidence: Evidence, task: str, cells: Sequence[str], axis: str) -> dict[str, float]:
    """The value of an axis by cell.

    Raises:
        ClaimError: if the recipes of the cells have no such number.
    """
    values = {}
    for cell in cells:
        value = evidence.trial(task, cell).spec.recipe.get(axis)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ClaimError(f"axis: found {axis!r}, allowed: a number of the recipe of {cell}")
        values[cell] = float(value)
    return values


def regimes_of(
    evidence: Evidence, task: str, cells: Sequence[str], axis: str, metric: str, direction: str = ""
) -> Regimes | None:
    """The regimes of an axis by the mean of a metric; None where no cell has it for all its seeds.

    Raises:
        ClaimError: if the recipes of the cells have no such number, or the metric no better direction.
    """
    sign = evidence.sign(task, metric, direction)
    values, means = axis_values(evidence, task, cells, axis), {}
    for cell in cells:
        found = [evidence.value(trial, metric) for trials in evidence.units_of(task, cell) for trial in trials]
        known = [each for each in found if each is not None]
        if len(known) == len(found):
            means[cell] = sign * sum(known) / len(known)
    if not means:
        return None
    best = values[max(means, key=means.__getitem__)]
    return Regimes(best, {cell: regime(value, best) for cell, value in values.items()})


def regime(value: float, best: float) -> str:
    """The regime of a value.

    >>> [regime(value, 1e-3) for value in (1e-4, 2e-4, 1e-3, 5e-3, 1e-2)]
    ['under', 'well', 'well', 'well', 'over']
    """
    tolerance = 1e-9
    if value < best / FACTOR * (1 - tolerance):
        return REGIMES[0]
    return REGIMES[2] if value > best * FACTOR * (1 + tolerance) else REGIMES[1]


def early_values(evidence: Evidence, task: str, cells: Sequence[str], signal: str, moment: float) -> Array:
    """The signal at a moment, (seeds, cells); nan where a run has none."""

    def read(trial: PlannedTrial) -> float:
        value = evidence.early(trial, signal, moment)
        return math.nan if value is None else value

    return np.array([[read(trial) for trial in evidence.by_unit(task, cell)] for cell in cells]).T


def auc_by_seed(values: Array, regimes: Sequence[str]) -> Array:
    """For each seed, the mean AUC over pairs of regimes; which one has more is taken from the other seeds.

    Args:
        values: the signal, (seeds, cells); a pair with a nan counts as a tie.
        regimes: of each cell.

    >>> rising = [[1.0, 2.0, 9.0], [1.0, 3.0, 8.0], [0.0, 1.0, 7.0], [5.0, 4.0, 9.0]]
    >>> auc_by_seed(np.array(rising), ["under", "well", "over"]).round(3).tolist()
    [1.0, 1.0, 1.0, 0.667]
    """
    groups = [np.flatnonzero([name == each for name in regimes]) for each in REGIMES]
    pairs = [(one, other) for one, other in combinations(groups, 2) if len(one) and len(other)]
    n = len(values)
    if n < 2 or not pairs:
        return np.full(n, 0.5)
    # (seeds, pairs): the chance that the first regime has more.
    chances = np.array([[_chance(row[one], row[other]) for one, other in pairs] for row in values])
    others = (chances.sum(axis=0) - chances) / (n - 1)
    signs = np.sign(others - 0.5)
    return np.asarray((0.5 + signs * (chances - 0.5)).mean(axis=1))


def _chance(ones: Array, others: Array) -> float:
    """The chance that one of the first is larger than one of the second, ties half."""
    differences = ones[:, None] - others[None, :]
    return float(np.where(np.isnan(differences), 0.5, (np.sign(differences) + 1) / 2).mean())
