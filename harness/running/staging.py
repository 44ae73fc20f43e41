"""What travels to a cluster: an unpacked wheel with the grid and the plugin files beside it, in a folder of its own.

harness/ tasks/ methods/          the packages
training_harness-*.dist-info/     without it, what is registered by entry points would be unknown there
plugins/0/ …                      each plugin file with the files beside it that it imports
grid.yaml                         the grid, with what it extends and what the command line overrides
order.json                        what is asked for, and what must be found there
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from harness import sources
from harness.planning.plan import Plan

DISTRIBUTION = "training-harness"
PACKAGES = ("harness", "tasks", "methods")
DIST_INFO = (("METADATA", "METADATA"), ("PKG-INFO", "METADATA"), ("entry_points.txt", "entry_points.txt"))
"""Files that say what is there, as they are called here and there; others tell where it was installed from."""

LIMIT = 50 << 20
"""Bytes that a package may have: the dashboard takes 100 MB."""


SUBMITTED = "HARNESS_SUBMITTED"
"""Set on the head for the run of a submitted grid: where to look next is told where it was submitted."""


class NotStaged(ValueError):
    """What cannot travel to a cluster."""


@dataclass(frozen=True)
class Order:
    """What is asked of a cluster, and what must be found there."""

    grid: str
    results: str
    tracking: str
    plugins: list[str]
    """Relative to the package."""
    options: list[str]
    """Further options of `harness run`."""
    plan: str
    """A digest of the trials and of the source behind each."""
    versions: dict[str, str]
    code: str = ""
    """A digest of all that is in the package but for this order."""

    @property
    def digest(self) -> str:
        """The order's identity."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """The order as text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @staticmethod
    def read(folder: Path) -> Order:
        """The order of a package.

        Raises:
            NotStaged: if a plugin's path leads out of the package.
        """
        content: dict[str, Any] = json.loads((folder / "order.json").read_text(encoding="utf-8"))
        order = Order(**content)
        inside = (folder / "plugins").resolve()
        for name in order.plugins:
            path = (folder / name).resolve()
            if not path.is_relative_to(inside) or not path.is_file():
                raise NotStaged(f"plugins: found {name!r}, allowed: a file in the package's folder plugins")
        return order


def stage(folder: Path, grid_text: str, plugins: Sequence[Path]) -> list[str]:
    """Fills an empty folder with all that travels but the order.

    Returns:
        The plugin files, relative to the folder.

    Raises:
        NotStaged: if a plugin imports from outside its folder.
    """
    for package in PACKAGES:
        shutil.copytree(
            sources.PROJECT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    distribution = metadata.distribution(DISTRIBUTION)
    info = folder / f"{DISTRIBUTION.replace('-', '_')}-{distribution.version}.dist-info"
    info.mkdir()
    for here, there in DIST_INFO:
        if (text := distribution.read_text(here)) is not None:
            (info / there).write_text(text, encoding="utf-8")
    (folder / "grid.yaml").write_text(grid_text, encoding="utf-8")
    return [_stage_plugin(folder, number, plugin.resolve()) for number, plugin in enumerate(plugins)]


def _stage_plugin(folder: Path, number: int, plugin: Path) -> str:
    for file in sources.closure(plugin):
        if file.is_relative_to(sources.PROJECT) and not plugin.is_relative_to(sources.PROJECT):
            continue
        if not file.is_relative_to(plugin.parent):
            raise NotStaged(f"--plugin: {plugin} imports {file}, allowed: files in its own folder")
        target = folder / "plugins" / str(number) / file.relative_to(plugin.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return f"plugins/{number}/{plugin.name}"


def files(folder: Path) -> Iterator[Path]:
    """The files of a package, in order, without its order and without byte-code."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path != folder / "order.json":
            yield path


def digest(folder: Path) -> str:
    """A digest of the names and bytes of a package."""
    sha = hashlib.sha256()
    for path in files(folder):
        sha.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        sha.update(path.read_bytes())
    return sha.hexdigest()[:16]


def check_size(folder: Path, limit: int = LIMIT) -> int:
    """The package's size in bytes.

    Raises:
        NotStaged: if it is larger than the dashboard would take; names its largest files.
    """
    sizes = {path: path.stat().st_size for path in files(folder)}
    total = sum(sizes.values())
    if total > limit:
        largest = sorted(sizes, key=lambda path: -sizes[path])[:3]
        told = ", ".join(f"{path.relative_to(folder)} ({sizes[path] >> 20} MiB)" for path in largest)
        raise NotStaged(f"the package has {total >> 20} MiB, allowed: {limit >> 20}; the largest: {told}")
    return total


def plan_digest(plan: Plan) -> str:
    """A digest of the trials of a plan and of the source behind each: equal here and on the cluster, or nothing starts."""
    text = "\n".join(sorted(f"{trial.hash} {trial.code}" for trial in plan.trials))
    return hashlib.sha256(f"{plan.name}\n{text}".encode()).hexdigest()[:16]
