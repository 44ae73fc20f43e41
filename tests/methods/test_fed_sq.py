"""FedSQ: what it claims of a network with frozen gates, on networks with pools, BatchNorm, dropout and residual sums."""

import copy
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.activations import gates
from harness.conformance import run_short
from harness.identity import Part, TrialSpec
from harness.registry import Registry
from harness.streams import Streams
from harness.training.trial import build_recipe
from methods.fed_sq import DualCopy, FixedGate, FixedPool
from tasks.federated import FederatedDigits


class Network(nn.Module):
    """Convolutions with BatchNorm, a residual sum, max-pooling, dropout and a leaky gate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1, self.act1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.norm2, self.act2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.1)
        self.pool, self.drop, self.head = nn.MaxPool2d(2), nn.Dropout(0.5), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act1(self.norm1(self.conv1(x)))
        h = self.pool(h + self.act2(self.norm2(self.conv2(h))))
        return self.head(self.drop(h.flatten(1)))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    built = Network().double()
    for norm in (built.norm1, built.norm2):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return built


def inputs() -> Tensor:
    return torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def perturb(dual: nn.Module, prefix: str = "quantitative", scale: float = 1.0, seed: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: parameter + scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        if name.startswith(prefix)
        else parameter
        for name, parameter in dual.named_parameters()
    }


def output(dual: nn.Module, parameters: dict[str, Tensor]) -> Tensor:
    return torch.func.functional_call(dual, parameters, (inputs(),))


def test_equal_copies_are_the_network(network: Network) -> None:
    expected = network.eval()(inputs())
    for mode in (False, True):
        assert torch.equal(DualCopy(copy.deepcopy(network)).train(mode)(inputs()), expected)


LAYERS = ("conv1", "norm1", "conv2", "norm2", "head")


@pytest.mark.parametrize("layer", LAYERS)
def test_the_output_is_affine_in_each_layer(network: Network, layer: str) -> None:
    """And that of the plain network is not, so that the check can fail."""
    dual = DualCopy(copy.deepcopy(network))
    base = perturb(dual)
    ends = [base | perturb(dual, f"quantitative.{layer}.", seed=seed) for seed in (5, 6)]
    for end in ends:
        end.update({name: base[name] for name in base if not name.startswith(f"quantitative.{layer}.")})
    between = {name: 0.3 * ends[0][name] + 0.7 * ends[1][name] for name in base}
    expected = 0.3 * output(dual, ends[0]) + 0.7 * output(dual, ends[1])
    torch.testing.assert_close(output(dual, between), expected, rtol=1e-11, atol=1e-11)
    if layer != "head":
        plain = network.eval()
        ends = [perturb(plain, f"{layer}.", seed=seed) for seed in (5, 6)]
        between = {name: 0.3 * ends[0][name] + 0.7 * ends[1][name] for name in ends[0]}
        gap = output(plain, between) - 0.3 * output(plain, ends[0]) - 0.7 * output(plain, ends[1])
        assert float(gap.abs().max()) > 1e-2


@pytest.mark.parametrize("layer", LAYERS)
def test_the_output_responds_linearly_to_increments_of_one_layer(network: Network, layer: str) -> None:
    """f(W + a + b) - f(W) is the sum of the two responses, and f(W - 3a) - f(W) is -3 times the first; not so without."""
    dual = DualCopy(copy.deepcopy(network))
    added, scaled = departures(dual, f"quantitative.{layer}.", perturb(dual))
    assert max(added, scaled) < 1e-11
    if layer != "head":
        added, scaled = departures(network.eval(), f"{layer}.", dict(network.named_parameters()))
        assert min(added, scaled) > 1e-2


def departures(model: nn.Module, layer: str, base: dict[str, Tensor]) -> tuple[float, float]:
    """How far the response to increments of a layer is from additive and from homogeneous, relative to its largest value."""
    generator = torch.Generator().manual_seed(5)
    names = [name for name in base if name.startswith(layer)]
    a, b = (
        {name: torch.randn(base[name].shape, generator=generator, dtype=torch.float64) for name in names}
        for _ in range(2)
    )

    def response(of_a: float, of_b: float) -> Tensor:
        moved = {name: base[name] + of_a * a[name] + of_b * b[name] for name in names}
        return output(model, base | moved) - output(model, base)

    added = response(1, 1) - (response(1, 0) + response(0, 1))
    scaled = response(-3, 0) + 3 * response(1, 0)
    size = float(response(1, 1).abs().max())
    return float(added.abs().max()) / size, float(scaled.abs().max()) / size


def test_averaging_clients_that_differ_in_one_layer_averages_their_outputs(network: Network) -> None:
    dual = DualCopy(network)
    clients = [perturb(dual, "quantitative.conv2.", seed=seed) for seed in range(4)]
    mean = {name: torch.stack([client[name] for client in clients]).mean(dim=0) for name in clients[0]}
    outputs = torch.stack([output(dual, client) for client in clients])
    torch.testing.assert_close(output(dual, mean), outputs.mean(dim=0), rtol=1e-11, atol=1e-11)


def test_the_output_is_affine_in_the_input_within_a_pattern(network: Network) -> None:
    dual = DualCopy(network)
    parameters = perturb(dual)
    x = inputs()
    step = 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=x.dtype)
    y = [torch.func.functional_call(dual, parameters, (x + t * step,)) for t in (0.0, 0.5, 1.0)]
    torch.testing.assert_close(y[1], (y[0] + y[2]) / 2, rtol=0, atol=1e-12)


def test_the_structural_copy_gets_no_gradient_and_never_moves(network: Network) -> None:
    dual = DualCopy(network).train()
    before = {name: tensor.clone() for name, tensor in dual.structural.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in dual.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    masks = []
    for _ in range(3):
        optimizer.zero_grad()
        dual(inputs()).square().mean().backward()
        optimizer.step()
        masks.append([gate._structural[0].mask for gate in dual.modules() if isinstance(gate, FixedGate)])
    assert all(parameter.grad is None for parameter in dual.structural.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in dual.structural.state_dict().items())
    assert all(torch.equal(one, other) for later in masks[1:] for one, other in zip(masks[0], later, strict=True))
    assert not torch.equal(dual.quantitative.conv1.weight, dual.structural.conv1.weight)
    assert list(gates(dual)) == ["quantitative.act1", "quantitative.act2"]


def test_running_statistics_stay_and_frozen_norms_do_not_train(network: Network) -> None:
    dual = DualCopy(network, "frozen").train()
    before = dual.quantitative.norm1.running_mean.clone()
    dual(inputs())
    assert torch.equal(dual.quantitative.norm1.running_mean, before)
    assert not dual.quantitative.norm1.weight.requires_grad and dual.quantitative.conv1.weight.requires_grad


def test_gates_of_the_quantitative_copy_itself_are_federated_averaging(network: Network) -> None:
    """With the masks of its own pre-activations the copy is the plain network, and so are its gradients."""
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    dual = DualCopy(copy.deepcopy(plain))
    x = torch.randn(5, 3, dtype=torch.float64)
    for model in (plain, dual.quantitative, dual.structural):
        with torch.no_grad():
            model[0].weight.add_(1.0)
    gradients = [torch.autograd.grad(m(x).square().sum(), list(ps)) for m, ps in
                 ((plain, plain.parameters()), (dual, dual.quantitative.parameters()))]  # fmt: skip
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.GELU()), "fed_sq: found GELU at 1, allowed: ReLU, LeakyReLU"),
        (nn.Linear(2, 2), "fed_sq: found a model without gates"),
    ],
)
def test_other_gates_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DualCopy(model)


def spec(method: str, model: str = "cnn", **recipe: Any) -> TrialSpec:
    task: dict[str, Any] = {"model": model, "width": 4, "depth": None}
    recipe = {"rounds": 3, "evaluate_every": 3, "record_every": 3, "local_steps": 2} | recipe
    resolved = asdict(build_recipe(FederatedDigits(**task), recipe))
    return TrialSpec("digits/federated", task, 1, [Part(method)], resolved, {"init": 0})


def test_a_trial_sends_the_quantitative_copy_alone(registry: Registry) -> None:
    squared, plain = run_short(registry, spec("fed_sq")), run_short(registry, spec("fed_avg"))
    for name in ("bytes_up", "bytes_down"):
        sent = [ran.training.workload.progress()[name] for ran in (squared, plain)]
        assert sent[0] == sent[1] > 0


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_rounds_with_gates_of_the_quantitative_copy_itself_are_federated_averaging(
    model: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not so with the gates of the structural one."""
    recipe = {"rounds": 4, "local_steps": 5, "client_dropout": 0.2}
    averaged = run_short(registry, spec("fed_avg", model, **recipe)).weights

    def departure() -> float:
        weights = run_short(registry, spec("fed_sq", model, **recipe)).weights
        return max(float((weights[f"quantitative.{name}"] - own).abs().max()) for name, own in averaged.items())

    assert departure() > 1e-3
    for module in (FixedGate, FixedPool):  # the structural gate and pool are asked about the quantitative stream
        monkeypatch.setattr(module, "forward", lambda self, h: self._structural[0](h))
    assert departure() < 1e-6


@pytest.mark.parametrize("model", ["cnn", "resnet_tiny"])
def test_after_rounds_the_structural_copy_is_the_start(model: str, registry: Registry) -> None:
    """BatchNorm's statistics included, under a server optimizer and weight decay: bit for bit."""
    trial = spec("fed_sq", model, server_optimizer="adam", optimizer="adamw", weight_decay=0.1)
    task = FederatedDigits(**trial.task_options)
    start = task.workload(build_recipe(task, trial.recipe), Streams(0), torch.device("cpu")).model.state_dict()
    weights = run_short(registry, trial).weights
    assert {name.removeprefix("structural.") for name in weights if name.startswith("structural.")} == set(start)
    for name, tensor in start.items():
        assert torch.equal(weights[f"structural.{name}"], tensor)
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert not torch.equal(weights[f"quantitative.{name}"], tensor)
