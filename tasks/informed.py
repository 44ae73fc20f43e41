"""A network, an equation and points as a workload. Source: Raissi et al. 2019, doi 10.1016/j.jcp.2018.10.045."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness import Batch, Objective, Recipe, Workload
from harness.activations import observe
from harness.streams import Streams
from tasks.collocation import Collocation, Sampling
from tasks.derivatives import Jet, jet
from tasks.equations import Equation
from tasks.pictures import field_picture

HELD_OUT = (4096, 256, 256)
"""Interior, boundary and initial points that a held-out split is scored at."""

FUSED: dict[str, str | int | bool | Callable[..., Any]] = {"cpp.enable_floating_point_contract_flag": "fast"}
"""Compiled kernels may round a product and a sum once."""


@dataclass(frozen=True, kw_only=True)
class PhysicsRecipe(Recipe):
    """The recipe of a physics-informed network; `batch` are the interior points of a step."""

    boundary: int = 64  # points of a step on the spatial faces, in pairs where the field is periodic
    initial: int = 64  # points of a step at the first moment of an equation in time
    sampling: Sampling = "uniform"
    resample: int = 1  # steps that a set of points is used for; 0: one set for the whole run
    residual_weight: float = 1.0  # what each mean square counts in the loss
    boundary_weight: float = 1.0
    initial_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("boundary", "initial", "residual_weight", "boundary_weight", "initial_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, must be positive")
        if self.resample < 0:
            raise ValueError(f"resample: found {self.resample}, must not be negative")
        if self.accumulate > 1 and self.resample != 1:
            raise ValueError(
                f"accumulate: found {self.accumulate}, allowed: 1 where resample is {self.resample}: a step draws its sets "
                "one by one and cannot keep several"
            )
        super().__post_init__()


class PhysicsInformed(Workload):
    """A network, an equation, and points that are drawn anew at every step unless the recipe keeps them.

    Fresh points make the training loss an unbiased estimate of the residual on the whole domain: there is no fixed set that
    a network could fit at its points and miss between them, and none whose size a comparison would have to vary.
    """

    def __init__(
        self,
        model: nn.Module,
        equation: Equation,
        recipe: PhysicsRecipe,
        streams: Streams,
        device: torch.device,
        route: str = "auto",
        compiled: bool = False,
    ) -> None:
        self.model, self.equation = model, equation
        self._recipe, self._device, self._route = recipe, device, route
        self._predict: Callable[[nn.Module, Batch], dict[str, Tensor]] = self._predictions
        if compiled:  # not the objective with them: it would not depend on its predictions, which StableGrad asks it
            self._predict = torch.compile(self._predictions, dynamic=False, options=FUSED)
        weights = [recipe.residual_weight]
        weights += [recipe.boundary_weight] if equation.faces or equation.periodic is not None else []
        weights += [recipe.initial_weight] if "t" in equation.coordinates else []
        self._weights = torch.tensor(weights, device=device)
        self._names = tuple(dict.fromkeys((*equation.derivatives, *(equation.periodic or ()))))
        sobol = streams.seed("data/sobol") if recipe.sampling == "sobol" else None
        sizes = (recipe.batch, recipe.boundary, recipe.initial)
        self._points = Collocation(equation, sizes, streams.torch("data"), sobol)
        self._batch: Batch | None = None
        self._used = 0
        self._held_out = {
            split: self._place(Collocation(equation, HELD_OUT, streams.fresh(f"evaluation/{split}")).draw())
            for split in ("val", "test")
        }
        self._scored = {split: batch["interior"] for split, batch in self._held_out.items()}
        self._fields: dict[str, Tensor] = {}
        self.probe_inputs = self._place(Collocation(equation, (256, 0, 0), streams.fresh("probe")).draw())["interior"]

    def score_against(self, points: Tensor, field: Tensor, generator: torch.Generator) -> None:
        """Scores on the points of a reference file from now on: a random half for each split."""
        halves = torch.randperm(len(points), generator=generator).tensor_split(2)
        for split, half in zip(("val", "test"), halves, strict=True):
            self._scored[split], self._fields[split] = points[half].to(self._device), field[half].to(self._device)

    def next_batch(self) -> Batch:
        if self._batch is None or self._used == self._recipe.resample > 0:
            adaptive = self._recipe.sampling == "adaptive" and self._used > 0
            drawn = self._points.draw_where(self._residual_size) if adaptive else self._points.draw()
            self._batch, self._used = self._place(drawn), 0
        self._used += 1
        return self._batch

    def _place(self, batch: Batch) -> Batch:
        return {name: points.to(self._device) for name, points in batch.items()}

    def _residual_size(self, points: Tensor) -> Tensor:
        with observe(self.model):
            return self._residual(self.model, points.to(self._device)).square().sum(dim=1).sqrt()

    def _residual(self, model: nn.Module, points: Tensor) -> Tensor:
        u = jet(model, points, self._names, self.equation.coordinates, route=self._route)
        return self.equation.residual(points, u)

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        """The weighted sum of the mean squares of the residual and of the conditions' misfits; these are the predictions."""
        predictions = self._predict(model, batch)
        means = {name: each.square().mean() for name, each in predictions.items()}
        value = torch.stack(list(means.values())).dot(self._weights)
        count = sum(len(points) for points in batch.values())
        return Objective(value, predictions, count, {name: mean.detach() for name, mean in means.items()})

    def _predictions(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """All points go through the network together; derivatives are taken where they are read."""
        names = [name for name in ("interior", "lower", "upper", "boundary", "initial") if name in batch]
        inside = sum(len(batch[name]) for name in names if name in ("interior", "lower", "upper"))
        points = torch.cat([batch[name] for name in names])
        u = jet(model, points, self._names, self.equation.coordinates, inside, self._route)
        at, start = {}, 0
        for name in names:
            at[name] = u.rows(start, start + len(batch[name]))
            start += len(batch[name])
        predictions = {"residual": self.equation.residual(batch["interior"], at["interior"])}
        if "boundary" in batch:
            predictions["boundary"] = self.equation.boundary(batch["boundary"], at["boundary"].value)
        if "lower" in batch:
            predictions["boundary"] = self._mismatch(at["lower"], at["upper"])
        if "initial" in batch:
            predictions["initial"] = self.equation.initial(batch["initial"], at["initial"].value)
        return predictions

    def _mismatch(self, lower: Jet, upper: Jet) -> Tensor:
        assert self.equation.periodic is not None
        differences = [upper[name] - lower[name] for name in self.equation.periodic]
        return torch.cat([upper.value - lower.value, *differences], dim=1)

    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> dict[str, float]:
        loss = self.objective(model, self._held_out[split]).value
        if split not in self._fields:
            self._fields[split] = self.equation.reference(self._scored[split])
        return {"relative_l2": relative_l2(model(self._scored[split]), self._fields[split]), "loss": float(loss)}

    def pictures(self, model: nn.Module) -> dict[str, str]:
        """File names and SVG texts: the predicted field, the reference and the error."""
        return {"field.svg": field_picture(model, self.equation)}

    def state_dict(self) -> dict[str, Any]:
        kept = {} if self._batch is None or self._recipe.resample == 1 else self._batch
        return {"points": self._points.state_dict(), "batch": kept, "used": self._used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._points.load_state_dict(state["points"])
        self._batch, self._used = self._place(state["batch"]) or None, state["used"]


def relative_l2(found: Tensor, reference: Tensor) -> float:
    r""":math:`\lVert u - u^* \rVert_2 / \lVert u^* \rVert_2` over points.

    >>> relative_l2(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0]))
    0.2
    """
    found, reference = found.double(), reference.double()
    return float(torch.linalg.vector_norm(found - reference) / torch.linalg.vector_norm(reference))
