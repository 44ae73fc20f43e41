"""FedNova: updates are normalised by the local work behind them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness import Client, Method, Server, Update, register_method, weighted_sum


def local_work(steps: int, momentum: float) -> float:
    r"""The 1-norm of the coefficients that a client's gradients enter its update with, in units of the learning rate.

    :math:`\tau` steps of plain SGD: :math:`\tau`. With momentum :math:`\rho`:
    :math:`\left(\tau - \rho \frac{1 - \rho^\tau}{1 - \rho}\right) / (1 - \rho)`.

    >>> local_work(2, 0.5)  # (1 + 0.5) + 1
    2.5
    """
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


@register_method("fed_nova")
class FedNova(Method):
    r"""Averages the clients' updates per unit of local work.

    The server's change is :math:`\tau_\mathrm{eff} \sum_k w_k \Delta_k / \lVert a_k\rVert_1`
    with :math:`\tau_\mathrm{eff} = \sum_k w_k \lVert a_k\rVert_1`.

    Clients that take more steps then do not pull the server towards their own optimum. With equal work it is federated
    averaging. Optimizers other than SGD have no such coefficients: their steps are counted. Running statistics are no work
    of the gradients', and are averaged by size.
    """

    needs = frozenset({"clients"})
    owns = frozenset({"aggregation"})
    source = "Wang et al. 2020, arXiv 2007.07481"

    def __post_init__(self) -> None:
        self._parameters: frozenset[str] = frozenset()

    def start_client(self, client: Client, server: Server) -> None:
        self._parameters = frozenset(name for name, _ in client.state.model.named_parameters())

    def finish_client(self, client: Client) -> dict[str, Tensor]:
        optimizer = client.state.optimizer
        momentum = optimizer.param_groups[0]["momentum"] if isinstance(optimizer, torch.optim.SGD) else 0.0
        return {"work": torch.tensor(local_work(client.state.step, momentum), dtype=torch.float64)}

    def aggregate(self, updates: Sequence[Update], weights: Tensor) -> dict[str, Tensor]:
        work = torch.stack([update.payload["work"] for update in updates])
        normalised = weighted_sum(updates, weights * (weights @ work) / work)
        averaged = weighted_sum(updates, weights)
        return {name: normalised[name] if name in self._parameters else change for name, change in averaged.items()}
