"""The federated loop: rounds of clients around the inner step of the one training loop.

A round is a step of the server: what records, evaluations and schedules of a federated trial count. The clients of a round
are simulated one after the other on the one resident model. A visit is a function of the server's weights, the client and
the round: it starts from the server's tensors, with an optimizer, a default random stream and batches of its own, so neither
their order matters nor who makes them: several ranks share the clients of a round, in waves of one client each, and every rank
takes in every visit in the order of the clients, so that all of them have the bits of one alone. Where fewer clients arrive
than there are ranks, the ranks without one repeat a visit that another makes: what hooks steer is the same on all.

Methods are resident too, and live as long as the trial: one that keeps something over the steps of a client starts it anew in
`start_client`, and what it keeps from one visit of a client to the next lies in the client's `memory`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from harness.composition import Composition
from harness.method import Client, Method, Ranks, Round, Server, Shared, State, Update, add_scaled, weighted_sum
from harness.task import FederatedWorkload
from harness.training.state import Interval, Training
from harness.training.stepping import Diverged, build_optimizer, set_rate, take_step


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's own parameters and buffers by name, detached."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def advance(training: Training) -> None:
    """One round: the participants train from the server's weights, and the server takes their updates in.

    What travels are the parameters and the floating-point buffers (BatchNorm's running statistics), unless a method keeps
    them back. Integer and boolean buffers (its count of batches, masks) cannot be averaged: every visit starts from the
    server's, and so does the next round. Where no method and no probe looks at single updates, they are summed in place.

    Raises:
        Diverged: if a client's objective, or what the server makes of the updates, is not finite.
        ValueError: if the task names no participants, or one twice or without samples, or a method's factors or changes
            do not fit.
    """
    state, method, workload = training.state, training.method, training.workload
    assert isinstance(workload, FederatedWorkload)
    round = state.step
    live = model_tensors(state.model)
    start = {name: tensor.clone() for name, tensor in live.items()}
    server = Server(round, {n: t for n, t in start.items() if t.is_floating_point() and method.travels(n)})
    chosen = _participants(workload, round)
    sums: dict[int, Tensor] = {}
    visits = _visits(training, server, chosen, live, start, sums)
    if keeps_updates(training):
        change, updates = _aggregate(training, server, list(visits), start)
    else:
        change, updates = _sum_in_place(visits, [workload.sizes[index] for index in chosen]), []
    state.optimizer = None  # a client's optimizer ends with its visit
    state.step, state.horizon = round, state.recipe.length
    _take_in(server, workload.server_change(change), sums)
    state.step = round + 1
    method.after_aggregate(server, updates)
    _assign(live, start | server.weights)


def keeps_updates(training: Training) -> bool:
    """Whether a rule or a probe needs every update of a round; otherwise they are summed as they come."""
    hooks = ("factor", "aggregate", "after_aggregate")
    rules = any(
        getattr(type(method), hook) is not getattr(Method, hook) for method in training.method.methods for hook in hooks
    )
    return rules or any("clients" in probe.needs for probe in training.probes.values())


def _visits(
    training: Training,
    server: Server,
    chosen: list[int],
    live: dict[str, Tensor],
    start: dict[str, Tensor],
    sums: dict[int, Tensor],
) -> Iterable[Update]:
    """The participants' visits in their order; what they did, sent and received is counted at the end.

    `sums` gets the sum of each update, unread: it tells who sent what is not finite, if that is ever asked.
    """
    assert isinstance(training.workload, FederatedWorkload)
    ranks, steps, up, down = training.state.ranks, 0, 0, 0
    for first in range(0, len(chosen), ranks.world):
        wave = chosen[first : first + ranks.world]
        own: Shared = {}
        if (
            ranks.index < len(wave) or first == 0
        ):  # in every round each rank's methods meet a client, be it another rank's
            _assign(live, start)
            own = _visit(training, server, wave[ranks.index % len(wave)], live)
        for owner, index in enumerate(wave):
            visit = ranks.share(owner, own)
            update = _take_note(training, index, visit)
            steps += visit["steps"]
            up += _bytes(update.delta) + _bytes(update.payload)
            down += _bytes(server.weights) + visit["down"]
            sums[index] = torch.stack([tensor.sum() for tensor in update.delta.values()]).sum()
            yield update
    training.workload.count(steps, up, down)


def _take_note(training: Training, index: int, visit: Shared) -> Update:
    """Takes in what a visit left behind, on whichever rank it was made, and returns what the client sent."""
    assert isinstance(training.workload, FederatedWorkload)
    if "diverged" in visit:
        raise Diverged(visit["diverged"])
    training.samples += visit["samples"]
    training.interval.merge(visit["sums"], visit["count"])
    training.state.actions += visit["actions"]
    if visit["memory"]:
        training.clients[index] = visit["memory"]
    return Update(index, training.workload.sizes[index], visit["delta"], visit["payload"])


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _aggregate(
    training: Training, server: Server, updates: list[Update], start: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[Update]]:
    """The change that the methods' rules make of the updates."""
    state, method = training.state, training.method
    state.optimizer = None
    state.step = server.round
    weights = client_weights(updates, _factor(state, method, updates))
    if training.probes:
        state.round = Round({name: start[name] for name in server.weights}, updates, weights)
    change = method.aggregate(updates, weights)
    return (weighted_sum(updates, weights) if change is None else change), updates


def _sum_in_place(visits: Iterable[Update], sizes: list[int]) -> dict[str, Tensor]:
    """Federated averaging with one update in memory: to the bit what `weighted_sum` gives."""
    total: dict[str, Tensor] = {}
    weights = torch.tensor(sizes, dtype=torch.float64)
    for update, weight in zip(visits, (weights / weights.sum()).tolist(), strict=True):
        total = total or {name: torch.zeros_like(delta) for name, delta in update.delta.items()}
        add_scaled(total, update.delta, weight)
    return total


def _participants(workload: FederatedWorkload, round: int) -> list[int]:
    chosen = workload.participants(round)
    clients = range(len(workload.sizes))
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(clients):
        raise ValueError(f"participants: found {chosen} in round {round}, must be distinct clients of {clients}")
    if empty := [index for index in chosen if workload.sizes[index] < 1]:
        raise ValueError(f"participants: found clients {empty} without samples in round {round}, must have one or more")
    return chosen


def _visit(training: Training, server: Server, index: int, live: dict[str, Tensor]) -> Shared:
    """A client's visit on this rank: its local steps with an optimizer of its own, and all that it leaves behind."""
    state, workload = training.state, training.workload
    assert isinstance(workload, FederatedWorkload)
    client = Client(index, workload.sizes[index], state, dict(training.clients.get(index, {})))
    actions, state.actions = state.actions, []
    ranks, state.ranks = state.ranks, Ranks()  # a visit is one rank's own
    try:
        return _trained(training, server, client, live)
    except Diverged as error:
        return {"diverged": f"{error} of client {index} in round {server.round}"}
    finally:
        state.actions, state.ranks = actions, ranks


def _trained(training: Training, server: Server, client: Client, live: dict[str, Tensor]) -> Shared:
    state, method, workload, index = training.state, training.method, training.workload, client.index
    assert isinstance(workload, FederatedWorkload)
    server.payload = {}
    _seed_default(state.streams.seed(f"method/{server.round}/{index}"))
    state.horizon = workload.enter(index, server.round)
    state.step = 0
    state.optimizer = build_optimizer(method, state)
    set_rate(state, state.recipe.rate_factor(server.round))
    samples, interval = 0, Interval()
    method.start_client(client, server)
    for _ in range(state.horizon):
        seen, recorded = take_step(state, method)
        samples += seen
        interval.add(recorded)
    payload = method.finish_client(client)
    return {
        "delta": {name: live[name] - sent for name, sent in server.weights.items()},
        "payload": payload,
        "memory": client.memory,
        "steps": state.horizon,
        "samples": samples,
        "sums": interval.sums,
        "count": interval.count,
        # A client's steps are its own: in the trial's records an action has the round, and its name says whose and which step.
        "actions": [(server.round, f"{name}/{index}/{step}", values) for step, name, values in state.actions],
        "down": _bytes(server.payload),
    }


def _seed_default(seed: int) -> None:
    """Seeds what draws without a stream, such as dropout. (`torch.manual_seed` formats stack traces: half a client's visit.)"""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


def _factor(state: State, method: Composition, updates: Sequence[Update]) -> Tensor | None:
    """The product of the methods' factors, each recorded as an action by client."""
    product: Tensor | None = None
    for member in method.methods:
        factor = member.factor(updates)
        if factor is None:
            continue
        if factor.shape != (len(updates),):
            raise ValueError(f"factor: found shape {tuple(factor.shape)}, must be ({len(updates)},): one per update")
        factor = factor.double().cpu()
        given = {str(update.client): float(f) for update, f in zip(updates, factor, strict=True)}
        state.act(f"factor/{getattr(member, 'name', type(member).__name__)}", given)
        product = factor if product is None else product * factor
    return product


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


def _take_in(server: Server, change: dict[str, Tensor], sums: dict[int, Tensor]) -> None:
    for name, delta in change.items():
        if name not in server.weights or delta.shape != server.weights[name].shape:
            allowed = {known: tuple(tensor.shape) for known, tensor in server.weights.items()}
            raise ValueError(f"aggregate: found {name!r} of shape {tuple(delta.shape)}, allowed: {allowed}")
        server.weights[name] = server.weights[name] + delta  # not in place: a probe sees the round's first weights
    if not _finite(server.weights):
        senders = [client for client, total in sums.items() if not torch.isfinite(total)]
        raise Diverged(
            f"the server's weights are not finite after round {server.round}; so were those of clients {senders}"
        )


def _finite(tensors: dict[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def _assign(live: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, tensor in live.items():
        tensor.copy_(values[name])
