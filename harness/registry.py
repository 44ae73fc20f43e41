"""Names to classes: built-ins, entry points of other distributions, and plugin files.

An index of what is registered (names, options, offers, needs, owns) is kept in a cache keyed by the source files, so that
listing and validation import nothing heavy; a class is imported when a trial is planned or run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, Literal, TypeVar, dataclass_transform

from harness import sources
from harness.names import CONTROLS, split_control
from harness.options import Schema, check_all, nearest, offered, schema_of, short

if TYPE_CHECKING:
    from harness.claim import Claim
    from harness.method import Method
    from harness.probe import Probe
    from harness.task import Task

Kind = Literal["task", "method", "probe", "claim"]
KINDS: tuple[Kind, ...] = ("task", "method", "probe")
"""What a trial is made of; claims are made of trials."""
C = TypeVar("C", bound=type)

SHAPING = ("claim", "task", "method", "probe", "recipe", "options", "registry")
"""Modules of the engine that decide what an index entry looks like."""


class RegistryError(ValueError):
    """A name that is unknown or registered twice, or a plugin that does not load."""


class Collision(RegistryError):
    """One name, two classes."""


class Shadowed(RegistryError):
    """A file elsewhere that Python finds before a package of this project."""


@dataclasses.dataclass(frozen=True)
class Item:
    """What is known of a registered class without importing it."""

    kind: Kind
    name: str
    summary: str
    origin: str
    file: str
    source: str
    options: dict[str, Schema]
    offers: list[str]
    needs: list[str]
    owns: list[str]
    recipe: dict[str, Schema]
    metric: str
    direction: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """One module that registers: an entry point, or a plugin file."""

    origin: str
    module: str
    file: Path

    def load(self) -> None:
        """Imports the module; its decorators register its classes."""
        global _loading
        if self.module in sys.modules:
            return
        outer, _loading = _loading, self.module
        try:
            if self.origin.startswith("plugin "):
                spec = importlib.util.spec_from_file_location(self.module, self.file)
                assert spec and spec.loader
                module = importlib.util.module_from_spec(spec)
                sys.modules[self.module] = module
                folder = str(self.file.parent)
                if folder not in sys.path:
                    sys.path.append(folder)  # after everything else: a plugin's neighbours never shadow a library
                try:
                    spec.loader.exec_module(module)
                except BaseException:
                    del sys.modules[self.module]
                    raise
            else:
                importlib.import_module(self.module)
        finally:
            _loading = outer

    def classes(self, modules: set[str]) -> dict[tuple[Kind, str], type]:
        """What the module registered itself, or brought along from modules that are no entries of their own (`modules`)."""
        self.load()
        brought = _brought.get(self.module, set()) - modules | {self.module}
        return {key: cls for module in sorted(brought) for key, cls in _registered.get(module, {}).items()}


_registered: dict[str, dict[tuple[Kind, str], type]] = {}
"""Classes by the module that defines them."""
_brought: dict[str, set[str]] = {}
"""Modules that registered something while an entry was being loaded, by the entry's module."""
_loading: str | None = None


def _register(kind: Kind, name: str) -> Callable[[C], C]:
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise RegistryError(f"{kind} {short(name)}: allowed: letters, digits, _ . and -, with one / in a task's name")

    def decorate(cls: C) -> C:
        if "__dataclass_fields__" not in cls.__dict__:
            dataclasses.dataclass(cls)
        cls.name = name  # type: ignore[attr-defined]
        module = _registered.setdefault(cls.__module__, {})
        known = module.get((kind, name))
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise Collision(f"{kind} {name!r} is registered twice in {cls.__module__}")
        module[kind, name] = cls
        if _loading is not None:
            _brought.setdefault(_loading, set()).add(cls.__module__)
        return cls

    return decorate


@dataclass_transform()
def register_task(name: str) -> Callable[[C], C]:
    """Registers a `Task` under a name such as `digits/mlp`, and makes it a dataclass: its fields are its options."""
    return _register("task", name)


@dataclass_transform()
def register_method(name: str) -> Callable[[C], C]:
    """Registers a `Method` under a name, and makes it a dataclass: its fields are its options."""
    return _register("method", name)


@dataclass_transform()
def register_probe(name: str) -> Callable[[C], C]:
    """Registers a `Probe` under a name, and makes it a dataclass: its fields are its options."""
    return _register("probe", name)


@dataclass_transform()
def register_claim(name: str) -> Callable[[C], C]:
    """Registers a kind of `Claim` under a name, and makes it a dataclass: its fields are what a grid may say of it."""
    return _register("claim", name)


class Registry:
    """All that is registered, by name.

    Args:
        plugins: Python files whose decorators register tasks, methods or probes.

    Raises:
        Collision: if two modules register the same name.
        Shadowed: if another module is found in the place of a package of this project.
    """

    def __init__(self, plugins: Sequence[Path | str] = ()) -> None:
        self.plugins = [Path(plugin).resolve() for plugin in plugins]
        self.broken: dict[str, str] = {}
        self._entries: dict[tuple[Kind, str], Entry] = {}
        self._items: dict[tuple[Kind, str], Item] = {}
        cache = _Cache()
        entries = [*self._entry_points(), *map(_plugin_entry, self.plugins)]
        self._modules = {entry.module for entry in entries}
        for entry in entries:
            self._add(entry, cache)
        cache.save()

    def _entry_points(self) -> Iterable[Entry]:
        own = {"tasks", "methods", "harness"}
        for package in sorted(own):
            _check_not_shadowed(package)
        points = metadata.entry_points()  # reads a file of every distribution
        name_of = functools.cache(lambda distribution: distribution.name)  # reads another one
        for kind in (*KINDS, "claim"):
            chosen = points.select(group=f"harness.{kind}s")
            for point in sorted(chosen, key=lambda p: (p.module.split(".")[0] not in own, p.name)):
                origin = f"{name_of(point.dist) if point.dist else 'unknown'}:{point.module}"
                try:
                    spec = importlib.util.find_spec(point.module)
                except (ImportError, ValueError) as error:
                    self.broken[origin] = f"{type(error).__name__}: {error}"
                    continue
                if spec is None or not spec.origin:
                    self.broken[origin] = f"the module {point.module} does not exist"
                    continue
                yield Entry(origin, point.module, Path(spec.origin).resolve())

    def _add(self, entry: Entry, cache: _Cache) -> None:
        try:
            if not entry.file.is_file():
                others = [file.name for file in entry.file.parent.glob("*.py")]
                what = "a folder" if entry.file.is_dir() else f"no such file{nearest(entry.file.name, others)}"
                raise RegistryError(f"found {what}, allowed: a Python file")
            items = cache.items(entry, self._modules)
        except Collision:
            raise
        except (Exception, SystemExit) as error:  # a plugin may fail in any way: it is named, the rest goes on
            lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == str(entry.file)]
            place = f", line {lines[-1]}" if lines else ""
            self.broken[entry.origin] = f"{type(error).__name__}: {error}{place}"
            return
        for item in items:
            key = (item.kind, item.name)
            if key in self._items:
                raise Collision(
                    f"{item.kind} {item.name!r} is registered twice: by {self._items[key].origin} and by {entry.origin}"
                )
            self._items[key], self._entries[key] = item, entry

    def items(self, kind: Kind) -> list[Item]:
        """All items of a kind, by name."""
        return [item for key, item in sorted(self._items.items()) if key[0] == kind]

    def item(self, kind: Kind, name: str) -> Item:
        """What is known of a name; of a control such as `mean_of(m)`, what is known of `m` and its own options beside.

        Raises:
            RegistryError: if the name is unknown; the text names the nearest known one and the broken plugins.
        """
        if (kind, name) in self._items:
            return self._items[kind, name]
        if kind == "method" and (control := split_control(name))[0] in CONTROLS:
            item = self.item(kind, control[1])
            return dataclasses.replace(item, name=name, options=item.options | dict(CONTROLS[control[0]]))
        known = [item.name for item in self.items(kind)]
        broken = "".join(f"; {origin} did not load ({error})" for origin, error in self.broken.items())
        raise RegistryError(
            f"found {short(name)}, which is no {kind}, allowed: {offered(name, known, 'harness list')}"
            f"{nearest(name, known)}{broken}"
        )

    def load(self, kind: Kind, name: str) -> type:
        """The class behind a name, imported now."""
        self.item(kind, name)
        return self._entries[kind, name].classes(self._modules)[kind, name]

    def build_task(self, name: str, options: dict[str, Any]) -> Task:
        """A task with options, checked."""
        return self._build("task", name, options)

    def build_method(self, name: str, options: dict[str, Any]) -> Method:
        """A method with options, checked."""
        return self._build("method", name, options)

    def build_probe(self, name: str, options: dict[str, Any]) -> Probe:
        """A probe with options, checked."""
        return self._build("probe", name, options)

    def build_claim(self, name: str, options: dict[str, Any]) -> Claim:
        """A claim with its fields, checked."""
        return self._build("claim", name, options)

    def _build(self, kind: Kind, name: str, options: dict[str, Any]) -> Any:
        item = self.item(kind, name)
        return self.load(kind, name)(**check_all(options, item.options, f"{kind} {name}"))

    def files(self, kind: Kind, name: str) -> list[Path]:
        """The source files that the code digest of a name covers."""
        self.item(kind, name)
        return sources.closure(self._entries[kind, split_control(name)[1]].file)

    def preload(self) -> None:
        """Imports every module that registers something; what does not load is left to the trial that asks for it."""
        for entry in dict.fromkeys(self._entries.values()):
            with contextlib.suppress(Exception):
                entry.load()

    def digest(self) -> str:
        """A digest of all registered sources: what a cached plan is valid for."""
        files = [file for entry in set(self._entries.values()) for file in sources.closure(entry.file)]
        return sources.raw_digest([*files, *(file for file in sources.ENGINE if file.exists())])


def _check_not_shadowed(package: str) -> None:
    spec = importlib.util.find_spec(package)
    found = Path(spec.origin).resolve() if spec and spec.origin else None
    if found is None or not found.is_relative_to(sources.PROJECT):
        raise Shadowed(f"{package} is shadowed: found {found}, must lie in {sources.PROJECT}")


def _plugin_entry(path: Path) -> Entry:
    place = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    return Entry(f"plugin {path.name}", f"harness_plugin_{path.stem}_{place}", path)


def cache_folder() -> Path:
    """Where the caches lie: `HARNESS_CACHE`, or `~/.cache/harness`."""
    return Path(os.environ.get("HARNESS_CACHE") or Path.home() / ".cache" / "harness")


KEPT = 4096
"""Sources of which the cache keeps what they import, the newest."""


class _Cache:
    """The index of registered items, by digest of the source files, and what those files import."""

    def __init__(self) -> None:
        self._file = cache_folder() / "registry.json"
        self._content: dict[str, list[dict[str, Any]]] = {}
        imports: dict[str, list[str]] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(self._file.read_text())
            self._content, imports = content["items"], content["imports"]
        self._changed = False
        sources.imported.update(imports)

    def items(self, entry: Entry, modules: set[str]) -> list[Item]:
        contracts = [sources.PROJECT / "harness" / f"{name}.py" for name in SHAPING]
        key = f"{entry.origin}@{sources.raw_digest([*sources.closure(entry.file), *contracts])}"
        if key not in self._content:
            described = [_describe(*key, cls, entry) for key, cls in entry.classes(modules).items()]
            self._content = {k: v for k, v in self._content.items() if not k.startswith(f"{entry.origin}@")}
            self._content[key] = [dataclasses.asdict(item) for item in described]
            self._changed = True
        return [Item(**item) for item in self._content[key]]

    def save(self) -> None:
        if not self._changed:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._file.parent, delete=False) as file:
                json.dump({"items": self._content, "imports": dict(list(sources.imported.items())[-KEPT:])}, file)
            Path(file.name).replace(self._file)
        except OSError:
            return  # a cache that cannot be written costs time, nothing else


def _describe(kind: Kind, name: str, cls: Any, entry: Entry) -> Item:
    options = schema_of(cls)
    missing = [option for option, schema in options.items() if "default" not in schema]
    if missing:
        raise RegistryError(f"{kind} {name!r}: option {missing[0]!r} has no default")
    if kind == "method":
        _refuse_silent_hooks(name, cls)
    example = cls()
    return Item(
        kind=kind,
        name=name,
        summary=(cls.__doc__ or "").strip().split("\n")[0],
        origin=entry.origin,
        file=str(entry.file),
        source=cls.source,
        options=options,
        offers=sorted(getattr(example, "offers", ())),
        needs=sorted(getattr(example, "needs", ())),
        owns=sorted(getattr(example, "owns", ())),
        recipe=schema_of(cls.recipe_class) if kind == "task" else {},
        metric=getattr(cls, "metric", ""),
        direction=getattr(cls, "direction", ""),
    )


def _refuse_silent_hooks(name: str, cls: Any) -> None:
    """Some hooks are called on their owner alone: without the word they would never run, and nothing would tell."""
    from harness.method import Method

    for hook, owned in {"optimizer": "optimizer", "aggregate": "aggregation"}.items():
        if getattr(cls, hook, None) is not getattr(Method, hook) and owned not in cls.owns:
            raise RegistryError(
                f"method {name!r}: {hook} is called on its owner alone; write owns = frozenset({{{owned!r}}})"
            )
