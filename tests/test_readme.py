"""What the README shows really runs."""

import re
from pathlib import Path

import pytest
from support import harness

from harness.judging.reading import undecidable
from harness.planning.grid import load_grid
from harness.planning.plan import build_plan
from harness.registry import Registry

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def centralize(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("readme") / "centralize.py"
    path.write_text(block("python"))
    return path


def test_the_plugin_is_as_short_as_it_says() -> None:
    lines = [line for line in block("python").splitlines() if line.strip()]
    assert len(lines) <= 15


@pytest.mark.parametrize("task", ["digits/mlp", "cartpole/ppo", "poisson/pinn"])
def test_the_plugin_runs_unchanged(centralize: Path, task: str, tmp_path: Path) -> None:
    shown = harness(
        "trial",
        task,
        "gradient_centralization + adamw",
        *("--plugin", centralize, "--results", tmp_path, "--set", "recipe.steps=16"),
    )
    assert "test/" in shown


def test_the_grid_is_planned(centralize: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(block("yaml"))
    registry = Registry([centralize])
    plan = build_plan(load_grid(grid, [], registry), registry)
    assert len(plan.trials) == (2 * 2 + 1 * 2) * 2 * 9
    assert not undecidable(plan, registry), "its claim can be decided"
