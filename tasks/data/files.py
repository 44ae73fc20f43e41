"""Images in files: how the folders of each data set are read, decoding, and the cache of decoded images."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tasks.data import place
from tasks.data.splits import Split

if TYPE_CHECKING:
    from PIL.Image import Image

    from tasks.data.sets import DataSet, Raw

SUFFIXES = {".jpg", ".jpeg", ".png"}
Labelled = list[tuple[Path, int]]


def cached(data: DataSet, read: Callable[[], Raw]) -> Raw:
    """A data set from the cache of decoded images, or read and put there.

    The cache is mapped into memory: processes on one machine share its pages, and no image library is imported.
    """
    file = place.cache() / f"{data.name}-{data.digest()}.pt"
    if not file.exists():
        buffer = io.BytesIO()
        raw = read()
        parts = {"train": raw.train, "val": raw.val, "test": raw.test}
        torch.save({name: vars(part) for name, part in parts.items() if part}, buffer)
        place.write_atomically(file, buffer.getvalue())
        if not file.exists():
            return raw
    from tasks.data.sets import Raw

    saved = {name: Split(**part) for name, part in torch.load(file, mmap=True, weights_only=True).items()}
    return Raw(saved["train"], saved.get("val"), saved.get("test"))


def class_folders(root: Path) -> Labelled:
    """Images below one folder per class, in the order of their names; Tiny ImageNet's list of labels is understood."""
    annotations = root / "val_annotations.txt"
    if annotations.exists():
        rows = [line.split("\t") for line in annotations.read_text().splitlines()]
        names = sorted({row[1] for row in rows})
        return [(root / "images" / row[0], names.index(row[1])) for row in sorted(rows)]
    names = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    return [
        (path, label)
        for label, name in enumerate(names)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]


def _food101(meta: Path, images: Path) -> list[Labelled]:
    classes = (meta / "classes.txt").read_text().split()
    return [
        [(images / f"{line}.jpg", classes.index(line.split("/")[0])) for line in (meta / part).read_text().split()]
        for part in ("train.txt", "test.txt")
    ]


def _cars(root: Path) -> list[Labelled]:
    from scipy.io import loadmat

    lists = {"cars_train": "devkit/cars_train_annos.mat", "cars_test": "cars_test_annos_withlabels.mat"}
    return [
        [
            (root / folder / str(row["fname"]), int(row["class"]) - 1)
            for row in loadmat(str(root / annotations), squeeze_me=True)["annotations"]
        ]
        for folder, annotations in lists.items()
    ]


def list_folders(data: DataSet) -> Raw:
    """Folders of images by part: train and test; one folder alone is divided by us."""
    return _listed([class_folders(path) for path in data.places()])


def list_food101(data: DataSet) -> Raw:
    """Food-101 with its own lists of training and test images."""
    images, meta = data.places()
    return _listed(_food101(meta, images))


def list_cars(data: DataSet) -> Raw:
    """Stanford Cars with its own training and test parts."""
    return _listed(_cars(data.places()[0].parent))


def _listed(parts: list[Labelled]) -> Raw:
    """Parts whose inputs are numbers of files."""
    from tasks.data.sets import Raw

    paths = tuple(str(path) for part in parts for path, _ in part)
    numbers = torch.arange(len(paths)).split([len(part) for part in parts])
    splits = [Split(n, torch.tensor([y for _, y in part])) for n, part in zip(numbers, parts, strict=True)]
    return Raw(splits[0], test=splits[1] if len(splits) > 1 else None, files=paths)


def read_folders(data: DataSet) -> Raw:
    """Folders of small images, decoded into memory: (train, test) or (train, validation, test)."""
    from tasks.data.sets import Raw

    parts = []
    for path in data.places():
        listed = class_folders(path)
        images = decode_all([str(path) for path, _ in listed], data.shape[-1])
        parts.append(Split(images, torch.tensor([label for _, label in listed])))
    return Raw(parts[0], test=parts[-1], val=parts[1] if len(parts) == 3 else None)


def decode_all(paths: Iterable[str], size: int) -> Tensor:
    """Images as bytes: (n, 3, size, size)."""
    with ThreadPoolExecutor() as pool:
        return torch.stack(list(pool.map(lambda path: decode(path, size), paths)))


def decode(path: str, size: int, generator: torch.Generator | None = None) -> Tensor:
    """One image as bytes, (3, size, size).

    With a generator, a random part of it: 8 to 100 % of its area, aspect 3/4 to 4/3 (Szegedy et al. 2015, arXiv
    1409.4842). Without one, the centre: the shorter side is brought to 256/224 of the size first, unless the image has
    the size already.
    """
    from PIL import Image

    with Image.open(path) as file:
        image = file.convert("RGB")
    box = _centre(image, size) if generator is None else _random_part(image, generator)
    if image.size != (size, size) or generator is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


Box = tuple[float, float, float, float]


def _centre(image: Image, size: int) -> Box:
    width, height = image.size
    side = min(width, height) * (224 / 256 if min(width, height) > size else 1)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_part(image: Image, generator: torch.Generator) -> Box:
    width, height = image.size
    for _ in range(10):
        area, shape, x, y = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = (0.08 + 0.92 * area) * width * height
        ratio = (3 / 4) ** (1 - 2 * shape)
        w, h = (area * ratio) ** 0.5, (area / ratio) ** 0.5
        if w <= width and h <= height:
            left, top = x * (width - w), y * (height - h)
            return left, top, left + w, top + h
    return _centre(image, 0)
