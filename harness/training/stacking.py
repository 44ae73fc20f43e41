"""Several seeds of a cell as one computation.

The parameters of K seeds lie in one tensor, a row for each seed, and each seed's model is a module of views into it: a hook
always sees the module, the gradients and the optimizer of one seed. One forward pass, one backward pass and one optimizer step
serve all seeds; what is not elementwise, such as clipping, is done row by row.

The numbers of a seed depend neither on the width of the stack nor on its neighbours. Rows are padded to whole cache lines, so
each seed's tensors have the same alignment and no kernel treats an element of one seed otherwise than that of another.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from harness.composition import unstackable
from harness.method import Method, State
from harness.task import Batch, Objective, Workload, WorkloadStack
from harness.training.state import Training
from harness.training.stepping import Diverged, build_optimizer, parameter_groups, set_rate

# Gradients lie in rows as the parameters do: that is what lets a norm be taken seed by seed.
warnings.filterwarnings("ignore", "grad and param do not obey the gradient layout contract")

LINE = 64
"""Bytes of a cache line."""

HOOKS = ("after_backward", "before_step", "after_step")

Guard = Callable[[int, Callable[[], object]], None]
"""Calls a function for one seed, by its place in the stack, and deals with what it raises."""


class Block:
    """The parameters of one group of the optimizer, of all seeds: (seeds, elements), each row padded to whole cache lines.

    Args:
        parameters: for each seed, the parameters of the group.
    """

    def __init__(self, parameters: Sequence[Sequence[nn.Parameter]]) -> None:
        first = parameters[0]
        step = LINE // first[0].element_size()
        self.members = parameters
        self.places, end = [], 0
        for parameter in first:
            self.places.append((end, parameter.numel(), parameter.shape))
            end += -(-parameter.numel() // step) * step
        self.values = first[0].new_zeros(len(parameters), end, requires_grad=False)
        self.gradients = torch.zeros_like(self.values)
        self.values.grad = self.gradients
        self.leaves = [leaf.requires_grad_() for leaf in self.parts(self.values)]
        for leaf, gradient in zip(self.leaves, self.parts(self.gradients), strict=True):
            leaf.grad = gradient
        self.views = self._hand_out()
        self._known: dict[str, Any] = {}

    def parts(self, rows: Tensor) -> list[Tensor]:
        """A tensor in the shape of this block as tensors in those of the parameters, (seeds, ...) each."""
        return [rows[:, start : start + size].view(len(rows), *shape) for start, size, shape in self.places]

    def _hand_out(self) -> list[list[Tensor]]:
        """Makes every seed's parameters and gradients views into this block; returns the views of the gradients."""
        views = []
        for seed, own in enumerate(self.members):
            values, gradients = ([part[seed] for part in self.parts(rows)] for rows in (self.values, self.gradients))
            for parameter, value, gradient in zip(own, values, gradients, strict=True):
                value.copy_(parameter.detach())
                parameter.data, parameter.grad = value, gradient
            views.append(gradients)
        return views

    def take_back(self, seed: int) -> None:
        """Brings gradients that a hook has put in the place of the views back into the block."""
        for parameter, view in zip(self.members[seed], self.views[seed], strict=True):
            if parameter.grad is not view:
                if parameter.grad is None:
                    view.zero_()
                else:
                    view.copy_(parameter.grad)
                parameter.grad = view

    def gather(self, optimizer: torch.optim.Optimizer, own: Sequence[torch.optim.Optimizer]) -> None:
        """Puts the states of the seeds' own optimizers together in the state of the one over this block."""
        first = own[0].state.get(self.members[0][0], {})
        together: dict[str, Any] = {}
        for name, value in first.items():
            if _elementwise(name, value, self.members[0][0]):
                together[name] = rows = torch.zeros_like(self.values)
                for seed, part in ((seed, part) for part in range(len(self.places)) for seed in range(len(own))):
                    parameter = self.members[seed][part]
                    self.parts(rows)[part][seed].copy_(own[seed].state[parameter][name])
            else:
                together[name] = value.clone() if isinstance(value, Tensor) else value
        if together:
            optimizer.state[self.values] = together

    def link(self, optimizer: torch.optim.Optimizer, own: Sequence[torch.optim.Optimizer]) -> None:
        """Makes the states of the seeds' own optimizers views into that of the one over this block, where it is new."""
        state = optimizer.state.get(self.values, {})
        if all(value is self._known.get(name) for name, value in state.items()):
            return
        self._known = dict(state)
        parts = {
            name: self.parts(value)
            for name, value in state.items()
            if isinstance(value, Tensor) and value.shape == self.values.shape
        }
        for seed, (optimizer_of_seed, parameters) in enumerate(zip(own, self.members, strict=True)):
            for place, parameter in enumerate(parameters):
                optimizer_of_seed.state[parameter] = {
                    name: parts[name][place][seed] if name in parts else value for name, value in state.items()
                }


def _elementwise(name: str, value: Any, parameter: Tensor) -> bool:
    """Whether a value of an optimizer's state has an element for each of the parameter's; a count of steps has not."""
    return isinstance(value, Tensor) and value.shape == parameter.shape and name != "step"


class Stack:
    """K trials of one cell, all at one step, whose models have become views into shared tensors.

    Args:
        trainings: set up alike; what they differ in is the seed.
        guard: calls a seed's own code; what it raises ends that seed alone.

    Raises:
        ValueError: if a method is not stackable, or a model has buffers.
    """

    def __init__(self, trainings: Sequence[Training], guard: Guard) -> None:
        first = trainings[0]
        if reason := unstackable(first.method.methods):
            raise ValueError(reason)
        if any(True for _ in first.state.model.buffers()):
            raise ValueError("a model with buffers cannot run stacked")
        self.trainings, self._guard = list(trainings), guard
        self.states = [training.state for training in trainings]
        workloads = [training.workload for training in trainings]
        self._workload = workloads[0].stack(workloads) or GeneralStack(first.state.model, workloads)
        self._gather()
        self._sums: dict[str, Tensor] = {}
        self._hooks = [
            hook
            for hook in HOOKS
            if any(getattr(type(m), hook) is not getattr(Method, hook) for m in first.method.methods)
        ]

    def _gather(self) -> None:
        """Lays the parameters and the optimizers' states of all seeds together."""
        first = self.states[0]
        own = self._own()
        grouped = [optimizer.param_groups for optimizer in own]
        self._blocks = [Block([groups[i]["params"] for groups in grouped]) for i in range(len(grouped[0]))]
        names = {parameter: name for name, parameter in first.model.named_parameters()}
        self.parameters = {
            names[parameter]: leaf
            for block in self._blocks
            for parameter, leaf in zip(block.members[0], block.leaves, strict=True)
        }
        for name in names.values():
            if name not in self.parameters:  # frozen
                self.parameters[name] = torch.stack([s.model.get_parameter(name).detach() for s in self.states])
        groups = parameter_groups(self.trainings[0].method, first)
        over = [group | {"params": [block.values]} for group, block in zip(groups, self._blocks, strict=True)]
        self._optimizer = build_optimizer(self.trainings[0].method, first, over)
        for block in self._blocks:
            block.gather(self._optimizer, own)
            block.link(self._optimizer, own)

    def _own(self) -> list[torch.optim.Optimizer]:
        return [state.optimizer for state in self.states if state.optimizer is not None]

    def advance(self, measured: bool) -> None:
        """One optimizer step of every seed.

        Args:
            measured: whether a probe measures this step, and wants to see the seed's batches and objectives.
        """
        first = self.states[0]
        if first.step in first.recipe.switches:
            for training in self.trainings:
                training.state.optimizer = build_optimizer(training.method, training.state)
            self._gather()
        for state in self.states:
            set_rate(state, state.recipe.rate_factor(state.step))
            state.batches, state.objectives = [], []
        self._back_propagate(measured or bool(self._hooks))
        self._call("after_backward")
        if first.recipe.clip is not None:
            self._clip(first.recipe.clip)
        self._call("before_step")
        self._take_settings()
        self._optimizer.step()
        for block in self._blocks:
            block.link(self._optimizer, self._own())
        for state in self.states:
            state.step += 1
        self._call("after_step")

    def _back_propagate(self, shown: bool) -> None:
        count = self.states[0].recipe.accumulate
        for block in self._blocks:
            block.gradients.zero_()
        for _ in range(count):
            batch = self._workload.next_batch()
            objective = self._workload.objective(self.parameters, batch)
            for seed, value in enumerate(objective.value.tolist()):
                if not math.isfinite(value):
                    self._guard(seed, partial(_diverge, self.states[seed], value))
            if shown:
                self._show(batch, objective)
            # The sum gives each seed the gradient of its own objective.
            torch.autograd.backward(objective.value.sum() if count == 1 else objective.value.sum() / count)
            self._record(objective)

    def _show(self, batch: Batch, objective: Objective) -> None:
        """Gives every seed its own batch and objective."""
        for seed, state in enumerate(self.states):
            state.batches.append({name: tensor[seed] for name, tensor in batch.items()})
            predictions = {name: tensor[seed] for name, tensor in objective.predictions.items()}
            metrics = {name: value[seed] for name, value in (objective.metrics or {}).items()}
            state.objectives.append(Objective(objective.value[seed], predictions, objective.size, metrics))

    def _record(self, objective: Objective) -> None:
        """Adds up what is recorded, of all seeds at once: their intervals hold views of the sums."""
        intervals = [training.interval for training in self.trainings]
        values = {"loss": objective.value, **(objective.metrics or {})}
        if intervals[0].sums.keys() != self._sums.keys() or not self._sums:
            held = intervals[0].sums
            self._sums = {
                name: torch.stack([interval.sums[name] for interval in intervals])
                if name in held
                else torch.zeros_like(value, requires_grad=False)
                for name, value in values.items()
            }
            for seed, interval in enumerate(intervals):
                interval.sums = {name: total[seed] for name, total in self._sums.items()}
        for name, value in values.items():
            self._sums[name] += value.detach()
        for training in self.trainings:
            training.interval.count += 1
            training.samples += objective.size

    def _call(self, hook: str) -> None:
        if hook not in self._hooks:
            return
        for seed, training in enumerate(self.trainings):
            self._guard(seed, partial(getattr(training.method, hook), training.state))
            for block in self._blocks:
                block.take_back(seed)

    def _clip(self, norm: float) -> None:
        """Clips the gradients of every seed by their own norm."""
        squares = [block.gradients.square().sum(dim=1) for block in self._blocks]
        total = torch.stack(squares).sum(dim=0).sqrt()
        factor = (norm / (total + 1e-6)).clamp(max=1.0).unsqueeze(1)
        for block in self._blocks:
            block.gradients.mul_(factor)

    def _take_settings(self) -> None:
        """Sets the one optimizer as the seeds' own ones are set: rates, decay, betas."""
        first, *others = ([_settings(group) for group in own.param_groups] for own in self._own())
        for seed, other in enumerate(others, start=1):
            if other != first:
                names = {name for a, b in zip(first, other, strict=True) for name in a if a[name] != b.get(name)}
                raise ValueError(
                    f"{', '.join(sorted(names))}: found other values for seed {seed} of a stack than for its first, "
                    "allowed: the same settings of the optimizer for all seeds"
                )
        for group, settings in zip(self._optimizer.param_groups, first, strict=True):
            group.update(settings)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _diverge(state: State, value: float) -> None:
    raise Diverged(f"the objective is {value} at step {state.step}")


class GeneralStack(WorkloadStack):
    """Any workloads as one: each draws its own batch, and one vectorised pass takes the objective of all."""

    def __init__(self, model: nn.Module, workloads: Sequence[Workload]) -> None:
        self._workloads = workloads
        self._objective = _ObjectiveOf(model, workloads[0])
        self._size = 0
        self._vectorised = vmap(self._value)

    def next_batch(self) -> Batch:
        batches = [workload.next_batch() for workload in self._workloads]
        return {name: torch.stack([batch[name] for batch in batches]) for name in batches[0]}

    def objective(self, parameters: dict[str, Tensor], batch: Batch) -> Objective:
        count = len(self._workloads)
        if count == 1:  # a seed alone is computed beside its double: kernels for a single matrix give other bits
            parameters, batch = ({n: torch.cat([t, t]) for n, t in each.items()} for each in (parameters, batch))
        value, predictions, metrics = self._vectorised(parameters, batch)
        predictions, metrics = ({n: t[:count] for n, t in each.items()} for each in (predictions, metrics))
        return Objective(value[:count], predictions, self._size, metrics)

    def _value(
        self, parameters: dict[str, Tensor], batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        named = {f"model.{name}": parameter for name, parameter in parameters.items()}
        objective: Objective = functional_call(self._objective, named, (batch,))
        self._size = objective.size
        return objective.value, objective.predictions, objective.metrics or {}


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
