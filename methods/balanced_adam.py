"""Balanced Adam: one memory for the gradient and for its square, of a length that fits the horizon."""

from __future__ import annotations

from typing import Any, Literal

import torch

from harness import Method, Recipe, State, register_method

GRID = (0.0, 0.43766, 0.68377, 0.82217, 0.9, 0.94377, 0.96838, 0.98222, 0.99, 0.99438, 0.99684, 0.99822, 0.999)
"""The published betas: 1 − 10^(−k/4) for k = 0 to 12, rounded to five decimals."""


def refresh_beta(horizon: float, refreshes: float = 1000, snap: bool = False) -> float:
    r"""The beta whose memory is renewed `refreshes` times on the way to the best validation.

    .. math:: \hat\beta = 1 - R_0 / T

    for a horizon of T steps and R0 refreshes, and 0 (no memory at all) where the horizon is shorter than that. The memory
    :math:`1 / (1 - \beta)` is then a fixed share of the horizon.

    Source: arXiv 2605.10119. The published betas are the nearest ones of a grid, by the distance in beta.

    Args:
        horizon: steps to the best validation.
        refreshes: how often the memory is renewed.
        snap: whether to take the nearest beta of `GRID`; under 1,280 steps and 1,000 refreshes that is 0.

    >>> refresh_beta(20_000), refresh_beta(20_000, snap=True), refresh_beta(900)
    (0.95, 0.94377, 0.0)

    Raises:
        ValueError: if the horizon or the refreshes are not positive.
    """
    for name, value in (("horizon", horizon), ("refreshes", refreshes)):
        if not value > 0:
            raise ValueError(f"{name}: found {value}, must be positive")
    beta = max(0.0, 1 - refreshes / horizon)
    return min(GRID, key=lambda known: abs(known - beta)) if snap else beta


def rounded_horizon(steps: float) -> float:
    """A horizon to one significant digit, as the published ones are given.

    >>> rounded_horizon(12_800), rounded_horizon(26_600)
    (10000.0, 30000.0)
    """
    return float(f"{steps:.0e}")


def gaps(losses: dict[float, float]) -> dict[float, float]:
    """By how many percent the loss under each beta lies above the lowest.

    >>> {beta: round(gap, 6) for beta, gap in gaps({0.9: 2.0, 0.95: 2.02}).items()}
    {0.9: 0.0, 0.95: 1.0}
    """
    best = min(losses.values())
    return {beta: 100 * (loss / best - 1) for beta, loss in losses.items()}


def cvar(values: list[float]) -> float:
    """The mean of the worst quarter, rounded up: of the largest ⌈n/4⌉ values.

    >>> cvar([1.0, 5.0, 2.0, 3.0, 4.0])
    4.5
    """
    worst = sorted(values, reverse=True)[: -(-len(values) // 4)]
    return sum(worst) / len(worst)


@register_method("balanced_adam")
class BalancedAdam(Method):
    r"""Adam with one memory for both moments: β₁ = β₂ = β.

    The normalised update :math:`R_k = \hat m_k / \sqrt{\hat v_k}` is then invariant, to first order, to a change of the
    gradient's scale, and :math:`|R_k| \le 1` in every coordinate.

    With a `horizon` beta follows from the refresh rule (`refresh_beta`) and `beta` is not used. A pilot trial gives it:
    `horizon: {from: adamw, metric: steps_to_best}`. Under 1,000 steps (1,280, where beta is snapped to the published grid)
    the rule's beta is 0, and the plan says so. The action of the rule is `beta`, once.
    """

    owns = frozenset({"optimizer", "betas"})
    stackable = True
    source = "arXiv 2601.21739; the refresh rule: arXiv 2605.10119"
    disabled = ({"beta": 0.9}, "adamw", {"beta1": 0.9, "beta2": 0.9})

    beta: float = 0.95
    decay: Literal["decoupled", "coupled"] = "decoupled"
    horizon: float | None = None  # steps to the best validation
    refreshes: float = 1000.0
    snap: bool = False  # to the nearest beta of the published grid
    rounded: bool = False  # the horizon, to one significant digit

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta: found {self.beta}, must lie in [0, 1)")
        self.chosen()

    def chosen(self) -> float:
        """The beta under these options."""
        if self.horizon is None:
            return self.beta
        return refresh_beta(rounded_horizon(self.horizon) if self.rounded else self.horizon, self.refreshes, self.snap)

    def notes(self) -> list[str]:
        if self.horizon is None or self.chosen() > 0:
            return []
        return [f"the refresh rule's beta is 0 for a horizon of {self.horizon:g} steps: Adam without memory"]

    def optimizer(self, groups: list[dict[str, Any]], recipe: Recipe, horizon: int) -> torch.optim.Optimizer:
        name = "adamw" if self.decay == "decoupled" else "adam"
        return recipe.build_optimizer(groups, name, betas=(self.chosen(), self.chosen()))

    def before_step(self, state: State) -> None:
        if self.horizon is not None and state.step == 0:
            assert state.optimizer is not None
            beta = state.act("beta", {"beta": self.chosen()})["beta"]
            for group in state.optimizer.param_groups:
                group["betas"] = (beta, beta)
