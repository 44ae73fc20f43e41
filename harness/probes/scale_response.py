r"""How Adam's normalised update answers to a change of the gradient's scale, in closed form and as a decomposition.

Everything is about :math:`R_k = \hat m_k / \sqrt{\hat v_k}` with bias-corrected moments and no epsilon, past its transient,
on a gradient that keeps its sign. Source of the claims: arXiv 2601.21739; the discrete forms are derived here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def impulse_response(beta1: float, beta2: float, lag: int) -> float:
    r"""The relative change of the update, `lag` steps after one gradient's log-scale was off by a unit.

    .. math:: (1 - \beta_1) \beta_1^j - (1 - \beta_2) \beta_2^j

    >>> impulse_response(0.9, 0.9, 3)
    0.0
    """
    return (1 - beta1) * beta1**lag - (1 - beta2) * beta2**lag


def step_response(beta1: float, beta2: float, updates: int) -> float:
    r"""The relative change of the update after `updates` gradients at a log-scale that is off by a unit.

    .. math:: \beta_2^j - \beta_1^j

    >>> round(step_response(0.9, 0.999, 45), 3)
    0.947
    """
    return beta2**updates - beta1**updates


def drift_response(beta1: float, beta2: float) -> float:
    r"""The derivative of the update by a log-linear drift per step, at no drift.

    .. math:: \tau_2 - \tau_1, \qquad \tau_i = \beta_i / (1 - \beta_i)

    >>> round(drift_response(0.9, 0.999), 6)
    990.0
    """
    return beta2 / (1 - beta2) - beta1 / (1 - beta1)


def drift_value(beta1: float, beta2: float, drift: float) -> float:
    r"""The update under a steady log-linear drift :math:`a` per step, exactly.

    .. math:: R(a) = \frac{1 - \beta_1}{1 - \beta_1 e^{-a}} \sqrt{\frac{1 - \beta_2 e^{-2a}}{1 - \beta_2}}
    """
    first = (1 - beta1) / (1 - beta1 * math.exp(-drift))
    return first * math.sqrt((1 - beta2 * math.exp(-2 * drift)) / (1 - beta2))


def largest_update(beta1: float, beta2: float, steps: int | None = None) -> float:
    r"""The largest size of a coordinate of the update, :math:`\sup |R|`, after `steps` steps or in the limit.

    .. math:: C_t = \sqrt{\sum_k p_k^2 / q_k}, \qquad
              C_\infty = \frac{1 - \beta_1}{\sqrt{(1 - \beta_2)(1 - \beta_1^2 / \beta_2)}}

    with the bias-corrected weights p and q of the two averages. It is 1 for balanced betas.

    >>> round(largest_update(0.9, 0.999), 3), round(largest_update(0.9, 0.95), 3)
    (7.27, 1.165)
    """
    if steps is None:
        return (1 - beta1) / math.sqrt((1 - beta2) * (1 - beta1**2 / beta2))
    first, second = ((1 - beta) / (1 - beta**steps) for beta in (beta1, beta2))
    return math.sqrt(sum((first * beta1**k) ** 2 / (second * beta2**k) for k in range(steps)))


def diagonal_selection(roughness: Mapping[tuple[float, float, int], float]) -> tuple[int, int, float]:
    r"""How often :math:`\beta_2 = \beta_1` has the lowest value of its row (one :math:`\beta_1` under one seed), ties included.

    A value that is not finite counts as the worst.

    Args:
        roughness: by beta1, beta2 and seed.

    Returns:
        Successes, rows, and the binomial probability of so many by chance, each cell of a row being equally likely.

    >>> diagonal_selection({(0.9, 0.9, 0): 1.0, (0.9, 0.99, 0): 2.0, (0.99, 0.9, 0): 1.0, (0.99, 0.99, 0): math.nan})
    (1, 2, 0.75)
    """
    from scipy.stats import binom

    rows: dict[tuple[float, int], dict[float, float]] = {}
    for (beta1, beta2, seed), value in roughness.items():
        rows.setdefault((beta1, seed), {})[beta2] = value if math.isfinite(value) else math.inf
    hits = sum(math.isfinite(row[beta1]) and row[beta1] == min(row.values()) for (beta1, _), row in rows.items())
    columns = len({beta2 for _, beta2, _ in roughness})
    return hits, len(rows), float(binom.sf(hits - 1, len(rows), 1 / columns))


class LiteralDecomposition:
    r"""The update as sign, first-order term and rest, coordinate by coordinate: :math:`R = S + L + E`.

    .. math:: S = \mathrm{sign}(g_k), \qquad
              L = S \left( \mathrm{EMA}_{\beta_1}[\log |g|] - \mathrm{EMA}_{\beta_2}[\log |g|] \right), \qquad E = R - S - L

    with bias-corrected averages of the whole history in double precision. A coordinate counts where its last `window`
    gradients have one sign and none is 0, and `burn_in` steps have passed. Source: the released code of arXiv 2601.21739.
    """

    def __init__(self, beta1: float, beta2: float, window: int, burn_in: int = 200, eps: float = 1e-8) -> None:
        self.betas, self.window, self.burn_in, self.eps = (beta1, beta2), window, burn_in, eps
        self.steps = 0
        self.averages: list[Tensor] = []
        self.sums = dict.fromkeys(("count", "S", "L", "E", "L+E", "E2", "(R-S)2", "agree"), 0.0)

    def update(self, gradient: Tensor) -> None:
        """Takes the next gradient in: one vector of all coordinates."""
        g = gradient.detach().double()
        if not self.averages:
            self.averages = [torch.zeros_like(g) for _ in range(4)]
            self._sign, self._run = torch.zeros_like(g), torch.zeros_like(g)
        self.steps += 1
        log, sign = g.abs().clamp(min=torch.finfo(torch.float64).tiny).log(), g.sign()
        (beta1, beta2), corrected = self.betas, []
        for average, beta, value in zip(self.averages, (beta1, beta2, beta1, beta2), (g, g * g, log, log), strict=True):
            average.mul_(beta).add_(value, alpha=1 - beta)
            corrected.append(average / (1 - beta**self.steps))
        self._run = torch.where(sign == 0, 0, torch.where(sign == self._sign, self._run + 1, 1))
        self._sign = sign
        if self.steps <= self.burn_in or self.steps < self.window:
            return
        counted = self._run >= self.window
        m, v, log1, log2 = (value[counted] for value in corrected)
        s = sign[counted]
        update, first = m / (v.sqrt() + self.eps), s * (log1 - log2)
        rest = update - s - first
        self._add(s, first, rest, update)

    def _add(self, s: Tensor, first: Tensor, rest: Tensor, update: Tensor) -> None:
        beyond = update - s
        new: dict[str, Tensor | int] = {
            "count": len(s),
            "S": s.abs().sum(),
            "L": first.abs().sum(),
            "E": rest.abs().sum(),
        }
        new |= {"L+E": (first + rest).abs().sum(), "E2": rest.square().sum(), "(R-S)2": beyond.square().sum()}
        new["agree"] = (first.sign() == beyond.sign()).sum()
        for name, value in new.items():
            self.sums[name] += float(value)

    def shares(self) -> dict[str, float]:
        """Percentages of S, L and E, what L and E cancel (`kappa`), what L explains (`F2`, %), and agreement of signs (%)."""
        sums = self.sums
        total = sums["S"] + sums["L"] + sums["E"]
        if not total or not sums["L+E"]:
            return {"count": sums["count"]}
        found = {name: 100 * sums[name] / total for name in ("S", "L", "E")}
        found |= {"count": sums["count"], "kappa": (sums["L"] + sums["E"]) / sums["L+E"]}
        return found | {
            "F2": 100 * (1 - sums["E2"] / sums["(R-S)2"]),
            "agreement": 100 * sums["agree"] / sums["count"],
        }


def replay(gradients: Sequence[Tensor], beta1: float, beta2: float, eps: float = 0.0) -> list[Tensor]:
    """Adam's normalised updates on a given sequence of gradients, in their precision."""
    m, v, updates = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0]), []
    for step, gradient in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient * gradient
        updates.append(m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + eps))
    return updates
