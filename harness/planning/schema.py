"""The fields of a grid file and their types."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from harness.options import nearest, short
from harness.planning.errors import GridError, listed
from harness.planning.reading import Draft

TRIALS = 1_000_000
"""Trials that a grid may expand to."""

NAME = "lower-case letters, digits, '.', '_' and '-', a letter or digit first, at most 100 characters"
_BYTE_SIZE = TypeAdapter(ByteSize)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,99}", name):
        raise ValueError(f"found {short(name)}, allowed: {NAME}")
    return name


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?) *([smhd])", value)
        if not match:
            raise ValueError(f"found {value!r}, allowed: seconds, or a text such as 90s, 20m or 2h")
        return float(match[1]) * _SECONDS[match[2]]
    return value


def _bytes(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return int(_BYTE_SIZE.validate_python(value))
        except ValidationError:
            raise ValueError(f"found {short(value)}, allowed: bytes, or a text such as 500MB or 2GiB") from None
    return value


def _whole_gpus(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError(f"found {value}, allowed: a fraction of one GPU, or a whole number")
    return value


def _custom(amounts: dict[str, float]) -> dict[str, float]:
    for name in amounts:
        if not name or name in ("CPU", "GPU", "memory"):
            raise ValueError(f"found {name!r}, allowed: a name that nodes were given; cpus, gpus and memory are fields")
    return amounts


def _rising(looks: list[int]) -> list[int]:
    if looks != sorted(set(looks)):
        raise ValueError(f"found {short(looks)}, allowed: rising numbers of seeds")
    return looks


def _shape(value: Any) -> str:
    names = {str: "text", int: "whole number", list: "list", dict: "mapping"}
    return names.get(type(value), "other")


Entry = Annotated[
    Annotated[str, Tag("text")] | Annotated[dict[str, Any], Field(min_length=1, max_length=1), Tag("mapping")],
    Discriminator(_shape),
]
"""`name`, or `name: {option: value}`."""

Count = Annotated[int, Field(ge=1, le=TRIALS)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seeds = Annotated[
    Annotated[Count, Tag("whole number")]
    | Annotated[list[Seed], Field(min_length=1), Tag("list")]
    | Annotated[dict[str, Count], Field(min_length=1), Tag("mapping")],
    Discriminator(_shape),
]


class Model(BaseModel):
    """Unknown fields are errors, and a text is never taken for a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RecipeRule(Model):
    """Recipe fields of the tasks and methods that two globs match, each by name or by label; so with all rules below."""

    task: str = "*"
    method: str = "*"
    set: Annotated[dict[str, Any], Field(min_length=1)]


class ResourceRule(Model):
    """Resources of the tasks and methods that two globs match."""

    task: str = "*"
    method: str = "*"
    cpus: Annotated[float, Field(gt=0, le=4096)] | None = None
    gpus: Annotated[float, Field(ge=0, le=1024), AfterValidator(_whole_gpus)] | None = None
    memory: Annotated[int, Field(ge=2**20, lt=2**63), BeforeValidator(_bytes)] | None = None
    time: Annotated[float, Field(gt=0, le=10**9), BeforeValidator(_seconds)] | None = None
    ranks: Annotated[int, Field(ge=1, le=4096)] | None = None
    custom: Annotated[dict[str, Annotated[float, Field(gt=0, le=10**6)]], AfterValidator(_custom)] | None = None


ResourceRules = Annotated[
    Annotated[ResourceRule, Tag("mapping")] | Annotated[list[ResourceRule], Tag("list")], Discriminator(_shape)
]


Looks = Annotated[
    Annotated[int, Field(ge=2, le=100), Tag("whole number")]
    | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1), AfterValidator(_rising), Tag("list")],
    Discriminator(_shape),
]


class StartRule(Model):
    """Where the trials that two globs match start: at a share of another trial's steps, or with its final weights."""

    task: str = "*"
    method: str = "*"
    source: Annotated[str, Field(alias="from", min_length=1)]
    of: str | None = None
    at: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.of is None) == (self.at is None):
            raise ValueError(
                "found `at` and `of` together or neither, allowed: at: SHARE branches from a run of the same task, "
                "of: TASK takes the weights of a finished run of another one"
            )
        return self


StartRules = Annotated[
    Annotated[StartRule, Tag("mapping")] | Annotated[list[StartRule], Tag("list")], Discriminator(_shape)
]


class LeaveOutRule(Model):
    """Cells that a grid does without: of the tasks and methods that two globs match."""

    task: str = "*"
    method: str = "*"
    because: Annotated[str, Field(min_length=1)]


class TuningRule(Model):
    """How many points every method of a task is tried at before it is run, and where they come from."""

    trials: Annotated[int, Field(ge=2, le=1000)]
    seeds: Annotated[int, Field(ge=1, le=1000)] = 1
    over: Annotated[dict[str, Any], Field(min_length=1)]


class ScreeningRule(Model):
    """The rule that stops unpromising trials at a share of their training."""

    rule: str
    at: Annotated[float, Field(gt=0, lt=1)] = 0.1
    thresholds: Annotated[dict[str, Any], Field(min_length=1)] = {}
    reduction: Annotated[float, Field(gt=1)] | None = None
    """ASHA lets one in so many go on at each rung; 4 unless given."""
    samples: Annotated[int, Field(ge=1)] | None = None
    """Median stopping compares with so many others at least; 3 unless given."""


class Sequential(Model):
    """When the claims are judged: so many looks in equal steps, or at these numbers of seeds."""

    looks: Looks


class GridFile(Model):
    """A grid as it is written."""

    name: Annotated[str, AfterValidator(_name)]
    tasks: Annotated[list[Entry], Field(min_length=1)]
    methods: Annotated[list[Entry], Field(min_length=1)]
    seeds: Seeds
    leave_out: list[LeaveOutRule] = []
    recipes: list[RecipeRule] = []
    probes: list[Entry] = []
    resources: ResourceRules = []
    stacked: bool = False
    tuning: TuningRule | None = None
    screening: ScreeningRule | None = None
    claims: list[dict[str, Any]] = []
    level: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    sequential: Sequential | None = None
    start: StartRules = []


_ALLOWED = {
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "too_short": "at least one entry",
    "too_long": "one entry",
}
_TAGS = frozenset({"text", "whole number", "list", "mapping"})


def validate(draft: Draft) -> GridFile:
    """The grid of a draft, every field of its type.

    Raises:
        GridError: for the first field that is not.
    """
    try:
        return GridFile.model_validate(draft.content)
    except ValidationError as error:
        # A misspelt field is also a missing one: the first says more.
        raise _translate(min(error.errors(), key=lambda e: e["type"] != "extra_forbidden"), draft) from None


def _translate(problem: ErrorDetails, draft: Draft) -> GridError:
    path, kind = [key for key in problem["loc"] if key not in _TAGS], problem["type"]
    where, context = draft.where(path), problem.get("ctx", {})
    if kind == "extra_forbidden":
        fields = _fields(path)
        return where.error(f"found an unknown field, allowed: {listed(fields)}{nearest(path[-1], fields)}")
    if kind == "missing":
        return where.error("found nothing, allowed: a value; this field is required")
    if kind == "value_error":
        return where.error(str(context["error"]))
    if kind == "union_tag_invalid":
        tags = re.findall(r"'(.+?)'", context["expected_tags"])
        return where.found(problem["input"], listed(f"a {tag}" for tag in tags))
    return where.found(problem["input"], _ALLOWED[kind].format(**context) if kind in _ALLOWED else problem["msg"])


def _fields(path: list[int | str]) -> list[str]:
    """The fields of the model that the last part of the path lies in."""
    inner: dict[int | str, type[Model]] = {
        "leave_out": LeaveOutRule,
        "recipes": RecipeRule,
        "resources": ResourceRule,
        "screening": ScreeningRule,
        "sequential": Sequential,
        "start": StartRule,
        "tuning": TuningRule,
    }
    fields = (inner[path[0]] if len(path) > 1 else GridFile).model_fields
    return [field.alias or name for name, field in fields.items()]
