"""The contract of a method: what changes in training, as hooks at named points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

Shared = dict[str, Any]
"""Tensors, numbers, texts, lists, tuples and dicts of them: what one rank can give to the others."""


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

    def share(self, owner: int, content: Shared) -> Shared:
        """What rank `owner` gives, on every rank; what the others give is not looked at."""
        return content


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
    round: Round | None = None
    """Federated: the round that was taken last, kept where a probe needs `clients`."""
    control: Callable[[int, str, dict[str, float]], dict[str, float]] | None = None
    """What a control puts in the place of a method's actions: step, name and values to values."""

    def closure(self) -> Tensor:
        """Computes the mean objective of the present batches and its gradients anew, and returns it.

        No hook is called: what a method does to a gradient belongs to the step, not to a line search.
        """
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        total = torch.zeros(())
        for batch in self.batches:
            value = self.workload.objective(self.model, batch).value / len(self.batches)
            value.backward()
            total = total + value.detach()
        self.ranks.average_gradients(self.model, 1 / self.ranks.world)
        return self.reduce(total)

    def reduce(self, value: Tensor) -> Tensor:
        """The mean over the ranks of a signal that steers training, so that ranks never drift apart."""
        return self.ranks.reduce(value)

    def act(self, name: str, values: Mapping[str, float]) -> dict[str, float]:
        """Records what an adaptive method does, and returns what it is to do.

        The same values come back, unless a control such as `shuffled(oui_decay)` stands in between: a method applies
        what is returned, and every control of it comes for free::

            rates = state.act("decay", self.rates(state))
            for name, rate in rates.items(): ...

        Args:
            name: what is acted on: `decay`, `hardness`, `beta`.
            values: by the name of what receives them (a layer, a gate).

        Raises:
            ValueError: for `factor`, which is what a server gives its clients: `Method.factor` returns it.
        """
        if name == "factor":
            raise ValueError("act: found 'factor', which Method.factor gives to clients, allowed: another name")
        done = dict(values) if self.control is None else self.control(self.step, name, dict(values))
        self.actions.append((self.step, name, done))
        return done


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
    memory: dict[str, Tensor] = field(default_factory=dict)
    """What the client keeps from visit to visit, empty at its first: a method puts tensors of its own there, under names that
    begin with its own. It is saved with the trial, and lies on the model's device."""


@dataclass
class Server:
    """The server of a federated trial: its round (from 0) and its weights."""

    round: int
    weights: dict[str, Tensor]
    payload: dict[str, Tensor] = field(default_factory=dict)
    """What the methods' `start_client` sends down beside the weights: counted, nothing else."""


@dataclass(frozen=True)
class Round:
    """A round of a federated trial as it was, for probes."""

    start: dict[str, Tensor]
    """The server's weights before it."""
    updates: Sequence[Update]
    weights: Tensor
    """Each client's share. Shape (updates,)."""


def weighted_sum(updates: Sequence[Update], weights: Tensor) -> dict[str, Tensor]:
    """Federated averaging: the sum of the updates times their weights."""
    total = {name: torch.zeros_like(delta) for name, delta in updates[0].delta.items()}
    for update, weight in zip(updates, weights.tolist(), strict=True):
        add_scaled(total, update.delta, weight)
    return total


def add_scaled(total: dict[str, Tensor], delta: dict[str, Tensor], weight: float) -> None:
    """Adds `weight` times `delta` to `total`, in place."""
    for name, tensor in delta.items():
        total[name].add_(tensor, alpha=weight)


def geometry(updates: Sequence[Update], weights: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Norm of each update, and its cosine with their weighted mean, over the tensors of these names: (updates,) each.

    An update of zeros has the cosine 0, and so has every one where an entry is not finite.

    >>> updates = [Update(0, 3, {"w": torch.tensor([1.0, 0.0])}), Update(1, 1, {"w": torch.tensor([0.0, 1.0])})]
    >>> geometry(updates, torch.tensor([0.75, 0.25]), ["w"])[1].tolist()
    [0.9486832980505138, 0.31622776601683794]
    """
    shares = weights.double().cpu()
    inner, squares = torch.zeros(len(updates), dtype=torch.float64), torch.zeros(len(updates), dtype=torch.float64)
    total = 0.0
    for name in names:
        flat = torch.stack([update.delta[name].double().cpu().flatten() for update in updates])
        mean = shares @ flat
        inner += flat @ mean
        squares += flat.square().sum(dim=1)
        total += float(mean.square().sum())
    norms = squares.sqrt()
    lengths = norms * total**0.5
    return norms, torch.where(lengths > 0, inner / lengths.clamp(min=1e-300), 0.0).nan_to_num(0.0, 0.0, 0.0)


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
    """Whether several seeds may run as one: true for a method whose optimizer works element by element, and whose hooks touch
    nothing but the seed's own model, gradients and streams. Settings of the optimizer must be the same for all seeds."""
    disabled: ClassVar[tuple[dict[str, Any], str, dict[str, Any]] | None] = None
    """Options that disable the method, the method it then equals to the bit, and the options of that one."""
    saves_variants: ClassVar[bool] = False
    """Whether the weights of the `variants` are kept beside the result."""

    def adapt(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Changes the model before training, after any initial checkpoint is loaded."""
        return model

    def parameter_groups(self, groups: Groups, recipe: Recipe) -> Groups:
        """Regroups the parameters: per-layer decay, no decay, `lr_factor`. Chained in the order of the composition."""
        return groups

    def optimizer(self, groups: Groups, recipe: Recipe, horizon: int) -> torch.optim.Optimizer | None:
        """The optimizer, from the method that owns it; None leaves the recipe's own."""
        return None

    def start(self, state: State) -> None:
        """Called once, when all is set up (and again after a resume, before `load_state_dict`)."""

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

    def notes(self) -> list[str]:
        """What a plan should say about these options before anything runs: a rule outside of its range."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume, as tensors, numbers, strings, lists and dicts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""

    def travels(self, name: str) -> bool:
        """Federated: whether a parameter or floating-point buffer goes between server and clients.

        What does not is the server's at the start of every visit, and its changes there are lost.
        """
        return True

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
