"""Profiles over layers, and a fixed choice that development tasks make."""

from dataclasses import replace

import numpy as np
import pytest
from judging.made import Array, ended, made_plan

from harness.judging.lookahead import next_batch
from harness.judging.verdicts import Outcome, Verdict, judge
from harness.recording.records import Status
from harness.registry import Registry

FLAT = np.ones(10)


@pytest.mark.parametrize(("last", "outcome"), [(3.0, Outcome.SUPPORTED), (0.5, Outcome.CONTRADICTED)])
def test_profiles_agree_if_layers_are_in_one_order(last: float, outcome: Outcome, registry: Registry) -> None:
    plan = made_plan([{"profile": "probe/x", "of": "*", "above": 0.0}])
    results = ended(
        plan,
        {"t · a": FLAT, "t · b": FLAT},
        probe__x__1={"t · a": FLAT, "t · b": FLAT},
        probe__x__2={"t · a": 2 * FLAT, "t · b": 1.5 * FLAT if last > 1 else 0.7 * FLAT},
        probe__x__3={"t · a": 3 * FLAT, "t · b": last * FLAT},
    )
    (verdict,) = judge(plan, results, registry)
    assert verdict.outcome is outcome
    expected = 1.0 if last > 1 else -1.0
    assert verdict.parts[0].differences == pytest.approx([expected] * 10)


@pytest.mark.parametrize(("end", "outcome"), [(-np.inf, Outcome.CONTRADICTED), (np.inf, Outcome.UNDECIDED)])
def test_a_run_without_a_profile_ranks_worst_if_it_diverged_and_may_be_anything_if_it_was_screened(
    end: float, outcome: Outcome, registry: Registry
) -> None:
    """The others agree; nine of ten seeds fail: one failure outweighs all that is finite."""
    plan = made_plan([{"profile": "probe/x", "of": "*", "above": 0.0}])
    results = ended(plan, {"t · a": FLAT, "t · b": np.where(np.arange(10) < 9, end, 1.0)})
    for result in results.values():
        if result.status is Status.FINISHED:
            result.metrics.update({f"probe/x/{layer}": float(layer) for layer in range(3)})
    (verdict,) = judge(plan, results, registry)
    assert (verdict.outcome, verdict.held) == (outcome, [])
    assert verdict.parts[0].differences == [None] * 9 + [1.0]


def test_the_fixed_choice_comes_from_the_tasks_that_choose(registry: Registry) -> None:
    """x1 is best on the development task and worst on the held-out one: x1 is what the rule is compared with."""
    claim = {"regret": "rule", "than": "x*", "chosen_on": "dev", "on": "held", "among": ["*"]}
    plan = made_plan([claim], tasks=("dev", "held"), methods=("rule", "x1", "x2"))
    wobble = np.linspace(0, 0.01, 10)
    means = {
        "dev · rule": 0.8,
        "dev · x1": 0.9,
        "dev · x2": 0.7,
        "held · rule": 0.8,
        "held · x1": 0.5,
        "held · x2": 0.9,
    }
    (verdict,) = judge(plan, ended(plan, {cell: mean + wobble for cell, mean in means.items()}), registry)
    assert verdict.parts[0].details["than"] == "x1"
    assert verdict.outcome is Outcome.SUPPORTED


def test_the_fixed_choice_rests_on_the_trials_that_choose(registry: Registry) -> None:
    """x2 has the most loss where it ran; that it failed on most seeds must not make it the best."""
    claim = {"regret": "rule", "than": "x*", "chosen_on": "dev", "on": "held", "relative": False, "by": "test/loss"}
    plan = made_plan([claim], tasks=("dev", "held"), methods=("rule", "x1", "x2"))
    plan = replace(plan, metrics={task: ["val/loss", "min"] for task in plan.tasks})
    wobble = np.linspace(0, 0.01, 10)
    means = [("dev", (0.5, 0.4, 0.9)), ("held", (0.5, 0.4, 0.8))]
    losses = {f"{task} · {m}": of + wobble for task, row in means for m, of in zip(plan.methods, row, strict=True)}

    def judged(losses: dict[str, Array]) -> Verdict:
        (verdict,) = judge(plan, ended(plan, losses, "test/loss", val__loss=losses), registry)
        assert verdict.parts[0].details["than"] == "x1"
        assert (verdict.rests_on["tasks"], verdict.rests_on["trials"]) == (["dev", "held"], 60)
        return verdict

    assert (judged(losses).outcome, judged(losses).held) == (Outcome.CONTRADICTED, [])
    failed = losses | {"dev · x2": np.where(np.arange(10) < 4, losses["dev · x2"], np.nan)}
    assert (judged(failed).outcome, len(judged(failed).held)) == (Outcome.UNDECIDED, 6)
    assert len(next_batch(plan, {}, registry).trials) == 60
