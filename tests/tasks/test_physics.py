"""The PINN: derivatives against closed forms and other routes, the equation, the points, and trials of it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support import run
from torch import Tensor, nn

from harness.composition import Composition
from harness.conformance import run_short, short_spec
from harness.identity import Part, TrialSpec
from harness.method import State
from harness.recording.records import Status
from harness.registry import Registry
from harness.streams import Streams
from harness.training import loop
from harness.training.ranks import DistributedRanks
from harness.training.stacking import Stack
from harness.training.trial import build_recipe, settings
from tasks import models
from tasks.derivatives import Jet, forward_mode, jet, taylor_mode
from tasks.equations import Poisson
from tasks.physics import PhysicsInformed, PhysicsRecipe, PoissonPINN, relative_l2

CPU = torch.device("cpu")


@pytest.fixture
def points() -> Tensor:
    return 2 * torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1


def network(activation: str, outputs: int = 1, depth: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    return models.mlp(2, [7] * depth, outputs, activation).double()


def workload(seed: int = 0, **recipe: float) -> PhysicsInformed:
    task = PoissonPINN()
    built = task.workload(build_recipe(task, recipe), Streams(seed), CPU)
    assert isinstance(built, PhysicsInformed)
    return built


def close(found: Jet, expected: Jet) -> None:
    for name in ("value", "gradient", "laplacian"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-11, atol=1e-12)


def reverse_mode(model: nn.Module, points: Tensor, space: int) -> Jet:
    """The jet by one backward pass per derivative, as PINN codes usually do it."""
    points = points.clone().requires_grad_(True)
    value = model(points)
    gradients, laplacians = [], []
    for output in value.unbind(dim=1):
        (first,) = torch.autograd.grad(output.sum(), points, create_graph=True)
        seconds = []
        for i in range(space):
            (second,) = torch.autograd.grad(first[:, i].sum(), points, create_graph=True)
            seconds.append(second[:, i])
        gradients.append(first.T)
        laplacians.append(torch.stack(seconds).sum(dim=0))
    return Jet(value, torch.stack(gradients, dim=-1), torch.stack(laplacians, dim=-1))


# --- derivatives


class Known(nn.Module):
    """exp(x) sin(2y), x²y³."""

    def forward(self, points: Tensor) -> Tensor:
        x, y = points.T
        return torch.stack([x.exp() * (2 * y).sin(), x**2 * y**3], dim=1)


def test_derivatives_of_a_known_function(points: Tensor) -> None:
    x, y = points.T
    wave = x.exp() * (2 * y).sin()
    gradient = torch.stack(
        [torch.stack([wave, 2 * x * y**3], dim=1), torch.stack([2 * x.exp() * (2 * y).cos(), 3 * x**2 * y**2], dim=1)]
    )
    laplacian = torch.stack([-3 * wave, 2 * y**3 + 6 * x**2 * y], dim=1)
    close(jet(Known(), points, space=2), Jet(Known()(points), gradient, laplacian))


def test_derivatives_of_one_tanh_layer(points: Tensor) -> None:
    model = network("tanh", depth=1)
    first, last = model.linear1, model.linear2
    with torch.no_grad():
        value = torch.tanh(points @ first.weight.T + first.bias)
        slope, curvature = 1 - value**2, -2 * value * (1 - value**2)
        gradient = torch.stack([(slope * first.weight[:, i]) @ last.weight.T for i in range(2)])
        laplacian = (curvature * (first.weight**2).sum(dim=1)) @ last.weight.T
        close(jet(model, points, space=2), Jet(value @ last.weight.T + last.bias, gradient, laplacian))


@pytest.mark.parametrize("space", [1, 2])
@pytest.mark.parametrize("activation", models.ACTIVATIONS)
def test_all_routes_agree(activation: str, space: int, points: Tensor) -> None:
    model = network(activation, outputs=2)
    routes = [taylor_mode(list(model), points, space), forward_mode(model, points, space)]
    expected = reverse_mode(model, points, space)

    def slopes(u: Jet) -> tuple[Tensor, ...]:
        mixture = u.value.square().sum() + u.laplacian.square().sum() + u.gradient.sum()
        return torch.autograd.grad(mixture, list(model.parameters()))

    wanted = slopes(expected)
    for found in routes:
        close(found, expected)
        for one, other in zip(slopes(found), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_network_that_is_no_stack_takes_the_general_route(points: Tensor) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = nn.Linear(2, 2), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x + torch.tanh(self.inner(x)))

    model = Residual().double()
    close(jet(model, points, 2), reverse_mode(model, points, 2))


def test_hooks_see_each_layer_once_with_its_plain_input(points: Tensor) -> None:
    model, seen = network("silu"), []
    for module in model:
        module.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    model(points)
    plain = list(seen)
    seen.clear()
    jet(model, points, 2)
    assert len(seen) == len(model)
    assert all(map(torch.equal, seen, plain))


# --- the equation


class Solution(nn.Module):
    """Poisson's reference as a model."""

    def forward(self, points: Tensor) -> Tensor:
        return Poisson().reference(points)


def test_the_exact_solution_leaves_nothing(points: Tensor) -> None:
    residual = Poisson().residual(points, jet(Solution(), points, space=2))
    assert residual.shape == (50, 1)
    assert residual.abs().max() < 1e-12
    on_faces = torch.tensor([[-1, 0.3], [1, -0.2], [0.7, -1], [0.1, 1]], dtype=torch.float64)
    assert Poisson().misfit(on_faces, Solution()(on_faces)).abs().max() < 1e-15


def test_another_function_leaves_its_residual(points: Tensor) -> None:
    class Bowl(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return points.square().sum(dim=1, keepdim=True)

    x, y = points.numpy().T
    expected = -4 - 2 * np.pi**2 * np.sin(np.pi * x) * np.sin(np.pi * y)
    residual = Poisson().residual(points, jet(Bowl(), points, space=2))
    np.testing.assert_allclose(residual.flatten().numpy(), expected, rtol=1e-12)


def test_relative_l2_is_the_norm_of_the_error_over_that_of_the_solution() -> None:
    generator = np.random.default_rng(0)
    found, reference = generator.normal(size=(2, 30, 1))
    expected = np.linalg.norm(found - reference) / np.linalg.norm(reference)
    assert relative_l2(torch.tensor(found), torch.tensor(reference)) == pytest.approx(expected, rel=1e-12)
    assert relative_l2(torch.zeros(5), torch.ones(5)) == 1.0


# --- the workload


def test_points_lie_where_they_must() -> None:
    batch = workload(batch=100, boundary=40).next_batch()
    assert batch["interior"].shape == (100, 2) and batch["boundary"].shape == (40, 2)
    assert batch["interior"].abs().max() < 1
    for coordinate, value in Poisson.faces:
        assert int((batch["boundary"][:, coordinate] == value).sum()) == 10
    inside = batch["interior"].double()
    assert inside.mean(dim=0).abs().max() < 3 / math.sqrt(3 * 100)  # three standard errors of a uniform mean


def test_held_out_points_are_fixed_and_apart() -> None:
    first, second = workload(batch=100), workload(batch=7)
    first.next_batch()
    for split in ("val", "test"):
        with torch.no_grad():
            assert first.evaluate(first.model, split) == second.evaluate(second.model, split)
    sets = [first._held_out["val"]["interior"], first._held_out["test"]["interior"], first.probe_inputs]
    sets.append(first.next_batch()["interior"])
    rows = [{tuple(point) for point in points.tolist()} for points in sets]
    assert len(set.union(*rows)) == sum(map(len, rows)) == 4096 + 4096 + 256 + 100


def test_the_objective_is_its_formula() -> None:
    built = workload(residual_weight=0.5, boundary_weight=7.0)
    batch = built.next_batch()
    objective = built.objective(built.model, batch)
    residual, misfit = objective.predictions["residual"], objective.predictions["boundary"]
    expected = 0.5 * (residual**2).mean() + 7 * (misfit**2).mean()
    assert objective.value.item() == pytest.approx(expected.item(), rel=1e-6)
    slopes = torch.autograd.grad(objective.value, [residual, misfit])
    torch.testing.assert_close(slopes[0], 0.5 * 2 * residual / len(residual))
    torch.testing.assert_close(slopes[1], 2 * 7 * misfit / len(misfit))
    assert objective.size == 128 + 64


def test_ranks_share_both_kinds_of_points() -> None:
    ranks = DistributedRanks.__new__(DistributedRanks)
    ranks.world = 2
    batch = workload(batch=6, boundary=4).next_batch()
    parts = []
    for ranks.index in (0, 1):
        parts.append(ranks.shard(batch))
    for name, tensor in batch.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), tensor)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PoissonPINN(depth=0), "depth: found 0, must be positive"),
        (lambda: PoissonPINN(width=-3), "width: found -3, must be positive"),
        (lambda: PhysicsRecipe(boundary=0), "boundary: found 0, must be positive"),
        (lambda: PhysicsRecipe(boundary_weight=-1.0), "boundary_weight: found -1.0, must be positive"),
        (lambda: PhysicsRecipe(residual_weight=0.0), "residual_weight: found 0.0, must be positive"),
        (lambda: PhysicsRecipe(batch=0), "batch: found 0, must be positive"),
    ],
)
def test_bad_options_say_what_is_allowed(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


# --- trials


def test_the_default_trial_solves_the_equation(registry: Registry, results: Path) -> None:
    task = PoissonPINN()
    recipe = vars(build_recipe(task, {}))
    result = run(registry, TrialSpec("poisson/pinn", {}, 1, [Part("adamw")], recipe, {"init": 0}), results)
    assert result.status == Status.FINISHED
    assert result.metrics["test/relative_l2"] <= 0.02


def test_float64_is_float64_throughout(registry: Registry) -> None:
    runs = {
        precision: run_short(registry, short_spec(registry, "poisson/pinn", [Part("sgd")], precision=precision))
        for precision in ("float32", "float64")
    }
    for precision, ran in runs.items():
        dtype = getattr(torch, precision)
        built = ran.training.workload
        assert isinstance(built, PhysicsInformed)
        assert {tensor.dtype for tensor in ran.weights.values()} == {dtype}
        with settings(short_spec(registry, "poisson/pinn", [], precision=precision)):
            assert built.next_batch()["boundary"].dtype == built.probe_inputs.dtype == dtype
        assert built.objective(built.model, built._held_out["val"]).value.dtype == dtype
    last = [ran.records[-1]["metrics"]["val/relative_l2"] for ran in runs.values()]
    assert all(0 < value < 2 for value in last)


def test_resume_is_exact(registry: Registry) -> None:
    spec = short_spec(registry, "poisson/pinn", [Part("adamw")])
    assert run_short(registry, spec).same_as(run_short(registry, spec, interrupt_at=11))


def test_probing_leaves_the_trajectory_alone(registry: Registry) -> None:
    plain = run_short(registry, short_spec(registry, "poisson/pinn", [Part("adamw")]))
    probed = run_short(registry, short_spec(registry, "poisson/pinn", [Part("adamw")], [Part("oui", {"every": 1})]))
    assert all(torch.equal(plain.weights[name], probed.weights[name]) for name in plain.weights)
    measured = probed.records[-1]["metrics"]
    assert {"probe/oui/act1", "probe/oui/act2", "probe/oui/act3", "probe/oui/mean"} <= measured.keys()


def test_stacked_seeds_follow_the_plain_path(registry: Registry) -> None:
    spec = short_spec(registry, "poisson/pinn", [Part("adamw")], precision="float64")
    task = registry.build_task(spec.task, {})

    def build(seed: int) -> tuple[State, Composition]:
        recipe, streams = build_recipe(task, spec.recipe), Streams(seed)
        built = task.workload(recipe, streams, CPU)
        return State(built.model, built, recipe, streams, recipe.length), Composition(
            [registry.build_method("adamw", {})]
        )

    with settings(spec):
        pairs = [build(seed) for seed in (0, 1)]
        stack = Stack([state for state, _ in pairs], [method for _, method in pairs])
        for _ in range(10):
            stack.take_step()
        for seed in (0, 1):
            state, method = build(seed)
            state.optimizer = loop.build_optimizer(method, state)
            for _ in range(10):
                loop.take_step(state, method)
            for name, expected in state.model.state_dict().items():
                torch.testing.assert_close(pairs[seed][0].model.state_dict()[name], expected, rtol=1e-8, atol=1e-10)
