"""Two seeds of digits/mlp as one computation, through the contract."""

import pytest
import torch

from harness.composition import Composition
from harness.conformance import short_spec
from harness.identity import Part, TrialSpec
from harness.method import Method, State
from harness.registry import Registry
from harness.streams import Streams
from harness.training import stepping
from harness.training.stacking import Stack
from harness.training.trial import build_recipe, settings


def build(registry: Registry, spec: TrialSpec, seed: int, *methods: Method) -> tuple[State, Composition]:
    task = registry.build_task(spec.task, {})
    recipe = build_recipe(task, spec.recipe)
    streams = Streams(seed)
    workload = task.workload(recipe, streams, torch.device("cpu"))
    return State(workload.model, workload, recipe, streams, recipe.length), Composition(methods)


def adamw(registry: Registry) -> Method:
    return registry.build_method("adamw", {})


def stacked(registry: Registry, spec: TrialSpec, seeds: list[int]) -> list[dict[str, torch.Tensor]]:
    pairs = [build(registry, spec, seed, adamw(registry)) for seed in seeds]
    stack = Stack([state for state, _ in pairs], [method for _, method in pairs])
    for _ in range(20):
        stack.take_step()
    return [state.model.state_dict() for state, _ in pairs]


@pytest.fixture
def spec(registry: Registry) -> TrialSpec:
    return short_spec(registry, "digits/mlp", [Part("adamw")], precision="float64")


def test_a_stack_follows_the_plain_path(registry: Registry, spec: TrialSpec) -> None:
    with settings(spec):
        weights = stacked(registry, spec, [0, 1])
        for seed in (0, 1):
            state, method = build(registry, spec, seed, adamw(registry))
            state.optimizer = stepping.build_optimizer(method, state)
            for _ in range(20):
                stepping.take_step(state, method)
            for name, expected in state.model.state_dict().items():
                torch.testing.assert_close(weights[seed][name], expected, rtol=1e-9, atol=1e-11)


def test_a_seed_has_the_same_bits_at_every_width(registry: Registry, spec: TrialSpec) -> None:
    with settings(spec):
        (alone,) = stacked(registry, spec, [1])
        _, among = stacked(registry, spec, [0, 1])
    assert all(torch.equal(alone[name], among[name]) for name in alone)


def test_hooks_see_one_seed(registry: Registry, spec: TrialSpec) -> None:
    class Freeze(Method):
        stackable = True

        def before_step(self, state: State) -> None:
            for parameter in state.model.parameters():
                assert parameter.grad is not None
                parameter.grad.zero_()

    with settings(spec):
        sgd = registry.build_method("sgd", {})
        free, frozen = build(registry, spec, 0, sgd), build(registry, spec, 1, sgd, Freeze())
        before = {name: value.clone() for name, value in frozen[0].model.state_dict().items()}
        spec_weight_decay = free[0].recipe.weight_decay
        stack = Stack([free[0], frozen[0]], [free[1], frozen[1]])
        for group in stack.optimizer.param_groups:
            group["weight_decay"] = 0.0
        stack.take_step()
    assert spec_weight_decay > 0
    assert all(torch.equal(before[name], value) for name, value in frozen[0].model.state_dict().items())
    assert not all(torch.equal(before[name], value) for name, value in free[0].model.state_dict().items())


def test_a_method_must_opt_in(registry: Registry, spec: TrialSpec) -> None:
    class Plain(Method):
        pass

    with settings(spec):
        pair = build(registry, spec, 0, Plain())
        with pytest.raises(ValueError, match="Plain cannot run stacked"):
            Stack([pair[0]], [pair[1]])
