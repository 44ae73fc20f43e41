r"""How the derivatives of a field go through an elementwise activation.

With :math:`z` the input of the activation :math:`\varphi`, and :math:`z_k` its :math:`k`-th derivative along a direction,

.. math:: y_1 = \varphi' z_1, \quad y_2 = \varphi' z_2 + \varphi'' z_1^2, \quad
          y_3 = \varphi' z_3 + 3 \varphi'' z_1 z_2 + \varphi''' z_1^3, \quad
          \Delta y = \varphi' \Delta z + \varphi'' \sum_i (\partial_i z)^2

(Faà di Bruno).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp

from tasks.networks import Sine

Carried = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
"""The first, second and third derivatives, each (directions, width, points or 1), and the Laplacian (width, points or 1); None
for those that are zero or not asked for. The directions of a higher order are the first of those of the lower one."""
Orders = tuple[int, int, int, int]
"""How many directions have a first, a second and a third derivative, and how many the Laplacian sums over."""
BY_HAND = 40_000
"""Numbers in the first derivatives of a layer from which on a backward pass by hand is faster than a recorded one."""


def activation_jet(gate: nn.Module, z: Tensor, carried: Carried, orders: Orders, count: int) -> tuple[Tensor, Carried]:
    """The activation at all points and its derivatives at the first `count` of them."""
    order = 3 if orders[2] else 2 if orders[1] or orders[3] else 1
    value = gate(z.mT).mT
    inside, z = value[:, :count], z[:, :count]
    if type(gate) is nn.Tanh:
        if len(carried[0]) * inside.numel() >= BY_HAND:
            first = carried[0].expand(-1, -1, count)
            found = iter(TanhJet.apply(inside, first, *carried[1:], orders))
            one = next(found)
            return value, (one, *(next(found) if asked else None for asked in orders[1:]))
        return value, chain(_tanh_slopes(inside, order), carried, orders)
    if type(gate) is Sine:
        slope = torch.cos(z)
        return value, chain([slope, -inside, -slope][:order], carried, orders)
    # Kernels may round a slice otherwise than a whole tensor: a gate that scales its input first would differ from one at scale 1.
    return value, chain(derivatives_of(gate, z.contiguous(), order), carried, orders)


def derivatives_of(gate: nn.Module, z: Tensor, order: int) -> list[Tensor]:
    """The first derivatives of any elementwise activation, up to `order`."""
    function, slopes = gate.forward, []
    for _ in range(order):

        def derivative(z: Tensor, function: Any = function) -> Tensor:
            value, pull = vjp(function, z)[:2]
            return pull(torch.ones_like(value))[0]

        slopes.append(derivative(z))
        function = derivative
    return slopes


def chain(slopes: Sequence[Tensor], carried: Carried, orders: Orders) -> Carried:
    """The chain rule for all derivatives that are asked for."""
    first, second, third, laplacian = carried
    _, seconds, thirds, space = orders
    two = three = total = None
    if seconds:
        two = _plus(slopes[1] * _head(first, seconds).square(), slopes[0], second)
    if thirds:
        one = _head(first, thirds)
        grown = slopes[2] * one**3
        if second is not None:
            grown = grown + 3 * slopes[1] * one * _head(second, thirds)
        three = _plus(grown, slopes[0], third)
    if space:
        total = _plus(slopes[1] * _head(first, space).square().sum(dim=0), slopes[0], laplacian)
    return slopes[0] * first, two, three, total


def _plus(grown: Tensor, slope: Tensor, before: Tensor | None) -> Tensor:
    return grown if before is None else torch.addcmul(grown, slope, before)


def _head(derivatives: Tensor, count: int) -> Tensor:
    """The first directions; not a slice where that is all of them, for its backward pass writes a whole tensor."""
    return derivatives if len(derivatives) == count else derivatives[:count]


def _tanh_slopes(y: Tensor, order: int) -> list[Tensor]:
    """The derivatives of tanh are polynomials in its value y, with s = 1 - y² the first: -2 y s, and s (4 - 6 s)."""
    slope = 1 - y * y
    return [slope, -2 * y * slope, slope * (4 - 6 * slope)][:order]


class TanhJet(torch.autograd.Function):
    """`chain` for tanh, from its output y. The backward pass by hand reads what the forward pass kept once."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        y: Tensor, first: Tensor, second: Any, third: Any, laplacian: Any, orders: Orders
    ) -> tuple[Tensor, ...]:
        found = chain(_tanh_slopes(y, 3 if orders[2] else 2), (first, second, third, laplacian), orders)
        return tuple(each for each in found if each is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.orders = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        y, first, second, third, laplacian = ctx.saved_tensors
        _, seconds, thirds, space = ctx.orders
        given = iter(gradients)
        by: list[Any] = [next(given) if asked else None for asked in (1, *ctx.orders[1:])]
        by_one, by_two, by_three, by_total = by
        slope = torch.rsub(y * y, 1)
        curvature = -2 * y * slope  # its derivative by y is -2 + 6 y² = 4 - 6 s
        # In place only what vmap can batch: add_, not addcmul_.
        by_first = slope * by_one
        by_second: Any = None if second is None else slope * by_two
        by_slope, bent = (first * by_one).sum(dim=0), None
        for before, upstream in ((second, by_two), (third, by_three)):
            if before is not None:
                by_slope = by_slope + _total(before * upstream)
        if laplacian is not None:
            by_slope = by_slope + laplacian * by_total
        for count, upstream in ((seconds, by_two), (space, by_total)):
            if count:
                product = first[:count] * upstream
                by_first[:count].add_(curvature * product, alpha=2)
                bent = _add(bent, _total(first[:count] * product))
        by_y = by_slope * y * -2
        if thirds:
            one, product = first[:thirds], first[:thirds] * by_three
            by_first[:thirds].add_(slope * (4 - 6 * slope) * one * product, alpha=3)
            if second is not None:
                by_first[:thirds].add_(curvature * second[:thirds] * by_three, alpha=3)
                by_second[:thirds].add_(curvature * product, alpha=3)
                bent = _add(bent, _total(3 * second[:thirds] * product))
            by_y = by_y + y * (24 * slope - 8) * _total(one * one * product)
        if bent is not None:
            by_y = by_y + bent * (4 - 6 * slope)
        by_third = None if third is None else slope * by_three
        return by_y, by_first, by_second, by_third, None if laplacian is None else slope * by_total, None


def _total(directions: Tensor) -> Tensor:
    return directions[0] if len(directions) == 1 else directions.sum(dim=0)


def _add(one: Tensor | None, other: Tensor) -> Tensor:
    return other if one is None else one + other
