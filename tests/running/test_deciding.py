"""Seeds are spent where claims are open, at the looks that the grid declares, and no further than the budget."""

import json
import time
from pathlib import Path

import pytest
from judging.made import made_plan
from rich.console import Console
from support import harness, write_grid

from harness.judging.lookahead import Batch
from harness.recording.results import Results
from harness.registry import Registry
from harness.running import deciding
from harness.running.deciding import Decided, run_until_decided, with_required
from harness.running.driver import Options

GRID = """
    name: looks
    tasks: [digits/mlp]
    methods: [adamw, adam, sgd]
    seeds: 8
    recipes:
      - {set: {steps: 30, weight_decay: 0.0}}
      - {method: sgd, set: {lr: 1e-6}}
    claims:
      - {better: adamw, than: sgd}
      - {better: adamw, than: adam}
    level: 0.1
    sequential: {looks: [6, 8]}
"""


@pytest.mark.parametrize(
    ("claims", "looks", "says"), [((), (3, 6), "claims"), (({"better": "a", "than": "b"},), (), "sequential")]
)
def test_a_grid_without_a_rule_is_refused(
    claims: tuple[dict[str, str], ...], looks: tuple[int, ...], says: str, results: Path
) -> None:
    plan = made_plan(claims, looks=looks)
    with pytest.raises(ValueError, match=f"^{says}: found"):
        run_until_decided(plan, Results(results), Options(), Console(), Registry())
    assert not results.exists()


def test_what_trials_require_comes_with_them() -> None:
    plan = made_plan()
    wanted = {plan.trials[0].hash, plan.trials[3].hash}
    assert with_required(plan, wanted) == wanted


def test_the_budget_belongs_to_until_decided(tmp_path: Path) -> None:
    grid = write_grid(tmp_path, GRID)
    assert "--until-decided" in harness("run", grid, "--budget", "1h", status=2)
    assert "90s" in harness("run", grid, "--until-decided", "--budget", "soon", status=2)
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_open_claims_get_their_seeds_and_decided_ones_no_more(tmp_path: Path) -> None:
    grid, results = write_grid(tmp_path, GRID), tmp_path / "results"
    shown = harness("run", grid, "--until-decided", "--results", results, "--cpus", 2)
    assert "look 1 of 2: 2 claims open, 18 trials" in shown
    # six seeds suffice for the first claim: 1/64, twice, is below .075; two equal methods never differ
    assert "look 2 of 2: 1 claim open, 4 trials" in shown
    assert "every look has been taken" in shown
    plan = json.loads(next(results.glob("grids/looks/submissions/*/plan.json")).read_text())
    memory = Results(results)
    done = [t["cell"] for t in plan["trials"] if memory.trial(t["hash"]).result() is not None]
    assert {cell: done.count(cell) for cell in done} == {
        "digits/mlp · adamw": 8,
        "digits/mlp · adam": 8,
        "digits/mlp · sgd": 6,
    }
    again = harness("run", grid, "--until-decided", "--results", results)
    assert "every look has been taken" in again and "starting Ray" not in again
    assert len(list(results.glob("grids/looks/submissions/*"))) == 2


@pytest.mark.slow
def test_a_spent_budget_ends_it_and_the_next_run_goes_on(tmp_path: Path) -> None:
    grid, results = write_grid(tmp_path, GRID), tmp_path / "results"
    shown = harness("run", grid, "--until-decided", "--budget", "1s", "--results", results, "--cpus", 2)
    assert "the budget of 1 s is spent at look 1 of 2" in shown
    assert "undecided" in shown
    assert "every look has been taken" in harness("run", grid, "--until-decided", "--results", results, "--cpus", 2)


@pytest.mark.parametrize("early", [1.0, 0.0, -0.001])
def test_a_budget_that_is_spent_before_a_batch_begins_is_no_interrupt_of_the_user(
    early: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(deciding, "run_plan", lambda *_, **__: time.sleep(60))
    plan = made_plan([], tasks=["t"])
    batch, options = Batch([], [], [], "1 of 2", ""), Options()
    for _ in range(20):
        done = Decided()
        deadline = time.monotonic() - early
        assert deciding._run_batch(plan, Results(tmp_path), options, Console(), batch, done, deadline), (
            "the budget ended it"
        )
        assert not done.outcome.interrupted
