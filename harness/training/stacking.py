"""Several seeds of a cell as one computation.

The parameters of K seeds lie in one tensor per name, and each seed's model is a module of views into it, so a hook always
sees the module of one seed. Gradients come from one vectorised pass over all seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from harness.composition import Composition
from harness.method import Method, State
from harness.task import Batch, Objective, Workload
from harness.training.stepping import Diverged


class Stack:
    """K trials of one cell whose models have become views into shared tensors.

    Args:
        states: one state per seed, set up alike.
        methods: each seed's own composition; every method must be `stackable`.

    Raises:
        ValueError: if a method is not stackable, or a model has buffers.
    """

    def __init__(self, states: Sequence[State], methods: Sequence[Composition]) -> None:
        for method in methods[0].methods:
            if not method.stackable or type(method).before_backward is not Method.before_backward:
                raise ValueError(f"{getattr(method, 'name', type(method).__name__)} cannot run stacked")
        if any(True for _ in states[0].model.buffers()):
            raise ValueError("a model with buffers cannot run stacked yet")
        self.states, self.methods = list(states), list(methods)
        self.parameters = {
            name: torch.stack([state.model.get_parameter(name).detach() for state in states])
            for name, _ in states[0].model.named_parameters()
        }
        for name, stacked in self.parameters.items():
            for index, state in enumerate(states):
                state.model.get_parameter(name).data = stacked[index]
        groups: list[dict[str, Any]] = [{"params": list(self.parameters.values())}]
        recipe, horizon = states[0].recipe, states[0].horizon
        self.optimizer = methods[0].optimizer(groups, recipe, horizon) or recipe.build_optimizer(groups)
        for state in states:
            state.optimizer = self.optimizer

    def take_step(self) -> list[float]:
        """One optimizer step of every seed; returns their objectives.

        Raises:
            Diverged: if an objective is not finite.
        """
        batches = [state.workload.next_batch() for state in self.states]
        stacked = {name: torch.stack([batch[name] for batch in batches]) for name in batches[0]}
        gradients, (values, _) = vmap(grad_and_value(self._value, has_aux=True))(self.parameters, stacked)
        for name, parameter in self.parameters.items():
            parameter.grad = gradients[name]
            for index, state in enumerate(self.states):
                state.model.get_parameter(name).grad = gradients[name][index]
        losses: list[float] = values.tolist()
        for state, method, batch, loss in zip(self.states, self.methods, batches, losses, strict=True):
            if not math.isfinite(loss):
                raise Diverged(f"the objective is {loss} at step {state.step}")
            state.batches = [batch]
            method.after_backward(state)
            if state.recipe.clip is not None:
                nn.utils.clip_grad_norm_(state.model.parameters(), state.recipe.clip)
            method.before_step(state)
        self.optimizer.step()
        for state, method in zip(self.states, self.methods, strict=True):
            state.step += 1
            method.after_step(state)
        return losses

    def _value(self, parameters: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        state = self.states[0]
        named = {f"model.{name}": parameter for name, parameter in parameters.items()}
        objective: Objective = functional_call(_ObjectiveOf(state.model, state.workload), named, (batch,))
        return objective.value, objective.predictions


class _ObjectiveOf(nn.Module):
    """A workload's objective as a module around its model.

    Other parameters then go into the very model that the objective knows, with its type, attributes and layers: PPO calls
    parts of it, a PINN looks at its layers.
    """

    def __init__(self, model: nn.Module, workload: Workload) -> None:
        super().__init__()
        self.model = model
        self._objective = workload.objective

    def forward(self, batch: Batch) -> Objective:
        return self._objective(self.model, batch)
