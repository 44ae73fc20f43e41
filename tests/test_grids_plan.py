"""Every grid of the project can be read, and planned where its data is there; its claims can be decided."""

from pathlib import Path

import pytest

from harness.judging.reading import undecidable
from harness.planning.errors import GridError
from harness.planning.grid import load_grid
from harness.planning.plan import build_plan
from harness.registry import Registry

ROOT = Path(__file__).parents[1] / "grids"
GRIDS = sorted(str(file.relative_to(ROOT)) for file in ROOT.rglob("*.yaml"))
CONTROLLED = (
    "lambda_gelu",
    "two_timescales",
    "balanced_adam",
    "oui_decay",
    "oui_observable",
    "refresh",
    "fed_oui_noisy",
    "fed_sq",
    "oui_screening",
    "oui_screening_lunarlander",
)


@pytest.mark.parametrize("name", GRIDS)
def test_grid_plans_and_its_claims_can_be_decided(
    name: str, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    grid = load_grid(ROOT / name, [], registry)
    try:
        plan = build_plan(grid, registry)
    except GridError as error:
        if "to get it" in str(error) or "get it with" in str(error):
            pytest.skip(str(error))
        raise
    assert plan.trials
    assert undecidable(plan, registry) == {}


@pytest.mark.parametrize("name", CONTROLLED)
def test_proxy_has_a_positive_and_a_null_control(name: str, registry: Registry) -> None:
    claims = [str(claim.fields) for claim in load_grid(ROOT / "proxies" / f"{name}.yaml", [], registry).claims.listed]
    assert sum("handicap + " in claim for claim in claims) == 1
    assert sum("placebo + " in claim for claim in claims) == 1


def test_every_paper_has_a_grid_at_its_own_scale() -> None:
    papers = {Path(name).stem for name in GRIDS if name.startswith("papers/")}
    ten = "lambda_gelu oui_ppo two_timescales balanced_adam stable_grad fed_oui oui_observable oui_decay refresh fed_sq"
    assert set(ten.split()) <= papers
