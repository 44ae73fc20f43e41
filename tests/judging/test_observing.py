"""Earliness and regimes: against scipy and scikit-learn, on made-up runs whose moments are known, and on noise."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from judging.made import ended, made_plan
from sklearn.metrics import roc_auc_score

from harness.claim import ClaimError
from harness.judging.observing import auc_by_seed, earliness, settling
from harness.judging.reading import undecidable
from harness.judging.verdicts import Outcome, judge
from harness.registry import Registry

RATES = [1e-4, 1e-3, 3e-3, 1e-2, 1e-1]
S, C, U = Outcome.SUPPORTED, Outcome.CONTRADICTED, Outcome.UNDECIDED
CELLS = [f"t · a · lr={rate}" for rate in RATES]


def test_earliness_is_that_of_scipy_at_every_moment() -> None:
    rng = np.random.default_rng(0)
    moments = np.linspace(0.1, 1, 10)
    for _ in range(50):
        signal, ends = rng.normal(size=(8, 10)).cumsum(axis=1), rng.normal(size=8)
        curves = [list(zip(moments.tolist(), row.tolist(), strict=True)) for row in signal]
        sizes = [abs(scipy.stats.spearmanr(signal[:, k], ends).statistic) for k in range(10)]
        expected = next(m for m, size in zip(moments, sizes, strict=True) if size >= 0.9 * sizes[-1] - 1e-9)
        assert earliness(curves, ends.tolist()) == expected


def test_a_signal_equal_to_the_final_metric_is_there_at_once_and_a_constant_never() -> None:
    ends = [0.3, 0.1, 0.2]
    at_once = [[(0.0, end), (1.0, end)] for end in ends]
    assert earliness(at_once, ends) == 0
    assert earliness([[(0.0, 1.0), (1.0, 1.0)]] * 3, ends) is None
    assert earliness(at_once, [0.5] * 3) is None
    assert earliness(at_once, [-math.inf, 0.1, 0.2]) == 0, "a run that diverged ranks lowest"


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=30))
def test_what_has_settled_stays_near_its_end(values: list[float]) -> None:
    curve = [(float(moment), value) for moment, value in enumerate(values)]
    found = settling(curve)
    near = 0.05 * (max(values) - min(values))
    inside = [abs(value - values[-1]) <= near for value in values]
    if len(set(values)) < 2:
        assert found is None
    else:
        assert found is not None and all(inside[int(found) :])
        assert found == 0 or not inside[int(found) - 1]


def test_the_auc_of_two_regimes_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    values = rng.normal(size=(12, 7)) + 1.5 * labels
    expected = [roc_auc_score(labels, row) for row in values]
    names = ["well" if label else "under" for label in labels]
    assert auc_by_seed(values, names) == pytest.approx(expected)
    assert auc_by_seed(-values, names) == pytest.approx(expected), "the direction comes from the other seeds"
    assert auc_by_seed(values[:, :3], ["well"] * 3) == pytest.approx(0.5), "one regime: nothing to tell apart"


def test_noise_has_an_auc_of_a_half() -> None:
    """Taking the better direction on the seed itself would give about .7 with so few runs."""
    rng = np.random.default_rng(2)
    names = ["under", "under", "well", "well", "over", "over", "over"]
    means = [auc_by_seed(rng.normal(size=(8, 7)), names).mean() for _ in range(2000)]
    assert np.mean(means) <= 0.5 + 3 * np.std(means) / math.sqrt(len(means))


def curves_of(plan, signal):  # type: ignore[no-untyped-def]
    """Ten records of each run: `probe/early` is the final score from step 10 on, `probe/late` from step 60 on."""
    by_hash = {trial.hash: trial for trial in plan.trials}

    def curves(hash: str) -> list[dict[str, object]]:
        trial = by_hash[hash]
        end, noise = signal[trial.cell], np.random.default_rng([1, trial.spec.seed["init"]]).normal(size=200)
        rank = CELLS.index(trial.cell)
        return [
            {"step": step, "metrics": {"probe/early": end, "probe/late": end if step >= 60 else noise[step + rank]}}
            for step in range(10, 101, 10)
        ]

    return curves


def test_claims_of_an_early_observable_come_out_as_made(registry: Registry) -> None:
    score = dict(zip(CELLS, [0.5, 0.8, 0.9, 0.7, 0.2], strict=True))
    rising = {cell: float(index) for index, cell in enumerate(CELLS)}
    for claim, signal, outcome in (
        ({"earlier": "probe/early", "than": "probe/late"}, score, S),
        ({"earlier": "probe/late", "than": "probe/early"}, score, C),
        ({"separates": "probe/early", "axis": "lr", "above": 0.8}, rising, S),
        ({"separates": "probe/early", "axis": "lr", "above": 0.8}, dict.fromkeys(CELLS, 1.0), C),
        ({"separates": "probe/early", "axis": "lr", "than": "probe/late"}, rising, S),
    ):
        plan = made_plan([claim], methods=("a",), axes={"a": RATES})
        results = ended(plan, {cell: np.full(10, value) for cell, value in score.items()})
        (verdict,) = judge(plan, results, registry, curves=curves_of(plan, signal))
        assert verdict.outcome is outcome, (claim, verdict.parts)
    (part,) = verdict.parts
    assert list(part.details["regimes"].values()) == ["under", "well", "well", "well", "over"]
    assert part.details["auc"] == [1.0] * 10


def test_a_failed_run_holds_both_back_and_a_diverged_one_ranks_worst(registry: Registry) -> None:
    score = dict(zip(CELLS, [0.5, 0.8, 0.9, 0.7, 0.2], strict=True))
    for end, outcome in ((math.nan, U), (-math.inf, S)):
        plan = made_plan([{"earlier": "probe/early", "than": "probe/late"}], methods=("a",), axes={"a": RATES})
        table = {cell: np.full(10, value) for cell, value in score.items()}
        table[CELLS[-1]][0] = end
        (verdict,) = judge(plan, ended(plan, table), registry, curves=curves_of(plan, score))
        assert verdict.outcome is outcome


@pytest.mark.parametrize(
    ("kind", "claim", "message"),
    [
        ("earlier", {"earlier": "probe/x", "than": "probe/x"}, "than: found 'probe/x' itself"),
        ("separates", {"separates": "probe/x"}, "than: found both or none"),
        ("separates", {"separates": "probe/x", "above": 1.0}, "above: found 1"),
        ("separates", {"separates": "probe/x", "above": 0.5, "early": 0.0}, "early: found 0"),
    ],
)
def test_what_makes_no_sense_is_refused(kind: str, claim: dict[str, object], message: str, registry: Registry) -> None:
    with pytest.raises(ClaimError, match=message):
        registry.build_claim(kind, claim).check()


@pytest.mark.parametrize(("rates", "best"), [([0.1, 0.2, 0.3], 0.2), ([0.1, 0.4, 1.6], 0.4)])
def test_an_axis_with_one_regime_alone_is_refused(rates: list[float], best: float, registry: Registry) -> None:
    """A signal that equals the score tells all that there is, and there is nothing to tell apart. By hand: 1.6 is four bests."""
    claim = {"separates": "test/accuracy", "axis": "lr", "above": 0.8, "early": 1.0}
    plan = made_plan([claim], methods=("a",), axes={"a": rates})
    scores = {f"t · a · lr={rate}": np.full(10, 1 - abs(rate - best)) for rate in rates}
    (verdict,) = judge(plan, ended(plan, scores), registry)
    assert verdict.outcome is U and "axis: found 'lr' with all its values on t in one regime" in verdict.reason
    assert bool(undecidable(plan, registry)) is (max(rates) <= 5 * min(rates)), (
        "where no best value would do, plan says so"
    )


def test_without_a_cell_that_went_well_there_are_no_regimes_and_no_verdict(registry: Registry) -> None:
    rates = [0.001, 0.1, 10.0]
    claim = {"separates": "test/accuracy", "axis": "lr", "above": 0.8, "early": 1.0}
    plan = made_plan([claim], methods=("a",), axes={"a": rates})
    scores = {f"t · a · lr={rate}": np.full(10, rate) for rate in rates}
    assert judge(plan, ended(plan, scores), registry)[0].outcome is S
    for seed, values in enumerate(scores.values()):
        values[seed] = -np.inf
    (verdict,) = judge(plan, ended(plan, scores), registry)
    assert verdict.outcome is U and not verdict.held


def test_the_direction_of_a_claim_is_that_of_its_metric(registry: Registry) -> None:
    """`probe/x` has none in its name. The run that diverged is worst in it: the largest where less is better."""
    rates = [0.001, 0.1, 10.0]
    cells = [f"t · a · lr={rate}" for rate in rates]
    measure = {cell: np.full(10, value) for cell, value in zip(cells, [3.0, 2.0, 1.0], strict=True)}
    claim = {"separates": "probe/x", "axis": "lr", "above": 0.8, "early": 1.0, "by": "probe/x", "direction": "min"}
    plan = made_plan([claim], methods=("a",), axes={"a": rates})
    (verdict,) = judge(plan, ended(plan, measure, probe__x=measure), registry)
    assert verdict.outcome is S
    assert list(verdict.parts[0].details["regimes"].values()) == ["under", "under", "well"]

    earlier = {"earlier": "probe/one", "than": "probe/other", "by": "probe/x", "direction": "min"}
    plan = made_plan([earlier], methods=("a",), axes={"a": rates})
    measure[cells[0]][0] = -np.inf
    results = ended(plan, measure, probe__x=measure)
    del results[plan.trials[0].hash].metrics["probe/x"]
    rank = {trial.hash: cells.index(trial.cell) for trial in plan.trials}

    def curves(hash: str) -> list[dict[str, object]]:
        late = {0: 1.0, 1: 2.0, 2: 0.0}[rank[hash]]
        return [
            {"step": 50, "metrics": {"probe/one": float(rank[hash]), "probe/other": late}},
            {"step": 100, "metrics": {"probe/one": float(rank[hash]), "probe/other": float(rank[hash])}},
        ]

    (verdict,) = judge(plan, results, registry, curves=curves)
    assert verdict.parts[0].details["earliness"] == [0.5] * 10
    assert verdict.parts[0].details["earliness, other"] == [1.0] * 10


def test_an_axis_that_the_recipe_lacks_is_named(registry: Registry) -> None:
    plan = made_plan([{"separates": "probe/x", "axis": "decay", "above": 0.5}], methods=("a",), axes={"a": RATES})
    results = ended(plan, {cell: np.full(10, 0.5) for cell in CELLS})
    (verdict,) = judge(plan, results, registry, curves=curves_of(plan, dict.fromkeys(CELLS, 1.0)))
    assert verdict.outcome is U and "axis: found 'decay'" in verdict.reason
