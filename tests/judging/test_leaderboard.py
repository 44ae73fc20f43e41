"""Means, intervals and the order of a leaderboard."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judging.made import ended, made_plan, several_trials
from scipy import stats

from harness.judging.leaderboard import table
from harness.judging.report_tasks import task_tables
from harness.judging.statistics import mean_interval
from harness.planning.plan import Plan
from harness.recording.records import Result

numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20)


@given(numbers, st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_is_scipy_s(values: list[float], level: float) -> None:
    mean, half = mean_interval(values, level)
    error = stats.sem(values)
    assert half is not None
    if error > 1e-9:
        low, high = stats.t.interval(level, len(values) - 1, loc=sum(values) / len(values), scale=error)
        assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-6, abs=1e-6)


def test_one_value_has_no_interval() -> None:
    assert mean_interval([3.0]) == (3.0, None)
    with pytest.raises(ValueError, match="found none"):
        mean_interval([])


def shown(plan: Plan, results: dict[str, Result]) -> list[list[str]]:
    """The leaderboard of a plan's only task, row by row as a terminal shows it."""
    (found,) = task_tables(plan, results)
    return [[str(cell) for cell in row] for row in zip(*(c.cells for c in table(found).columns), strict=True)]


def test_failures_rank_before_means() -> None:
    plan = made_plan(methods=("steady", "wild", "good"), seeds=2)
    made = {"t · steady": np.array([0.7, 0.8]), "t · wild": np.array([0.99, -np.inf]), "t · good": np.array([0.9, 0.8])}
    times = {cell: np.ones(2) for cell in made}
    rows = shown(plan, ended(plan, made, time__train_seconds=times))
    assert [row[0] for row in rows] == ["good", "steady", "wild"]
    assert rows[2] == ["wild", "0.9900", "1/2", "1", "1.0"]


def test_smaller_is_better_where_the_task_says_so() -> None:
    plan = replace(made_plan(methods=("high", "low"), seeds=1), metrics={"t": ["val/loss", "min"]})
    made = {"t · low": np.array([0.1]), "t · high": np.array([0.9])}
    assert [row[0] for row in shown(plan, ended(plan, made, metric="test/loss"))] == ["low", "high"]


def test_the_cells_of_an_axis_are_not_seeds() -> None:
    """A method with a cell that fails to learn is shown at the cell that validation prefers, as in the report."""
    plan = made_plan(seeds=3, axes={"a": [0.1, 0.01, 3.0]})
    made = {
        "t · a · lr=0.1": np.array([0.97, 0.96, 0.95]),
        "t · a · lr=0.01": np.array([0.94, 0.95, 0.96]),
        "t · a · lr=3.0": np.array([0.1, 0.1, 0.1]),
        "t · b": np.array([0.8, 0.81, 0.82]),
    }
    rows = shown(plan, ended(plan, made))
    assert [row[0] for row in rows] == ["a: lr=0.1, best of 3 on validation", "b"]
    mean, half = mean_interval([0.96, 0.95])
    assert rows[0][1:3] == [f"{mean:.4f} ± {half:.4f}", "2/2"], "the first seed has chosen the cell"
    (found,) = task_tables(plan, ended(plan, made))
    assert found.choice == (
        "Where a method has several cells, the first of 3 seeds chose the one that is shown, and its numbers are those of "
        "the others."
    )


def test_the_trials_of_a_seed_are_one_number() -> None:
    plan = several_trials(made_plan(seeds=5), 3)
    rng = np.random.default_rng(0)
    each = np.repeat(rng.normal(size=(2, 5)), 3, axis=1) + 0.01 * rng.normal(size=(2, 15))
    each[1, 5] = -np.inf
    rows = {row[0]: row[1:4] for row in shown(plan, ended(plan, {"t · a": each[0], "t · b": each[1]}))}
    mean, half = mean_interval(each[0].reshape(5, 3).mean(axis=1).tolist())
    assert rows["a"] == [f"{mean:.4f} ± {half:.4f}", "5/5", ""]
    assert rows["b"][1:] == ["4/5", "1"]


def test_a_plan_of_which_nothing_is_shown_has_no_leaderboard() -> None:
    assert task_tables(replace(made_plan(), trials=[]), {}) == []
