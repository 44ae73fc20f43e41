"""Reference solutions: in closed form, by a spectral solver, or from a data file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.data.place import MissingData, folder

Real = npt.NDArray[Any]
Complex = npt.NDArray[Any]

LEAST_VISCOSITY = 5e-4
"""From here on `cole_hopf` is exact to 1e-10; below, its nodes miss the narrow peak of the integrand."""


def cole_hopf(x: Real, t: Real, viscosity: float, nodes: int = 200) -> Real:
    r"""Burgers' equation from :math:`u(x, 0) = -\sin \pi x`, exactly, by the Cole-Hopf transform.

    .. math:: u = -\frac{\int \sin \pi(x - \eta)\, f(x - \eta)\, e^{-\eta^2 / 4 \nu t} d\eta}
                        {\int f(x - \eta)\, e^{-\eta^2 / 4 \nu t} d\eta}, \qquad
              f(y) = e^{-\cos(\pi y) / 2 \pi \nu}

    The integrals are Gauss-Hermite sums. Source: Basdevant et al. 1986, doi 10.1016/0045-7930(86)90036-8.

    >>> cole_hopf(np.array([0.5]), np.array([0.0]), 0.1)
    array([-1.])
    """
    eta, weight = np.polynomial.hermite.hermgauss(nodes)
    y = x[:, None] - eta * np.sqrt(4 * viscosity * t)[:, None]
    exponent = -np.cos(np.pi * y) / (2 * np.pi * viscosity)
    density = weight * np.exp(exponent - exponent.max(axis=1, keepdims=True))
    found: Real = -(np.sin(np.pi * y) * density).sum(axis=1) / density.sum(axis=1)
    return found


@dataclass(frozen=True)
class Evolution:
    """A periodic evolution equation u_t = L u + N(u), L a multiplier of Fourier modes."""

    lower: float
    upper: float
    end: float
    linear: Callable[[Real], Complex]
    """The multiplier L at wave numbers (rad per unit of length)."""
    nonlinear: Callable[[Complex, Real], Complex]
    """The Fourier transform of N(u), from u at the grid and the wave numbers."""
    initial: Callable[[Real], Complex]


@dataclass(frozen=True)
class SpectralSolution:
    """A solution as Fourier modes and their rates of change at equally spaced times."""

    evolution: Evolution
    modes: Complex
    """(times, modes)"""
    rates: Complex
    """(times, modes)"""
    waves: Real

    def __call__(self, x: Real, t: Real) -> Complex:
        """The field at points: the Fourier series in space, cubic Hermite interpolation between the times."""
        steps = len(self.modes) - 1
        width = self.evolution.end / steps
        index = np.clip((t / width).astype(int), 0, steps - 1)
        s = (t / width - index)[:, None]
        basis = np.exp(1j * (x - self.evolution.lower)[:, None] * self.waves) / len(self.waves)
        blend = (
            (1 + 2 * s) * (1 - s) ** 2 * self.modes[index]
            + s * (1 - s) ** 2 * width * self.rates[index]
            + s**2 * (3 - 2 * s) * self.modes[index + 1]
            - s**2 * (1 - s) * width * self.rates[index + 1]
        )
        found: Complex = (basis * blend).sum(axis=1)
        return found


@lru_cache(maxsize=8)
def solve(evolution: Evolution, modes: int = 512, steps: int = 2000, keep: int = 200) -> SpectralSolution:
    """Solves a periodic problem by Fourier modes and ETDRK4, the fourth-order exponential time differencing.

    Source: Kassam & Trefethen 2005, doi 10.1137/S1064827502410633: the coefficients are means over a circle.

    Args:
        evolution: what to solve.
        modes: Fourier modes, equally many grid points.
        steps: time steps, all equal.
        keep: how many equally spaced times after the first are kept; divides `steps`.
    """
    length = evolution.upper - evolution.lower
    x = evolution.lower + length * np.arange(modes) / modes
    waves = 2 * np.pi / length * np.fft.fftfreq(modes, 1 / modes)
    odd = np.where(np.arange(modes) == modes // 2, 0.0, waves)  # the Nyquist mode has no odd derivative
    linear = evolution.linear(odd).astype(complex)
    h = evolution.end / steps
    full, half, q, f1, f2, f3 = _coefficients(linear, h)

    def nonlinear(v: Complex) -> Complex:
        return evolution.nonlinear(np.fft.ifft(v), odd)

    v = np.fft.fft(evolution.initial(x).astype(complex))
    kept, rates = [v], [linear * v + nonlinear(v)]
    for step in range(1, steps + 1):
        n = nonlinear(v)
        a = half * v + q * n
        na = nonlinear(a)
        b = half * v + q * na
        nb = nonlinear(b)
        nc = nonlinear(half * a + q * (2 * nb - n))
        v = full * v + f1 * n + 2 * f2 * (na + nb) + f3 * nc
        if step % (steps // keep) == 0:
            kept.append(v)
            rates.append(linear * v + nonlinear(v))
    return SpectralSolution(evolution, np.array(kept), np.array(rates), waves)


def _coefficients(linear: Complex, h: float, points: int = 32) -> tuple[Complex, ...]:
    circle = np.exp(2j * np.pi * (np.arange(1, points + 1) - 0.5) / points)
    z = h * linear[:, None] + circle
    grow = np.exp(z)
    q = h * ((np.exp(z / 2) - 1) / z).mean(axis=1)
    f1 = h * ((-4 - z + grow * (4 - 3 * z + z**2)) / z**3).mean(axis=1)
    f2 = h * ((2 + z + grow * (z - 2)) / z**3).mean(axis=1)
    f3 = h * ((-4 - 3 * z - z**2 + grow * (4 - z)) / z**3).mean(axis=1)
    return np.exp(h * linear), np.exp(h * linear / 2), q, f1, f2, f3


def data_file(name: str) -> Path:
    """A reference file in the data folder: `pinn/NAME` under `HARNESS_DATA`, by default `~/.cache/harness`.

    Raises:
        MissingData: if it is not there.
    """
    path = folder() / "pinn" / name
    if not path.is_file():
        raise MissingData(f"reference: found no {path}; put the file there, or set HARNESS_DATA to its data folder")
    return path


def load_reference(path: Path) -> tuple[Real, Real]:
    """Points (points, 2) and field (points, 1) of a file with x, t and the field over them.

    It is an `.npz` or MATLAB file with the vectors `x` and `t` (or `tt`) and a matrix `usol`, `uu` or `u` over them, in
    either order; a complex field has two outputs.
    """
    from scipy.io import loadmat

    content = dict(np.load(path)) if path.suffix == ".npz" else loadmat(str(path))
    field = next((content[name] for name in ("usol", "uu", "u") if name in content), None)
    times = content.get("t", content.get("tt"))
    if field is None or times is None or "x" not in content:
        known = ", ".join(name for name in content if not name.startswith("__"))
        raise ValueError(f"reference: {path.name}: found {known}, must hold x, t (or tt) and usol, uu or u")
    x, t = content["x"].ravel(), times.ravel()
    field = field if field.shape == (len(x), len(t)) else field.T
    if field.shape != (len(x), len(t)):
        raise ValueError(f"reference: {path.name}: found a field {field.T.shape}, must be {(len(x), len(t))}")
    points = np.stack([each.ravel() for each in np.meshgrid(x, t, indexing="ij")], axis=1)
    outputs = [field.real, field.imag] if np.iscomplexobj(field) else [field]
    return points, np.stack([each.ravel() for each in outputs], axis=1)
