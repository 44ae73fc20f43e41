"""Builds the tasks and methods of a grid and assembles the trials. What is heavy is imported here and nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from harness.identity import Part, Requirement, TrialSpec, code_digest
from harness.options import check
from harness.planning.axes import Selector
from harness.planning.cells import Cell, lay_out
from harness.planning.entries import Choice
from harness.planning.errors import Where, blame
from harness.planning.grid import Grid
from harness.planning.plan import LeftOut, Note, Plan, PlannedTrial, shown
from harness.registry import Registry

if TYPE_CHECKING:
    from harness.method import Method
    from harness.recipe import Recipe
    from harness.task import Task

T = TypeVar("T")


@dataclass(frozen=True)
class BuiltTask:
    """A task, its default recipe and data, and the probes that it can carry."""

    task: Task
    recipe: Recipe
    data: str
    probes: list[Part]


@dataclass
class Built:
    """What the cells are assembled from, by label."""

    tasks: dict[str, BuiltTask]
    methods: dict[str, list[Method]]
    notes: list[Note]
    codes: dict[tuple[str, ...], str] = field(default_factory=dict)


def assemble(grid: Grid, registry: Registry) -> Plan:
    """The plan of a grid, every task and method built and every recipe resolved.

    Raises:
        GridError: if a value is refused by the task or method that it goes to, two cells are the same trial, or no cell
            remains.
    """
    cells = lay_out(grid)
    built = _build(grid, registry)
    order = sorted(range(len(cells)), key=lambda number: cells[number].stage)
    reasons = _reasons(cells, order, built)
    if len(reasons) == len(cells):
        raise grid.where().at("methods").error(f"found no cell that can run: {reasons[0]}")
    planned: dict[int, list[PlannedTrial]] = {}
    for number in order:
        if number not in reasons:
            planned[number] = _plan(cells[number], planned, built, grid, registry)
    _refuse_doubles(cells, planned)
    left_out = [LeftOut(cells[n].task.label, cells[n].method.label, reasons[n]) for n in sorted(reasons)]
    return Plan(
        name=grid.name,
        file=grid.file,
        tasks=[task.label for task in grid.tasks],
        methods=[method.label for method in grid.methods],
        trials=[trial for number in sorted(planned) for trial in planned[number]],
        left_out=list(dict.fromkeys(left_out)),
        notes=built.notes,
    )


@contextmanager
def _authors_code(places: Mapping[str, Where], otherwise: Where) -> Iterator[None]:
    """Turns whatever an author's code raises over a value into an error at the place that gave the value."""
    try:
        yield
    except Exception as error:
        raise blame(error, places, otherwise) from error


def _build(grid: Grid, registry: Registry) -> Built:
    probes = {choice.name: (choice.parts[0], _make(choice, registry.build_probe)[0].needs) for choice in grid.probes}
    built = Built({}, {choice.label: _make(choice, registry.build_method) for choice in grid.methods}, [])
    for choice in grid.tasks:
        (task,) = _make(choice, registry.build_task)
        with _authors_code(choice.places[0], choice.where):
            recipe, data = task.recipe(), task.data_digest()
        missing = {name: sorted(needs - task.offers) for name, (_, needs) in probes.items()}
        parts = [part for name, (part, _) in probes.items() if not missing[name]]
        built.tasks[choice.label] = BuiltTask(task, recipe, data, parts)
        built.notes += [
            Note(choice.label, name, f"{name} needs {', '.join(needs)}, which the task does not offer")
            for name, needs in missing.items()
            if needs
        ]
    return built


def _make(choice: Choice, build: Callable[[str, dict[str, Any]], T]) -> list[T]:
    """The members of a choice. An option that is taken from another trial has its default until then."""
    made = []
    for part, places in zip(choice.parts, choice.places, strict=True):
        with _authors_code(places, choice.where):
            made.append(build(part.name, {n: v for n, v in part.options.items() if not isinstance(v, Selector)}))
    return made


def _reasons(cells: Sequence[Cell], order: Sequence[int], built: Built) -> dict[int, str]:
    """Why cells cannot run, by number."""
    from harness.composition import objection

    found: dict[tuple[str, str], str | None] = {}
    reasons = {}
    for number in order:
        cell = cells[number]
        pair = cell.task.label, cell.method.label
        if pair not in found:
            found[pair] = objection(built.tasks[pair[0]].task, built.methods[pair[1]])
        gone = [source for source, _ in cell.takes.values() if source in reasons]
        if reason := found[pair]:
            reasons[number] = reason
        elif gone:
            reasons[number] = f"takes a value from {cells[gone[0]].label}, which is left out: {reasons[gone[0]]}"
    return reasons


def _plan(
    cell: Cell, planned: Mapping[int, list[PlannedTrial]], built: Built, grid: Grid, registry: Registry
) -> list[PlannedTrial]:
    """The trials of a cell, one for each seed."""
    task = built.tasks[cell.task.label]
    resources, asked = grid.resources(cell.task.name, cell.method.name)
    recipe = _recipe(cell, task, registry)
    shared = TrialSpec(
        task=cell.task.name,
        task_options=cell.task.options,
        task_version=task.task.version,
        methods=[Part(part.name, _blank(part.options)) for part in cell.method.parts],
        recipe=recipe,
        seed={},
        probes=task.probes,
        threads=resources.threads,
        device=resources.device,
        data=task.data,
    )
    names = (shared.task, *(part.name for part in shared.methods), "", *(part.name for part in shared.probes))
    if names not in built.codes:
        built.codes[names] = code_digest(registry, shared)
    origins = _origins(cell, task, recipe, grid) | {
        name: origin
        for name, field in (("threads", "cpus"), ("device", "gpus"))
        if (origin := asked.get(field)) is not None
    }
    axes = _axes(cell)
    trials = []
    for index, seed in enumerate(grid.seeds):
        requires = [
            Requirement(path, planned[source][index].hash, metric) for path, (source, metric) in cell.takes.items()
        ]
        spec = dataclasses.replace(shared, seed=seed, requires=requires)
        trials.append(
            PlannedTrial(
                spec=spec,
                hash=spec.hash,
                code=built.codes[names],
                cell=cell.label,
                task_label=cell.task.label,
                method_label=cell.method.label,
                axes=axes,
                stage=cell.stage,
                resources=resources,
                origins=origins,
            )
        )
    return trials


def _blank(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a trial's content holds them: what is taken from another trial is filled in when that has run."""
    return {name: None if isinstance(value, Selector) else value for name, value in values.items()}


def _recipe(cell: Cell, built: BuiltTask, registry: Registry) -> dict[str, Any]:
    """Every field of the cell's recipe as plain data."""
    taken = _blank(cell.recipe.values)
    with _authors_code({name: term.where for name, term in cell.terms.items()}, cell.task.where):
        given = {name: value for name, value in taken.items() if not isinstance(cell.recipe.values[name], Selector)}
        recipe = dataclasses.asdict(dataclasses.replace(built.recipe, **given).resolve())
        schemas = registry.item("task", cell.task.name).recipe
        resolved = {name: check(value, schemas[name], name) for name, value in recipe.items()}
    return resolved | {name: None for name in taken if name not in given}


def _origins(cell: Cell, built: BuiltTask, recipe: Mapping[str, Any], grid: Grid) -> dict[str, str]:
    """Where each value of a cell's trials came from; what is not named here is a default."""
    origins = {"task": grid.origin(cell.task.where), "method": grid.origin(cell.method.where)}
    origins |= {f"task.{name}": grid.origin(where) for name, where in cell.task.places[0].items()}
    for part, places in zip(cell.method.parts, cell.method.places, strict=True):
        origins |= {f"method.{part.name}.{name}": grid.origin(where) for name, where in places.items()}
    for name, value in recipe.items():
        derived = value != getattr(built.recipe, name)
        origins[f"recipe.{name}"] = "derived" if derived else "task default"
    origins |= {f"recipe.{name}": grid.origin(term.where) for name, term in cell.terms.items()}
    origins |= {f"seed.{name}": "seeds" for name in grid.seeds[0]}
    for probe in grid.probes:
        origins |= {f"probe.{probe.name}.{name}": grid.origin(where) for name, where in probe.places[0].items()}
    return origins | {"data": "the task's data", "version": "task"}


def _axes(cell: Cell) -> dict[str, Any]:
    parts = (("task", cell.task.axes), ("method", cell.method.axes), ("recipe", cell.recipe.axes))
    return {f"{family}.{name}": value for family, axes in parts for name, value in axes.items()}


def _refuse_doubles(cells: Sequence[Cell], planned: Mapping[int, Sequence[PlannedTrial]]) -> None:
    """Refuses two cells that are one trial: it would run once and count twice."""
    seen: dict[str, int] = {}
    for number, trials in planned.items():
        for trial in trials:
            other = cells[seen.setdefault(trial.hash, number)]
            if other is not cells[number]:
                cell = cells[number]
                written = f"{other.task.where.path} with {other.method.where.path}"
                raise cell.method.where.error(
                    f"found {cell.label!r}, which is the same trial as {other.label!r} ({written}), allowed: each once"
                )
