"""Aggregation by order statistics: a minority of corrupted updates cannot move it far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness import Method, Update, register_method


def trimmed_mean(values: Tensor, cut: int) -> Tensor:
    """The mean over the first dimension without the `cut` smallest and the `cut` largest values of each coordinate.

    NaN sorts last, so that more than `cut` of them are seen in the result.

    Raises:
        ValueError: if nothing is left.

    >>> trimmed_mean(torch.tensor([[1.0], [2.0], [6.0], [90.0]]), 1)
    tensor([4.])
    """
    if not 0 <= cut < len(values) / 2:
        raise ValueError(f"cut: found {cut} at each end of {len(values)} values, allowed: less than half of them")
    return values.sort(dim=0).values[cut : len(values) - cut].mean(dim=0)


@register_method("fed_median")
class FedMedian(Method):
    """The median of the clients' updates in each coordinate (the mean of the middle two of an even number).

    Sizes and the factors of other methods do not enter.
    """

    needs = frozenset({"clients"})
    owns = frozenset({"aggregation"})
    source = "Yin et al. 2018, arXiv 1803.01498"

    def aggregate(self, updates: Sequence[Update], weights: Tensor) -> dict[str, Tensor]:
        cut = (len(updates) - 1) // 2
        return {name: trimmed_mean(torch.stack([u.delta[name] for u in updates]), cut) for name in updates[0].delta}


@register_method("trimmed_mean")
class TrimmedMean(Method):
    """The mean of the clients' updates without the share `trim` of the smallest and of the largest in each coordinate.

    Sizes and the factors of other methods do not enter.
    """

    needs = frozenset({"clients"})
    owns = frozenset({"aggregation"})
    source = "Yin et al. 2018, arXiv 1803.01498"

    trim: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.trim < 0.5:
            raise ValueError(f"trim: found {self.trim}, must lie in [0, 0.5)")

    def aggregate(self, updates: Sequence[Update], weights: Tensor) -> dict[str, Tensor]:
        cut = int(self.trim * len(updates))
        return {name: trimmed_mean(torch.stack([u.delta[name] for u in updates]), cut) for name in updates[0].delta}
