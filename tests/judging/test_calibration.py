"""Rules fitted at a recall: a hand-made table, a search over all thresholds, what is held out, and what is undefined."""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from judging.made import made_plan
from rich.console import Console

from harness.judging import report_rules
from harness.judging.calibration import Run, _resampled, accept, compare_rules, curve, fit, judge
from harness.judging.calibration_runs import FINAL, cells, label, run_of, table
from harness.judging.evidence import Evidence
from harness.judging.report import markdown
from harness.judging.report_data import Findings
from harness.recording.records import Result, Status
from harness.recording.results import Results
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
    assert judged.precision is None and judged.recall is None and judged.intervals == {}
    only = [replace(r, success=r.seed == "0" and r.success) for r in HAND]  # nothing to fit on where seed 0 is held out
    assert accept("early_return", only, 0.5, "seed")[:3] == [None, None, None]
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(table([judged]))
    assert "undefined" in console.export_text()


def test_missing_values_are_not_accepted() -> None:
    runs = [*HAND, run(0.4, 0, False)]
    assert accept("early_return", runs, 0.8, "in sample")[-1] is False
    assert decide({"return": (0.0, INF)}, {}) == "return none, allowed: at least 0"


NUMBERS = ("precision", "recall", "saved", "regret")


def test_intervals_surround_the_numbers_and_repeat() -> None:
    rng = np.random.default_rng(3)
    runs = [
        run(lr, seed, bool(rng.random() < early), float(rng.random()), float(rng.random()), **{"return": early})
        for lr, seed in itertools.product((1.0, 2.0, 3.0, 4.0), range(5))
        for early in [float(rng.random())]
    ]
    one = judge("early_return", runs, 0.8, "in sample", 0.1)
    assert one == judge("early_return", runs, 0.8, "in sample", 0.1)
    for name in NUMBERS:
        low, high = one.intervals[name]
        assert low <= getattr(one, name) <= high and low < high


def test_intervals_by_hand() -> None:
    """Three learning rates: each alone, any pair and all three are drawn more often than an end of the interval leaves out."""
    runs = [
        run(0.1, 0, True, final=100, cost=1, **{"return": 20.0}),
        run(0.2, 0, False, final=40, cost=3, **{"return": 30.0}),  # kept as well
        run(0.3, 0, False, final=60, cost=4, **{"return": 10.0}),  # stopped
    ]
    one = judge("early_return", runs, 1.0, "in sample", at=0.1)
    assert (one.precision, one.recall, one.saved, one.regret) == (0.5, 1.0, pytest.approx(0.45), 0.0)
    assert one.intervals["precision"] == (0.0, 1.0)  # the second without the first, and the first without the second
    assert one.intervals["recall"] == (1.0, 1.0)  # draws without the success are left out
    assert one.intervals["saved"] == (0.0, pytest.approx(0.9))  # the third never, and the third alone
    assert one.intervals["regret"] == (0.0, 20.0)  # of the second and the third, the better one is stopped


def test_an_interval_of_what_cannot_vary_is_a_point() -> None:
    runs = [replace(r, lr=0.1, seed="0") for r in HAND] + [replace(r, lr=0.1, seed="0", task="b") for r in HAND]
    one = judge("early_return", runs, 0.5, "in sample", at=0.1)
    for name in NUMBERS:
        assert one.intervals[name] == pytest.approx((getattr(one, name),) * 2)


def test_intervals_equal_those_of_drawn_tables_written_out() -> None:
    rng, draws = np.random.default_rng(5), 40
    runs = [
        run(lr, seed, bool(rng.random() < 0.5), final, float(rng.random()), task, **{"return": float(rng.random())})
        for task, lr, seed, final in itertools.product("ab", (1.0, 2.0, 3.0), range(4), [float(rng.normal())])
    ]
    runs = [replace(r, final=-INF if rng.random() < 0.2 else float(rng.normal())) for r in runs][:-3]  # a ragged table
    one = judge("early_return", runs, 0.7, "in sample", 0.1, resamples=draws)
    taken = accept("early_return", runs, 0.7, "in sample")
    found: dict[str, list[float]] = {name: [] for name in NUMBERS}
    for by_lr, by_seed in zip(*_resampled(3, 4, draws), strict=True):
        table = [  # a seed that is drawn twice is two seeds
            (replace(r, seed=f"{r.seed}, {copy}"), bool(kept))
            for r, kept in zip(runs, taken, strict=True)
            for copy in range(int(by_seed[int(r.seed)]))
            for _ in range(int(by_lr[int(r.lr) - 1]))
        ]
        kept = [r for r, was_kept in table if was_kept]
        if any(r.success for r, _ in table):
            found["recall"].append(sum(r.success for r in kept) / sum(r.success for r, _ in table))
        if kept:
            found["precision"].append(sum(r.success for r in kept) / len(kept))
        if table:
            found["saved"].append(0.9 * sum(r.cost for r, k in table if not k) / sum(r.cost for r, _ in table))
            worst = min((r.final for r, _ in table if r.final > -INF), default=0.0)
            losses = []
            for place in {(r.task, r.seed) for r, _ in table}:
                finals = [(max(r.final, worst), k) for r, k in table if (r.task, r.seed) == place]
                left = [final for final, k in finals if k] or [min(finals)[0]]
                losses.append(max(finals)[0] - max(left))
            found["regret"].append(sum(losses) / len(losses))
    for name, values in found.items():
        assert one.intervals[name] == pytest.approx(tuple(np.quantile(values, [0.025, 0.975]))), name


def test_intervals_cover_the_truth_where_learning_rates_differ() -> None:
    """Each learning rate succeeds with a chance of its own, uniform between 0 and 1, and a rule keeps all: precision is 1/2.

    Draws of single runs would cover it in 70 % of cases: the mean of twenty learning rates, ten seeds each, varies with variance
    1/12/20 + 1/6/200, that of 200 runs that know nothing of each other with 1/4/200.
    """
    rng, covered = np.random.default_rng(7), 0
    for _ in range(200):
        chances = rng.random(20)
        runs = [run(i, s, bool(rng.random() < c), **{"return": 1.0}) for i, c in enumerate(chances) for s in range(10)]
        low, high = judge("early_return", runs, 0.9, "in sample", 0.1, resamples=200).intervals["precision"]
        covered += low <= 0.5 <= high
    assert 0.9 <= covered / 200 <= 0.99


def test_the_table_fits_80_columns() -> None:
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(
        table([judge("early_return", HAND, 0.8, "learning rate", 0.1), judge("kl", HAND, 0.8, "in sample", 0.1)])
    )
    text = console.export_text()
    assert "early_return" in text and "learning rate" in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert cells(judge("kl", HAND, 0.9, "in sample", 0.1))[3:] == [
        "1 [1.00–1.00]", "1 [1.00–1.00]", "0.45 [0.00–0.90]", "0 [0.00–20]", "3/6"
    ]  # fmt: skip


def test_all_rules_under_all_protocols() -> None:
    judged = compare_rules(HAND, rules=("early_return", "kl", "lr"), recalls=(0.5, 0.9), resamples=20)
    assert len(judged) == 3 * 2 * 3  # one environment: none to hold out
    both = compare_rules([*HAND, replace(HAND[0], task="b")], rules=("kl",), recalls=(0.5,), resamples=20)
    assert {one.protocol for one in both} == {"in sample", "seed", "learning rate", "environment"}


@pytest.mark.parametrize("last", [-90.0, -100.5])
def test_a_report_has_the_rules_where_a_success_is_a_solved_task(monkeypatch: pytest.MonkeyPatch, last: float) -> None:
    """Task a is solved at -100 and b says nothing of it; relative successes are another matter."""
    plan = replace(
        made_plan(tasks=["a", "b"], methods=["adam"], axes={"adam": [0.1, 0.2]}, seeds=2), solved={"a": -100.0}
    )
    ended = {trial.hash: Result(trial.hash, Status.FINISHED, "c", metrics={FINAL: -1.0}) for trial in plan.trials}
    finals = [-300.0, -200.0, -150.0, last]
    runs = [
        run(lr, seed, False, final, task=task, **{"return": final})
        for task in "ab"
        for (lr, seed), final in zip(itertools.product((0.1, 0.2), range(2)), finals, strict=True)
    ]
    monkeypatch.setattr(report_rules, "runs_of_grid", lambda *_: label(runs))
    monkeypatch.setattr(report_rules, "COMPARED", ("early_return",))
    findings = Findings(plan, ended, Evidence(plan, ended, None), [], [], [], {})
    judged = report_rules.rules(findings, Results(Path("nowhere")))
    assert judged is not None
    assert len(judged.rows) == 4 * 4 and "b has no such threshold." in judged.note
    assert judged.note.startswith("Solved is a final return of at least -100 on a.")
    if last >= -100:  # one of four runs, the best one by its early return too
        assert len(judged.solved) == 4 * 3 and "Undefined" not in judged.note
        assert (
            judged.solved[0][:4] == ["early_return", "0.5", "nothing", "1 [1.00–1.00]"]
            and judged.solved[0][-1] == "1/4"
        )
    else:
        assert judged.solved == [] and "Undefined on a: no run solves it." in judged.note
    assert judged.note.replace(".", "\\.") in markdown(findings, judged) or judged.note in markdown(findings, judged)


def test_a_run_that_diverged_cost_what_its_last_record_says() -> None:
    records = [{"step": n, "metrics": {"time/train_seconds": n / 4, "train/oui_critic": 0.5}} for n in (8, 16, 24)]
    recipe = {"lr": 0.1, "steps": 100}
    ended = Result("h", Status.DIVERGED, "c", {}, started=0.0, ended=99.0)
    found = run_of("t", "0", recipe, iter(records), ended, at=0.1)
    assert (found.cost, found.final, found.values["critic"]) == (6.0, -math.inf, 0.5)
    whole = Result("h", Status.FINISHED, "c", {"time/train_seconds": 30.0, FINAL: 7.0}, started=0.0, ended=99.0)
    assert (run_of("t", "0", recipe, iter(records), whole, at=0.1).cost) == 30.0


def test_success_is_relative_to_the_best_learning_rate() -> None:
    runs = [run(0.1, s, False, final, task="acrobot/ppo") for s, final in enumerate((-80.0, -90.0))]
    runs += [run(0.2, s, False, final, task="acrobot/ppo") for s, final in enumerate((-94.0, -500.0))]
    assert [r.success for r in label(runs)] == [True, True, False, False]  # best mean -85, bar -93.5
    assert [r.success for r in label(runs, {"acrobot/ppo": -100.0})] == [True, True, True, False]  # bar -100
