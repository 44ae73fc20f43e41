"""Exact derivatives of a network by its inputs, without a backward pass per derivative.

A plain stack of linear layers and activations carries its derivatives forward beside its values (Taylor mode): one pass
gives all of them, at about the cost of as many forward passes as there are derivatives. Any other model is differentiated
by nested forward mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp
from torch.nn import functional

from harness.activations import is_gate


@dataclass(frozen=True)
class Jet:
    """A function at some points, with the derivatives that second-order equations are written in."""

    value: Tensor
    """(points, outputs)"""
    gradient: Tensor
    """(coordinates, points, outputs): the first derivative by each coordinate."""
    laplacian: Tensor
    """(points, outputs): the sum of the second derivatives by the spatial coordinates."""


def jet(model: nn.Module, points: Tensor, space: int) -> Jet:
    """The values and derivatives of `model`, which maps each row of `points` by itself, by the fastest exact route.

    Args:
        model: (points, coordinates) to (points, outputs).
        points: (points, coordinates).
        space: how many of the coordinates, the first ones, are spatial; those after them are time.

    >>> squares = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.ones_(squares.weight)
    >>> u = jet(squares, torch.tensor([[1.0, 2.0]]), space=2)
    >>> u.value.item(), u.gradient.flatten().tolist(), u.laplacian.item()
    (3.0, [1.0, 1.0], 0.0)
    """
    layers = list(_layers(model))
    if all(isinstance(layer, nn.Linear) or is_gate(layer) for layer in layers):
        return taylor_mode(layers, points, space)
    return forward_mode(model, points, space)


def _layers(model: nn.Module) -> Iterable[nn.Module]:
    if type(model) is nn.Sequential:
        for child in model:
            yield from _layers(child)
    else:
        yield model


def taylor_mode(layers: Iterable[nn.Module], points: Tensor, space: int) -> Jet:
    r"""The jet of a composition of linear layers and elementwise activations.

    With :math:`z` the input of an activation :math:`\varphi` and :math:`\partial_i` the derivative by coordinate :math:`i`,

    .. math:: \partial_i \varphi(z) = \varphi'(z)\,\partial_i z, \qquad
              \Delta \varphi(z) = \varphi'(z)\,\Delta z + \varphi''(z) \sum_{i \le \mathrm{space}} (\partial_i z)^2

    Every layer is called once on the values, as in a plain forward pass, so that hooks of methods see what they know.
    """
    value, coordinates = points, points.shape[1]
    # One row stands for all points until the first activation: up to there the derivatives are the same everywhere.
    gradient = torch.eye(coordinates, dtype=points.dtype, device=points.device).unsqueeze(1)
    laplacian: Tensor | None = None
    for layer in layers:
        if isinstance(layer, nn.Linear):
            value, gradient = layer(value), functional.linear(gradient, layer.weight)
            laplacian = None if laplacian is None else functional.linear(laplacian, layer.weight)
        else:
            value, slope, curvature = _activation(layer, value)
            bend = curvature * gradient[:space].square().sum(dim=0)
            laplacian = bend if laplacian is None else torch.addcmul(bend, slope, laplacian)
            gradient = slope * gradient
    return Jet(value, gradient.expand(-1, *value.shape), torch.zeros_like(value) if laplacian is None else laplacian)


def _activation(gate: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An elementwise activation and its first and second derivative at `z`."""
    if type(gate) is nn.Tanh:
        value = gate(z)
        slope = 1 - value * value
        return value, slope, -2 * value * slope

    def derivative(z: Tensor) -> Tensor:
        value, pull = vjp(gate.forward, z)[:2]
        return pull(torch.ones_like(value))[0]

    slope, pull = vjp(derivative, z)[:2]
    return gate(z), slope, pull(torch.ones_like(slope))[0]


def forward_mode(model: nn.Module, points: Tensor, space: int) -> Jet:
    """The jet of any model that maps each point by itself, one coordinate after the other."""
    gradient, laplacian = [], torch.zeros((), dtype=points.dtype, device=points.device)
    for coordinate in range(points.shape[1]):
        direction = torch.zeros_like(points)
        direction[:, coordinate] = 1

        def along(x: Tensor, direction: Tensor = direction) -> tuple[Tensor, Tensor]:
            return _push(model, x, direction)

        (value, first), (_, second) = _push(along, points, direction)
        gradient.append(first)
        if coordinate < space:
            laplacian = laplacian + second
    return Jet(value, torch.stack(gradient), laplacian.expand_as(value))


def _push(function: Callable[[Tensor], Any], points: Tensor, direction: Tensor) -> tuple[Any, Any]:
    """A function and its derivative along `direction`."""
    pushed = jvp(function, (points,), (direction,))
    return pushed[0], pushed[1]
