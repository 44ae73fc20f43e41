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
from harness.training.trial import build_recipe
from methods.fed_sq import DualCopy, FixedGate
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


def spec(method: str, options: dict[str, Any] | None = None) -> TrialSpec:
    task: dict[str, Any] = {"model": "cnn", "width": 4, "depth": None}
    recipe = {"rounds": 3, "evaluate_every": 3, "record_every": 3, "local_steps": 2}
    resolved = asdict(build_recipe(FederatedDigits(**task), recipe))
    return TrialSpec("digits/federated", task, 1, [Part(method, options or {})], resolved, {"init": 0})


def test_a_trial_sends_the_quantitative_copy_alone(registry: Registry) -> None:
    squared, plain = run_short(registry, spec("fed_sq")), run_short(registry, spec("fed_avg"))
    for name in ("bytes_up", "bytes_down"):
        sent = [ran.training.workload.progress()[name] for ran in (squared, plain)]
        assert sent[0] == sent[1] > 0
    for name, initial in squared.weights.items():
        if name.startswith("structural"):
            moved = squared.weights[name.replace("structural", "quantitative")]
            assert not torch.equal(initial, moved)
