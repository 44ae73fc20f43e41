"""The cells of a grid: every task with every method at every point of its recipe, and which cell takes what from which."""

from __future__ import annotations

import graphlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.identity import Part
from harness.names import SEEDS_AHEAD, split_control
from harness.planning.axes import Point, Selector, Terms, Tuned, expand, told
from harness.planning.entries import Choice
from harness.planning.errors import Where, listed
from harness.planning.grid import Grid
from harness.planning.schema import TRIALS, StartRule
from harness.recording.records import ACTIONS, CHECKPOINT, WEIGHTS

SEPARATOR = " · "


@dataclass(frozen=True)
class Take:
    """What the trials of a cell take from those of another one."""

    cell: int
    taken: str
    ahead: int = 0
    """How many seeds further on the other trial is, after the last one the first."""


@dataclass
class Cell:
    """One task, one method, one point of the recipe: what the seeds share."""

    task: Choice
    method: Choice
    recipe: Point
    terms: Terms
    tuning: int | None = None
    """Its number among the points that a method is tuned at; None for what the grid's seeds are run with."""
    tuned_by: list[int] = field(default_factory=list)
    """The cells that its tuned values are chosen from."""
    takes: dict[str, Take] = field(default_factory=dict)
    """By path in the trial's content."""
    stage: int = 0

    @property
    def label(self) -> str:
        """`digits/mlp · adamw · lr=0.001`."""
        tuning = [] if self.tuning is None else [f"tuning {self.tuning + 1}"]
        return SEPARATOR.join([self.task.label, self.method.label, *told(self.recipe.axes), *tuning])

    @property
    def sources(self) -> list[int]:
        """The cells that it takes something from."""
        return [*(take.cell for take in self.takes.values()), *self.tuned_by]

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
    terms = {(t.label, m.label): grid.recipe(t, m) for t in grid.tasks for m in grid.methods}
    recipes = {pair: expand(own, {}) for pair, own in terms.items()}
    each = len(grid.seeds) + (grid.tuning.trials * grid.tuning.seeds if grid.tuning else 0)
    trials = sum(len(recipes[t.label, m.label]) for t in grid.tasks for m in grid.methods) * each
    if trials > TRIALS:
        raise grid.where().error(f"found {trials:,} trials, allowed: {TRIALS:,}")
    cells: list[Cell] = []
    for task in grid.tasks:
        for method in grid.methods:
            for point in recipes[task.label, method.label]:
                cells += _tuned(Cell(task, method, point, terms[task.label, method.label]), grid, len(cells))
    _connect(cells, grid)
    return cells


def _tuned(cell: Cell, grid: Grid, number: int) -> list[Cell]:
    """The cells that a cell is tuned by, which are counted from `number`, and after them the cell itself."""
    if grid.tuning is None:
        return [cell]
    spaces = grid.tuning.applying(cell.task, cell.method)
    for path in spaces:
        name = path.rpartition(".")[2]
        if name in cell.recipe.axes or name in cell.method.axes:
            raise grid.tuning.where.at("over", name).error("found an axis of this grid, allowed: another field")
    if not spaces:
        return [cell]
    tried = [_at(cell, point, index) for index, point in enumerate(grid.tuning.points(spaces))]
    chosen = _at(cell, dict.fromkeys(spaces, Tuned()), None)
    chosen.tuned_by = list(range(number, number + len(tried)))
    return [*tried, chosen]


def _at(cell: Cell, point: dict[str, Any], tuning: int | None) -> Cell:
    """A cell at a point of the spaces that it is tuned over."""
    own = {path.removeprefix("recipe."): value for path, value in point.items() if path.startswith("recipe.")}
    parts = list(cell.method.parts)
    for path, value in point.items():
        match path.split("."):
            case ["methods", index, option]:
                part = parts[int(index)]
                parts[int(index)] = Part(part.name, part.options | {option: value})
    return replace(
        cell,
        method=replace(cell.method, parts=parts),
        recipe=Point(cell.recipe.values | own, cell.recipe.axes),
        tuning=tuning,
    )


def _connect(cells: Sequence[Cell], grid: Grid) -> None:
    """Finds the cells that each one takes something from, and the stage of each."""
    homes = Homes(cells)
    sorter: graphlib.TopologicalSorter[int] = graphlib.TopologicalSorter()
    for number, cell in enumerate(cells):
        cell.takes = _values(cell, grid, homes) | _actions(cell, grid, homes) | _start(number, cell, grid, homes)
        sorter.add(number, *cell.sources)
    try:
        for number in sorter.static_order():
            cells[number].stage = max((cells[source].stage + 1 for source in cells[number].sources), default=0)
    except graphlib.CycleError as error:
        circle = [cells[number] for number in error.args[1]]
        where = next((where.at("from") for _, where in circle[0].selectors().values()), circle[0].method.where)
        names = " → ".join(cell.method.label for cell in circle)
        raise where.error(f"found a circle ({names}), allowed: a method that does not take from this one") from None


class Homes:
    """The cells of a grid by the labels of task and method."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = cells
        self._numbers: dict[tuple[str, str, int | None], list[int]] = {}
        for number, cell in enumerate(cells):
            self._numbers.setdefault((cell.task.label, cell.method.label, cell.tuning), []).append(number)

    def find(self, task: str, method: str, cell: Cell, where: Where) -> int:
        """The cell of a task and a method that has the same axes as `cell`, and the same number in tuning.

        Raises:
            GridError: if there is none, or several.
        """
        rivals = [
            n
            for n in self._numbers.get((task, method, cell.tuning), ())
            if _same_axes(self.cells[n].recipe, cell.recipe)
        ]
        if len(rivals) != 1:
            raise where.error(f"found {len(rivals)} cells of {method!r} on {task}, allowed: one with the same axes")
        return rivals[0]


def _values(cell: Cell, grid: Grid, homes: Homes) -> dict[str, Take]:
    """The metrics that selectors take."""
    takes = {}
    for path, (selector, where) in cell.selectors().items():
        source = _source(selector.method, where, grid.methods)
        takes[path] = Take(homes.find(cell.task.label, source.label, cell, where.at("from")), selector.metric)
    return takes


def _actions(cell: Cell, grid: Grid, homes: Homes) -> dict[str, Take]:
    """The actions that controls take."""
    takes = {}
    for index, part in enumerate(cell.method.parts):
        control, _ = split_control(part.name)
        if control in SEEDS_AHEAD:
            source = _controlled(cell.method, index, grid.methods)
            home = homes.find(cell.task.label, source.label, cell, cell.method.where)
            takes[f"methods.{index}"] = Take(home, ACTIONS, SEEDS_AHEAD[control])
    return takes


def _start(number: int, cell: Cell, grid: Grid, homes: Homes) -> dict[str, Take]:
    """The checkpoint or the weights that a cell starts from; what it starts from itself starts from the beginning."""
    rules = [(rule, where) for rule, where in grid.starts if _applies(rule, cell)]
    if not rules:
        return {}
    rule, where = rules[-1]
    source = _source(rule.source, where, grid.methods)
    if rule.of is None:
        home = homes.find(cell.task.label, source.label, cell, where.at("from"))
        return {} if home == number else {"start": Take(home, f"{CHECKPOINT}{rule.at:g}")}
    labels = [task.label for task in grid.tasks if rule.of in (task.label, task.name)]
    if len(labels) > 1:
        raise where.at("of").error(f"found {rule.of!r}, which is {len(labels)} tasks, allowed: one of {listed(labels)}")
    if cell.task.label == labels[0]:
        return {}
    return {"start": Take(homes.find(labels[0], source.label, cell, where.at("from")), WEIGHTS)}


def _applies(rule: StartRule, cell: Cell) -> bool:
    return cell.task.matches(rule.task) and cell.method.matches(rule.method)


def _controlled(control: Choice, index: int, methods: Sequence[Choice]) -> Choice:
    """The method of this grid that a control needs a run of: the same with the member `index` itself.

    Raises:
        GridError: if the grid has none with the same options.
    """
    _, inner = split_control(control.parts[index].name)
    parts = [Part(inner, part.options) if i == index else part for i, part in enumerate(control.parts)]
    for method in methods:
        if method.parts == parts:
            return method
    name = " + ".join(part.name for part in parts)
    raise control.where.error(
        f"found {control.name!r}, which needs runs of {name!r} with the same options, allowed: beside it in methods"
    )


def _source(name: str, where: Where, methods: Sequence[Choice]) -> Choice:
    """The method of this grid that another one takes from, by label or by name."""
    labels = {method.label: method for method in methods}
    named = [method for method in methods if name in (method.label, method.name)]
    if name in labels:
        return labels[name]
    if len(named) == 1:
        return named[0]
    if named:
        found = f"found {name!r}, which is {len(named)} methods of this grid"
        raise where.at("from").error(f"{found}, allowed: one of {listed(method.label for method in named)}")
    raise where.at("from").unknown(name, "method of this grid", labels)


def _same_axes(source: Point, cell: Point) -> bool:
    """Whether two points of the recipe agree on every axis that both have."""
    return all(value == cell.axes[name] for name, value in source.axes.items() if name in cell.axes)
