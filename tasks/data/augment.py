"""Augmentations of image batches. Every draw comes from a generator on the CPU, so a batch has the same content anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional


def crop(images: Tensor, padding: int, generator: Generator) -> Tensor:
    """Pads each image with zeros and cuts it at a random place to its size again: (n, c, h, w)."""
    n, _, height, width = images.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator)
    rows = (offsets[0] + torch.arange(height)).to(images.device)
    columns = (offsets[1] + torch.arange(width)).to(images.device)
    padded = functional.pad(images, (padding,) * 4)
    sample = torch.arange(n, device=images.device).reshape(n, 1, 1)
    return padded.permute(0, 2, 3, 1)[sample, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2).contiguous()


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirrors each image with probability one half."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen.to(images.device).reshape(-1, 1, 1, 1), images.flip(-1), images)


def erase(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Random erasing: a rectangle of 2 to 33 % of the area, aspect 0.3 to 3.3, becomes 0 (arXiv 1708.04896)."""
    images = images.clone()
    height, width = images.shape[-2:]
    for index in torch.nonzero(torch.rand(len(images), generator=generator) < probability).flatten().tolist():
        for _ in range(10):
            area, shape, y, x = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
            area = (0.02 + 0.31 * area) * height * width
            ratio = 0.3 * (3.3 / 0.3) ** shape
            h, w = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if 0 < h < height and 0 < w < width:
                top, left = int(y * (height - h + 1)), int(x * (width - w + 1))
                images[index, :, top : top + h, left : left + w] = 0
                break
    return images


Operation = Callable[[Tensor, float], Tensor]


def _operations(height: int, width: int) -> list[tuple[Operation, float, float, bool]]:
    """RandAugment's operations on images of bytes: function, its argument at magnitude 0 and at 30, and whether it is signed.

    The second implementation that a test compares with is torchvision's.
    """
    from torchvision.transforms import functional as f

    def move(images: Tensor, x: float, y: float) -> Tensor:
        return f.affine(images, 0.0, [int(x), int(y)], 1.0, [0.0, 0.0])

    def shear(images: Tensor, x: float, y: float) -> Tensor:
        degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
        return f.affine(images, 0.0, [0, 0], 1.0, degrees, center=[0, 0])

    return [
        (lambda images, m: images, 0.0, 0.0, False),
        (lambda images, m: shear(images, m, 0.0), 0.0, 0.3, True),
        (lambda images, m: shear(images, 0.0, m), 0.0, 0.3, True),
        (lambda images, m: move(images, m, 0.0), 0.0, 150 / 331 * width, True),
        (lambda images, m: move(images, 0.0, m), 0.0, 150 / 331 * height, True),
        (lambda images, m: f.rotate(images, m), 0.0, 30.0, True),
        (lambda images, m: f.adjust_brightness(images, 1 + m), 0.0, 0.9, True),
        (lambda images, m: f.adjust_saturation(images, 1 + m), 0.0, 0.9, True),
        (lambda images, m: f.adjust_contrast(images, 1 + m), 0.0, 0.9, True),
        (lambda images, m: f.adjust_sharpness(images, 1 + m), 0.0, 0.9, True),
        (lambda images, m: f.posterize(images, round(m)), 8.0, 4.0, False),
        (lambda images, m: f.solarize(images, m), 255.0, 0.0, False),
        (lambda images, m: f.autocontrast(images), 0.0, 0.0, False),
        (lambda images, m: f.equalize(images), 0.0, 0.0, False),
    ]


def rand_augment(images: Tensor, operations: int, magnitude: float, generator: Generator) -> Tensor:
    """RandAugment (arXiv 1909.13719): to each image so many random operations, all at one magnitude of 0 to 30.

    The operations and their ranges are those of torchvision's `RandAugment`, whose own draws come from torch's default
    generator, so that it cannot work ahead in threads. Images that get the same operation get it together.

    Args:
        images: bytes (n, 3, height, width) on the CPU.
    """
    known = _operations(images.shape[-2], images.shape[-1])
    images = images.clone()
    for _ in range(operations):
        chosen = torch.randint(len(known), (len(images),), generator=generator)
        minus = torch.rand(len(images), generator=generator) < 0.5
        for index, (function, low, high, signed) in enumerate(known):
            value = low + (high - low) * magnitude / 30
            for negative in (False, True) if signed else (None,):
                group = chosen == index if negative is None else (chosen == index) & (minus == negative)
                if index and bool(group.any()):
                    images[group] = function(images[group], -value if negative else value)
    return images
