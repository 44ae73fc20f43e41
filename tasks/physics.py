"""Physics-informed networks: a network is trained to leave no residual of an equation. Source: Raissi et al. 2019."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from harness import Batch, Objective, Recipe, Task, Workload, register_task
from harness.streams import Streams
from tasks import models
from tasks.derivatives import jet
from tasks.equations import Equation, Poisson
from tasks.models import Activation

POINTS = {"interior": 4096, "boundary": 256}
"""Points that a held-out split is scored at."""


@dataclass(frozen=True, kw_only=True)
class PhysicsRecipe(Recipe):
    """The recipe of a physics-informed network; `batch` are the interior points of a step."""

    boundary: int = 64  # points of a step on the faces where conditions hold
    # What the two mean squares count. For the Poisson task the weighted residual starts near one, which plain SGD can follow.
    residual_weight: float = 0.01
    boundary_weight: float = 3.0

    def __post_init__(self) -> None:
        for name in ("boundary", "residual_weight", "boundary_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, must be positive")
        super().__post_init__()


class PhysicsInformed(Workload):
    """A network, an equation, and points that are drawn anew at every step.

    Fresh points make the training loss an unbiased estimate of the residual on the whole domain: there is no fixed set that
    a network could fit at its points and miss between them, and none whose size a comparison would have to vary.
    """

    def __init__(
        self, model: nn.Module, equation: Equation, recipe: PhysicsRecipe, streams: Streams, device: torch.device
    ) -> None:
        self.model = model
        self._equation, self._recipe, self._device = equation, recipe, device
        self._stream = streams.torch("data")
        self._held_out = {
            split: self._draw(POINTS["interior"], POINTS["boundary"], streams.fresh(f"evaluation/{split}"))
            for split in ("val", "test")
        }
        self.probe_inputs = self._draw(256, 0, streams.fresh("probe"))["interior"]

    def next_batch(self) -> Batch:
        return self._draw(self._recipe.batch, self._recipe.boundary, self._stream)

    def _draw(self, interior: int, boundary: int, generator: torch.Generator) -> Batch:
        """Uniform points in the box, and on its faces in turn."""
        lower, upper = torch.tensor(self._equation.domain).T
        points = lower + (upper - lower) * torch.rand(interior + boundary, len(lower), generator=generator)
        inside, on_faces = points.split([interior, boundary])
        faces = self._equation.faces
        for number, (coordinate, value) in enumerate(faces):
            on_faces[number :: len(faces), coordinate] = value
        return {"interior": inside.to(self._device), "boundary": on_faces.to(self._device)}

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        """The weighted sum of the mean squares of the residual and of the conditions' misfit; these are the predictions."""
        interior, boundary = batch["interior"], batch["boundary"]
        residual = self._equation.residual(interior, jet(model, interior, self._equation.space))
        misfit = self._equation.misfit(boundary, model(boundary))
        inside, on_faces = residual.square().mean(), misfit.square().mean()
        return Objective(
            self._recipe.residual_weight * inside + self._recipe.boundary_weight * on_faces,
            {"residual": residual, "boundary": misfit},
            len(interior) + len(boundary),
            {"residual": inside.detach(), "boundary": on_faces.detach()},
        )

    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> dict[str, float]:
        points = self._held_out[split]
        loss = self.objective(model, points).value
        return {
            "relative_l2": relative_l2(model(points["interior"]), self._equation.reference(points["interior"])),
            "loss": float(loss),
        }


def relative_l2(found: Tensor, reference: Tensor) -> float:
    r""":math:`\lVert u - u^* \rVert_2 / \lVert u^* \rVert_2` over points.

    >>> relative_l2(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0]))
    0.2
    """
    found, reference = found.double(), reference.double()
    return float(torch.linalg.vector_norm(found - reference) / torch.linalg.vector_norm(reference))


@dataclass
class PhysicsTask(Task):
    """A multi-layer perceptron that solves an equation; `depth` counts its hidden layers."""

    offers = frozenset({"gates", "residuals"})
    metric = "val/relative_l2"
    direction = "min"
    recipe_class = PhysicsRecipe

    depth: int = 3
    width: int = 32
    activation: Activation = "tanh"

    def __post_init__(self) -> None:
        for name in ("depth", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, must be positive")

    @abstractmethod
    def equation(self) -> Equation:
        """The equation under this task's options."""

    def workload(self, recipe: Recipe, streams: Streams, device: torch.device) -> Workload:
        assert isinstance(recipe, PhysicsRecipe)
        equation = self.equation()
        with streams.default("init"):
            model = models.mlp(len(equation.domain), [self.width] * self.depth, equation.outputs, self.activation)
        return PhysicsInformed(model.to(device), equation, recipe, streams, device)


@register_task("poisson/pinn")
class PoissonPINN(PhysicsTask):
    """A physics-informed network for the 2-D Poisson equation with a known solution."""

    source = "Raissi, Perdikaris & Karniadakis 2019, doi 10.1016/j.jcp.2018.10.045"

    def recipe(self) -> PhysicsRecipe:
        return PhysicsRecipe(steps=1000, batch=128, lr=3e-2, beta2=0.99, schedule="cosine")

    def equation(self) -> Equation:
        return Poisson()
