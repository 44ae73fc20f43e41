"""FedOUI: clients whose activation structure is atypical for the round count less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincc
from torch import Tensor

from harness import Client, Method, Server, Update, register_method
from harness.activations import oui as oui_of
from harness.activations import pre_activations

EPSILON = 1e-3
Array = NDArray[np.float64]
Fallback = Literal["mle", "ranks"]


def beta_fit(values: ArrayLike, fallback: Fallback = "mle") -> tuple[float, float] | None:
    r"""Parameters of a Beta distribution for OUIs, by moments.

    With :math:`x = \mathrm{clip}(\mathrm{OUI}, \epsilon, 1 - \epsilon)`, its mean :math:`\mu` and its sample variance
    :math:`v`, :math:`c = \mu(1-\mu)/v - 1`, :math:`\alpha = \mu c`, :math:`\beta = (1 - \mu) c`. Where :math:`c \le 0`
    the moments fit no Beta distribution, and maximum likelihood takes over (`fallback="mle"`).

    Source: arXiv 2605.11571, released code.

    Returns:
        (α, β), or None where there is no fit: fewer than three values, all of them equal, no convergence.
    """
    x = np.clip(np.asarray(values, dtype=np.float64), EPSILON, 1 - EPSILON)
    if len(x) < 3 or np.ptp(x) == 0:
        return None
    mean, variance = float(x.mean()), float(x.var(ddof=1))
    concentration = mean * (1 - mean) / variance - 1
    if concentration > 0:
        return mean * concentration, (1 - mean) * concentration
    return _most_likely(x) if fallback == "mle" else None


def _most_likely(x: Array) -> tuple[float, float] | None:
    from scipy import stats  # half a second to import, and no released round comes here

    try:
        alpha, beta, _, _ = stats.beta.fit(x, floc=0, fscale=1)
    except (stats.FitError, RuntimeError, ValueError):
        return None
    good = np.isfinite([alpha, beta]).all() and min(alpha, beta) > 0
    return (float(alpha), float(beta)) if good else None


def typicality(oui: ArrayLike, pool: ArrayLike = (), fallback: Fallback = "mle") -> Array:
    r"""Bilateral typicity :math:`s_k = 2 \min(F_k, 1 - F_k)` of each OUI in the Beta distribution fitted to a round.

    Without a fit, :math:`F_k` is the average rank over :math:`K + 1`: 1/2 for all where the OUIs are equal.

    Args:
        oui: (clients,) of the round.
        pool: OUIs of earlier rounds that the fit takes in besides.
        fallback: what comes after a moment fit that is impossible: maximum likelihood and then ranks, or ranks at once.

    Raises:
        ValueError: for an OUI that is not a number in [0, 1].

    >>> typicality([0.3, 0.3, 0.3])
    array([1., 1., 1.])
    >>> typicality([0.1, 0.2]).round(4)  # ranks 1/3 and 2/3
    array([0.6667, 0.6667])
    """
    values = np.asarray(oui, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"oui: found {values.tolist()}, must lie in [0, 1]")
    fit = beta_fit(np.concatenate([values, np.asarray(pool, dtype=np.float64)]), fallback)
    if fit is None:
        from scipy.stats import rankdata

        ranks = rankdata(values) / (len(values) + 1)
        return 2 * np.minimum(ranks, 1 - ranks)
    x = np.clip(values, 1e-4, 1 - 1e-4)
    return 2 * np.minimum(betainc(*fit, x), betaincc(*fit, x))


def factors(oui: ArrayLike, gamma: float = 1.0, pool: ArrayLike = (), fallback: Fallback = "mle") -> Array:
    r"""What each client's size is multiplied with: :math:`(s_k + \epsilon)^\gamma`."""
    return (typicality(oui, pool, fallback) + EPSILON) ** gamma


def weights(oui: ArrayLike, sizes: ArrayLike, gamma: float = 1.0, rho: float = 1.0, pool: ArrayLike = ()) -> Array:
    r"""The share of each client in a round: :math:`w_k \propto n_k^\rho (s_k + \epsilon)^\gamma`.

    Source: arXiv 2605.11571; all its released rounds agree to 1e-9.

    Args:
        oui: (clients,) after local training.
        sizes: (clients,) numbers of training samples.

    A released round:

    >>> oui = [0.12646484375, 0.25732421875, 0.31005859375, 0.31787109375, 0.37158203125]
    >>> weights(oui, [210, 226, 66, 40, 17]).round(4)
    array([0.0538, 0.689 , 0.1534, 0.0854, 0.0184])
    """
    raw = np.asarray(sizes, dtype=np.float64) ** rho * factors(oui, gamma, pool)
    return raw / raw.sum()


@register_method("fed_oui")
class FedOUI(Method):
    r"""Weights clients by how typical their OUI is in the round: a Beta distribution is fitted to the round's OUIs.

    The factor is :math:`n_k^{\rho - 1} (s_k + \epsilon)^\gamma`. A client's OUI is taken after its local training on the
    pre-activations of its last gate, for `probe` of its own samples: the same at every visit, without augmentation (in
    the authors' code the probe is augmented, so its pixels vary).
    """

    needs = frozenset({"clients", "gates"})
    source = "arXiv 2605.11571"

    gamma: float = 1.0
    rho: float = 1.0
    probe: int = 32
    window: int = 1  # rounds whose OUIs are pooled in the fit, the present one included; the paper's alternative is 5
    fallback: Fallback = "mle"

    def __post_init__(self) -> None:
        for name, lowest in (("probe", 2), ("window", 1)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name}: found {getattr(self, name)}, must be at least {lowest}")
        for name in ("gamma", "rho"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, must not be negative")
        self._earlier: list[list[float]] = []

    def finish_client(self, client: Client) -> dict[str, Tensor]:
        state = client.state
        generator = state.streams.fresh(f"method/fed_oui/{client.index}")
        inputs = state.workload.client_inputs(client.index, self.probe, generator)  # type: ignore[attr-defined]
        seen = pre_activations(state.model, inputs)
        value = oui_of(list(seen.values())[-1])
        state.act("oui", {str(client.index): value})
        return {"oui": torch.tensor(value, dtype=torch.float64)}

    def factor(self, updates: Sequence[Update]) -> Tensor:
        oui = [float(update.payload["oui"]) for update in updates]
        pool = [value for values in self._earlier for value in values]
        sizes = np.array([update.size for update in updates], dtype=np.float64)
        return torch.from_numpy(sizes ** (self.rho - 1) * factors(oui, self.gamma, pool, self.fallback))

    def after_aggregate(self, server: Server, updates: Sequence[Update]) -> None:
        self._earlier.append([float(update.payload["oui"]) for update in updates])
        self._earlier = self._earlier[max(0, len(self._earlier) - self.window + 1) :]

    def state_dict(self) -> dict[str, Any]:
        return {"earlier": self._earlier}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._earlier = [list(values) for values in state["earlier"]]
