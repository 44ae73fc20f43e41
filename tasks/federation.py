"""The workload of federated tasks: clients with parts of the training data, a server with held-out splits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from harness import Batch, FederatedWorkload, Objective, Recipe
from harness.streams import Streams
from tasks.data import augment
from tasks.data.splits import Split, Splits
from tasks.partition_picture import partition_svg
from tasks.partitions import Partition
from tasks.server_optimizers import Name, ServerOptimizer

Augment = Literal["none", "flip", "crop_flip"]


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
    client_dropout: float = 0.0  # the probability that a participant's update never arrives; one at least does
    stragglers: float = 0.0  # the probability that a participant takes a random part of its steps, one at least
    server_optimizer: Name = "average"
    server_lr: float | None = None  # 1, for adam and yogi 0.01
    server_beta1: float = 0.9
    server_beta2: float = 0.99
    server_tau: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("rounds", "clients_per_round", "local_epochs", "local_steps", "server_lr", "server_tau"):
            value = getattr(self, name)
            if value is not None and not (value >= 1 if isinstance(value, int) else value > 0):
                raise ValueError(f"{name}: found {value}, must be positive")
        if self.steps not in (0, self.rounds):
            raise ValueError(
                f"steps: found {self.steps}, allowed: rounds ({self.rounds}) or nothing; a federated task counts rounds"
            )
        if self.local_epochs is not None and self.local_steps is not None:
            raise ValueError(
                f"local_steps: found {self.local_steps} beside local_epochs: {self.local_epochs}, allowed: one of the two"
            )
        for name in ("client_dropout", "server_beta1", "server_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, must lie in [0, 1)")
        if not 0 <= self.stragglers <= 1:
            raise ValueError(f"stragglers: found {self.stragglers}, must lie in [0, 1]")
        super().__post_init__()

    @property
    def length(self) -> int:
        return self.rounds

    def resolve(self) -> Self:
        epochs = self.local_epochs or (None if self.local_steps else 1)
        rate = self.server_lr or (0.01 if self.server_optimizer in ("adam", "yogi") else 1.0)
        return replace(super().resolve(), steps=self.rounds, local_epochs=epochs, server_lr=rate)


def cross_entropy_objective(model: nn.Module, batch: Batch) -> Objective:
    """Mean cross-entropy over all labels: one per sample, or one per token."""
    logits, labels = model(batch["inputs"]), batch["labels"]
    if labels.ndim == 1:
        return Objective(functional.cross_entropy(logits, labels), {"logits": logits}, len(labels))
    value = functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
    return Objective(value, {"logits": logits}, len(labels))


def cross_entropy_scores(model: nn.Module, split: Split, batch: int = 500) -> dict[str, float]:
    """Mean cross-entropy and accuracy over all labels of a split."""
    loss, correct = 0.0, 0
    for inputs, labels in zip(split.inputs.split(batch), split.labels.split(batch), strict=True):
        logits, labels = model(inputs).flatten(0, -2), labels.flatten()
        loss += float(functional.cross_entropy(logits, labels, reduction="sum").double())
        correct += int((logits.argmax(dim=1) == labels).sum())
    count = split.labels.numel()
    return {"loss": loss / count, "accuracy": correct / count}


class FederatedClassification(FederatedWorkload):
    """A classifier whose training part lies with clients; validation and test are the server's.

    The participants of a round and the batches of a visit come from streams of their own, named by round and client.
    Nothing that one visit draws shifts another, and between rounds there is no position to save.
    """

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        partition: Partition,
        recipe: FederatedRecipe,
        streams: Streams,
        *,
        classes: int,
        augment: Augment = "none",
    ) -> None:
        self.model = model
        self.splits = splits
        self.partition = partition
        self.sizes = partition.sizes
        self.probe_inputs = splits.val.inputs[:256]
        self._parts = [part.to(splits.train.labels.device) for part in partition.parts]
        self._recipe, self._streams, self._classes, self._augment = recipe, streams, classes, augment
        self._server = ServerOptimizer(
            recipe.server_optimizer,
            recipe.server_lr or 1.0,
            recipe.server_beta1,
            recipe.server_beta2,
            recipe.server_tau,
        )
        self._batches: Iterator[Batch] = iter(())
        self._least = 2 if any(isinstance(module, _BatchNorm) for module in model.modules()) else 1
        self._done = {"rounds": 0, "client_steps": 0, "bytes_up": 0, "bytes_down": 0}

    @property
    def parts(self) -> list[Tensor]:
        """The indices of each client's training samples."""
        return self.partition.parts

    def participants(self, round: int) -> list[int]:
        """`clients_per_round` distinct clients, drawn uniformly, in ascending order, without those that drop out."""
        generator = self._streams.fresh(f"data/{round}")
        drawn = torch.randperm(len(self._parts), generator=generator)[: self._recipe.clients_per_round].tolist()
        if self._recipe.client_dropout:
            arrives = torch.rand(len(drawn), generator=generator) >= self._recipe.client_dropout
            drawn = [client for client, there in zip(drawn, arrives.tolist(), strict=True) if there] or drawn[:1]
        return sorted(drawn)

    def enter(self, client: int, round: int) -> int:
        generator = self._streams.fresh(f"data/{round}/{client}")
        self._batches = self._visit(client, generator)
        steps = self._recipe.local_steps
        if steps is None:
            assert self._recipe.local_epochs is not None
            batches = self._recipe.local_epochs * len(self._batch_sizes(self.sizes[client]))
            steps = -(-batches // self._recipe.accumulate)
        if self._recipe.stragglers:
            late = self._streams.fresh(f"data/{round}/{client}/straggler")
            if float(torch.rand((), generator=late)) < self._recipe.stragglers:
                steps = int(torch.randint(1, steps + 1, (), generator=late))
        return steps

    def _visit(self, client: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of one epoch after another; the last of an epoch holds what is left, so each sample is seen once in it."""
        part, sizes = self._parts[client], self._batch_sizes(self.sizes[client])
        while True:
            order = torch.randperm(len(part), generator=generator).to(part.device)
            epoch = self.splits.train.take(part[order])
            for inputs, labels in zip(epoch.inputs.split(sizes), epoch.labels.split(sizes), strict=True):
                yield {"inputs": self._augmented(inputs, generator), "labels": labels}

    def _batch_sizes(self, samples: int) -> list[int]:
        """The batches of an epoch. A last one that is too small for BatchNorm to train on goes with the one before it.

        Raises:
            ValueError: if all of the client's samples are too few.
        """
        if samples < self._least:
            raise ValueError(
                f"min_size: found a client of {samples} samples, must have {self._least}: BatchNorm needs them"
            )
        full, rest = divmod(samples, self._recipe.batch)
        sizes = [self._recipe.batch] * full + [rest] * bool(rest)
        if len(sizes) > 1 and sizes[-1] < self._least:
            sizes[-2:] = [sizes[-2] + sizes[-1]]
        return sizes

    def _augmented(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        if self._augment == "crop_flip":
            inputs = augment.crop(inputs, inputs.shape[-1] // 8, generator)
        return inputs if self._augment == "none" else augment.flip(inputs, generator)

    def next_batch(self) -> Batch:
        return next(self._batches)

    def client_data(self, client: int) -> Batch:
        samples = self.splits.train.take(self._parts[client])
        return {"inputs": samples.inputs, "labels": samples.labels}

    def server_change(self, change: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._server(change, {name for name, _ in self.model.named_parameters()})

    def count(self, steps: int, up: int, down: int) -> None:
        for name, more in {"rounds": 1, "client_steps": steps, "bytes_up": up, "bytes_down": down}.items():
            self._done[name] += more

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        return cross_entropy_objective(model, batch)

    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> dict[str, float]:
        return cross_entropy_scores(model, self.splits[split])

    def progress(self) -> dict[str, float]:
        return {name: float(value) for name, value in self._done.items()}

    def summarize(self, scores: list[tuple[int, float]]) -> dict[str, float]:
        """The best round by the task's metric (the first of equal ones), the mean height of its curve, and its end."""
        if not scores:
            return {}
        rounds, values = np.array(scores, dtype=np.float64).T
        width = rounds[-1] - rounds[0]
        area = np.trapezoid(values, rounds) / width if width else values[0]
        best = rounds[int(values.argmax())]
        return {
            "val/accuracy_area": float(area),
            "val/accuracy_final": float(values[-1]),
            "rounds_to_best": float(best),
        }

    def pictures(self, model: nn.Module) -> dict[str, str]:
        """The partition as `partition.svg`."""
        labels = self.splits.train.labels.cpu()
        classed = labels.ndim == 1
        return {"partition.svg": partition_svg(self.partition, labels if classed else None, self._classes)}

    def state_dict(self) -> dict[str, Any]:
        return {"done": dict(self._done), "server": self._server.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._done = dict(state["done"])
        self._server.load_state_dict(state["server"])
