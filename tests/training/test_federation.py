"""The federated loop on a model with BatchNorm and dropout, where visits could leak into each other."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from harness import Batch, FederatedWorkload, Method, Objective, Recipe, Server, Update, weighted_sum
from harness.composition import Composition
from harness.method import Client, State
from harness.streams import Streams
from harness.training.federation import advance, client_weights
from harness.training.state import Training
from harness.training.stepping import Diverged


class Toy(FederatedWorkload):
    """Three clients of 4, 8 and 12 samples; one local step is one batch of all of them."""

    def __init__(self, order: Sequence[int] = (0, 1, 2), broken: int | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
        self.model.register_buffer("scratch", torch.zeros((), dtype=torch.int64), persistent=False)
        self.sizes = [4, 8, 12]
        self.data = [torch.randn(size, 3) for size in self.sizes]
        if broken is not None:
            self.data[broken][0, 0] = torch.nan
        self.probe_inputs = torch.randn(5, 3)
        self.order = list(order)

    def participants(self, round: int) -> list[int]:
        return self.order

    def enter(self, client: int, round: int) -> int:
        self.client = client
        return 2

    def client_data(self, client: int) -> Batch:
        return {"inputs": self.data[client]}

    def next_batch(self) -> Batch:
        return self.client_data(self.client)

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        outputs = model(batch["inputs"])
        return Objective(outputs.square().mean(), {"outputs": outputs}, len(outputs))

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        return {}


class Watch(Method):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.updates: dict[int, Update] = {}
        self.counts: list[int] = []
        self.rates: list[float] = []

    def start_client(self, client: Client, server: Server) -> None:
        model = client.state.model
        self.counts.append(int(model[1].num_batches_tracked) + int(model.scratch))
        model.scratch.add_(1)

    def after_step(self, state: State) -> None:
        assert state.optimizer is not None
        self.rates.append(state.optimizer.param_groups[0]["lr"])

    def after_aggregate(self, server: Server, updates: Sequence[Update]) -> None:
        self.updates = {update.client: update for update in updates}


def training(workload: Toy, *methods: Method, **recipe: Any) -> Training:
    built = Recipe(steps=4, **{"optimizer": "sgd", "lr": 0.1, "momentum": 0.9} | recipe)
    state = State(workload.model, workload, built, Streams(0), horizon=4)
    return Training(cast(Any, None), state, Composition(methods), {}, cast(Any, None))


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_visit_does_not_depend_on_those_before_it() -> None:
    """Weights, running statistics, dropout and momentum: all of it starts anew."""
    watches = []
    for order in ((0, 1, 2), (2, 0, 1), (1,)):
        watches.append(Watch())
        advance(training(Toy(order), watches[-1]))
    for watch in watches[1:]:
        for client, update in watch.updates.items():
            assert equal(update.delta, watches[0].updates[client].delta)
    assert not equal(watches[0].updates[1].delta, watches[0].updates[2].delta)


def test_floating_buffers_are_averaged_and_counters_stay_the_servers() -> None:
    toy, watch = Toy(), Watch()
    before = {name: tensor.clone() for name, tensor in toy.model.state_dict().items()}
    run = training(toy, watch)
    advance(run)
    after = toy.model.state_dict()
    for name in ("1.running_mean", "1.running_var", "0.weight"):
        total = sum(size / 24 * watch.updates[k].delta[name] for k, size in enumerate(toy.sizes))
        torch.testing.assert_close(after[name], before[name] + total)
        assert not torch.equal(after[name], before[name])
    assert "1.num_batches_tracked" not in watch.updates[0].delta
    advance(run)
    assert watch.counts == [0] * 6
    assert int(toy.model[1].num_batches_tracked) == int(toy.model.scratch) == 0


def test_a_visit_has_the_rate_of_its_round_and_no_momentum_of_the_one_before() -> None:
    watch = Watch()
    run = training(Toy(), watch, schedule="linear")
    for _ in range(4):
        advance(run)
    assert watch.rates == pytest.approx([0.1 * (1 - round / 4) for round in range(4) for _ in range(6)])
    assert run.state.step == 4 and run.state.optimizer is None and run.state.horizon == 4
    assert run.samples == 4 * 2 * 24


def update(client: int, size: int, value: float) -> Update:
    return Update(client, size, {"w": torch.tensor([value])})


def test_weights_by_hand() -> None:
    updates = [update(0, 10, 1.0), update(1, 30, -2.0)]
    assert client_weights(updates).tolist() == [0.25, 0.75]
    weights = client_weights(updates, torch.tensor([3.0, 2.0]))
    assert weights.tolist() == pytest.approx([1 / 3, 2 / 3])
    assert weighted_sum(updates, weights)["w"].item() == pytest.approx(1 / 3 - 4 / 3)


class Factor(Method):
    def __init__(self, *values: float) -> None:
        self.values = values

    def factor(self, updates: Sequence[Update]) -> Tensor:
        return torch.tensor(self.values)


def test_factors_multiply_and_are_recorded() -> None:
    toy, watch = Toy(), Watch()
    before = toy.model[0].weight.detach().clone()
    run = training(toy, Factor(1.0, 2.0, 1.0), Factor(3.0, 3.0, 1.0), watch)
    advance(run)
    shares = torch.tensor([4 * 3.0, 8 * 6.0, 12 * 1.0]) / 72
    total = sum(share * watch.updates[k].delta["0.weight"] for k, share in enumerate(shares))
    torch.testing.assert_close(toy.model[0].weight.detach(), before + total)
    first, second = (values for _, name, values in run.state.actions if name == "factor/Factor")
    assert (first, second) == ({"0": 1.0, "1": 2.0, "2": 1.0}, {"0": 3.0, "1": 3.0, "2": 1.0})


class Aggregate(Method):
    owns = frozenset({"aggregation"})

    def __init__(self, change: Callable[[Sequence[Update]], dict[str, Tensor]]) -> None:
        self.change = change

    def aggregate(self, updates: Sequence[Update], weights: Tensor) -> dict[str, Tensor]:
        return self.change(updates)


def test_the_owner_of_aggregation_decides() -> None:
    toy = Toy()
    before = {name: tensor.clone() for name, tensor in toy.model.state_dict().items()}
    advance(training(toy, Aggregate(lambda updates: {"4.bias": torch.ones(1)})))
    after = toy.model.state_dict()
    torch.testing.assert_close(after.pop("4.bias"), before["4.bias"] + 1)
    assert equal(after, before)
    advance(training(toy, Aggregate(lambda updates: {})))
    assert equal(after, toy.model.state_dict())


@pytest.mark.parametrize("replace", [False, True])
def test_after_aggregate_may_change_the_servers_weights(replace: bool) -> None:
    class Zero(Method):
        def after_aggregate(self, server: Server, updates: Sequence[Update]) -> None:
            if replace:
                server.weights["4.bias"] = torch.zeros(1)
            else:
                server.weights["4.bias"].zero_()

    toy = Toy()
    advance(training(toy, Zero()))
    assert toy.model[4].bias.item() == 0.0


def test_actions_of_a_client_name_it() -> None:
    class Act(Method):
        def before_step(self, state: State) -> None:
            state.act("decay", {"0.weight": 0.5})

        def after_aggregate(self, server: Server, updates: Sequence[Update]) -> None:
            assert server.round == len(updates) - 2

    run = training(Toy((0, 2)), Act())
    advance(run)
    assert [(step, name) for step, name, _ in run.state.actions] == [
        (0, "decay/0/0"),
        (0, "decay/0/1"),
        (0, "decay/2/0"),
        (0, "decay/2/1"),
    ]


class Poison(Method):
    def finish_client(self, client: Client) -> dict[str, Tensor]:
        if client.index == 1:
            client.state.model[0].weight.data[0, 0] = torch.inf
        return {}


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: training(Toy(broken=2)), Diverged, "the objective is nan at step 0 of client 2 in round 0"),
        (lambda: training(Toy(), Poison()), Diverged, r"not finite after round 0; so were those of clients \[1\]"),
        (
            lambda: training(
                Toy(()),
            ),
            ValueError,
            r"participants: found \[\] in round 0",
        ),
        (
            lambda: training(Toy((1, 1))),
            ValueError,
            r"participants: found \[1, 1\] in round 0, must be distinct clients",
        ),
        (lambda: training(Toy((1, 3))), ValueError, r"participants: found \[1, 3\]"),
        (
            lambda: training(Toy(), Factor(1.0)),
            ValueError,
            r"factor: found shape \(1,\), must be \(3,\): one per update",
        ),
        (lambda: training(Toy(), Factor(1.0, 0.0, 1.0)), ValueError, "must be positive and finite"),
        (lambda: training(Toy(), Factor(1.0, float("nan"), 1.0)), ValueError, "must be positive and finite"),
        (
            lambda: training(Toy(), Aggregate(lambda updates: {"bias": torch.ones(1)})),
            ValueError,
            r"aggregate: found 'bias' of shape \(1,\), allowed: .*'4.bias': \(1,\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(build: Callable[[], Training], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        advance(build())
