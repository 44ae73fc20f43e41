"""Federated tasks: a data set, how it is spread over clients, and a model.

`DATA/federated` is there for every data set of images or numbers that supervised tasks know: those of the papers with a
recipe of their own, all others with a customary one that was not tuned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from harness import Recipe, Task, register_task
from harness.streams import Streams
from tasks import data, models, natural_clients, partitions
from tasks.data.splits import Split, Splits
from tasks.federation import Augment, FederatedClassification, FederatedRecipe
from tasks.models import AnyActivation, ImageModel, Init
from tasks.options import heads_divide_width, positive
from tasks.partitions import Partition


@dataclass
class FederatedTask(Task):
    """What all of them share: the partition's options. A partition follows the stream `partition` alone."""

    offers = frozenset({"gates", "clients", "labels"})
    source = "McMahan et al. 2017, arXiv 1602.05629; partitions: Li et al. 2022, arXiv 2102.02079"
    recipe_class = FederatedRecipe
    class_count: ClassVar[int] = 10
    natural_clients: ClassVar[bool] = False
    """Whether the data set says who each sample came from."""

    clients: int = 20
    partition: partitions.Kind = "dirichlet"
    alpha: float = 0.5  # of dirichlet and quantity
    min_size: int = 10  # samples of a client at least: of dirichlet, quantity and natural
    classes_per_client: int = 2  # of shards
    noisy_clients: float = 0.0  # the share of clients with wrong labels
    label_noise: float = 0.4  # the share of their labels that is replaced by another class
    rare_clients: float = 0.0  # the share of clients that keep rare_size samples at most
    rare_size: int = 120

    def __post_init__(self) -> None:
        positive(
            self,
            "clients",
            "alpha",
            "min_size",
            "classes_per_client",
            "rare_size",
            "width",
            "depth",
            "heads",
            "context",
        )
        for name in ("noisy_clients", "label_noise", "rare_clients"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, must lie in [0, 1]")
        if self.partition == "natural" and not self.natural_clients:
            raise ValueError(
                "partition: found natural, allowed: iid, dirichlet, shards, quantity; the data set has no natural clients"
            )

    def check(self, recipe: Recipe) -> None:
        assert isinstance(recipe, FederatedRecipe)
        if recipe.clients_per_round > self.clients:
            raise ValueError(
                f"clients_per_round: found {recipe.clients_per_round}, allowed: at most the task's clients ({self.clients})"
            )

    def read(self, streams: Streams) -> tuple[Splits, Tensor | None]:
        """The splits, ready for the model, and the natural client of each training sample where the data set has them."""
        raise NotImplementedError

    def build_model(self, shape: tuple[int, ...]) -> nn.Module:
        """The model for samples of a shape, initialised from torch's default generator."""
        raise NotImplementedError

    def workload(self, recipe: Recipe, streams: Streams, device: torch.device) -> FederatedClassification:
        assert isinstance(recipe, FederatedRecipe)
        splits, groups = self.read(streams)
        generator = np.random.default_rng(streams.seed("partition"))
        partition, labels = self._divide(splits.train.labels, groups, generator)
        splits = Splits(Split(splits.train.inputs, labels), splits.val, splits.test).to(device)
        with streams.default("init"):
            model = self.build_model(tuple(splits.train.inputs.shape[1:])).to(device)
        augment: Augment = getattr(self, "augment", "none")
        return FederatedClassification(
            model, splits, partition, recipe, streams, classes=self.class_count, augment=augment
        )

    def _divide(
        self, labels: Tensor, groups: Tensor | None, generator: np.random.Generator
    ) -> tuple[Partition, Tensor]:
        """The partition, and the labels with the noise of its noisy clients."""
        parts = self._parts(labels, groups, generator)
        parts, rare = partitions.thin_out(parts, self.rare_clients, self.rare_size, generator)
        noisy = partitions.chosen(self.clients, self.noisy_clients, generator)
        for client in noisy:
            labels = partitions.flip_labels(labels, parts[client], self.label_noise, self.class_count, generator)
        return Partition(parts, rare, noisy), labels

    def _parts(self, labels: Tensor, groups: Tensor | None, generator: np.random.Generator) -> list[Tensor]:
        if self.partition == "dirichlet":
            return partitions.dirichlet(labels, self.clients, self.alpha, self.min_size, generator)
        if self.partition == "quantity":
            return partitions.quantity(len(labels), self.clients, self.alpha, self.min_size, generator)
        if self.partition == "shards":
            return partitions.shards(labels, self.clients, self.classes_per_client, generator)
        if self.partition == "iid":
            return partitions.iid(len(labels), self.clients, generator)
        assert groups is not None
        return partitions.natural(groups, self.clients, self.min_size, generator)


@dataclass
class FederatedImages(FederatedTask):
    """Any image model on images spread over clients."""

    data_set: ClassVar[str] = ""

    model: ImageModel = "cnn"
    activation: AnyActivation = "native"
    init: Init = "native"
    width: int | None = None
    depth: int | None = None
    stem: Literal["native", "small"] = "native"
    dropout: float | None = None
    pretrained: bool = False  # torchvision's weights; the classifier starts anew, the same for every method
    augment: Augment = "none"
    only_classes: tuple[int, ...] = ()  # trains and scores on these alone, the classifier keeps all outputs
    train: int | None = None
    val: int | None = None
    test: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.only_classes and self.noisy_clients:
            raise ValueError(
                f"noisy_clients: found {self.noisy_clients} beside only_classes, allowed: 0; a wrong label is any other class"
            )
        positive(self, "train", "val", "test", "resize")
        models.check_image_model(self.model, self.shape(), **self._model_options())
        if unknown := set(self.only_classes) - set(range(self.class_count)):
            raise ValueError(f"only_classes: found {sorted(unknown)}, allowed: 0 to {self.class_count - 1}")

    def data_digest(self) -> str:
        own = data.digest(self.data_set)
        return f"{own}-{models.weights_digest(self.model)}" if self.pretrained else own

    def recipe(self) -> FederatedRecipe:
        return FederatedRecipe(rounds=60, clients_per_round=5, batch=32, optimizer="sgd", lr=0.01, momentum=0.9)

    def check(self, recipe: Recipe) -> None:
        super().check(recipe)
        if not self.natural_clients and self.samples().sizes is not None:
            samples = self.samples().training_samples("validation")
            least = self.min_size if self.partition in ("dirichlet", "quantity") else 1
            partitions.enough(min(samples, self.train or samples), self.clients, least)

    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.samples().shape

    def samples(self) -> data.DataSet:
        """The data set, as images or numbers in memory."""
        return data.known(self.data_set)

    def read(self, streams: Streams) -> tuple[Splits, Tensor | None]:
        known = self.samples()
        whole = data.divide(known, known.raw(), streams)
        if self.only_classes:
            keep = torch.tensor(self.only_classes)
            whole = Splits(*(part.take(torch.isin(part.labels, keep)) for part in (whole.train, whole.val, whole.test)))
        return whole.first(self.train, self.val, self.test).standardised(), None

    def build_model(self, shape: tuple[int, ...]) -> nn.Module:
        model = models.image_model(self.model, shape, self.class_count, **self._model_options())
        return models.dress(model, self.activation, self.init)

    def _model_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("width", "depth", "stem", "dropout", "pretrained")}


@dataclass
class FederatedColours(FederatedImages):
    """Any image model on images in colour spread over clients; `resize` brings them to another size, once and in memory."""

    augment: Augment = "crop_flip"
    resize: int | None = None

    def samples(self) -> data.DataSet:
        own = super().samples()
        return own if self.resize is None else data.at_size(own, self.resize)


@register_task("digits/federated")
class FederatedDigits(FederatedImages):
    """scikit-learn's digits (8×8, ten classes) spread over clients."""

    data_set = "digits"

    model: ImageModel = "mlp"
    width: int | None = 64
    depth: int | None = 1

    def recipe(self) -> FederatedRecipe:
        return FederatedRecipe(rounds=40, clients_per_round=5, batch=8, lr=4e-2, eps=1e-2, schedule="cosine")


@register_task("digits/pretraining")
class PretrainingDigits(FederatedDigits):
    """Plain training of `digits/federated`'s model on the digits 0 to 4, in rounds of one epoch: a start for other tasks."""

    clients: int = 1
    partition: partitions.Kind = "iid"
    only_classes: tuple[int, ...] = (0, 1, 2, 3, 4)

    def recipe(self) -> FederatedRecipe:
        return replace(super().recipe(), clients_per_round=1)


@register_task("fashion_mnist/federated")
class FederatedFashionMNIST(FederatedImages):
    """Fashion-MNIST (28×28, ten classes) spread over clients."""

    data_set = "fashion_mnist"


@register_task("cifar10/federated")
class FederatedCIFAR10(FederatedColours):
    """CIFAR-10 (32×32 in colour, ten classes) spread over clients; the default model and recipe are FedOUI's."""

    data_set = "cifar10"
    source = f"{FederatedTask.source}; protocol: arXiv 2605.11571"


@register_task("cifar10/pretraining")
class PretrainingCIFAR10(FederatedCIFAR10):
    """Plain training of `cifar10/federated`'s model on the classes 0 to 4, in rounds of one epoch: a start for other tasks."""

    clients: int = 1
    partition: partitions.Kind = "iid"
    only_classes: tuple[int, ...] = (0, 1, 2, 3, 4)

    def recipe(self) -> FederatedRecipe:
        return replace(super().recipe(), clients_per_round=1)


@register_task("cifar100/federated")
class FederatedCIFAR100(FederatedColours):
    """CIFAR-100 (32×32 in colour, a hundred classes) spread over clients."""

    data_set = "cifar100"
    class_count = 100


@register_task("cinic10/federated")
class FederatedCINIC10(FederatedColours):
    """CINIC-10 (32×32 in colour, ten classes; its makers' own validation part) spread over clients."""

    data_set = "cinic10"


@register_task("mnist_writers/federated")
class FederatedWriters(FederatedImages):
    """MNIST images of 100 writers: each writer is a client. 80 % of all images train, 10 % validate, 10 % test."""

    data_set = "mnist_writers"
    natural_clients = True
    source = "writers: Yadav & Bottou 2019, arXiv 1905.10498"

    clients: int = 100
    partition: partitions.Kind = "natural"

    def data_digest(self) -> str:
        own = natural_clients.digest("mnist_writers")
        return f"{own}-{models.weights_digest(self.model)}" if self.pretrained else own

    def shape(self) -> tuple[int, ...]:
        return 1, 28, 28

    def recipe(self) -> FederatedRecipe:
        return FederatedRecipe(rounds=60, clients_per_round=10, batch=10, optimizer="sgd", lr=0.05)

    def read(self, streams: Streams) -> tuple[Splits, Tensor | None]:
        splits, writers = natural_clients.writers(streams)
        if self.only_classes:
            raise ValueError(f"only_classes: found {list(self.only_classes)}, allowed: none for natural clients")
        return splits.first(self.train, self.val, self.test).standardised(), writers[: self.train]


@register_task("shakespeare/federated")
class FederatedShakespeare(FederatedTask):
    """The next character in Shakespeare's plays: each speaker is a client. A speaker's last fifth validates and tests."""

    source = "after LEAF, arXiv 1812.01097; a small GPT in place of its LSTM"
    natural_clients = True

    clients: int = 100
    partition: partitions.Kind = "natural"
    min_size: int = 4
    context: int = 80  # characters of a sample
    width: int = 64
    depth: int = 2
    heads: int = 4
    activation: models.Activation = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.partition in ("dirichlet", "shards"):
            raise ValueError(
                f"partition: found {self.partition}, allowed: natural, iid, quantity; a text has no classes"
            )
        if self.noisy_clients:
            raise ValueError(f"noisy_clients: found {self.noisy_clients}, allowed: 0; a text has no classes")
        heads_divide_width(self)

    def data_digest(self) -> str:
        return natural_clients.digest("shakespeare")

    def recipe(self) -> FederatedRecipe:
        return FederatedRecipe(rounds=60, clients_per_round=10, batch=4, optimizer="adamw", lr=1e-3, clip=1.0)

    def read(self, streams: Streams) -> tuple[Splits, Tensor | None]:
        return natural_clients.speakers(self.context)

    def build_model(self, shape: tuple[int, ...]) -> nn.Module:
        size = natural_clients.vocabulary_size()
        return models.GPTTiny(size, self.context, self.width, self.depth, self.heads, self.activation)


@dataclass
class FederatedFiles(FederatedImages):
    """Any image model on images in files spread over clients; `resize` is the size at which they are kept in memory."""

    augment: Augment = "crop_flip"
    resize: int = 64

    def samples(self) -> data.DataSet:
        return data.in_memory(super().samples(), self.resize)


@dataclass
class FederatedTable(FederatedImages):
    """A multi-layer perceptron on the rows of a table spread over clients."""

    clients: int = 10
    model: ImageModel = "mlp"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment != "none":
            raise ValueError(f"augment: found {self.augment}, allowed: none; images alone are augmented")


def base_of(known: data.DataSet) -> type[FederatedImages]:
    """What a data set without a federated task of its own is made into."""
    if known.kind == "files":
        return FederatedFiles
    if len(known.shape) == 1:
        return FederatedTable
    return FederatedColours if known.shape[0] == 3 else FederatedImages


own = {task.data_set for base in (FederatedImages, FederatedColours) for task in base.__subclasses__()}
for known in data.DATA_SETS.values():
    if known.name not in own:
        label = "".join(part.title() for part in known.name.split("_"))
        summary = f"The data set {known.name} spread over clients, with any model by the option `model`."
        contents = {"data_set": known.name, "class_count": known.classes, "__doc__": summary, "__module__": __name__}
        register_task(f"{known.name}/federated")(type(f"Federated{label}", (base_of(known),), contents))
