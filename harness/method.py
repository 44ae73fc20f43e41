"""The contract of a method: what changes in training, as hooks at named points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from harness.recipe import Recipe
from harness.task import Batch, Objective, Workload

if TYPE_CHECKING:
    from harness.streams import Streams

OWNABLE = frozenset({"optimizer", "decay", "betas", "gates", "aggregation"})
"""What at most one method of a composition may own."""

Groups = list[dict[str, Any]]
"""Parameter groups as `torch.optim` takes them. `lr_factor` multiplies the group's learning rate."""


class Ranks:
    """The ranks of a data-parallel trial. This one stands for a trial that runs alone."""

    index: int = 0
    world: int = 1

    def reduce(self, value: Tensor) -> Tensor:
        """The mean of `value` over the ranks."""
        return value

    def shard(self, batch: Batch) -> Batch:
        """This rank's part of a global batch."""
        return batch

    def average_gradients(self, model: nn.Module, share: float) -> None:
        """Replaces each gradient by the sum over ranks of its `share` of the batch times its gradient."""


@dataclass
class State:
    """What a hook sees of a trial that is under way."""

    model: nn.Module
    workload: Workload
    recipe: Recipe
    streams: Streams
    horizon: int
    """Steps of the whole run; for a client of a federated task, of its present visit."""
    optimizer: torch.optim.Optimizer | None = None
    step: int = 0
    """Steps taken so far: 0 in the hooks of the first step up to `before_step`, 1 in its `after_step`."""
    ranks: Ranks = field(default_factory=Ranks)
    batches: list[Batch] = field(default_factory=list)
    """The micro-batches of the present step."""
    objectives: list[Objective] = field(default_factory=list)
    """Their objectives, the graph alive until the backward pass has freed it."""
    actions: list[tuple[int, str, dict[str, float]]] = field(default_factory=list)

    def closure(self) -> Tensor:
        """Computes the mean objective of the present batches and its gradients anew, and returns it."""
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        total = torch.zeros(())
        for batch in self.batches:
            value = self.workload.objective(self.model, batch).value / len(self.batches)
            value.backward()
            total = total + value.detach()
        return total

    def reduce(self, value: Tensor) -> Tensor:
        """The mean over the ranks of a signal that steers training, so that ranks never drift apart."""
        return self.ranks.reduce(value)

    def act(self, name: str, values: Mapping[str, float]) -> None:
        """Records what an adaptive method did: the source of the controls that ask whether its signal mattered."""
        self.actions.append((self.step, name, dict(values)))


@dataclass(frozen=True)
class Update:
    """What a client sends after its visit."""

    client: int
    size: int
    """Its number of training samples."""
    delta: dict[str, Tensor]
    """Change of each parameter and floating-point buffer."""
    payload: dict[str, Tensor] = field(default_factory=dict)
    """What the methods' `finish_client` sent beside it."""


@dataclass
class Client:
    """A client while it trains: its number, its size and the trial's state."""

    index: int
    size: int
    state: State


@dataclass
class Server:
    """The server of a federated trial: its round (from 0) and its weights."""

    round: int
    weights: dict[str, Tensor]


@dataclass
class Method:
    """What changes in training. Override what the method changes: every default trains plainly.

    Subclasses are dataclasses (`register_method` makes them so); their fields are the options that a grid may set::

        @register_method("sign_gradient")
        class SignGradient(Method):
            def before_step(self, state):
                for parameter in state.model.parameters():
                    parameter.grad.sign_()
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    owns: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = ""
    """The paper or page that the method comes from."""
    stackable: ClassVar[bool] = False
    """Whether several seeds may run as one: true for a method whose optimizer works element by element."""

    def adapt(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Changes the model before training, after any initial checkpoint is loaded."""
        return model

    def parameter_groups(self, groups: Groups, recipe: Recipe) -> Groups:
        """Regroups the parameters: per-layer decay, no decay, `lr_factor`. Chained in the order of the composition."""
        return groups

    def optimizer(self, groups: Groups, recipe: Recipe, horizon: int) -> torch.optim.Optimizer | None:
        """The optimizer, from the method that owns it; None leaves the recipe's own."""
        return None

    def before_backward(self, state: State) -> None:
        """After the forward pass of each micro-batch; `state.objectives[-1]` is its objective."""

    def after_backward(self, state: State) -> None:
        """Gradients are complete and averaged over ranks, not yet clipped."""

    def before_step(self, state: State) -> None:
        """Gradients are clipped; the optimizer has not moved."""

    def after_step(self, state: State) -> None:
        """The optimizer has moved; `state.step` counts this step."""

    def before_evaluation(self, state: State) -> None:
        """Before the model is scored."""

    def after_evaluation(self, state: State, metrics: dict[str, float]) -> None:
        """After the model is scored, with the validation metrics (`val/…`)."""

    def selectable(self, state: State) -> bool:
        """May this point be the selected checkpoint?"""
        return True

    def variants(self, model: nn.Module) -> dict[str, nn.Module]:
        """Further models scored beside `model` in the one read of the test split."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume, as tensors, numbers, strings, lists and dicts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""

    def start_client(self, client: Client, server: Server) -> None:
        """Federated: the client holds the server's weights and has not trained yet."""

    def finish_client(self, client: Client) -> dict[str, Tensor]:
        """Federated: the client has trained; what it sends beside its update."""
        return {}

    def factor(self, updates: Sequence[Update]) -> Tensor | None:
        """Federated: positive factors, one per update. Those of a composition multiply; the server multiplies by the
        client's size and normalises once."""
        return None

    def aggregate(self, updates: Sequence[Update], weights: Tensor) -> dict[str, Tensor] | None:
        """Federated, owner of `aggregation` only: the change of the server's weights; None is the weighted sum."""
        return None

    def after_aggregate(self, server: Server, updates: Sequence[Update]) -> None:
        """Federated: the server has taken the round's updates in."""
