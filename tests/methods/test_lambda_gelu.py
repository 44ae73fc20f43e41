"""λ-GELU against its closed forms, and what the method does to a trial."""

import math
from pathlib import Path

import pytest
import torch
from support import run
from torch import nn
from torch.func import jvp, vjp
from torch.nn import functional

from harness.conformance import run_short, short_spec
from harness.identity import Part
from harness.recipe import Recipe
from harness.recording.records import TrialRecords
from harness.registry import Registry
from methods.lambda_gelu import LambdaGate, LambdaGELU, hardened, lambda_gelu, substitute, target_hardness

X = torch.arange(-2000, 2001, dtype=torch.float64) / 250
LAMBDAS = [1.0, 1.6931, 3.0, 8.0, 160.0]


@pytest.mark.parametrize("hardness", LAMBDAS)
def test_the_function(hardness: float) -> None:
    f = lambda_gelu(X, hardness)
    by_erf = X / 2 * (1 + torch.erf(hardness * X / math.sqrt(2)))
    torch.testing.assert_close(f, by_erf, rtol=0, atol=2e-15)
    torch.testing.assert_close(f, functional.gelu(hardness * X) / hardness, rtol=0, atol=2e-15)
    torch.testing.assert_close(f - lambda_gelu(-X, hardness), X, rtol=0, atol=2e-15)


def test_at_one_it_is_gelu() -> None:
    assert torch.equal(lambda_gelu(X, 1.0), functional.gelu(X))
    assert lambda_gelu(torch.ones((), dtype=torch.float64), 1.0).item() == pytest.approx(0.8413447, abs=5e-8)


@pytest.mark.parametrize("hardness", LAMBDAS)
def test_distances_from_relu(hardness: float) -> None:
    x = torch.arange(-400_000, 400_001, dtype=torch.float64) / 50_000 / hardness  # f − ReLU is a function of λx over λ
    away = (lambda_gelu(x, hardness) - x.relu()).abs()
    assert float(away.max()) == pytest.approx(0.1699712 / hardness, rel=1e-6)
    assert float(x[away.argmax()].abs()) * hardness == pytest.approx(0.75179, abs=1e-4)
    assert float(torch.trapezoid(away, x)) == pytest.approx(1 / (2 * hardness**2), rel=1e-6)
    gate = torch.special.ndtr(hardness * x)
    gap = torch.where(x == 0, 0.5, (gate - (x > 0).double()).abs())
    assert float(torch.trapezoid(gap, x)) == pytest.approx(0.7978846 / hardness, rel=1e-5)


def test_the_target() -> None:
    assert target_hardness(0.005) == pytest.approx(159.577, abs=1e-3)
    assert target_hardness(0.0049868) == pytest.approx(160, abs=1e-3)


@pytest.mark.parametrize("hardness", LAMBDAS)
def test_the_derivative(hardness: float) -> None:
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(lambda_gelu(x, hardness).sum(), x)
    density = torch.exp(-((hardness * X) ** 2) / 2) / math.sqrt(2 * math.pi)
    torch.testing.assert_close(slope, torch.special.ndtr(hardness * X) + hardness * X * density, rtol=0, atol=1e-12)
    assert slope[2000].item() == 0.5


def test_gradients_of_every_order() -> None:
    x, hardness = torch.randn(7, dtype=torch.float64, requires_grad=True), torch.tensor(1.7).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda_gelu, (x, hardness))
    assert torch.autograd.gradgradcheck(lambda_gelu, (x, hardness))
    ones = torch.ones_like(x)

    def plain(z: torch.Tensor) -> torch.Tensor:
        return functional.gelu(z * 1.7) / 1.7

    def twice(f):
        forward = jvp(lambda z: jvp(f, (z,), (ones,))[1], (x,), (ones,))[1]
        backward = vjp(lambda z: vjp(f, z)[1](ones)[0], x)[1](ones)[0]
        return forward, backward

    for ours, expected in zip(twice(lambda z: lambda_gelu(z, 1.7)), twice(plain), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("hardness", "deviation"), [(1.0, 1.0), (1.69, 0.5), (3.0, 2.0), (8.0, 1.0)])
def test_the_expected_gradient_of_the_hardness(hardness: float, deviation: float) -> None:
    """E[∂f/∂λ] for x ~ N(0, σ²) is σ²/√(2π) (1 + λ²σ²)^(−3/2): by quadrature."""
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64) * deviation
    weight = torch.exp(-((x / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi)) * (x[1] - x[0])
    at = torch.tensor(hardness, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((lambda_gelu(x, at) * weight).sum(), at)
    expected = deviation**2 / math.sqrt(2 * math.pi) * (1 + (hardness * deviation) ** 2) ** -1.5
    assert float(gradient) == pytest.approx(expected, rel=1e-9)


def test_the_gradient_of_the_hardness_in_single_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(50_000, generator=generator) for _ in range(2))
    for hardness in (1.5, 5.0, 20.0):
        found = []
        for dtype in (torch.float32, torch.float64):
            at = torch.tensor(hardness, dtype=dtype, requires_grad=True)
            (gradient,) = torch.autograd.grad(lambda_gelu(x.to(dtype), at), at, g.to(dtype))
            found.append(float(gradient))
        assert found[0] == pytest.approx(found[1], rel=2e-3)


@pytest.mark.parametrize("s", [-3.0, -0.1, 0.0, 0.0541325, 1.0])
def test_the_reparameterisation(s: float) -> None:
    gate = LambdaGate(2.0, 0.1, raw=False).double()
    assert gate.s.item() == pytest.approx(0.0541325, abs=1e-7)
    gate.s.data.fill_(s)
    hardness = gate.hardness
    hardness.backward()
    assert hardness.item() >= 1
    assert gate.s.grad is not None
    slope = 1 / (1 + math.exp(-s / 0.1)) / 0.1
    assert gate.s.grad.item() == pytest.approx(slope, rel=1e-12)
    gate.s.grad *= 3.0
    assert gate.hardness_gradient is not None
    assert gate.hardness_gradient.item() == pytest.approx(3.0, rel=1e-12)
    rate = 1e-7 / slope
    gate.s.data -= rate * 3.0 * slope
    assert (gate.hardness - hardness).item() == pytest.approx(-rate * 3.0 * slope**2, rel=1e-3)


def test_the_default_start() -> None:
    assert LambdaGate(1 + math.log(2), 0.1, raw=False).hardness.item() == pytest.approx(1.6931, abs=1e-4)
    assert LambdaGate(1 + math.log(2), 0.1, raw=False).s.item() == pytest.approx(0.0, abs=1e-8)


def profile(ran) -> list[float]:
    from harness.activations import gates

    return [float(gate.hardness.detach()) for gate in gates(ran.training.state.model).values()]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_aware_step_is_a_step_on_the_hardness(registry: Registry, optimizer: str) -> None:
    """After one step λ has moved by η ∂L/∂λ under SGD and by η under Adam, whatever the slope of softplus is."""
    for start in (1.3, 4.0):
        options = {"harden": False, "hardness": start, "rate": 1e-3}
        spec = short_spec(
            registry,
            "digits/mlp",
            [Part("lambda_gelu", options), Part(optimizer)],
            [Part("gate_hardness", {"every": 1})],
            steps=1,
            precision="float64",
            lr=0.01,
        )
        ran = run_short(registry, spec)
        measured = next(
            record["metrics"] for record in ran.records if "probe/gate_hardness/lambda/1.act1" in record["metrics"]
        )
        moves = [hardness - start for hardness in profile(ran)]
        for move, name in zip(moves, ("1.act1", "1.act2"), strict=True):
            gradient = measured[f"probe/gate_hardness/gradient/{name}"]
            expected = 1e-5 * (gradient if optimizer == "sgd" else 1.0)
            assert abs(move) == pytest.approx(expected, rel=2e-2)


def test_resume_is_exact_where_another_optimizer_follows_the_switch(registry: Registry) -> None:
    methods = [Part("lambda_gelu", {"switch": 0.5})]
    spec = short_spec(registry, "digits/mlp", methods, phases=["adam 14", "lbfgs 6"], steps=20)
    assert run_short(registry, spec).same_as(run_short(registry, spec, 16))


def test_a_searched_step_is_left_as_it_is(registry: Registry) -> None:
    """L-BFGS takes s where the loss along its line is low, whatever the reading of the update: that is its step."""
    arms = [{"harden": False, "learn": learn} for learn in ("aware", "softplus")]
    specs = [
        short_spec(registry, "digits/mlp", [Part("lambda_gelu", arm)], phases=["lbfgs 3"], steps=3) for arm in arms
    ]
    aware, plain = (run_short(registry, spec) for spec in specs)
    assert profile(aware) == profile(plain) != pytest.approx([1 + math.log(2)] * 2, abs=1e-6)


def test_what_scales_a_groups_rate_scales_that_of_its_gates() -> None:
    method = LambdaGELU(rate=0.5)
    model = method.adapt(nn.Sequential(nn.Linear(2, 2), nn.GELU()), None)  # type: ignore[arg-type]
    groups = method.parameter_groups([{"params": list(model.parameters()), "lr_factor": 0.01}], Recipe(steps=1))
    assert [(len(group["params"]), group["lr_factor"]) for group in groups] == [(2, 0.01), (1, 0.005)]


def test_decay_leaves_the_hardness_alone(registry: Registry) -> None:
    options = {"harden": False, "rate": 1e-12, "hardness": 3.0}
    spec = short_spec(registry, "digits/mlp", [Part("lambda_gelu", options), Part("adamw")], weight_decay=0.5)
    assert profile(run_short(registry, spec)) == pytest.approx([3.0, 3.0], abs=1e-5)


@pytest.mark.parametrize("switch", [0.25, 0.75])
def test_hardening(tmp_path: Path, registry: Registry, switch: float) -> None:
    spec = short_spec(
        registry,
        "digits/mlp",
        [Part("lambda_gelu", {"switch": switch, "save": True})],
        [Part("gate_hardness", {"every": 1})],
    )
    result = run(registry, spec, tmp_path)
    records = list(TrialRecords(tmp_path, spec.hash).records())
    (action,) = [record for record in records if "action" in record]
    assert (action["step"], action["action"]) == (round(20 * switch), "hardness")
    name = "probe/gate_hardness/lambda/1.act1"
    curve = {record["step"]: record["metrics"][name] for record in records if name in record.get("metrics", {})}
    learned = action["values"]["1.act1"]
    for step, hardness in curve.items():
        if step >= 20 * switch:
            progress = (step / 20 - switch) / (1 - switch)
            assert hardness == pytest.approx(learned ** (1 - progress) * 160**progress, rel=1e-6)
    assert curve[20] == 160
    assert result.metrics["selected_step"] == 20, "only a hardened model may be selected"
    assert {"test/relu/accuracy", "val/relu/loss", "test/accuracy"} <= result.metrics.keys()
    kept = torch.load(tmp_path / "trials" / spec.hash / "relu.pt", weights_only=True)
    task = registry.build_task("digits/mlp", {})
    plain = task.model()  # type: ignore[attr-defined]
    plain.load_state_dict(kept)
    assert not any(isinstance(module, LambdaGate) for module in plain.modules())


def test_hardening_in_rounds(registry: Registry) -> None:
    for switch in (0.25, 0.75):
        spec = short_spec(registry, "digits/federated", [Part("lambda_gelu", {"switch": switch})])
        assert profile(run_short(registry, spec)) == [160.0]


def test_a_hardened_net_is_near_its_substitute() -> None:
    """Each layer is at most 0.1699712/160 = 0.00107 off, times the Lipschitz factors (spectral norms) behind it."""
    torch.manual_seed(0)
    layers = [nn.Linear(10, 20), nn.Linear(20, 20), nn.Linear(20, 5)]
    gates = [LambdaGate(2.0, 0.1, raw=False) for _ in range(2)]
    for gate in gates:
        gate.hold(hardened(2.5, 1.0))
        assert abs(gate.hardness.item() - 160) < 1e-6
    model = nn.Sequential(layers[0], gates[0], layers[1], gates[1], layers[2]).double()
    relu = substitute(model)
    assert [type(module) for module in relu[1::2]] == [nn.ReLU, nn.ReLU]
    assert isinstance(model[1], LambdaGate), "the model itself stays"
    x = 3 * torch.randn(500, 10, dtype=torch.float64)
    norms = [float(torch.linalg.matrix_norm(layer.weight, 2)) for layer in layers]
    per_gate = 0.00107 * math.sqrt(20)
    # The slope of f is at most 1.13, at λx = √2.
    bound = per_gate * norms[2] + per_gate * norms[1] * 1.13 * norms[2]
    with torch.no_grad():
        assert float(torch.linalg.vector_norm(model(x) - relu(x), dim=1).max()) <= bound
        assert float((model[:2](x) - relu[:2](x)).abs().max()) <= 0.00107


@pytest.mark.parametrize(("learn", "harden"), [("raw", False), ("softplus", True), ("fixed", True), ("raw", True)])
def test_the_arms_run(tmp_path: Path, registry: Registry, learn: str, harden: bool) -> None:
    spec = short_spec(
        registry, "digits/mlp", [Part("lambda_gelu", {"learn": learn, "harden": harden, "hardness": 2.0})]
    )
    result = run(registry, spec, tmp_path)
    assert result.error == ""
    assert "test/relu/accuracy" in result.metrics
    moved = profile(run_short(registry, spec))
    assert (moved == [160.0, 160.0]) is harden


def test_learned_arms_differ_in_their_step(registry: Registry) -> None:
    def learned(learn: str) -> list[float]:
        options = {"learn": learn, "harden": False, "hardness": 3.0}
        return profile(run_short(registry, short_spec(registry, "digits/mlp", [Part("lambda_gelu", options)])))

    aware, softplus, raw = learned("aware"), learned("softplus"), learned("raw")
    assert aware == pytest.approx(raw, rel=1e-2), "to first order a step on the hardness itself"
    assert max(abs(h - 3) for h in softplus) > 5 * max(abs(h - 3) for h in aware), (
        "softplus at t = 0.1 moves ten times as far"
    )


def test_bad_options(registry: Registry) -> None:
    for options, message in (
        ({"hardness": 1.0}, "hardness: found 1.0, must be above 1"),
        ({"switch": 1.0}, r"switch: found 1.0, must lie in \[0, 1\)"),
        ({"temperature": 0.0}, "temperature: found 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            registry.build_method("lambda_gelu", options)
