"""The text of a grid: one YAML file, those that it extends, and what the command line overrides."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from harness.options import nearest
from harness.planning.errors import GridError, Where

SIZE = 1_000_000
"""Bytes that a grid file may have."""

LEVELS = 50
"""Lists and mappings that may lie in one another."""

TYPES = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map"))
"""What a grid is made of: no objects, dates or sets."""


@dataclass
class Draft:
    """A grid as it was written: its content, and the file that each field comes from."""

    file: str
    content: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """Where a top-level field comes from, if not from the file itself."""
    recipes: list[Where] = field(default_factory=list)
    """Where each entry of `recipes` comes from: those of an extended grid come before its own."""

    def where(self, path: Sequence[str | int]) -> Where:
        """The place of a field in the file that it was written in."""
        if len(path) > 1 and path[0] == "recipes" and isinstance(path[1], int) and path[1] < len(self.recipes):
            place = self.recipes[path[1]]
            return place.at(*path[3 if place.path == "recipe" else 2 :])  # `--set recipe.lr` has no field `set`
        return Where(self.files.get(str(path[0]), self.file) if path else self.file).at(*path)

    def text(self) -> str:
        """The content as YAML, the extended grids and the overrides worked in."""
        stream = io.StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = None
        yaml.width = 120
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.dump(self.content, stream)
        return stream.getvalue()


def read_draft(file: Path, overrides: Sequence[str] = ()) -> Draft:
    """A grid file on top of those that it extends, under overrides such as `seeds=3` and `recipe.lr=1e-3`.

    A field replaces that of the extended grid; `recipes` are added after its own; the name is never taken over.

    Raises:
        GridError: if a file cannot be read, or an override not applied.
    """
    draft = _read_extending(file, ())
    for override in overrides:
        _override(draft, override)
    return draft


def read_name(file: Path) -> str:
    """The name of the grid in a file, whatever else is in it.

    Raises:
        GridError: if the file cannot be read, or has no name.
    """
    name = read_draft(file).content.get("name")
    if not isinstance(name, str):
        raise Where(str(file), "name").found(name, "a text")
    return name


def _read_extending(file: Path, before: tuple[Path, ...]) -> Draft:
    content = parse(_text(file), Where(str(file)))
    if not isinstance(content, dict):
        raise Where(str(file)).found(content, "a mapping with the fields name, tasks, methods and seeds")
    draft = Draft(str(file))
    if "extends" in content:
        base = content.pop("extends")
        where = Where(str(file), "extends")
        if not isinstance(base, str) or not base:
            raise where.found(base, "the path of a grid, relative to this one")
        if not is_file(file.parent / base):
            raise where.error(f"found {base!r}, which is no file{_similar(file.parent / base)}")
        chain = (*before, file.resolve())
        if (file.parent / base).resolve() in chain:
            names = " → ".join(path.name for path in (*chain, file.parent / base))
            raise where.error(f"found {base!r}, which extends this grid in turn ({names}), allowed: no circle")
        draft = _read_extending(file.parent / base, chain)
        draft.files = {name: draft.files.get(name, draft.file) for name in draft.content}
        draft.content.pop("name", None)
        draft.file = str(file)
    own = content.get("recipes", [])
    if isinstance(own, list):
        draft.recipes += [Where(str(file)).at("recipes", index) for index in range(len(own))]
        if isinstance(draft.content.get("recipes"), list):
            content["recipes"] = draft.content["recipes"] + own
    draft.content |= content
    draft.files = {name: origin for name, origin in draft.files.items() if name not in content}
    return draft


def _text(file: Path) -> str:
    where = Where(str(file))
    if not is_file(file):
        raise where.error(f"found no file of this name, allowed: a YAML file{_similar(file)}")
    try:
        with file.open("rb") as stream:
            content = stream.read(SIZE + 1)
    except OSError as error:
        raise where.error(f"cannot be read ({error.strerror})") from None
    if len(content) > SIZE:
        raise where.error(f"found more than {SIZE:,} bytes, allowed: {SIZE:,}")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise where.error(f"found bytes that are not UTF-8 at {error.start}, allowed: UTF-8 text") from None


def is_file(path: Path) -> bool:
    """Whether there is such a file. A path that the system refuses, such as one that is too long, names none.

    >>> is_file(Path("a" * 300))
    False
    """
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder, as `is_file` says it of a file.

    >>> is_folder(Path("a" * 300)), is_folder(Path("."))
    (False, True)
    """
    try:
        return path.is_dir()
    except OSError:
        return False


def _similar(file: Path) -> str:
    return nearest(file.name, [other.name for other in file.parent.glob("*.y*ml")])


def parse(text: str, where: Where) -> Any:
    """YAML 1.2 as plain texts, numbers, lists and mappings.

    >>> parse("{lr: {each: [1e-3, 3e-3]}, on: yes}", Where("grid.yaml"))
    {'lr': {'each': [0.001, 0.003]}, 'on': 'yes'}

    Raises:
        GridError: if it is not YAML, or has duplicate keys, aliases, tags or directives.
    """
    _refuse_text(text, where)
    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(text)
        if node is None:
            return None
        _refuse_nodes(node, where)
        content = yaml.constructor.construct_document(node)
    except GridError:
        raise
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise where.error(f"{line}not YAML 1.2: {problem}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise where.error(f"not YAML 1.2: {' '.join(str(error).split())}") from None
    for path, value in _numbers(content, ()):
        if not math.isfinite(value):
            raise where.at(*path).found(value, "a finite number")
    return content


def _refuse_text(text: str, where: Where) -> None:
    """Refuses what would change YAML's version, or take the parser very long."""
    if directive := re.search(r"^%.*", text, re.MULTILINE):
        raise where.found(directive.group(), "YAML 1.2 without directives")
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        if depth > LEVELS:
            raise where.error(f"found lists or mappings more than {LEVELS} deep, allowed: {LEVELS}")


def _refuse_nodes(root: Node, where: Where) -> None:
    """Refuses aliases (they can explode), and tags (they can construct objects)."""
    seen, queue = set(), [root]
    while queue:
        node = queue.pop()
        line = f"line {node.start_mark.line + 1}: "
        if id(node) in seen:
            raise where.error(f"{line}found an alias of {node.anchor!r}, allowed: no aliases; `extends` shares fields")
        seen.add(id(node))
        if node.tag not in TYPES:
            tag = str(node.tag).replace("tag:yaml.org,2002:", "!!")
            raise where.error(f"{line}found a value of type {tag}, allowed: texts, numbers, lists and mappings")
        if isinstance(node, MappingNode):
            queue += [part for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            queue += node.value


def _numbers(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], float]]:
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, (*path, str(key)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _numbers(item, (*path, index))


def parse_override(text: str) -> tuple[list[str], Any]:
    """An override of the command line: its path and its value.

    >>> parse_override("recipe.lr=1e-2")
    (['recipe', 'lr'], 0.01)

    Raises:
        GridError: if it is not of the form `a.b=c`.
    """
    path, equals, value = text.partition("=")
    keys = [key for key in re.split(r"[.\[\]]+", path.strip()) if key]
    if not equals or not keys:
        raise GridError("--set", "", f"found {text!r}, allowed: a.b=c, such as seeds=3 or recipe.lr=1e-3")
    return keys, parse(value, Where("--set", path.strip()))


def _override(draft: Draft, text: str) -> None:
    keys, value = parse_override(text)
    if keys[0] == "recipe" and len(keys) == 2:
        rules = draft.content.setdefault("recipes", [])
        if isinstance(rules, list):
            rules.append({"set": {keys[1]: value}})
            draft.recipes.append(Where("--set", "recipe"))
        return
    node: Any = draft.content
    for key in keys[:-1]:
        place = _place(node, key, text)
        node = node.setdefault(place, _missing(place)) if isinstance(node, dict) else node[place]
    node[_place(node, keys[-1], text)] = value
    draft.files[keys[0]] = f"{draft.files.get(keys[0], draft.file)} with --set {text}"
    if keys[0] == "recipes" and len(keys) > 1 and isinstance(draft.content["recipes"], list):
        draft.recipes[int(keys[1])] = Where(f"--set {text}").at("recipes", int(keys[1]))
    if keys == ["recipes"]:
        draft.recipes = [Where("--set").at("recipes", i) for i in range(len(value) if isinstance(value, list) else 0)]


def _place(node: Any, key: str, text: str) -> Any:
    """The key or index that a part of an override's path stands for in a mapping or a list."""
    if isinstance(node, dict):
        return key
    path = text.partition("=")[0].strip()
    if not isinstance(node, list):
        raise GridError("--set", path, f"found {node!r} above {key!r}, allowed: a mapping or a list")
    if not key.isdigit() or int(key) >= len(node):
        allowed = f"0 to {len(node) - 1}" if node else "none, for the list is empty"
        raise GridError("--set", path, f"found no entry {key!r}, allowed: {allowed}")
    return int(key)


def _missing(field: str) -> dict[str, Any] | list[Any]:
    """What a field that an override goes into is where the grid has none of this name."""
    return [] if field == "recipes" else {}
