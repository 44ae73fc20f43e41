"""The cells of a grid: every task with every method at every point of its recipe, and which cell takes what from which."""

from __future__ import annotations

import graphlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.planning.axes import Point, Selector, Terms, expand, told
from harness.planning.entries import Choice
from harness.planning.errors import Where, listed
from harness.planning.grid import Grid
from harness.planning.schema import TRIALS

SEPARATOR = " · "


@dataclass
class Cell:
    """One task, one method, one point of the recipe: what the seeds share."""

    task: Choice
    method: Choice
    recipe: Point
    terms: Terms
    takes: dict[str, tuple[int, str]] = field(default_factory=dict)
    """For each path in the trial's content, the number of the cell that it is taken from, and the metric."""
    stage: int = 0

    @property
    def label(self) -> str:
        """`digits/mlp · adamw · lr=0.001`."""
        return SEPARATOR.join([self.task.label, self.method.label, *told(self.recipe.axes)])

    @property
    def axes(self) -> dict[str, Any]:
        """The values that lie on axes: `task.width`, `method.beta`, `recipe.lr`."""
        families = (("task", self.task.axes), ("method", self.method.axes), ("recipe", self.recipe.axes))
        return {f"{family}.{name}": value for family, axes in families for name, value in axes.items()}

    def selectors(self) -> dict[str, tuple[Selector, Where]]:
        """What is taken from other trials: by path in the trial's content, with the place that says so."""
        own = {
            f"recipe.{name}": (value, self.terms[name].where)
            for name, value in self.recipe.values.items()
            if isinstance(value, Selector)
        }
        return self.method.selectors() | own


def lay_out(grid: Grid) -> list[Cell]:
    """All cells in the order of the grid, each in its stage: those that take values come after those that give them.

    Raises:
        GridError: for more than 10⁶ trials, a selector that names no cell or several, or a circle of them.
    """
    terms = {(t.name, m.name): grid.recipe(t.name, m.name) for t in grid.tasks for m in grid.methods}
    recipes = {pair: expand(own, {}) for pair, own in terms.items()}
    trials = sum(len(recipes[t.name, m.name]) for t in grid.tasks for m in grid.methods) * len(grid.seeds)
    if trials > TRIALS:
        raise grid.where().error(f"found {trials:,} trials, allowed: {TRIALS:,}")
    cells = [
        Cell(task, method, point, terms[task.name, method.name])
        for task in grid.tasks
        for method in grid.methods
        for point in recipes[task.name, method.name]
    ]
    _connect(cells, grid.methods)
    return cells


def _connect(cells: Sequence[Cell], methods: Sequence[Choice]) -> None:
    """Finds the cell behind each selector, and the stage of each cell."""
    homes: dict[tuple[str, str], list[int]] = {}
    for number, cell in enumerate(cells):
        homes.setdefault((cell.task.label, cell.method.label), []).append(number)
    sorter: graphlib.TopologicalSorter[int] = graphlib.TopologicalSorter()
    for number, cell in enumerate(cells):
        for path, (selector, where) in cell.selectors().items():
            source = _source(selector, where, methods)
            rivals = [n for n in homes[cell.task.label, source.label] if _same_axes(cells[n].recipe, cell.recipe)]
            if len(rivals) != 1:
                raise where.at("from").error(
                    f"found {len(rivals)} cells of {source.label!r} on {cell.task.label}, allowed: one with the same axes"
                )
            cell.takes[path] = rivals[0], selector.metric
            sorter.add(number, rivals[0])
    try:
        for number in sorter.static_order():
            cells[number].stage = max((cells[n].stage + 1 for n, _ in cells[number].takes.values()), default=0)
    except graphlib.CycleError as error:
        circle = [cells[number] for number in error.args[1]]
        _, where = next(iter(circle[0].selectors().values()))
        names = " → ".join(cell.method.label for cell in circle)
        raise where.at("from").error(
            f"found a circle ({names}), allowed: a method that does not take from this one"
        ) from None


def _source(selector: Selector, where: Where, methods: Sequence[Choice]) -> Choice:
    labels = {method.label: method for method in methods}
    named = [method for method in methods if selector.method in (method.label, method.name)]
    if selector.method in labels:
        return labels[selector.method]
    if len(named) == 1:
        return named[0]
    if named:
        found = f"found {selector.method!r}, which is {len(named)} methods of this grid"
        raise where.at("from").error(f"{found}, allowed: one of {listed(method.label for method in named)}")
    raise where.at("from").unknown(selector.method, "method of this grid", labels)


def _same_axes(source: Point, cell: Point) -> bool:
    """Whether two points of the recipe agree on every axis that both have."""
    return all(value == cell.axes[name] for name, value in source.axes.items() if name in cell.axes)
