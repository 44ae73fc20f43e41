"""Profiles over layers, and a fixed choice that development tasks make."""

import numpy as np
import pytest
from judging.made import ended, made_plan

from harness.judging.verdicts import Outcome, judge
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
