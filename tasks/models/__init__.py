"""Models by name, each with `activation` and `init`. Each has one activation module per place where it is called."""

from __future__ import annotations

from typing import Literal

from torch import nn

from harness.activations import replace_gates
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
    "cnn",
    "dress",
    "image_model",
    "mlp",
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

    >>> sum(p.numel() for p in image_model("resnet18", (3, 32, 32), 10, stem="small").parameters())
    11173962
    """
    if name not in library.VISION:
        _refuse(name, stem=stem != "native", dropout=dropout is not None, pretrained=pretrained)
        _refuse(name, normalisation=normalisation != "library" and name != "resnet_tiny")
    if name not in SMALL:
        _refuse(name, width=width is not None, depth=depth is not None)
        if len(shape) != 3 or shape[0] != 3:
            raise ValueError(f"model: found {name}, which takes three channels, for samples of shape {shape}")
    if name == "mlp":
        features = 1
        for size in shape:
            features *= size
        return nn.Sequential(nn.Flatten(), mlp(features, [width or 256] * (depth or 2), classes))
    if len(shape) != 3:
        raise ValueError(f"model: found {name}, which takes images, for samples of shape {shape}; allowed: mlp")
    if name == "cnn":
        _refuse(name, depth=depth is not None)
        return cnn(shape[0], shape[-1], width or 32, classes)
    if name == "vit_tiny":
        return ViTTiny(shape, classes, width or 64, depth or 4, 4, "relu")
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


def _refuse(model: str, **given: bool) -> None:
    for option, value in given.items():
        if value:
            raise ValueError(f"{option}: {model} has no such option")
