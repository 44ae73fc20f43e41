"""StableGrad and its relatives: the acceptance checks of its specification, and second implementations."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import run
from torch import Tensor, nn

from harness.activations import GATES
from harness.composition import Composition
from harness.conformance import run_short, short_spec
from harness.identity import Part, Requirement, TrialSpec
from harness.method import Method, Ranks, State
from harness.recording.records import ACTIONS, Status, TrialRecords
from harness.registry import Registry
from harness.streams import Streams
from harness.training import stepping
from harness.training.trial import build_recipe
from methods.gradient_scaling import Lamb, Lars, unit_norms
from methods.stable_grad import StableGrad, _sums_of_gradients, layers_of, population_std, rescale_

SCALES = [1.0, 1e-3, 1e-9, 1e6, 1e-30]


def gradients(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(20, 2), (20, 20), (1, 20), (8, 3, 3, 3), (5, 7)]
    return [
        (scale * (torch.randn(shape, generator=generator, dtype=torch.float64) + 0.3)).to(dtype)
        for scale, shape in zip(SCALES, shapes, strict=True)
    ]


def trial(registry: Registry, *methods: Method, task: str = "poisson/pinn", **recipe: object) -> State:
    """A state whose step 0 is about to be taken."""
    built = registry.build_task(task, {})
    resolved = build_recipe(built, recipe)
    streams = Streams(0)
    workload = built.workload(resolved, streams, torch.device("cpu"))
    composition = Composition(methods)
    model = composition.adapt(workload.model, workload)
    state = State(model, workload, resolved, streams, resolved.length)
    state.optimizer = stepping.build_optimizer(composition, state)
    return state


class Recorded(Method):
    """Keeps the gradients that reach it, and what the forward pass gave."""

    def before_backward(self, state: State) -> None:
        self.objective = state.objectives[-1]

    def after_backward(self, state: State) -> None:
        self.gradients = {name: p.grad.clone() for name, p in state.model.named_parameters() if p.grad is not None}


def step_with(registry: Registry, method: Method, **options: object) -> tuple[Recorded, Recorded]:
    """The gradients before and after a method in one step."""
    before, after = Recorded(), Recorded()
    state = trial(registry, before, method, after, **options)
    stepping.take_step(state, Composition([before, method, after]))
    return before, after


# --- the function


@pytest.mark.parametrize("sigma", [1.0, 3.7e-5])
def test_every_layer_gets_the_reference_deviation_and_keeps_its_direction(sigma: float) -> None:
    before = gradients()
    after = [g.clone() for g in before]
    rescale_(after, sigma)
    for old, new in zip(before, after, strict=True):
        assert new.std(correction=0).item() == pytest.approx(sigma, rel=1e-12)
        cosine = (old * new).sum() / (old.norm() * new.norm())
        assert cosine.item() == pytest.approx(1.0, abs=1e-12)


def test_float32_squares_do_not_underflow() -> None:
    after = gradients(torch.float32)
    assert float(after[-1].square().sum()) == 0.0
    rescale_(after, 1.0)
    for gradient in after:
        assert gradient.double().std(correction=0).item() == pytest.approx(1.0, rel=1e-6)


def test_it_is_homogeneous_of_degree_one() -> None:
    first, second = gradients(), [3.7 * g for g in gradients()]
    rescale_(first, 0.2)
    rescale_(second, 3.7 * 0.2)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(3.7 * one, other, rtol=1e-12, atol=0)


def test_a_factor_of_a_layer_changes_nothing() -> None:
    first, second = gradients(), [g * 10.0**k for k, g in enumerate(gradients(), start=-3)]
    rescale_(first, 0.2)
    rescale_(second, 0.2)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_constant_and_broken_gradients_are_left_alone(dtype: torch.dtype) -> None:
    zero, ones = torch.zeros(3, 4, dtype=dtype), torch.full((2, 2), 1.0, dtype=dtype)
    broken = torch.tensor([[math.nan, 1.0]], dtype=dtype)
    factors = rescale_([zero, ones, broken], 2.0)
    assert factors.tolist() == [1.0, 1.0, 1.0]
    assert not zero.any() and bool((ones == 1).all()) and broken[0, 1] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_entries_are_left_alone_whatever_they_are(dtype: torch.dtype) -> None:
    """Sums of 7 times .1 are rounded: what is left of the variance is no scale."""
    for size in (3, 7, 10, 49, 100, 1000, 12345):
        constants = [torch.full((size,), value, dtype=dtype) for value in (0.1, -0.3, 1e-6, 1 / 3, 7e5)]
        before = [constant.clone() for constant in constants]
        assert rescale_(constants, 2.0).tolist() == [1.0] * 5, size
        assert all(torch.equal(one, other) for one, other in zip(before, constants, strict=True))


def test_a_small_spread_around_a_large_mean_counts() -> None:
    entries = 1 + 1e-5 * torch.tensor([1.0, -1.0]).repeat(500)
    assert population_std([entries]).item() == pytest.approx(entries.double().numpy().std(), rel=1e-3)


def test_population_std_is_numpys() -> None:
    expected = [g.numpy().std() for g in gradients()]
    assert population_std(gradients()).tolist() == pytest.approx(expected, rel=1e-12)


# --- the method


def test_forward_pass_and_loss_have_the_same_bits(registry: Registry) -> None:
    plain, _ = step_with(registry, Method())
    changed, _ = step_with(registry, registry.build_method("stable_grad", {}))
    assert torch.equal(plain.objective.value, changed.objective.value)
    for name, prediction in plain.objective.predictions.items():
        assert torch.equal(prediction, changed.objective.predictions[name])
    assert all(torch.equal(g, changed.gradients[name]) for name, g in plain.gradients.items())


def test_the_default_reference_is_the_deviation_at_residual_and_conditions(registry: Registry) -> None:
    before, after = step_with(registry, registry.build_method("stable_grad", {}))
    residual, boundary = before.objective.predictions.values()
    by_hand = torch.cat([0.01 * 2 * residual / len(residual), 3 * 2 * boundary / len(boundary)])
    sigma = by_hand.detach().double().std(correction=0).item()
    for name, gradient in after.gradients.items():
        if gradient.ndim > 1:
            assert gradient.double().std(correction=0).item() == pytest.approx(sigma, rel=1e-5)
            bias = name.replace("weight", "bias")
            factor = (gradient.norm() / before.gradients[name].norm()).item()
            torch.testing.assert_close(after.gradients[bias], factor * before.gradients[bias], rtol=1e-5, atol=0)


@pytest.mark.parametrize("reference", ["outputs", "last_layer", "rms", "one"])
def test_other_references(registry: Registry, reference: str) -> None:
    method = registry.build_method("stable_grad", {"reference": reference})
    state_gradients, after = step_with(registry, method)
    weights = [g.double() for g in state_gradients.gradients.values() if g.ndim > 1]
    if reference == "outputs":  # Poisson's loss has no term in u inside: only the boundary's points are felt
        boundary = state_gradients.objective.predictions["boundary"].detach().double()
        total = torch.cat([torch.zeros(128, 1, dtype=torch.float64), 3 * 2 * boundary / len(boundary)])
        sigma = total.std(correction=0)
    elif reference == "last_layer":
        sigma = weights[-1].std(correction=0)
    elif reference == "rms":
        sigma = torch.cat([g.flatten() for g in weights]).square().mean().sqrt()
    else:
        sigma = torch.tensor(1.0)
    for gradient in after.gradients.values():
        if gradient.ndim > 1:
            assert gradient.double().std(correction=0).item() == pytest.approx(sigma.item(), rel=1e-5)


def test_biases_and_the_last_layer_may_stay_untouched(registry: Registry) -> None:
    method = registry.build_method("stable_grad", {"biases": "untouched", "last_layer": "untouched"})
    before, after = step_with(registry, method)
    same = {name for name, gradient in before.gradients.items() if torch.equal(gradient, after.gradients[name])}
    assert same == {name for name in before.gradients if name.endswith("bias") or name == "linear4.weight"}


def test_frozen_factors_leave_adam_without_epsilon_as_it_was(registry: Registry) -> None:
    """Adam with ε = 0 divides a constant factor of a layer out again, so what a gain needs is a factor that changes."""

    class Frozen(Method):
        factors: dict[str, float] | None = None

        def after_backward(self, state: State) -> None:
            layers = layers_of(state.model)
            if self.factors is None:
                std = population_std([weight.grad for _, weight, _ in layers])
                self.factors = {name: 0.1 / float(s) for (name, _, _), s in zip(layers, std, strict=True)}
            for name, weight, rest in layers:
                for parameter in (weight, *rest):
                    parameter.grad *= self.factors[name]

    torch.set_default_dtype(torch.float64)
    try:
        ends = []
        for methods in ([], [Frozen()]):
            state = trial(registry, *methods, eps=0.0, optimizer="adam", weight_decay=0.0)
            for _ in range(20):
                stepping.take_step(state, Composition(methods))
            ends.append([parameter.detach() for parameter in state.model.parameters()])
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_micro_batches_have_the_reference_of_their_mean(registry: Registry) -> None:
    class Kept(Recorded):
        seen: list[Tensor]

        def before_backward(self, state: State) -> None:
            objective = state.objectives[-1]
            self.seen = [] if len(state.objectives) == 1 else self.seen
            found = torch.autograd.grad(objective.value / 2, list(objective.predictions.values()), retain_graph=True)
            self.seen += [each.flatten() for each in found]

    kept, method, after = Kept(), registry.build_method("stable_grad", {}), Recorded()
    state = trial(registry, kept, method, after, accumulate=2)
    stepping.take_step(state, Composition([kept, method, after]))
    sigma = torch.cat(kept.seen).double().std(correction=0).item()
    assert after.gradients["linear2.weight"].double().std(correction=0).item() == pytest.approx(sigma, rel=1e-5)


def test_ranks_agree_on_the_factors_of_the_whole_batch(registry: Registry) -> None:
    """Two ranks, played one after the other: each must come to the deviation over both halves."""
    torch.manual_seed(0)
    halves = [torch.randn(7, 1), torch.randn(7, 1)]
    seen: list[Tensor] = []

    class Half(Ranks):
        world = 2

        def reduce(self, value: Tensor) -> Tensor:
            seen.append(value)
            return sum(seen) / len(seen) if len(seen) == 2 else value

    state = trial(registry)
    method = StableGrad()
    for half in halves:
        prediction = half.clone().requires_grad_(True)
        objective = state.workload.objective(state.model, state.workload.next_batch())
        objective.predictions.clear()
        objective.predictions["y"] = prediction
        value = prediction.square().mean()
        state.objectives[:] = [type(objective)(value, objective.predictions, 7)]
        method.before_backward(state)
        state.ranks = Half()
        sigma = method._reference_std(state, [])
    whole = (2 * torch.cat(halves) / 14).double()
    assert float(sigma) == pytest.approx(whole.std(correction=0).item(), rel=1e-6)


def test_layers_take_their_bias_and_the_normalisation_behind_them() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), GATES[0](), nn.Flatten(), nn.Linear(4, 2))
    found = [(name, len(rest)) for name, _, rest in layers_of(model)]
    assert found == [("0.weight", 2), ("4.weight", 1)]


def test_factors_are_reported_and_may_be_replaced_by_a_control(registry: Registry) -> None:
    method = registry.build_method("stable_grad", {"report_every": 1})
    before, after = Recorded(), Recorded()
    state = trial(registry, before, method, after)
    state.control = lambda step, name, values: dict.fromkeys(values, 2.0)
    stepping.take_step(state, Composition([before, method, after]))
    assert {name for _, name, _ in state.actions} == {"scale"}
    for name, gradient in before.gradients.items():
        torch.testing.assert_close(after.gradients[name], 2 * gradient)


@pytest.mark.parametrize("control", ["mean_of", "shuffled"])
def test_a_trial_under_a_control_is_another_one(registry: Registry, tmp_path: Path, control: str) -> None:
    spec = short_spec(registry, "digits/mlp", [Part("stable_grad", {"report_every": 1})], optimizer="sgd")
    own = run(registry, spec, tmp_path)
    content = replace(spec, methods=[Part(f"{control}(stable_grad)")])
    if control == "mean_of":
        content.requires.append(Requirement("methods.0", spec.hash, ACTIONS))
    other = run(registry, content, tmp_path)
    assert (own.status, other.status) == (Status.FINISHED, Status.FINISHED), other.error
    assert own.weights != other.weights
    if control == "mean_of":
        records = TrialRecords(tmp_path, content.hash).records()
        (given,) = {value for r in records if r.get("action") == "scale" for value in r["values"].values()}
        assert given == pytest.approx(own.metrics["actions/scale"], rel=1e-9), "one mean over steps and layers"


def test_a_trial_trains(registry: Registry, results) -> None:  # type: ignore[no-untyped-def]
    task = registry.build_task("poisson/pinn", {})
    recipe = vars(build_recipe(task, {"steps": 300}))
    spec = TrialSpec("poisson/pinn", {}, 2, [Part("stable_grad"), Part("adamw")], recipe, {"init": 0})
    ended = run(registry, spec, results)
    assert ended.status == Status.FINISHED
    assert ended.metrics["test/relative_l2"] < 0.5


# --- relatives


@pytest.mark.parametrize("scale", ["one", "sqrt_size"])
def test_block_normalised_gradients_have_the_norm_that_they_must(registry: Registry, scale: str) -> None:
    before, after = step_with(registry, registry.build_method("block_normalised", {"scale": scale}))
    for index in range(1, 5):
        names = f"linear{index}.weight", f"linear{index}.bias"
        block = torch.cat([after.gradients[name].flatten() for name in names])
        old = torch.cat([before.gradients[name].flatten() for name in names])
        expected = 1.0 if scale == "one" else math.sqrt(len(block))
        assert block.norm().item() == pytest.approx(expected, rel=1e-5)
        assert torch.cosine_similarity(block, old, dim=0).item() == pytest.approx(1.0, abs=1e-6)


def test_adaptive_clipping_is_its_formula(registry: Registry) -> None:
    method = registry.build_method("adaptive_clip", {"clipping": 1e-3})
    before, after = Recorded(), Recorded()
    state = trial(registry, before, method, after)
    weights = {name: parameter.detach().clone() for name, parameter in state.model.named_parameters()}
    stepping.take_step(state, Composition([before, method, after]))
    clipped = 0
    for name, gradient in before.gradients.items():
        if name.startswith("linear4"):
            assert torch.equal(gradient, after.gradients[name])
            continue
        rows = gradient if gradient.ndim > 1 else gradient.unsqueeze(0)
        kept = weights[name] if gradient.ndim > 1 else weights[name].unsqueeze(0)
        for row, weight, found in zip(rows, kept, after.gradients[name].reshape(rows.shape), strict=True):
            allowed = 1e-3 * max(weight.norm().item(), 1e-3)
            factor = min(1.0, allowed / row.norm().item())
            clipped += factor < 1
            torch.testing.assert_close(found, factor * row, rtol=1e-5, atol=1e-10)
    assert clipped > 0
    assert unit_norms(torch.ones(2, 3)).flatten().tolist() == pytest.approx([math.sqrt(3)] * 2)


def quadratic(optimizer_class: type[torch.optim.Optimizer], **defaults: object) -> list[Tensor]:
    """Three steps on a quadratic, from ones."""
    parameter = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    target = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    optimizer = optimizer_class([{"params": [parameter]}], {"lr": 0.1, "weight_decay": 0.01, **defaults})  # type: ignore[call-arg]
    path = []
    for _ in range(3):
        optimizer.zero_grad()
        ((parameter - target) ** 2).sum().backward()
        optimizer.step()
        path.append(parameter.detach().clone())
    return path


def test_lamb_is_its_paper() -> None:
    w, m, v = torch.ones(2, 3, dtype=torch.float64), 0.0, 0.0
    target = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    for step, found in enumerate(quadratic(Lamb, betas=(0.9, 0.99), eps=1e-6), start=1):
        g = 2 * (w - target)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        u = (m / (1 - 0.9**step)) / ((v / (1 - 0.99**step)).sqrt() + 1e-6) + 0.01 * w
        w = w - 0.1 * w.norm() / u.norm() * u
        torch.testing.assert_close(found, w, rtol=1e-12, atol=0)


def test_lars_is_its_paper() -> None:
    w, velocity = torch.ones(2, 3, dtype=torch.float64), 0.0
    target = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    for found in quadratic(Lars, momentum=0.9, trust=0.02):
        g = 2 * (w - target)
        local = 0.02 * w.norm() / (g.norm() + 0.01 * w.norm())
        velocity = 0.9 * velocity + 0.1 * local * (g + 0.01 * w)
        w = w - velocity
        torch.testing.assert_close(found, w, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_their_memory_survives_a_resume(registry: Registry, name: str) -> None:
    spec = short_spec(registry, "poisson/pinn", [Part(name)])
    assert run_short(registry, spec).same_as(run_short(registry, spec, interrupt_at=11))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("stable_grad", {"eps": -1.0}, "eps: found -1.0, must not be negative"),
        ("adaptive_clip", {"clipping": 0.0}, "clipping: found 0.0, must be positive"),
        ("lars", {"trust": 0.0}, "trust: found 0.0, must be positive"),
        ("lars", {"momentum": 1.0}, "momentum: found 1.0, must lie in"),
    ],
)
def test_bad_options_say_what_is_allowed(
    registry: Registry, name: str, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        registry.build_method(name, options)


def test_layers_of_a_network_with_weight_normalisation() -> None:
    """Each layer has its direction as the weight, and its length and its own bias with it."""
    model = nn.Sequential(*(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)), nn.Tanh(), nn.Linear(3, 1)))
    found = layers_of(model)
    assert [name for name, _, _ in found] == ["0.parametrizations.weight.original1", "2.weight"]
    first = model[0]
    assert {id(p) for p in found[0][2]} == {id(first.bias), id(first.parametrizations.weight.original0)}
    assert [id(p) for p in found[1][2]] == [id(model[2].bias)]


def test_an_objective_that_does_not_depend_on_its_predictions_is_an_error() -> None:
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="does not depend on its predictions"):
        _sums_of_gradients(weight.sum(), [2 * weight])
