"""Verdicts on made-up grids of which the truth is known: kinds, failures, families, looks, choices of cells."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judging.made import Array, ended, made_plan
from scipy import stats
from support import plugin

from harness.claim import ClaimError
from harness.identity import Part
from harness.judging.evidence import Evidence
from harness.judging.lookahead import next_batch
from harness.judging.paired import describe, sign_flip_p
from harness.judging.reading import looks, one_sided, undecidable
from harness.judging.telling import difference, rests
from harness.judging.verdicts import Outcome, Verdict, _stands, judge
from harness.planning.plan import Plan
from harness.registry import Registry

S, C, U = Outcome.SUPPORTED, Outcome.CONTRADICTED, Outcome.UNDECIDED
UP = np.linspace(0.9, 1.1, 10)
"""A clear effect on ten seeds."""


def one(plan: Plan, scores: dict[str, Array], registry: Registry, **more: dict[str, Array]) -> Verdict:
    (verdict,) = judge(plan, ended(plan, scores, **more), registry)
    json.dumps(verdict.to_json(), allow_nan=False)
    return verdict


def test_better_not_worse_and_ordered(registry: Registry) -> None:
    scores = {"t · a": UP, "t · b": 0 * UP, "t · c": -UP}
    methods = ("a", "b", "c")
    for claim, outcome in (
        ({"better": "a", "than": "b"}, S),
        ({"better": "b", "than": "a"}, C),
        ({"better": "a", "than": "b", "margin": 0.8}, S),
        ({"better": "a", "than": "b", "margin": 1.0}, U),
        ({"better": "a", "than": "b", "margin": 1.2}, C),
        ({"not_worse": "b", "than": "a", "margin": 1.2}, S),
        ({"not_worse": "b", "than": "a", "margin": 0.8}, C),
        ({"not_worse": "a", "than": "b", "margin": 0.1}, S),
        ({"ordered": ["a", "b", "c"]}, S),
        ({"ordered": ["a", "c", "b"]}, C),
        ({"better": "a", "than": "b", "direction": "min"}, C),
        ({"better": "a", "than": "b", "ties": 2.0}, U),
    ):
        assert one(made_plan([claim], methods=methods), scores, registry).outcome is outcome, claim


def test_a_single_claim_is_told_as_one(registry: Registry) -> None:
    verdict = one(made_plan([{"better": "a", "than": "b"}]), {"t · a": UP, "t · b": 0 * UP}, registry)
    assert verdict.reason == f"p = {2**-10:.3g} at most 0.05, 10 seeds, corrected for 1 claim"
    assert "judged with 10 seeds, corrected for 1 claim; claim " in rests(verdict)


def test_a_claim_over_tasks_holds_on_every_one_and_wins_counts_them(registry: Registry) -> None:
    tasks = ("t1", "t2", "t3")
    scores = {
        f"{task} · {m}": sign * (UP if m == "a" else -UP)
        for task, sign in zip(tasks, (1, 1, -1), strict=True)
        for m in "ab"
    }
    for claim, outcome in (
        ({"better": "a", "than": "b"}, C),
        ({"better": "a", "than": "b", "on": "t[12]"}, S),
        ({"wins": "a", "over": ["b"], "at_least": 2}, S),
        ({"wins": "a", "over": ["b"], "at_least": 3}, C),
        ({"interaction": "a", "than": "b", "more_on": "t1", "than_on": "t3"}, S),
        ({"interaction": "a", "than": "b", "more_on": "t3", "than_on": "t1"}, C),
        ({"interaction": "a", "than": "b", "more_on": "t1", "than_on": "t2"}, U),
    ):
        verdict = one(made_plan([claim], tasks=tasks), scores, registry)
        assert verdict.outcome is outcome, claim


def test_wins_is_over_each_of_the_others_and_not_over_the_best_of_them_by_seed(registry: Registry) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, 20)
    scores = {"t · a": base + 0.3, "t · b": base + rng.normal(0, 1, 20), "t · c": base + rng.normal(0, 1, 20)}
    least = np.min([scores["t · a"] - scores["t · b"], scores["t · a"] - scores["t · c"]], axis=0)
    assert sign_flip_p(least)[1] < 0.1, "the least of two differences is below zero more often than either"
    plan = made_plan([{"wins": "a", "over": ["b", "c"], "at_least": 1}], methods=("a", "b", "c"), seeds=20)
    verdict = one(plan, scores, registry)
    assert (verdict.outcome, len(verdict.parts)) == (U, 2)
    assert verdict.p_contradicted > 0.5


def test_wins_at_each_point_of_the_axes_counts_settings(registry: Registry) -> None:
    rates = [0.1, 0.2]
    cells = {f"{task} · {m} · lr={rate}": 0.0 for task in ("t1", "t2") for m in "ab" for rate in rates}
    scores = {cell: UP if " a " in cell else np.zeros(10) for cell in cells} | {"t2 · a · lr=0.2": -UP}
    for count, outcome in ((3, S), (4, C)):
        claim = {"wins": "a", "over": ["b"], "at_least": count, "at": "each"}
        verdict = one(made_plan([claim], tasks=("t1", "t2"), axes={"a": rates, "b": rates}), scores, registry)
        assert (verdict.outcome, len(verdict.parts)) == (outcome, 4)
        assert f"at least {count} settings" in verdict.sentence


def test_wins_at_each_point_refuses_points_that_some_methods_do_not_have(registry: Registry) -> None:
    claim = {"wins": "a", "over": ["b", "c"], "at_least": 1, "at": "each"}
    plan = made_plan([claim], methods=("a", "b", "c"), axes={"b": [0.1, 0.2]})
    scores = dict.fromkeys(("t · a", "t · b · lr=0.1", "t · b · lr=0.2", "t · c"), UP)
    verdict = one(plan, scores, registry)
    assert verdict.outcome is U and "not all of `over` have" in verdict.reason


def test_contrasts_values_and_regret(registry: Registry) -> None:
    methods = ("a", "b", "c")
    scores = {"t · a": 2 + UP, "t · b": 2.5 + UP / 2, "t · c": 1 + UP / 10}
    ratio = {cell: 3 * np.linspace(1.1, 1.3, 10) for cell in scores}
    for claim, outcome in (
        ({"contrast": ["a", "b"], "against": ["*"]}, S),
        ({"contrast": ["c"], "against": ["*"]}, C),
        ({"value": "probe/x", "of": "a", "above": 3.0}, S),
        ({"value": "probe/x", "of": "a", "below": 3.0}, C),
        ({"value": "probe/x", "per": "probe/x", "of": "*", "above": 0.99}, S),
        ({"regret": "b", "below": 0.1}, S),
        ({"regret": "c", "below": 0.1}, C),
        ({"regret": "b", "than": "c"}, S),
        ({"regret": "c", "than": "b"}, C),
    ):
        assert one(made_plan([claim], methods=methods), scores, registry, probe__x=ratio).outcome is outcome, claim


@pytest.mark.parametrize("relative", [True, False])
def test_an_oracle_that_diverged_ranks_worst_and_one_of_zero_may_be_anything(
    relative: bool, registry: Registry
) -> None:
    """b is the best by far and fails on the last seed, where a then is no worse than it by any bound."""
    plan = made_plan([{"regret": "a", "below": 0.1, "relative": relative}])
    late = np.arange(10) == 9
    verdict = one(plan, {"t · a": 2 + UP, "t · b": np.where(late, -np.inf, 2.05 + UP)}, registry)
    assert (verdict.outcome, verdict.held, verdict.seeds) == (S, [], 7)
    assert verdict.parts[0].differences[-1] is None
    verdict = one(plan, {"t · a": 2 + UP, "t · b": np.where(late, np.inf, 2.05 + UP)}, registry)
    assert (verdict.outcome, verdict.held) == (U, []), "screened"
    zero = one(plan, {"t · a": np.where(late, -0.01, 2 + UP), "t · b": np.where(late, 0.0, 2.05 + UP)}, registry)
    assert (zero.outcome, zero.held) == (U if relative else S, [])


def test_a_value_is_asked_at_the_cell_that_validation_prefers(registry: Registry) -> None:
    axes = {"a": [0.1, 0.2]}
    scores = {"t · a · lr=0.1": 1 + UP, "t · a · lr=0.2": 2 + UP, "t · b": UP}
    measure = {"t · a · lr=0.1": np.full(10, 1.0), "t · a · lr=0.2": np.full(10, 5.0), "t · b": np.full(10, 4.0)}
    claim = {"value": "probe/x", "of": "*", "above": 3.0}
    best = one(made_plan([claim], axes=axes), scores, registry, probe__x=measure)
    assert [part.label for part in best.parts] == ["t · a", "t · b"], "each method once"
    assert best.parts[0].details["cell"] == "t · a · lr=0.2"
    assert (best.outcome, best.parts[0].differences) == (S, [2.0] * 7), "the first three of ten seeds chose"
    each = one(made_plan([claim | {"at": "each"}], axes=axes), scores, registry, probe__x=measure)
    assert [part.label for part in each.parts] == list(scores)
    assert (each.outcome, each.parts[0].differences) == (C, [-2.0] * 10)


def test_correlation_and_precision_over_the_cells_of_a_seed(registry: Registry) -> None:
    rates = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    rng = np.random.default_rng(0)
    scores = {f"t · a · lr={rate}": rate + rng.normal(0, 0.02, 10) for rate in rates}
    signal = {cell: values + rng.normal(0, 0.02, 10) for cell, values in scores.items()}
    noise = {cell: rng.normal(0, 1, 10) for cell in scores}
    for claim, outcome in (
        ({"correlated": "probe/x", "against": "test/accuracy", "above": 0.5}, S),
        ({"correlated": "probe/x", "against": "test/accuracy", "above": 0.5, "inverse": True}, C),
        ({"correlated": "probe/y", "against": "test/accuracy", "above": 0.5}, C),
        ({"precision": "probe/x", "success": 0.35, "above": 0.7, "early": 1.0}, S),
        ({"precision": "probe/x", "than": "probe/y", "success": 0.35, "early": 1.0}, S),
        ({"precision": "probe/y", "success": 0.35, "above": 0.9, "early": 1.0}, C),
    ):
        plan = made_plan([claim], methods=("a",), axes={"a": rates})
        verdict = one(plan, scores, registry, probe__x=signal, probe__y=noise)
        assert verdict.outcome is outcome, (claim, verdict.parts)


@pytest.mark.parametrize(
    "claim",
    [
        {"correlated": "probe/typo", "against": "test/accuracy", "above": 0.5},
        {"precision": "probe/typo", "above": 0.5, "success": 0.65, "early": 1.0},
        {"precision": "test/accuracy", "than": "probe/typo", "success": 0.65, "early": 1.0},
        {"separates": "probe/typo", "axis": "lr", "above": 0.8, "early": 1.0},
        {"separates": "test/accuracy", "than": "probe/typo", "axis": "lr", "early": 1.0},
        {"earlier": "test/accuracy", "than": "probe/typo"},
    ],
)
def test_a_signal_that_finished_runs_do_not_have_holds_back(claim: dict[str, Any], registry: Registry) -> None:
    """With the signal, all of them are decided; a run that diverged needs none."""
    rates = [0.001, 0.1, 10.0]
    plan = made_plan([claim], methods=("a",), axes={"a": rates})
    scores = {f"t · a · lr={rate}": 0.5 + 0.1 * place + UP / 100 for place, rate in enumerate(rates)}
    scores["t · a · lr=0.001"][0] = -np.inf
    noise = np.random.default_rng(0)
    signal = {cell: noise.normal(0, 1, 10) for cell in scores}

    def found(results: dict[str, Any]) -> Verdict:
        def curves(hash: str) -> list[dict[str, object]]:
            metrics = results[hash].metrics
            return [{"step": 10, "metrics": {"test/accuracy": metrics.get("test/accuracy", 0.0)}}] + [
                {"step": step, "metrics": {"probe/typo": (step == 100) * metrics["probe/typo"]}}
                for step in (10, 100)
                if "probe/typo" in metrics
            ]

        (verdict,) = judge(plan, results, registry, curves=curves)
        return verdict

    assert not found(ended(plan, scores, probe__typo=signal)).held
    verdict = found(ended(plan, scores))
    assert verdict.outcome is U
    assert len(verdict.held) == 29 and all("without probe/typo" in one for one in verdict.held)
    assert verdict.reason.startswith("held back by 29 trials: t · a · lr=0.001, seed 1")
    most = ended(plan, scores, probe__typo=signal)
    del most[plan.trials[-1].hash].metrics["probe/typo"]
    assert len(found(most).held) == 1


def test_a_correlation_with_what_does_not_vary_decides_nothing(registry: Registry) -> None:
    scores = {f"t · a · lr={rate}": rate + UP for rate in (0.1, 0.2, 0.3)}
    constant = dict.fromkeys(scores, np.ones(10))
    for above in (-0.5, 0.5):
        claim = {"correlated": "probe/x", "against": "test/accuracy", "above": above}
        plan = made_plan([claim], methods=("a",), axes={"a": [0.1, 0.2, 0.3]})
        verdict = one(plan, scores, registry, probe__x=constant)
        assert verdict.outcome is U and not verdict.held


def test_screening_rules_are_compared_on_seeds_left_out(registry: Registry) -> None:
    """Half of the learning rates succeed. Critics tell which, actors are all alike, divergence is noise."""
    rates = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    rng = np.random.default_rng(0)
    finals = {f"t · a · lr={rate}": np.full(10, 100.0 if rate > 0.3 else 20.0) for rate in rates}

    def verdict(claim: dict[str, object], finals: dict[str, Array] = finals) -> Verdict:
        plan = made_plan([claim], methods=("a",), axes={"a": rates})
        lr = {trial.hash: trial.spec.recipe["lr"] for trial in plan.trials}

        def curves(hash: str) -> list[dict[str, object]]:
            early = {"train/oui_critic": 0.5 if lr[hash] > 0.3 else rng.choice([0.1, 0.9]), "train/oui_actor": 0.7}
            return [{"step": 10, "metrics": early | {"train/approx_kl": rng.random()}}, {"step": 11, "metrics": {}}]

        results = ended(plan, finals, train__return_last_tenth=finals)
        (found,) = judge(plan, results, registry, curves=curves)
        return found

    nothing = verdict({"screening": "oui", "of": "a"})
    assert nothing.outcome is S
    assert nothing.parts[0].differences == [0.5] * 10  # all that is kept succeeds, and half of all does
    several = verdict({"screening": "oui", "than": ["kl", "lr"], "of": "a", "recall": 0.9})
    assert [part.label for part in several.parts] == ["t · kl", "t · lr"]
    assert several.outcome is U and several.parts[1].differences == [0.0] * 10  # the learning rate tells as much
    assert verdict({"screening": "oui", "than": ["kl"], "of": "a", "recall": 0.9}).outcome is S
    assert verdict({"screening": "kl", "than": ["oui"], "of": "a", "recall": 0.9}).outcome is C
    # The bar is the best mean of a learning rate: only the first seed's runs reach it, and without them nothing can be fitted.
    once = {cell: np.where(np.arange(10) == 0, values, 20.0) for cell, values in finals.items()}
    unknown = verdict({"screening": "oui", "of": "a"}, once)
    assert (unknown.outcome, unknown.parts[0].differences[0]) == (U, None)
    unseen = verdict({"screening": "oui", "than": ["flips"], "of": "a"})
    assert unseen.outcome is U and "none has train/flip_rate" in unseen.reason
    rising = verdict({"correlated": "train/return_last_tenth", "against": "recipe.lr", "above": 0.5, "of": "a"})
    assert rising.outcome is S
    for claim, message in (
        ({"screening": "oiu", "of": "a"}, "screening: found 'oiu', allowed: oui, "),
        ({"screening": "oui", "than": ["ret"], "of": "a"}, "than: found 'ret'"),
        ({"screening": "oui", "than": ["oui"], "of": "a"}, "than: found 'oui' itself"),
        ({"screening": "oui", "of": "a", "by": "val/return"}, "by: found 'val/return'"),
        ({"screening": "oui", "of": "a", "recall": 1.5}, "recall: found 1.5"),
    ):
        with pytest.raises(ClaimError, match=message):
            registry.build_claim("screening", claim).check()


def test_saving_time_to_a_target_and_early_measures_read_the_records(registry: Registry) -> None:
    plan = made_plan([{"saves": "a", "than": "b", "at_least": 0.3, "to": 0.9}])
    cells = {"t · a": 40, "t · b": 80}
    steps = {t.hash: cells[t.cell] + t.spec.seed["init"] for t in plan.trials}

    def curves(hash: str) -> list[dict[str, object]]:
        at = steps[hash]
        return [{"step": at - 5, "metrics": {"val/accuracy": 0.5}}, {"step": at, "metrics": {"val/accuracy": 0.95}}]

    results = ended(plan, dict.fromkeys(cells, UP))
    (verdict,) = judge(plan, results, registry, curves=curves)
    assert verdict.outcome is S
    assert verdict.parts[0].differences[0] == pytest.approx(0.7 * 80 - 40)
    (verdict,) = judge(plan, results, registry)
    assert (verdict.outcome, "found no learning curves" in verdict.reason) == (U, True)
    cheap = made_plan([{"saves": "a", "than": "b", "at_least": 0.3}])
    seconds = {"t · a": UP, "t · b": 2 * UP}
    assert one(cheap, dict.fromkeys(seconds, UP), registry, time__train_seconds=seconds).outcome is S


@pytest.mark.parametrize("claim", [{"better": "a", "than": "b"}, {"better": "a", "than": "b", "assume": "normal"}])
@pytest.mark.parametrize("seeds", [1, 2, 3, 4])
def test_one_seed_never_decides_and_few_only_under_a_declared_assumption(
    claim: dict[str, str], seeds: int, registry: Registry
) -> None:
    plan = made_plan([claim], seeds=seeds)
    verdict = one(plan, {"t · a": UP[:seeds] * 1e6, "t · b": 0 * UP[:seeds]}, registry)
    normal = "assume" in claim and seeds > 1
    assert verdict.outcome is (S if normal else U)
    assert bool(undecidable(plan, registry)) is not normal


EVERY_KIND: list[dict[str, Any]] = [
    {"better": "a", "than": "b"},
    {"not_worse": "a", "than": "b", "margin": 0.1},
    {"ordered": ["a", "b"]},
    {"wins": "a", "over": ["b"], "at_least": 1},
    {"interaction": "a", "than": "b", "more_on": "t", "than_on": "u"},
    {"contrast": ["a"], "against": ["b"]},
    {"value": "test/accuracy", "of": "a", "above": 0.0},
    {"regret": "a", "below": 0.1},
    {"regret": "a", "than": "b"},
    {"profile": "probe/x", "of": "a", "above": 0.5},
    {"correlated": "probe/x/one", "against": "test/accuracy", "of": "a"},
    {"earlier": "probe/x/one", "than": "val/accuracy", "of": "a"},
    {"separates": "probe/x/one", "axis": "lr", "of": "a", "above": 0.5},
    {"precision": "probe/x/one", "success": 0.5, "above": 0.5, "of": "a"},
    {"screening": "lr", "of": "a"},
    {"saves": "a", "than": "b", "at_least": 0.1, "to": 0.9},
]


def test_one_seed_decides_no_kind_of_claim_at_any_level(registry: Registry) -> None:
    """Sweeping wins, the highest level that a grid may have, each claim alone in its family, with either assumption."""
    assert {next(iter(claim)) for claim in EVERY_KIND} == {item.name for item in registry.items("claim")}
    rates, one_seed = [0.001, 0.1, 1.0, 10.0], np.ones(1)
    for claim, assume in itertools.product(EVERY_KIND, ("symmetric", "normal")):
        axes = dict.fromkeys("ab", rates) if claim.get("of") == "a" else None
        fields = claim | {"assume": assume}
        plan = made_plan([fields], tasks=("t", "u"), seeds=1, axes=axes, level=0.4999)
        cells = {
            trial.cell: (trial.spec.recipe["lr"] + 1) * (100 if " · a" in trial.cell else 0) for trial in plan.trials
        }
        scores = {cell: value * one_seed for cell, value in cells.items()}
        measures = {"probe__x__one": scores, "probe__x__two": {cell: 2 * values for cell, values in scores.items()}}

        def curves(hash: str, plan: Plan = plan, cells: dict[str, float] = cells) -> list[dict[str, object]]:
            (value,) = (cells[trial.cell] for trial in plan.trials if trial.hash == hash)
            return [
                {"step": step, "metrics": {"val/accuracy": value * step, "probe/x/one": value * step}}
                for step in (10, 50, 100)
            ]

        results = ended(plan, scores, train__return_last_tenth=scores, time__train_seconds=scores, **measures)
        (verdict,) = judge(plan, results, registry, curves=curves)
        assert verdict.outcome is U, (fields, verdict.reason)
        assert verdict.parts and not verdict.held, "it was judged"
        assert undecidable(plan, registry), fields


def test_the_plan_flags_what_no_outcome_could_decide(registry: Registry) -> None:
    claims = [{"better": "a", "than": "b", "margin": float(m)} for m in range(4)]
    (reason, *_) = undecidable(made_plan(claims, seeds=6), registry).values()
    assert "6 seeds are too few at 0.05, corrected for 4 claims: 7 would do" in reason
    assert not undecidable(made_plan(claims, seeds=7), registry)
    assert not undecidable(made_plan(claims[:1], seeds=5), registry)
    assert undecidable(made_plan(claims[:1], seeds=5, level=0.01), registry)
    alone = made_plan([{"better": "a", "than": "b", "on": "x"}])
    assert "found no trials" in next(iter(undecidable(alone, registry).values()))


def test_the_plan_counts_the_seeds_that_choose_a_cell_beside_those_that_judge(registry: Registry) -> None:
    """By hand: a claim needs five seeds that judge; of six the first two choose, and so do they of seven."""
    for seeds, enough in ((5, False), (6, False), (7, True)):
        plan = made_plan([{"better": "a", "than": "b"}], seeds=seeds, axes={"a": [0.1, 0.2]})
        assert bool(undecidable(plan, registry)) is not enough
        for reason in undecidable(plan, registry).values():
            spent = f"{seeds} seeds, {seeds // 3} of which choose a cell, are too few at 0.05"
            assert reason == f"{spent}, corrected for 1 claim: 7 would do"
    plan = made_plan([{"better": "a", "than": "b"}], tasks=("t", "u"), seeds=7, axes={"a": [0.1, 0.2]})
    (reason,) = one_sided(plan, registry).values()
    assert reason.endswith("for contradicted: 8 would do")


def test_the_plan_flags_what_could_come_out_one_way_only(registry: Registry) -> None:
    """Five seeds give p = 1/32 at best: enough for "on every one of two tasks", not for "not on every one", twice that."""
    claim = {"better": "a", "than": "b"}
    (reason,) = one_sided(made_plan([claim], tasks=("t", "u"), seeds=5), registry).values()
    assert reason == "5 seeds are too few at 0.05, corrected for 1 claim for contradicted: 6 would do"
    assert not one_sided(made_plan([claim], tasks=("t", "u"), seeds=6), registry)
    assert not one_sided(made_plan([claim], tasks=("t", "u"), seeds=4), registry)


def test_the_interval_takes_screened_seeds_for_anything(registry: Registry) -> None:
    """Half of the means of all subsets have a seed in them that may be anything, and a bound leaves out 51 of 1024."""
    plan = made_plan([{"better": "a", "than": "b"}])
    for screened in (1, 6):
        scores = np.where(np.arange(10) < screened, np.inf, UP)
        (part,) = one(plan, {"t · a": scores, "t · b": 0 * UP}, registry).parts
        assert part.paired is not None and part.paired.finite == 10 - screened
        assert difference(part) == f"{UP[screened:].mean():.3g} […, …] 90.04%"


def test_diverged_rank_worst_screened_are_censored_failed_hold_back(registry: Registry) -> None:
    plan = made_plan([{"better": "a", "than": "b"}])
    zeros = np.zeros(10)

    def with_first(value: float, values: Array) -> Array:
        return np.concatenate([[value], values[1:]])

    for a, b, outcome in (
        (UP, with_first(-np.inf, zeros), S),
        (with_first(-np.inf, UP), zeros, U),
        (with_first(-np.inf, UP), with_first(-np.inf, zeros), S),
        (with_first(np.inf, UP), zeros, U),
        (with_first(np.nan, UP), zeros, U),
        (np.full(10, -np.inf), zeros, C),
        (np.full(10, np.inf), zeros, U),
    ):
        verdict = one(plan, {"t · a": a, "t · b": b}, registry)
        assert verdict.outcome is outcome, (a, b)
    held = one(plan, {"t · a": with_first(np.nan, UP), "t · b": zeros}, registry)
    assert len(held.held) == 1
    assert "held back by 1 trial:" in held.reason and "failed" in held.reason
    results = ended(plan, {"t · a": UP, "t · b": zeros})
    del results[plan.trials[3].hash]
    (verdict,) = judge(plan, results, registry)
    assert "not run yet" in verdict.reason
    worst = one(plan, {"t · a": np.full(10, -np.inf), "t · b": zeros}, registry)
    assert worst.rests_on["worst"] == 10


def test_a_family_is_corrected(registry: Registry) -> None:
    claims = [{"better": "a", "than": "b", "on": f"t{i}"} for i in range(6)]
    plan = made_plan(claims, tasks=[f"t{i}" for i in range(6)], seeds=6)
    scores = {cell: (UP if cell.endswith("a") else 0 * UP)[:6] for cell in {t.cell for t in plan.trials}}
    assert {v.outcome for v in judge(plan, ended(plan, scores), registry)} == {U}
    assert {v.family for v in judge(plan, ended(plan, scores), registry)} == {6}
    (alone,) = judge(made_plan(claims[:1], seeds=6, tasks=["t0"]), ended(plan, scores), registry)
    assert alone.outcome is S


def test_what_a_verdict_rests_on(registry: Registry) -> None:
    plan = made_plan([{"better": "a", "than": "b"}], axes={"a": [0.1, 0.2, 0.3]})
    scores = dict.fromkeys({t.cell for t in plan.trials}, UP)
    verdict = one(plan, scores, registry)
    assert verdict.rests_on["seeds"] == 10
    assert "data" in verdict.rests_on["varied"] and not verdict.rests_on["fixed"]
    assert (verdict.rests_on["cells"], verdict.rests_on["tuning"]) == ({"a": 3, "b": 1}, {})
    assert verdict.parts[0].details["ours"] == {"cell": "t · a · lr=0.1", "chosen from": 3, "chosen on seeds": 3}
    assert (verdict.seeds, len(verdict.parts[0].differences)) == (7, 7)


def test_the_best_of_many_cells_is_not_better_for_having_been_chosen(registry: Registry) -> None:
    rates = [0.1 * i for i in range(1, 9)]
    plan = made_plan([{"better": "a", "than": "b"}], axes={"a": rates})
    rng = np.random.default_rng(5)
    cells = sorted({t.cell for t in plan.trials})
    evidence, wrong, naive, draws = Evidence(plan, {}), 0, 0, 400
    ours = evidence.cells("t", "a")
    for _ in range(draws):
        scores = {cell: rng.normal(0, 1, 10) for cell in cells}
        found = Evidence(plan, ended(plan, scores))
        best = found.best("t", ours, "test/accuracy").scores
        wrong += bool(sign_flip_p((best.low - scores["t · b"])[best.judged])[0] <= 0.05)
        top = max((scores[cell] for cell in ours), key=lambda values: values.mean())
        naive += bool(sign_flip_p(top - scores["t · b"])[0] <= 0.05)
    assert wrong <= stats.binom.ppf(0.99, draws, 0.05)
    assert naive > stats.binom.ppf(0.999, draws, 0.05), "why the seeds that choose do not judge"


def test_at_each_compares_at_every_point_of_the_axes(registry: Registry) -> None:
    rates = [0.1, 0.2]
    plan = made_plan([{"better": "a", "than": "b", "at": "each"}], axes={"a": rates, "b": rates})
    scores = {f"t · {m} · lr={r}": (UP if m == "a" else 0 * UP) * (1 if r == 0.1 else -1) for m in "ab" for r in rates}
    verdict = one(plan, scores, registry)
    assert [part.label for part in verdict.parts] == ["t · lr=0.1", "t · lr=0.2"]
    assert verdict.outcome is C
    narrowed = made_plan([{"better": "a", "than": "b", "where": "lr=0.1"}], axes={"a": rates, "b": rates})
    assert one(narrowed, scores, registry).outcome is S


# Sequential rules.


def test_a_label_means_itself_also_where_it_is_the_name_of_other_entries(registry: Registry) -> None:
    """`methods: [x, x: {beta: 0.5}]`: the first one is named `x`, and so is the method of both."""
    plan = made_plan([{"better": "x", "than": "y"}], methods=("x", "x5", "y"))
    trials = [
        replace(trial, method_label="x(beta=0.5)", spec=replace(trial.spec, methods=[Part("x", {"beta": 0.5})]))
        if trial.method_label == "x5"
        else trial
        for trial in plan.trials
    ]
    plan = replace(plan, trials=trials)
    scores = {"t · x": 0 * UP, "t · x5": 2 * UP, "t · y": UP}
    verdict = one(plan, scores, registry)
    assert (verdict.outcome, verdict.seeds) == (C, 10)
    evidence = Evidence(plan, ended(plan, scores))
    assert evidence.cells("t", "x") == ["t · x"]
    assert evidence.cells("t", "x*") == ["t · x", "t · x5"]
    without = replace(plan, trials=[trial for trial in plan.trials if trial.method_label != "x"])
    assert Evidence(without, {}).cells("t", "x") == ["t · x5"], (
        "a name that is no label means all entries of the method"
    )


def test_a_label_of_a_task_means_itself(registry: Registry) -> None:
    plan = made_plan(tasks=("t", "t2"))
    plan = replace(
        plan, trials=[replace(trial, spec=replace(trial.spec, task="t")) for trial in plan.trials], metrics=plan.metrics
    )
    evidence = Evidence(plan, {})
    assert (evidence.tasks("t"), evidence.tasks("t*")) == (["t"], ["t", "t2"])


def test_at_each_pairs_equal_options_of_two_methods(registry: Registry) -> None:
    plan = made_plan(
        [{"better": "a", "than": "b", "at": "each"}], axes={"a": [1.0, 2.0], "b": [1.0, 2.0]}, methods=("a", "b")
    )
    trials = [replace(trial, axes={"method.beta": trial.axes["recipe.lr"]}) for trial in plan.trials]
    scores = {"t · a · lr=1.0": 0 * UP, "t · b · lr=1.0": UP, "t · a · lr=2.0": 2 * UP, "t · b · lr=2.0": UP}
    verdict = one(replace(plan, trials=trials), scores, registry)
    assert [part.label for part in verdict.parts] == ["t · beta=1.0", "t · beta=2.0"]
    assert verdict.outcome is C, "worse at the one point, so not better at every one"


def test_where_reads_values_as_labels_tell_them(registry: Registry) -> None:
    plan = made_plan(axes={"a": [1.0]})
    trials = [
        replace(trial, axes={"task.hidden": [64, 64], "method.nesterov": True}) if trial.axes else trial
        for trial in plan.trials
    ]
    evidence = Evidence(replace(plan, trials=trials), {})
    for where in ("hidden=64x64", "nesterov=true", "hidden=64x64, nesterov=true", "hidden=*"):
        assert evidence.cells("t", "a", where) == ["t · a · lr=1.0"], where


def test_kinds_over_cells_ask_for_one_trial_of_a_seed(registry: Registry) -> None:
    claim = {"correlated": "probe/x", "against": "test/accuracy", "above": 0.5}
    plan = made_plan([claim], axes={"a": [1.0, 2.0, 3.0]}, methods=("a",), seeds=20)
    trials = [
        replace(trial, spec=replace(trial.spec, seed={"init": seed // 2, "split": seed % 2}))
        for index, trial in enumerate(plan.trials)
        for seed in [index % 20]
    ]
    scores = {f"t · a · lr={rate}": np.full(20, rate) for rate in (1.0, 2.0, 3.0)}
    verdict = one(replace(plan, trials=trials), scores, registry, probe__x=scores)
    assert verdict.outcome is U
    assert "seeds: found several trials with one init" in verdict.reason


@pytest.mark.parametrize(
    "claim",
    [
        {"correlated": "probe/x", "against": "test/accuracy", "above": 0.5},
        {"earlier": "probe/x", "than": "val/accuracy"},
        {"separates": "probe/x", "axis": "lr", "above": 0.8},
        {"precision": "probe/x", "success": 0.9, "recall": 0.8, "above": 0.5},
        {"screening": "lr", "recall": 0.8},
        {"profile": "probe/x", "above": 0.5},
        {"value": "test/accuracy", "above": 0.5, "of": "a"},
    ],
    ids=lambda claim: next(iter(claim)),
)
def test_a_claim_about_no_cell_is_refused_and_no_traceback(claim: dict[str, Any], registry: Registry) -> None:
    """A `where` that matches nothing, and a method that is left out of one of the tasks."""
    for more, without in (({"where": "lr=7"}, ""), ({"of": "a"}, "u")):
        plan = made_plan([claim | more], tasks=("t", "u"), axes={"a": [0.01, 1.0, 100.0]})
        left = [trial for trial in plan.trials if (trial.task_label, trial.method_label) != (without, "a")]
        plan = replace(plan, trials=left)
        (doubt,) = undecidable(plan, registry).values()
        assert "found no trial of " in doubt
        scores = {trial.cell: UP for trial in plan.trials}
        (verdict,) = judge(plan, ended(plan, scores), registry, curves=lambda hash: [])
        assert verdict.outcome is U
        assert "found no trial of " in verdict.reason


def test_a_screened_and_a_diverged_split_of_one_seed_say_nothing(registry: Registry) -> None:
    plan = made_plan([{"value": "test/accuracy", "of": "a", "above": 0.1}], methods=("a",), seeds=20)
    trials = [
        replace(trial, spec=replace(trial.spec, seed={"init": index // 2, "split": index % 2}))
        for index, trial in enumerate(plan.trials)
    ]
    verdict = one(replace(plan, trials=trials), {"t · a": np.tile([np.inf, -np.inf], 10)}, registry)
    assert verdict.outcome is U


def test_rounding_decides_neither_ties_nor_margins(registry: Registry) -> None:
    """Accuracies that differ by exactly .01: in floating point some differences are .010000000000000009."""
    b = np.arange(90, 100) / 100
    scores = {"t · a": b + 0.01, "t · b": b}
    for claim in (
        {"better": "a", "than": "b", "ties": 0.01},
        {"better": "a", "than": "b", "margin": 0.01},
        {"not_worse": "b", "than": "a", "margin": 0.01},
    ):
        verdict = one(made_plan([claim]), scores, registry)
        assert verdict.outcome is U, claim
        paired = verdict.parts[0].paired
        assert paired is not None
        assert paired.ties == 10
    assert describe(np.array([0.3 - 0.2, 0.1, 0.4 - 0.3])).effect_size is None, "what differs by rounding does not vary"


def test_margins_and_points_that_make_no_sense_are_refused(registry: Registry) -> None:
    tasks = {"more_on": "t", "than_on": "u"}
    for kind, fields, message in (
        ("interaction", {"interaction": "a", "than": "b", "margin": -0.5, **tasks}, "margin: found -0.5"),
        ("interaction", {"interaction": "a", "than": "b", "at": "each", **tasks}, "at: found 'each', allowed: best"),
        ("contrast", {"contrast": ["a"], "against": ["b"], "margin": -0.5}, "margin: found -0.5"),
    ):
        with pytest.raises(ClaimError, match=message):
            registry.build_claim(kind, fields).check()
    claim = registry.build_claim("interaction", {"interaction": "a", "than": "b", "margin": 0.5, **tasks})
    assert claim.statement().endswith("is more on t than on u by more than 0.5")


def test_looks_share_the_level() -> None:
    plan = made_plan([], seeds=20, looks=(5, 10, 20))
    assert [look.level for look in looks(plan)] == pytest.approx([0.0125, 0.0125, 0.025])


def test_a_decision_at_a_look_stays_and_the_next_batch_is_for_open_claims_alone(registry: Registry) -> None:
    claims = [{"better": "a", "than": "b"}, {"better": "b", "than": "c"}]
    plan = made_plan(claims, methods=("a", "b", "c"), seeds=20, looks=(8, 14, 20))
    rng = np.random.default_rng(0)
    scores = {"t · a": 5 + rng.normal(0, 1, 20), "t · b": rng.normal(0, 1, 20), "t · c": rng.normal(0, 1, 20)}
    everything = ended(plan, scores)
    nothing = next_batch(plan, {}, registry)
    assert (len(nothing.trials), nothing.look) == (24, "1 of 3")
    results = {hash: everything[hash] for hash in nothing.trials}
    after = next_batch(plan, results, registry)
    assert (len(after.decided), len(after.open), after.look) == (1, 1, "2 of 3")
    more = {t.cell for t in plan.trials if t.hash in after.trials}
    assert (more, len(after.trials)) == ({"t · b", "t · c"}, 12)
    results |= {hash: everything[hash] for hash in after.trials}
    last = next_batch(plan, results, registry)
    results |= {hash: everything[hash] for hash in last.trials}
    verdicts = judge(plan, results, registry)
    assert [v.outcome for v in verdicts] == [S, U]
    assert (verdicts[0].look, verdicts[0].seeds) == ("1 of 3", 8)
    assert next_batch(plan, results, registry).reason == "every look has been taken"


def test_a_sequential_grid_asks_for_the_seeds_that_a_later_look_needs(registry: Registry) -> None:
    plan = made_plan([{"better": "a", "than": "b"}], seeds=8, looks=(8, 16))
    results = ended(plan, {"t · a": np.zeros(8), "t · b": np.zeros(8)})
    batch = next_batch(plan, results, registry)
    assert (batch.trials, "--set seeds=16" in batch.reason) == ([], True)


@pytest.mark.parametrize("declared", [(5, 10, 20), (10, 12, 14, 16, 18, 20)])
@pytest.mark.slow
def test_many_looks_keep_the_level_of_one(declared: tuple[int, ...]) -> None:
    draws = 10_000
    parts = [look.level for look in looks(made_plan([], seeds=20, looks=declared))]
    values = np.random.default_rng(1).normal(0, 1, (draws, 20))
    wrong, careless = np.zeros(draws, dtype=bool), np.zeros(draws, dtype=bool)
    for n, level in zip(declared, parts, strict=True):
        p = np.concatenate([sign_flip_p(part[:, :n])[0] for part in np.array_split(values, 40)])
        wrong |= p <= level
        careless |= p <= 0.05
    assert wrong.sum() <= stats.binom.ppf(0.99, draws, 0.05)
    assert careless.sum() > stats.binom.ppf(0.99, draws, 0.05), "why looks cost something"


NULLS: list[dict[str, Any]] = [
    {"better": "a", "than": "b", "on": "t1"},
    {"ordered": ["b", "a"]},
    {"wins": "a", "over": ["b"], "at_least": 1, "on": "t[12]"},
    {"interaction": "a", "than": "b", "more_on": "t1", "than_on": "t2"},
    {"contrast": ["a"], "against": ["*"], "on": "t2"},
    {"value": "probe/x", "of": "a", "above": 0.0, "on": "t1"},
    {"not_worse": "a", "than": "b", "margin": 0.5, "on": "t3", "assume": "normal"},
]
"""Claims of which none is true, most of them at the edge of being so; one by Student's test, which decides at three seeds too."""


def null_grid(rng: np.random.Generator, n: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Scores and a probe's values of one grid: skewed on two tasks with a failure in ten, Gaussian with a shift on the third."""
    scores = {}
    for task, method in itertools.product(("t1", "t2"), ("a", "b")):
        scores[f"{task} · {method}"] = np.where(rng.random(n) < 0.1, -np.inf, rng.lognormal(0, 1, n))
    scores |= {"t3 · a": rng.normal(-0.5, 1, n), "t3 · b": rng.normal(0, 1, n)}
    return scores, {cell: rng.choice([-1.0, 1.0], n) for cell in scores}


@pytest.mark.parametrize(
    ("n", "declared", "draws"),
    [
        (10, (), 200),
        *(pytest.param(n, (), 10_000, marks=pytest.mark.slow) for n in (3, 5, 10, 20)),
        pytest.param(10, (5, 8, 10), 10_000, marks=pytest.mark.slow),
    ],
)
def test_whole_grids_are_wrong_no_more_often_than_stated(
    n: int, declared: tuple[int, ...], draws: int, registry: Registry
) -> None:
    """Families of claims of several kinds under failures, decided from results as `judge` decides: any "supported" is wrong."""
    plan = made_plan(NULLS, tasks=("t1", "t2", "t3"), seeds=n, looks=declared)
    rng = np.random.default_rng([n, *declared])
    wrong = 0
    for draw in range(draws):
        scores, values = null_grid(rng, n)
        results = ended(plan, scores, probe__x=values)
        found = [stand.outcome for stand in _stands(plan, results, registry, None, None)[0]]
        wrong += S in found
        if draw < 5:
            assert found == [verdict.outcome for verdict in judge(plan, results, registry)]
    print(f"{wrong} of {draws} grids of {n} seeds have a wrong verdict")
    assert wrong <= stats.binom.ppf(0.99, draws, 0.05)


def test_a_planted_difference_is_found_and_a_null_is_not(registry: Registry) -> None:
    plan = made_plan([{"better": "a", "than": "b"}])
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 10)
    assert one(plan, {"t · a": 2 + noise, "t · b": noise + rng.normal(0, 0.5, 10)}, registry).outcome is S
    assert one(plan, {"t · a": noise, "t · b": noise}, registry).outcome is U


def test_a_plugin_adds_a_kind_of_claim(tmp_path: Path) -> None:
    kind = plugin(
        tmp_path,
        '''
        from harness import Claim, register_claim

        @register_claim("steady")
        class Steady(Claim):
            """A method varies less over seeds than a bound."""

            steady: str = ""
            within: float = 1.0

            def methods(self):
                return {"steady": [self.steady]}

            def contrasts(self, evidence):
                from harness.judging.scores import Contrast

                def room(trial):
                    return self.within - abs(evidence.value(trial, "test/accuracy"))

                return [
                    Contrast(cell, evidence.collect(task, cell, room, "accuracy"))
                    for task in evidence.tasks(self.on)
                    for cell in evidence.cells(task, self.steady)
                ]

            def sentence(self):
                return f"{self.steady} stays within {self.within}"
        ''',
    )
    registry = Registry([kind])
    assert registry.item("claim", "steady").summary == "A method varies less over seeds than a bound."
    plan = made_plan([{"steady": "a", "within": 0.5}], registry=registry)
    (verdict,) = judge(plan, ended(plan, {"t · a": UP / 10, "t · b": UP}), registry)
    assert (verdict.outcome, verdict.sentence) == (S, "a stays within 0.5")


def test_a_metric_without_a_direction_is_refused(registry: Registry) -> None:
    plan = made_plan([{"better": "a", "than": "b", "by": "probe/x"}])
    verdict = one(plan, {"t · a": UP, "t · b": UP}, registry, probe__x={"t · a": UP, "t · b": UP})
    assert "direction: found nothing for 'probe/x'" in verdict.reason
    with pytest.raises(ClaimError):
        Evidence(plan, {}).sign("t", "probe/x", "")
