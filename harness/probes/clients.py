"""What the clients of a federated round sent, and how their updates lie to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from harness.activations import observe, oui, pre_activations
from harness.method import Round, State, geometry
from harness.probe import Probe
from harness.registry import register_probe


@register_probe("clients")
class Clients(Probe):
    r"""The round's clients: norms of their updates, alignment with the aggregate, shares, and what methods had them send.

    By `probe/clients/`: `update_norm` and `alignment` (the cosine with the weighted mean update) as mean, least and most;
    `effective` is :math:`1 / \sum_k w_k^2`, the number of equal shares that would be as uneven; `payload/NAME` (an OUI) as mean,
    least, most and deviation. With `each` every client's own numbers are there too: `update_norm/3`.

    With `oui`, a number of samples, `oui` is there the same way: that of each client's network after its visit, at its last gate,
    on as many of its own samples, the same at every visit; whatever the method. (What FedOUI weighs by comes as `payload/oui`.)

    `barrier` is :math:`L(\sum_k w_k \theta_k) - \sum_k w_k L(\theta_k)` on the validation part: below zero, averaging the
    weights is better than the clients are on average. It costs one evaluation per client and one more.

    Shares are the clients' sizes times the methods' factors: under a rule that owns the aggregation (a median, FedNova) they
    describe the average that was not taken.
    """

    needs = frozenset({"clients"})
    source = "barrier: Frankle et al. 2020, arXiv 1912.05671; OUI: arXiv 2605.11571"

    barrier: bool = True
    each: bool = False
    oui: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.oui < 0 or self.oui == 1:
            raise ValueError(f"oui: found {self.oui}, must be 0 (none) or at least 2 samples")

    def after_step(self, state: State) -> dict[str, float]:
        round = state.round
        assert round is not None
        names = [name for name, _ in state.model.named_parameters() if name in round.start]
        norms, alignment = geometry(round.updates, round.weights, names)
        values: dict[str, Tensor] = {"update_norm": norms, "alignment": alignment, "weight": round.weights}
        for name, sent in round.updates[0].payload.items():
            if sent.numel() == 1:
                values[f"payload/{name}"] = torch.stack([u.payload[name].double().cpu() for u in round.updates])
        if self.oui:
            values["oui"] = torch.tensor(client_ouis(state, round, self.oui), dtype=torch.float64)
        measured = {"effective": float(1 / round.weights.square().sum())}
        for name, value in values.items():
            measured |= {f"{name}/mean": float(value.mean()), f"{name}/least": float(value.min())}
            measured |= {f"{name}/most": float(value.max()), f"{name}/deviation": float(value.std(correction=0))}
            if self.each:
                clients = [update.client for update in round.updates]
                measured |= {f"{name}/{client}": float(v) for client, v in zip(clients, value, strict=True)}
        if self.barrier:
            measured["barrier"] = barrier(state, round)
        return {f"clients/{name}": value for name, value in measured.items()}


@contextmanager
def on_weights(state: State, round: Round) -> Iterator[Callable[[Mapping[str, Tensor]], None]]:
    """Gives a function that puts a change of the round's first weights into the model; at the end the present ones are back."""
    live = {n: t.detach() for n, t in (*state.model.named_parameters(), *state.model.named_buffers())}
    present = {name: live[name].clone() for name in round.start}

    def put(change: Mapping[str, Tensor]) -> None:
        for name, delta in change.items():
            live[name].copy_(round.start[name] + delta)

    try:
        yield put
    finally:
        for name, tensor in present.items():
            live[name].copy_(tensor)


def barrier(state: State, round: Round) -> float:
    """Validation loss of the averaged weights, less the average of the clients' validation losses."""
    shares = round.weights.tolist()
    average = {
        name: sum(share * update.delta[name] for share, update in zip(shares, round.updates, strict=True))
        for name in round.start
    }
    with on_weights(state, round) as put, observe(state.model):

        def loss(change: Mapping[str, Tensor]) -> float:
            put(change)
            return state.workload.evaluate(state.model, "val")["loss"]

        alone = sum(share * loss(update.delta) for share, update in zip(shares, round.updates, strict=True))
        return loss(average) - alone


def client_ouis(state: State, round: Round, samples: int) -> list[float]:
    """The OUI of each client's network as its visit left it, at the last gate, on samples of its own."""
    found = []
    with on_weights(state, round) as put:
        for update in round.updates:
            put(update.delta)
            generator = state.streams.fresh(f"probe/clients/{update.client}")
            inputs = state.workload.client_inputs(update.client, samples, generator)  # type: ignore[attr-defined]
            found.append(oui(list(pre_activations(state.model, inputs).values())[-1]))
    return found
