"""Tuning: the same points for every method, the choice on validation, fresh seeds."""

import math
from pathlib import Path

import pytest
from scipy.stats import qmc
from support import harness, plugin, write_grid

from harness.planning.errors import GridError
from harness.planning.grid import load_grid
from harness.planning.plan import TUNED, Plan, PlannedTrial, build_plan
from harness.planning.survey import State, survey
from harness.planning.taking import Missing, take
from harness.planning.tuning import SEEDS_FROM
from harness.recording.records import Result, Status
from harness.recording.results import Results
from harness.registry import Registry

GRID = """
name: tuned
tasks: [digits/mlp]
methods: [adamw, balanced_adam, {shuffled(balanced_adam): {}}]
seeds: 3
recipes: [{set: {steps: 20, batch: {each: [32, 64]}}}]
tuning:
  trials: 6
  seeds: 2
  over: {lr: {loguniform: [1e-4, 1e-1]}, balanced_adam.beta: {choice: [0.8, 0.9, 0.95]}, warmup: {uniform: [0, 4]}}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return planned(tmp_path, GRID)


def planned(folder: Path, text: str) -> Plan:
    registry = Registry([])
    return build_plan(load_grid(write_grid(folder, text), [], registry), registry)


def of(plan: Plan, method: str, batch: int, tuning: bool) -> list[PlannedTrial]:
    return [
        trial
        for trial in plan.trials
        if trial.method_label == method and trial.axes["recipe.batch"] == batch and (trial.tuning is not None) == tuning
    ]


def test_every_method_gets_the_same_points(plan: Plan) -> None:
    points = {
        method: [(t.spec.recipe["lr"], t.spec.recipe["warmup"], t.spec.seed) for t in of(plan, method, 32, True)]
        for method in plan.methods
    }
    assert points["adamw"] == points["balanced_adam"] == points["shuffled(balanced_adam)"]
    assert len(points["adamw"]) == 6 * 2
    rates = [lr for lr, _, _ in points["adamw"][::2]]
    places = qmc.Sobol(3, scramble=True, rng=0).random_base2(3)[:6, 0]
    assert rates == [pytest.approx(1e-4 * 1000**place, rel=1e-5) for place in places]
    assert {warmup for _, warmup, _ in points["adamw"]} <= {0, 1, 2, 3, 4}
    assert {t.spec.methods[0].options["beta"] for t in of(plan, "balanced_adam", 64, True)} <= {0.8, 0.9, 0.95}


TWINS = """
@register_method("one")
class One(Method):
    share: float = 0.5

@register_method("other")
class Other(Method):
    share: float = 0.5
"""


def test_fields_of_one_name_have_the_same_points_in_two_cells_and_their_own_in_one(tmp_path: Path) -> None:
    registry = Registry([plugin(tmp_path, TWINS)])
    text = """
    name: twins
    tasks: [digits/mlp]
    methods: [one + adamw, other + adamw, one + other + adamw]
    seeds: 1
    tuning: {trials: 8, seeds: 1, over: {one.share: {uniform: [0, 1]}, other.share: {uniform: [0, 1]}}}
    """
    twins = build_plan(load_grid(write_grid(tmp_path, text), [], registry), registry)
    shares: dict[str, list[list[float]]] = {}
    for trial in (trial for trial in twins.trials if trial.tuning is not None):
        mine = [part.options["share"] for part in trial.spec.methods if "share" in part.options]
        shares.setdefault(trial.method_label, []).append(mine)
    assert shares["one + adamw"] == shares["other + adamw"]
    both = shares["one + other + adamw"]
    assert [[first] for first, _ in both] == shares["one + adamw"]
    places = qmc.Sobol(2, scramble=True, rng=0).random_base2(3)
    assert both == [pytest.approx([second, first], rel=1e-5) for first, second in places], "no diagonal"


def test_seeds_are_fresh(plan: Plan) -> None:
    assert {t.spec.seed["init"] for t in plan.trials if t.tuning is not None} == {SEEDS_FROM, SEEDS_FROM + 1}
    assert {t.spec.seed["init"] for t in plan.reported} == {0, 1, 2}
    assert len(plan.reported) == 3 * 2 * 3


def ended(trial: PlannedTrial, accuracy: float | None, status: Status = Status.FINISHED) -> Result:
    metrics = {} if accuracy is None else {"val/accuracy": accuracy}
    return Result(trial.hash, status, trial.code, metrics, weights="w")


@pytest.mark.parametrize("bad", [Status.DIVERGED, Status.SCREENED])
def test_the_best_mean_on_validation_is_taken(plan: Plan, bad: Status) -> None:
    tried, final = of(plan, "balanced_adam", 32, True), of(plan, "balanced_adam", 32, False)[0]
    assert {r.hash for r in final.spec.requires} == {t.hash for t in tried}
    assert {r.path for r in final.spec.requires} == {TUNED}
    scores = [(0.5, 0.5), (0.9, 0.1), (0.6, 0.8), (0.65, 0.65), (0.2, 0.2), (1.0, None)]  # the last one went wrong once
    results = {}
    for trial in tried:
        assert trial.tuning is not None
        score = scores[trial.tuning][trial.spec.seed["init"] - SEEDS_FROM]
        results[trial.hash] = ended(trial, score) if score else ended(trial, None, bad)
    best = next(t for t in tried if t.tuning == 2)
    values = take(final, plan, results)
    assert values == {
        "recipe.lr": best.spec.recipe["lr"],
        "recipe.warmup": best.spec.recipe["warmup"],
        "methods.0.beta": best.spec.methods[0].options["beta"],
    }
    run = final.spec.with_values(values)
    assert (run.recipe["lr"], run.methods[0].options["beta"]) == (values["recipe.lr"], values["methods.0.beta"])
    results[tried[0].hash] = ended(tried[0], None, Status.LOST)
    with pytest.raises(Missing, match="is lost without it"):
        take(final, plan, results)


def test_no_point_went_well(plan: Plan) -> None:
    tried, final = of(plan, "adamw", 32, True), of(plan, "adamw", 32, False)[0]
    with pytest.raises(Missing, match="of 6 none did"):
        take(final, plan, {t.hash: ended(t, None, Status.DIVERGED) for t in tried})


@pytest.mark.parametrize(
    ("tuning", "field", "said"),
    [
        ("{trials: 1, over: {lr: {uniform: [0, 1]}}}", "tuning.trials", "at least 2"),
        ("{trials: 8, over: {}}", "tuning.over", "at least one entry"),
        ("{trials: 8, over: {learning_rate: {uniform: [0, 1]}}}", "tuning.over.learning_rate", "METHOD.OPTION"),
        ("{trials: 8, over: {lr: {normal: [0, 1]}}}", "tuning.over.lr", "loguniform"),
        ("{trials: 8, over: {lr: {loguniform: [0, 1]}}}", "tuning.over.lr.loguniform", "LOW > 0"),
        ("{trials: 8, over: {lr: {uniform: [1, 0]}}}", "tuning.over.lr.uniform", "LOW < HIGH"),
        ("{trials: 8, over: {schedule: {uniform: [1, 2]}}}", "tuning.over.schedule.uniform[0]", "allowed"),
        ("{trials: 8, over: {batch: {choice: [16, 32]}}}", "tuning.over.batch", "an axis of this grid"),
        ("{trials: 8, over: {steps: {uniform: [1, 2]}}}", "tuning.over.steps", "the same budget"),
    ],
)
def test_bad_tuning_is_answered(tmp_path: Path, tuning: str, field: str, said: str) -> None:
    with pytest.raises(GridError) as caught:
        planned(tmp_path, GRID[: GRID.index("tuning:")] + f"tuning: {tuning}\n")
    assert caught.value.field == field
    assert said in caught.value.message


def test_seeds_of_tuning_are_not_for_the_grid(tmp_path: Path) -> None:
    with pytest.raises(GridError, match="lower ones"):
        planned(tmp_path, GRID.replace("seeds: 3", "seeds: [1000001]"))


@pytest.mark.slow
def test_a_tuned_grid_runs(tmp_path: Path) -> None:
    text = GRID.replace("{each: [32, 64]}", "32").replace("trials: 6", "trials: 3").replace("seeds: 2", "seeds: 1")
    plan, results = planned(tmp_path, text.replace("seeds: 3", "seeds: 1")), Results(tmp_path / "results")
    assert survey(plan, results).counts == {State.NEW: 3 * 3 + 3}
    harness("run", tmp_path / "grid.yaml", "--results", results.folder)
    view = survey(plan, results)
    assert view.counts == {State.FINISHED: 12}
    found = results.results(trial.hash for trial in plan.trials)
    for trial in plan.reported:
        tried = [t for t in plan.trials if t.method_label == trial.method_label and t.tuning is not None]
        best = max(tried, key=lambda t: found[t.hash].metrics["val/accuracy"])
        assert math.isclose(float(found[trial.hash].values["recipe.lr"]), best.spec.recipe["lr"])
