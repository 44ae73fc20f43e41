"""Rules fitted at a recall: a hand-made table, a search over all thresholds, what is held out, and what is undefined."""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from harness.judging.calibration import Run, accept, compare_rules, curve, fit, judge
from harness.judging.calibration_runs import label, table
from harness.screening import decide

INF = math.inf


def run(
    lr: float, seed: int, success: bool, final: float = 0.0, cost: float = 1.0, task: str = "a", **values: float
) -> Run:
    return Run(task, lr, str(seed), values, final, success, cost)


HAND = [
    run(0.1, 0, True, 100, approx_kl=0.10, **{"return": 50.0}),
    run(0.2, 0, True, 90, approx_kl=0.20, **{"return": 40.0}),
    run(0.3, 0, False, 20, approx_kl=0.30, **{"return": 45.0}),
    run(0.1, 1, True, 95, approx_kl=0.12, **{"return": 10.0}),
    run(0.2, 1, False, 30, approx_kl=0.05, **{"return": 20.0}),
    run(0.3, 1, False, 10, approx_kl=0.40, **{"return": 5.0}),
]
"""Six runs, three successes. By return: 50+, 45-, 40+, 20-, 10+, 5-. By divergence: .05-, .1+, .12+, .2+, .3-, .4-."""


@pytest.mark.parametrize(
    ("recall", "low", "precision", "reached"),
    [(0.3, 50.0, 1.0, 1 / 3), (0.5, 40.0, 2 / 3, 2 / 3), (0.8, 10.0, 3 / 5, 1.0)],
)
def test_matched_recall_by_hand(recall: float, low: float, precision: float, reached: float) -> None:
    assert fit("early_return", HAND, recall) == {"return": (low, INF)}
    judged = judge("early_return", HAND, recall, "in sample", at=0.1)
    assert (judged.precision, judged.recall) == (pytest.approx(precision), pytest.approx(reached))
    assert judged.recall is not None and judged.recall >= recall


def test_a_band_by_hand_and_what_it_saves_and_loses() -> None:
    assert fit("kl", HAND, 0.9) == {"approx_kl": (0.1, 0.2)}
    judged = judge("kl", HAND, 0.9, "in sample", at=0.1)
    assert (judged.precision, judged.recall, judged.regret) == (1.0, 1.0, 0.0)
    assert judged.saved == pytest.approx(0.5 * 0.9)  # three of six runs, each stopped after a tenth
    strict = judge("early_return", HAND, 0.3, "in sample", at=0.1)
    assert strict.saved == pytest.approx(5 / 6 * 0.9)
    assert strict.regret == pytest.approx((0 + 95 - 10) / 2)  # of seed 1 nothing is kept


def test_fit_equals_a_search_over_all_thresholds() -> None:
    rng = np.random.default_rng(0)
    runs = [
        run(1.0, i, bool(rng.random() < 0.4), critic=float(rng.integers(8)), actor=float(rng.integers(6)))
        for i in range(25)
    ]
    successes = sum(r.success for r in runs)
    for recall in (0.5, 0.7, 0.9):
        best = 0.0
        for low, high, actor in itertools.product(range(8), range(8), range(6)):
            taken = [r for r in runs if not decide({"critic": (low, high), "actor": (actor, INF)}, r.values)]
            hits = sum(r.success for r in taken)
            if taken and hits >= recall * successes:
                best = max(best, hits / len(taken))
        judged = judge("oui", runs, recall, "in sample", 0.1)
        assert judged.precision == pytest.approx(best) and (judged.recall or 0) >= recall


def test_precision_never_rises_with_recall() -> None:
    rng = np.random.default_rng(1)
    runs = [run(1.0, i, bool(rng.random() < 0.5), **{"return": float(rng.random())}) for i in range(30)]
    points = curve("early_return", runs)
    assert len(points) == sum(r.success for r in runs)
    assert all(a[1] >= b[1] - 1e-12 for a, b in itertools.pairwise(points))


def test_what_is_held_out_is_not_fitted_on() -> None:
    # Without seed 1 the only success is at 50 or 40; seed 1's success at 10 is then lost.
    assert accept("early_return", HAND, 1.0, "seed") == [True, True, True, False, False, False]
    by_rate = accept("early_return", HAND, 1.0, "learning rate")
    # Without 0.1 only 40 succeeds; without 0.2 and without 0.3 the one at 10 must be recalled.
    assert by_rate == [True, True, True, False, True, False]
    other = [replace(r, task="b", values={"return": r.values["return"] * 2}) for r in HAND]
    assert accept("early_return", HAND + other, 1.0, "environment")[:6] == [True, True, True, False, True, False]


def test_without_successes_it_is_undefined() -> None:
    none = [replace(r, success=False) for r in HAND]
    assert fit("oui", none, 0.5) is None
    judged = judge("early_return", none, 0.5, "in sample", 0.1)
    assert judged.precision is None and judged.recall is None and judged.interval is None
    only = [replace(r, success=r.seed == "0" and r.success) for r in HAND]  # nothing to fit on where seed 0 is held out
    assert accept("early_return", only, 0.5, "seed")[:3] == [None, None, None]
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(table([judged]))
    assert "undefined" in console.export_text()


def test_missing_values_are_not_accepted() -> None:
    runs = [*HAND, run(0.4, 0, False)]
    assert accept("early_return", runs, 0.8, "in sample")[-1] is False
    assert decide({"return": (0.0, INF)}, {}) == "return none, allowed: at least 0"


def test_interval_covers_the_precision_and_repeats() -> None:
    rng = np.random.default_rng(3)
    runs = [
        run(lr, seed, bool(rng.random() < 0.6), **{"return": float(rng.random())})
        for lr in (1.0, 2.0, 3.0, 4.0)
        for seed in range(5)
    ]
    one = judge("early_return", runs, 0.9, "in sample", 0.1)
    assert one == judge("early_return", runs, 0.9, "in sample", 0.1)
    assert one.interval is not None and one.precision is not None
    assert one.interval[0] < one.precision < one.interval[1]


def test_all_rules_under_all_protocols() -> None:
    judged = compare_rules(HAND, rules=("early_return", "kl", "lr"), recalls=(0.5, 0.9), resamples=20)
    assert len(judged) == 3 * 2 * 3  # one environment: none to hold out
    both = compare_rules([*HAND, replace(HAND[0], task="b")], rules=("kl",), recalls=(0.5,), resamples=20)
    assert {one.protocol for one in both} == {"in sample", "seed", "learning rate", "environment"}


def test_success_is_relative_to_the_best_learning_rate() -> None:
    runs = [run(0.1, s, False, final, task="acrobot/ppo") for s, final in enumerate((-80.0, -90.0))]
    runs += [run(0.2, s, False, final, task="acrobot/ppo") for s, final in enumerate((-94.0, -500.0))]
    assert [r.success for r in label(runs)] == [True, True, False, False]  # best mean -85, bar -93.5
    assert [r.success for r in label(runs, "solved")] == [True, True, True, False]  # bar -100
