"""Builds the tasks and methods of a grid and assembles the trials. What is heavy is imported here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from harness.identity import Part, Requirement, Seeds, TrialSpec, code_digest
from harness.names import split_control
from harness.options import check
from harness.planning.axes import Taken
from harness.planning.cells import Cell, lay_out
from harness.planning.entries import Choice
from harness.planning.errors import Where, blame
from harness.planning.explaining import shown
from harness.planning.grid import Grid
from harness.planning.plan import TUNED, LeftOut, Plan, PlannedTrial
from harness.planning.tuning import SEEDS_FROM
from harness.registry import Registry
from harness.resources import Resources

if TYPE_CHECKING:
    from harness.method import Method
    from harness.recipe import Recipe
    from harness.task import Task

T = TypeVar("T")
Planned = dict[int, list[PlannedTrial]]
"""The trials of each cell by its number, in the order of the seeds."""


def assemble(grid: Grid, registry: Registry) -> Plan:
    """The plan of a grid, every task and method built and every recipe resolved.

    Raises:
        GridError: if a value is refused by the task or method that it goes to, two cells are the same trial, or no cell
            remains.
    """
    cells = lay_out(grid)
    assembler = Assembler(grid, registry)
    order = sorted(range(len(cells)), key=lambda number: cells[number].stage)
    reasons = assembler.reasons(cells, order)
    if len(reasons) == len(cells):
        raise grid.where().at("methods").error(f"found no cell that can run: {reasons[0]}")
    planned: Planned = {}
    for number in order:
        if number not in reasons:
            planned[number] = assembler.trials(cells[number], planned)
    _refuse_doubles(cells, planned)
    left_out = [LeftOut(cells[n].task.label, cells[n].method.label, reasons[n]) for n in sorted(reasons)]
    return Plan(
        name=grid.name,
        file=grid.file,
        tasks=[task.label for task in grid.tasks],
        methods=[method.label for method in grid.methods],
        trials=[trial for number in sorted(planned) for trial in planned[number]],
        metrics={choice.name: assembler.tasks[choice.label].metric for choice in grid.tasks},
        solved={label: bar for label, built in assembler.tasks.items() if (bar := built.task.solved) is not None},
        left_out=list(dict.fromkeys(left_out)),
        notes=assembler.notes,
        grid_text=grid.text,
        claims=grid.claims,
        screening=grid.screening,
    )


@contextmanager
def _authors_code(places: Mapping[str, Where], otherwise: Where) -> Iterator[None]:
    """Turns whatever an author's code raises over a value into an error at the place that gave the value."""
    try:
        yield
    except Exception as error:
        raise blame(error, places, otherwise) from error


@dataclass(frozen=True)
class BuiltTask:
    """A task, its default recipe and data, and the probes that it can carry."""

    task: Task
    recipe: Recipe
    data: str
    probes: list[Part]

    @property
    def metric(self) -> list[str]:
        """The metric that it is scored by, and its direction."""
        return [self.task.metric, self.task.direction]


class Assembler:
    """Makes trials of cells: every task and method is built once, by label."""

    def __init__(self, grid: Grid, registry: Registry) -> None:
        self.grid, self.registry = grid, registry
        self.notes: list[str] = []
        self.methods: dict[str, list[Method]] = {
            m.label: _make(m, partial(_build_method, registry)) for m in grid.methods
        }
        for label, members in self.methods.items():
            self.notes += [f"{label}: {note}" for method in members for note in method.notes()]
        self._needs = {choice.name: _make(choice, registry.build_probe)[0].needs for choice in grid.probes}
        self.tasks = {choice.label: self._build_task(choice) for choice in grid.tasks}
        self._codes: dict[tuple[str, ...], str] = {}

    def _build_task(self, choice: Choice) -> BuiltTask:
        (task,) = _make(choice, self.registry.build_task)
        probes = []
        for probe in self.grid.probes:
            if missing := sorted(self._needs[probe.name] - task.offers):
                self.notes.append(
                    f"probe {probe.name} is left out of {choice.label}: it needs {', '.join(missing)}, "
                    "which the task does not offer"
                )
            else:
                probes += probe.parts
        with _authors_code(choice.places[0], choice.where):
            return BuiltTask(task, task.recipe(), task.data_digest(), probes)

    def reasons(self, cells: Sequence[Cell], order: Sequence[int]) -> dict[int, str]:
        """Why cells cannot run, by number; `order` has those that give values before those that take them."""
        from harness.composition import objection

        found: dict[tuple[str, str], str | None] = {}
        reasons = {}
        for number in order:
            cell = cells[number]
            pair = cell.task.label, cell.method.label
            if pair not in found:
                found[pair] = objection(self.tasks[pair[0]].task, self.methods[pair[1]])
            gone = [source for source in cell.sources if source in reasons]
            if reason := self.grid.left_out_because(cell.task, cell.method) or found[pair]:
                reasons[number] = reason
            elif gone:
                reasons[number] = f"takes a value from {cells[gone[0]].label}, which is left out: {reasons[gone[0]]}"
        return reasons

    def trials(self, cell: Cell, planned: Planned) -> list[PlannedTrial]:
        """The trials of a cell, one for each seed; those that it takes values from are in `planned`."""
        content = self._content(cell)
        resources, _ = self.grid.resources(cell.task, cell.method)
        shared: dict[str, Any] = {
            "code": self._code(content),
            "cell": cell.label,
            "tuning": cell.tuning,
            "task_label": cell.task.label,
            "method_label": cell.method.label,
            "axes": cell.axes,
            "stage": cell.stage,
            "resources": resources,
            "origins": self._origins(cell, content.recipe),
        }
        trials, of_seed = [], Seeds(content)
        seeds = self.grid.seeds if cell.tuning is None else self._tuning_seeds()
        tuned_by = [
            Requirement(TUNED, trial.hash, self.tasks[cell.task.label].task.metric)
            for number in cell.tuned_by
            for trial in planned[number]
        ]
        for index, seed in enumerate(seeds):
            requires = [
                Requirement(path, planned[t.cell][(index + t.ahead) % len(seeds)].hash, t.taken)
                for path, t in cell.takes.items()
            ]
            spec, hash = of_seed.trial(seed, requires + tuned_by)
            trials.append(PlannedTrial(spec=spec, hash=hash, **shared))
        return trials

    def _tuned_fields(self, cell: Cell) -> list[str]:
        """The fields that tuning decides, as `explain` names them."""
        if self.grid.tuning is None:
            return []
        return [shown(path, cell.method.parts) for path in self.grid.tuning.applying(cell.task, cell.method)]

    def _tuning_seeds(self) -> list[dict[str, int]]:
        assert self.grid.tuning is not None
        return [dict.fromkeys(self.grid.seeds[0], SEEDS_FROM + n) for n in range(self.grid.tuning.seeds)]

    def _content(self, cell: Cell) -> TrialSpec:
        """What the trials of a cell share."""
        built = self.tasks[cell.task.label]
        resources, asked = self.grid.resources(cell.task, cell.method)
        recipe = self._recipe(cell, built)
        if reason := _unshareable(recipe, resources.ranks, cell.method.parts):
            raise Where(self.grid.file, asked["ranks"]).error(f"found {resources.ranks}, allowed: {reason}")
        if resources.ranks > 1 and resources.gpus % 1:
            raise Where(self.grid.file, asked["gpus"]).error(
                f"found {resources.gpus:g} for each of {resources.ranks} ranks, allowed: 0 or 1; NCCL takes a GPU for each"
            )
        return TrialSpec(
            task=cell.task.name,
            task_options=cell.task.options,
            task_version=built.task.version,
            methods=[Part(part.name, _blank(part.options)) for part in cell.method.parts],
            recipe=self._recipe_content(cell, recipe),
            seed={},
            probes=built.probes,
            threads=resources.threads,
            device=resources.device,
            data=built.data,
            stacked=self._stacked(cell, recipe, resources),
        )

    def _recipe(self, cell: Cell, built: BuiltTask) -> Recipe:
        """The cell's recipe; what is taken from another trial has its default until then."""
        given = {name: value for name, value in cell.recipe.values.items() if not isinstance(value, Taken)}
        with _authors_code({name: term.where for name, term in cell.terms.items()}, cell.task.where):
            recipe = replace(built.recipe, **given).resolve()
            built.task.check(recipe)
        return recipe

    def _recipe_content(self, cell: Cell, recipe: Recipe) -> dict[str, Any]:
        """Every field of a recipe as plain data."""
        schemas = self.registry.item("task", cell.task.name).recipe
        with _authors_code({name: term.where for name, term in cell.terms.items()}, cell.task.where):
            resolved = {name: check(getattr(recipe, name), schema, name) for name, schema in schemas.items()}
        return resolved | _blank({n: v for n, v in cell.recipe.values.items() if isinstance(v, Taken)})

    def _stacked(self, cell: Cell, recipe: Recipe, resources: Resources) -> bool:
        """Whether the seeds of a cell are trained together; a note says why not, where the grid asks for it."""
        if not self.grid.stacked or (cell.tuning is not None and len(self._tuning_seeds()) == 1):
            return False
        reason = self._unstackable(cell, recipe, resources)
        if reason:
            self.notes.append(f"{cell.label} is not stacked: {reason}")
        return not reason

    def _unstackable(self, cell: Cell, recipe: Recipe, resources: Resources) -> str:
        """Why the seeds of a cell cannot be trained together; empty if they can."""
        from harness.composition import unstackable

        if reason := self.tasks[cell.task.label].task.unstackable(recipe):
            return reason
        if reason := unstackable(self.methods[cell.method.label]):
            return reason
        if any(recipe.phase(step) == "lbfgs" for step in (0, *recipe.switches)):
            return "L-BFGS searches along a line for each seed by itself"
        if resources.gpus:
            return "on a GPU the bits of a seed would depend on the seeds beside it"
        if resources.threads > 1 or resources.ranks > 1:
            return f"it asks for {resources.threads * resources.ranks} CPUs, and a stack computes on one"
        if taken := [path for path in cell.takes if path != "start"]:
            return f"{shown(taken[0], cell.method.parts)} is taken from another trial, for each seed another value"
        return ""

    def _code(self, spec: TrialSpec) -> str:
        names = spec.task, spec.method, *(part.name for part in spec.probes)
        if names not in self._codes:
            self._codes[names] = code_digest(self.registry, spec)
        return self._codes[names]

    def _origins(self, cell: Cell, recipe: Mapping[str, Any]) -> dict[str, str]:
        """Where each value of a cell's trials came from; what is not named here is a default."""
        origin, default = self.grid.origin, self.tasks[cell.task.label].recipe
        places = {"task": cell.task.where, "method": cell.method.where}
        places |= {f"task.{name}": where for name, where in cell.task.places[0].items()}
        for choice, family in ((cell.method, "method"), *((probe, "probe") for probe in self.grid.probes)):
            for part, options in zip(choice.parts, choice.places, strict=True):
                places |= {f"{family}.{part.name}.{name}": where for name, where in options.items()}
        places |= {f"recipe.{name}": term.where for name, term in cell.terms.items()}
        origins = {
            f"recipe.{name}": "task default" if value == getattr(default, name) else "derived"
            for name, value in recipe.items()
        }
        origins |= {name: origin(where) for name, where in places.items()}
        origins |= dict.fromkeys(self._tuned_fields(cell), "tuning")
        origins |= {f"seed.{name}": "seeds" for name in self.grid.seeds[0]} | {"data": "task", "version": "task"}
        origins |= {"stacked": "stacked"} if self.grid.stacked else {}
        _, asked = self.grid.resources(cell.task, cell.method)
        return origins | {name: asked[f] for name, f in (("threads", "cpus"), ("device", "gpus")) if f in asked}


def _build_method(registry: Registry, name: str, options: dict[str, Any]) -> Method:
    from harness.controls import build_member

    return build_member(registry, name, options)


def _make(choice: Choice, build: Callable[[str, dict[str, Any]], T]) -> list[T]:
    """The members of a choice. An option that is taken from another trial has its default until then."""
    made = []
    for part, places in zip(choice.parts, choice.places, strict=True):
        with _authors_code(places, choice.where):
            made.append(build(part.name, {n: v for n, v in part.options.items() if not isinstance(v, Taken)}))
    return made


def _unshareable(recipe: Recipe, ranks: int, parts: Sequence[Part]) -> str:
    """What is allowed instead, where so many ranks cannot share a step or a round; empty if they can."""
    if clients := getattr(recipe, "clients_per_round", None):
        if ranks > 1 and any(split_control(part.name)[0] in ("delayed", "replay") for part in parts):
            return "1 for delayed and replay in a federated task: they follow what one client after another does"
        return f"at most the {clients} clients of a round" if ranks > clients else ""
    if recipe.batch % ranks:
        return f"a number that divides the {recipe.batch} samples of a batch"
    return ""


def _blank(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a trial's content holds them: what is taken from another trial is filled in when that has run."""
    return {name: None if isinstance(value, Taken) else value for name, value in values.items()}


def _refuse_doubles(cells: Sequence[Cell], planned: Planned) -> None:
    """Refuses two cells that are one trial: it would run once and count twice."""
    seen: dict[str, int] = {}
    for number, trials in planned.items():
        cell, other = cells[number], cells[seen.setdefault(trials[0].hash, number)]
        if other is not cell:
            place = f"{other.task.where.path} with {other.method.where.path}"
            raise cell.method.where.error(
                f"found {cell.label!r}, which is the same trial as {other.label!r} ({place}), allowed: each once"
            )
