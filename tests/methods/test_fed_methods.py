"""Federated baselines against hand computations: two clients of a linear model whose gradients are known."""

from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from harness import Batch, FederatedWorkload, Method, Objective, Recipe, Update
from harness.composition import Composition
from harness.method import State
from harness.streams import Streams
from harness.training.federation import advance
from harness.training.state import Training
from harness.training.stepping import Diverged
from methods.baselines import AdamW, FedAvg
from methods.fed_align import FedAlign
from methods.fed_bn import FedBN
from methods.fed_nova import FedNova, local_work
from methods.fed_prox import FedProx
from methods.fed_robust import FedMedian, TrimmedMean, trimmed_mean
from methods.scaffold import Scaffold


class Pulls(FederatedWorkload):
    """Client k pulls the weight w towards its target: L_k = a_k (w - t_k)² / 2, so that its gradient is a_k (w - t_k)."""

    def __init__(
        self, targets: Sequence[float], strengths: Sequence[float], sizes: Sequence[int], steps: Sequence[int]
    ) -> None:
        self.model = nn.Linear(1, 1, bias=False).double()
        nn.init.constant_(self.model.weight, 1.0)
        self.targets, self.strengths, self.sizes, self.steps = targets, strengths, list(sizes), steps
        self.probe_inputs = torch.ones(1, 1)
        self.traffic: list[tuple[int, int]] = []

    def participants(self, round: int) -> list[int]:
        return list(range(len(self.sizes)))

    def enter(self, client: int, round: int) -> int:
        self.client = client
        return self.steps[client]

    def client_data(self, client: int) -> Batch:
        return {"target": torch.tensor([[self.targets[client]]]), "strength": torch.tensor([self.strengths[client]])}

    def next_batch(self) -> Batch:
        return self.client_data(self.client)

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        error = cast(nn.Linear, model).weight - batch["target"]
        return Objective((batch["strength"] * error**2 / 2).sum(), {}, 1)

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        return {}

    def count(self, steps: int, up: int, down: int) -> None:
        self.traffic.append((up, down))

    @property
    def weight(self) -> float:
        return self.model.weight.item()


def rounds(workload: Pulls, *methods: Method, count: int = 1, **recipe: Any) -> Pulls:
    built = Recipe(steps=9, **{"optimizer": "sgd", "lr": 0.1} | recipe)
    state = State(workload.model, workload, built, Streams(0), horizon=9)
    training = Training(cast(Any, None), state, Composition(methods), {}, cast(Any, None))
    for _ in range(count):
        advance(training)
    return workload


def two(steps: tuple[int, int] = (1, 1), sizes: tuple[int, int] = (10, 30)) -> Pulls:
    return Pulls([0.0, 4.0], [1.0, 2.0], sizes, steps)


def test_fed_avg_by_hand() -> None:
    # Gradients at 1: 1 and 2 (1 - 4) = -6. Updates: -0.1 and 0.6, weights 1/4 and 3/4.
    assert rounds(two(), FedAvg()).weight == pytest.approx(1 + (-0.1 + 3 * 0.6) / 4)


def test_fed_prox_by_hand() -> None:
    # The second step starts at 0.9 and 1.6; μ = 0.5 pulls back by 0.5 (w - 1).
    first = 0.9 - 0.1 * (0.9 + 0.5 * (0.9 - 1))
    second = 1.6 - 0.1 * (2 * (1.6 - 4) + 0.5 * (1.6 - 1))
    assert rounds(two((2, 2)), FedProx(mu=0.5)).weight == pytest.approx(first / 4 + 3 * second / 4)


def test_scaffold_by_hand() -> None:
    """Two rounds of two clients, equal sizes, one local step and then the corrected one: option II of the paper."""
    lr, c, own = 0.1, 0.0, [0.0, 0.0]
    x = 1.0
    for _ in range(2):
        ends, new = [], []
        for k, (target, strength) in enumerate(((0.0, 1.0), (4.0, 2.0))):
            y = x
            for _ in range(3):
                y -= lr * (strength * (y - target) - own[k] + c)
            new.append(own[k] - c + (x - y) / (3 * lr))
            ends.append(y)
        x = sum(ends) / 2
        c += sum(after - before for after, before in zip(new, own, strict=True)) / 2
        own = new
    found = rounds(two((3, 3), (10, 10)), Scaffold(), count=2)
    assert found.weight == pytest.approx(x, abs=1e-12)
    assert found.traffic == [(32, 32)] * 2  # two clients, a weight and a control variate of eight bytes, either way


def test_scaffold_removes_the_drift_of_unequal_clients() -> None:
    """Many local steps: federated averaging ends between the clients' optima in another place than the common one."""
    optimum = (1 * 0.0 + 2 * 4.0) / 3
    plain = rounds(two((20, 20), (10, 10)), FedAvg(), count=40).weight
    corrected = rounds(two((20, 20), (10, 10)), Scaffold(), count=40).weight
    assert abs(corrected - optimum) < 1e-3 < 0.1 < abs(plain - optimum)


def test_scaffold_goes_to_the_optimum_of_federated_averaging() -> None:
    """The clients' sizes count: (10 · 1 · 0 + 30 · 2 · 4) / (10 · 1 + 30 · 2)."""
    assert rounds(two((3, 3)), Scaffold(), count=300).weight == pytest.approx(240 / 70, abs=1e-9)


def test_scaffold_with_one_of_two_clients_a_round_by_hand() -> None:
    class Turns(Pulls):
        def participants(self, round: int) -> list[int]:
            return [round % 2]

    x, c, own = 1.0, 0.0, [0.0, 0.0]
    for round in range(4):
        k, y, seen = round % 2, x, []
        for _ in range(2):
            seen.append((1.0, 2.0)[k] * (y - (0.0, 4.0)[k]))
            y -= 0.1 * (seen[-1] - own[k] + c)
        x, before = y, own[k]
        own[k] = sum(seen) / 2
        c += (10, 30)[k] / 40 * (own[k] - before)
    found = rounds(Turns([0.0, 4.0], [1.0, 2.0], (10, 30), (2, 2)), Scaffold(), count=4)
    assert found.weight == pytest.approx(x, abs=1e-12)


def test_fed_nova_by_hand() -> None:
    # One and three steps: w = 0.9; 1.6, 2.08, 2.464. Per step -0.1 and 1.464 / 3; τ_eff = 1/4 + 9/4.
    expected = 1 + (1 / 4 + 9 / 4) * (1 / 4 * -0.1 + 3 / 4 * 1.464 / 3)
    assert rounds(two((1, 3)), FedNova()).weight == pytest.approx(expected)
    assert rounds(two((2, 2)), FedNova()).weight == pytest.approx(rounds(two((2, 2)), FedAvg()).weight)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_local_work_is_the_sum_of_the_coefficients(steps: int, momentum: float) -> None:
    """A constant gradient of 1 moves a weight by the learning rate times the local work."""
    weight = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=momentum)
    for _ in range(steps):
        weight.grad = torch.ones((), dtype=torch.float64)
        optimizer.step()
    assert local_work(steps, momentum) == pytest.approx(-weight.item())


def test_fed_nova_with_momentum_by_hand() -> None:
    """Two clients, one and three steps of SGD with momentum .5; work 1 and (3 - .5 (1 - .125) / .5) / .5 = 4.25."""
    ends = []
    for strength, target, steps in ((1.0, 0.0, 1), (2.0, 4.0, 3)):
        w, velocity = 1.0, 0.0
        for _ in range(steps):
            velocity = 0.5 * velocity + strength * (w - target)
            w -= 0.1 * velocity
        ends.append(w - 1)
    expected = 1 + (1 / 4 * 1 + 3 / 4 * 4.25) * (1 / 4 * ends[0] + 3 / 4 * ends[1] / 4.25)
    assert rounds(two((1, 3)), FedNova(), momentum=0.5).weight == pytest.approx(expected)


def test_fed_nova_counts_the_steps_of_other_optimizers() -> None:
    found = rounds(two((1, 3)), FedNova(), AdamW(), momentum=0.9, lr=1e-3).weight
    # Adam's first steps have the length of the rate: -.001 and three times +.001, weight decay aside.
    assert found == pytest.approx(1 + 2.5 * (1 / 4 * -1e-3 + 3 / 4 * 1e-3), abs=1e-6)


def test_fed_nova_averages_running_statistics_by_size() -> None:
    workload = Normed()
    workload.steps = [3, 30]
    seen: list[Tensor] = []

    class Watch(Method):
        def finish_client(self, client: Any) -> dict[str, Tensor]:
            seen.append(client.state.model[1].running_var.clone())
            return {}

    rounds(workload, FedNova(), Watch())
    layer = cast(nn.BatchNorm1d, workload.model[1])
    assert layer.running_var is not None
    torch.testing.assert_close(layer.running_var, (seen[0] + seen[1]) / 2)


def test_medians_and_trimmed_means_by_hand() -> None:
    values = torch.tensor([[5.0, -1], [1, 0], [2, 100], [3, 7]])
    assert trimmed_mean(values, 1).tolist() == [2.5, 3.5]
    assert trimmed_mean(values[:3], 1).tolist() == [2.0, 0.0]
    with pytest.raises(ValueError, match="cut: found 2 at each end of 4 values"):
        trimmed_mean(values, 2)
    # Two clients: the median is the mean of both updates, whatever their sizes.
    assert rounds(two(), FedMedian()).weight == pytest.approx(1 + (-0.1 + 0.6) / 2)
    five = Pulls([0.0, 1, 2, 3, 1e9], [1.0] * 5, [1, 2, 3, 4, 5], [1] * 5)
    assert rounds(five, FedMedian()).weight == pytest.approx(1 + 0.1)
    five = Pulls([0.0, 1, 2, 3, 1e9], [1.0] * 5, [1, 2, 3, 4, 5], [1] * 5)
    assert rounds(five, TrimmedMean(trim=0.2)).weight == pytest.approx(1 + 0.1)
    assert rounds(two((1, 1), (5, 5)), TrimmedMean(trim=0.0)).weight == pytest.approx(1.25)


class Broken(Method):
    """The second client sends what is no number."""

    def __init__(self, sent: float) -> None:
        self.sent = sent

    def finish_client(self, client: Any) -> dict[str, Tensor]:
        if client.index == 1:
            client.state.model.weight.data.fill_(self.sent)
        return {}


@pytest.mark.parametrize("sent", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", [FedAvg(), FedMedian(), Scaffold(), FedNova(), FedAlign(), TrimmedMean(trim=0.2)])
def test_a_client_that_sends_no_number_ends_the_trial_and_is_named(method: Method, sent: float) -> None:
    with pytest.raises(Diverged, match=r"not finite after round 0; so were those of clients \[1\]"):
        rounds(two(), Broken(sent), method)


@pytest.mark.parametrize("sent", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", [FedMedian(), TrimmedMean(trim=0.34)])
def test_of_three_clients_robust_rules_cut_off_the_one_that_sends_no_number(method: Method, sent: float) -> None:
    """The updates are -.1, what is no number, and .2: in order -.1, .2, the largest."""
    three = Pulls([0.0, 4.0, 3.0], [1.0] * 3, [10] * 3, [1] * 3)
    assert rounds(three, Broken(sent), method).weight == pytest.approx(1.2)


def test_a_client_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match=r"participants: found clients \[0\] without samples in round 0"):
        rounds(two(sizes=(0, 30)), FedAvg())


def test_sums_in_place_are_sums_of_updates() -> None:
    class Looks(Method):
        def after_aggregate(self, server: Any, updates: Sequence[Update]) -> None:
            assert len(updates) == 2

    assert rounds(two((4, 3)), FedAvg(), count=5).weight == rounds(two((4, 3)), FedAvg(), Looks(), count=5).weight


class Normed(Pulls):
    """The same with a BatchNorm layer beside, whose shift is pulled too."""

    def __init__(self) -> None:
        super().__init__([0.0, 4.0], [1.0, 2.0], [10, 10], [1, 1])
        self.model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double()
        self.seen: list[tuple[int, Tensor]] = []

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        inputs = torch.arange(8, dtype=torch.float64).reshape(4, 2) ** 2
        error = model(inputs) - batch["target"]
        return Objective((batch["strength"] * error**2 / 2).mean(), {}, 4)


def test_fed_bn_keeps_the_layers_of_each_client() -> None:
    class Watch(Method):
        def start_client(self, client: Any, server: Any) -> None:
            starts.append(client.state.model[1].bias.detach().clone())

        def finish_client(self, client: Any) -> dict[str, Tensor]:
            ends.append((client.state.model[1].bias.detach().clone(), client.state.model[1].running_mean.clone()))
            return {}

    starts: list[Tensor] = []
    ends: list[tuple[Tensor, Tensor]] = []
    workload = Normed()
    rounds(workload, FedBN(), Watch(), count=2)
    assert torch.equal(starts[2], ends[0][0]) and torch.equal(starts[3], ends[1][0])
    assert not torch.equal(starts[2], starts[3])
    layer = cast(nn.BatchNorm1d, workload.model[1])
    torch.testing.assert_close(layer.bias.detach(), (ends[2][0] + ends[3][0]) / 2)
    torch.testing.assert_close(layer.running_mean, (ends[2][1] + ends[3][1]) / 2)


@pytest.mark.parametrize(("build", "name"), [(lambda: FedProx(mu=-1.0), "mu"), (lambda: TrimmedMean(trim=0.5), "trim")])
def test_bad_options_are_named(build: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: found"):
        build()
