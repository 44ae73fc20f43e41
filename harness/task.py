"""The contract of a task: what is trained, and how it is scored.

A task is a dataclass: its fields are its options, exactly as for methods and probes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.recipe import Recipe

if TYPE_CHECKING:
    from harness.streams import Streams

Batch = dict[str, Tensor]
"""Named tensors whose first dimension is the sample, of the same shapes at every step.

Two exceptions: tensors of one batch may differ in their number of samples (a PINN's interior and boundary points), and the
last batch in an epoch of a federated client holds what is left of its samples.
"""


@dataclass(frozen=True)
class Objective:
    """What one batch says of a model.

    `value` is the scalar to be minimised, a mean over the `size` samples of the batch; `predictions` are the named
    tensors that the loss consumes, still attached to the graph (a method may ask for their gradients); `metrics` are
    detached scalars to be recorded beside the loss.
    """

    value: Tensor
    predictions: dict[str, Tensor]
    size: int
    metrics: dict[str, Tensor] | None = None


class Workload(ABC):
    """One task, set up for one trial: the model, the batches, the objective, the evaluation, and its state."""

    model: nn.Module
    probe_inputs: Tensor
    """A fixed batch of inputs, drawn before training, for which `model(probe_inputs)` is a whole forward pass."""

    @abstractmethod
    def next_batch(self) -> Batch:
        """The next training batch. Owns the order of the data and its random stream."""

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Where every chain of `parameter_groups` starts: all trainable parameters of `model` in one group."""
        return [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]

    @abstractmethod
    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        """The objective of `model` on `batch`: pure and repeatable, so that the loop alone combines the two."""

    @abstractmethod
    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> dict[str, float]:
        """Scores of `model` on a split. Called in evaluation mode without gradients; changes nothing."""

    def progress(self) -> dict[str, float]:
        """Further metrics of the way so far (`train/return`, `env_steps`); keys without a family go under `train/`."""
        return {}

    def summarize(self, scores: list[tuple[int, float]]) -> dict[str, float]:
        """Final metrics of the validation curve: the steps and values of the task's metric."""
        return {}

    def pictures(self, model: nn.Module) -> dict[str, str]:
        """What to look at once the trial is finished, as SVG texts by file name; a task that has some offers `pictures`."""
        return {}

    def stack(self, peers: Sequence[Workload]) -> WorkloadStack | None:
        """How workloads of this task under several seeds, this one the first, act as one; None: by the general route."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """All that `next_batch` depends on, as tensors, numbers, strings, lists and dicts. The model is not part of it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`: after it the same batches follow, bit for bit."""


class WorkloadStack(ABC):
    """Workloads of one task under K seeds as one, for seeds that are trained together.

    The numbers of a seed must not depend on K nor on its neighbours, bit for bit: `harness describe TASK --check` compares.
    """

    @abstractmethod
    def next_batch(self) -> Batch:
        """The next batch of every seed, as tensors (K, ...) in the order of the workloads."""

    @abstractmethod
    def objective(self, parameters: dict[str, Tensor], batch: Batch) -> Objective:
        """The objectives of all seeds: value and metrics (K,), predictions (K, ...), `size` that of one seed.

        Args:
            parameters: of the model by name, (K, ...) each; those of seed k are what its workload's model holds.
            batch: (K, ...), as `next_batch` gives it.
        """


class FederatedWorkload(Workload):
    """A workload whose data lie with clients. `next_batch` draws from the client entered last."""

    sizes: list[int]
    """Training samples of each client."""

    @abstractmethod
    def participants(self, round: int) -> list[int]:
        """The clients of a round, a function of the trial's streams and the round's number alone."""

    @abstractmethod
    def enter(self, client: int, round: int) -> int:
        """Makes `client` the source of the next batches and returns how many optimizer steps it takes this round.

        What follows is a function of the trial's streams, the client and the round: another visit shifts nothing.
        """

    def count(self, steps: int, up: int, down: int) -> None:
        """Told once a round how many steps its clients took, and how many bytes they sent and received."""

    def server_change(self, change: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the server adds to its weights, of the aggregated change: the place of a server optimizer."""
        return change

    @abstractmethod
    def client_data(self, client: int) -> Batch:
        """All training samples of a client, for methods that measure on a client's own data."""

    def client_inputs(self, client: int, samples: int, generator: torch.Generator) -> Tensor:
        """Some inputs of a client, drawn without replacement. Shape (samples, …), or all that it has."""
        inputs: Tensor = self.client_data(client)["inputs"]
        order = torch.randperm(len(inputs), generator=generator)
        return inputs[order[:samples].to(inputs.device)]


@dataclass
class Task(ABC):
    """What is trained and how it is scored: data, model, objective, evaluation, metric and default recipe.

    Subclasses are dataclasses (`register_task` makes them so); their fields are the options that a grid may set.
    """

    offers: ClassVar[frozenset[str]] = frozenset()
    version: ClassVar[int] = 1
    """Raised by hand when the numbers of the task change although its options do not."""
    metric: ClassVar[str] = "val/accuracy"
    direction: ClassVar[Literal["max", "min"]] = "max"
    solved: ClassVar[float | None] = None
    """The final return from which a run counts as solved, where those who made the environment say so."""
    select: ClassVar[Literal["best", "last"]] = "best"
    """Which checkpoint the test split is read at: the best by `metric`, or the last."""
    source: ClassVar[str] = ""
    recipe_class: ClassVar[type[Recipe]] = Recipe

    @abstractmethod
    def recipe(self) -> Recipe:
        """The default recipe of this task under its options."""

    def check(self, recipe: Recipe) -> None:
        """Raises ValueError if a resolved recipe does not fit the task's options. Called when a trial is planned."""

    def unstackable(self, recipe: Recipe) -> str:
        """Why seeds of this task cannot be trained together under a recipe; empty if they can.

        A task whose models have no buffers and draw nothing from torch's default generator may answer with nothing where a
        seed's bits are the same alone and among others: `harness describe TASK --check` compares them.
        """
        return "the task does not say that its seeds can be trained together"

    @abstractmethod
    def workload(self, recipe: Recipe, streams: Streams, device: torch.device) -> Workload:
        """Sets the task up for one trial. Draws initial weights, splits and data order from the streams of those names."""

    def data_digest(self) -> str:
        """A short digest of the data that the task reads, cheap to compute: part of a trial's identity."""
        return ""
