"""Derivatives of fields: closed forms, and every route against every other."""

import pytest
import torch
from torch import Tensor, nn

from tasks import jet_activations
from tasks.derivatives import Jet, along, channels, jet
from tasks.networks import Architecture, Residual, Sine, field_network, gain

NAMES = {"burgers": ["x", "t", "xx"], "kdv": ["t", "x", "xxx"], "poisson": ["laplacian"], "mixed": ["xx", "tt", "x"]}


@pytest.fixture
def points() -> Tensor:
    return 2 * torch.rand(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1


def network(**architecture: object) -> nn.Sequential:
    torch.manual_seed(1)
    return field_network(2, 2, Architecture(width=7, **architecture)).double()  # type: ignore[arg-type]


def everything(u: Jet, model: nn.Module) -> list[Tensor]:
    """Values, derivatives, and the gradient of a mixture of them all by the weights."""
    mixture = u.value.square().sum() + sum(k * d.square().sum() for k, d in enumerate(u.derivatives.values(), 1))
    slopes = torch.autograd.grad(mixture, list(model.parameters()), materialize_grads=True)
    return [u.value, *u.derivatives.values(), *slopes]


class Known(nn.Module):
    """exp(x) sin(2t), x²t³."""

    def forward(self, points: Tensor) -> Tensor:
        x, t = points.unbind(dim=1)
        return torch.stack([x.exp() * (2 * t).sin(), x**2 * t**3], dim=1)


@pytest.mark.parametrize("route", ["auto", "forward", "reverse"])
def test_derivatives_of_a_known_function(points: Tensor, route: str) -> None:
    x, t = points.T
    wave = x.exp() * (2 * t).sin()
    expected = {
        "x": [wave, 2 * x * t**3],
        "xx": [wave, 2 * t**3],
        "xxx": [wave, 0 * x],
        "t": [2 * x.exp() * (2 * t).cos(), 3 * x**2 * t**2],
        "ttt": [-8 * x.exp() * (2 * t).cos(), 6 * x**2],
    }
    u = jet(Known(), points, list(expected), "xt", route=route)
    for name, columns in expected.items():
        torch.testing.assert_close(u[name], torch.stack(columns, dim=1), rtol=1e-11, atol=1e-12)
    y = jet(Known(), points, ["laplacian"], "xy", route=route)
    torch.testing.assert_close(y["laplacian"][:, 0], -3 * wave, rtol=1e-11, atol=1e-12)


def test_derivatives_of_one_tanh_layer(points: Tensor) -> None:
    model = network(depth=1)
    first, last = model.linear1, model.linear2
    with torch.no_grad():
        y = torch.tanh(points @ first.weight.T + first.bias)
        slope, w = 1 - y**2, first.weight[:, 0]
        u = jet(model, points, ["x", "xx", "xxx"], "xt")
        torch.testing.assert_close(u["x"], (slope * w) @ last.weight.T)
        torch.testing.assert_close(u["xx"], (-2 * y * slope * w**2) @ last.weight.T)
        torch.testing.assert_close(u["xxx"], (slope * (6 * y**2 - 2) * w**3) @ last.weight.T)


@pytest.mark.parametrize("activation", ["tanh", "sin", "silu", "gelu", "elu", "relu"])
@pytest.mark.parametrize("names", NAMES)
def test_all_routes_agree(activation: str, names: str, points: Tensor) -> None:
    model = network(activation=activation)
    coordinates = "xy" if names == "poisson" else "xt"
    routes = [jet(model, points, NAMES[names], coordinates, 20, route) for route in ("taylor", "forward", "reverse")]
    expected = everything(routes.pop(), model)
    for found in routes:
        for one, other in zip(everything(found, model), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("architecture", [{"residual": True}, {"normalisation": "layer"}, {"normalisation": "weight"}])
@pytest.mark.parametrize("names", ["kdv", "poisson"])
def test_all_routes_agree_on_other_architectures(architecture: dict[str, object], names: str, points: Tensor) -> None:
    model = network(**architecture)
    coordinates = "xy" if names == "poisson" else "xt"
    routes = [jet(model, points, NAMES[names], coordinates, 20, route) for route in ("taylor", "forward", "reverse")]
    expected = everything(routes.pop(), model)
    for found in routes:
        for one, other in zip(everything(found, model), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_batch_statistics_are_constants_of_the_field(points: Tensor) -> None:
    """In training the field is the one that BatchNorm makes with this batch's statistics, held still."""
    model = network(normalisation="batch", depth=2)
    found = jet(model, points, ["x", "xx"], "xt", 20)
    frozen = network(normalisation="batch", depth=2)
    frozen.load_state_dict(model.state_dict())
    value = points
    for layer in frozen:
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean, layer.running_var = value.mean(dim=0).detach(), value.var(dim=0, correction=0).detach()
            layer.eval()
        value = layer(value)
    expected = jet(frozen, points, ["x", "xx"], "xt", 20, route="reverse")
    torch.testing.assert_close(found.value, expected.value)
    for name in ("x", "xx"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-11)


def test_a_network_that_is_no_stack_takes_the_general_route(points: Tensor) -> None:
    model = Residual(nn.Sequential(nn.Linear(2, 2), nn.Tanh())).double()
    expected = jet(model, points, ["x", "xx"], "xt", route="reverse")
    found = jet(model, points, ["x", "xx"], "xt")
    for one, other in zip(everything(found, model), everything(expected, model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_torchs_layer_norm_is_refused_where_it_would_be_wrong(points: Tensor) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)).double()
    with pytest.raises(ValueError, match="found LayerNorm"):
        jet(model, points, ["xx"], "xt")


@pytest.mark.parametrize("names", NAMES)
def test_the_backward_pass_by_hand_agrees(names: str, points: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    coordinates = "xy" if names == "poisson" else "xt"
    recorded = everything(jet(model, points, NAMES[names], coordinates, 20), model)
    monkeypatch.setattr(jet_activations, "BY_HAND", 0)
    for one, other in zip(everything(jet(model, points, NAMES[names], coordinates, 20), model), recorded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_a_trained_activation_gets_its_gradient(points: Tensor) -> None:
    class Stretched(nn.Module):
        is_gate = True

        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(1.3))

        def forward(self, z: Tensor) -> Tensor:
            return torch.tanh(self.slope * z)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), Stretched(), nn.Linear(4, 1)).double()
    one = everything(jet(model, points, ["x", "xxx"], "xt"), model)
    other = everything(jet(model, points, ["x", "xxx"], "xt", route="reverse"), model)
    for found, expected in zip(one, other, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_hooks_see_each_layer_once_with_its_plain_input(points: Tensor) -> None:
    model, seen = network(activation="silu"), []
    for module in model:
        module.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    model(points)
    plain = list(seen)
    seen.clear()
    jet(model, points, ["x", "xx"], "xt", 10)
    assert len(seen) == len(model)
    assert all(map(torch.equal, seen, plain))


def test_the_route_by_hand_may_be_differentiated_twice(points: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jet_activations, "BY_HAND", 0)
    model = network()
    curvature = []
    for route in ("taylor", "reverse"):
        u = jet(model, points, ["xx"], "xt", route=route)
        (slope,) = torch.autograd.grad(u["xx"].square().sum(), [model.linear2.weight], create_graph=True)
        curvature.append(torch.autograd.grad(slope.square().sum(), [model.linear1.weight])[0])
    torch.testing.assert_close(*curvature, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["xt", "y", "xxxx", ""])
def test_unknown_derivatives_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"found '{name}', allowed: x, xx, xxx, t, tt, ttt, laplacian"):
        channels((name,), "xt")


def test_along_is_fa_di_brunos_formula() -> None:
    z = [torch.tensor(value, dtype=torch.float64) for value in (0.3, 1.1, -0.7, 0.4)]
    one, two, three = along(torch.sin, z[0], z[1:])
    sin, cos = z[0].sin(), z[0].cos()
    torch.testing.assert_close(one, cos * z[1])
    torch.testing.assert_close(two, cos * z[2] - sin * z[1] ** 2)
    torch.testing.assert_close(three, cos * z[3] - 3 * sin * z[1] * z[2] - cos * z[1] ** 3)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [("tanh", 1.592537), ("relu", 1.414214), ("silu", 1.676532), ("gelu", 1.533530), ("sin", 1.520867)],
)
def test_gains(activation: str, expected: float) -> None:
    assert gain(activation) == pytest.approx(expected, abs=1e-6)


def test_the_gain_keeps_the_signal_through_twenty_layers() -> None:
    torch.manual_seed(0)
    model = field_network(2, 1, Architecture(depth=20, width=256, activation="tanh", init="gain"))
    signal, moments = torch.randn(500, 2), []
    with torch.no_grad():
        for layer in model[:-1]:
            signal = layer(signal)
            if isinstance(layer, nn.Tanh):
                moments.append(signal.square().mean().item())
    assert moments[1:] == pytest.approx([gain("tanh") ** -2] * 19, rel=0.3)


def test_sine_is_a_gate() -> None:
    assert Sine.is_gate and torch.equal(Sine()(torch.ones(2)), torch.ones(2).sin())
