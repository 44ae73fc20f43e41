"""Values that stand for several: `{each: […]}`, `{zip: {…}}`, `{when: {…}}`, and those taken from another trial.

width: {each: [16, 32]}                              an axis
zip: {lr: [1e-3, 1e-2], batch: [64, 128]}            axes that go together, in place of two fields
lr: {when: {optimizer: {sgd: 0.1, adamw: 1e-3}}}     depends on another field; a case may be an axis
weight_decay: {from: oui_decay, metric: probe/mean}  a metric of another trial of the same task and seed
"""

from __future__ import annotations

import graphlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.options import Schema
from harness.planning.errors import Where, listed
from harness.planning.schema import TRIALS


@dataclass(frozen=True)
class Each:
    """An axis. Those of one `zip` share its place and go together."""

    values: tuple[Any, ...]
    zip: Where | None = None


@dataclass(frozen=True)
class When:
    """A value that depends on that of another field."""

    field: str
    cases: tuple[tuple[Any, Any], ...]


@dataclass(frozen=True)
class Taken:
    """A value that is not known before other trials have run."""


@dataclass(frozen=True)
class Tuned(Taken):
    """A value that tuning chooses."""


@dataclass(frozen=True)
class Selector(Taken):
    """A value taken from the trial of another method on the same task under the same seed."""

    method: str
    metric: str


@dataclass(frozen=True)
class Term:
    """What a field was given: a plain value, `Each`, `When` or `Selector`, and where."""

    value: Any
    where: Where


Terms = dict[str, Term]


@dataclass(frozen=True)
class Point:
    """One choice of values: all of them, and those that lie on an axis."""

    values: dict[str, Any]
    axes: dict[str, Any]


def parse_terms(content: Any, schemas: Mapping[str, Schema], owner: str, where: Where) -> Terms:
    """The terms of a mapping of options or recipe fields, every value checked against its schema.

    Raises:
        GridError: for an unknown field, or a value that does not fit.
    """
    if not isinstance(content, dict):
        raise where.found(content, "a mapping of options")
    terms = {}
    for name, value in content.items():
        if name != "zip":
            terms[name] = Term(
                _parse(value, schemas, _schema(name, schemas, owner, where), where.at(name)), where.at(name)
            )
    zipped = _parse_zip(content["zip"], schemas, owner, where.at("zip")) if "zip" in content else {}
    for field, term in zipped.items():
        if field in terms:
            raise term.where.error(f"found {field} beside the zip too, allowed: once")
        terms[field] = term
    return terms


def _schema(name: Any, schemas: Mapping[str, Schema], owner: str, where: Where) -> Schema:
    if name not in schemas:
        raise where.at(str(name)).unknown(name, f"field of {owner}", schemas)
    return schemas[name]


def _parse(value: Any, schemas: Mapping[str, Schema], schema: Schema, where: Where) -> Any:
    if not isinstance(value, dict):
        return where.check(value, schema)
    form = set(value)
    if form == {"each"}:
        return _parse_each(value["each"], schema, where.at("each"))
    if form == {"when"}:
        return _parse_when(value["when"], schemas, schema, where.at("when"))
    if form == {"from", "metric"}:
        if schema["type"] != "float":
            raise where.error("found a metric of another trial, allowed: a plain value; only a float can be taken")
        for key in ("from", "metric"):
            if not isinstance(value[key], str) or not value[key]:
                raise where.at(key).found(value[key], "a text")
        return Selector(value["from"], value["metric"])
    raise where.found(value, "a value, {each: [...]}, {when: {FIELD: {CASE: ...}}} or {from: METHOD, metric: NAME}")


def _parse_each(values: Any, schema: Schema, where: Where) -> Each:
    if not isinstance(values, list) or not values:
        raise where.found(values, "a list of at least one value")
    checked = tuple(where.at(index).check(value, schema) for index, value in enumerate(values))
    _refuse_repeats(checked, where)
    return Each(checked)


def _refuse_repeats(values: Iterable[Any], where: Where) -> None:
    seen = set()
    for index, value in enumerate(values):
        text = json.dumps(value)
        if text in seen:
            raise where.at(index).found(value, "each value once")
        seen.add(text)


def _parse_zip(content: Any, schemas: Mapping[str, Schema], owner: str, where: Where) -> Terms:
    if not isinstance(content, dict) or len(content) < 2:
        raise where.found(content, "a mapping of at least two fields to lists of one length")
    terms = {}
    for name, values in content.items():
        schema, place = _schema(name, schemas, owner, where), where.at(name)
        if not isinstance(values, list) or not values:
            raise place.found(values, "a list of at least one value")
        checked = tuple(place.at(index).check(value, schema) for index, value in enumerate(values))
        terms[name] = Term(Each(checked, zip=where), place)
    lengths = {name: len(values) for name, values in content.items()}
    if len(set(lengths.values())) > 1:
        raise where.found(lengths, "lists of one length")
    _refuse_repeats(zip(*(term.value.values for term in terms.values()), strict=True), where)
    return terms


def _parse_when(content: Any, schemas: Mapping[str, Schema], schema: Schema, where: Where) -> When:
    if not isinstance(content, dict) or len(content) != 1:
        raise where.found(content, "one other field with a value for each of its cases")
    ((field, cases),) = content.items()
    known, place = _schema(field, schemas, "what it stands beside", where), where.at(field)
    if not isinstance(cases, dict) or not cases:
        raise place.found(cases, "a mapping of cases to values")
    parsed = tuple(
        (place.at(str(case)).check(case, known), _parse(value, schemas, schema, place.at(str(case))))
        for case, value in cases.items()
    )
    return When(field, parsed)


def expand(terms: Terms, given: Mapping[str, Any]) -> list[Point]:
    """All points of the terms, the last field varying fastest; `given` are the values of fields that no term sets.

    >>> here = Where("grid.yaml")
    >>> points = expand({"lr": Term(Each((0.1, 0.2)), here), "steps": Term(9, here)}, {})
    >>> [(point.values, point.axes) for point in points]
    [({'lr': 0.1, 'steps': 9}, {'lr': 0.1}), ({'lr': 0.2, 'steps': 9}, {'lr': 0.2})]

    Raises:
        GridError: if a value depends on itself or on a case that is not there, or there are more than 10⁶ points.
    """
    _limit(terms)
    points = [Point(dict(given), {})]
    for names in _dimensions(terms):
        points = [wider for point in points for wider in _vary(point, names, terms)]
    return points


def _limit(terms: Terms) -> None:
    sizes = {
        str(term.value.zip or name): _size(term.value) for name, term in terms.items() if isinstance(term.value, Each)
    }
    sizes |= {name: _size(term.value) for name, term in terms.items() if isinstance(term.value, When)}
    if math.prod(sizes.values()) > TRIALS:
        where = next(term.where for term in terms.values() if _size(term.value) > 1)
        raise where.error(f"found axes of {math.prod(sizes.values()):,} points together, allowed: {TRIALS:,}")


def _size(value: Any) -> int:
    if isinstance(value, When):
        return max(_size(case) for _, case in value.cases)
    return len(value.values) if isinstance(value, Each) else 1


def _dimensions(terms: Terms) -> Iterable[list[str]]:
    """Fields that vary together, those that others depend on first."""
    groups: dict[str, list[str]] = {}
    for name, term in terms.items():
        zipped = term.value.zip if isinstance(term.value, Each) else None
        groups.setdefault(f"zip {zipped.path}" if zipped else name, []).append(name)
    home = {name: key for key, names in groups.items() for name in names}
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for key, names in groups.items():
        needed = {home[f] for name in names for f in _referred(terms[name].value) if f in home}
        sorter.add(key, *sorted(needed))
    try:
        return [groups[key] for key in sorter.static_order()]
    except graphlib.CycleError as error:
        circle = [groups[key][0] for key in error.args[1]]
        raise terms[circle[0]].where.error(f"found a circle of `when` ({' → '.join(circle)}), allowed: none") from None


def _referred(value: Any) -> Iterable[str]:
    if isinstance(value, When):
        yield value.field
        for _, case in value.cases:
            yield from _referred(case)


def _vary(point: Point, names: list[str], terms: Terms) -> Iterable[Point]:
    values = {name: _settle(terms[name].value, point, terms[name].where) for name in names}
    first = values[names[0]]
    if not isinstance(first, Each):
        yield Point(point.values | values, point.axes)
        return
    for index in range(len(first.values)):
        chosen = {name: axis.values[index] for name, axis in values.items()}
        yield Point(point.values | chosen, point.axes | chosen)


def _settle(value: Any, point: Point, where: Where) -> Any:
    """What a `when` comes to at a point."""
    while isinstance(value, When):
        if value.field not in point.values:
            raise where.error(
                f"depends on {value.field}, which this grid does not set here, allowed: a field that it sets"
            )
        found = point.values[value.field]
        cases = {json.dumps(case): chosen for case, chosen in value.cases}
        if json.dumps(found) not in cases:
            raise where.at("when", value.field).error(
                f"found no case for {found!r}, allowed: a case for each value that occurs; given: {listed(cases)}"
            )
        value = cases[json.dumps(found)]
    return value


def label(name: str, chosen: Mapping[str, Any]) -> str:
    """A name with values behind it. Nothing in it means something to a glob, so labels may be matched by globs.

    >>> label("digits/mlp", {"hidden": [64, 32], "activation": "gelu"})
    'digits/mlp(hidden=64x32, activation=gelu)'
    """
    return f"{name}({', '.join(told(chosen))})" if chosen else name


def told(chosen: Mapping[str, Any]) -> list[str]:
    """Values as a label tells them: `width=16`."""
    return [f"{name}={_told(value)}" for name, value in chosen.items()]


def _told(value: Any) -> str:
    if isinstance(value, Taken):
        return f"from {value.method}" if isinstance(value, Selector) else "tuned"
    if isinstance(value, list):
        return "x".join(map(_told, value)) or "empty"
    return value if isinstance(value, str) else json.dumps(value)
