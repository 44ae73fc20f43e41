"""FedAlign: clients whose update points where the round's mean update points count more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from harness import Client, Method, Server, Update, register_method

EPSILON = 1e-3
Array = NDArray[np.float64]


def alignment(deltas: Sequence[dict[str, Tensor]], sizes: ArrayLike) -> Tensor:
    r"""Cosine of each update with the mean update :math:`\bar\Delta = \sum_k n_k \Delta_k / \sum_k n_k`. Shape (clients,).

    An update of zeros has none: 0.

    >>> alignment([{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}], [3, 1]).tolist()
    [0.9486832980505138, 0.31622776601683794]
    """
    shares = torch.as_tensor(np.asarray(sizes, dtype=np.float64))
    shares = shares / shares.sum()
    inner = torch.zeros(len(deltas), dtype=torch.float64)
    squares = torch.zeros(len(deltas), dtype=torch.float64)
    total = 0.0
    for name in deltas[0]:
        flat = torch.stack([delta[name].detach().cpu().double().flatten() for delta in deltas])
        mean = shares @ flat
        inner += flat @ mean
        squares += flat.square().sum(dim=1)
        total += float(mean.square().sum())
    norms = squares.sqrt() * total**0.5
    return torch.where(norms > 0, inner / norms.clamp(min=1e-300), 0.0)


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
    """Weights clients by the cosine of their update with the round's mean update, over the parameters."""

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
        deltas = [{name: update.delta[name] for name in self._names} for update in updates]
        return torch.from_numpy(factors(alignment(deltas, [update.size for update in updates]).numpy(), self.eta))
