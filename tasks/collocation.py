"""Where a physics-informed network is asked: points in the box, on its faces and at the first moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from harness import Batch
from tasks.equations import Equation

Sampling = Literal["uniform", "sobol", "adaptive"]
CANDIDATES = 4
"""Adaptive sampling chooses among this many times the points that it returns."""


class Collocation:
    """Draws the points of one equation.

    A batch holds `interior`; `boundary` on the spatial faces, equally many on each, or for a periodic field `lower` and
    `upper`, which face each other; and `initial`, at the first moment of an equation in time.

    Args:
        equation: whose box the points lie in.
        interior: points in the box.
        boundary: points on faces; half of them on either side for a periodic field.
        initial: points of the first moment.
        generator: the stream of uniform points and of choices among candidates.
        sobol_seed: scrambles Sobol's sequence; uniform points without it.
    """

    def __init__(
        self,
        equation: Equation,
        sizes: tuple[int, int, int],
        generator: torch.Generator,
        sobol_seed: int | None = None,
    ) -> None:
        self._equation, self._generator = equation, generator
        interior, boundary, initial = sizes
        self._sizes = {"interior": interior}
        if equation.faces:
            self._sizes["boundary"] = boundary
        if equation.periodic is not None:
            self._sizes["pairs"] = boundary // 2
        if "t" in equation.coordinates:
            self._sizes["initial"] = initial
        self._sobol = None
        if sobol_seed is not None:
            self._sobol = torch.quasirandom.SobolEngine(len(equation.domain), scramble=True, seed=sobol_seed)

    def draw(self) -> Batch:
        """The next points."""
        points = self._in_box(sum(self._sizes.values()))
        batch = dict(zip(self._sizes, points.split(list(self._sizes.values())), strict=True))
        for number, (coordinate, value) in enumerate(self._equation.faces):
            batch["boundary"][self._on_face(number), coordinate] = value
        if "initial" in batch:
            batch["initial"][:, -1] = self._equation.domain[-1][0]
        if "pairs" in batch:
            pairs = batch.pop("pairs")
            for name, end in zip(("lower", "upper"), self._equation.domain[0], strict=True):
                batch[name] = pairs.clone()
                batch[name][:, 0] = end
        return batch

    def draw_where(self, residual: Callable[[Tensor], Tensor]) -> Batch:
        r"""The next points, interior ones where the residual is large.

        They are chosen among candidates without replacement with probability in proportion to
        :math:`|r| / \overline{|r|} + 1`. Source: Wu et al. 2023 (RAD with k = c = 1), arXiv 2207.10289.
        """
        batch = self.draw()
        candidates = self._in_box(CANDIDATES * len(batch["interior"]))
        size = residual(candidates).cpu()
        weights = size / size.mean().clamp(min=torch.finfo(size.dtype).tiny) + 1
        chosen = torch.multinomial(weights, len(batch["interior"]), generator=self._generator)
        return batch | {"interior": candidates[chosen]}

    def _on_face(self, number: int) -> slice:
        """Which boundary points lie on a face: a run of Sobol's, as every second one of them lies in the same half of the box."""
        faces, count = len(self._equation.faces), self._sizes["boundary"]
        if self._sobol is None:
            return slice(number, None, faces)
        return slice(number * count // faces, (number + 1) * count // faces)

    def _in_box(self, count: int) -> Tensor:
        lower, upper = torch.tensor(self._equation.domain).T
        if self._sobol is None:
            unit = torch.rand(count, len(lower), generator=self._generator)
        else:
            unit = self._sobol.draw(count, dtype=lower.dtype)
        return lower + (upper - lower) * unit

    def state_dict(self) -> dict[str, Any]:
        """How far Sobol's sequence has been drawn."""
        return {"drawn": self._sobol.num_generated if self._sobol is not None else 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        if self._sobol is not None:
            self._sobol.reset()
            self._sobol.fast_forward(state["drawn"])
