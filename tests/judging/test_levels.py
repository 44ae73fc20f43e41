"""What verdicts and intervals promise, over 10,000 simulated grids each: n = 3, 5, 10, 20, every shape, failures, families, looks.

A grid here is a family of seven claims, one of each shape, of which none is true. `outcomes` is the rule of `judge` for many grids
at once, and the first test holds it against `judge` itself.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from judging.made import ended, made_plan
from judging.shapes import CONTINUOUS, DISCRETE, Array, p_values, with_failures
from scipy import special, stats

from harness.judging.paired import exact_interval, holm, ranked_failures, student_p
from harness.judging.reading import looks
from harness.judging.statistics import AGGREGATES, _resamples, aggregates, mean_interval
from harness.judging.verdicts import Outcome, judge
from harness.registry import Registry

pytestmark = pytest.mark.slow

DRAWS, LEVEL = 10_000, 0.05
SHAPES = CONTINUOUS | DISCRETE
LOOKS = {3: (2, 3), 5: (3, 5), 10: (5, 8, 10), 20: (6, 12, 20)}
Sides = tuple[Array, Array]
"""Of "supported" and of "contradicted"."""


def families(n: int, fails: bool, draws: int = DRAWS) -> Array:
    """Differences by seed of many grids, (draws, claims, n); where asked, either side fails in a fifth of all trials."""
    rng = np.random.default_rng([n, fails])
    values = np.stack([shape(rng, (draws, n)) for shape in SHAPES.values()], axis=1)
    return with_failures(values, rng) if fails else values


def p_by_look(differences: Array, declared: Sequence[int]) -> list[Sides]:
    """P-values of all claims at each look, (draws, claims)."""
    shape = differences.shape[:2]
    found = [p_values(differences[..., :n].reshape(-1, n)) for n in declared]
    return [(above.reshape(shape), below.reshape(shape)) for above, below in found]


def outcomes(p: Sequence[Sides], levels: Sequence[float], corrected: bool) -> Array:
    """1 where a claim is supported, -1 where it is contradicted; what one look decides stays decided."""
    decided = np.zeros(p[0][0].shape)
    for sides, level in zip(p, levels, strict=True):
        above, below = (np.array([holm(row) for row in side.tolist()]) if corrected else side for side in sides)
        now = np.where(above <= level, 1.0, np.where(below <= level, -1.0, 0.0))
        decided = np.where(decided == 0, now, decided)
    return decided


def levels_of(declared: Sequence[int]) -> list[float]:
    """The level of each look, as `judge` has it."""
    return [look.level for look in looks(made_plan([], seeds=declared[-1], looks=declared))]


def hold(counts: Sequence[int], rate: float, *, most: bool = True, least: bool = False) -> None:
    """Holds counts out of all draws against a rate, by the 99 % binomial bound on all of them together."""
    share = 0.01 / len(counts) / (most + least)
    low, high = stats.binom.ppf([share, 1 - share], DRAWS, rate)
    assert not most or max(counts) <= high, (counts, high)
    assert not least or min(counts) >= low, (counts, low)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("n", [5, 10, 20])
def test_many_grids_are_judged_as_one_is(n: int, sequential: bool, registry: Registry) -> None:
    tasks = [f"t{index}" for index in range(len(SHAPES))]
    declared = LOOKS[n] if sequential else (n,)
    claims = [{"better": "a", "than": "b", "on": task} for task in tasks]
    plan = made_plan(claims, tasks=tasks, seeds=n, looks=declared if sequential else ())
    values = families(n, True, 100) + np.linspace(-9, 9, len(tasks))[:, None]
    found = outcomes(p_by_look(values, declared), levels_of(declared), True)
    names = {1.0: Outcome.SUPPORTED, -1.0: Outcome.CONTRADICTED, 0.0: Outcome.UNDECIDED}
    for grid, expected in zip(values[:6], found[:6].tolist(), strict=True):
        scores = {}
        for task, row in zip(tasks, grid, strict=True):
            scores[f"{task} · a"] = np.where(row == np.inf, 0.0, row)
            scores[f"{task} · b"] = np.where(row == np.inf, -np.inf, 0.0)
        said = [verdict.outcome for verdict in judge(plan, ended(plan, scores), registry)]
        assert said == [names[one] for one in expected]
    assert n == 5 or set(found.ravel().tolist()) == {1.0, 0.0, -1.0}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("n", LOOKS)
def test_wrong_verdicts_come_no_more_often_than_stated(n: int, fails: bool) -> None:
    """Each claim alone and the family by Holm's method, at one look and at several; "supported" and "contradicted"."""
    declared = LOOKS[n]
    p = p_by_look(families(n, fails), declared)
    alone, together = [], []
    for seen, levels in ((p[-1:], [LEVEL]), (p, levels_of(declared))):
        each, family = (outcomes(seen, levels, corrected) for corrected in (False, True))
        for side in (1.0, -1.0):
            alone += (each == side).sum(axis=0).tolist()
            together.append(int((family == side).any(axis=1).sum()))
    hold(alone, LEVEL)
    hold(together, LEVEL)


@pytest.mark.parametrize("n", LOOKS)
def test_a_family_that_shares_a_baseline_is_wrong_no_more_often_than_stated(n: int) -> None:
    rng = np.random.default_rng([n, 2])
    wrong = []
    for draw in (rng.normal, rng.lognormal):
        baseline = draw(0, 1, (DRAWS, 1, n))
        found = outcomes(p_by_look(draw(0, 1, (DRAWS, 4, n)) - baseline, (n,)), [LEVEL], True)
        wrong += [int((found == side).any(axis=1).sum()) for side in (1.0, -1.0)]
    hold(wrong, LEVEL)


@pytest.mark.parametrize("n", LOOKS)
def test_exact_intervals_hold_the_centre_as_often_as_they_say(n: int) -> None:
    """To the point where differences vary continuously; where they are tied or fail no less often."""
    rng = np.random.default_rng([n, 3])
    covered = {}
    for name, shape in SHAPES.items():
        centre = 0.0 if name == "failing" else 7.0
        parts = np.array_split(ranked_failures(shape(rng, (DRAWS, n)) + centre), 20)
        bounds = [exact_interval(part, LEVEL) for part in parts]
        covered[name] = sum(int(((low <= centre + 1e-9) & (high >= centre - 1e-9)).sum()) for low, high, _ in bounds)
        confidence = bounds[0][2]
    patterns = 2 ** min(n, 13)
    assert confidence == 1 - 2 * max(1, int(LEVEL * patterns)) / patterns
    hold([covered[name] for name in CONTINUOUS], confidence, least=True)
    hold([covered[name] for name in DISCRETE], confidence, most=False, least=True)


@pytest.mark.parametrize("n", LOOKS)
def test_student_s_test_and_interval_are_nominal_for_gaussian_differences(n: int) -> None:
    values = np.random.default_rng([n, 4]).normal(0, 1, (DRAWS, n))
    sides = [
        np.concatenate(side) for side in zip(*(student_p(part) for part in np.array_split(values, 20)), strict=True)
    ]
    hold([int((side <= LEVEL).sum()) for side in sides], LEVEL, least=True)
    intervals = [mean_interval(row) for row in values.tolist()]
    hold([sum(abs(mean) <= half for mean, half in intervals if half is not None)], 0.95, least=True)


QUANTILES = {
    "Gaussian": special.ndtri,
    "skewed": lambda u: np.exp(special.ndtri(u)),
    "bimodal": lambda u: np.where(u < 0.5, -3.0, 3.0) + 0.5 * special.ndtri(2 * u % 1.0),
    "tied": lambda u: np.round(special.ndtri(u)),
}
"""Distributions of scores by their quantile functions."""
COUNT = 200
"""Resamples of an interval."""


def truth(statistic: str, shape: str) -> float:
    """What a statistic of a distribution is, its goal being 1, by the midpoint rule."""
    values = np.sort(QUANTILES[shape]((np.arange(400_000) + 0.5) / 400_000))
    if statistic == "interquartile mean":
        return float(values[100_000:300_000].mean())
    return float(np.maximum(1.0 - values, 0.0).mean() if statistic == "optimality gap" else values.mean())


def deviations(scores: Array) -> dict[str, Array]:
    """The bootstrap's standard error of each aggregate of many matrices, with the rows that `aggregate` draws."""
    seeds, tasks = scores.shape[1:]
    indices = np.tile(np.arange(float(seeds))[:, None], (1, tasks))
    rows = _resamples(indices, COUNT, np.random.default_rng(0)).astype(int)
    found: dict[str, list[Array]] = {name: [] for name in AGGREGATES}
    for part in np.array_split(scores, 20):
        drawn = part[:, rows, np.arange(tasks)]
        for name, statistic in AGGREGATES.items():
            found[name].append(statistic(drawn).std(axis=1))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def covered(scores: Array, shape: str) -> Array:
    """In how many of many matrices the interval of each aggregate holds the truth; the first is as `aggregates` has it."""
    chebyshev, seeds = 20**0.5, scores.shape[1]
    errors, said, counts = deviations(scores), aggregates(scores[0], count=COUNT), []
    for name, statistic in AGGREGATES.items():
        value, half = statistic(scores), chebyshev * (seeds / (seeds - 1)) ** 0.5 * errors[name]
        low, high = value - half, value + half
        if name == "median":
            means, reaches = scores.mean(axis=1), chebyshev * stats.sem(scores, axis=1)
            low = np.minimum(low, np.median(means - reaches, axis=-1))
            high = np.maximum(high, np.median(means + reaches, axis=-1))
        assert (said[name].low, said[name].high) == pytest.approx((low[0], high[0])), name
        true = truth(name, shape)
        counts.append(((low <= true + 1e-9) & (true - 1e-9 <= high)).sum())
    return np.array(counts)


FEWEST = [(1, 9), (2, 5), (30, 5)]
"""Tasks and seeds of which there must be so many: with a seed less there is no interval."""


@pytest.mark.parametrize(("tasks", "n"), FEWEST)
def test_aggregates_of_fewer_seeds_have_no_interval(tasks: int, n: int) -> None:
    scores = np.random.default_rng(0).normal(size=(n, tasks))
    assert all(found.low is not None for found in aggregates(scores, count=COUNT).values())
    assert all(found.low is None for found in aggregates(scores[1:], count=COUNT).values())


@pytest.mark.parametrize(("tasks", "n"), [*FEWEST, (1, 20), (2, 10), *itertools.product((3, 10), (5, 10, 20))])
@pytest.mark.parametrize("shape", QUANTILES)
def test_intervals_of_aggregates_hold_the_truth_as_often_as_the_report_says(shape: str, tasks: int, n: int) -> None:
    """In 95 % at least, whatever the shape of the scores."""
    rng = np.random.default_rng([n, tasks, 6])
    parts = [covered(QUANTILES[shape](rng.random((DRAWS // 10, n, tasks))), shape) for _ in range(10)]
    hold(np.sum(parts, axis=0).tolist(), 0.95, most=False, least=True)


@pytest.mark.parametrize("shape", QUANTILES)
def test_the_interval_of_a_mean_over_tasks_that_vary_unlike_holds_it_nearly_as_often(shape: str) -> None:
    """One of ten tasks varies ten times as much as the others: what 95 % is then, from the fewest seeds on."""
    scores = QUANTILES[shape](np.random.default_rng(7).random((DRAWS, 5, 10))) - truth("mean", shape)
    scores[..., 0] *= 10
    half = 20**0.5 * np.sqrt((stats.sem(scores, axis=1) ** 2).sum(axis=-1)) / 10
    hold([int((abs(scores.mean(axis=(1, 2))) <= half).sum())], 0.94, most=False, least=True)
