"""What tasks of classification share: a model, a data set of images or a table, and their options."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from harness import Recipe, Task, Workload
from harness.streams import Streams
from tasks import data, models
from tasks.data import Selection
from tasks.images import Classification, Inputs
from tasks.models import AnyActivation, ImageModel, Init, Normalisation
from tasks.options import positive
from tasks.recipes import ImageRecipe

Stem = Literal["native", "small"]


@dataclass
class ImageTask(Task):
    """A model on a data set. `activation: native` and `init: native` are what the model's library gives.

    `train_size`, `val_size` and `test_size` take random subsets, for proxies of larger runs. `selection: test` is the
    protocol of several papers: no validation part is held out, and the best checkpoint is the best on the test part.
    """

    offers = frozenset({"gates", "labels"})
    recipe_class = ImageRecipe
    data_set: ClassVar[str]
    fixed_model: ClassVar[str]
    training: ClassVar[dict[str, Any]]
    """The task's recipe, as far as it differs from the defaults."""

    activation: AnyActivation = "native"
    init: Init = "native"
    train_size: int | None = None
    val_size: int | None = None
    test_size: int | None = None
    selection: Selection = "validation"
    probe_samples: int = 256

    def __post_init__(self) -> None:
        positive(self, "train_size", "val_size", "test_size", "width", "depth", "resize", "probe_samples")
        if len(self.shape()) != 3 and (size := getattr(self, "resize", None)):
            raise ValueError(f"resize: found {size}, allowed: none for a table")
        models.check_image_model(self.model_name(), self.shape(), **self._model_options())

    def recipe(self) -> ImageRecipe:
        samples = data.known(self.data_set).training_samples(self.selection)
        return ImageRecipe(epoch_size=min(samples, self.train_size or samples), **self.training)

    def check(self, recipe: Recipe) -> None:
        assert isinstance(recipe, ImageRecipe)
        if recipe.epoch_size != self.recipe().epoch_size:
            raise ValueError(
                f"epoch_size: found {recipe.epoch_size}, allowed: {self.recipe().epoch_size}, what the task has"
            )
        channels = data.known(self.data_set).shape[0]
        if recipe.rand_augment and channels != 3:
            raise ValueError(
                f"rand_augment: found {recipe.rand_augment}, allowed: 0 for samples without three channels"
            )
        if len(data.known(self.data_set).shape) != 3:
            for name in ("crop", "flip", "erasing"):
                if getattr(recipe, name):
                    raise ValueError(f"{name}: found {getattr(recipe, name)}, allowed: images alone are augmented")

    def data_digest(self) -> str:
        own = data.digest(self.data_set)
        return f"{own}-{models.weights_digest(self.model_name())}" if getattr(self, "pretrained", False) else own

    def model_name(self) -> str:
        """Which model it is."""
        return self.fixed_model

    def shape(self) -> tuple[int, ...]:
        """Of one input of the model."""
        shape = data.known(self.data_set).shape
        if len(shape) != 3:
            return shape
        channels = shape[0] if self.model_name() in models.SMALL else 3
        size = getattr(self, "resize", None) or shape[-1]
        return channels, size, size

    def build_model(self) -> nn.Module:
        """The model, initialised from torch's default generator."""
        classes = data.classes(self.data_set)
        model = models.image_model(self.model_name(), self.shape(), classes, **self._model_options())
        return models.dress(model, self.activation, self.init)

    def _model_options(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name in MODEL_OPTIONS}

    def workload(self, recipe: Recipe, streams: Streams, device: torch.device) -> Workload:
        assert isinstance(recipe, ImageRecipe)
        raw = data.known(self.data_set).raw()
        splits = data.divide(data.known(self.data_set), raw, streams, self.selection)
        splits = splits.first(self.train_size, self.val_size, self.test_size)
        if len(splits.train) != recipe.epoch_size:
            raise ValueError(
                f"data set {self.data_set}: found {len(splits.train)} training samples, allowed: {recipe.epoch_size}"
            )
        with streams.default("init"):
            model = self.build_model().to(device)
        inputs = Inputs(self.shape(), raw.files, splits.train, device)
        return Classification(model, splits, inputs, recipe, streams, self.probe_samples)


MODEL_OPTIONS = {"width", "depth", "stem", "dropout", "pretrained", "normalisation"}


@dataclass
class SmallTask(ImageTask):
    """One of the small models; `width` and `depth` are the model's own unless given."""

    width: int | None = None
    depth: int | None = None


@dataclass
class ResidualTask(SmallTask):
    """A small residual network; `normalisation` leaves BatchNorm out."""

    normalisation: Normalisation = "library"


@dataclass
class LibraryTask(ImageTask):
    """A model of a library. `stem: small` keeps the resolution of small images in a convolutional network's first layers;
    `resize` brings images to another size; `pretrained` reads the library's weights from the data folder; `normalisation`
    leaves BatchNorm out."""

    stem: Stem = "native"
    resize: int | None = None
    dropout: float | None = None
    pretrained: bool = False
    normalisation: Normalisation = "library"


@dataclass
class SmallStemTask(LibraryTask):
    """A model of a library on small images."""

    stem: Stem = "small"


@dataclass
class ResizedTask(LibraryTask):
    """A model of a library on images that are brought to the size that it was made for."""

    resize: int | None = 224


@dataclass
class AnyTask(LibraryTask):
    """Any model by name; `width` and `depth` are for the small ones."""

    model: ImageModel = "cnn"
    width: int | None = None
    depth: int | None = None

    def model_name(self) -> str:
        return self.model


@dataclass
class TableTask(AnyTask):
    """A multi-layer perceptron on a table."""

    model: ImageModel = "mlp"
