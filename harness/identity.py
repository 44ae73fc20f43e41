"""What a trial is: its content, and the hash of it that names the trial everywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from harness import sources
from harness.registry import Registry


@dataclass(frozen=True)
class Part:
    """A method or probe with all of its options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Requirement:
    """What a trial takes from another one, the trial `hash`.

    `path` says what for: `recipe.FIELD` or `methods.INDEX.OPTION` becomes the metric named by `taken`; the control
    `methods.INDEX` takes its `actions`.
    """

    path: str
    hash: str
    taken: str


canonical = json.JSONEncoder(default=vars, sort_keys=True, separators=(",", ":")).encode
"""The text that hashes are of: keys sorted, no spaces."""


def length_of(recipe: Mapping[str, Any]) -> int:
    """Steps of a trial with this recipe, or rounds of a federated one."""
    return int(recipe.get("rounds") or recipe.get("steps") or 1)


@dataclass(slots=True)  # nothing changes one; frozen, the very many of a plan would take three times as long to make
class TrialSpec:
    """One cell of a grid with one seed. A trial is a pure function of this content.

    >>> spec = TrialSpec("digits/mlp", {}, 1, [Part("adamw")], {"steps": 10}, {"init": 0})
    >>> spec.hash == TrialSpec.from_json(spec.to_json()).hash
    True
    """

    task: str
    task_options: dict[str, Any]
    task_version: int
    methods: list[Part]
    recipe: dict[str, Any]
    seed: dict[str, int]
    probes: list[Part] = field(default_factory=list)
    threads: int = 1
    device: str = "cpu"
    data: str = ""
    stacked: bool = False
    requires: list[Requirement] = field(default_factory=list)

    @property
    def hash(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the canonical content."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def content(self) -> dict[str, Any]:
        """The fields by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    def to_json(self) -> str:
        """The canonical text."""
        return canonical(self.content())

    @staticmethod
    def from_json(text: str) -> TrialSpec:
        """The reverse of `to_json`."""
        content = json.loads(text)
        for name in ("methods", "probes"):
            content[name] = [Part(**part) for part in content[name]]
        content["requires"] = [Requirement(**requirement) for requirement in content["requires"]]
        return TrialSpec(**content)

    @property
    def method(self) -> str:
        """The composition by name: `lambda_gelu + balanced_adam`."""
        return " + ".join(part.name for part in self.methods)

    @property
    def length(self) -> int:
        """Steps of the trial, or rounds of a federated one."""
        return length_of(self.recipe)

    @property
    def seed_label(self) -> str:
        """`3`, or `init=3 split=0` where streams have seeds of their own."""
        if set(self.seed) == {"init"}:
            return str(self.seed["init"])
        return " ".join(f"{name}={value}" for name, value in self.seed.items())

    def with_values(self, values: dict[str, Any]) -> TrialSpec:
        """This trial with the metrics that it requires filled in, for running: the hash stays that of the trial as planned."""
        content = json.loads(self.to_json())
        for path, value in values.items():
            match path.split("."):
                case ["recipe", field]:
                    content["recipe"][field] = value
                case ["methods", index, option]:
                    content["methods"][int(index)]["options"][option] = value
        return TrialSpec.from_json(json.dumps(content))


class Seeds:
    """The trials of one cell: their texts differ in `requires` and `seed` alone, so the rest is written once for all of them.

    >>> spec = TrialSpec("digits/mlp", {}, 1, [Part("adamw")], {"steps": 10}, {"init": 7})
    >>> trial, hash = Seeds(spec).trial({"init": 7}, [])
    >>> trial == spec and hash == spec.hash
    True
    """

    def __init__(self, cell: TrialSpec) -> None:
        content = cell.content()
        before = canonical({name: value for name, value in content.items() if name < "requires"})[:-1]
        self._before = hashlib.sha256(before.encode())
        self._after = canonical({name: value for name, value in content.items() if name > "seed"})[1:]
        self._trial = partial(TrialSpec, **content)

    def trial(self, seed: dict[str, int], requires: list[Requirement]) -> tuple[TrialSpec, str]:
        """The trial of a seed, and its hash."""
        required = canonical(requires) if requires else "[]"
        sha = self._before.copy()
        sha.update(f',"requires":{required},"seed":{_seed_text(tuple(seed.items()))},{self._after}'.encode())
        return self._trial(seed=seed, requires=requires), sha.hexdigest()[:16]


@lru_cache(maxsize=1 << 16)
def _seed_text(seed: tuple[tuple[str, int], ...]) -> str:
    """The canonical text of a seed: every cell of a grid has the same ones."""
    return canonical(dict(seed))


def code_digest(registry: Registry, spec: TrialSpec) -> str:
    """A digest of the parsed source behind a trial: its task, methods and probes with what they import, and the engine."""
    files: list[Path] = list(sources.ENGINE)
    files += registry.files("task", spec.task)
    for part in spec.methods:
        files += registry.files("method", part.name)
    for part in spec.probes:
        files += registry.files("probe", part.name)
    return sources.digest([file for file in files if file.exists()])
