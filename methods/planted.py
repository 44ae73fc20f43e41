"""Planted differences: what a comparison must not find, and what it must find.

A grid's claims are worth as much as its controls. `placebo + m` is m under another name: a verdict that calls it better or
worse is wrong. `handicap + m` is m made worse on purpose: a grid that does not find that would not have found less.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from harness import Method, Recipe, Workload, register_method

Groups = list[dict[str, Any]]


@register_method("placebo")
class Placebo(Method):
    """Changes nothing but the luck: the null control of a grid, `placebo + m` against m.

    Every weight of two dimensions or more is moved at the start by normal noise of `jitter` times the standard deviation of
    its entries, so the run takes another course and the two differ by no more than two runs of one method do. Without
    noise they would be equal to the bit, and the comparison empty. Other parameters start as they are.
    """

    stackable = True
    disabled = ({"jitter": 0.0}, "handicap", {"rate": 1.0})

    jitter: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter: found {self.jitter}, must lie in [0, 1]")

    @torch.no_grad()
    def adapt(self, model: nn.Module, workload: Workload) -> nn.Module:
        for parameter in model.parameters() if self.jitter else ():
            if parameter.ndim >= 2:
                # From torch's default stream, which is the trial's `method` stream here; on the CPU, for the same on every device.
                noise = torch.randn(parameter.shape, dtype=parameter.dtype).to(parameter.device)
                parameter.add_(noise, alpha=self.jitter * float(parameter.std(correction=0)))
        return model


@register_method("handicap")
class Handicap(Method):
    """The learning rate times `rate`: the positive control of a grid, m against `handicap + m`."""

    stackable = True
    disabled = ({"rate": 1.0}, "placebo", {"jitter": 0.0})

    rate: float = 0.01

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"rate: found {self.rate}, must be positive")

    def parameter_groups(self, groups: Groups, recipe: Recipe) -> Groups:
        return [{**group, "lr_factor": group.get("lr_factor", 1.0) * self.rate} for group in groups]
