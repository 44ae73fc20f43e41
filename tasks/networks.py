"""Networks for fields: multi-layer perceptrons of points, with the controls that a comparison of depths asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tasks.models import ACTIVATIONS

FieldActivation = Literal["tanh", "sin", "silu", "gelu", "relu", "elu", "leaky_relu", "sigmoid"]
Initialisation = Literal["torch", "glorot", "gain"]
Normalisation = Literal["none", "batch", "layer", "weight"]


class Sine(nn.Module):
    """sin(z), elementwise."""

    is_gate = True

    def forward(self, z: Tensor) -> Tensor:
        return torch.sin(z)


class PointLinear(nn.Linear):
    """A linear layer that computes by columns: of a narrow layer the many points, not its few units, fill a vector."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x.mT + self.bias.unsqueeze(1)).mT


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Sequential) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class PointNorm(nn.LayerNorm):
    """Layer normalisation in elementary operations: torch's kernel gives wrong second derivatives in nested forward mode."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        normal = centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + self.eps)
        return normal * self.weight + self.bias


@dataclass(frozen=True)
class Architecture:
    """What a field network is built like; `depth` counts hidden layers."""

    depth: int = 3
    width: int = 32
    activation: FieldActivation = "tanh"
    init: Initialisation = "torch"
    normalisation: Normalisation = "none"
    residual: bool = False


def field_network(inputs: int, outputs: int, architecture: Architecture) -> nn.Sequential:
    """A multi-layer perceptron: (points, coordinates) to (points, outputs).

    Every hidden layer is linear, normalised (if asked), then its activation; with `residual` all hidden layers but the
    first, which changes the width, are added to their input.

    >>> [name for name, _ in field_network(2, 1, Architecture(depth=2)).named_children()]
    ['linear1', 'act1', 'linear2', 'act2', 'linear3']
    """
    act = Sine if architecture.activation == "sin" else ACTIVATIONS[architecture.activation]
    width = architecture.width
    model = nn.Sequential()
    for index in range(1, architecture.depth + 1):
        layers: dict[str, nn.Module] = {f"linear{index}": PointLinear(inputs if index == 1 else width, width)}
        if architecture.normalisation == "batch":
            layers[f"norm{index}"] = nn.BatchNorm1d(width)
        elif architecture.normalisation == "layer":
            layers[f"norm{index}"] = PointNorm(width)
        layers[f"act{index}"] = act()
        target = model
        if architecture.residual and index > 1:
            target = nn.Sequential()
            model.add_module(f"block{index}", Residual(target))
        for name, layer in layers.items():
            target.add_module(name, layer)
    model.add_module(f"linear{architecture.depth + 1}", PointLinear(width, outputs))
    initialise(model, architecture.init, architecture.activation)
    if architecture.normalisation == "weight":
        for layer in _linears(model)[:-1]:
            weight_norm(layer)
    return model


def _linears(model: nn.Module) -> list[nn.Linear]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


def initialise(model: nn.Module, init: Initialisation, activation: str) -> None:
    r"""Draws the weights anew from torch's default generator.

    `torch` leaves :class:`torch.nn.Linear`'s own, :math:`U(\pm 1/\sqrt{\text{fan-in}})`; `glorot` is the normal one of
    Glorot & Bengio 2010 with zero biases, DeepXDE's usual choice; `gain` keeps the scale of the signal:
    :math:`\mathrm{Var}(W) = g^2 / \text{fan-in}` with `gain(activation)` behind an activation, and 1 in the first layer.
    """
    for index, layer in enumerate(_linears(model)):
        if init == "torch":
            continue
        nn.init.zeros_(layer.bias)
        if init == "glorot":
            nn.init.xavier_normal_(layer.weight)
        else:
            scale = gain(activation) if index else 1.0
            nn.init.normal_(layer.weight, std=scale / math.sqrt(layer.in_features))


def gain(activation: str) -> float:
    r"""The factor that keeps the second moment of a signal through an activation, :math:`g^2 = 1 / E[\varphi(z)^2]`,
    :math:`z \sim N(0, 1)`.

    >>> round(gain("tanh"), 6), round(gain("relu"), 6)
    (1.592537, 1.414214)
    """
    act = Sine() if activation == "sin" else ACTIVATIONS[activation]()
    z = torch.linspace(-12, 12, 240001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    with torch.no_grad():
        moment = torch.trapezoid(act(z).square() * density, z)
    return float(moment.rsqrt())
