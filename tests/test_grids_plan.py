"""Every grid of the project can be read, and planned where its data is there; its claims can be decided."""

import json
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


def test_what_screening_costs_is_measured_on_seeds_that_no_threshold_was_fitted_on(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    calibration = build_plan(load_grid(ROOT / "proxies" / "oui_screening.yaml", [], registry), registry)
    arms = sorted((ROOT / "screening").glob("*.yaml"))
    plans = [build_plan(load_grid(arm, [], registry), registry) for arm in arms]
    contents = {json.dumps([t.task_label, t.spec.recipe]) for t in calibration.trials if t.method_label == "adam"}
    seeds = {trial.spec.seed_label for trial in calibration.trials}
    assert len(plans) == 4 and sum(plan.screening is None for plan in plans) == 1
    for plan in plans:
        assert {json.dumps([t.task_label, t.spec.recipe]) for t in plan.trials} == contents
        assert seeds.isdisjoint(trial.spec.seed_label for trial in plan.trials)
        assert plan.screening is None or (plan.screening.source, plan.screening.at) == (calibration.name, 0.1)
