"""AdaDecay: weight decay weight by weight, stronger where the gradient is large."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from harness import Method, Recipe, State, register_method
from methods.fixed_decay import Groups, decays, split


def decay_factors(gradient: Tensor, alpha: float = 4.0) -> Tensor:
    r"""How much of the decay each weight gets, from the size of its gradient among those of its tensor: in (0, 2).

    .. math:: \theta = \frac{2}{1 + e^{-\alpha \hat g}}, \qquad
              \hat g = \frac{|g| - \mathrm{mean}|g|}{\max(\mathrm{std}|g|, 10^{-8})}

    The standard deviation is that of the population. Source: Nakamura & Hong 2019, arXiv 1907.08931, as arXiv 2605.10161
    released it.

    >>> decay_factors(torch.tensor([1.0, -2.0, 3.0]))[1].item()
    1.0
    """
    size = gradient.abs()
    deviation = size.std(correction=0).clamp(min=1e-8)
    return 2 * torch.sigmoid(alpha * (size - size.mean()) / deviation)


@register_method("ada_decay")
class AdaDecay(Method):
    """Decay of every weight by its factor `decay_factors` times the recipe's `weight_decay`.

    `coupled` decay is added to the gradient, before or after it is clipped, and so goes through Adam's normalisation;
    `decoupled` decay is taken from the weight, times the learning rate. The released comparison sets coupled AdaDecay
    beside decoupled fixed decay: compare like with like. Biases and normalisation parameters do not decay.

    The action is `decay`: the mean rate of each tensor, at every step. A control that puts another rate in its place
    decays that tensor evenly, for it replaces the signal within the tensor too.
    """

    owns = frozenset({"decay"})
    source = "Nakamura & Hong 2019, arXiv 1907.08931"

    alpha: float = 4.0
    mode: Literal["coupled", "decoupled"] = "coupled"
    clip: Literal["before", "after"] = "before"  # whether coupled decay is added before or after clipping

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise ValueError(f"alpha: found {self.alpha}, must not be negative")

    def parameter_groups(self, groups: Groups, recipe: Recipe) -> Groups:
        return split(groups, lambda parameter: {"weight_decay": 0.0})

    def after_backward(self, state: State) -> None:
        if self.mode == "coupled" and self.clip == "before":
            self._decay(state)

    def before_step(self, state: State) -> None:
        if self.mode == "decoupled" or self.clip == "after":
            self._decay(state)

    @torch.no_grad()
    def _decay(self, state: State) -> None:
        assert state.optimizer is not None
        rates = {p: group["lr"] for group in state.optimizer.param_groups for p in group["params"]}
        weights = {n: p for n, p in state.model.named_parameters() if p in rates and p.grad is not None and decays(p)}
        factors = {name: self._factors(weight) for name, weight in weights.items()}
        if not factors:
            return
        means = torch.stack([factor.mean() for factor in factors.values()]).double().tolist()
        own = {name: state.recipe.weight_decay * mean for name, mean in zip(factors, means, strict=True)}
        for name, rate in state.act("decay", own).items():
            weight, even = weights[name], rate != own[name]
            decay = rate * weight if even else state.recipe.weight_decay * factors[name] * weight
            if self.mode == "coupled":
                assert weight.grad is not None
                weight.grad += decay
            else:
                weight.sub_(rates[weight] * decay)

    def _factors(self, weight: nn.Parameter) -> Tensor:
        assert weight.grad is not None
        return decay_factors(weight.grad, self.alpha)
