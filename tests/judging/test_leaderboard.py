"""Means, intervals and the order of a leaderboard."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.judging.leaderboard import Entry, rank
from harness.judging.statistics import mean_interval
from harness.recording.records import Result, Status

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


def trial(name: str, method: str, score: float | None, status: Status = Status.FINISHED) -> tuple[Entry, Result]:
    metrics = {} if score is None else {"test/accuracy": score, "time/train_seconds": 1.0}
    return Entry(name, "t", method, "val/accuracy", "max"), Result(name, status, "c", metrics=metrics)


def test_failures_rank_before_means() -> None:
    made = [
        trial("1", "steady", 0.7),
        trial("2", "steady", 0.8),
        trial("3", "wild", 0.99),
        trial("4", "wild", None, Status.DIVERGED),
        trial("5", "good", 0.9),
        trial("6", "good", 0.8),
    ]
    board = rank([entry for entry, _ in made], {entry.hash: result for entry, result in made})
    assert [row.method for row in board["t"]] == ["good", "steady", "wild"]
    assert (board["t"][2].worst, board["t"][2].finished, board["t"][2].mean) == (1, 1, 0.99)


def test_smaller_is_better_where_the_task_says_so() -> None:
    entries = [Entry(name, "t", name, "val/loss", "min") for name in ("low", "high")]
    results = {
        name: Result(name, Status.FINISHED, "c", metrics={"test/loss": score, "time/train_seconds": 1.0})
        for name, score in (("low", 0.1), ("high", 0.9))
    }
    assert [row.method for row in rank(entries, results)["t"]] == ["low", "high"]
