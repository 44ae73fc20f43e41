"""Federated classification: clients with parts of the training data, a server with held-out splits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from harness import Batch, FederatedWorkload, Objective, Recipe, register_task
from harness.streams import Streams
from tasks import data, models, partitions
from tasks.models import Activation
from tasks.supervised import Digits, classification_objective, classification_scores


@dataclass(frozen=True, kw_only=True)
class FederatedRecipe(Recipe):
    """The recipe of a federated task: a server's `rounds`, and what a client does in a visit.

    What counts steps in other families counts rounds here: `schedule`, `warmup`, `evaluate_every`, `record_every`. So
    `steps` is another word for `rounds`, filled in, and giving it another value is an error; a client takes
    `local_epochs` passes over its samples, or `local_steps` optimizer steps.

    >>> recipe = FederatedRecipe(rounds=40).resolve()
    >>> recipe.steps, recipe.length, recipe.local_epochs, recipe.evaluate_every
    (40, 40, 1, 4)
    >>> FederatedRecipe(steps=800)
    Traceback (most recent call last):
    ValueError: steps: found 800, allowed: rounds (40) or nothing; a federated task counts rounds
    """

    steps: int = 0  # 0: as many as rounds
    rounds: int = 40
    clients_per_round: int = 5
    local_epochs: int | None = None  # passes of a client over its samples in a visit; 1 unless local_steps is given
    local_steps: int | None = None  # optimizer steps of a visit, in place of local_epochs

    def __post_init__(self) -> None:
        for name in ("rounds", "clients_per_round", "local_epochs", "local_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: found {value}, must be positive")
        if self.steps not in (0, self.rounds):
            raise ValueError(
                f"steps: found {self.steps}, allowed: rounds ({self.rounds}) or nothing; a federated task counts rounds"
            )
        if self.local_epochs is not None and self.local_steps is not None:
            raise ValueError(
                f"local_steps: found {self.local_steps} beside local_epochs: {self.local_epochs}, allowed: one of the two"
            )
        super().__post_init__()

    @property
    def length(self) -> int:
        return self.rounds

    def resolve(self) -> Self:
        epochs = self.local_epochs or (None if self.local_steps else 1)
        return replace(super().resolve(), steps=self.rounds, local_epochs=epochs)


class FederatedClassification(FederatedWorkload):
    """A classifier whose training part lies with clients; validation and test are the server's.

    The participants of a round and the batches of a visit come from streams of their own, named by round and client.
    Nothing that one visit draws shifts another, and between rounds there is no position to save.
    """

    def __init__(
        self, model: nn.Module, splits: data.Splits, parts: list[Tensor], recipe: FederatedRecipe, streams: Streams
    ) -> None:
        self.model = model
        self.splits = splits
        self.parts = parts
        self.sizes = [len(part) for part in parts]
        self.probe_inputs = splits.val.inputs[:256]
        self._clients = [splits.train.take(part.to(splits.train.labels.device)) for part in parts]
        self._recipe, self._streams = recipe, streams
        self._batches: Iterator[Batch] = iter(())
        self._done = {"rounds": 0, "client_steps": 0}

    def participants(self, round: int) -> list[int]:
        """`clients_per_round` distinct clients, drawn uniformly, in ascending order."""
        order = torch.randperm(len(self.parts), generator=self._streams.fresh(f"data/{round}"))
        return sorted(order[: self._recipe.clients_per_round].tolist())

    def enter(self, client: int, round: int) -> int:
        self._batches = self._visit(client, round)
        steps = self._recipe.local_steps
        if steps is None:
            assert self._recipe.local_epochs is not None
            batches = self._recipe.local_epochs * -(-self.sizes[client] // self._recipe.batch)
            steps = -(-batches // self._recipe.accumulate)
        self._done = {"rounds": round + 1, "client_steps": self._done["client_steps"] + steps}
        return steps

    def _visit(self, client: int, round: int) -> Iterator[Batch]:
        """Batches of one epoch after another; the last of an epoch holds what is left, so each sample is seen once in it."""
        generator = self._streams.fresh(f"data/{round}/{client}")
        samples = self._clients[client]
        while True:
            order = torch.randperm(len(samples), generator=generator).to(samples.labels.device)
            for indices in order.split(self._recipe.batch):
                yield _batch(samples.take(indices))

    def next_batch(self) -> Batch:
        return next(self._batches)

    def client_data(self, client: int) -> Batch:
        return _batch(self._clients[client])

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        return classification_objective(model, batch)

    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> dict[str, float]:
        return classification_scores(model, self.splits[split])

    def progress(self) -> dict[str, float]:
        return {name: float(value) for name, value in self._done.items()}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._done)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._done = dict(state)


def _batch(samples: data.Split) -> Batch:
    return {"inputs": samples.inputs, "labels": samples.labels}


@register_task("digits/federated")
class FederatedDigits(Digits):
    """A multi-layer perceptron on scikit-learn's digits, spread over clients with label skew from a Dirichlet distribution."""

    offers = frozenset({"gates", "clients", "labels"})
    source = "McMahan et al. 2017, arXiv 1602.05629; partition: Li et al. 2022, arXiv 2102.02079"
    recipe_class = FederatedRecipe

    clients: int = 20
    alpha: float = 0.5
    min_size: int = 10
    hidden: tuple[int, ...] = field(default=(64,))
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        for name in ("clients", "alpha", "min_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, must be positive")

    def recipe(self) -> FederatedRecipe:
        return FederatedRecipe(rounds=40, clients_per_round=5, batch=8, lr=4e-2, eps=1e-2, schedule="cosine")

    def check(self, recipe: Recipe) -> None:
        assert isinstance(recipe, FederatedRecipe)
        if recipe.clients_per_round > self.clients:
            raise ValueError(
                f"clients_per_round: found {recipe.clients_per_round}, allowed: at most the task's clients ({self.clients})"
            )

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), models.mlp(64, list(self.hidden), 10, self.activation))

    def workload(self, recipe: Recipe, streams: Streams, device: torch.device) -> FederatedClassification:
        assert isinstance(recipe, FederatedRecipe)
        splits = data.digits(streams, device)
        generator = np.random.default_rng(streams.seed("partition"))
        parts = partitions.dirichlet(splits.train.labels.cpu(), self.clients, self.alpha, self.min_size, generator)
        with streams.default("init"):
            model = self.model().to(device)
        return FederatedClassification(model, splits, parts, recipe, streams)
