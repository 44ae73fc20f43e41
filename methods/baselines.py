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


@register_method("adam")
class Adam(Method):
    """Adam with the recipe's betas; weight decay is coupled (L2)."""

    owns = frozenset({"optimizer"})
    stackable = True
    source = "Kingma & Ba 2015, arXiv 1412.6980"

    def optimizer(self, groups: Groups, recipe: Recipe, horizon: int) -> torch.optim.Optimizer:
        return recipe.build_optimizer(groups, "adam")


@register_method("adamw")
class AdamW(Method):
    """Adam with the recipe's betas and decoupled weight decay."""

    owns = frozenset({"optimizer"})
    stackable = True
    source = "Loshchilov & Hutter 2019, arXiv 1711.05101"

    def optimizer(self, groups: Groups, recipe: Recipe, horizon: int) -> torch.optim.Optimizer:
        return recipe.build_optimizer(groups, "adamw")


@register_method("fed_avg")
class FedAvg(Method):
    """Federated averaging: the clients' updates, weighted by their number of samples."""

    needs = frozenset({"clients"})
    owns = frozenset({"aggregation"})
    source = "McMahan et al. 2017, arXiv 1602.05629"
