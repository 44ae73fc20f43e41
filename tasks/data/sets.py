"""The data sets by name: what they are, where they lie in the data folder, how to read them and how to get them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from tasks.data import files, place
from tasks.data.splits import Split

VAL_SHARE = 0.1
"""The share of a training set that becomes the validation part, where its makers made none."""
GET = "python -m tasks.data {name}"
"""The one command that downloads; it needs a network and puts a data set where this module looks for it."""


@dataclass(frozen=True)
class Raw:
    """A data set as it comes: the parts that its makers divided it into."""

    train: Split
    val: Split | None = None
    test: Split | None = None
    files: tuple[str, ...] = ()
    """Where inputs are numbers of files: the files."""


@dataclass(frozen=True)
class DataSet:
    """A data set of labelled samples.

    Args:
        shape: of one sample: (channels, height, width), or (features,). Images in files are brought to it.
        paths: what must be there, relative to the data folder; an absolute path belongs to an installed package.
        read: reads it.
        get: how to get it.
        shares: of train and validation, where the makers made no test part.
        sizes: samples of the makers' parts (train, validation, test); None where copies differ.
    """

    name: str
    classes: int
    shape: tuple[int, ...]
    paths: Sequence[str | Path]
    read: Callable[[DataSet], Raw]
    get: str = GET
    kind: Literal["images", "files", "table"] = "images"
    shares: tuple[float, float] = (0.6, 0.2)
    sizes: tuple[int, ...] | None = None

    def places(self) -> list[Path]:
        """The absolute paths of what it is made of.

        Raises:
            MissingData: if one does not exist.
        """
        return place.require(self.name, [place.folder() / path for path in self.paths], self.get.format(name=self.name))

    def digest(self) -> str:
        """A digest of its contents; of names and sizes alone, for folders of images."""
        found = self.places()
        if any(path.is_dir() for path in found):
            return "-".join(place.listing_digest(path) for path in found)
        return place.digest(found)

    def training_samples(self, selection: str) -> int:
        """Samples of the training part, known without reading the data where all copies are alike."""
        sizes = self.sizes
        if sizes is None:
            raw = self.raw()
            sizes = tuple(len(part) for part in (raw.train, raw.val, raw.test) if part)
        if len(sizes) == 1:
            train, val = int(self.shares[0] * sizes[0]), int(sum(self.shares) * sizes[0])
        elif len(sizes) == 2:
            train, val = sizes[0] - int(VAL_SHARE * sizes[0]), sizes[0]
        else:
            train, val = sizes[0], sizes[0] + sizes[1]
        return train if selection == "validation" else val

    def raw(self) -> Raw:
        """Reads it, from the cache of decoded images where that is possible."""
        return files.cached(self, lambda: self.read(self)) if self.kind == "images" else self.read(self)


def in_memory(data: DataSet, size: int) -> DataSet:
    """A data set in files as one of images: decoded once, as squares of `size` pixels, and kept in the cache."""

    def decoded(part: Split, paths: tuple[str, ...]) -> Split:
        return Split(files.decode_all((paths[number] for number in part.inputs.tolist()), size), part.labels)

    def read(_: DataSet) -> Raw:
        raw = data.read(data)
        return Raw(decoded(raw.train, raw.files), test=decoded(raw.test, raw.files) if raw.test else None)

    return replace(data, name=f"{data.name}-{size}", shape=(3, size, size), read=read, kind="images")


def at_size(data: DataSet, size: int) -> DataSet:
    """A data set of images in memory as one of `size` pixels: resized once (bilinear, antialiased), and kept in the cache."""

    def resized(part: Split) -> Split:
        return replace(part, inputs=functional.interpolate(part.inputs, size, mode="bilinear", antialias=True))

    def read(_: DataSet) -> Raw:
        raw = data.raw()
        val, test = (resized(part) if part else None for part in (raw.val, raw.test))
        return Raw(resized(raw.train), val, test)

    return replace(data, name=f"{data.name}-{size}", shape=(data.shape[0], size, size), read=read)


def package_file(package: str, *parts: str) -> Path:
    """A file that an installed package ships; reading it ourselves saves seconds of importing the package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is not installed"
    return Path(spec.origin).parent.joinpath(*parts)


def _digits(data: DataSet) -> Raw:
    table = torch.from_numpy(np.loadtxt(data.places()[0], delimiter=","))
    return Raw(Split(table[:, :-1].to(torch.get_default_dtype()).reshape(-1, 1, 8, 8), table[:, -1].long()))


def _breast_cancer(data: DataSet) -> Raw:
    table = torch.from_numpy(np.loadtxt(data.places()[0], delimiter=",", skiprows=1))
    return Raw(Split(table[:, :-1].to(torch.get_default_dtype()), table[:, -1].long()))


def _torchvision(data: DataSet) -> Raw:
    from torchvision import datasets

    data.places()
    known = {
        "mnist": datasets.MNIST,
        "fashion_mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
    }
    parts = [known[data.name](str(place.folder()), train=train, download=False) for train in (True, False)]
    train, test = (Split(_images(part.data), torch.as_tensor(part.targets)) for part in parts)
    return Raw(train, test=test)


def _images(pixels: torch.Tensor | np.ndarray) -> torch.Tensor:
    """(n, h, w) or (n, h, w, c) to (n, c, h, w)."""
    images = torch.as_tensor(pixels)
    return images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


def _idx(folder: str) -> list[str]:
    return [
        f"{folder}/raw/{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    ]


CIFAR10_FILES = [f"cifar-10-batches-py/{name}" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]
BY_HAND = "unpack {archive} so that {{name}} has the folders {parts}, one folder of images per class in each"

DATA_SETS = {
    data.name: data
    for data in (
        DataSet("digits", 10, (1, 8, 8), [package_file("sklearn", "datasets", "data", "digits.csv.gz")], _digits,
                kind="table", sizes=(1797,)),
        DataSet("breast_cancer", 2, (30,), [package_file("sklearn", "datasets", "data", "breast_cancer.csv")],
                _breast_cancer, kind="table", sizes=(569,)),
        DataSet("mnist", 10, (1, 28, 28), _idx("MNIST"), _torchvision, sizes=(60_000, 10_000)),
        DataSet("fashion_mnist", 10, (1, 28, 28), _idx("FashionMNIST"), _torchvision, sizes=(60_000, 10_000)),
        DataSet("cifar10", 10, (3, 32, 32), [*CIFAR10_FILES, "cifar-10-batches-py/batches.meta"], _torchvision,
                sizes=(50_000, 10_000)),
        DataSet("cifar100", 100, (3, 32, 32), [f"cifar-100-python/{name}" for name in ("train", "test", "meta")],
                _torchvision, sizes=(50_000, 10_000)),
        DataSet("cinic10", 10, (3, 32, 32), [f"cinic10/{part}" for part in ("train", "valid", "test")],
                files.read_folders, get=BY_HAND.format(archive="CINIC-10.tar.gz", parts="train, valid, test"),
                sizes=(90_000, 90_000, 90_000)),
        DataSet("tiny_imagenet", 200, (3, 64, 64), ["tiny-imagenet-200/train", "tiny-imagenet-200/val"],
                files.read_folders, get="unpack tiny-imagenet-200.zip in the data folder",
                sizes=(100_000, 10_000)),
        DataSet("caltech256", 257, (3, 224, 224), ["caltech256/256_ObjectCategories"], files.list_folders,
                kind="files", shares=(0.8, 0.1), sizes=(30_607,)),
        DataSet("food101", 101, (3, 224, 224), ["food-101/images", "food-101/meta"], files.list_food101, kind="files",
                sizes=(75_750, 25_250)),
        DataSet("stanford_cars", 196, (3, 224, 224), ["stanford_cars/cars_train", "stanford_cars/cars_test"],
                files.list_cars, kind="files",
                get="unpack cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat into stanford_cars, "
                    "as torchvision.datasets.StanfordCars expects them",
                sizes=(8_144, 8_041)),
        DataSet("imagenet", 1000, (3, 224, 224), ["imagenet/train", "imagenet/val"], files.list_folders, kind="files",
                get=BY_HAND.format(archive="the ILSVRC 2012 archives", parts="train, val"),
                sizes=(1_281_167, 50_000)),
        DataSet("imagenet100", 100, (3, 224, 224), ["imagenet100/train", "imagenet100/val"], files.list_folders,
                kind="files", get=BY_HAND.format(archive="the 100 classes of your subset of ImageNet", parts="train, val")),
    )
}  # fmt: skip
