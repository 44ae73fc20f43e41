"""From a grid to its plan. Tasks and methods are built here, once: the plan is kept, and a known grid needs no torch."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

from harness import sources
from harness.planning.assembly import assemble
from harness.planning.grid import Grid
from harness.planning.plan import FORMAT, Plan
from harness.recording.environment import PACKAGES, version
from harness.recording.records import write_atomically
from harness.registry import Registry, cache_folder

KEPT = 100
"""Plans that the cache keeps."""


def build_plan(grid: Grid, registry: Registry) -> Plan:
    """The plan of a grid, from the cache if the same grid was planned with the same code and versions.

    Raises:
        GridError: if a value is refused by the task or method that it goes to, two cells are the same trial, or no cell
            remains.
    """
    file = cache_folder() / "plans" / f"{_key(grid, registry)}.json"
    try:
        return Plan.from_json(file.read_text())
    except (OSError, ValueError, TypeError, KeyError):
        pass  # not planned before, or by a version that wrote something else
    plan = assemble(grid, registry)
    try:
        write_atomically(file, plan.to_json(), durable=False)
        for old in sorted(file.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
    except OSError:
        pass  # a cache that cannot be written costs time, nothing else
    return plan


def _key(grid: Grid, registry: Registry) -> str:
    """A digest of all that a plan depends on: grid, registered sources, this package's and the libraries' versions."""
    core = ("composition", "identity", "options", "registry", "sources")
    files = [*Path(__file__).parent.glob("*.py"), *(sources.PROJECT / "harness" / f"{name}.py" for name in core)]
    versions = [
        platform.python_version(),
        os.environ.get("HARNESS_DATA", ""),
        *(f"{name}={version(name)}" for name in PACKAGES),
    ]
    text = "\n".join([str(FORMAT), grid.digest, registry.digest(), sources.raw_digest(files), *versions])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
