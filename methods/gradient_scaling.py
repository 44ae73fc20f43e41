"""Relatives of StableGrad: other rules that set the scale of a layer's gradient or update. They are its controls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from harness import Method, Recipe, State, register_method
from methods.stable_grad import layers_of

Groups = list[dict[str, Any]]


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Their quotient; 1 where it is not a positive finite number."""
    ratio = numerator / denominator
    return torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)


@register_method("block_normalised")
class BlockNormalised(Method):
    r"""Divides each layer's gradient by its norm, bias and weight as one block.

    That is :math:`g_l / \lVert g_l \rVert_2`.
    `scale: sqrt_size` multiplies it by the square root of the block's size, so that its entries have a root mean square of 1:
    that is `stable_grad` with the reference `one`, but for the mean.
    """

    source = "Yu, Huang, Pan, Zhou & Zhang 2017, arXiv 1707.04822"

    scale: Literal["one", "sqrt_size"] = "one"

    def after_backward(self, state: State) -> None:
        for _, weight, rest in layers_of(state.model):
            block = [parameter.grad for parameter in (weight, *rest) if parameter.grad is not None]
            if block:
                norm = torch.stack(torch._foreach_norm(block, 2, dtype=torch.float64)).norm()
                size = sum(gradient.numel() for gradient in block) if self.scale == "sqrt_size" else 1
                factor = _ratio(norm.new_full((), math.sqrt(size)), norm)
                torch._foreach_mul_(block, factor.to(block[0].dtype))


def unit_norms(tensor: Tensor) -> Tensor:
    """The norm of what leads to each output unit: of a whole vector, else over all dimensions but the first."""
    dimensions = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    return torch.linalg.vector_norm(tensor, dim=dimensions, keepdim=True)


@register_method("adaptive_clip")
class AdaptiveClip(Method):
    r"""Adaptive gradient clipping: a unit's gradient is kept within a share of its weights' norm.

    Where :math:`\lVert G_i \rVert > \lambda \max(\lVert W_i \rVert, \epsilon)` for an output
    unit i, its gradient is shortened to that length. The last layer is left out, as in the paper.
    """

    source = "Brock, De, Smith & Simonyan 2021, arXiv 2102.06171"

    clipping: float = 0.01
    eps: float = 1e-3
    last_layer: Literal["clipped", "untouched"] = "untouched"

    def __post_init__(self) -> None:
        for name in ("clipping", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, must be positive")

    @torch.no_grad()
    def after_backward(self, state: State) -> None:
        layers = layers_of(state.model)
        left_out = layers[-1] if self.last_layer == "untouched" else ("", None, [])
        spared = {id(parameter) for parameter in (left_out[1], *left_out[2])}
        for parameter in state.model.parameters():
            if parameter.grad is not None and id(parameter) not in spared:
                allowed = self.clipping * unit_norms(parameter).clamp(min=self.eps)
                parameter.grad *= _ratio(allowed, unit_norms(parameter.grad)).clamp(max=1.0)


class TrustRatio(torch.optim.Optimizer):
    r"""An optimizer whose step for each tensor is as long as its weights tell: :math:`w \leftarrow w - \eta\,
    \phi(w, u)\, u` with a trust ratio :math:`\phi`. Subclasses say what `update` and `ratio` are.

    Tensors with fewer than two dimensions have the ratio 1.
    """

    def __init__(self, groups: Groups, defaults: dict[str, Any]) -> None:
        super().__init__(groups, defaults)

    def update(self, parameter: Tensor, gradient: Tensor, memory: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The step before learning rate and trust ratio."""
        raise NotImplementedError

    def ratio(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> Tensor:
        """The trust ratio of a weight tensor."""
        raise NotImplementedError

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Moves every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        update = self.update(parameter, parameter.grad, self.state[parameter], group)
        if parameter.ndim > 1:
            update = update * self.ratio(parameter, update, group)
        parameter.sub_(group["lr"] * update)


class Lars(TrustRatio):
    r""":math:`\phi = \kappa \lVert w \rVert / (\lVert g \rVert + \beta \lVert w \rVert)` on :math:`g + \beta w`, inside the
    momentum's sum."""

    def _move(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        memory, decay = self.state[parameter], group["weight_decay"]
        update = parameter.grad + decay * parameter
        if parameter.ndim > 1:
            norm = parameter.norm()
            update = update * _ratio(group["trust"] * norm, parameter.grad.norm() + decay * norm)
        velocity = memory.get("velocity")
        velocity = group["lr"] * update + (0.0 if velocity is None else group["momentum"] * velocity)
        memory["velocity"] = velocity
        parameter.sub_(velocity)


class Lamb(TrustRatio):
    r""":math:`u = \hat m / (\sqrt{\hat v} + \epsilon) + \beta w`, :math:`\phi = \lVert w \rVert / \lVert u \rVert`."""

    def update(self, parameter: Tensor, gradient: Tensor, memory: dict[str, Any], group: dict[str, Any]) -> Tensor:
        if not memory:
            memory |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        memory["step"] += 1
        beta1, beta2 = group["betas"]
        memory["mean"].lerp_(gradient, 1 - beta1)
        memory["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        mean = memory["mean"] / (1 - beta1 ** memory["step"])
        square = memory["square"] / (1 - beta2 ** memory["step"])
        return mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * parameter

    def ratio(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> Tensor:
        return _ratio(parameter.norm(), update.norm())


@register_method("lars")
class LARS(Method):
    """Layer-wise adaptive rate scaling: momentum SGD, each weight's rate in proportion to its norm over its gradient's."""

    owns = frozenset({"optimizer"})
    source = "You, Gitman & Ginsburg 2017, arXiv 1708.03888"

    trust: float = 0.001
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not self.trust > 0:
            raise ValueError(f"trust: found {self.trust}, must be positive")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: found {self.momentum}, must lie in [0, 1)")

    def optimizer(self, groups: Groups, recipe: Recipe, horizon: int) -> torch.optim.Optimizer:
        defaults = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
        return Lars(groups, defaults | {"momentum": self.momentum, "trust": self.trust})


@register_method("lamb")
class LAMB(Method):
    """Adam with decoupled weight decay, each weight's step as long as the weight itself times the learning rate."""

    owns = frozenset({"optimizer"})
    source = "You et al. 2020, arXiv 1904.00962"

    def optimizer(self, groups: Groups, recipe: Recipe, horizon: int) -> torch.optim.Optimizer:
        defaults = {"lr": recipe.lr, "betas": (recipe.beta1, recipe.beta2), "eps": recipe.eps}
        return Lamb(groups, defaults | {"weight_decay": recipe.weight_decay})
