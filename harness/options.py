"""Options of tasks, methods, probes and recipes: their types as plain data, so that they are checked without imports.

A schema is `{"type": "int" | "float" | "str" | "bool" | "list" | "enum", "default": …, "optional": …}`.
"""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Schema = dict[str, Any]
OFFERED = 6
"""Names that an error lists of what is registered."""
_NAMES = {int: "int", float: "float", str: "str", bool: "bool"}


class OptionError(ValueError):
    """A value that does not fit its option; the text says which, what was found and what is allowed."""


def schema_of(cls: type) -> dict[str, Schema]:
    """The options of a dataclass by name.

    >>> @dataclasses.dataclass
    ... class Example:
    ...     width: int = 64
    >>> schema_of(Example)
    {'width': {'type': 'int', 'default': 64}}
    """
    hints = typing.get_type_hints(cls)
    schemas = {}
    for field in dataclasses.fields(cls):
        schema = _of_type(hints[field.name], f"{cls.__name__}.{field.name}")
        if field.default is not dataclasses.MISSING:
            schema["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
        elif field.default_factory is not dataclasses.MISSING:
            schema["default"] = list(field.default_factory())
        schemas[field.name] = schema
    return schemas


def _of_type(hint: Any, where: str) -> Schema:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _NAMES:
        return {"type": _NAMES[hint]}
    if origin is Literal:
        return {"type": "enum", "allowed": list(arguments)}
    if origin in (typing.Union, types.UnionType) and type(None) in arguments:
        rest = [argument for argument in arguments if argument is not type(None)]
        if len(rest) == 1:
            return _of_type(rest[0], where) | {"optional": True}
    if origin in (tuple, list):
        return {"type": "list", "items": _of_type(arguments[0], where)}
    raise OptionError(
        f"{where}: found the type {hint}, allowed: int, float, str, bool, Literal, tuple[X, ...], or one of them | None"
    )


def check(value: Any, schema: Schema, name: str) -> Any:
    """The value as the option's type, integers standing in for floats.

    >>> check(1, {"type": "float"}, "lr")
    1.0

    Raises:
        OptionError: if it does not fit.
    """
    if value is None and schema.get("optional"):
        return None
    kind = schema["type"]
    if kind == "enum":
        if value in schema["allowed"] and not isinstance(value, bool):
            return value
        raise OptionError(
            f"{name}: found {value!r}, allowed: {', '.join(map(str, schema['allowed']))}{nearest(value, schema['allowed'])}"
        )
    if kind == "list":
        if isinstance(value, list | tuple):
            return [check(item, schema["items"], f"{name}[{index}]") for index, item in enumerate(value)]
    elif kind == "float":
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            return float(value)
    elif kind == "int":
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
            return int(value)
    elif (kind == "bool" and isinstance(value, bool)) or (kind == "str" and isinstance(value, str)):
        return value
    article = {
        "int": "an integer of 64 bits" if _beyond(value) else "an integer",
        "float": "a finite number",
        "str": "a text",
        "bool": "true or false",
        "list": "a list",
    }
    hint = "; an axis is written {each: [...]}" if isinstance(value, list) and kind != "list" else ""
    found = f"an integer of {value.bit_length()} bits" if _beyond(value) else repr(value)
    raise OptionError(f"{name}: found {found}, allowed: {article[kind]}{hint}")


def _beyond(value: Any) -> bool:
    """Whether a value is an integer of more than 64 bits."""
    return isinstance(value, int) and abs(value) >= 2**63


def check_all(values: Mapping[str, Any], schemas: Mapping[str, Schema], owner: str) -> dict[str, Any]:
    """Checks every value against its option; an unknown name is answered with the nearest known one.

    Raises:
        OptionError: at the first value that does not fit.
    """
    checked = {}
    for name, value in values.items():
        if name not in schemas:
            raise OptionError(
                f"{name}: {owner} has no such option, allowed: {', '.join(schemas) or 'none'}{nearest(name, schemas)}"
            )
        checked[name] = check(value, schemas[name], name)
    return checked


def offered(name: str, known: Iterable[str], all_of_them: str) -> str:
    """Names as an error about a wrong one lists them: the nearest first, and of many the nearest few.

    >>> offered("adamv", ["sgd", "adamw"], "harness list")
    'adamw, sgd'
    >>> offered("adamv", ["gelu", "sgd", "relu", "adam", "adamw", "lbfgs", "swish"], "harness list")
    'adam, adamw, sgd, swish, relu, lbfgs and 1 more (harness list)'

    Args:
        name: the wrong one.
        known: the right ones.
        all_of_them: what shows all of them.
    """
    names = sorted(known, key=lambda item: (difflib.SequenceMatcher(None, item, name).ratio(), item), reverse=True)
    more = f" and {len(names) - OFFERED} more ({all_of_them})" if len(names) > OFFERED else ""
    return ", ".join(names[:OFFERED]) + more


def nearest(name: Any, known: Iterable[Any]) -> str:
    """`; did you mean 'x'?`, or nothing if no known name is near.

    >>> nearest("adamv", ["sgd", "adamw"])
    "; did you mean 'adamw'?"
    """
    matches = difflib.get_close_matches(str(name), [str(item) for item in known], n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def short(value: Any) -> str:
    """A value as an error shows it.

    >>> short(None), short(list(range(9)))
    ('nothing', '[0, 1, 2, 3, ...]')
    """
    shown = reprlib.Repr()
    shown.maxstring, shown.maxother, shown.maxlist, shown.maxdict, shown.maxlevel = 80, 80, 4, 4, 3
    return "nothing" if value is None else shown.repr(value)
