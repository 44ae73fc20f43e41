"""FedAlign: clients whose update points where the round's mean update points count more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from harness import Client, Method, Server, Update, register_method
from harness.method import geometry

EPSILON = 1e-3
Array = NDArray[np.float64]


def factors(alignment: ArrayLike, eta: float = 1.0) -> Array:
    r"""What each client's size is multiplied with: :math:`(\max(0, a_k) + \epsilon)^\eta`."""
    return (np.maximum(0.0, np.asarray(alignment, dtype=np.float64)) + EPSILON) ** eta


def weights(alignment: ArrayLike, sizes: ArrayLike, eta: float = 1.0, rho: float = 1.0) -> Array:
    r"""The share of each client in a round: :math:`w_k \propto n_k^\rho (\max(0, a_k) + \epsilon)^\eta`.

    Source: the baseline of arXiv 2605.11571; all its released rounds agree to 1e-9.

    >>> weights([0.8, -0.3], [100, 100]).round(4)
    array([0.9988, 0.0012])
    """
    raw = np.asarray(sizes, dtype=np.float64) ** rho * factors(alignment, eta)
    return raw / raw.sum()


@register_method("fed_align")
class FedAlign(Method):
    r"""Weights clients by the cosine of their update with the round's mean update, over the parameters.

    The mean is :math:`\bar\Delta = \sum_k n_k \Delta_k / \sum_k n_k`; an update of zeros has the cosine 0.
    """

    needs = frozenset({"clients"})
    source = "baseline of arXiv 2605.11571"
    disabled = ({"eta": 0.0}, "fed_avg", {})

    eta: float = 1.0

    def __post_init__(self) -> None:
        if self.eta < 0:
            raise ValueError(f"eta: found {self.eta}, must not be negative")
        self._names: list[str] = []

    def start_client(self, client: Client, server: Server) -> None:
        self._names = [name for name, _ in client.state.model.named_parameters() if name in server.weights]

    def factor(self, updates: Sequence[Update]) -> Tensor:
        sizes = torch.tensor([update.size for update in updates], dtype=torch.float64)
        _, alignment = geometry(updates, sizes / sizes.sum(), self._names)
        return torch.from_numpy(factors(alignment.numpy(), self.eta))
