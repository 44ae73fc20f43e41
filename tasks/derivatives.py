"""Exact derivatives of a network by its inputs, by the fastest route that fits it.

A stack of linear layers and activations carries its derivatives forward beside its values (Taylor mode): one pass gives all
of them, at about the cost of as many forward passes as there are derivatives, whatever their order. What is neither
linear nor elementwise goes through nested forward mode, layer by layer. Reverse mode, one backward pass per derivative, is
what PINN codes usually do; it is here to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp

from harness.activations import is_gate
from tasks.jet_activations import Carried, Orders, activation_jet
from tasks.networks import Residual

ORDERS = 3
"""Derivatives are pure (`xxx`, never `xy`) and of this order at most."""


@dataclass(frozen=True)
class Jet:
    """A function at some points with its derivatives there."""

    value: Tensor
    """(points, outputs)"""
    derivatives: dict[str, Tensor]
    """By name, each of the shape (first `count` points, outputs)."""

    def __getitem__(self, name: str) -> Tensor:
        return self.derivatives[name]

    def rows(self, start: int, end: int) -> Jet:
        """The same function at some of its points."""
        return Jet(self.value[start:end], {name: each[start:end] for name, each in self.derivatives.items()})


@dataclass(frozen=True)
class Channels:
    """Which derivatives are carried."""

    coordinates: str
    directions: tuple[int, ...]
    """Coordinates that are differentiated by, those of the highest order first."""
    orders: tuple[int, ...]
    """The highest order of each direction."""
    space: int = 0
    """How many of the first directions the Laplacian sums over; 0 if it is not carried."""

    @property
    def names(self) -> list[str]:
        """All derivatives that are carried."""
        pure = [
            self.coordinates[direction] * k
            for direction, order in zip(self.directions, self.orders, strict=True)
            for k in range(1, order + 1)
        ]
        return pure + ["laplacian"] * bool(self.space)

    @property
    def counts(self) -> Orders:
        """How many directions have a first, a second and a third derivative, and how many the Laplacian sums over."""
        first, second, third = (sum(order >= k for order in self.orders) for k in (1, 2, 3))
        return first, second, third, self.space

    def named(self, carried: Carried) -> dict[str, Tensor]:
        """Each derivative that is not None by its name."""
        *orders, laplacian = carried
        found = {
            self.coordinates[direction] * k: derivative
            for k, derivatives in enumerate(orders, start=1)
            if derivatives is not None
            for direction, derivative in zip(self.directions, derivatives.unbind(), strict=False)
        }
        return found if laplacian is None else found | {"laplacian": laplacian}


def channels(names: tuple[str, ...], coordinates: str) -> Channels:
    """The channels that carry the derivatives called `names`.

    >>> channels(("t", "x", "xx"), "xt")
    Channels(coordinates='xt', directions=(0, 1), orders=(2, 1), space=0)

    Raises:
        ValueError: for a name that is neither `laplacian` nor one coordinate up to three times.
    """
    highest: dict[int, int] = {}
    spatial = [index for index, letter in enumerate(coordinates) if letter != "t"]
    laplacian = "laplacian" in names
    for name in names:
        if name == "laplacian":
            for index in spatial:
                highest.setdefault(index, 1)
        elif len(set(name)) == 1 and name[0] in coordinates and len(name) <= ORDERS:
            index = coordinates.index(name[0])
            highest[index] = max(highest.get(index, 1), len(name))
        else:
            allowed = ", ".join([letter * k for letter in coordinates for k in range(1, ORDERS + 1)])
            raise ValueError(f"derivative: found {name!r}, allowed: {allowed}, laplacian")
    if laplacian and max(highest.values()) > 1:
        raise ValueError("derivative: found laplacian beside a second derivative, allowed: one of the two")
    directions = sorted(highest, key=lambda index: (-highest[index], index))
    orders = tuple(highest[index] for index in directions)
    return Channels(coordinates, tuple(directions), orders, len(spatial) if laplacian else 0)


def jet(
    model: nn.Module,
    points: Tensor,
    names: Sequence[str],
    coordinates: str,
    count: int | None = None,
    route: str = "auto",
) -> Jet:
    """The values of `model` at all points and its derivatives at the first `count` of them (all, unless given).

    Args:
        model: (points, coordinates) to (points, outputs), each row by itself. BatchNorm is the exception: its statistics
            are those of all points, and count as constants when the field is differentiated by a coordinate.
        points: (points, coordinates).
        names: `x`, `xx`, `xxx`, `t`, …, or `laplacian`: the sum of the second derivatives by all coordinates but `t`.
        coordinates: a letter for each coordinate.
        route: `taylor`, `forward` or `reverse`; `auto` takes `taylor` where the model is a stack of layers.

    >>> squares = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.ones_(squares[0].weight)
    >>> u = jet(squares, torch.tensor([[1.0, 2.0]]), ["x", "t", "xx"], "xt")
    >>> u.value.item(), u["x"].item(), u["xx"].item()
    (3.0, 1.0, 0.0)
    """
    count = len(points) if count is None else count
    layers = layers_of(model)
    plain = all(isinstance(layer, nn.Linear | nn.BatchNorm1d) or is_gate(layer) for layer in layers)
    if route == "taylor" or (route == "auto" and isinstance(model, nn.Sequential)):
        separate = names if plain else _without_laplacian(names, coordinates)
        return _only(names, coordinates, _taylor_mode(layers, points, channels(tuple(separate), coordinates), count))
    wanted = channels(tuple(_without_laplacian(names, coordinates)), coordinates)
    mode = _reverse_mode if route == "reverse" else _forward_mode
    return _only(names, coordinates, mode(model, points, wanted, count))


def _without_laplacian(names: Sequence[str], coordinates: str) -> list[str]:
    second = [letter * 2 for letter in coordinates if letter != "t"]
    return [name for name in names if name != "laplacian"] + (second if "laplacian" in names else [])


def _only(names: Sequence[str], coordinates: str, found: Jet) -> Jet:
    derivatives = dict(found.derivatives)
    if "laplacian" in names and "laplacian" not in derivatives:
        second = [derivatives[letter * 2] for letter in coordinates if letter != "t"]
        derivatives["laplacian"] = torch.stack(second).sum(dim=0)
    return Jet(found.value, {name: derivatives[name] for name in names})


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of nested stacks in order; whatever is no stack is one layer."""
    if type(model) is nn.Sequential:
        return [layer for child in model for layer in layers_of(child)]
    return [model]


def _taylor_mode(layers: Sequence[nn.Module], points: Tensor, carried: Channels, count: int) -> Jet:
    """Every layer is called once on the values, as in a plain forward pass, so that hooks of methods see what they know."""
    # One column stands for all points until the first activation: up to there the derivatives are the same everywhere.
    start = torch.eye(points.shape[1], dtype=points.dtype, device=points.device)[list(carried.directions)]
    value, found = _through(layers, points.mT, (start.unsqueeze(2), None, None, None), carried, count)
    derivatives = {name: each.expand(-1, count).mT for name, each in carried.named(found).items()}
    return Jet(value.mT, dict.fromkeys(carried.names, torch.zeros_like(value[:, :count]).mT) | derivatives)


def _through(
    layers: Iterable[nn.Module], value: Tensor, carried: Carried, asked: Channels, count: int
) -> tuple[Tensor, Carried]:
    """Takes values (width, points) and derivatives, at `count` points or 1, through layers, which see (points, width)."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            value, carried = layer(value.mT).mT, _each(carried, partial(_times, layer.weight))
        elif isinstance(layer, nn.BatchNorm1d):
            slope = _batch_norm_slope(layer, value.mT).unsqueeze(1)
            value, carried = layer(value.mT).mT, _each(carried, slope.mul)
        elif isinstance(layer, Residual):
            inner, change = _through(layers_of(layer.inner), value, carried, asked, count)
            value, carried = value + inner, _sum(carried, change)
        elif is_gate(layer):
            value, carried = activation_jet(layer, value, carried, asked.counts, count)
        else:
            carried = _locally(layer, value[:, :count].mT, carried, asked)
            value = layer(value.mT).mT
    return value, carried


def _times(weight: Tensor, derivatives: Tensor) -> Tensor:
    """W D for the derivatives of each direction; not `matmul`, which would copy them to rows for it."""
    if derivatives.dim() == 2:
        return weight @ derivatives
    return torch.bmm(weight.expand(len(derivatives), -1, -1), derivatives)


def _each(carried: Carried, function: Callable[[Tensor], Tensor]) -> Carried:
    one, two, three, total = (None if each is None else function(each) for each in carried)
    assert one is not None
    return one, two, three, total


def _sum(carried: Carried, change: Carried) -> Carried:
    pairs = zip(carried, change, strict=True)
    one, two, three, total = (b if a is None else a if b is None else a + b for a, b in pairs)
    assert one is not None
    return one, two, three, total


def _batch_norm_slope(layer: nn.BatchNorm1d, value: Tensor) -> Tensor:
    running = layer.running_var if not layer.training else None
    variance = value.var(dim=0, correction=0) if running is None else running
    slope = torch.rsqrt(variance + layer.eps)
    return slope if layer.weight is None else slope * layer.weight


def _locally(layer: nn.Module, value: Tensor, carried: Carried, asked: Channels) -> Carried:
    """The derivatives after a layer that maps each point by itself, by forward mode along each direction's path."""
    _refuse_wrong_kernels(layer)
    by_order: list[list[Tensor]] = [[] for _ in range(ORDERS)]
    named, zeros = asked.named(carried), torch.zeros_like(value)
    for direction, order in zip(asked.directions, asked.orders, strict=True):
        letter = asked.coordinates[direction]
        derivatives = [named[letter * k].mT + zeros if letter * k in named else zeros for k in range(1, order + 1)]
        for found, target in zip(along(layer, value, derivatives), by_order, strict=False):
            target.append(found.mT)
    one, two, three = (torch.stack(found) if found else None for found in by_order)
    assert one is not None
    return one, two, three, None


def _refuse_wrong_kernels(model: nn.Module) -> None:
    for layer in model.modules():
        if type(layer) in (nn.LayerNorm, nn.GroupNorm):
            name = type(layer).__name__
            raise ValueError(f"derivatives: found {name}, whose second derivatives torch gets wrong in forward mode")


def along(function: Callable[[Tensor], Tensor], value: Tensor, derivatives: Sequence[Tensor]) -> list[Tensor]:
    r"""The derivatives of :math:`f(z(\epsilon))` at 0, where :math:`z` has the given value and derivatives there.

    >>> [float(d) for d in along(torch.exp, torch.tensor(0.0), [torch.tensor(1.0), torch.tensor(0.0)])]
    [1.0, 1.0]
    """

    def path(epsilon: Tensor) -> tuple[Tensor, ...]:
        z = value
        for k, derivative in enumerate(derivatives, start=1):
            z = z + derivative * epsilon**k / math.factorial(k)
        return (function(z),)

    def differentiated(inner: Callable[[Tensor], tuple[Tensor, ...]]) -> Callable[[Tensor], tuple[Tensor, ...]]:
        def outer(epsilon: Tensor) -> tuple[Tensor, ...]:
            pushed: Any = jvp(inner, (epsilon,), (torch.ones_like(epsilon),))
            return (*pushed[0], pushed[1][-1])

        return outer

    tower: Callable[[Tensor], tuple[Tensor, ...]] = path
    for _ in derivatives:
        tower = differentiated(tower)
    return list(tower(value.new_zeros(())))[1:]


def _forward_mode(model: nn.Module, points: Tensor, carried: Channels, count: int) -> Jet:
    _refuse_wrong_kernels(model)
    derivatives = {}
    for direction, order in zip(carried.directions, carried.orders, strict=True):
        unit = torch.zeros_like(points[:count])
        unit[:, direction] = 1
        zeros = [torch.zeros_like(unit)] * (order - 1)
        for k, found in enumerate(along(model, points[:count], [unit, *zeros]), start=1):
            derivatives[carried.coordinates[direction] * k] = found
    return Jet(model(points), derivatives)


def _reverse_mode(model: nn.Module, points: Tensor, carried: Channels, count: int) -> Jet:
    recording = torch.is_grad_enabled()
    with torch.enable_grad():
        inside = points[:count].detach().requires_grad_(True)
        value = model(torch.cat([inside, points[count:]]))
        columns: dict[str, list[Tensor]] = {}
        for output in value.unbind(dim=1):
            for direction, order in zip(carried.directions, carried.orders, strict=True):
                letter, each = carried.coordinates[direction], output
                for k in range(1, order + 1):
                    gradient = torch.autograd.grad(each.sum(), inside, create_graph=True, materialize_grads=True)
                    each = gradient[0][:, direction]
                    columns.setdefault(letter * k, []).append(each)
        derivatives = {name: torch.stack(each, dim=1) for name, each in columns.items()}
    if recording:
        return Jet(value, derivatives)
    return Jet(value.detach(), {name: each.detach() for name, each in derivatives.items()})
