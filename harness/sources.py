"""Source files behind a class, found and digested without importing them."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
"""The folder that holds `harness`, `tasks` and `methods`: the checkout, or site-packages."""

ENGINE = tuple(
    PROJECT / "harness" / name
    for name in (
        "activations.py",
        "controls.py",
        "method.py",
        "probe.py",
        "recipe.py",
        "seeds.py",
        "streams.py",
        "task.py",
        "training/evaluation.py",
        "training/federation.py",
        "training/horizon.py",
        "training/loop.py",
        "training/ranks.py",
        "training/stacking.py",
        "training/starting.py",
        "training/state.py",
        "training/stepping.py",
        "training/together.py",
        "training/trial.py",
    )
)
"""The engine's numeric modules: what they compute is part of every trial."""


def closure(path: Path) -> list[Path]:
    """A module's file and the first-party files that it imports, directly or through others, sorted.

    First-party is what lies beside it: the same package, or the same folder for a plugin file. The engine is left out.
    """
    found: set[Path] = set()
    queue = [path.resolve()]
    while queue:
        file = queue.pop()
        if file in found or (file.is_relative_to(PROJECT / "harness") and file != path.resolve()):
            continue
        found.add(file)
        queue.extend(_imports(file))
    return sorted(found)


@lru_cache(maxsize=4096)
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.AST]:
    """All statements and their branches, however deep: imports are among them, and expressions are most of a tree."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(node, part, ()))
        for part in ("handlers", "cases"):
            for branch in getattr(node, part, ()):
                yield branch
                yield from _statements(branch.body)


@lru_cache(maxsize=4096)
def _imports(path: Path) -> list[Path]:
    top = path.parent
    while (top / "__init__.py").exists():
        top = top.parent
    return [file for name in _imported(path) if (file := _find(name, path, top)) is not None]


imported: dict[str, list[str]] = {}
"""The modules that sources import, by digest of their bytes. Parsing takes time: the registry keeps this for later processes."""


def _imported(path: Path) -> list[str]:
    digest = raw_digest([path])
    if digest not in imported:
        imported[digest] = list(_names(_parse(path)))
    return imported[digest]


def _names(tree: ast.Module) -> dict[str, None]:
    names: dict[str, None] = {}
    for node in _statements(tree.body):
        if isinstance(node, ast.Import):
            names |= dict.fromkeys(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names[base] = None
            names |= dict.fromkeys(f"{base}.{alias.name}" if node.module else base + alias.name for alias in node.names)
    return names


def _find(module: str, importer: Path, top: Path) -> Path | None:
    """The file of an imported module if it is first-party for the importer, whose outermost package lies in `top`."""
    level = len(module) - len(module.lstrip("."))
    parts = [part for part in module.split(".") if part]
    if level:
        base = importer.parents[level - 1]
    else:
        loose = top == importer.parent
        neighbour = loose or parts[0] == importer.relative_to(top).parts[0]
        base = top if neighbour and not (loose and parts[0] in ("tasks", "methods")) else PROJECT
        if base == PROJECT and parts[0] not in ("tasks", "methods"):
            return None
    candidate = base.joinpath(*parts)
    for file in (candidate.with_suffix(".py"), candidate / "__init__.py"):
        if parts and file.is_file():
            return file.resolve()
    return None


def digest(paths: Iterable[Path]) -> str:
    """A digest of parsed sources: comments, docstrings and layout do not count, names and numbers do."""
    sha = hashlib.sha256()
    for name, form in sorted((path.name, _normal_form(path)) for path in set(paths)):  # wherever the files lie
        sha.update(name.encode())
        sha.update(form.encode())
    return sha.hexdigest()[:16]


@lru_cache(maxsize=4096)
def _normal_form(path: Path) -> str:
    tree = _parse(path)
    for node in (tree, *_statements(tree.body)):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                item
                for item in body
                if not (
                    isinstance(item, ast.Expr)
                    and isinstance(item.value, ast.Constant)
                    and isinstance(item.value.value, str)
                )
            ]
    return ast.dump(tree)


def raw_digest(paths: Iterable[Path]) -> str:
    """A digest of the bytes of files: what a cache is keyed by."""
    sha = hashlib.sha256()
    for path in sorted(set(paths)):
        sha.update(str(path).encode())
        sha.update(path.read_bytes())
    return sha.hexdigest()[:16]
