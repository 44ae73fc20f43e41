"""What the clients of a federated round sent, and how their updates lie to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from harness.activations import observe
from harness.method import Round, State, Update
from harness.probe import Probe
from harness.registry import register_probe


@register_probe("clients")
class Clients(Probe):
    r"""The round's clients: norms of their updates, alignment with the aggregate, shares, and what methods had them send.

    By `probe/clients/`: `update_norm` and `alignment` (the cosine with the weighted mean update) as mean, least and most;
    `effective` is :math:`1 / \sum_k w_k^2`, the number of equal shares that would be as uneven; `payload/NAME` (an OUI) as mean,
    least, most and deviation. With `each` every client's own numbers are there too: `update_norm/3`.

    `barrier` is :math:`L(\sum_k w_k \theta_k) - \sum_k w_k L(\theta_k)` on the validation part: below zero, averaging the
    weights is better than the clients are on average. It costs one evaluation per client and one more.
    """

    needs = frozenset({"clients"})
    source = "barrier: Frankle et al. 2020, arXiv 1912.05671"

    barrier: bool = True
    each: bool = False

    def after_step(self, state: State) -> dict[str, float]:
        round = state.round
        assert round is not None
        names = [name for name, _ in state.model.named_parameters() if name in round.start]
        norms, alignment = geometry(round.updates, round.weights, names)
        values: dict[str, Tensor] = {"update_norm": norms, "alignment": alignment, "weight": round.weights}
        for name, sent in round.updates[0].payload.items():
            if sent.numel() == 1:
                values[f"payload/{name}"] = torch.stack([u.payload[name].double().cpu() for u in round.updates])
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


def geometry(updates: Sequence[Update], weights: Tensor, names: list[str]) -> tuple[Tensor, Tensor]:
    """Norm of each update, and its cosine with their weighted mean, over the tensors of these names: (updates,) each.

    An update of zeros has the cosine 0.
    """
    shares = weights.double().cpu()
    inner, squares = torch.zeros(len(updates), dtype=torch.float64), torch.zeros(len(updates), dtype=torch.float64)
    total = 0.0
    for name in names:
        flat = torch.stack([update.delta[name].double().cpu().flatten() for update in updates])
        mean = shares @ flat
        inner, squares, total = (
            inner + flat @ mean,
            squares + flat.square().sum(dim=1),
            total + float(mean.square().sum()),
        )
    norms = squares.sqrt()
    lengths = norms * total**0.5
    return norms, torch.where(lengths > 0, inner / lengths.clamp(min=1e-300), 0.0)


def barrier(state: State, round: Round) -> float:
    """Validation loss of the averaged weights, less the average of the clients' validation losses."""
    live = {n: t.detach() for n, t in (*state.model.named_parameters(), *state.model.named_buffers())}
    present = {name: live[name].clone() for name in round.start}

    def loss(change: Mapping[str, Tensor]) -> float:
        for name, delta in change.items():
            live[name].copy_(round.start[name] + delta)
        return state.workload.evaluate(state.model, "val")["loss"]

    shares = round.weights.tolist()
    average = {
        name: sum(share * update.delta[name] for share, update in zip(shares, round.updates, strict=True))
        for name in round.start
    }
    try:
        with observe(state.model):
            alone = sum(share * loss(update.delta) for share, update in zip(shares, round.updates, strict=True))
            return loss(average) - alone
    finally:
        for name, tensor in present.items():
            live[name].copy_(tensor)
