"""The workload of image and table classification: data in memory or in files, augmentation, evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness import Batch, Objective, Workload
from harness.streams import Streams
from tasks.data import EpochOrder, Split, Splits, Standardiser, augment, files
from tasks.data.pipeline import AHEAD, Pipeline, mapped_ahead
from tasks.recipes import ImageRecipe, SupervisedRecipe

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of ImageNet's channels, for images in files: reading all of them for their own would take hours."""


def autocast(recipe: SupervisedRecipe, device: torch.device) -> AbstractContextManager[Any]:
    """The precision of a forward pass."""
    return torch.autocast(device.type, torch.bfloat16) if recipe.autocast else nullcontext()


def of_trial(logits: Tensor) -> Tensor:
    """Logits of a forward pass in bfloat16 in the precision of the trial, which all others have already."""
    return logits.to(torch.get_default_dtype())


class Inputs:
    """Makes what a model takes out of what a data set holds: bytes of images, tables, or numbers of files.

    Args:
        shape: of one input of the model.
        paths: the files, where inputs are their numbers.
        train: the training part, from which mean and deviation are taken.
    """

    def __init__(self, shape: tuple[int, ...], paths: tuple[str, ...], train: Split, device: torch.device) -> None:
        self.shape, self.paths, self.device = shape, paths, device
        if paths:
            mean, deviation = (255 * torch.tensor(values).reshape(-1, 1, 1) for values in IMAGENET)
            self._scale = Standardiser(mean, deviation).to(device)
        else:
            self._scale = Standardiser.of(train.inputs).to(device)

    def stored(self, inputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images of bytes, decoded if they lie in files: random parts of them with a generator."""
        if not self.paths:
            return inputs
        size = self.shape[-1]
        return torch.stack([files.decode(self.paths[number], size, generator) for number in inputs.tolist()])

    def finished(self, stored: Tensor) -> Tensor:
        """Standardised, with as many channels as the model takes and of its size."""
        inputs = self._scale(stored.to(self.device, non_blocking=True))
        if len(self.shape) == 3:
            if inputs.shape[1] != self.shape[0]:
                inputs = inputs.expand(-1, self.shape[0], -1, -1)
            if inputs.shape[-1] != self.shape[-1]:
                size = list(self.shape[1:])
                inputs = functional.interpolate(inputs, size, mode="bilinear", antialias=True, align_corners=False)
        return inputs


class Classification(Workload):
    """A classifier.

    Data that fits lies on the model's device as bytes, and batches are made there. Files, and images for RandAugment, are
    made into batches ahead of time by threads on the CPU. The batches are the same in both ways and on every device.
    """

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        inputs: Inputs,
        recipe: ImageRecipe,
        streams: Streams,
        probe_samples: int = 256,
    ) -> None:
        self.model = model
        self.splits = splits
        self._inputs, self._recipe, self._streams = inputs, recipe, streams
        on_cpu = bool(inputs.paths or recipe.rand_augment)
        self._train = splits.train if on_cpu else splits.train.to(inputs.device)
        order = EpochOrder(len(splits.train), recipe.batch, streams.torch("data"))
        self._pipeline = Pipeline(order, self._make, ahead=AHEAD if on_cpu else 0)
        self.probe_inputs = inputs.finished(inputs.stored(splits.val.inputs[:probe_samples]))

    def next_batch(self) -> Batch:
        batch = self._pipeline.next()
        device = self._inputs.device
        inputs = self._inputs.finished(batch["inputs"])
        if self._recipe.erasing:
            inputs = augment.erase(inputs, self._recipe.erasing, self._generator("erase", int(batch["number"])))
        return {"inputs": inputs, "labels": batch["labels"].to(device, non_blocking=True)}

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        return self._streams.fresh(f"data/{purpose}/{number}")

    def _make(self, indices: Tensor, number: int) -> Batch:
        recipe = self._recipe
        part = self._train.take(indices.to(self._train.labels.device))
        generator = self._generator("augment", number)
        images = self._inputs.stored(part.inputs, generator)
        if recipe.crop:
            images = augment.crop(images, recipe.crop, generator)
        if recipe.flip:
            images = augment.flip(images, generator)
        if recipe.rand_augment:
            images = augment.rand_augment(images, recipe.rand_augment, recipe.rand_augment_magnitude, generator)
        return {"inputs": images, "labels": part.labels, "number": torch.tensor(number)}

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        with autocast(self._recipe, self._inputs.device):
            logits = model(batch["inputs"])
            smoothing = self._recipe.label_smoothing
            loss = functional.cross_entropy(of_trial(logits), batch["labels"], label_smoothing=smoothing)
        return Objective(loss, {"logits": logits}, len(batch["labels"]))

    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> dict[str, float]:
        """Mean cross-entropy, without label smoothing, and accuracy on a whole split."""
        part = self.splits[split]
        loss, correct = torch.zeros((), dtype=torch.float64), 0
        for inputs, labels in self._chunks(part):
            with autocast(self._recipe, self._inputs.device):
                logits = of_trial(model(self._inputs.finished(inputs)))
            labels = labels.to(logits.device)
            loss += functional.cross_entropy(logits, labels, reduction="sum").double().cpu()
            correct += int((logits.argmax(dim=1) == labels).sum())
        return {"loss": float(loss) / len(part), "accuracy": correct / len(part)}

    def _chunks(self, part: Split) -> Iterator[tuple[Tensor, Tensor]]:
        """A split in batches of about a million numbers or 1,024 samples; files are decoded ahead of time."""
        size = max(16, min(1024, 2**24 // max(1, self.probe_inputs[0].numel() * 8)))
        order = torch.arange(len(part)).split(size)
        if self._inputs.paths:
            yield from mapped_ahead(lambda i: (self._inputs.stored(part.inputs[i]), part.labels[i]), order, AHEAD)
        else:
            yield from ((part.inputs[i], part.labels[i]) for i in order)

    def state_dict(self) -> dict[str, Any]:
        return self._pipeline.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pipeline.load_state_dict(state)
