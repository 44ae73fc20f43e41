"""Weight decay at a fixed rate, on the weights alone: what every adaptive decay is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from harness import Method, Recipe, register_method

Groups = list[dict[str, Any]]


def split(groups: Groups, choose: Callable[[nn.Parameter], dict[str, Any]]) -> Groups:
    """Parameter groups divided by options: parameters of a group for which `choose` answers the same stay together.

    >>> import torch
    >>> weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    >>> [group["weight_decay"] for group in split([{"params": [weight, bias]}], lambda p: {"weight_decay": p.ndim})]
    [2, 1]
    """
    divided: Groups = []
    for group in groups:
        parts: dict[str, dict[str, Any]] = {}
        for parameter in group["params"]:
            options = choose(parameter)
            parts.setdefault(repr(options), {**group, **options, "params": []})["params"].append(parameter)
        divided += parts.values()
    return divided


def decays(parameter: nn.Parameter) -> bool:
    """Whether a parameter is a weight: biases, scales and shifts, of one dimension or none, do not decay."""
    return parameter.ndim >= 2


@register_method("fixed_decay")
class FixedDecay(Method):
    """Weight decay at one rate on every weight matrix and kernel; biases and normalisation parameters do not decay.

    `rate` is the recipe's `weight_decay` unless given. At the mean rate of an adaptive decay,
    `fixed_decay: {rate: {from: oui_decay, metric: actions/decay}}`, it decays every weight so, also those that the other leaves
    alone; `mean_of(oui_decay)` keeps to the other's layers. Whether decay is coupled (L2) or decoupled is the optimizer's matter.
    """

    owns = frozenset({"decay"})
    source = "arXiv 2605.10161, the fixed arm of its comparison"

    rate: float | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and self.rate < 0:
            raise ValueError(f"rate: found {self.rate}, must not be negative")

    def parameter_groups(self, groups: Groups, recipe: Recipe) -> Groups:
        rate = recipe.weight_decay if self.rate is None else self.rate
        return split(groups, lambda parameter: {"weight_decay": rate if decays(parameter) else 0.0})
