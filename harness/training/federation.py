"""The federated loop: rounds of clients around the inner step of the one training loop.

A round is a step of the server: what records, evaluations and schedules of a federated trial count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.composition import Composition
from harness.method import Client, Server, Update
from harness.task import FederatedWorkload
from harness.training.loop import Training, build_optimizer, set_rate, take_step


def travelling(model: torch.nn.Module) -> dict[str, Tensor]:
    """What travels between server and clients: parameters and floating-point buffers, the model's own tensors."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def advance(training: Training) -> None:
    """One round: the participants train from the server's weights, and the server takes their updates in."""
    state, method = training.state, training.method
    workload = training.workload
    assert isinstance(workload, FederatedWorkload)
    round = state.step
    live = travelling(state.model)
    server = Server(round, {name: tensor.clone() for name, tensor in live.items()})
    updates = []
    for index in workload.participants(round):
        _assign(live, server.weights)
        updates.append(_visit(training, server, index))
        state.step = round  # a client's steps are its own; the trial counts rounds
    state.horizon = state.recipe.length
    weights = client_weights(method, updates)
    change = method.aggregate(updates, weights) or weighted_sum(updates, weights)
    for name, delta in change.items():
        server.weights[name] += delta
    _assign(live, server.weights)
    state.step = round + 1
    method.after_aggregate(server, updates)
    state.optimizer = None  # a client's optimizer ends with its visit


def _visit(training: Training, server: Server, index: int) -> Update:
    """A client's visit: its local steps with an optimizer of its own, and what it sends back."""
    state, method, workload = training.state, training.method, training.workload
    assert isinstance(workload, FederatedWorkload)
    state.horizon = workload.enter(index, server.round)
    state.step = 0
    state.optimizer = build_optimizer(method, state)
    set_rate(state, state.recipe.rate_factor(server.round))
    client = Client(index, workload.sizes[index], state)
    method.start_client(client, server)
    for _ in range(state.horizon):
        training.samples += take_step(state, method)
        training.interval.add(state.objectives)
    payload = method.finish_client(client)
    live = travelling(state.model)
    delta = {name: live[name] - before for name, before in server.weights.items()}
    return Update(index, client.size, delta, payload)


def client_weights(method: Composition, updates: Sequence[Update]) -> Tensor:
    """Each client's share: its size times the product of the methods' factors, normalised once.

    Raises:
        ValueError: if a factor is not positive and finite.
    """
    weights = torch.tensor([update.size for update in updates], dtype=torch.float64)
    factor = method.factor(updates)
    if factor is not None:
        factor = factor.double().cpu()
        if not bool((torch.isfinite(factor) & (factor > 0)).all()):
            raise ValueError(f"factor: found {factor.tolist()}, must be positive and finite")
        weights = weights * factor
    return weights / weights.sum()


def weighted_sum(updates: Sequence[Update], weights: Tensor) -> dict[str, Tensor]:
    """Federated averaging: the sum of the updates times their weights."""
    total = {name: torch.zeros_like(delta) for name, delta in updates[0].delta.items()}
    for update, weight in zip(updates, weights.tolist(), strict=True):
        for name, delta in update.delta.items():
            total[name].add_(delta, alpha=weight)
    return total


def _assign(live: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, tensor in live.items():
        tensor.copy_(values[name])
