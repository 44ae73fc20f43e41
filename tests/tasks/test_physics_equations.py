"""Equations and their references: exact solutions leave nothing, and the spectral solver meets published data."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.derivatives import Jet, jet
from tasks.equations import (
    AllenCahn,
    Burgers,
    Equation,
    Helmholtz,
    KdV,
    Kovasznay,
    Periodic,
    Poisson,
    Schrodinger,
    TaylorGreen,
)
from tasks.references import LEAST_VISCOSITY, Evolution, cole_hopf, load_reference, solve

EXACT = [Poisson(), Helmholtz(), Kovasznay(), Kovasznay(40.0), TaylorGreen(), TaylorGreen(5.0)]
PUBLISHED = {"AC.mat": (AllenCahn(), 2e-5), "KdV.mat": (KdV(), 1e-7), "NLS.mat": (Schrodinger(), 3e-5)}


class Solution(nn.Module):
    def __init__(self, equation: Equation) -> None:
        super().__init__()
        self.equation = equation

    def forward(self, points: Tensor) -> Tensor:
        return self.equation.reference(points)


def inside(equation: Equation, count: int = 40) -> Tensor:
    lower, upper = torch.tensor(equation.domain, dtype=torch.float64).T
    generator = torch.Generator().manual_seed(0)
    return lower + (upper - lower) * torch.rand(count, len(lower), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("equation", EXACT, ids=lambda e: type(e).__name__)
def test_exact_solutions_leave_nothing(equation: Equation) -> None:
    points = inside(equation)
    u = jet(Solution(equation), points, equation.derivatives, equation.coordinates)
    assert equation.residual(points, u).abs().max() < 1e-11
    for coordinate, value in equation.faces:
        points[:, coordinate] = value
        assert equation.boundary(points, equation.reference(points)).abs().max() < 1e-14
        points = inside(equation)
    if "t" in equation.coordinates:
        points[:, -1] = 0
        assert equation.initial(points, equation.reference(points)).abs().max() < 1e-14


def differences(equation: Equation, points: Tensor, h: float = 1e-3) -> Jet:
    """A jet of the reference by central differences."""

    def at(letter: str, shift: float) -> Tensor:
        moved = points.clone()
        moved[:, equation.coordinates.index(letter)] += shift * h
        return equation.reference(moved)

    value = equation.reference(points)
    found = {}
    for letter in equation.coordinates:
        found[letter] = (8 * (at(letter, 1) - at(letter, -1)) - at(letter, 2) + at(letter, -2)) / (12 * h)
        found[letter * 2] = (16 * (at(letter, 1) + at(letter, -1)) - at(letter, 2) - at(letter, -2) - 30 * value) / (
            12 * h**2
        )
        found[letter * 3] = (at(letter, 2) - 2 * at(letter, 1) + 2 * at(letter, -1) - at(letter, -2)) / (2 * h**3)
    return Jet(value, found)


@pytest.mark.parametrize(
    ("equation", "tolerance"),
    [(Burgers(0.1 / math.pi), 1e-5), (KdV(), 3e-3), (Schrodinger(), 1.5e-2)],
    ids=["burgers", "kdv", "schrodinger"],
)
def test_references_solve_their_equation(equation: Equation, tolerance: float) -> None:
    """By differences, within the equation's own scale, where the field is smooth."""
    points = inside(equation, 200)
    points = points[(points[:, 1] > 0.05) & (points[:, 1] < 0.3) & (points[:, 0].abs() < 0.9 * equation.domain[0][1])]
    u = differences(equation, points)
    scale = u["t"].abs().max()
    assert equation.residual(points, u).abs().max() < tolerance * scale


@pytest.mark.parametrize("equation", [AllenCahn(), KdV(), Schrodinger()], ids=["allen_cahn", "kdv", "schrodinger"])
def test_periodic_references_start_as_they_must_and_repeat(equation: Periodic) -> None:
    points = inside(equation)
    points[:, 1] = 0
    # On the solver's own grid: between its points x² cos(πx), whose slope jumps at the ends, is a truncated series.
    n = equation.solver.get("modes", 512)
    low, high = equation.domain[0]
    points[:, 0] = low + (high - low) * (torch.arange(40) * 11 % n) / n
    assert equation.initial(points, equation.reference(points)).abs().max() < 1e-12
    left, right = inside(equation), inside(equation)
    left[:, 0], right[:, 0] = low, high
    torch.testing.assert_close(equation.reference(left), equation.reference(right), rtol=1e-9, atol=1e-9)


def test_the_solver_is_of_fourth_order_and_exact_for_a_linear_equation() -> None:
    heat = Evolution(-1, 1, 1.0, lambda k: -0.1 * k**2 + 0j, lambda u, k: 0 * u, lambda x: np.sin(np.pi * x) + 0j)
    x = np.linspace(-1, 1, 33)
    found = solve(heat, 32, 10, 10)(x, np.full(33, 1.0)).real
    np.testing.assert_allclose(found, np.exp(-0.1 * np.pi**2) * np.sin(np.pi * x), atol=1e-12)
    bend = Evolution(
        *(-1, 1, 1.0),
        lambda k: -0.05 * k**2 + 0j,
        lambda u, k: -0.5j * k * np.fft.fft(u**2),
        lambda x: np.sin(np.pi * x),
    )
    ends = [solve(bend, 64, steps, 1).modes[-1] for steps in (40, 80, 1280)]
    errors = [np.abs(end - ends[-1]).max() for end in ends[:2]]
    assert 10 < errors[0] / errors[1] < 24


def test_cole_hopf_is_odd_and_starts_as_a_sine() -> None:
    x = np.linspace(-1, 1, 21)
    for t in (0.1, 0.7):
        u = cole_hopf(x, np.full(21, t), 0.01 / np.pi)
        np.testing.assert_allclose(u, -u[::-1], atol=1e-12)
    np.testing.assert_allclose(cole_hopf(x, np.zeros(21), 0.1), -np.sin(np.pi * x), atol=1e-12)


def test_cole_hopf_is_exact_at_the_least_viscosity() -> None:
    """Against the trapezium rule on 400,001 points."""
    generator = np.random.default_rng(0)
    x, t = generator.uniform(-1, 1, 40), generator.uniform(0.05, 1, 40)
    expected = []
    for place, time in zip(x, t, strict=True):
        y = np.linspace(place - 1.5, place + 1.5, 400_001)
        exponent = -np.cos(np.pi * y) / (2 * np.pi * LEAST_VISCOSITY) - (place - y) ** 2 / (4 * LEAST_VISCOSITY * time)
        density = np.exp(exponent - exponent.max())
        expected.append(-(np.sin(np.pi * y) * density).sum() / density.sum())
    np.testing.assert_allclose(cole_hopf(x, t, LEAST_VISCOSITY), expected, rtol=0, atol=1e-10)


def published(name: str) -> Path:
    """A file of Raissi's data: github.com/maziarraissi/PINNs, main/Data and appendix/Data."""
    folder = os.environ.get("PINN_DATA")
    if not folder or not (Path(folder) / name).is_file():
        pytest.skip(
            f"needs PINN_DATA, a folder with {name} of github.com/maziarraissi/PINNs (main/Data, appendix/Data)"
        )
    return Path(folder) / name


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_solver_meets_the_published_data(name: str) -> None:
    equation, tolerance = PUBLISHED[name]
    points, field = load_reference(published(name))
    found = equation.reference(torch.from_numpy(points[::37])).numpy()
    assert np.linalg.norm(found - field[::37]) / np.linalg.norm(field[::37]) < tolerance


def test_cole_hopf_meets_the_published_data() -> None:
    points, field = load_reference(published("burgers_shock.mat"))
    found = Burgers().reference(torch.from_numpy(points[::13])).numpy()
    assert np.abs(found - field[::13]).max() < 1e-10


def test_a_reference_file_may_be_npz_or_mat(tmp_path: Path) -> None:
    from scipy.io import savemat

    x, t = np.linspace(-1, 1, 5), np.linspace(0, 1, 3)
    field = x[:, None] + 10 * t
    np.savez(tmp_path / "a.npz", x=x, t=t, usol=field)
    savemat(tmp_path / "b.mat", {"x": x, "tt": t, "uu": field.T + 1j})
    points, one = load_reference(tmp_path / "a.npz")
    _, two = load_reference(tmp_path / "b.mat")
    np.testing.assert_allclose(one[:, 0], points[:, 0] + 10 * points[:, 1])
    np.testing.assert_allclose(two, np.stack([one[:, 0], np.ones(15)], axis=1))
    np.savez(tmp_path / "c.npz", x=x, t=t, v=field)
    with pytest.raises(ValueError, match=r"c.npz: found x, t, v, must hold x, t \(or tt\) and usol, uu or u"):
        load_reference(tmp_path / "c.npz")


def test_another_function_leaves_its_residual() -> None:
    class Bowl(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return points.square().sum(dim=1, keepdim=True)

    points = inside(Poisson())
    x, y = points.numpy().T
    residual = Poisson().residual(points, jet(Bowl(), points, ["laplacian"], "xy"))
    expected = -4 - 2 * np.pi**2 * np.sin(np.pi * x) * np.sin(np.pi * y)
    np.testing.assert_allclose(residual.flatten().numpy(), expected, rtol=1e-12)
