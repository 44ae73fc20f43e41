"""Fair tuning: the same number of points of the same declared spaces for every method of a task.

tuning: {trials: 8, over: {weight_decay: {loguniform: [1e-4, 1e-1]}, balanced_adam.beta: {choice: [0.9, 0.95]}}}

The points are planned (a scrambled Sobol sequence), run under seeds of their own, and the one with the best validation
metric is what the grid's seeds are then run with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.options import Schema
from harness.planning.entries import Choice
from harness.planning.errors import Where
from harness.registry import Registry

SEEDS_FROM = 1_000_000
"""Seeds of tuning trials start here: the grid's seeds are fresh."""

FORMS = "{uniform: [LOW, HIGH]}, {loguniform: [LOW, HIGH]} or {choice: [A, B, ...]}"


@dataclass(frozen=True)
class Space:
    """Where the values of one field come from."""

    kind: str
    values: tuple[Any, ...]
    whole: bool

    def at(self, place: float) -> Any:
        """The value at a place in [0, 1).

        >>> Space("loguniform", (1e-4, 1e-2), False).at(0.5)
        0.001
        """
        if self.kind == "choice":
            return self.values[int(place * len(self.values))]
        low, high = self.values
        if self.whole:
            high += 1
        if self.kind == "loguniform":
            value = math.exp(math.log(low) + place * (math.log(high) - math.log(low)))
        else:
            value = low + place * (high - low)
        return min(int(value), int(high) - 1) if self.whole else float(f"{value:.6g}")


@dataclass(frozen=True)
class Tuning:
    """How the methods of a grid are tuned."""

    trials: int
    seeds: int
    spaces: dict[str, Space]
    """By `FIELD` of the recipe or `METHOD.OPTION`."""
    recipes: dict[str, list[str]]
    """The recipe fields of each task, by its name."""
    where: Where

    def applying(self, task: Choice, method: Choice) -> dict[str, Space]:
        """The spaces that a cell has fields for, by `recipe.FIELD` or `methods.INDEX.OPTION`."""
        recipe = self.recipes[task.name]
        found = {f"recipe.{name}": space for name, space in self.spaces.items() if name in recipe}
        for index, part in enumerate(method.parts):
            for name, space in self.spaces.items():
                member, _, option = name.rpartition(".")
                if member == part.name and option in part.options:
                    found[f"methods.{index}.{option}"] = space
        return found

    def points(self, spaces: Mapping[str, Space]) -> list[dict[str, Any]]:
        """The points of some of the spaces. What two methods have in common has the same values in both."""
        from scipy.stats import qmc

        sequence = qmc.Sobol(len(self.spaces), scramble=True, rng=0)
        places = sequence.random_base2(max(0, math.ceil(math.log2(self.trials))))[: self.trials]
        columns = self._columns(spaces)
        return [{path: space.at(float(row[columns[path]])) for path, space in spaces.items()} for row in places]

    def _columns(self, paths: Iterable[str]) -> dict[str, int]:
        """The dimension of the sequence that each path follows: one for each name, and another where one cell has it twice."""
        known: dict[str, list[int]] = {}
        for column, name in enumerate(self.spaces):
            known.setdefault(name.rpartition(".")[2], []).append(column)
        columns = {path: known[path.rpartition(".")[2]] for path in paths}
        return {path: left.pop() if len(left) > 1 else left[0] for path, left in columns.items()}


def check_tuning(
    content: Any,
    where: Where,
    tasks: list[Choice],
    methods: list[Choice],
    seeds: list[dict[str, int]],
    registry: Registry,
) -> Tuning | None:
    """The tuning of a grid.

    Raises:
        GridError: for a field that no task or method has, or a space that does not fit it.
    """
    if content is None:
        return None
    if max(seed["init"] for seed in seeds) >= SEEDS_FROM:
        raise where.error(
            f"found a seed of the grid from {SEEDS_FROM:,} on, allowed: lower ones; tuning runs under those"
        )
    known = _schemas(tasks, methods, registry)
    spaces = {}
    for name, written in content.over.items():
        place = where.at("over", name)
        if name not in known:
            raise place.unknown(name, "field of a recipe or METHOD.OPTION of this grid", known)
        if name in ("steps", "rounds"):
            raise place.error("found the budget, allowed: other fields; every point gets the same budget")
        spaces[name] = _space(written, known[name], place)
    recipes = {task.name: list(registry.item("task", task.name).recipe) for task in tasks}
    return Tuning(content.trials, content.seeds, spaces, recipes, where)


def _schemas(tasks: list[Choice], methods: list[Choice], registry: Registry) -> dict[str, Schema]:
    known: dict[str, Schema] = {}
    for task in tasks:
        known |= registry.item("task", task.name).recipe
    for part in (part for method in methods for part in method.parts):
        options = registry.item("method", part.name).options
        known |= {f"{part.name}.{option}": schema for option, schema in options.items()}
    return known


def _space(written: Any, schema: Schema, where: Where) -> Space:
    if (
        not isinstance(written, dict)
        or len(written) != 1
        or next(iter(written)) not in ("uniform", "loguniform", "choice")
    ):
        raise where.found(written, FORMS)
    ((kind, values),) = written.items()
    place = where.at(kind)
    if not isinstance(values, list) or len(values) < 2:
        raise place.found(values, "a list of at least two values" if kind == "choice" else "[LOW, HIGH]")
    checked = tuple(place.at(index).check(value, schema) for index, value in enumerate(values))
    if kind == "choice":
        return Space(kind, checked, False)
    if schema["type"] not in ("int", "float"):
        raise where.found(kind, f"choice, for a field of the type {schema['type']}")
    if len(checked) != 2 or not checked[0] < checked[1] or (kind == "loguniform" and checked[0] <= 0):
        raise place.found(values, "[LOW, HIGH] with LOW < HIGH" + (" and LOW > 0" if kind == "loguniform" else ""))
    return Space(kind, checked, schema["type"] == "int")
