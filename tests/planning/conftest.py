"""Plans are kept in a cache of the test's own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.planning.grid import load_grid
from harness.planning.plan import Plan, build_plan
from harness.registry import Registry

Planner = Callable[..., Plan]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("HARNESS_CACHE", str(folder))
    return folder


@pytest.fixture
def planned(tmp_path: Path, registry: Registry) -> Planner:
    """Plans the text of a grid."""

    def build(text: str, *overrides: str, known: Registry = registry) -> Plan:
        file = tmp_path / "grid.yaml"
        file.write_text(text)
        return build_plan(load_grid(file, overrides, known), known)

    return build
