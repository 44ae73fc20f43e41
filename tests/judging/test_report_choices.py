"""What the report says of trials that screening stopped, and of the points that tuning tried: by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
from judging.made import ended, made_plan
from judging.test_report import check_harmless, findings, scores
from support import write_grid

from harness.identity import TrialSpec
from harness.judging.report import html, markdown
from harness.judging.report_choices import stopped, tuning_figures, tuning_table, tunings
from harness.planning.grid import load_grid
from harness.planning.plan import Plan, build_plan
from harness.planning.taking import take
from harness.recording.records import Result, Status
from harness.registry import Registry
from harness.screening import Screening


def test_stopped_trials_are_told_with_rule_value_and_threshold(tmp_path: Path) -> None:
    plan = replace(made_plan(tasks=("t", "u"), seeds=5), screening=Screening("early_return", 0.1))
    results = ended(plan, scores(plan))
    reasons = {
        plan.trials[0].hash: (10, "early_return at step 10: return 35.5, allowed: at least 100"),
        plan.trials[7].hash: (
            25,
            "asha at step 25 of 100: val/accuracy 0.3, its neighbours allow at least 0.5",
        ),
    }
    for hash, (steps, reason) in reasons.items():
        results[hash] = replace(results[hash], status=Status.SCREENED, steps=steps, reason=reason)
    found, memory = findings(plan, results, tmp_path)
    by_task, each = stopped(found)
    # two of ten trials of 100 steps: 90 and 75 of 1,000 steps are saved
    assert by_task.rows == [["t", "2/10", "16.5%"], ["u", "0/10", "0.0%"]]
    assert each.rows == [
        ["t · a", "0", "early_return", "return 35.5", "at least 100", "10 of 100"],
        ["t · b", "2", "asha", "val/accuracy 0.3", "at least 0.5", "25 of 100"],
    ]
    shown = " ".join(check_harmless(html(found, memory)).texts)
    assert "Stopped trials" not in shown and "All 2 stopped trials" in shown and "return 35.5" in shown
    assert "`16.5%`" in markdown(found)
    assert stopped(replace(found, plan=replace(plan, screening=None))) == []


GRID = """
name: tuned
tasks: [digits/mlp]
methods: [adamw, balanced_adam]
seeds: 2
recipes: [{set: {steps: 20}}]
tuning:
  trials: 4
  seeds: 2
  over: {lr: {loguniform: [1e-4, 1e-1]}, balanced_adam.beta: {choice: [0.8, 0.9]}}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    registry = Registry([])
    return build_plan(load_grid(write_grid(tmp_path, GRID), [], registry), registry)


def test_the_points_of_tuning_are_told_with_the_one_that_was_taken(plan: Plan, tmp_path: Path) -> None:
    results: dict[str, Result] = {}
    for trial in plan.trials:
        if trial.tuning is not None:
            # the third point is the best of adamw, the second of balanced_adam, whose last point diverges once
            score = [0.5, 0.7, 0.6, 0.9] if trial.method_label == "balanced_adam" else [0.1, 0.2, 0.8, 0.3]
            second = trial.spec.seed["init"] % 2
            metrics = {"val/accuracy": score[trial.tuning] + 0.02 * second}
            worst = trial.method_label == "balanced_adam" and trial.tuning == 3 and second
            results[trial.hash] = Result(
                trial.hash, Status.DIVERGED if worst else Status.FINISHED, "c", {} if worst else metrics
            )
    before, _ = findings(plan, results, tmp_path / "before")
    assert [row[1:3] for row in tuning_table(tunings(before)).rows] == [["not yet", "none"]] * 2
    for trial in plan.reported:
        metrics = {"val/accuracy": 0.5, "test/accuracy": 0.5}
        results[trial.hash] = Result(trial.hash, Status.FINISHED, "c", metrics, values=take(trial, plan, results))
    found, memory = findings(plan, results, tmp_path / "after")
    tuned = tunings(found)
    rows = {row[0]: row[1:] for row in tuning_table(tuned).rows}
    at = {(t.method_label, t.tuning): t.spec for t in plan.trials if t.tuning is not None}
    lr = at["adamw", 2].recipe["lr"]
    assert rows["digits/mlp · adamw"] == [f"lr={lr}", "0.81", "0.11 to 0.81", "4/4"]
    best: TrialSpec = at["balanced_adam", 1]
    chosen = f"lr={best.recipe['lr']}, balanced_adam.beta={best.methods[0].options['beta']}"
    assert rows["digits/mlp · balanced_adam"] == [chosen, "0.71", "0.51 to 0.71", "3/4"]
    by_rate, by_beta = tuning_figures(found, tuned)
    assert by_rate.title == "Tuned lr: digits/mlp" and len(by_rate.rows) == 4 + 3
    assert [row[0] for row in by_rate.rows if row[3]] == ["adamw", "balanced_adam"]
    assert {row[0] for row in by_beta.rows} == {"balanced_adam"}
    shown = " ".join(check_harmless(html(found, memory)).texts)
    assert "Tuned lr: digits/mlp" in shown and chosen in shown
    assert f"`{chosen}`" in markdown(found)
