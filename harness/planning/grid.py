"""The grid: a file read, checked against the registry, and every axis of it laid out. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.options import Schema, nearest
from harness.planning.axes import Terms, parse_terms
from harness.planning.claims import Claims, check_claims
from harness.planning.entries import Choice, Entry, method_choices, probe_choices, task_choices
from harness.planning.errors import Where, listed
from harness.planning.reading import Draft, read_draft
from harness.planning.schema import TRIALS, GridFile, LeaveOutRule, RecipeRule, ResourceRule, StartRule, validate
from harness.planning.screening import check_screening
from harness.planning.tuning import Tuning, check_tuning
from harness.registry import Registry
from harness.resources import Resources
from harness.screening import Screening
from harness.seeds import NAMES


@dataclass(frozen=True)
class Rule:
    """An entry of `recipes`: its terms by the label of each task that it applies to."""

    method: str
    terms: dict[str, Terms]


@dataclass(frozen=True)
class Grid:
    """A grid that has been read and checked."""

    file: str
    name: str
    text: str
    """What was written, with what it extends and what the command line overrides: YAML again."""
    digest: str
    """Of all that the plan depends on in these files."""
    tasks: list[Choice]
    methods: list[Choice]
    """The baseline first."""
    seeds: list[dict[str, int]]
    left_out: list[LeaveOutRule]
    """The cells that it does without."""
    rules: list[Rule]
    probes: list[Choice]
    requests: list[tuple[ResourceRule, str]]
    """The entries of `resources`, each with its path."""
    starts: list[tuple[StartRule, Where]]
    """Where trials start: the last word wins."""
    stacked: bool
    """Whether seeds of a cell are trained together, where they can."""
    tuning: Tuning | None
    screening: Screening | None
    claims: Claims

    def where(self) -> Where:
        """The file as a whole."""
        return Where(self.file)

    def origin(self, where: Where) -> str:
        """Where a value came from, as `--explain` says it."""
        if where.file == self.file:
            return where.path
        return "--set" if where.file == "--set" else f"{where.path} in {where.file}"

    def recipe(self, task: Choice, method: Choice) -> Terms:
        """What the entries of `recipes` say for a task and a method: the last word wins."""
        terms: Terms = {}
        for rule in self.rules:
            if task.label in rule.terms and method.matches(rule.method):
                terms |= rule.terms[task.label]
        return terms

    def left_out_because(self, task: Choice, method: Choice) -> str | None:
        """Why the grid does without a task's cells of a method, if it does."""
        matching = (r for r in self.left_out if task.matches(r.task) and method.matches(r.method))
        return next((rule.because for rule in matching), None)

    def resources(self, task: Choice, method: Choice) -> tuple[Resources, dict[str, str]]:
        """What a cell asks for, and where that was written, by field: the last word wins."""
        asked = Resources()
        origins: dict[str, str] = {}
        for rule, path in self.requests:
            if task.matches(rule.task) and method.matches(rule.method):
                named = rule.model_dump(include=rule.model_fields_set - {"task", "method"})
                given = {
                    name: value for name, value in named.items() if value is not None or name in ("memory", "time")
                }
                asked = replace(asked, **given)
                origins |= {name: f"{path}.{name}" for name in given}
        return asked, origins


def load_grid(file: Path, overrides: Sequence[str], registry: Registry) -> Grid:
    """Reads and checks a grid.

    Args:
        file: the YAML file.
        overrides: `a.b=c`, applied in order; `recipe.FIELD=V` is the last word over all recipes.
        registry: the tasks, methods and probes that it may name.

    Raises:
        GridError: for the first thing that is wrong, with file, field, what was found and what is allowed.
    """
    return check_grid(read_draft(file, overrides), registry)


def check_grid(draft: Draft, registry: Registry) -> Grid:
    """The grid of a draft, checked: for a grid that is not in a file.

    Raises:
        GridError: as `load_grid`.
    """
    parsed = validate(draft)

    def entries(kind: str, written: list[Any]) -> list[Entry]:
        return [Entry.of(entry, draft.where([kind, index])) for index, entry in enumerate(written)]

    tasks = task_choices(entries("tasks", parsed.tasks), registry)
    methods = method_choices(entries("methods", parsed.methods), registry)
    seeds = _seeds(parsed.seeds, draft.where(["seeds"]))
    return Grid(
        file=draft.file,
        name=parsed.name,
        text=draft.text(),
        digest=hashlib.sha256(repr(draft).encode()).hexdigest()[:16],
        tasks=tasks,
        methods=methods,
        seeds=seeds,
        left_out=_left_out(parsed, draft, tasks, methods),
        rules=[
            _rule(rule, draft.where(["recipes", i]), tasks, methods, registry) for i, rule in enumerate(parsed.recipes)
        ],
        probes=probe_choices(entries("probes", parsed.probes), registry),
        requests=_requests(parsed, draft, tasks, methods),
        starts=_starts(parsed, draft, tasks, methods),
        stacked=parsed.stacked,
        tuning=check_tuning(parsed.tuning, draft.where(["tuning"]), tasks, methods, seeds, registry),
        screening=check_screening(parsed.screening, draft.where(["screening"]), tasks, registry),
        claims=check_claims(parsed, draft, tasks, methods, registry, _most(seeds)),
    )


def _seeds(written: int | list[int] | dict[str, int], where: Where) -> list[dict[str, int]]:
    """The seeds of a cell, each a mapping of streams; streams that are not named follow `init`."""
    if isinstance(written, int):
        return [{"init": seed} for seed in range(written)]
    if isinstance(written, list):
        if repeated := [seed for seed, times in Counter(written).items() if times > 1]:
            raise where.found(repeated[0], "each seed once")
        return [{"init": seed} for seed in written]
    for stream in written:
        if stream not in NAMES:
            raise where.at(stream).unknown(stream, "random stream", NAMES)
    counts = {"init": 1} | written
    if math.prod(counts.values()) > TRIALS:
        raise where.found(written, f"{TRIALS:,} combinations")
    ranges = [range(count) for count in counts.values()]
    return [dict(zip(counts, seeds, strict=True)) for seeds in itertools.product(*ranges)]


def _most(seeds: list[dict[str, int]]) -> int:
    """How many values the stream has that varies most."""
    return max(len({seed[stream] for seed in seeds}) for stream in seeds[0])


def _left_out(parsed: GridFile, draft: Draft, tasks: list[Choice], methods: list[Choice]) -> list[LeaveOutRule]:
    for index, rule in enumerate(parsed.leave_out):
        for kind, choices in (("task", tasks), ("method", methods)):
            pattern = getattr(rule, kind)
            if not any(choice.matches(pattern) for choice in choices):
                known = list(dict.fromkeys(choice.label for choice in choices))
                raise draft.where(["leave_out", index]).at(kind).unknown(pattern, f"{kind} of this grid", known)
    return parsed.leave_out


def _starts(
    parsed: GridFile, draft: Draft, tasks: list[Choice], methods: list[Choice]
) -> list[tuple[StartRule, Where]]:
    rules = parsed.start if isinstance(parsed.start, list) else [parsed.start]
    starts = []
    for index, rule in enumerate(rules):
        where = draft.where(["start", index] if isinstance(parsed.start, list) else ["start"])
        _match(rule, where, tasks, methods)
        known = [name for task in tasks for name in (task.label, task.name)]
        if rule.of is not None and rule.of not in known:
            raise where.at("of").unknown(rule.of, "task of this grid", [task.label for task in tasks])
        starts.append((rule, where))
    return starts


def _match(
    rule: RecipeRule | ResourceRule | StartRule, where: Where, tasks: list[Choice], methods: list[Choice]
) -> list[Choice]:
    """The tasks that a rule applies to.

    Raises:
        GridError: if one of its globs matches nothing.
    """
    found = {}
    for kind, choices in (("task", tasks), ("method", methods)):
        pattern = getattr(rule, kind)
        found[kind] = [choice for choice in choices if choice.matches(pattern)]
        if not found[kind]:
            names = list(dict.fromkeys(name for choice in choices for name in (choice.name, choice.label)))
            raise where.at(kind).error(
                f"found {pattern!r}, which matches no {kind} of this grid, allowed: {listed(names)}{nearest(pattern, names)}"
            )
    return found["task"]


def _rule(rule: RecipeRule, where: Where, tasks: list[Choice], methods: list[Choice], registry: Registry) -> Rule:
    matched = _match(rule, where, tasks, methods)
    schemas = {task.name: registry.item("task", task.name).recipe for task in matched}
    place = where if where.path == "recipe" else where.at("set")
    for name, path in _fields(rule.set, place):
        if not any(name in schema for schema in schemas.values()):
            known = sorted(set().union(*schemas.values()))
            raise path.unknown(name, f"field of the recipe of {listed(schemas)}", known)
    terms = {
        task: parse_terms(_applicable(rule.set, schema), schema, f"the recipe of {task}", place)
        for task, schema in schemas.items()
    }
    return Rule(rule.method, {task.label: terms[task.name] for task in matched})


def _fields(content: dict[str, Any], where: Where) -> Iterable[tuple[str, Where]]:
    """The recipe fields that a rule sets, those of its zip included."""
    for name, value in content.items():
        if name != "zip":
            yield str(name), where.at(str(name))
        elif isinstance(value, dict):
            yield from ((str(zipped), where.at("zip", str(zipped))) for zipped in value)


def _applicable(content: dict[str, Any], schema: dict[str, Schema]) -> dict[str, Any]:
    """The part of a rule that a task's recipe has fields for: a zip applies if one of its fields does."""
    zipped = content.get("zip")
    own = {name: value for name, value in content.items() if name in schema}
    if "zip" in content and (not isinstance(zipped, dict) or not zipped or any(name in schema for name in zipped)):
        own["zip"] = zipped
    return own


def _requests(
    parsed: GridFile, draft: Draft, tasks: list[Choice], methods: list[Choice]
) -> list[tuple[ResourceRule, str]]:
    rules = parsed.resources if isinstance(parsed.resources, list) else [parsed.resources]
    requests = []
    for index, rule in enumerate(rules):
        where = draft.where(["resources", index] if isinstance(parsed.resources, list) else ["resources"])
        _match(rule, where, tasks, methods)
        requests.append((rule, where.path))
    return requests
