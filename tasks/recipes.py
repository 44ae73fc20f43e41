"""The recipe of supervised tasks: epochs, regularisation of the loss, augmentation, precision of the forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from harness import Recipe


@dataclass(frozen=True, kw_only=True)
class SupervisedRecipe(Recipe):
    """Hyper-parameters of supervised learning.

    The length is given in `epochs` or in `steps`; where `steps` is positive it holds, and `epochs` says what they amount
    to. An epoch has as many steps as whole batches fit into the training part, divided by `accumulate`.

    >>> recipe = SupervisedRecipe(epochs=2, epoch_size=1000, batch=64).resolve()
    >>> recipe.steps, recipe.epochs
    (30, 2.0)
    >>> SupervisedRecipe(steps=45, epoch_size=1000, batch=64).resolve().epochs
    3.0
    """

    steps: int = 0  # 0: as many as the epochs have
    epochs: float = 0.0  # passes over the training part
    epoch_size: int = 0  # samples of the training part; the task fills it in, and 0 is unknown
    warmup_epochs: float = 0.0  # in place of `warmup`, where that is 0
    label_smoothing: float = 0.0
    autocast: bool = False  # forward passes in bfloat16 where torch holds that to be safe

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps: found {self.steps}, must not be negative")
        if not self.steps and not self.epoch_size:
            raise ValueError(
                f"steps: found {self.steps}, must be positive: how long an epoch of this task is, is not known"
            )
        if self.length < 1:
            raise ValueError(f"epochs: found {self.epochs}, must be positive where steps is 0")
        if self.warmup_epochs < 0:
            raise ValueError(f"warmup_epochs: found {self.warmup_epochs}, must not be negative")
        _within(self, label_smoothing=1)
        super().__post_init__()

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps of one pass over the training part."""
        return max(1, self.epoch_size // max(1, self.batch)) / max(1, self.accumulate)

    @property
    def length(self) -> int:
        return self.steps or round(self.epochs * self.steps_per_epoch)

    def resolve(self) -> Self:
        steps = self.length
        warmup = self.warmup or round(self.warmup_epochs * self.steps_per_epoch)
        epochs = round(steps / self.steps_per_epoch, 6) if self.epoch_size else 0.0
        return replace(super().resolve(), steps=steps, epochs=epochs, warmup=warmup)


@dataclass(frozen=True, kw_only=True)
class ImageRecipe(SupervisedRecipe):
    """The recipe of tasks on images, with augmentation of the training part."""

    crop: int = 0  # pixels of padding around a random crop
    flip: bool = False  # mirror half of the images
    rand_augment: int = 0  # RandAugment operations per image
    rand_augment_magnitude: int = 9  # 0 to 30
    erasing: float = 0.0  # probability of random erasing

    def __post_init__(self) -> None:
        _within(self, crop=1000, rand_augment=100, rand_augment_magnitude=30, erasing=1)
        super().__post_init__()


def _within(recipe: Recipe, **highest: float) -> None:
    for name, high in highest.items():
        if not 0 <= getattr(recipe, name) <= high:
            raise ValueError(f"{name}: found {getattr(recipe, name)}, must lie in [0, {high}]")
