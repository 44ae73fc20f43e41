"""Balanced Adam: one memory for the gradient and for its square."""

from typing import Any, Literal

import torch

from harness import Method, Recipe, register_method


@register_method("balanced_adam")
class BalancedAdam(Method):
    r"""Adam with one memory for both moments, :math:`\beta_1 = \beta_2 = \beta`.

    The normalised update :math:`R_k = \hat m_k / \sqrt{\hat v_k}` is then invariant, to first order, to a change of the
    gradient's scale, and :math:`|R_k| \le 1` in every coordinate.
    """

    owns = frozenset({"optimizer", "betas"})
    stackable = True
    source = "arXiv 2601.21739"

    beta: float = 0.95
    decay: Literal["decoupled", "coupled"] = "decoupled"

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta: found {self.beta}, must lie in [0, 1)")

    def optimizer(self, groups: list[dict[str, Any]], recipe: Recipe, horizon: int) -> torch.optim.Optimizer:
        name = "adamw" if self.decay == "decoupled" else "adam"
        return recipe.build_optimizer(groups, name, betas=(self.beta, self.beta))
