"""Comparisons by seed keep their word: simulations with a known truth, and numbers that scipy computes otherwise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judging.shapes import CONTINUOUS, DISCRETE, at_most, failing, p_values, two_clusters
from scipy import stats

from harness.judging.paired import (
    at_least,
    describe,
    detectable_effect,
    exact_interval,
    holm,
    ranked_failures,
    sign_flip_p,
    smallest_p,
    student_p,
    subsets,
)

DRAWS, LEVEL = 10_000, 0.05
"""As test_levels.py has them, which is slow and has n = 20, families and looks too."""


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("name", [*CONTINUOUS, *DISCRETE])
def test_false_verdicts_come_no_more_often_than_stated_whatever_the_shape(name: str, n: int) -> None:
    rng = np.random.default_rng([n, len(name)])
    above, below = p_values((CONTINUOUS | DISCRETE)[name](rng, (DRAWS, n)))
    assert at_most(int((above <= LEVEL).sum()), DRAWS, LEVEL)
    assert at_most(int((below <= LEVEL).sum()), DRAWS, LEVEL)
    covered = int(((above > LEVEL) & (below > LEVEL)).sum())
    if name in CONTINUOUS:
        # The confidence that is reported is the one that is reached, not less and not more.
        stated = exact_interval(np.arange(float(n)), LEVEL)[2] if n >= 5 else 1.0
        low, high = stats.binom.ppf([0.005, 0.995], DRAWS, stated)
        assert low <= covered <= high
    else:
        assert at_most(DRAWS - covered, DRAWS, 2 * LEVEL)


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_hold_the_centre_as_often_as_they_say(name: str, n: int) -> None:
    rng = np.random.default_rng([n, len(name), 1])
    low, high, confidence = exact_interval(CONTINUOUS[name](rng, (DRAWS, n)) + 7.0, LEVEL)
    covered = int(((low <= 7.0) & (high >= 7.0)).sum())
    assert covered >= stats.binom.ppf(0.005, DRAWS, confidence)
    assert covered <= stats.binom.ppf(0.995, DRAWS, confidence)
    assert confidence == {3: 0.75, 5: 0.9375, 10: 1 - 102 / 1024}[n]


def test_student_s_interval_is_nominal_for_gaussian_differences_and_wrong_for_two_clusters() -> None:
    rng = np.random.default_rng(3)
    for n in (3, 5, 10):
        above, below = student_p(rng.normal(0, 1, (DRAWS, n)))
        rejected = int((above <= 0.025).sum() + (below <= 0.025).sum())
        assert stats.binom.ppf(0.005, DRAWS, 0.05) <= rejected <= stats.binom.ppf(0.995, DRAWS, 0.05)
    above, below = student_p(two_clusters(rng, (DRAWS, 3)))
    assert np.mean((above <= 0.025) | (below <= 0.025)) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(("n", "coverage"), [(3, 0.76), (5, 0.85)])
def test_why_no_percentile_bootstrap(n: int, coverage: float) -> None:
    rng = np.random.default_rng(n)
    values = rng.normal(0, 1, (2000, n))
    means = values[:, rng.integers(0, n, (1000, n))].mean(axis=-1)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(coverage, abs=0.03)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-6, 6), min_size=2, max_size=8))
def test_p_values_are_those_of_scipy_s_permutation_test(values: list[int]) -> None:
    above, below = sign_flip_p(np.array(values, dtype=float))
    for alternative, ours in (("greater", above), ("less", below)):
        theirs = stats.permutation_test(
            (np.array(values, dtype=float),),
            lambda x, axis: x.sum(axis=axis),
            permutation_type="samples",
            n_resamples=np.inf,
            alternative=alternative,
            vectorized=True,
        )
        assert float(ours) == pytest.approx(theirs.pvalue)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=5, max_size=9), st.floats(0.04, 0.2))
def test_the_interval_excludes_zero_where_the_test_rejects_it(values: list[float], level: float) -> None:
    low, high, _ = exact_interval(values, level)
    above, below = sign_flip_p(values)
    slack = 1e-9
    assert not (above <= level and low < -slack)
    assert not (above > level and low > slack)
    assert not (below <= level and high > slack)


def test_many_differences_are_tested_with_a_subgroup_of_all_subsets() -> None:
    found = subsets(17).astype(int)
    assert found.shape == (2**13 - 1, 17)
    rows = {tuple(row) for row in found.tolist()} | {(0,) * 17}
    assert len(rows) == 2**13
    rng = np.random.default_rng(0)
    for one, other in rng.integers(0, len(found), (200, 2)):
        assert tuple((found[one] ^ found[other]).tolist()) in rows


def test_wilcoxon_and_this_test_agree_where_ranks_lose_nothing() -> None:
    values = np.array([-1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    assert sign_flip_p(values)[0] == stats.wilcoxon(values, alternative="greater", method="exact").pvalue


def test_failures_outweigh_everything_finite_and_two_of_them_are_a_tie() -> None:
    wins = [0.1] * 9
    assert sign_flip_p(ranked_failures([*wins, np.inf]))[0] == 2**-10
    assert sign_flip_p(ranked_failures([*wins, -np.inf]))[0] > 0.5
    assert sign_flip_p(ranked_failures([*wins, 0.0]))[0] == 2**-9
    described = describe([*wins, -np.inf])
    assert (described.interval[0], described.finite, described.n) == (None, 9, 10)
    assert described.mean == pytest.approx(0.1)


def test_small_samples_cannot_decide() -> None:
    assert [smallest_p(n) for n in (1, 3, 5, 10)] == [0.5, 0.125, 0.03125, 2**-10]
    assert float(sign_flip_p([9.0])[0]) == 0.5
    assert [detectable_effect(n) for n in (1, 2, 3, 4)] == [None] * 4
    assert detectable_effect(10, 0.05 / 60) is None
    assert detectable_effect(3, normal=True) is not None


@pytest.mark.parametrize("n", [2, 3, 5, 7, 10, 13, 20, 30, 60])
def test_the_detectable_effect_has_the_power_that_scipy_s_noncentral_t_gives(n: int) -> None:
    for level in (0.05, 0.025, 0.01, 0.05 / 7, 0.05 / 19, 0.05 / 100, 0.05 / 380):
        effect = detectable_effect(n, level, normal=True)
        assert effect is not None
        found = stats.nct.sf(stats.t.isf(level, n - 1), n - 1, effect * math.sqrt(n))
        assert found == pytest.approx(0.8, abs=1e-6), level


@pytest.mark.parametrize("n", [5, 8, 12])
def test_the_detectable_effect_is_found_in_80_percent_of_all_grids(n: int) -> None:
    effect = detectable_effect(n, LEVEL)
    assert effect is not None
    above, _ = p_values(np.random.default_rng(n).normal(effect, 1, (DRAWS, n)))
    assert np.mean(above <= LEVEL) == pytest.approx(0.8, abs=0.06 if n == 5 else 0.03)


def test_holm_keeps_the_level_over_a_family_also_with_failures() -> None:
    rng = np.random.default_rng(8)
    draws, family = 2000, 8
    shapes = [*CONTINUOUS.values(), *DISCRETE.values(), failing]
    found = np.stack([p_values(shape(rng, (draws, 10)))[0] for shape in shapes], axis=1)
    assert found.shape == (draws, family)
    wrong = sum(min(holm(row)) <= LEVEL for row in found.tolist())
    assert at_most(wrong, draws, LEVEL)


def test_holm_is_the_textbook_s() -> None:
    # Holm 1979: p sorted .01 .013 .014 .19 .35 .5 .63 .67 .75 .81 against .05 / (10 - i).
    p = [0.01, 0.013, 0.014, 0.19, 0.35, 0.5, 0.63, 0.67, 0.75, 0.81]
    assert holm(p)[:4] == pytest.approx([0.1, 0.117, 0.117, 1.0])
    assert holm([]) == []
    assert holm([0.04, 0.01]) == [0.04, 0.02]


def test_k_of_n_keeps_its_level_where_one_statement_less_is_true() -> None:
    rng = np.random.default_rng(2)
    true = np.zeros((DRAWS, 2))
    false = rng.random((DRAWS, 6))
    rows = np.concatenate([true, false], axis=1)
    wrong = sum(at_least(row, 3) <= LEVEL for row in rows.tolist())
    assert at_most(wrong, DRAWS, LEVEL)
    with pytest.raises(ValueError, match="allowed: 1 to 2"):
        at_least([0.1, 0.2], 3)


def test_effect_sizes_are_hedges() -> None:
    values = [0.1, 0.4, 0.2, 0.3]
    degrees = 3
    correction = math.gamma(degrees / 2) / (math.sqrt(degrees / 2) * math.gamma((degrees - 1) / 2))
    size = np.mean(values) / np.std(values, ddof=1) * correction
    found = describe(values)
    assert found.effect_size == pytest.approx(size)
    assert found.student == pytest.approx(stats.t.interval(0.95, 3, np.mean(values), stats.sem(values)))
    assert (found.wins, found.ties, found.losses) == (4, 0, 0)
