"""Screening: decisions from a trial's own records, in a trial, in a plan, in a grid, and as a Tune scheduler."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from machines import PATIENCE, token
from support import harness, timeless, write_grid

from harness.identity import Part, TrialSpec
from harness.judging.calibration_runs import fitted, runs_of_grid
from harness.planning.errors import GridError
from harness.planning.grid import load_grid
from harness.planning.plan import Plan, PlannedTrial, build_plan
from harness.planning.survey import State, survey
from harness.recording.attempts import Attempt
from harness.recording.records import Result, Status
from harness.recording.results import Results
from harness.registry import Registry
from harness.running.screening import OUIScheduler, ScreeningScheduler
from harness.screening import Screen, Screening, decide, quantities, read
from harness.training.trial import run_trial

INF = math.inf
PPO = {"env_steps": 1024, "envs": 2, "rollout": 64, "batch": 32, "evaluate_every": 1000, "record_every": 16}
STRICT, LAX = {"return": (400.0, INF)}, {"return": (0.0, INF)}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Registry()


SPEC = TrialSpec("cartpole/ppo", {"evaluation_episodes": 2}, 1, [Part("adam")], PPO, {"init": 0})


def run(folder: Path, registry: Registry, screen: Screen | None = None) -> Result:
    with Attempt(folder, SPEC.hash, SPEC.to_json(), "code") as attempt:
        return run_trial(SPEC, registry, attempt, screen=screen)


# --- rules


def test_rules_and_their_quantities() -> None:
    assert quantities("oui") == ("critic", "actor") and quantities("early_return + oui + lr")[-1] == "lr"
    with pytest.raises(ValueError, match=r"found 'clip', allowed: .*"):
        quantities("oui + clip")


def test_decisions_use_nothing_behind_the_point_of_decision() -> None:
    early = [{"step": s, "metrics": {"train/approx_kl": 0.1 * s, "train/oui_actor": 0.5 + s}} for s in (1, 2)]
    late = [{"step": 3, "metrics": {"train/approx_kl": 99.0, "train/oui_actor": 99.0}}, {"step": 3, "action": "x"}]
    assert read("kl + oui", early + late, 2, 0.01) == pytest.approx({"approx_kl": 0.15, "actor": 2.5})
    assert read("lr", [], 1, 0.01) == {"lr": 0.01}


def test_a_decision_names_value_and_threshold() -> None:
    bounds = {"critic": (0.25, 0.75), "actor": (0.5, INF)}
    assert decide(bounds, {"critic": 0.5, "actor": 0.5}) == ""
    assert decide(bounds, {"critic": 0.8, "actor": 0.5}) == "critic 0.8, allowed: 0.25 to 0.75"
    assert decide(bounds, {"critic": 0.3, "actor": math.nan}) == "actor none, allowed: at least 0.5"
    screen = Screen("oui", 0.1, bounds, "mark")
    assert Screen.from_json(screen.to_json()) == screen


# --- a trial


def test_a_screened_trial_goes_on_to_the_bits_of_one_never_screened(tmp_path: Path, registry: Registry) -> None:
    screen = Screen("early_return", 0.5, STRICT, "mark")
    stopped = run(tmp_path / "a", registry, screen)
    length = 128
    assert (stopped.status, stopped.steps, stopped.screening) == (Status.SCREENED, length // 2, "mark")
    assert stopped.reason.startswith("early_return at step 64: return ") and "at least 400" in stopped.reason
    assert stopped.metrics["train/env_steps"] == 512 and stopped.taken("train/env_steps") is None
    whole = [run(tmp_path / "b", registry), run(tmp_path / "a", registry)]
    assert whole[1].attempt == 2
    assert whole[0].weights == whole[1].weights and timeless(whole[0].metrics) == timeless(whole[1].metrics)
    records = [list(Results(tmp_path / name).trial(SPEC.hash).records()) for name in "ab"]
    assert [r["step"] for r in records[0]] == [r["step"] for r in records[1]]
    assert [timeless(r["metrics"]) for r in records[0]] == [timeless(r["metrics"]) for r in records[1]]


def test_a_rule_that_accepts_changes_nothing_and_one_that_comes_late_still_decides(
    tmp_path: Path, registry: Registry
) -> None:
    accepted = run(tmp_path / "a", registry, Screen("early_return", 0.5, LAX))
    assert accepted.status is Status.FINISHED and accepted.weights == run(tmp_path / "b", registry).weights
    run(tmp_path / "c", registry, Screen("early_return", 0.5, STRICT))
    late = run(tmp_path / "c", registry, Screen("early_return", 0.25, STRICT, "other"))
    assert (late.status, late.steps, late.screening) == (Status.SCREENED, 64, "other")
    assert late.reason.startswith("early_return at step 32")


# --- a plan

GRID = """
name: screened
tasks:
  - cartpole/ppo: {evaluation_episodes: 2}
methods: [adam]
seeds: 1
recipes:
  - {set: {lr: {each: [1.0e-5, 3.0e-4]}, env_steps: 1024, envs: 2, rollout: 64, batch: 32, record_every: 16}}
"""
MEDIAN = "{rule: median, samples: 2, at: 0.25}"
RULE = "screening: {rule: lr, at: 0.5, thresholds: {lr: [1.0e-4, null]}}\n"


def plan(folder: Path, registry: Registry, text: str) -> Plan:
    return build_plan(load_grid(write_grid(folder, text), [], registry), registry)


def test_screening_is_no_part_of_identity(tmp_path: Path, registry: Registry) -> None:
    with_rule, without = plan(tmp_path, registry, GRID + RULE), plan(tmp_path, registry, GRID)
    assert [trial.hash for trial in with_rule.trials] == [trial.hash for trial in without.trials]
    assert with_rule.screening == Screening("lr", 0.5, {"*": {"lr": (1e-4, INF)}}) and without.screening is None
    assert Plan.from_json(with_rule.to_json()) == replace(with_rule, grid_text="") or (
        Plan.from_json(with_rule.to_json()).screening == with_rule.screening
    )


def test_a_plan_without_the_rule_takes_a_screened_trial_as_unfinished(tmp_path: Path, registry: Registry) -> None:
    with_rule, without = plan(tmp_path, registry, GRID + RULE), plan(tmp_path, registry, GRID)
    other = plan(tmp_path, registry, GRID + RULE.replace("1.0e-4", "2.0e-4"))
    memory, trial = Results(tmp_path / "results"), with_rule.trials[0]
    assert with_rule.screening is not None
    result = Result(trial.hash, Status.SCREENED, trial.code, reason="why", screening=with_rule.screening.mark)
    folder = memory.folder / "trials" / trial.hash
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(asdict(result)))
    assert survey(with_rule, memory).statuses[trial.hash] is State.SCREENED
    assert trial.hash not in {t.hash for t in survey(with_rule, memory).to_run}
    for changed in (without, other):
        view = survey(changed, memory)
        assert view.statuses[trial.hash] is State.UNFINISHED and trial.hash in {t.hash for t in view.to_run}


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("{rule: ouy, thresholds: {critic: 1}}", ("screening.rule", "did you mean 'oui'")),
        ("{rule: ahsa}", ("screening.rule", "found 'ahsa'", "or asha or median alone")),
        ("{rule: asha, thresholds: {lr: 1}}", ("screening.thresholds", "allowed: none; 'asha' compares trials")),
        ("{rule: median, reduction: 2}", ("screening.reduction", "allowed: nothing with rule 'median'")),
        ("{rule: asha, reduction: 1}", ("screening.reduction", "found 1, allowed: more than 1")),
        ("{rule: oui, thresholds: {critic: [0.1, 0.9]}}", ("screening.thresholds", "found nothing for 'actor'")),
        ("{rule: oui, thresholds: {critic: [0.9, 0.1], actor: 0}}", ("screening.thresholds.critic", "LOW below HIGH")),
        ("{rule: lr, thresholds: {lr: high}}", ("screening.thresholds.lr", "found 'high'")),
        ("{rule: lr, thresholds: {'acro*': {lr: 1}}}", ("screening.thresholds.acro*", "no task of this grid")),
        ("{rule: lr, thresholds: {from: g, recal: 1}}", ("screening.thresholds.recal", "did you mean 'recall'")),
        ("{rule: lr, thresholds: {from: g, recall: 2}}", ("screening.thresholds.recall", "found 2")),
        ("{rule: lr, at: 1.5, thresholds: {lr: 1}}", ("screening.at", "less than 1")),
    ],
)
def test_errors_name_the_field(tmp_path: Path, registry: Registry, written: str, told: tuple[str, ...]) -> None:
    with pytest.raises(GridError) as error:
        plan(tmp_path, registry, GRID + f"screening: {written}\n")
    assert all(part in str(error.value) for part in told), error.value


@pytest.mark.parametrize(
    ("rule", "thresholds", "found"),
    [
        ("oui", "{critic: 0.5, actor: 0.5}", "'oui'"),
        ("lr + early_return", "{lr: 1.0e-4, return: 60}", "'early_return'"),
        ("kl", "{from: another-grid}", "'kl'"),
    ],
)
def test_a_rule_whose_signals_a_task_does_not_record_is_refused(
    tmp_path: Path, registry: Registry, rule: str, thresholds: str, found: str
) -> None:
    text = "name: n\ntasks: [cartpole/ppo, digits/mlp]\nmethods: [adam]\nseeds: 1\n"
    with pytest.raises(GridError) as error:
        plan(tmp_path, registry, f"{text}screening: {{rule: {rule}, thresholds: {thresholds}}}\n")
    assert f"screening.rule: found {found}, whose signals need policy" in str(error.value)
    assert "which digits/mlp does not offer, allowed: lr, asha" in str(error.value)
    control = plan(tmp_path, registry, text + "screening: {rule: lr, thresholds: {lr: 1.0e-4}}\n")
    assert control.screening is not None and control.screening.rule == "lr"


# --- a grid


@pytest.mark.slow
def test_a_grid_screens_and_goes_on_without_the_rule(tmp_path: Path) -> None:
    grid, results = write_grid(tmp_path, GRID + RULE), tmp_path / "results"
    harness("run", grid, "--results", results)
    memory = Results(results)
    hashes = [path.name for path in (results / "trials").iterdir()]
    ended = {h: memory.trial(h).result() for h in hashes}
    assert sorted(str(r.status) for r in ended.values() if r) == ["finished", "screened"]
    assert "lr 1e-05, allowed: at least 0.0001" in next(r.reason for r in ended.values() if r and r.reason)
    assert "2 screened" not in harness("run", grid, "--results", results)  # nothing to run again
    write_grid(tmp_path, GRID)
    harness("run", grid, "--results", results)
    assert {str(r.status) for h in hashes if (r := memory.trial(h).result())} == {"finished"}
    # Thresholds fitted on these runs, by the grid's name.
    screening = fitted(Screening("lr", 0.5, source="screened", recall=0.5), ["cartpole/ppo"], memory)
    runs = runs_of_grid(memory, "screened", 0.5)
    known = {"return", "critic", "actor", "approx_kl", "clip_fraction", "flip_rate", "lr"}
    assert len(runs) == 2 and all(known <= set(one.values) for one in runs)
    harness("report", grid, "--results", results, "--format", "markdown", "--out", tmp_path / "report.md")
    table = (tmp_path / "report.md").read_text().partition("## Early-stopping rules at matched recall")[2]
    rows = [line for line in table.split("\n") if "early_return + oui" in line.replace("\\", "")]
    assert len(rows) == 12, "four recalls, in sample and held out by seed and by learning rate"
    screen, best = screening.screen("cartpole/ppo"), max(runs, key=lambda one: one.final)
    assert screen is not None and screen.judge([], 128, best.lr) == ""
    write_grid(tmp_path, GRID + "screening: {rule: lr, at: 0.5, thresholds: {from: nowhere}}\n")
    told = harness("run", grid, "--results", results, "--set", "seeds=[6]", status=2)
    assert "screening.thresholds.from: found 'nowhere'" in told


# --- rules that compare trials


def evaluated(memory: Results, trial: PlannedTrial, *points: tuple[int, float]) -> None:
    """Commits evaluations of a trial, as one attempt more."""
    with Attempt(memory.folder, trial.hash, trial.spec.to_json(), trial.code) as attempt:
        for step, score in points:
            attempt.record({"step": step, "metrics": {"val/return": score}})
            attempt.commit(step, b"a checkpoint")


def test_a_trial_with_a_verdict_ends_as_screened_and_goes_on_to_the_same_bits(
    tmp_path: Path, registry: Registry
) -> None:
    screen = Screen("asha", 0.1, {}, "mark")
    trial = Results(tmp_path / "a").trial(SPEC.hash)

    def halt(step: int) -> bool:
        """At step 40 a neighbour's rule speaks, and the watcher of the trial hears it."""
        if step == 40:
            trial.leave_verdict("mark", "code", "asha at step 32 of 128: worse")
        return step == 40

    with Attempt(tmp_path / "a", SPEC.hash, SPEC.to_json(), "code") as attempt:
        stopped = run_trial(SPEC, registry, attempt, screen=screen, halt=halt)
    assert (stopped.status, stopped.steps, stopped.screening) == (Status.SCREENED, 40, "mark")
    assert stopped.reason == "asha at step 32 of 128: worse"
    again = run(tmp_path / "a", registry, screen)  # the verdict stands
    assert (again.status, again.steps) == (Status.SCREENED, 40)
    other = Screen("median", 0.1, {}, "other")
    whole = [run(tmp_path / "b", registry), run(tmp_path / "a", registry, other)]
    assert [result.status for result in whole] == [Status.FINISHED] * 2
    assert whole[0].weights == whole[1].weights and timeless(whole[0].metrics) == timeless(whole[1].metrics)


@pytest.mark.parametrize(("written", "later"), [("{rule: asha, reduction: 2, at: 0.25}", [2]), (MEDIAN, [])])
def test_neighbours_by_hand_and_after_a_restart(
    tmp_path: Path, registry: Registry, written: str, later: list[int]
) -> None:
    """Rungs at 32, 64 and 128 of 128 steps. Half go on: who is not below the median of those that were there before."""
    from harness.running.neighbours import Neighbours

    planned = plan(tmp_path, registry, GRID.replace("seeds: 1", "seeds: 2") + f"screening: {written}\n")
    memory, trials = Results(tmp_path / "results"), sorted(planned.trials, key=lambda trial: trial.hash)
    assert planned.screening is not None and Plan.from_json(planned.to_json()).screening == planned.screening
    screening, hashes = planned.screening, {trial.hash for trial in trials}
    for trial, score in zip(trials, (10.0, 20.0, 5.0, 30.0), strict=True):
        evaluated(memory, trial, (32, score))

    def stopped() -> list[int]:
        said = [memory.trial(trial.hash).verdict(screening.mark, trial.code) for trial in trials]
        return [index for index, reason in enumerate(said) if reason]

    neighbours = Neighbours(screening, planned, hashes, memory)  # 5 against 10 and 20; 30 against 5, 10 and 20
    assert stopped() == [2]
    reason = memory.trial(trials[2].hash).verdict(screening.mark, trials[2].code)
    assert reason == f"{screening.rule} at step 32 of 128: val/return 5, its neighbours allow at least 15"
    assert memory.trial(trials[2].hash).verdict("another rule", trials[2].code) == ""
    assert memory.trial(trials[2].hash).verdict(screening.mark, "other code") == ""
    for index, score in ((0, 8.0), (1, 7.0)):
        evaluated(memory, trials[index], (64, score))
        neighbours.on_trial_result(None, None, {"running": [trials[index].hash]})  # type: ignore[arg-type]
    expected = sorted(
        [2, *(index - 1 for index in later)]
    )  # at 64, ASHA compares 7 with 8; the median wants two others
    assert stopped() == expected
    for trial in trials:
        (memory.trial(trial.hash).folder / "verdict.json").unlink(missing_ok=True)
    Neighbours(screening, planned, hashes, memory)  # a restart
    assert stopped() == expected
    (memory.trial(trials[2].hash).folder / "verdict.json").unlink()
    Neighbours(screening, planned, hashes - {trials[2].hash}, memory)  # what is not running any more is left alone
    assert stopped() == [index for index in expected if index != 2]


ASHA_GRID = """
name: compared
tasks:
  - digits/mlp
methods: [sgd]
seeds: 1
recipes:
  - {set: {batch: 32, steps: 12000, evaluate_every: 600, lr: {each: [0.1]}}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["{rule: asha, reduction: 2, at: 0.1}", "{rule: median, samples: 1, at: 0.1}"])
def test_a_restarted_grid_stops_what_its_neighbours_beat_and_goes_on_without_the_rule(
    tmp_path: Path, rule: str
) -> None:
    results, text = tmp_path / "results", ASHA_GRID + f"screening: {rule}\n"
    harness("run", write_grid(tmp_path, text), "--results", results, "--cpus", 1)
    # Another process: all that it knows of the good learning rate is in the records.
    grid = write_grid(tmp_path, text.replace("[0.1]", "[0.1, 1.0e-6]"))
    harness("run", grid, "--results", results, "--cpus", 1)
    memory = Results(results)
    found = {path.name: memory.trial(path.name) for path in (results / "trials").iterdir()}
    ended = {hash: result for hash, trial in found.items() if (result := trial.result())}
    assert sorted(result.status for result in ended.values()) == ["finished", "screened"]
    (worse,) = (hash for hash, result in ended.items() if result.status is Status.SCREENED)
    assert ended[worse].reason.startswith(rule[7:11]) and "at step 1200 of 12000: val/accuracy" in ended[worse].reason
    assert 1200 <= ended[worse].steps < 12000
    harness("run", grid, "--results", results, "--cpus", 1)  # nothing to do: the verdict stands
    assert found[worse].result() == ended[worse]
    without = write_grid(tmp_path, ASHA_GRID.replace("[0.1]", "[0.1, 1.0e-6]"))
    harness("run", without, "--results", results, "--cpus", 1)
    whole = found[worse].result()
    assert whole is not None and (whole.status, whole.attempt) == (Status.FINISHED, 2)


# --- Tune


def test_scheduler_decides_as_the_rule_does_and_survives_a_restart(tmp_path: Path) -> None:
    def new() -> ScreeningScheduler:
        return ScreeningScheduler(
            "kl + early_return",
            {"approx_kl": (None, 0.2), "return": 10},
            at=3,
            metrics={"approx_kl": "losses/kl"},
            state_file=tmp_path / "state.json",
        )

    def report(scheduler: ScreeningScheduler, step: int, kl: float, name: str = "t") -> str:
        result = {"training_iteration": step, "losses/kl": kl, "return": 11.0}
        return scheduler.on_trial_result(None, type("T", (), {"trial_id": name, "config": {}})(), result)  # type: ignore[arg-type]

    first = new()
    assert [report(first, 1, 0.1), report(first, 2, 0.2), report(first, 1, 0.1, "u")] == ["CONTINUE"] * 3
    second = new()  # a restart
    assert report(second, 3, 0.6) == "STOP"  # the mean of .1, .2 and .6
    assert second.reasons["t"] == "approx_kl 0.3, allowed: at most 0.2"
    assert report(second, 5, 99.0, "u") == "CONTINUE"  # what comes behind the point of decision does not count
    third = new()
    assert third.reasons == second.reasons and report(third, 6, 0.0) == "STOP"


def test_scheduler_errors() -> None:
    with pytest.raises(ValueError, match="thresholds: found nothing for 'actor'"):
        ScreeningScheduler("oui", {"critic": 0.5}, at=1)
    with pytest.raises(ValueError, match=r"retrun: is no quantity of 'early_return'.*did you mean 'return'"):
        ScreeningScheduler("early_return", {"retrun": 0.5}, at=1)
    with pytest.raises(ValueError, match=r"thresholds.critic: found \[0.9, 0.1\]"):
        OUIScheduler([0.9, 0.1], 0.5, at=1)


def experiment(name: str, folder: Path) -> dict[Any, int]:
    """The step at which each trial of one of `experiments.py` ended, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("experiments.py")), name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=os.environ | token())
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads((folder / "ended.json").read_text()))


@pytest.mark.slow
def test_anyones_tune_experiment(tmp_path: Path) -> None:
    assert experiment("anyones", tmp_path) == {0.1: 2, 0.5: 10, 0.9: 2}


@pytest.mark.slow
def test_an_experiment_that_tune_restores_decides_as_one_in_one_go(tmp_path: Path) -> None:
    """Tune brings back the scheduler of the beginning; means over four reports need those from before the break.

    Mean divergences are .2 and .3, but .1 in both trials after the break: trial 1 would go on.
    """
    assert experiment("restored", tmp_path) == {0: 6, 1: 4}
    reasons = json.loads((tmp_path / "state.json").read_text())["reasons"]
    assert sorted(reasons.values()) == ["", "approx_kl 0.3, allowed: at most 0.25"]
