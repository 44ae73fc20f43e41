"""Supervised classification: a model, a data set with honest splits, cross-entropy."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from harness import Batch, Objective, Recipe, Task, Workload, register_task
from harness.streams import Streams
from tasks import data, models
from tasks.models import Activation
from tasks.options import positive


def classification_objective(model: nn.Module, batch: Batch) -> Objective:
    """Mean cross-entropy of the logits."""
    logits = model(batch["inputs"])
    loss = functional.cross_entropy(logits, batch["labels"])
    return Objective(loss, {"logits": logits}, len(batch["labels"]))


def classification_scores(model: nn.Module, split: data.Split, batch: int = 2048) -> dict[str, float]:
    """Mean cross-entropy and accuracy on a whole split."""
    loss = torch.zeros((), dtype=torch.float64)
    correct = 0
    for inputs, labels in zip(split.inputs.split(batch), split.labels.split(batch), strict=True):
        logits = model(inputs)
        loss += functional.cross_entropy(logits, labels, reduction="sum").double().cpu()
        correct += int((logits.argmax(dim=1) == labels).sum())
    return {"loss": float(loss) / len(split), "accuracy": correct / len(split)}


class Classification(Workload):
    """A classifier on in-memory splits."""

    def __init__(self, model: nn.Module, splits: data.Splits, recipe: Recipe, streams: Streams) -> None:
        self.model = model
        self.splits = splits
        self.probe_inputs = splits.val.inputs[:256]
        self._order = data.EpochOrder(len(splits.train), recipe.batch, streams.torch("data"))

    def next_batch(self) -> Batch:
        indices = self._order.next().to(self.splits.train.labels.device)
        part = self.splits.train.take(indices)
        return {"inputs": part.inputs, "labels": part.labels}

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        return classification_objective(model, batch)

    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> dict[str, float]:
        return classification_scores(model, self.splits[split])

    def state_dict(self) -> dict[str, Any]:
        return self._order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order.load_state_dict(state)


class Digits(Task):
    """A model on scikit-learn's digits."""

    offers = frozenset({"gates", "labels"})
    metric = "val/accuracy"

    def __post_init__(self) -> None:
        positive(self, "hidden", "width")

    def data_digest(self) -> str:
        return data.digest("digits")

    def model(self) -> nn.Module:
        """The model, initialised from torch's default generator."""
        raise NotImplementedError

    def workload(self, recipe: Recipe, streams: Streams, device: torch.device) -> Workload:
        splits = data.digits(streams, device)
        with streams.default("init"):
            model = self.model().to(device)
        return Classification(model, splits, recipe, streams)


@register_task("digits/mlp")
class DigitsMLP(Digits):
    """A multi-layer perceptron on scikit-learn's digits (8×8, ten classes)."""

    hidden: tuple[int, ...] = field(default=(64, 64))
    activation: Activation = "relu"

    def unstackable(self, recipe: Recipe) -> str:
        return ""

    def recipe(self) -> Recipe:
        return Recipe(steps=600, batch=64, lr=3e-3, weight_decay=1e-2)

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), models.mlp(64, list(self.hidden), 10, self.activation))


@register_task("digits/cnn")
class DigitsCNN(Digits):
    """A small convolutional network on scikit-learn's digits (8×8, ten classes)."""

    width: int = 16
    activation: Activation = "relu"

    def recipe(self) -> Recipe:
        return Recipe(steps=400, batch=64, lr=2e-3, weight_decay=1e-2)

    def model(self) -> nn.Module:
        return models.cnn(1, 8, self.width, 10, self.activation)
