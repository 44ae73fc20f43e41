"""FedNova: updates are normalised by the local work behind them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness import Client, Method, Recipe, Update, register_method, weighted_sum


def local_work(steps: int, recipe: Recipe) -> float:
    r"""The 1-norm of the coefficients that a client's gradients enter its update with, in units of the learning rate.

    :math:`\tau` steps of plain SGD: :math:`\tau`. With momentum :math:`\rho`:
    :math:`\left(\tau - \rho \frac{1 - \rho^\tau}{1 - \rho}\right) / (1 - \rho)`. Other optimizers have no such
    coefficients; their steps are counted.

    >>> local_work(2, Recipe(optimizer="sgd", momentum=0.5))  # (1 + 0.5) + 1
    2.5
    """
    if recipe.optimizer != "sgd" or recipe.momentum == 0:
        return float(steps)
    rho = recipe.momentum
    return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)


@register_method("fed_nova")
class FedNova(Method):
    r"""Averages the clients' updates per unit of local work: :math:`\tau_\mathrm{eff} \sum_k w_k \Delta_k / \lVert a_k\rVert_1`
    with :math:`\tau_\mathrm{eff} = \sum_k w_k \lVert a_k\rVert_1`.

    Clients that take more steps then do not pull the server towards their own optimum. With equal work it is federated
    averaging.
    """

    needs = frozenset({"clients"})
    owns = frozenset({"aggregation"})
    source = "Wang et al. 2020, arXiv 2007.07481"

    def finish_client(self, client: Client) -> dict[str, Tensor]:
        work = local_work(client.state.step, client.state.recipe)
        return {"work": torch.tensor(work, dtype=torch.float64)}

    def aggregate(self, updates: Sequence[Update], weights: Tensor) -> dict[str, Tensor]:
        work = torch.stack([update.payload["work"] for update in updates])
        return weighted_sum(updates, weights * (weights @ work) / work)
