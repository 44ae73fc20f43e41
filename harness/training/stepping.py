"""One optimizer step: the same for supervised learning, PINNs, PPO and a federated client."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from harness.composition import Composition
from harness.method import Groups, Ranks, State
from harness.task import Objective

Means = dict[str, Tensor]
"""Loss and metrics of one micro-batch by name, averaged over the ranks: scalars on the model's device."""


class Diverged(Exception):
    """The objective is no longer a finite number."""


def parameter_groups(method: Composition, state: State) -> Groups:
    """The parameter groups of a trial: the workload's, after every method of the composition."""
    return method.parameter_groups(state.workload.parameter_groups(state.model), state.recipe)


def build_optimizer(method: Composition, state: State, groups: Groups | None = None) -> torch.optim.Optimizer:
    """The optimizer of a trial in its present phase, or of a client's visit; over other tensors where groups are given.

    Raises:
        ValueError: if the phase names an optimizer that a method owns.
    """
    groups = parameter_groups(method, state) if groups is None else groups
    phase = state.recipe.phase(state.step)
    if phase != "method":
        owners = [getattr(part, "name", type(part).__name__) for part in method.methods if "optimizer" in part.owns]
        if owners and phase != "lbfgs":
            raise ValueError(f"phases: found {phase!r}, but {owners[0]} owns the optimizer; write 'method' for it")
        return state.recipe.build_optimizer(groups, phase)
    optimizer = method.optimizer(groups, state.recipe, state.horizon)
    return optimizer or state.recipe.build_optimizer(groups)


def set_rate(state: State, factor: float) -> None:
    """Sets the learning rate of every group: the recipe's, or the group's own, times the schedule."""
    assert state.optimizer is not None
    for group in state.optimizer.param_groups:
        base = group.setdefault("base_lr", group["lr"])
        group["lr"] = base * group.get("lr_factor", 1.0) * factor


def take_step(state: State, method: Composition) -> tuple[int, list[Means]]:
    """One optimizer step, the same in every family.

    Returns:
        The number of samples that all ranks saw, and what is recorded of each micro-batch.

    Raises:
        Diverged: if an objective is not finite.
    """
    assert state.optimizer is not None
    recipe, ranks = state.recipe, state.ranks
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None  # `zero_grad` opens a profiler record: a fourteenth of a small step
    state.objectives.clear()
    state.batches = [ranks.shard(state.workload.next_batch()) for _ in range(recipe.accumulate)]
    recorded = []
    for batch in state.batches:
        objective = state.workload.objective(state.model, batch)
        state.objectives.append(objective)
        recorded.append(_means(objective, ranks))
        value = float(recorded[-1]["loss"])
        if not math.isfinite(value):
            raise Diverged(f"the objective is {value} at step {state.step}")
        method.before_backward(state)
        torch.autograd.backward(objective.value if recipe.accumulate == 1 else objective.value / recipe.accumulate)
    ranks.average_gradients(state.model, 1 / ranks.world)
    method.after_backward(state)
    if recipe.clip is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip)
    method.before_step(state)
    if isinstance(state.optimizer, torch.optim.LBFGS):
        state.optimizer.step(state.closure)
    else:
        state.optimizer.step()
    state.step += 1
    method.after_step(state)
    return ranks.world * sum(objective.size for objective in state.objectives), recorded


def _means(objective: Objective, ranks: Ranks) -> Means:
    values = {"loss": objective.value, **(objective.metrics or {})}
    return {name: ranks.reduce(value.detach()) for name, value in values.items()}
