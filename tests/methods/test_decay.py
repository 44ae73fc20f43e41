"""OUIDecay's mapping and timing, AdaDecay's factors, fixed decay: against worked examples, torch, and each other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import run

from harness.activations import observe, oui
from harness.composition import Composition
from harness.conformance import Ran, run_short, same, short_spec
from harness.controls import Control
from harness.identity import Part, TrialSpec
from harness.method import State
from harness.recording.records import TrialRecords
from harness.registry import Registry
from harness.streams import Streams
from harness.training.stepping import build_optimizer, take_step
from harness.training.trial import build_recipe, settings
from methods.ada_decay import decay_factors
from methods.oui_decay import decay_rates


def test_the_worked_example() -> None:
    assert decay_rates([0.2, 0.5, 0.8], 0.05, 0.6666, 5) == pytest.approx([0.03333, 0.141665, 0.25], abs=1e-7)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.floats(1e-6, 1), st.floats(0, 1), st.floats(1, 6))
def test_the_extreme_layers(values: list[float], base: float, s1: float, s2: float) -> None:
    rates = decay_rates(values, base, s1, s2)
    assert rates[values.index(min(values))] == s1 * base or rates[values.index(min(values))] == pytest.approx(s1 * base)
    if max(values) - min(values) > 0.1:
        assert rates[values.index(max(values))] == pytest.approx(s2 * base, rel=1e-6)
    assert [rates[i] for i in sorted(range(len(values)), key=values.__getitem__)] == sorted(rates)


def test_equal_layers_get_the_lowest_rate_not_the_base() -> None:
    assert decay_rates([0.4, 0.4], 0.1, 0.6666, 5) == pytest.approx([0.06666, 0.06666], abs=1e-12)


def actions(ran: Ran) -> list[tuple[int, dict[str, float]]]:
    return [(record["step"], record["values"]) for record in ran.records if record.get("action") == "decay"]


def test_it_acts_at_the_start_and_every_gap(registry: Registry) -> None:
    spec = short_spec(registry, "digits/cnn", [Part("oui_decay", {"gap": 7})], weight_decay=0.1)
    done = actions(run_short(registry, spec))
    assert [step for step, _ in done] == [0, 7, 14]
    assert done[0][1] == {"conv2": 0.1, "linear1": 0.1}
    for _, rates in done[1:]:
        assert sorted(rates.values()) == pytest.approx([0.06666, 0.5], rel=1e-6)


def test_the_rates_are_those_of_the_mean_of_the_last_five_passes(registry: Registry) -> None:
    """The first update is that of a run with fixed decay whose OUI is taken by hand, before each step, on its batch."""
    spec = short_spec(registry, "digits/mlp", [Part("oui_decay", {"gap": 8}), Part("adamw")], weight_decay=0.1, steps=9)
    spec.task_options["hidden"] = [16, 16, 16]
    fixed = replace(spec, methods=[Part("fixed_decay"), Part("adamw")])
    task = registry.build_task(spec.task, spec.task_options)
    recipe, streams = build_recipe(task, spec.recipe), Streams(spec.seed)
    workload = task.workload(recipe, streams, torch.device("cpu"))
    plain = Composition([registry.build_method(part.name, part.options) for part in fixed.methods])
    state = State(workload.model, workload, recipe, streams, recipe.length)
    state.optimizer = build_optimizer(plain, state)
    seen = []
    for _ in range(8):
        position, draws = workload.state_dict(), streams.state_dict()
        batch = workload.next_batch()
        with observe(state.model) as z:
            workload.objective(state.model, batch)
        seen.append([oui(z[name]) for name in ("1.act2", "1.act3")])  # behind the second and third of four layers
        streams.load_state_dict(draws)
        workload.load_state_dict(position)
        take_step(state, plain)
    means = [sum(column[-5:]) / 5 for column in zip(*seen, strict=True)]
    optimizer = run_short(registry, spec).training.state.optimizer
    assert optimizer is not None
    applied = [group["weight_decay"] for group in optimizer.param_groups if "layer" in group]
    assert applied == pytest.approx(decay_rates(means, 0.1, 0.6666, 5), rel=1e-9)


def test_an_update_that_no_step_would_follow_is_not_made(registry: Registry) -> None:
    spec = short_spec(registry, "digits/cnn", [Part("oui_decay", {"gap": 10})], weight_decay=0.1)
    assert [step for step, _ in actions(run_short(registry, spec))] == [0, 10], "of 20 steps"


def test_rates_hold_through_the_phases_of_a_recipe(registry: Registry) -> None:
    spec = short_spec(
        registry,
        "digits/cnn",
        [Part("oui_decay", {"gap": 8})],
        weight_decay=0.1,
        steps=20,
        phases=["adamw 10", "sgd 10"],
    )
    ran = run_short(registry, spec)
    optimizer = ran.training.state.optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    applied = {group["layer"]: group["weight_decay"] for group in optimizer.param_groups if "layer" in group}
    assert applied == actions(ran)[-1][1] != dict.fromkeys(applied, 0.1)
    assert ran.same_as(run_short(registry, spec, 9)) and ran.same_as(run_short(registry, spec, 13))


class Attends(torch.nn.Module):
    """Its attention uses the output layer's weights without calling the layer; another layer's weight is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 8)
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.called = torch.nn.Linear(8, 8)
        self.computed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, 8))
        self.last = torch.nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x.reshape(len(x), 8, 8))
        x = self.called(self.attention(x, x, x)[0])
        return self.last(self.computed(x).mean(dim=1))


def test_layers_that_are_not_called_or_whose_weight_is_computed_keep_their_decay(registry: Registry) -> None:
    spec = short_spec(registry, "digits/mlp", [Part("oui_decay", {"gap": 4}), Part("adamw")], weight_decay=0.1)
    task = registry.build_task(spec.task, {})
    recipe, streams = build_recipe(task, spec.recipe), Streams(0)
    workload = task.workload(recipe, streams, torch.device("cpu"))
    workload.model = Attends()  # type: ignore[attr-defined]
    method = Composition([registry.build_method(part.name, part.options) for part in spec.methods])
    state = State(method.adapt(workload.model, workload), workload, recipe, streams, recipe.length)
    state.optimizer = build_optimizer(method, state)
    method.start(state)
    for _ in range(5):
        take_step(state, method)
    (_, _, first), (step, _, second) = state.actions
    assert (step, set(first), set(second)) == (4, {"attention.out_proj", "called"}, {"called"})
    applied = {group["layer"]: group["weight_decay"] for group in state.optimizer.param_groups if "layer" in group}
    assert applied == {"attention.out_proj": 0.1, "called": second["called"]}


def test_the_matched_mean_is_a_final_metric(tmp_path: Path, registry: Registry) -> None:
    spec = short_spec(registry, "digits/cnn", [Part("oui_decay", {"gap": 5})], weight_decay=0.1)
    result = run(registry, spec, tmp_path)
    done = [r["values"] for r in TrialRecords(tmp_path, spec.hash).records() if r.get("action") == "decay"]
    mean = sum(sum(values.values()) / len(values) for values in done) / len(done)
    assert result.metrics["actions/decay"] == pytest.approx(mean, rel=1e-12)
    assert result.metrics["actions/decay"] > 0.1
    fixed = short_spec(registry, "digits/cnn", [Part("fixed_decay", {"rate": mean})], weight_decay=0.1)
    assert run(registry, fixed, tmp_path).error == ""


def initial_weights(registry: Registry, spec: TrialSpec) -> dict[str, torch.Tensor]:
    task = registry.build_task(spec.task, {})
    with settings(spec):
        workload = task.workload(build_recipe(task, spec.recipe), Streams(spec.seed), torch.device("cpu"))
    return workload.model.state_dict()


@pytest.mark.parametrize("task", ["digits/mlp", "digits/cnn"])
def test_matrices_alone_decay(registry: Registry, task: str) -> None:
    """One step of AdamW with decay d at rate η takes ηd of every weight beside what it takes without, and nothing of a bias."""
    with_decay, without = (
        short_spec(
            registry, task, [Part("fixed_decay", {"rate": rate}), Part("adamw")], steps=1, lr=0.1, precision="float64"
        )
        for rate in (0.5, 0.0)
    )
    decayed, plain = run_short(registry, with_decay).weights, run_short(registry, without).weights
    for name, weight in initial_weights(registry, with_decay).items():
        lost = 0.05 * weight if weight.ndim >= 2 else torch.zeros_like(weight)
        torch.testing.assert_close(plain[name] - decayed[name], lost, rtol=1e-9, atol=1e-12)


def test_factors() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(40, 30, dtype=torch.float64)
    factors = decay_factors(gradient)
    size = gradient.abs()
    by_hand = 2 / (1 + torch.exp(-4 * (size - size.mean()) / ((size - size.mean()).square().mean().sqrt())))
    torch.testing.assert_close(factors, by_hand, rtol=1e-12, atol=0)
    assert float(factors.min()) > 0
    assert float(factors.max()) < 2
    assert torch.equal(decay_factors(gradient, alpha=0.0), torch.ones_like(gradient))
    torch.testing.assert_close(decay_factors(3 * gradient), factors)
    assert torch.equal(decay_factors(torch.full((3, 3), 0.25)), torch.ones(3, 3)), "1 where every gradient is the mean"
    assert torch.equal(decay_factors(torch.zeros(3, 3)), torch.ones(3, 3))


@pytest.mark.parametrize(
    ("options", "optimizer"),
    [({"clip": "after"}, "adam"), ({"clip": "after"}, "sgd"), ({}, "adam"), ({"mode": "decoupled"}, "adamw")],
)
def test_at_alpha_zero_it_is_plain_decay(registry: Registry, options: dict[str, str], optimizer: str) -> None:
    """torch's own coupled decay comes after clipping; without clipping before and after are one."""
    changes = {"weight_decay": 0.1, "precision": "float64", "clip": 0.1 if options.get("clip") == "after" else None}
    ada = short_spec(registry, "digits/mlp", [Part("ada_decay", {"alpha": 0.0, **options}), Part(optimizer)], **changes)
    fixed = short_spec(registry, "digits/mlp", [Part("fixed_decay"), Part(optimizer)], **changes)
    ours, theirs = run_short(registry, ada).weights, run_short(registry, fixed).weights
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-7, atol=1e-10)


def test_the_variants_of_ada_decay_differ(registry: Registry) -> None:
    changes = {"weight_decay": 0.1, "clip": 0.05}
    variants = [{}, {"clip": "after"}, {"mode": "decoupled"}]
    ran = [
        run_short(registry, short_spec(registry, "digits/mlp", [Part("ada_decay", o), Part("adam")], **changes)).weights
        for o in variants
    ]
    assert not any(same(ran[a], ran[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_a_control_can_take_the_place_of_the_values(registry: Registry) -> None:
    """Whatever stands in between decides what is applied; values that come back unchanged change nothing."""

    class Constant(Control):
        def replace(self, step: int, name: str, values: dict[str, float]) -> dict[str, float]:
            return dict.fromkeys(values, 0.25)

    class Same(Control):
        def replace(self, step: int, name: str, values: dict[str, float]) -> dict[str, float]:
            return values

    for method, options in (("oui_decay", {"gap": 5}), ("ada_decay", {})):
        spec = short_spec(registry, "digits/cnn", [Part(method, options)], weight_decay=0.1)
        plain = run_short(registry, spec)

        def build(control: type[Control], method: str = method, options: dict[str, object] = options) -> Registry:
            class Wrapped(Registry):
                def build_method(self, name: str, given: dict[str, object]) -> Control:
                    return control(name, super().build_method(method, options))

            return Wrapped()

        assert run_short(build(Same), spec).same_as(plain)
        replaced = run_short(build(Constant), spec)
        assert {value for _, values in actions(replaced) for value in values.values()} == {0.25}
        assert not same(replaced.weights, plain.weights)
