"""Models by name, each with `activation` and `init`. Each has one activation module per place where it is called."""

from __future__ import annotations

from typing import Literal

from torch import nn

from harness.activations import replace_gates
from tasks.data import place
from tasks.models import library
from tasks.models.initial import Init, initialise
from tasks.models.small import ACTIVATIONS, Activation, cnn, mlp
from tasks.models.transformers_small import GPTTiny, SentenceTiny, ViTTiny
from tasks.unnormalised import Normalisation

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "AnyActivation",
    "GPTTiny",
    "ImageModel",
    "Init",
    "Normalisation",
    "SentenceTiny",
    "ViTTiny",
    "check_image_model",
    "cnn",
    "dress",
    "image_model",
    "mlp",
    "weights_digest",
]

AnyActivation = Literal["native", "relu", "gelu", "silu", "tanh", "elu", "leaky_relu", "sigmoid"]
"""`native` is what the library gives: ReLU for the small models."""

ImageModel = Literal[
    "mlp",
    "cnn",
    "vit_tiny",
    "resnet_tiny",
    "alexnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "densenet121",
    "densenet_bc_100",
    "mobilenet_v2",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "vit_b_16",
    "swin_t",
    "deit_tiny",
]
"""Models that take images."""

SMALL = ("mlp", "cnn", "vit_tiny", "resnet_tiny")
"""Models of any number of channels, with `width` and `depth`."""
VIT_HEADS = 4


def dress(model: nn.Module, activation: str, init: str) -> nn.Module:
    """A model with another activation at every gate and other initial weights; `native` leaves them as they are."""
    if activation != "native":
        model = replace_gates(model, lambda name, gate: ACTIVATIONS[activation]())
    return initialise(model, init)


def image_model(
    name: str,
    shape: tuple[int, ...],
    classes: int,
    *,
    width: int | None = None,
    depth: int | None = None,
    stem: Literal["native", "small"] = "native",
    dropout: float | None = None,
    pretrained: bool = False,
    normalisation: Normalisation = "library",
) -> nn.Module:
    """A model for images of a shape (channels, height, width), or for tables (features,), as its library gives it.

    Args:
        width: units per layer of `mlp` (256), channels of `cnn` (32) and `resnet_tiny` (16), features of `vit_tiny` (64).
        depth: hidden layers of `mlp` (2), blocks of `vit_tiny` (4) or of each stage of `resnet_tiny` (1).
        stem: `small` keeps the resolution of small images in the first layers of convolutional networks.
        dropout, pretrained: of torchvision's models.
        normalisation: of residual and mobile networks: without it, as `tasks.unnormalised` says.

    Raises:
        ValueError: if the model does not take what is asked.
        MissingData: if its weights are not in the data folder.

    >>> sum(p.numel() for p in image_model("resnet18", (3, 32, 32), 10, stem="small").parameters())
    11173962
    """
    check_image_model(
        name,
        shape,
        width=width,
        depth=depth,
        stem=stem,
        dropout=dropout,
        pretrained=pretrained,
        normalisation=normalisation,
    )
    if name == "mlp":
        features = 1
        for size in shape:
            features *= size
        return nn.Sequential(nn.Flatten(), mlp(features, [width or 256] * (depth or 2), classes))
    if name == "cnn":
        return cnn(shape[0], shape[-1], width or 32, classes)
    if name == "vit_tiny":
        return ViTTiny(shape, classes, width or 64, depth or 4, VIT_HEADS, "relu")
    if name == "resnet_tiny":
        return library.resnet_tiny(shape[0], classes, width or 16, depth or 1, normalisation)
    if name == "densenet_bc_100":
        return library.densenet_bc_100(shape[-1], classes)
    if name == "deit_tiny":
        return library.deit(shape[-1], classes, patch=16 if shape[-1] > 64 else 4)
    return library.vision(
        name,
        shape[-1],
        classes,
        small_stem=stem == "small",
        dropout=dropout,
        pretrained=pretrained,
        normalisation=normalisation,
    )


def check_image_model(
    name: str,
    shape: tuple[int, ...],
    *,
    width: int | None = None,
    depth: int | None = None,
    stem: Literal["native", "small"] = "native",
    dropout: float | None = None,
    pretrained: bool = False,
    normalisation: Normalisation = "library",
) -> None:
    """Whether `image_model` takes this, without importing the libraries that build it.

    Raises:
        ValueError: if it does not.
    """
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"dropout: found {dropout}, must lie in [0, 1)")
    if name not in library.VISION:
        _refuse(name, dropout=dropout is not None, pretrained=pretrained)
        _refuse(name, normalisation=normalisation != "library" and name != "resnet_tiny")
    if name not in SMALL:
        _refuse(name, width=width is not None, depth=depth is not None)
        if len(shape) != 3 or shape[0] != 3:
            raise ValueError(f"model: found {name}, which takes three channels, for samples of shape {shape}")
    if len(shape) != 3 and name != "mlp":
        raise ValueError(f"model: found {name}, which takes images, for samples of shape {shape}; allowed: mlp")
    if stem == "small" and name not in library.SMALL_STEMS:
        raise ValueError(f"stem: found 'small' for {name}, allowed: native")
    _refuse(name, depth=name == "cnn" and depth is not None)
    _refuse(name, dropout=name.startswith("resnet") and dropout is not None)
    if name == "vit_tiny" and (width or VIT_HEADS) % VIT_HEADS:
        raise ValueError(f"width: found {width}, allowed for vit_tiny: multiples of {VIT_HEADS}, its heads")
    if len(shape) == 3:
        check_image_size(name, shape[-1], stem)


def weights_digest(name: str) -> str:
    """A digest of a model's pretrained weights.

    Raises:
        MissingData: if they are not in the data folder.
    """
    return place.digest([library.weights_file(name)])


def check_image_size(name: str, size: int, stem: Literal["native", "small"] = "native") -> None:
    """Whether `image_model` takes square images of so many pixels a side.

    Raises:
        ValueError: if it does not.
    """
    smallest = 8 if (name, stem) == ("densenet121", "small") else library.SMALLEST.get(name, 1)
    if size < smallest:
        raise ValueError(f"resize: found images of {size} pixels, allowed for {name}: {smallest} or more")
    if name == "vit_b_16" and size % 16:
        raise ValueError(f"resize: found images of {size} pixels, allowed for {name}: multiples of 16")


def _refuse(model: str, **given: bool) -> None:
    for option, value in given.items():
        if value:
            raise ValueError(f"{option}: {model} has no such option")
