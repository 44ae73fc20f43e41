"""The federated loop: rounds of clients around the inner step of the one training loop.

A round is a step of the server: what records, evaluations and schedules of a federated trial count. The clients of a round
are simulated one after the other on the one resident model. A visit is a function of the server's weights, the client and
the round: it starts from the server's tensors, with an optimizer, a default random stream and batches of its own, so the
order of the visits does not matter. Methods are resident too, and live as long as the trial: one that keeps something over
the steps of a client starts it anew in `start_client`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from harness.composition import Composition
from harness.method import Client, Server, State, Update
from harness.task import FederatedWorkload
from harness.training.loop import Diverged, Training, build_optimizer, set_rate, take_step


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's own parameters and buffers by name, detached."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def advance(training: Training) -> None:
    """One round: the participants train from the server's weights, and the server takes their updates in.

    What travels are the parameters and the floating-point buffers (BatchNorm's running statistics). Integer and boolean
    buffers (its count of batches, masks) cannot be averaged: every visit starts from the server's, and so does the next round.

    Raises:
        Diverged: if a client's objective, or what the server makes of the updates, is not finite.
        ValueError: if the task names no participants, or one twice, or a method's factors or changes do not fit.
    """
    state, method, workload = training.state, training.method, training.workload
    assert isinstance(workload, FederatedWorkload)
    round = state.step
    live = model_tensors(state.model)
    start = {name: tensor.clone() for name, tensor in live.items()}
    server = Server(round, {name: tensor for name, tensor in start.items() if tensor.is_floating_point()})
    updates = []
    for index in _participants(workload, round):
        _assign(live, start)
        updates.append(_visit(training, server, index))
    state.optimizer = None  # a client's optimizer ends with its visit
    state.step, state.horizon = round, state.recipe.length
    weights = client_weights(updates, _factor(state, method, updates))
    change = method.aggregate(updates, weights)
    _take_in(server, weighted_sum(updates, weights) if change is None else change, updates)
    state.step = round + 1
    method.after_aggregate(server, updates)
    _assign(live, start | server.weights)


def _participants(workload: FederatedWorkload, round: int) -> list[int]:
    chosen = workload.participants(round)
    clients = range(len(workload.sizes))
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(clients):
        raise ValueError(f"participants: found {chosen} in round {round}, must be distinct clients of {clients}")
    return chosen


def _visit(training: Training, server: Server, index: int) -> Update:
    """A client's visit: its local steps with an optimizer of its own, and what it sends back."""
    state, method, workload = training.state, training.method, training.workload
    assert isinstance(workload, FederatedWorkload)
    _seed_default(state.streams.seed(f"method/{server.round}/{index}"))
    state.horizon = workload.enter(index, server.round)
    state.step = 0
    state.optimizer = build_optimizer(method, state)
    set_rate(state, state.recipe.rate_factor(server.round))
    client = Client(index, workload.sizes[index], state)
    before = len(state.actions)
    method.start_client(client, server)
    for _ in range(state.horizon):
        try:
            training.samples += take_step(state, method)
        except Diverged as error:
            raise Diverged(f"{error} of client {index} in round {server.round}") from error
        training.interval.add(state.objectives)
    payload = method.finish_client(client)
    # A client's steps are its own: in the trial's records an action has the round, and its name says whose and which step.
    state.actions[before:] = [
        (server.round, f"{name}/{index}/{step}", values) for step, name, values in state.actions[before:]
    ]
    live = model_tensors(state.model)
    delta = {name: live[name] - sent for name, sent in server.weights.items()}
    return Update(index, client.size, delta, payload)


def _seed_default(seed: int) -> None:
    """Seeds what draws without a stream, such as dropout. (`torch.manual_seed` formats stack traces: half a client's visit.)"""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


def _factor(state: State, method: Composition, updates: Sequence[Update]) -> Tensor | None:
    """The methods' factors, recorded as an action by client."""
    factor = method.factor(updates)
    if factor is not None:
        if factor.shape != (len(updates),):
            raise ValueError(f"factor: found shape {tuple(factor.shape)}, must be ({len(updates)},): one per update")
        factor = factor.double().cpu()
        state.act("factor", {str(update.client): float(f) for update, f in zip(updates, factor, strict=True)})
    return factor


def client_weights(updates: Sequence[Update], factor: Tensor | None = None) -> Tensor:
    """Each client's share: its size times its factor (the product of the methods'), normalised once. Shape (updates,).

    Raises:
        ValueError: if a factor is not positive and finite.
    """
    weights = torch.tensor([update.size for update in updates], dtype=torch.float64)
    if factor is not None:
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


def _take_in(server: Server, change: dict[str, Tensor], updates: Sequence[Update]) -> None:
    for name, delta in change.items():
        if name not in server.weights or delta.shape != server.weights[name].shape:
            allowed = {known: tuple(tensor.shape) for known, tensor in server.weights.items()}
            raise ValueError(f"aggregate: found {name!r} of shape {tuple(delta.shape)}, allowed: {allowed}")
        server.weights[name] += delta
    if not _finite(server.weights):
        senders = [update.client for update in updates if not _finite(update.delta)]
        raise Diverged(
            f"the server's weights are not finite after round {server.round}; so were those of clients {senders}"
        )


def _finite(tensors: dict[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def _assign(live: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, tensor in live.items():
        tensor.copy_(values[name])
