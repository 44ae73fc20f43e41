"""Optimizers in turn: their steps, their schedules, and an exact resume in every phase."""

import math
from typing import Any

import pytest
import torch

from harness.conformance import run_short, short_spec
from harness.identity import Part
from harness.recipe import Recipe
from harness.registry import Registry

TURNS: dict[str, Any] = {"phases": ["method 8", "lbfgs 3", "method 4"], "steps": 15}


def test_each_phase_has_the_schedule_for_itself() -> None:
    recipe = Recipe(steps=30, phases=("adam 10", "lbfgs 5", "sgd 15"), schedule="linear", warmup=2)
    alone = {steps: Recipe(steps=steps, schedule="linear", warmup=2) for steps in (10, 15)}
    expected = [alone[10].rate_factor(step) for step in range(10)] + [1.0] * 5
    expected += [alone[15].rate_factor(step) for step in range(15)]
    assert [recipe.rate_factor(step) for step in range(30)] == expected
    assert [recipe.phase(step) for step in (0, 9, 10, 14, 15, 29)] == ["adam"] * 2 + ["lbfgs"] * 2 + ["sgd"] * 2


@pytest.mark.parametrize("phases", [("adam",), ("adam 0",), ("adam -3",), ("Adam 5",), ("adam 5 6",), ("5 adam",)])
def test_a_phase_is_an_optimizer_and_its_steps(phases: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"phases: found .* allowed: one of method, sgd, adam, adamw, lbfgs"):
        Recipe(phases=phases)


def test_the_phases_take_the_whole_run() -> None:
    with pytest.raises(ValueError, match=r"phases: .*15 steps together, must be the 20 steps"):
        Recipe(steps=20, phases=("adam 10", "lbfgs 5")).resolve()


def test_resume_is_exact_in_and_between_phases(registry: Registry) -> None:
    spec = short_spec(registry, "poisson/pinn", [Part("adamw")], **TURNS)
    whole = run_short(registry, spec)
    for interrupt_at in (5, 8, 9, 11, 13):
        assert whole.same_as(run_short(registry, spec, interrupt_at)), interrupt_at


def test_the_phases_follow_each_other(registry: Registry) -> None:
    """Eight steps of the method's own optimizer end where the same eight steps alone end; then L-BFGS goes on."""
    alone = run_short(registry, short_spec(registry, "poisson/pinn", [Part("adamw")], steps=8, schedule="constant"))
    turns = {"phases": ["method 8", "lbfgs 1"], "steps": 9, "schedule": "constant"}
    both = run_short(registry, short_spec(registry, "poisson/pinn", [Part("adamw")], **turns))
    values = [
        {r["step"]: r["metrics"]["val/loss"] for r in ran.records if "val/loss" in r.get("metrics", {})}
        for ran in (alone, both)
    ]
    assert values[0][8] == values[1][8]
    assert isinstance(both.training.state.optimizer, torch.optim.LBFGS)
    assert values[1][9] < values[1][8]


def test_l_bfgs_minimises_what_torch_minimises(registry: Registry) -> None:
    """On one fixed set of points the phase is torch's own L-BFGS on the objective."""
    spec = short_spec(registry, "poisson/pinn", [], phases=["lbfgs 3"], steps=3, resample=0, precision="float64")
    ran = run_short(registry, spec)
    start = run_short(registry, short_spec(registry, "poisson/pinn", [], steps=1, lr=1e-300, precision="float64"))
    torch.set_default_dtype(torch.float64)
    try:
        workload, model = ran.training.workload, start.training.state.model
        batch = workload.next_batch()
        plain = torch.optim.LBFGS(
            model.parameters(), 1.0, 20, tolerance_grad=1e-9, tolerance_change=1e-12, history_size=100,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> torch.Tensor:
            plain.zero_grad()
            value = workload.objective(model, batch).value
            value.backward()
            return value

        for _ in range(3):
            plain.step(closure)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(ran.weights[name], expected, rtol=1e-6, atol=1e-8)


def test_a_named_optimizer_beside_one_that_a_method_owns_is_refused(registry: Registry) -> None:
    spec = short_spec(registry, "poisson/pinn", [Part("adamw")], phases=["adam 20"])
    with pytest.raises(ValueError, match="found 'adam', but adamw owns the optimizer"):
        run_short(registry, spec)


def test_federated_rounds_have_no_phases(registry: Registry) -> None:
    with pytest.raises(ValueError, match="counted in rounds"):
        short_spec(registry, "digits/federated", [], phases=["adam 3"])


def test_a_supervised_task_has_phases_too(registry: Registry) -> None:
    ran = run_short(registry, short_spec(registry, "digits/mlp", [], phases=["adamw 15", "lbfgs 5"]))
    assert math.isfinite(ran.records[-1]["metrics"]["val/loss"])
