"""Physics-informed networks: a network is trained to leave no residual of an equation. Source: Raissi et al. 2019."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch

from harness import Recipe, Task, Workload, register_task
from harness.streams import Streams
from tasks.data import place
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
from tasks.informed import PhysicsInformed, PhysicsRecipe
from tasks.networks import Architecture, FieldActivation, Initialisation, Normalisation, field_network
from tasks.options import positive
from tasks.references import LEAST_VISCOSITY, data_file, load_reference

RAISSI = "Raissi, Perdikaris & Karniadakis 2019, doi 10.1016/j.jcp.2018.10.045"


@dataclass
class PhysicsTask(Task):
    """A multi-layer perceptron that solves an equation; `depth` counts its hidden layers.

    `reference` names a data file under `HARNESS_DATA/pinn` that is scored against instead of the task's own reference.
    `compiled` runs the derivatives, residual and conditions through `torch.compile`: about half the time of a step on 3,000
    points, after 20 to 60 seconds in every process; its bits differ.
    """

    offers = frozenset({"gates", "residuals"})
    metric = "val/relative_l2"
    direction = "min"
    recipe_class = PhysicsRecipe
    version = 3

    depth: int = 3
    width: int = 32
    activation: FieldActivation = "tanh"
    init: Initialisation = "torch"
    normalisation: Normalisation = "none"
    residual: bool = False
    route: Literal["auto", "taylor", "forward", "reverse"] = "auto"
    compiled: bool = False
    reference: str = ""

    def __post_init__(self) -> None:
        positive(self, "depth", "width")
        if self.normalisation == "batch" and self.route in ("forward", "reverse"):
            raise ValueError(f"route: found {self.route}, allowed: auto, taylor where normalisation is batch")

    @abstractmethod
    def equation(self) -> Equation:
        """The equation under this task's options."""

    def check(self, recipe: Recipe) -> None:
        assert isinstance(recipe, PhysicsRecipe)
        if self.equation().periodic is not None and recipe.boundary < 2:
            raise ValueError(f"boundary: found {recipe.boundary}, allowed: at least 2, as a periodic field has pairs")

    def unstackable(self, recipe: Recipe) -> str:
        if self.normalisation != "none":
            return f"normalisation: {self.normalisation} is not known to keep a seed's bits in a stack"
        if isinstance(self.equation(), Periodic):
            return "its initial profile is computed by NumPy, which cannot take several seeds at once"
        return "compiled derivatives are those of one seed" if self.compiled else ""

    def workload(self, recipe: Recipe, streams: Streams, device: torch.device) -> Workload:
        assert isinstance(recipe, PhysicsRecipe)
        equation = self.equation()
        shape = Architecture(self.depth, self.width, self.activation, self.init, self.normalisation, self.residual)
        with streams.default("init"):
            model = field_network(len(equation.domain), equation.outputs, shape).to(device)
        built = PhysicsInformed(model, equation, recipe, streams, device, self.route, self.compiled)
        if self.reference:
            dtype = torch.get_default_dtype()
            points, field = load_reference(data_file(self.reference))
            if field.shape[1] != equation.outputs or points.shape[1] != len(equation.domain):
                raise ValueError(f"reference: {self.reference}: found a field that is none of this equation")
            built.score_against(
                torch.tensor(points).to(dtype), torch.tensor(field).to(dtype), streams.fresh("evaluation/file")
            )
        return built

    def data_digest(self) -> str:
        return place.digest([data_file(self.reference)]) if self.reference else ""


@register_task("poisson/pinn")
class PoissonPINN(PhysicsTask):
    """A physics-informed network for the 2-D Poisson equation with a known solution."""

    source = RAISSI

    def recipe(self) -> PhysicsRecipe:
        # The weighted residual starts near one, which plain SGD can follow.
        schedule = PhysicsRecipe(steps=1000, batch=128, lr=3e-2, beta2=0.99, schedule="cosine")
        return replace(schedule, residual_weight=0.01, boundary_weight=3.0)

    def equation(self) -> Equation:
        return Poisson()


@register_task("helmholtz/pinn")
class HelmholtzPINN(PhysicsTask):
    """A physics-informed network for a 2-D Helmholtz equation whose solution has four times the frequency along y."""

    source = "Wang, Teng & Perdikaris 2021, arXiv 2001.04536"
    depth: int = 4
    width: int = 64

    def recipe(self) -> PhysicsRecipe:
        schedule = PhysicsRecipe(steps=10000, batch=1024, boundary=256, lr=3e-3, schedule="cosine")
        return replace(schedule, residual_weight=1e-3)

    def equation(self) -> Equation:
        return Helmholtz()


@register_task("burgers/pinn")
class BurgersPINN(PhysicsTask):
    """A physics-informed network for Burgers' equation; the small net and as many points as in DeepXDE's example."""

    source = RAISSI
    width: int = 20
    init: Initialisation = "glorot"
    viscosity: float = 0.01 / math.pi

    def __post_init__(self) -> None:
        if not self.viscosity >= LEAST_VISCOSITY:
            allowed = f"at least {LEAST_VISCOSITY:g}, where the reference is exact"
            raise ValueError(f"viscosity: found {self.viscosity}, allowed: {allowed}")
        super().__post_init__()

    def recipe(self) -> PhysicsRecipe:
        return PhysicsRecipe(steps=15000, batch=2780, boundary=80, initial=160, resample=0, optimizer="adam")

    def equation(self) -> Equation:
        return Burgers(self.viscosity)


@register_task("allen_cahn/pinn")
class AllenCahnPINN(PhysicsTask):
    """A physics-informed network for the Allen-Cahn equation, periodic, with thin moving interfaces."""

    source = RAISSI
    depth: int = 4
    width: int = 64
    init: Initialisation = "glorot"

    def recipe(self) -> PhysicsRecipe:
        return PhysicsRecipe(
            steps=20000, batch=2048, boundary=128, initial=256, initial_weight=100.0, schedule="cosine"
        )

    def equation(self) -> Equation:
        return AllenCahn()


@register_task("kdv/pinn")
class KdVPINN(PhysicsTask):
    """A physics-informed network for the Korteweg-de Vries equation, which has a third derivative."""

    source = RAISSI
    depth: int = 4
    width: int = 50
    init: Initialisation = "glorot"

    def recipe(self) -> PhysicsRecipe:
        return PhysicsRecipe(steps=20000, batch=2048, boundary=128, initial=256, schedule="cosine")

    def equation(self) -> Equation:
        return KdV()


@register_task("schrodinger/pinn")
class SchrodingerPINN(PhysicsTask):
    """A physics-informed network for the nonlinear Schrödinger equation: two outputs, real and imaginary part."""

    source = RAISSI
    depth: int = 4
    width: int = 100
    init: Initialisation = "glorot"

    def recipe(self) -> PhysicsRecipe:
        return PhysicsRecipe(steps=20000, batch=2048, boundary=100, initial=128, schedule="cosine")

    def equation(self) -> Equation:
        return Schrodinger()


@register_task("navier_stokes/pinn")
class NavierStokesPINN(PhysicsTask):
    """A physics-informed network for two exact flows in the plane: Kovasznay's, steady, or Taylor and Green's, in time."""

    source = "Jin, Cai, Li & Karniadakis 2021, arXiv 2003.06496"
    depth: int = 4
    width: int = 50
    init: Initialisation = "glorot"
    flow: Literal["kovasznay", "taylor_green"] = "kovasznay"
    reynolds: float = 20.0

    def __post_init__(self) -> None:
        positive(self, "reynolds")
        super().__post_init__()

    def recipe(self) -> PhysicsRecipe:
        return PhysicsRecipe(steps=10000, batch=2048, boundary=256, initial=256, schedule="cosine")

    def equation(self) -> Equation:
        return Kovasznay(self.reynolds) if self.flow == "kovasznay" else TaylorGreen(self.reynolds)
