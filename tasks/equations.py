"""Partial differential equations: residual, domain, conditions and reference. A new one is a class of some 25 lines::

class Heat(Equation):
    coordinates, domain = "xt", ((0.0, 1.0), (0.0, 0.2))
    derivatives = ("xx", "t")

    def residual(self, points, u):
        return u["t"] - u["xx"]

    def reference(self, points):
        x, t = points.split(1, dim=1)
        return torch.sin(math.pi * x) * torch.exp(-(math.pi**2) * t)

Conditions are on the field itself: its value on the spatial faces and at the first moment, by default that of the reference.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from tasks.derivatives import Jet
from tasks.references import Evolution, cole_hopf, solve


class Equation(ABC):
    """A boundary or initial value problem on a box.

    Points are (points, coordinates), the spatial coordinates first and time last; fields are (points, outputs).
    """

    coordinates: ClassVar[str]
    """A letter for each coordinate; `t` is time, with an initial condition at its lower end."""
    domain: tuple[tuple[float, float], ...]
    """Lower and upper end of each coordinate."""
    derivatives: tuple[str, ...]
    """What the residual reads: `x`, `xx`, `xxx`, `t`, …, or `laplacian`."""
    outputs: int = 1
    periodic: ClassVar[tuple[str, ...] | None] = None
    """For a field that is periodic in x: which of `derivatives` must match at both ends, beside the value."""

    @property
    def faces(self) -> tuple[tuple[int, float], ...]:
        """Where boundary conditions hold: (coordinate, its value) of each spatial face of the box."""
        if self.periodic is not None:
            return ()
        space = [index for index, letter in enumerate(self.coordinates) if letter != "t"]
        return tuple((index, end) for index in space for end in self.domain[index])

    @abstractmethod
    def residual(self, points: Tensor, u: Jet) -> Tensor:
        """What the equation leaves at interior points: zero for a solution. (points, equations)"""

    @abstractmethod
    def reference(self, points: Tensor) -> Tensor:
        """The solution. (points, outputs)"""

    def boundary(self, points: Tensor, u: Tensor) -> Tensor:
        """What the field leaves at points on the spatial faces: zero for a solution. (points, conditions)"""
        return u - self.reference(points)

    def initial(self, points: Tensor, u: Tensor) -> Tensor:
        """What the field leaves at points of the first moment: zero for a solution. (points, conditions)"""
        return u - self.reference(points)


class Poisson(Equation):
    r""":math:`-\Delta u = f` on :math:`[-1, 1]^2`, zero on the boundary, with the solution :math:`u = \sin \pi x \sin \pi y`.

    The source is therefore :math:`f = 2 \pi^2 \sin \pi x \sin \pi y`.
    """

    coordinates, domain = "xy", ((-1.0, 1.0), (-1.0, 1.0))
    derivatives = ("laplacian",)

    def residual(self, points: Tensor, u: Jet) -> Tensor:
        return -u["laplacian"] - 2 * math.pi**2 * self.reference(points)

    def boundary(self, points: Tensor, u: Tensor) -> Tensor:
        return u

    def reference(self, points: Tensor) -> Tensor:
        return torch.sin(math.pi * points).prod(dim=1, keepdim=True)


class Helmholtz(Equation):
    r""":math:`\Delta u + u = q` on :math:`[-1, 1]^2`, zero on the boundary, with :math:`u = \sin \pi x \sin 4 \pi y`.

    The source is therefore :math:`q = (1 - 17 \pi^2) u`. Source: Wang, Teng & Perdikaris 2021, arXiv 2001.04536.
    """

    coordinates, domain = "xy", ((-1.0, 1.0), (-1.0, 1.0))
    derivatives = ("laplacian",)

    def residual(self, points: Tensor, u: Jet) -> Tensor:
        return u["laplacian"] + u.value - (1 - 17 * math.pi**2) * self.reference(points)

    def boundary(self, points: Tensor, u: Tensor) -> Tensor:
        return u

    def reference(self, points: Tensor) -> Tensor:
        x, y = points.split(1, dim=1)
        return torch.sin(math.pi * x) * torch.sin(4 * math.pi * y)


class Burgers(Equation):
    r""":math:`u_t + u u_x = \nu u_{xx}` on :math:`[-1, 1] \times [0, 1]`, :math:`u(x, 0) = -\sin \pi x`, zero at both ends."""

    coordinates, domain = "xt", ((-1.0, 1.0), (0.0, 1.0))
    derivatives = ("x", "t", "xx")

    def __init__(self, viscosity: float = 0.01 / math.pi) -> None:
        self.viscosity = viscosity

    def residual(self, points: Tensor, u: Jet) -> Tensor:
        return u["t"] + u.value * u["x"] - self.viscosity * u["xx"]

    def boundary(self, points: Tensor, u: Tensor) -> Tensor:
        return u

    def initial(self, points: Tensor, u: Tensor) -> Tensor:
        return u + torch.sin(math.pi * points[:, :1])

    def reference(self, points: Tensor) -> Tensor:
        x, t = points.double().cpu().numpy().T
        return torch.from_numpy(cole_hopf(x, t, self.viscosity)).unsqueeze(1).to(points)


class Periodic(Equation):
    """An equation that is periodic in x; its reference is the spectral solution."""

    coordinates = "xt"
    periodic: ClassVar[tuple[str, ...] | None] = ("x",)
    evolution: ClassVar[Evolution]
    solver: ClassVar[dict[str, int]] = {}

    def reference(self, points: Tensor) -> Tensor:
        x, t = points.double().cpu().numpy().T
        field = torch.from_numpy(solve(self.evolution, **self.solver)(x, t))
        return torch.view_as_real(field)[:, : self.outputs].to(points)

    def initial(self, points: Tensor, u: Tensor) -> Tensor:
        field = np.asarray(self.evolution.initial(points[:, 0].double().cpu().numpy()))
        return u - torch.view_as_real(torch.from_numpy(field.astype(complex)))[:, : self.outputs].to(points)


class AllenCahn(Periodic):
    r""":math:`u_t = 10^{-4} u_{xx} + 5 u - 5 u^3`, periodic on :math:`[-1, 1]`, :math:`u(x, 0) = x^2 \cos \pi x`.

    Source: Raissi, Perdikaris & Karniadakis 2019, doi 10.1016/j.jcp.2018.10.045.
    """

    domain = ((-1.0, 1.0), (0.0, 1.0))
    derivatives = ("x", "t", "xx")
    evolution = Evolution(
        *(-1, 1, 1.0),
        linear=lambda k: 5 - 1e-4 * k**2 + 0j,
        nonlinear=lambda u, k: np.fft.fft(-5 * u**3),
        initial=lambda x: x**2 * np.cos(np.pi * x) + 0j,
    )
    solver: ClassVar[dict[str, int]] = {"steps": 1000}

    def residual(self, points: Tensor, u: Jet) -> Tensor:
        return u["t"] - 1e-4 * u["xx"] - 5 * u.value + 5 * u.value**3


class KdV(Periodic):
    r""":math:`u_t + u u_x + 0.0025\, u_{xxx} = 0`, periodic on :math:`[-1, 1]`, :math:`u(x, 0) = \cos \pi x`.

    Source: Raissi, Perdikaris & Karniadakis 2019, doi 10.1016/j.jcp.2018.10.045.
    """

    domain = ((-1.0, 1.0), (0.0, 1.0))
    derivatives = ("x", "t", "xxx")
    periodic = ("x", "xx")
    evolution = Evolution(
        *(-1, 1, 1.0),
        linear=lambda k: 0.0025j * k**3,
        nonlinear=lambda u, k: -0.5j * k * np.fft.fft(u.real**2),
        initial=lambda x: np.cos(np.pi * x) + 0j,
    )
    solver: ClassVar[dict[str, int]] = {"modes": 256, "steps": 1000}

    def residual(self, points: Tensor, u: Jet) -> Tensor:
        return u["t"] + u.value * u["x"] + 0.0025 * u["xxx"]


class Schrodinger(Periodic):
    r""":math:`i h_t + \frac12 h_{xx} + |h|^2 h = 0`, periodic on :math:`[-5, 5]`, :math:`h(x, 0) = 2 / \cosh x`.

    The outputs are the real and the imaginary part. Source: Raissi, Perdikaris & Karniadakis 2019,
    doi 10.1016/j.jcp.2018.10.045.
    """

    domain = ((-5.0, 5.0), (0.0, math.pi / 2))
    derivatives = ("x", "t", "xx")
    outputs = 2
    evolution = Evolution(
        *(-5, 5, math.pi / 2),
        linear=lambda k: -0.5j * k**2,
        nonlinear=lambda u, k: 1j * np.fft.fft(np.abs(u) ** 2 * u),
        initial=lambda x: 2 / np.cosh(x) + 0j,
    )
    solver: ClassVar[dict[str, int]] = {"modes": 256, "steps": 2000, "keep": 1000}

    def residual(self, points: Tensor, u: Jet) -> Tensor:
        square = u.value.square().sum(dim=1, keepdim=True)
        turned = torch.stack([-u["t"][:, 1], u["t"][:, 0]], dim=1)  # i h_t
        return turned + 0.5 * u["xx"] + square * u.value


class NavierStokes(Equation):
    """Incompressible flow in the plane; the outputs are both velocities and the pressure.

    Velocities are given on the whole boundary, the pressure on the face at the upper end of x, which fixes its constant, and
    both at the first moment of a flow in time.
    """

    outputs = 3
    viscosity: float

    def residual(self, points: Tensor, u: Jet) -> Tensor:
        flow = u.value[:, :1] * u["x"] + u.value[:, 1:2] * u["y"] - self.viscosity * u["laplacian"]
        if "t" in self.coordinates:
            flow = flow + u["t"]
        along_x = flow[:, 0] + u["x"][:, 2]
        along_y = flow[:, 1] + u["y"][:, 2]
        return torch.stack([along_x, along_y, u["x"][:, 0] + u["y"][:, 1]], dim=1)

    def boundary(self, points: Tensor, u: Tensor) -> Tensor:
        misfit = u - self.reference(points)
        at_end = points[:, :1] == points.new_tensor(self.domain[0][1])
        return torch.cat([misfit[:, :2], misfit[:, 2:] * at_end], dim=1)


class Kovasznay(NavierStokes):
    r"""The steady flow behind a grid at Reynolds number :math:`\mathrm{Re} = 1 / \nu`, with
    :math:`\lambda = \mathrm{Re}/2 - \sqrt{\mathrm{Re}^2/4 + 4 \pi^2}`:

    .. math:: u = 1 - e^{\lambda x} \cos 2 \pi y, \quad v = \tfrac{\lambda}{2 \pi} e^{\lambda x} \sin 2 \pi y, \quad
              p = \tfrac12 (1 - e^{2 \lambda x})

    Source: Kovasznay 1948, doi 10.1017/S0305004100023999.
    """

    coordinates, domain = "xy", ((-0.5, 1.0), (-0.5, 1.5))
    derivatives = ("x", "y", "laplacian")

    def __init__(self, reynolds: float = 20.0) -> None:
        self.viscosity = 1 / reynolds
        self._rate = reynolds / 2 - math.sqrt(reynolds**2 / 4 + 4 * math.pi**2)

    def reference(self, points: Tensor) -> Tensor:
        x, y = points.unbind(dim=1)
        decay = torch.exp(self._rate * x)
        u = 1 - decay * torch.cos(2 * math.pi * y)
        v = self._rate / (2 * math.pi) * decay * torch.sin(2 * math.pi * y)
        return torch.stack([u, v, (1 - decay**2) / 2], dim=1)


class TaylorGreen(NavierStokes):
    r"""Decaying vortices on :math:`[0, 2 \pi]^2 \times [0, 1]`, with :math:`F = e^{-2 \nu t}`:

    .. math:: u = \cos x \sin y\, F, \quad v = -\sin x \cos y\, F, \quad p = -\tfrac14 (\cos 2x + \cos 2y) F^2

    Source: Taylor & Green 1937, doi 10.1098/rspa.1937.0036.
    """

    coordinates, domain = "xyt", ((0.0, 2 * math.pi), (0.0, 2 * math.pi), (0.0, 1.0))
    derivatives = ("x", "y", "t", "laplacian")

    def __init__(self, reynolds: float = 20.0) -> None:
        self.viscosity = 1 / reynolds

    def reference(self, points: Tensor) -> Tensor:
        x, y, t = points.unbind(dim=1)
        decay = torch.exp(-2 * self.viscosity * t)
        u = torch.cos(x) * torch.sin(y) * decay
        v = -torch.sin(x) * torch.cos(y) * decay
        return torch.stack([u, v, -(torch.cos(2 * x) + torch.cos(2 * y)) / 4 * decay**2], dim=1)
