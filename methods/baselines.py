"""The plain optimizers, with the recipe's numbers."""

from typing import Any

import torch

from harness import Method, Recipe, register_method

Groups = list[dict[str, Any]]


@register_method("sgd")
class SGD(Method):
    """Stochastic gradient descent with the recipe's momentum; weight decay is coupled (L2)."""

    owns = frozenset({"optimizer"})
    stackable = True

    def optimizer(self, groups: Groups, recipe: Recipe, horizon: int) -> torch.optim.Optimizer:
        return recipe.build_optimizer(groups, "sgd")


def betas(recipe: Recipe, beta1: float | None, beta2: float | None) -> tuple[float, float]:
    """A pair of betas: the recipe's, where none is given.

    Raises:
        ValueError: for one outside of [0, 1).
    """
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if beta is not None and not 0 <= beta < 1:
            raise ValueError(f"{name}: found {beta}, must lie in [0, 1)")
    return (recipe.beta1 if beta1 is None else beta1, recipe.beta2 if beta2 is None else beta2)


@register_method("adam")
class Adam(Method):
    """Adam with any pair of betas and any ε, the recipe's unless given; weight decay is coupled (L2).

    A tiny ε (1e-16) is a control of whatever rescales gradients: at ε = 1e-8 a gradient of 1e-8 takes half a step.
    """

    owns = frozenset({"optimizer"})
    stackable = True
    source = "Kingma & Ba 2015, arXiv 1412.6980"

    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None

    def __post_init__(self) -> None:
        betas(Recipe(), self.beta1, self.beta2)
        if self.eps is not None and self.eps < 0:
            raise ValueError(f"eps: found {self.eps}, must not be negative")

    def optimizer(self, groups: Groups, recipe: Recipe, horizon: int) -> torch.optim.Optimizer:
        return recipe.build_optimizer(groups, "adam", betas(recipe, self.beta1, self.beta2), self.eps)


@register_method("adamw")
class AdamW(Adam):
    """Adam with any pair of betas and any ε, the recipe's unless given, and decoupled weight decay."""

    source = "Loshchilov & Hutter 2019, arXiv 1711.05101"

    def optimizer(self, groups: Groups, recipe: Recipe, horizon: int) -> torch.optim.Optimizer:
        return recipe.build_optimizer(groups, "adamw", betas(recipe, self.beta1, self.beta2), self.eps)


@register_method("fed_avg")
class FedAvg(Method):
    """Federated averaging: the clients' updates, weighted by their number of samples."""

    needs = frozenset({"clients"})
    owns = frozenset({"aggregation"})
    source = "McMahan et al. 2017, arXiv 1602.05629"
