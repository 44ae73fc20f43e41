"""Whole grids on a real Ray cluster with a real MLflow store: faults, reruns, stages, plugins."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from machines import PATIENCE, machines, until
from running.test_faults import (  # noqa: F401  # a fixture
    GRID,
    Place,
    ends_after_one_trial,
    fill,
    planned,
    runs,
    small_disk,
    undisturbed,
)
from support import TROUBLE, harness, kill_when, plugin, timeless, write_grid

from harness.recording.records import Result
from harness.recording.results import Results

SMALL = """
name: small
tasks: [digits/mlp]
methods: [adamw, balanced_adam]
seeds: 2
recipes: [{set: {steps: 40, record_every: 5}}]
probes: [oui]
"""


STACKED = """
name: stacked
tasks: [digits/mlp]
methods: [adamw, sgd]
seeds: 3
recipes: [{set: {steps: 40, record_every: 5}}]
stacked: true
"""


def found(grid: Path, results: Path, *plugins: Path) -> dict[str, Result]:
    """Results by `method seed`."""
    memory = Results(results)
    ended = {
        f"{t.method_label} {t.spec.seed_label}": memory.trial(t.hash).result() for t in planned(grid, *plugins).trials
    }
    return {name: result for name, result in ended.items() if result is not None}


def trial_runs(results: Path) -> dict[str, dict[str, Any]]:
    """What MLflow holds of each trial, by hash."""
    listed = runs(results / "mlflow.db")
    assert len({run["hash"] for run in listed}) == len(listed), "each trial is in MLflow once"
    return {run["hash"]: run for run in listed}


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small grid that was run once: its file and its results folder."""
    folder = tmp_path_factory.mktemp("finished")
    grid = write_grid(folder, SMALL)
    shown = harness("run", grid, "--results", folder / "results")
    assert "digits/mlp: test/accuracy" in shown
    assert "harness ui" in shown
    return grid, folder / "results"


def test_a_finished_grid_is_left_alone(finished: tuple[Path, Path], tmp_path: Path) -> None:
    grid, results = finished
    before = snapshot(results)
    blocker = tmp_path / "sitecustomize.py"
    blocker.write_text(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'ray', 'mlflow'):\n"
        "            raise ImportError(f'{name} is blocked')\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    shown = harness("run", grid, "--results", results, PYTHONPATH=str(tmp_path))
    assert "digits/mlp: test/accuracy" in shown
    assert "Everything is done." in harness("plan", grid, "--results", results, PYTHONPATH=str(tmp_path))
    assert snapshot(results) == before


def test_one_more_seed_runs_that_seed(finished: tuple[Path, Path]) -> None:
    grid, results = finished
    before = {path: stamp for path, stamp in snapshot(results / "trials").items() if not path.endswith("lock")}
    shown = harness("run", grid, "--results", results, "--set", "seeds=3")
    assert "2 of 6 trials to run" in shown
    after = snapshot(results / "trials")
    assert {path: after[path] for path in before} == before
    assert len(trial_runs(results)) == 6


def test_mlflow_is_a_projection(finished: tuple[Path, Path]) -> None:
    grid, results = finished
    before = trial_runs(results)
    (results / "mlflow.db").unlink()
    harness("sync", "--results", results)
    after = trial_runs(results)
    assert before.keys() == after.keys()
    for hash, run in before.items():
        assert (run["params"], run["points"], run["status"]) == (
            after[hash]["params"],
            after[hash]["points"],
            after[hash]["status"],
        )
    for trial in planned(grid).trials:
        tags = after[trial.hash]["tags"]
        assert tags["task"], tags["method"] == (trial.task_label, trial.method_label)
        assert (tags["seed"], tags["status"], tags["code"]) == (trial.spec.seed_label, "finished", trial.code)
        assert (
            after[trial.hash]["params"]["recipe.steps" if "recipe.steps" in after[trial.hash]["params"] else "steps"]
            == "40"
        )
        names = {key for key, _, _ in after[trial.hash]["points"]}
        assert {"train/loss", "val/accuracy", "test/accuracy", "probe/oui/mean"} <= names


@pytest.mark.slow
@pytest.mark.chaos
def test_a_killed_driver_loses_nothing(tmp_path: Path, undisturbed: Place) -> None:  # noqa: F811
    place = Place(tmp_path)
    memory = Results(place.results)
    place.pace(5)  # so slowly that no trial ends before its worker has noticed, however late MLflow shows the commit

    def halfway() -> bool:
        commits = {run["hash"]: memory.trial(run["hash"]).commit() for run in runs_or_none(place.results)}
        return any(commit and commit.checkpoint for commit in commits.values())

    kill_when(place.start("--cpus", 2), halfway)
    before = {run["hash"]: run["run"] for run in runs_or_none(place.results)}
    unfinished = [hash for hash in before if memory.trial(hash).commit() and not memory.trial(hash).result()]
    assert unfinished
    assert len(before) < len(place.hashes)
    place.nothing_runs()
    place.pace(0)
    place.run()
    place.as_undisturbed(undisturbed)
    assert any(memory.trial(hash).result().attempt > 1 for hash in unfinished)  # type: ignore[union-attr]
    after = {run["hash"]: run["run"] for run in runs(place.results / "mlflow.db")}
    assert {hash: after[hash] for hash in before} == before, "an interrupted trial goes on in its run"
    place.nothing_runs()


def runs_or_none(results: Path) -> list[dict[str, Any]]:
    try:
        return runs(results / "mlflow.db")
    except sqlite3.Error:
        return []


@pytest.mark.slow
def test_two_grids_run_on_one_cluster(tmp_path: Path, undisturbed: Place) -> None:  # noqa: F811
    """At once, into one results folder and one MLflow store, with a trial that both name: it is computed once."""
    one = Place(tmp_path / "one", GRID.replace("seeds: 2", "seeds: 1"))
    other = Place(tmp_path / "other", GRID.replace("faults", "others").replace(", slow + sgd", ""))
    other.results = one.results
    (shared,) = set(one.hashes) & set(other.hashes)
    with machines(2) as cluster:
        for place in (one, other):
            place.pace(0.5)
            place.start("--address", cluster.address)
        until(lambda: one.committed() and other.committed(), PATIENCE, "commits of both")
        for place in (one, other):
            place.pace(0)
        for place in (one, other):
            shown = place.driver.communicate(timeout=PATIENCE)[0]
            assert place.driver.returncode == 0, shown
            place.nothing_runs()
    for place in (one, other):
        place.as_undisturbed(undisturbed)
    ended = Results(one.results).trial(shared).result()
    assert ended is not None
    assert ended.attempt == 1, "the other grid waited for it"


@pytest.mark.slow
def test_a_disk_of_the_trials_alone_that_becomes_full_in_mid_run(tmp_path: Path, undisturbed: Place) -> None:  # noqa: F811
    """What else the results folder holds can still be written: nothing new starts all the same, and a rerun finishes."""
    place = Place(tmp_path)
    with small_disk(place.results / "trials", "60m") as disk:
        place.pace(0.5)  # none ends by itself before the disk is full
        driver = place.start()
        until(place.committed, PATIENCE, "a commit")
        filler = disk / "filler"
        fill(filler, driver)
        ends_after_one_trial(place, driver)
        filler.unlink()
        place.pace(0)
        place.run()
        place.as_undisturbed(undisturbed)


TROUBLED_GRID = """
name: trouble
tasks: [digits/mlp]
methods: [nan, raises, hangs, eats, exits, sgd]
seeds: 1
recipes: [{set: {steps: 60, record_every: 10}}]
probes: [oui]
resources: [{memory: 1GiB}, {method: hangs, time: 3s}]
"""


@pytest.mark.slow
@pytest.mark.chaos
def test_trouble_gets_its_status_and_the_grid_goes_on(tmp_path: Path, undisturbed: Place) -> None:  # noqa: F811
    place = Place(tmp_path, TROUBLED_GRID, TROUBLE)
    shown = place.run("--cpus", 2, status=1)
    assert "KeyError: 'mistake'" in shown
    expected = {
        "nan": ("diverged", "FAILED"),
        "raises": ("failed", "FAILED"),
        "hangs": ("timed-out", "KILLED"),
        "eats": ("out-of-memory", "FAILED"),
        "exits": ("failed", "FAILED"),
        "sgd": ("finished", "FINISHED"),
    }

    def check() -> None:
        ended = {name: result.status.value for name, result in found(place.grid, place.results, place.code).items()}
        assert ended == {f"{method} 0": status for method, (status, _) in expected.items()}
        listed = runs(place.results / "mlflow.db")
        tags = {run["tags"]["method"]: (run["tags"]["status"], run["status"]) for run in listed}
        assert tags == expected
        otherwise = {run["hash"]: run["status"] for run in listed if run["tags"]["method"] != "sgd"}
        place.as_undisturbed(undisturbed, otherwise=otherwise)
        for run in listed:
            folder = place.results / "mlartifacts" / "trouble" / run["run"] / "artifacts"
            events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
            assert (events[0]["event"], events[-1]["event"]) == ("started", "ended")
            assert events[-1]["status"] == run["tags"]["status"]
            printed = (folder / "output.txt").read_text() if (folder / "output.txt").exists() else ""
            assert ("about to raise" in printed) == (run["tags"]["method"] == "raises")

    check()
    again = place.run("--cpus", 2, status=1)
    assert "2 of 6 trials to run" in again, "only what ran out of memory or time is tried again"
    check()
    place.nothing_runs()


STAGED = """
@register_method("takes")
class Takes(Method):
    horizon: float = 1.0

    def parameter_groups(self, groups, recipe):
        assert self.horizon > 1
        return groups
"""


@pytest.mark.slow
def test_stages_and_what_is_blocked(tmp_path: Path) -> None:
    code = plugin(tmp_path, TROUBLE + STAGED)
    grid = write_grid(
        tmp_path,
        """
        name: staged
        tasks: [digits/mlp]
        methods:
          - adamw
          - raises
          - takes: {horizon: {from: adamw, metric: selected_step}}
          - takes + sgd: {takes: {horizon: {from: raises, metric: selected_step}}}
        seeds: 1
        recipes: [{set: {steps: 40}}]
        """,
    )
    results = tmp_path / "results"
    harness("run", grid, "--results", results, "--plugin", code, status=1)
    ended = found(grid, results, code)
    statuses = sorted(result.status.value for result in ended.values())
    assert statuses == ["blocked", "failed", "finished", "finished"]
    (taken,) = [result for result in ended.values() if result.values]
    assert list(taken.values.values()) == [ended["adamw 0"].metrics["selected_step"]]
    params = {run["tags"]["method"]: run["params"] for run in trial_runs(results).values()}
    assert any(str(int(next(iter(taken.values.values())))) in str(value) for value in params.values())


NEEDS = """
from pathlib import Path

@register_method("needs")
class Needs(Method):
    def before_step(self, state):
        Path(__file__).with_name("weights.txt").read_text()
"""


@pytest.mark.slow
def test_what_failed_for_a_reason_outside_the_code_is_retried_where_that_is_asked_for(tmp_path: Path) -> None:
    code = plugin(tmp_path, NEEDS)
    grid = write_grid(tmp_path, SMALL.replace("balanced_adam", "needs").replace("seeds: 2", "seeds: 1"))
    results = tmp_path / "results"
    shown = harness("run", grid, "--results", results, "--plugin", code, status=1)
    hint = next(line for line in shown.splitlines() if line.startswith("If it was not the code: "))
    first = found(grid, results, code)
    assert "weights.txt" in first["needs 0"].reason
    assert {name: result.status.value for name, result in first.items()} == {"adamw 0": "finished", "needs 0": "failed"}
    (tmp_path / "weights.txt").write_text("here now")
    assert "1 failed, and left" in harness("plan", grid, "--results", results, "--plugin", code)
    harness("run", grid, "--results", results, "--plugin", code, status=1)
    assert found(grid, results, code) == first, "nothing is run again unasked"
    harness(*hint.partition("harness ")[2].split())
    second = found(grid, results, code)
    assert second["adamw 0"] == first["adamw 0"]
    assert timeless(second["needs 0"].metrics) == timeless(second["adamw 0"].metrics), "the method does nothing"
    assert {run["status"] for run in trial_runs(results).values()} == {"FINISHED"}


TELLS = """
import os
from pathlib import Path

@register_method("prints")
class Prints(Method):
    def before_step(self, state):
        print("in", Path.cwd(), dict(os.environ))

@register_method("fails")
class Fails(Method):
    def before_step(self, state):
        raise KeyError(", ".join(value for value in os.environ.values() if value.endswith("-5d80")))
"""

SECRET = "sekrit-5d80"


@pytest.mark.slow
def test_what_a_trial_prints_of_its_environment_holds_no_secret(tmp_path: Path) -> None:
    """Neither its log nor its error, and nothing that is made of them; and it runs in the folder that the grid was run in."""
    code = plugin(tmp_path, TELLS)
    grid = write_grid(
        tmp_path,
        """
        name: telling
        tasks: [digits/mlp]
        methods: [prints + adamw, fails + adamw]
        seeds: 1
        recipes: [{set: {steps: 2}}]
        """,
    )
    results = tmp_path / "results"
    names = ("MY_API_KEY", "AZURE_STORAGE_KEY", "MYSQL_PWD", "GITHUB_PAT", "HF_TOKEN")
    environment = dict.fromkeys(names, SECRET) | {"FOR_ALL": "told-5d80"}
    place = [grid, "--results", results, "--plugin", code]
    shown = harness("run", *place, status=1, **environment)
    shown += harness("report", *place, **environment)
    shown += harness("report", *place, "--format", "markdown", **environment)
    prints, fails = (trial.hash for trial in planned(grid, code).trials)
    log = (results / "trials" / prints / "1" / "log.txt").read_text()
    assert f"in {Path.cwd()} " in log, "Ray has not changed it"
    failed = Results(results).trial(fails).result()
    assert failed is not None
    assert "told-5d80" in log
    assert "told-5d80" in failed.reason
    assert SECRET not in shown
    files = [file for file in results.rglob("*") if file.is_file()]
    reports = [results / "grids" / "telling" / name for name in ("report.html", "report.md")]
    assert {results / "mlflow.db", *reports} <= set(files)
    assert all("told-5d80" in report.read_text() for report in reports), "why the other trial has failed"
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []


@pytest.mark.slow
def test_a_plugin_of_ten_lines_on_three_families(tmp_path: Path) -> None:
    code = tmp_path / "sign.py"
    code.write_text(
        "from harness import Method, register_method\n\n\n"
        '@register_method("sign_gradient")\n'
        "class SignGradient(Method):\n"
        '    """Steps by the sign of each gradient."""\n\n'
        "    def before_step(self, state):\n"
        "        for parameter in state.model.parameters():\n"
        "            parameter.grad.sign_()\n"
    )
    grid = write_grid(
        tmp_path,
        """
        name: families
        tasks: [digits/mlp, cartpole/ppo, poisson/pinn]
        methods: [sign_gradient + sgd]
        seeds: 1
        recipes:
          - {set: {lr: 1e-4}}
          - {task: digits/mlp, set: {steps: 20}}
          - {task: cartpole/ppo, set: {env_steps: 1024}}
          - {task: poisson/pinn, set: {steps: 20}}
        """,
    )
    results = tmp_path / "results"
    harness("run", grid, "--results", results, "--plugin", code)
    memory = Results(results)
    assert [memory.trial(t.hash).result().status for t in planned(grid, code).trials] == ["finished"] * 3  # type: ignore[union-attr]


def test_the_foreground_gives_the_same_numbers(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """Through Ray, and with neither Ray nor MLflow to be imported."""
    grid, results = finished
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ray'] = sys.modules['mlflow'] = None\n")
    arguments = ["--probe", "oui", "--set", "recipe.steps=40", "--set", "recipe.record_every=5", "--seed", "1"]
    place = tmp_path / "foreground"
    shown = harness("trial", "digits/mlp", "adamw", *arguments, "--results", place, PYTHONPATH=str(tmp_path))
    (trial,) = [t for t in planned(grid).trials if (t.method_label, t.spec.seed_label) == ("adamw", "1")]
    through_ray, alone = Results(results).trial(trial.hash), Results(place).trial(trial.hash)
    assert timeless(through_ray.result().metrics) == timeless(alone.result().metrics)  # type: ignore[union-attr]
    numbers = [
        [(record["step"], timeless(record["metrics"])) for record in records.records()]
        for records in (through_ray, alone)
    ]
    assert numbers[0] == numbers[1]
    assert f"test/accuracy {alone.result().metrics['test/accuracy']:.10g}" in shown  # type: ignore[union-attr]


def test_a_stacked_grid_gives_what_each_seed_gives_alone(tmp_path: Path) -> None:
    grid, results = write_grid(tmp_path, STACKED), tmp_path / "results"
    harness("run", grid, "--results", results, "--cpus", 1)
    ended = found(grid, results)
    assert {name: result.status.value for name, result in ended.items()} == dict.fromkeys(ended, "finished")
    assert len(ended) == 6
    told = harness("trial", "digits/mlp", "sgd", "--seed", 2, "--set", "recipe.steps=40", "--set", "recipe.record_every=5",
                   "--set", "stacked=true", "--results", tmp_path / "alone")  # fmt: skip
    alone = dict(line.split(" ") for line in told.splitlines() if line.startswith(("val/", "test/", "train/")))
    assert alone.keys() == {name for name in ended["sgd 2"].metrics if name.startswith(("val/", "test/", "train/"))}
    assert all(f"{ended['sgd 2'].metrics[name]:.10g}" == value for name, value in alone.items())
    log = results / "trials" / ended["sgd 1"].hash / "1" / "log.txt"
    assert "ran in a stack" in log.read_text()
