"""Aggregates, ranks, times and correlations: against rliable, scipy, AlgoPerf's rules, and by simulation.

The numbers of rliable were computed once with rliable 1.2.0, arch 7.2.0, numpy 2.4.6, scipy 1.17.1 on the matrices below
(50,000 resamples for aggregates, 20,000 for the probability of improvement).
"""

import math

import numpy as np
import pytest
from scipy import stats

from harness.judging.ranks import critical_difference, rank_rows, ranking
from harness.judging.statistics import (
    AGGREGATES,
    aggregate,
    aggregates,
    failure_rate,
    interquartile_mean,
    mean,
    mean_interval,
    probability_of_improvement,
    profile,
    profile_band,
    rank_correlation,
    share_interval,
)
from harness.judging.times import (
    Point,
    benchmark_score,
    geometric_speedup,
    performance_profile,
    performance_ratios,
    time_to_target,
)

A = np.array(
    [
        [0.768, 1.001, 0.844, 0.763],
        [0.593, 0.904, 0.613, 1.248],
        [1.349, 0.537, 1.108, 0.74],
        [0.795, 1.296, 0.099, 0.122],
        [0.028, 1.166, 1.089, 1.218],
    ]
)
B = np.array(
    [
        [0.768, 0.959, 0.554, 0.937],
        [0.142, 0.768, 0.099, 1.134],
        [0.626, 0.498, 0.317, 0.929],
        [0.547, 0.682, 0.023, 0.741],
        [0.735, 0.74, 1.132, 0.818],
    ]
)
RLIABLE = {
    "A": {
        "mean": (0.81405, 0.6466, 0.9726),
        "median": (0.7844, 0.6149, 1.0011),
        "interquartile mean": (0.8625, 0.6686, 1.0377),
        "optimality gap": (0.2597, 0.13745, 0.39855),
    },
    "B": {
        "mean": (0.65745, 0.5516, 0.77065),
        "median": (0.6465, 0.5409, 0.7804),
        "interquartile mean": (0.6979, 0.5894, 0.7991),
        "optimality gap": (0.35585, 0.25475, 0.45405),
    },
}


def test_the_interval_of_numbers_whose_squares_overflow() -> None:
    scaled, half = mean_interval([3e200, 1e200, 2e200])
    assert scaled == pytest.approx(2e200)
    assert half == pytest.approx(2.4841377117e200)  # as of 3, 1, 2


@pytest.mark.parametrize("name", RLIABLE["A"])
@pytest.mark.parametrize("matrix", ["A", "B"])
def test_aggregates_are_rliable_s(matrix: str, name: str) -> None:
    value, low, high = RLIABLE[matrix][name]
    scores = {"A": A, "B": B}[matrix]
    found = aggregate(scores, AGGREGATES[name], count=20_000, percentile=True)
    assert found.value == pytest.approx(value, abs=1e-9)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.012)


def test_the_interval_of_the_median_is_no_narrower_than_the_medians_of_the_tasks_bounds() -> None:
    reach = math.sqrt(20) * stats.sem(A)
    lower, upper = np.median(A.mean(axis=0) - reach), np.median(A.mean(axis=0) + reach)
    found, plain = aggregates(A), aggregate(A, AGGREGATES["median"])
    assert plain.low is not None and plain.high is not None
    assert found["median"].value == plain.value
    expected = (min(plain.low, lower), max(plain.high, upper))
    assert (found["median"].low, found["median"].high) == pytest.approx(expected)
    assert lower < plain.low, "here the tasks' bounds lie further out"
    assert {name: found[name] for name in found if name != "median"} == {
        name: aggregate(A, statistic) for name, statistic in AGGREGATES.items() if name != "median"
    }
    assert aggregates(A[:4])["median"].low is None, "too few seeds"


def test_profiles_and_probabilities_of_improvement_are_rliable_s() -> None:
    levels = np.linspace(0, 1.4, 8)
    assert profile(A, levels).tolist() == pytest.approx([1.0, 0.85, 0.85, 0.75, 0.5, 0.4, 0.2, 0.0])
    assert probability_of_improvement(A, B).value == pytest.approx(0.65)
    assert probability_of_improvement(A, A).value == pytest.approx(0.5)


def test_the_probability_of_improvement_counts_a_failure_as_lost() -> None:
    found = probability_of_improvement([[-np.inf], [2.0]], [[1.0], [-np.inf]])
    assert found.value == (0.0 + 0.5 + 1.0 + 1.0) / 4
    assert probability_of_improvement([[1.0]], [[0.0]]).low is None, "one seed says nothing"


def test_the_probability_of_improvement_is_mann_whitney_s() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, (6, 3)).astype(float), rng.integers(0, 4, (6, 3)).astype(float)
    each = [stats.mannwhitneyu(a, b).statistic / 36 for a, b in zip(x.T, y.T, strict=True)]
    assert probability_of_improvement(x, y).value == pytest.approx(np.mean(each))


@pytest.mark.parametrize(("seeds", "tasks"), [(2, 1), (3, 1), (3, 10), (5, 4), (10, 10), (20, 4)])
@pytest.mark.parametrize("kind", ["same", "shifted", "apart", "wider", "tasks differ", "paired"])
def test_the_probability_of_improvement_lies_in_its_interval(seeds: int, tasks: int, kind: str) -> None:
    rng, draws = np.random.default_rng([seeds, tasks]), 1000
    shift = {"shifted": 1.0, "apart": 2.5, "paired": 1.0, "wider": 0.5}.get(kind, 0.0)
    shift = np.linspace(-2, 2, tasks) if kind == "tasks differ" else np.full(tasks, shift)
    size, shared = (100.0, 0.0) if kind == "wider" else (1.0, 0.7 if kind == "paired" else 0.0)
    true = stats.norm.cdf(shift / math.sqrt(size**2 + 1)).mean()  # of two runs that share no seed
    if kind == "paired":
        true = stats.norm.cdf(shift / math.sqrt(2 * (1 - shared))).mean() / seeds + (1 - 1 / seeds) * true
    covered = 0
    for _ in range(draws):
        common = math.sqrt(shared) * rng.normal(size=(seeds, tasks))
        x, y = (common + math.sqrt(1 - shared) * rng.normal(size=(seeds, tasks)) for _ in range(2))
        found = probability_of_improvement(size * x + shift, y)
        assert found.low is not None and found.high is not None
        covered += found.low <= true <= found.high
    assert covered >= stats.binom.ppf(0.005, draws, 0.95)


def test_a_band_of_a_profile_holds_it_where_all_runs_of_a_task_agree() -> None:
    rng, draws, covered = np.random.default_rng(0), 2000, 0
    centres = np.array([0.0, 0.5, 1.0, 3.0])  # at .8 the shares are about .21, .38, .58 and .99
    true = stats.norm.sf(0.8, centres).mean()
    for _ in range(draws):
        low, high = profile_band(rng.normal(centres, 1.0, (3, 4)), [0.8])
        covered += low[0] <= true <= high[0]
    assert covered >= stats.binom.ppf(0.005, draws, 0.95)
    low, high = profile_band([[1.0], [1.0], [1.0]], [0.5])
    assert low[0] == pytest.approx(0.025 ** (1 / 3)) and high[0] == 1.0, "three of three: the smallest p with p³ = .025"


def test_the_interval_of_a_mean_is_chebyshev_s() -> None:
    """With the closed form of the standard error: the root of the sum of the tasks' squared ones, over their number."""
    found = aggregate(A, AGGREGATES["mean"], count=20_000)
    assert found.low is not None and found.high is not None
    half = math.sqrt((stats.sem(A) ** 2).sum()) / A.shape[1] / math.sqrt(0.05)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.02)
    assert (found.low + found.high) / 2 == pytest.approx(A.mean())
    wide = aggregate(A, AGGREGATES["mean"], confidence=0.99, count=20_000)
    assert wide.low is not None
    assert (wide.value - wide.low) / (found.value - found.low) == pytest.approx(math.sqrt(5))


@pytest.mark.parametrize(("seeds", "tasks"), [(3, 1), (3, 6), (5, 3), (10, 4)])
def test_why_intervals_are_no_plain_percentiles(seeds: int, tasks: int) -> None:
    rng, draws, covered = np.random.default_rng([seeds, tasks]), 1000, 0
    for _ in range(draws):
        found = aggregate(rng.normal(0, 1, (seeds, tasks)), AGGREGATES["mean"], count=200, percentile=True)
        assert found.low is not None and found.high is not None
        covered += found.low <= 0 <= found.high
    assert covered < stats.binom.ppf(0.005, draws, 0.95)


def test_few_seeds_have_no_interval() -> None:
    assert aggregate([[1.0, 3.0]]) == aggregate([[1.0, 3.0]], interquartile_mean)
    assert aggregate([[1.0, 3.0]], mean).low is None
    assert aggregate([[1.0, 3.0]], mean, percentile=True).low is None
    assert aggregate(A[:4], mean).low is None
    assert aggregate(A[:5], mean).low is not None
    assert aggregate(A[:5, :1], mean).low is None, "one task"
    with pytest.raises(ValueError, match="finite numbers of shape"):
        aggregate([[1.0, -math.inf]])


def test_failure_rates() -> None:
    found = failure_rate(2, 10)
    low, high = stats.beta.ppf([0.025, 0.975], [2, 3], [9, 8])
    assert (found.value, found.low, found.high) == pytest.approx((0.2, low, high))
    with pytest.raises(ValueError, match="found 3 of 2"):
        failure_rate(3, 2)


@pytest.mark.parametrize("total", [1, 2, 7, 40])
def test_intervals_of_shares_are_scipy_s(total: int) -> None:
    low, high = share_interval(np.arange(total + 1), total, 0.9)
    for count in range(total + 1):
        exact = stats.binomtest(count, total).proportion_ci(0.9, "exact")
        assert (low[count], high[count]) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_rank_correlations() -> None:
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 4.0, 3.0, 5.0]
    assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert rank_correlation(x, y, "kendall") == pytest.approx(stats.kendalltau(x, y).statistic)
    assert rank_correlation(x, [1.0] * 5) is None
    assert rank_correlation(x, [-math.inf, *y[1:]]) == pytest.approx(0.9)
    with pytest.raises(ValueError, match="allowed: spearman, kendall"):
        rank_correlation(x, y, "pearson")


# Demšar 2006, tables 5(a): q at .05 for 2 to 10 classifiers, and section 3.2.3: CD = 1.25 for 4 on 14 data sets.
DEMSAR = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]


@pytest.mark.parametrize(("methods", "q"), enumerate(DEMSAR, start=2))
def test_critical_differences_are_demsar_s(methods: int, q: float) -> None:
    assert critical_difference(methods, 14) == pytest.approx(q * math.sqrt(methods * (methods + 1) / 84), abs=1e-3)
    if methods == 4:
        assert critical_difference(4, 14) == pytest.approx(1.25, abs=5e-3)


def test_a_ranking_groups_what_cannot_be_told_apart() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, 20)
    scores = {
        "good": (base + 5).tolist(),
        "twin": (base + 5 + rng.choice([-0.1, 0.1], 20)).tolist(),
        "bad": base.tolist(),
        "fails": [-math.inf] * 20,
    }
    found = ranking(scores)
    assert list(found.ranks)[2:] == ["bad", "fails"]
    assert found.ranks["fails"] == 4.0
    assert found.p is not None and found.p < 1e-9
    assert found.p == pytest.approx(stats.friedmanchisquare(*scores.values()).pvalue)
    assert [set(group) for group in found.groups] == [{"good", "twin"}, {"bad", "fails"}]
    same = ranking({"a": [1.0, 1.0], "b": [1.0, 1.0], "c": [1.0, 1.0]})
    assert (same.p, same.groups) == (1.0, [["a", "b", "c"]])
    assert ranking({"a": [1.0], "b": [0.0]}).p is None
    assert rank_rows([[2.0, 2.0, 5.0]]).tolist() == [[2.5, 2.5, 1.0]]


def test_algoperf_s_rules() -> None:
    # "If a submission takes twice as long as the best submission on this workload it will have a performance ratio of 2."
    ratios = performance_ratios({"x": [100.0, 50.0, math.inf], "y": [50.0, 50.0, math.inf], "z": [400.0, 75.0, 10.0]})
    assert ratios == {"x": [2.0, 1.0, math.inf], "y": [1.0, 1.0, math.inf], "z": [8.0, 1.5, 1.0]}
    # "A perfect score of 1 is achieved if a submission is the fastest on all workloads."
    assert benchmark_score([1.0, 1.0, 1.0]) == 1.0
    # "Any submission that requires more than four times the runtime of the fastest will not get any credit."
    assert benchmark_score([4.0, 4.5, math.inf]) == 0.0
    assert benchmark_score(ratios["x"]) == pytest.approx((2 / 3 + 1 + 0) / 3)
    # "If a submission was 2x faster than the reference submission, this would be equal to 2."
    assert geometric_speedup([100.0, 30.0], [50.0, 15.0]) == pytest.approx(2.0)
    assert geometric_speedup([100.0], [math.inf]) == 0.0


def test_the_score_is_the_integral_of_the_profile() -> None:
    rng = np.random.default_rng(1)
    ratios = [1.0, *rng.uniform(1, 6, 30).tolist(), math.inf]
    factors = np.linspace(1, 4, 200_001)
    integral = np.trapezoid(performance_profile(ratios, factors), factors) / 3
    assert benchmark_score(ratios) == pytest.approx(float(integral), abs=1e-5)


def test_time_to_target_is_the_first_hit_and_the_clock_is_that_of_training() -> None:
    points = [Point(10, 1.5, 0.4), Point(20, 3.0, 0.2), Point(30, 4.5, 0.3)]
    assert time_to_target(points, 0.25, "min") == 20
    assert time_to_target(points, 0.25, "min", "seconds") == 3.0
    assert time_to_target(points, 0.1, "min") == math.inf
    assert time_to_target([], 0.1, "max") == math.inf
