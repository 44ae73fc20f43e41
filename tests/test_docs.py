"""The pages: every grid plans, every class runs, every link leads somewhere."""

import doctest
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import harness

from harness.planning.grid import load_grid
from harness.planning.plan import build_plan
from harness.registry import Registry

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The code of one language on a page."""
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    return found


def plugin_of(page: str, folder: Path) -> Path:
    """The classes of a page, in one file."""
    file = folder / "plugin.py"
    file.write_text("\n\n".join(blocks(page, "python")))
    return file


GRIDS = [
    (page.name, n)
    for page in sorted(DOCS.glob("*.md"))
    for n, b in enumerate(blocks(page.name, "yaml"))
    if b.startswith("name:")
]


@pytest.mark.parametrize(("page", "number"), GRIDS)
def test_every_grid_plans(page: str, number: int, tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(blocks(page, "yaml")[number])
    registry = Registry([plugin_of(page, tmp_path)] if blocks(page, "python") else [])
    plan = build_plan(load_grid(file, [], registry), registry)
    assert plan.trials and not plan.left_out


def test_the_pages_have_grids() -> None:
    assert [page for page, _ in GRIDS].count("grids.md") >= 5


@pytest.mark.parametrize(
    ("page", "asked"),
    [
        ("add-a-method.md", ["digits/mlp", "sign_gradient + sgd"]),
        pytest.param("add-a-method.md", ["poisson/pinn", "norm_decay + adamw"], marks=pytest.mark.slow),
        ("add-a-task.md", ["moons/mlp", "adamw"]),
        ("add-a-probe.md", ["digits/mlp", "adamw", "--probe", "dead_units"]),
    ],
)
def test_the_classes_run(page: str, asked: list[str], tmp_path: Path) -> None:
    shown = harness(
        "trial", *asked, "--plugin", plugin_of(page, tmp_path), "--results", tmp_path / "r", "--set", "recipe.steps=20"
    )
    assert "test/" in shown
    assert "dead_units" not in asked or "probe/dead_units/mean" in shown


@pytest.mark.slow
@pytest.mark.parametrize(("page", "name"), [("add-a-method.md", "sign_gradient"), ("add-a-task.md", "moons/mlp")])
def test_the_classes_pass_the_suite(page: str, name: str, tmp_path: Path) -> None:
    shown = harness("describe", name, "--check", "--plugin", plugin_of(page, tmp_path))
    assert "FAIL" not in shown and "  ok  " in shown


def test_the_kind_of_claim_loads(tmp_path: Path) -> None:
    registry = Registry([plugin_of("claims.md", tmp_path)])
    assert "steady" in [item.name for item in registry.items("claim")]


@pytest.mark.parametrize("page", [page.name for page in sorted(DOCS.glob("**/*.md")) if ">>>" in page.read_text()])
def test_the_examples_print_what_they_say(page: str) -> None:
    (file,) = DOCS.rglob(page)
    failed, tried = doctest.testfile(str(file), module_relative=False, encoding="utf-8")
    assert tried and not failed


COMMANDS = sorted(
    {name for page in DOCS.rglob("*.md") for name in re.findall(r"(?m)(?:^|`)harness ([a-z]+)", page.read_text())}
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists(command: str) -> None:
    from harness.cli import app

    assert command in {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}


def links(page: Path) -> list[str]:
    """Where a page leads inside of the project."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    return [link for link in found if "://" not in link and not link.startswith("#")]


@pytest.mark.parametrize("page", [*sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        assert (page.parent / link.split("#")[0]).exists(), link


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    if not all(importlib.util.find_spec(name) for name in ("mkdocs", "material")):
        pytest.skip("needs mkdocs-material: pip install 'training-harness[dev]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "grids" / "index.html").exists()
