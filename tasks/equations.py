"""Partial differential equations: residual, domain, conditions and reference. A new one is a class of some 25 lines."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from tasks.derivatives import Jet


class Equation(ABC):
    """A boundary or initial value problem on a box.

    Points are (points, coordinates), the spatial coordinates first and time last; fields are (points, outputs).
    """

    domain: ClassVar[tuple[tuple[float, float], ...]]
    """Lower and upper end of each coordinate."""
    space: ClassVar[int]
    """How many of the coordinates are spatial."""
    faces: ClassVar[tuple[tuple[int, float], ...]]
    """Where conditions hold: (coordinate, its value) of each face of the box."""
    outputs: ClassVar[int] = 1

    @abstractmethod
    def residual(self, points: Tensor, u: Jet) -> Tensor:
        """What the equation leaves at interior points: zero for a solution. (points, equations)"""

    @abstractmethod
    def misfit(self, points: Tensor, u: Tensor) -> Tensor:
        """What the conditions leave at points on the faces: zero for a solution. (points, conditions)"""

    @abstractmethod
    def reference(self, points: Tensor) -> Tensor:
        """The solution. (points, outputs)"""


class Poisson(Equation):
    r""":math:`-\Delta u = f` on :math:`[-1, 1]^2`, zero on the boundary, with the solution :math:`u = \sin \pi x \sin \pi y`.

    The source is therefore :math:`f = 2 \pi^2 \sin \pi x \sin \pi y`.
    """

    domain = ((-1.0, 1.0), (-1.0, 1.0))
    space = 2
    faces = ((0, -1.0), (0, 1.0), (1, -1.0), (1, 1.0))

    def residual(self, points: Tensor, u: Jet) -> Tensor:
        return -u.laplacian - 2 * math.pi**2 * self.reference(points)

    def misfit(self, points: Tensor, u: Tensor) -> Tensor:
        return u

    def reference(self, points: Tensor) -> Tensor:
        return torch.sin(math.pi * points).prod(dim=1, keepdim=True)
