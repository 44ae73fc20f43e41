"""Every grid of the project can be read, and planned where its data is there; its claims can be decided."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from harness.judging.reading import one_sided, undecidable
from harness.planning.grid import load_grid
from harness.planning.plan import build_plan
from harness.registry import Registry
from tasks import control
from tasks.data import place, sets, text

ROOT = Path(__file__).parents[1] / "grids"
GRIDS = sorted(str(file.relative_to(ROOT)) for file in ROOT.rglob("*.yaml"))
SHARED_CONTROLS = {"proxies/fed_oui_readings.yaml": "proxies/fed_oui.yaml"}
"""Grids without controls of their own, and the grid of the same paper, model and recipe that has them."""


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every data set and environment counts as there, data with the same content and size: enough to plan, not to train."""

    def unread(name: str, paths: Iterable[Path], get: str) -> list[Path]:
        return list(paths)

    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr(place, "require", unread)
    monkeypatch.setattr(place, "digest", lambda paths: "unread")
    monkeypatch.setattr(place, "listing_digest", lambda root: "unread")
    monkeypatch.setattr(sets.DataSet, "training_samples", lambda self, selection: 45_000)
    monkeypatch.setattr(text, "training_tokens", lambda name, tokens: 1_000_000)
    monkeypatch.setattr(control, "check_environment", lambda environment: None)


def claims_of(name: str, registry: Registry) -> list[str]:
    return [str(claim.fields) for claim in load_grid(ROOT / name, [], registry).claims.listed]


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.usefixtures("no_data")
def test_grid_plans_and_its_claims_can_be_decided(name: str, registry: Registry) -> None:
    plan = build_plan(load_grid(ROOT / name, [], registry), registry)
    assert plan.trials
    assert undecidable(plan, registry) == {}
    if name.startswith("papers/"):
        assert plan.claims.listed
    if name.startswith(("papers/", "proxies/")):
        assert one_sided(plan, registry) == {}


@pytest.mark.parametrize("name", [name for name in GRIDS if name.startswith(("proxies/", "papers/"))])
def test_a_grid_with_claims_has_a_positive_and_a_null_control(name: str, registry: Registry) -> None:
    claims = claims_of(name, registry)
    own = [sum(control in claim for claim in claims) for control in ("handicap + ", "placebo + ")]
    if name in SHARED_CONTROLS:
        assert claims and own == [0, 0] and SHARED_CONTROLS[name] not in SHARED_CONTROLS
    else:
        assert own == ([1, 1] if claims else [0, 0])


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
