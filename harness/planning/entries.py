"""The entries of `tasks`, `methods` and `probes`: names and options, checked against the registry and laid out by axes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from harness.identity import Part
from harness.names import CONTROLS, split_control
from harness.options import Schema
from harness.planning.axes import Point, Selector, expand, label, parse_terms
from harness.planning.errors import Where
from harness.registry import Item, Kind, Registry, RegistryError


@dataclass(frozen=True)
class Entry:
    """One entry as it was written."""

    name: str
    options: Any
    where: Where

    @staticmethod
    def of(written: str | dict[str, Any], where: Where) -> Entry:
        """An entry from `name` or `name: {option: value}`."""
        if isinstance(written, str):
            return Entry(written, {}, where)
        ((name, options),) = written.items()
        return Entry(str(name), {} if options is None else options, where)

    def item(self, kind: Kind, registry: Registry) -> Item:
        """What the registry knows of the name.

        Raises:
            GridError: if it is unknown.
        """
        try:
            return registry.item(kind, self.name)
        except RegistryError as error:
            raise self.where.error(str(error)) from None


@dataclass(frozen=True)
class Choice:
    """A task, method or probe at one point of its axes, with all of its options."""

    name: str
    """Of a composition: `a + b`."""
    parts: list[Part]
    """The members of a composition; anything else has one part."""
    axes: dict[str, Any]
    places: list[dict[str, Where]]
    """For each part, where its options were written, as far as the grid sets them."""
    where: Where
    label: str

    @property
    def options(self) -> dict[str, Any]:
        """The options of a task or probe."""
        return self.parts[0].options

    def matches(self, glob: str) -> bool:
        """Whether a rule's glob means this one: by its name, or by its label where its options matter."""
        return fnmatchcase(self.name, glob) or fnmatchcase(self.label, glob)

    def written(self) -> dict[str, Any]:
        """The options that the grid sets; those of a composition as `member.option`."""
        alone = len(self.parts) == 1
        return {
            name if alone else f"{part.name}.{name}": part.options[name]
            for part, places in zip(self.parts, self.places, strict=True)
            for name in places
        }

    def selectors(self) -> dict[str, tuple[Selector, Where]]:
        """What is taken from other trials: by path in the trial's content, with the place that says so."""
        return {
            f"methods.{index}.{option}": (value, self.places[index][option])
            for index, part in enumerate(self.parts)
            for option, value in part.options.items()
            if isinstance(value, Selector)
        }


def task_choices(entries: Iterable[Entry], registry: Registry) -> list[Choice]:
    """All tasks of a grid.

    Raises:
        GridError: for an unknown name or option, a value that does not fit, or an entry written twice.
    """
    choices = [choice for entry in entries for choice in _choices([entry], "task", registry, entry)]
    for choice in choices:
        for _, where in choice.selectors().values():
            raise where.error("found a metric of another trial, allowed: in methods and recipes only")
    return _label(choices)


def method_choices(entries: Iterable[Entry], registry: Registry) -> list[Choice]:
    """All methods of a grid, the baseline first.

    Raises:
        GridError: as for tasks, and for a composition with an unknown member.
    """
    choices = [c for entry in entries for c in _choices(_members(entry, registry), "method", registry, entry)]
    return _label(choices)


def probe_choices(entries: Iterable[Entry], registry: Registry) -> list[Choice]:
    """All probes of a grid, by name: their order changes nothing.

    Raises:
        GridError: as for tasks, and for a probe with axes or named twice.
    """
    choices: dict[str, Choice] = {}
    for entry in entries:
        for choice in _choices([entry], "probe", registry, entry):
            if choice.axes or choice.selectors():
                raise entry.where.found(entry.options, "plain values; a probe has no axes")
            if choice.name in choices:
                raise entry.where.error(
                    f"found {choice.name!r} again, allowed: once ({choices[choice.name].where.path})"
                )
            choices[choice.name] = choice
    return [choices[name] for name in sorted(choices)]


def _choices(members: Sequence[Entry], kind: Kind, registry: Registry, entry: Entry) -> Iterable[Choice]:
    spaces: list[list[Point]] = []
    places: list[dict[str, Where]] = []
    for member in members:
        schemas = member.item(kind, registry).options
        terms = parse_terms(member.options, schemas, f"{kind} {member.name}", member.where)
        spaces.append(expand(terms, _defaults(schemas)))
        places.append({name: term.where for name, term in terms.items()})
    for points in itertools.product(*spaces):
        parts = [Part(member.name, point.values) for member, point in zip(members, points, strict=True)]
        name = " + ".join(member.name for member in members)
        yield Choice(name, parts, _axes(members, points), places, entry.where, "")


def _defaults(schemas: Mapping[str, Schema]) -> dict[str, Any]:
    return {name: schema["default"] for name, schema in schemas.items()}


def _axes(members: Sequence[Entry], points: Sequence[Point]) -> dict[str, Any]:
    if len(members) == 1:
        return points[0].axes
    pairs = zip(members, points, strict=True)
    return {f"{member.name}.{name}": value for member, point in pairs for name, value in point.axes.items()}


def _members(entry: Entry, registry: Registry) -> list[Entry]:
    """The members of a composition, each with its own options; a method alone is its only member."""
    names = [name.strip() for name in entry.name.split("+")]
    for name in names:
        if not name or names.count(name) > 1:
            raise entry.where.found(entry.name, "a method, or different ones such as a + b")
        control, _ = split_control(name)
        if control and control not in CONTROLS:
            raise entry.where.unknown(control, "control", CONTROLS)
        Entry(name, {}, entry.where).item("method", registry)
    if len(names) == 1:
        return [Entry(names[0], entry.options, entry.where)]
    if not isinstance(entry.options, dict):
        raise entry.where.found(entry.options, f"a mapping with the options of {', '.join(names)}")
    for name in entry.options:
        if name not in names:
            raise entry.where.at(str(name)).unknown(name, f"member of {entry.name}", names)
    return [Entry.of({name: entry.options.get(name)}, entry.where.at(name)) for name in names]


def _label(choices: list[Choice]) -> list[Choice]:
    """The choices with labels: the name and the axes, and every option that the grid sets where that is not enough."""
    short = [label(choice.name, choice.axes) for choice in choices]
    long = [label(choice.name, choice.written()) for choice in choices]
    labels = [text if short.count(text) == 1 else other for text, other in zip(short, long, strict=True)]
    places: dict[str, Where] = {}
    for choice, text in zip(choices, labels, strict=True):
        content = json.dumps([choice.name, [part.options for part in choice.parts]], default=vars, sort_keys=True)
        if content in places or text in places:
            other = places.get(content) or places[text]
            raise choice.where.error(f"found {text!r}, which is the same as {other.path}, allowed: each once")
        places[content] = places[text] = choice.where
    return [replace(choice, label=text) for choice, text in zip(choices, labels, strict=True)]
