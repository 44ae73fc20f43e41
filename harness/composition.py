"""Methods that act together: `lambda_gelu + balanced_adam`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from harness.method import OWNABLE, Client, Groups, Method, Server, State, Update
from harness.recipe import Recipe
from harness.task import Task, Workload

T = TypeVar("T")


def objection(task: Task, methods: Sequence[Method]) -> str | None:
    """Why these methods cannot run together on this task, or None if they can."""
    owners: dict[str, str] = {}
    for method in methods:
        name = getattr(method, "name", type(method).__name__)
        missing = method.needs - task.offers
        if missing:
            return f"{name} needs {', '.join(sorted(missing))}, which the task does not offer"
        unknown = method.owns - OWNABLE
        if unknown:
            return f"{name} owns {', '.join(sorted(unknown))}, allowed: {', '.join(sorted(OWNABLE))}"
        for owned in sorted(method.owns):
            if owned in owners:
                return f"{owners[owned]} and {name} both own the {owned}"
            owners[owned] = name
    return None


def unstackable(methods: Sequence[Method]) -> str:
    """Why seeds cannot be trained together under these methods; empty if they can."""
    for method in methods:
        if not method.stackable or type(method).before_backward is not Method.before_backward:
            return f"{getattr(method, 'name', type(method).__name__)} cannot run stacked"
    return ""


def given_back(method: Method, hook: str, value: T | None) -> T:
    """What a hook returned.

    Raises:
        TypeError: if that is nothing: its author forgot the `return`.
    """
    if value is None:
        name = getattr(method, "name", type(method).__name__)
        raise TypeError(f"{name}.{hook} returned nothing, allowed: what it was given, changed or not")
    return value


class Composition(Method):
    """Several methods as one: every hook runs in the order in which the methods are named."""

    def __init__(self, methods: Sequence[Method]) -> None:
        self.methods = list(methods)

    def adapt(self, model: nn.Module, workload: Workload) -> nn.Module:
        for method in self.methods:
            model = given_back(method, "adapt", method.adapt(model, workload))
        return model

    def parameter_groups(self, groups: Groups, recipe: Recipe) -> Groups:
        for method in self.methods:
            groups = given_back(method, "parameter_groups", method.parameter_groups(groups, recipe))
        return groups

    def optimizer(self, groups: Groups, recipe: Recipe, horizon: int) -> torch.optim.Optimizer | None:
        for method in self.methods:
            if "optimizer" in method.owns:
                return method.optimizer(groups, recipe, horizon)
        return None

    def start(self, state: State) -> None:
        for method in self.methods:
            method.start(state)

    def before_backward(self, state: State) -> None:
        for method in self.methods:
            method.before_backward(state)

    def after_backward(self, state: State) -> None:
        for method in self.methods:
            method.after_backward(state)

    def before_step(self, state: State) -> None:
        for method in self.methods:
            method.before_step(state)

    def after_step(self, state: State) -> None:
        for method in self.methods:
            method.after_step(state)

    def before_evaluation(self, state: State) -> None:
        for method in self.methods:
            method.before_evaluation(state)

    def after_evaluation(self, state: State, metrics: dict[str, float]) -> None:
        for method in self.methods:
            method.after_evaluation(state, metrics)

    def selectable(self, state: State) -> bool:
        return all(method.selectable(state) for method in self.methods)

    def variants(self, model: nn.Module) -> dict[str, nn.Module]:
        return {name: variant for method in self.methods for name, variant in method.variants(model).items()}

    def state_dict(self) -> dict[str, Any]:
        return {str(index): method.state_dict() for index, method in enumerate(self.methods)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for index, method in enumerate(self.methods):
            method.load_state_dict(state[str(index)])

    def travels(self, name: str) -> bool:
        return all(method.travels(name) for method in self.methods)

    def start_client(self, client: Client, server: Server) -> None:
        for method in self.methods:
            method.start_client(client, server)

    def finish_client(self, client: Client) -> dict[str, Tensor]:
        return {name: value for method in self.methods for name, value in method.finish_client(client).items()}

    def aggregate(self, updates: Sequence[Update], weights: Tensor) -> dict[str, Tensor] | None:
        for method in self.methods:
            if "aggregation" in method.owns:
                return method.aggregate(updates, weights)
        return None

    def after_aggregate(self, server: Server, updates: Sequence[Update]) -> None:
        for method in self.methods:
            method.after_aggregate(server, updates)
