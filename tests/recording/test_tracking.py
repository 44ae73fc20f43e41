"""MLflow as a projection of the results folder: the same runs whenever and however often it is brought up to date."""

import dataclasses
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import support
from machines import PATIENCE, free_port, until

from harness.identity import Part, TrialSpec
from harness.recipe import Recipe
from harness.recording.attempts import Attempt, end_without_result
from harness.recording.grids import open_submission, submissions
from harness.recording.projection import MLFLOW_STATUS, RUNNING, UNFINISHED, params, valid_key
from harness.recording.records import RecordsError, Result, Status
from harness.recording.results import Results
from harness.recording.store import Run, Store, TrackingError, reachable
from harness.recording.tracking import Projection, Report, default_uri, sync, ui_command
from harness.recording.writer import Writer
from harness.registry import Registry
from harness.streams import Streams
from harness.training.trial import build_recipe
from tasks.data import digits
from tasks.federated import FederatedDigits

START = 1_700_000_000.0


def spec(seed: int = 0, method: str = "adamw", **fields: Any) -> TrialSpec:
    recipe = dataclasses.asdict(Recipe(steps=40, lr=3e-3).resolve())
    content = {"data": "digits-57523"} | fields
    return TrialSpec("digits/mlp", {"hidden": [8]}, 1, [Part(method, {"beta": 0.9})], recipe, {"init": seed}, **content)


def submitted(trial: TrialSpec, code: str = "code") -> dict[str, Any]:
    return {
        "hash": trial.hash,
        "spec": json.loads(trial.to_json()),
        "task_label": trial.task,
        "method_label": trial.method,
        "cell": f"{trial.task} · {trial.method}",
        "seed": trial.seed_label,
        "code": code,
    }


def submit(results: Results, trials: list[TrialSpec], grid: str = "demo", code: str = "code") -> None:
    open_submission(
        results,
        grid,
        grid_text=f"name: {grid}\n",
        trials=[submitted(trial, code) for trial in trials],
        left_out=[{"task": "digits/mlp", "method": "fed_avg", "reason": "fed_avg needs clients"}],
        environment={"python": "3.11", "packages": {"torch": "2"}, "git": {"commit": "abc", "dirty": True}},
    )


def record(attempt: Attempt, trial: TrialSpec, steps: range, late: float = 0.0) -> None:
    for step in steps:
        value = (step + trial.seed["init"]) / 8
        metrics = {
            "train/loss": value,
            "val/accuracy": -value,
            "probe/oui/1.act(1)": value,
            "time/train_seconds": step / 100,
        }
        attempt.record({"step": step, "time": START + step + late, "metrics": metrics})


def end(attempt: Attempt, trial: TrialSpec, status: Status = Status.FINISHED, **fields: Any) -> None:
    metrics = {"selected_step": 30.0, "test/accuracy": 0.75, "val/accuracy": 0.5, "time/train_seconds": 9.0}
    content: dict[str, Any] = {"metrics": metrics if status == Status.FINISHED else {}, "steps": 40} | fields
    started, number = attempt.state.started, attempt.state.attempt
    attempt.finish(
        Result(trial.hash, status, attempt.code, attempt=number, started=started, ended=START + 100, **content)
    )


def train(
    results: Results, trial: TrialSpec, status: Status = Status.FINISHED, code: str = "code", **fields: Any
) -> None:
    """A whole trial in one attempt, two commits."""
    with Attempt(results.folder, trial.hash, trial.to_json(), code) as attempt:
        record(attempt, trial, range(10, 30, 10))
        attempt.commit(20, b"checkpoint")
        record(attempt, trial, range(30, 50, 10))
        end(attempt, trial, status, **fields)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: its migrations take seconds."""
    folder = tmp_path_factory.mktemp("database")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    Store(uri, "nothing", folder / "mlartifacts", own=True).close()
    return folder / "mlflow.db"


@pytest.fixture
def memory(results: Path, empty_database: Path) -> Results:
    results.mkdir()
    shutil.copy(empty_database, results / "mlflow.db")
    return Results(results)


def rows(results: Results) -> dict[str, int]:
    """Rows of each table of the database."""
    with sqlite3.connect(results.folder / "mlflow.db") as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


Runs = dict[str, dict[str, Any]]


def shown(results: Results, grid: str = "demo", uri: str | None = None) -> Runs:
    """All that MLflow shows of a grid's runs, by hash, "parent" for the parent; without the ids that it chose."""
    from mlflow import MlflowClient

    client = MlflowClient(uri or default_uri(results))
    experiment = client.get_experiment_by_name(grid)
    assert experiment is not None
    found: Runs = {}
    for run in client.search_runs([experiment.experiment_id]):
        hash = run.data.tags.get("hash", "parent")
        assert hash not in found
        found[hash] = {
            "name": run.info.run_name,
            "info": (run.info.start_time, run.info.end_time, run.info.status),
            "params": run.data.params,
            "tags": {name: value for name, value in run.data.tags.items() if name != "mlflow.parentRunId"},
            "nested": "mlflow.parentRunId" in run.data.tags,
            "points": {
                key: [
                    (point.step, point.timestamp, point.value)
                    for point in client.get_metric_history(run.info.run_id, key)
                ]
                for key in run.data.metrics
            },
            "last": run.data.metrics,
            "datasets": [(item.dataset.name, item.dataset.digest) for item in run.inputs.dataset_inputs],
            "files": sorted(file.path for file in client.list_artifacts(run.info.run_id)),
            "id": run.info.run_id,
        }
    return found


def without_ids(runs: Runs) -> Runs:
    return {hash: {name: value for name, value in run.items() if name != "id"} for hash, run in runs.items()}


def test_a_trial_as_mlflow_shows_it(memory: Results) -> None:
    trial = spec()
    submit(memory, [trial])
    train(memory, trial, environment={"git": {"commit": "abc"}})
    assert str(sync(memory, "demo")) == "1 runs in MLflow, 1 of them brought up to date"
    run = shown(memory)[trial.hash]
    started = memory.trial(trial.hash).result().started  # type: ignore[union-attr]
    assert run["name"] == "digits/mlp · adamw · seed 0"
    assert run["info"] == (int(started * 1000), int(1000 * (START + 100)), "FINISHED")
    assert run["nested"]
    assert run["params"]["lr"] == "0.003"
    assert run["params"]["task.hidden"] == "[8]"
    assert run["params"]["adamw.beta"] == "0.9"
    assert "clip" not in run["params"]
    wanted = {"grid": "demo", "hash": trial.hash, "task": "digits/mlp", "method": "adamw", "seed": "0", "code": "code"}
    wanted |= {"status": "finished", "attempt": "1", "cell": "digits/mlp · adamw", "mlflow.source.git.commit": "abc"}
    assert run["tags"].items() >= wanted.items()
    assert run["points"]["train/loss"] == [(s, int(1000 * (START + s)), s / 8) for s in (10, 20, 30, 40)]
    assert run["points"]["test/accuracy"] == [(40, int(1000 * (START + 100)), 0.75)]
    assert run["points"]["selected/step"] == [(40, int(1000 * (START + 100)), 30.0)]
    assert run["last"]["selected/val/accuracy"] == 0.5
    assert run["last"]["val/accuracy"] == -5.0
    assert len(run["points"]["time/train_seconds"]) == 4
    assert "probe/oui/1.act.1" in run["points"]
    assert run["datasets"] == [("digits/mlp", "digits-57523")]
    assert run["files"] == []


def test_the_parent_holds_the_grid(memory: Results) -> None:
    trials = [spec(0), spec(1)]
    submit(memory, trials)
    train(memory, trials[0])
    sync(memory, "demo")
    parent = shown(memory)["parent"]
    assert parent["files"] == ["environment.json", "grid.yaml", "plan.json"]
    assert parent["info"][2] == "KILLED"
    assert "2 trials: 1 finished, 1 not run" in parent["tags"]["mlflow.note.content"]
    assert "`fed_avg needs clients`" in parent["tags"]["mlflow.note.content"]
    train(memory, trials[1])
    sync(memory, "demo")
    again = shown(memory)["parent"]
    assert again["id"] == parent["id"]
    assert again["info"][2] == "FINISHED"
    submit(memory, [*trials, spec(2)])
    sync(memory, "demo")
    reopened = shown(memory)["parent"]
    assert reopened["id"] == parent["id"]
    assert (reopened["tags"]["submissions"], reopened["info"][2]) == ("2", "KILLED")


def test_the_report_is_an_artifact_of_the_parent_run_in_its_newest_form(memory: Results) -> None:
    from mlflow import MlflowClient

    submit(memory, [spec(0)])
    train(memory, spec(0))
    sync(memory, "demo")
    assert "report.html" not in shown(memory)["parent"]["files"]
    client, folder = MlflowClient(default_uri(memory)), memory.grid("demo")
    for page in ("<p>first</p>", "<p>second</p>"):
        verdict = {"outcome": "supported", "exploratory": [], "sentence": "a is better", "reason": page}
        (folder / "report.html").write_text(page)
        (folder / "verdicts.json").write_text(json.dumps([verdict]))
        sync(memory, "demo")
        parent = shown(memory)["parent"]
        assert parent["files"] == ["environment.json", "grid.yaml", "plan.json", "report.html"]
        assert Path(client.download_artifacts(parent["id"], "report.html")).read_text() == page
        assert f"- **supported**: `a is better`; `{page}`" in parent["tags"]["mlflow.note.content"]


def test_the_picture_of_a_partition_is_an_artifact_of_its_run(memory: Results, registry: Registry) -> None:
    """Its bars name as many samples of each class as the clients hold, and all of the training part."""
    import torch
    from mlflow import MlflowClient

    options = {"clients": 6, "partition": "shards", "classes_per_client": 4}
    task = FederatedDigits(**options)
    recipe = build_recipe(task, {"rounds": 1})
    parts = [Part("fed_avg")]
    trial = TrialSpec("digits/federated", options, 1, parts, dataclasses.asdict(recipe), {"init": 3})
    submit(memory, [trial], code="test")
    assert support.run(registry, trial, memory.folder).status is Status.FINISHED
    sync(memory, "demo")
    client, id = MlflowClient(default_uri(memory)), shown(memory)[trial.hash]["id"]
    assert [file.path for file in client.list_artifacts(id, "pictures")] == ["pictures/partition.svg"]
    root = ElementTree.parse(client.download_artifacts(id, "pictures/partition.svg")).getroot()
    svg = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{svg}svg"
    drawn = {}
    for bar in root.iter(f"{svg}rect"):
        numbers = re.fullmatch(r"client (\d+): (\d+) samples; class (\d+): (\d+)", bar.findtext(f"{svg}title") or "")
        assert numbers
        number, size, label, count = map(int, numbers.groups())
        drawn[number, label] = (size, count, float(bar.attrib["width"]))
    built = task.workload(recipe, Streams(3), torch.device("cpu"))
    expected = {}
    for number, held in enumerate(built.client_data(k)["labels"].tolist() for k in range(6)):
        expected |= {(number, label): (len(held), held.count(label)) for label in set(held)}
    assert {key: value[:2] for key, value in drawn.items()} == expected
    longest = max(size for size, _, _ in drawn.values())
    assert all(width == pytest.approx(640 * count / longest, abs=0.06) for _, count, width in drawn.values())
    whole = digits(Streams(3), torch.device("cpu")).train.labels.bincount().tolist()
    assert [sum(count for (_, own), (_, count, _) in drawn.items() if own == label) for label in range(10)] == whole


def test_a_second_sync_changes_nothing(memory: Results) -> None:
    trials = [spec(seed) for seed in range(3)]
    submit(memory, trials)
    train(memory, trials[0])
    train(memory, trials[1], Status.FAILED, reason="ValueError: no", error="Traceback: no")
    before = sync(memory, "demo")
    count, content = rows(memory), (memory.folder / "mlflow.db").read_bytes()
    after = sync(memory, "demo")
    assert (before.changed, after.changed) == (2, 0)
    assert rows(memory) == count
    assert (memory.folder / "mlflow.db").read_bytes() == content


def test_a_deleted_database_comes_back_the_same(memory: Results, empty_database: Path) -> None:
    trials = [spec(seed) for seed in range(4)]
    submit(memory, trials[:3])
    train(memory, trials[0])
    sync(memory, "demo")
    with Attempt(memory.folder, trials[1].hash, trials[1].to_json(), "code") as attempt:
        record(attempt, trials[1], range(10, 30, 10))
        attempt.commit(20, b"checkpoint")
        sync(memory, "demo")
    sync(memory, "demo")
    train(memory, trials[1])
    train(memory, trials[2], Status.DIVERGED, reason="the objective is nan at step 40")
    submit(memory, [trials[0], *trials[2:]])
    train(memory, trials[3])
    sync(memory, "demo")
    incremental = shown(memory)
    assert incremental[trials[1].hash]["tags"]["planned"] == "false"
    files = {path.name for path in (memory.folder / "mlartifacts" / "demo").iterdir()}
    shutil.copy(empty_database, memory.folder / "mlflow.db")
    sync(memory, "demo")
    rebuilt = shown(memory)
    assert without_ids(rebuilt) == without_ids(incremental)
    assert {run["id"] for run in rebuilt.values()}.isdisjoint(run["id"] for run in incremental.values())
    left = {path.name for path in (memory.folder / "mlartifacts" / "demo").iterdir()}
    assert left.isdisjoint(files)


def test_a_resumed_trial_goes_on_in_its_run(memory: Results) -> None:
    trial = spec()
    submit(memory, [trial])
    with Attempt(memory.folder, trial.hash, trial.to_json(), "code") as first:
        record(first, trial, range(10, 30, 10))
        first.commit(20, b"checkpoint")
        record(first, trial, range(30, 40, 10))  # not committed: computed again by the next attempt
        assert sync(memory, "demo").running == 1
        assert shown(memory)[trial.hash]["info"][1:] == (None, "RUNNING")
    sync(memory, "demo")
    interrupted = shown(memory)[trial.hash]
    assert (interrupted["tags"]["status"], interrupted["info"][2]) == ("unfinished", "KILLED")
    with Attempt(memory.folder, trial.hash, trial.to_json(), "code") as second:
        record(second, trial, range(30, 40, 10))
        second.commit(30, b"checkpoint")
        sync(memory, "demo")
        assert shown(memory)[trial.hash]["info"][2] == "RUNNING"
        record(second, trial, range(40, 50, 10))
        end(second, trial)
    sync(memory, "demo")
    run = shown(memory)[trial.hash]
    assert run["id"] == interrupted["id"]
    assert [step for step, _, _ in run["points"]["train/loss"]] == [10, 20, 30, 40]
    assert (run["tags"]["attempt"], run["tags"]["status"], run["info"][2]) == ("2", "finished", "FINISHED")


def test_a_trial_that_is_killed_before_its_result_doubles_no_point(memory: Results) -> None:
    """MLflow shows its last records already, and the next attempt makes them again, at another time."""
    trial = spec()
    submit(memory, [trial])
    with Attempt(memory.folder, trial.hash, trial.to_json(), "code") as first:
        record(first, trial, range(10, 30, 10))
        first.commit(20, b"checkpoint")
        record(first, trial, range(30, 50, 10))
        first.commit(40)  # as `finish` does; killed before it wrote the result
        sync(memory, "demo")
    with Attempt(memory.folder, trial.hash, trial.to_json(), "code") as second:
        record(second, trial, range(30, 50, 10), late=60)
        end(second, trial)
    sync(memory, "demo")
    run = shown(memory)[trial.hash]
    assert [step for step, _, _ in run["points"]["train/loss"]] == [10, 20, 30, 40]


def test_a_pass_that_was_cut_short_doubles_nothing(memory: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = spec()
    submit(memory, [trial])
    train(memory, trial)
    whole = Store.fill

    def cut(self: Store, run: Run, *arguments: Any) -> Run:
        monkeypatch.setattr(self._client, "log_batch", lambda *a, **k: (_ for _ in ()).throw(OSError("gone")))
        return whole(self, run, *arguments)

    monkeypatch.setattr(Store, "fill", cut)
    with pytest.raises(TrackingError, match="gone"):
        sync(memory, "demo")
    monkeypatch.setattr(Store, "fill", whole)
    half = rows(memory)
    sync(memory, "demo")
    assert rows(memory)["metrics"] == half["metrics"] > 0
    assert rows(memory)["runs"] == half["runs"]
    assert rows(memory)["inputs"] == 1
    assert shown(memory)[trial.hash]["tags"]["status"] == "finished"


def test_a_second_run_of_a_trial_goes(memory: Results) -> None:
    """As a request leaves one that was carried out but never answered."""
    trial = spec()
    submit(memory, [trial])
    train(memory, trial)
    sync(memory, "demo")
    projection = Projection(memory, "demo")
    run = projection._runs[trial.hash]
    from harness.recording.projection import snapshot, trial_content

    state = snapshot(projection.trials[trial.hash], memory.trial(trial.hash))
    assert state is not None
    ghost = projection._store.create(trial_content(state, "demo", "me", True), projection._parent)
    projection.close()
    sync(memory, "demo")
    assert shown(memory)[trial.hash]["id"] == run.id != ghost.id


def test_a_rerun_of_a_stale_trial_replaces_its_run(memory: Results) -> None:
    trial = spec()
    submit(memory, [trial], code="old")
    train(memory, trial, Status.FAILED, code="old", reason="ValueError: no", error="Traceback: no")
    sync(memory, "demo")
    old = shown(memory)[trial.hash]
    assert old["files"] == ["error.txt"]
    assert (old["tags"]["reason"], old["info"][2]) == ("ValueError: no", "FAILED")
    submit(memory, [trial], code="new")
    sync(memory, "demo")
    kept = shown(memory)[trial.hash]
    assert (kept["id"], kept["tags"]["stale"], kept["tags"]["code"]) == (old["id"], "true", "old")
    train(memory, trial, code="new")
    sync(memory, "demo")
    new = shown(memory)[trial.hash]
    assert new["id"] != old["id"]
    assert new["files"] == []
    assert (new["tags"]["code"], new["tags"]["status"]) == ("new", "finished")
    assert {"stale", "reason", "mlflow.note.content"}.isdisjoint(new["tags"])
    assert len(new["points"]["train/loss"]) == 4


def test_a_trial_that_two_grids_name_has_a_run_in_each(memory: Results) -> None:
    shared, own = spec(0), spec(1)
    submit(memory, [shared, own], "first")
    submit(memory, [shared], "second")
    train(memory, shared)
    train(memory, own)
    for grid in ("first", "second"):
        sync(memory, grid)
    first, second = shown(memory, "first"), shown(memory, "second")
    assert (set(first), set(second)) == ({"parent", shared.hash, own.hash}, {"parent", shared.hash})
    assert (first[shared.hash]["tags"]["grid"], second[shared.hash]["tags"]["grid"]) == ("first", "second")
    for name in ("points", "params", "info", "datasets"):
        assert first[shared.hash][name] == second[shared.hash][name]


def test_points_written_in_bulk_are_those_that_mlflow_writes(memory: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second implementation: MLflow's own `log_batch`."""
    trials = [spec(seed) for seed in range(2)]
    for grid in ("bulk", "batch"):
        submit(memory, trials, grid)
    for trial in trials:
        train(memory, trial)
    sync(memory, "bulk")
    monkeypatch.setattr("harness.recording.store._Bulk.COLUMNS", frozenset({"other"}))
    sync(memory, "batch")
    bulk, batch = shown(memory, "bulk"), shown(memory, "batch")
    for trial in trials:
        assert bulk[trial.hash]["points"] == batch[trial.hash]["points"]
        assert bulk[trial.hash]["last"] == batch[trial.hash]["last"]


def test_values_that_are_not_finite_never_arrive(memory: Results) -> None:
    trial = spec()
    submit(memory, [trial])
    with Attempt(memory.folder, trial.hash, trial.to_json(), "code") as attempt:
        record(attempt, trial, range(10, 20, 10))
        attempt._pending.append('{"step": 20, "time": 1.0, "metrics": {"train/loss": NaN, "val/loss": 1e999}}')
        end(attempt, trial, Status.DIVERGED, reason="the objective is nan at step 20")
    sync(memory, "demo")
    run = shown(memory)[trial.hash]
    assert len(run["points"]["train/loss"]) == 1
    assert "val/loss" not in run["points"]
    assert (run["tags"]["status"], run["info"][2]) == ("diverged", "FAILED")


def test_actions_are_a_file(memory: Results) -> None:
    trial = spec()
    submit(memory, [trial])
    actions = [{"step": step, "action": "decay", "values": {"act1": step / 10}} for step in (1, 2)]
    with Attempt(memory.folder, trial.hash, trial.to_json(), "code") as attempt:
        attempt.record(actions[0])
        record(attempt, trial, range(10, 20, 10))
        attempt.commit(10, b"checkpoint")
        sync(memory, "demo")
        attempt.record(actions[1])
        end(attempt, trial)
    sync(memory, "demo")
    run = shown(memory)[trial.hash]
    assert run["files"] == ["actions.jsonl"]
    file = memory.folder / "mlartifacts" / "demo" / run["id"] / "artifacts" / "actions.jsonl"
    assert [json.loads(line) for line in file.read_text().splitlines()] == actions


def test_a_trial_that_never_started_says_why(memory: Results) -> None:
    blocked, lost = spec(0), spec(1)
    submit(memory, [blocked, lost])
    for trial, status in ((blocked, Status.BLOCKED), (lost, Status.LOST)):
        result = Result(trial.hash, status, "code", started=START, ended=START + 1, reason="needs what is not there")
        end_without_result(memory.folder, result, trial.to_json())
    sync(memory, "demo")
    runs = shown(memory)
    assert runs[blocked.hash]["info"] == (int(START * 1000), int(START * 1000) + 1000, "SCHEDULED")
    assert runs[blocked.hash]["tags"]["mlflow.note.content"] == "**blocked**: `needs what is not there`"
    assert runs[lost.hash]["info"][2] == "KILLED"
    train(memory, lost)
    sync(memory, "demo")
    assert shown(memory)[lost.hash]["tags"]["status"] == "finished"


def test_every_status_has_one_of_mlflow() -> None:
    assert set(MLFLOW_STATUS) == {*Status, RUNNING, UNFINISHED}
    assert set(MLFLOW_STATUS.values()) == {"RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"}


def test_a_value_taken_from_another_trial_is_a_param_once_known() -> None:
    content = {
        "recipe": {"lr": None, "steps": 5},
        "task_options": {},
        "methods": [{"name": "m(x)", "options": {"a": None}}],
    }
    assert params(content, {}) == {"steps": "5"}
    assert params(content, {"recipe.lr": 0.25, "methods.0.a": 3.0}) == {"steps": "5", "lr": "0.25", "m.x.a": "3.0"}


@pytest.mark.parametrize("name", ["a//b", "/a", "a/", "../a", "a|b*", "x" * 300, "./a", "a/../b"])
def test_every_name_becomes_one_that_mlflow_takes(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    _validate_metric_name(valid_key(name))
    _validate_param_name(valid_key(name))


def test_bad_input_is_answered(memory: Results) -> None:
    with pytest.raises(RuntimeError, match="run the grid first"):
        sync(memory, "demo")
    submit(memory, [spec()])
    with pytest.raises(TrackingError, match=r"--tracking: found '\./mlruns', allowed: http://"):
        sync(memory, "demo", "./mlruns")
    projection = Projection(memory, "demo")
    with pytest.raises(TrackingError, match="another process"):
        Projection(memory, "demo")
    projection.close()
    with pytest.raises(TrackingError, match="Connection refused"):
        sync(memory, "demo", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TrackingError, match="in a browser"):
        ui_command(memory, "http://127.0.0.1:5000")


@pytest.mark.chaos
@pytest.mark.parametrize("name", ["result.json", "1/commit.json", "1/chunk-00001.jsonl"])
def test_a_damaged_trial_is_named_and_the_others_are_shown(memory: Results, name: str) -> None:
    trials = [spec(0), spec(1)]
    submit(memory, trials)
    for trial in trials:
        train(memory, trial)
    file = memory.trial(trials[0].hash).folder / name
    file.write_bytes(file.read_bytes()[:-5])
    report = sync(memory, "demo")
    assert (report.runs, report.pending) == (1, 1)
    assert report.problem.startswith(f"trial {trials[0].hash}: {file}: found damaged content (")
    assert f"delete {memory.trial(trials[0].hash).folder}, and the next run computes this trial anew" in report.problem


@pytest.mark.chaos
def test_a_damaged_database_is_told_at_once(memory: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow would try to connect to it ten times, and sleep for 100 s between."""
    import mlflow.store.db.utils

    submit(memory, [spec()])
    (memory.folder / "mlflow.db").write_text("this is no database, and it is as long as a header is")
    monkeypatch.setattr(mlflow.store.db.utils, "time", None)
    with pytest.raises(
        TrackingError, match=r"mlflow\.db: file is not a database; delete it, and harness sync builds it anew"
    ):
        sync(memory, "demo")
    (memory.folder / "mlflow.db").unlink()
    monkeypatch.undo()
    assert sync(memory, "demo").pending == 0


@pytest.mark.chaos
@pytest.mark.parametrize("place", ["mlflow.db", "elsewhere.db"])
def test_a_database_whose_making_was_cut_short_is_made_anew(
    place: str, memory: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a full disk, or with its process by SIGKILL: MLflow by itself could never open such a database again."""
    import mlflow.store.db.utils
    from sqlalchemy.exc import OperationalError

    def full(engine: Any) -> None:
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    uri = None if place == "mlflow.db" else f"sqlite:///{memory.folder / place}"
    (memory.folder / "mlflow.db").unlink()
    submit(memory, [spec()])
    (memory.folder / f".{place}-killed").mkdir()
    monkeypatch.setattr(mlflow.store.db.utils, "_upgrade_db", full)
    with pytest.raises(TrackingError, match="disk is full"):
        sync(memory, "demo", uri)
    assert not (memory.folder / place).exists()
    monkeypatch.undo()
    assert sync(memory, "demo", uri).pending == 0
    assert not list(memory.folder.glob(f".{place}*"))


@pytest.mark.parametrize("name", ["submissions/0001/plan.json", "submissions/0001/submission.json", "verdicts.json"])
def test_a_damaged_grid_is_told_in_one_line(memory: Results, name: str) -> None:
    submit(memory, [spec()])
    for content in ("report.html", "verdicts.json"):
        (memory.grid("demo") / content).write_text("[]")
    file = memory.grid("demo") / name
    file.write_text("{")
    with pytest.raises(RecordsError, match=f"{file}: found damaged content"):
        sync(memory, "demo")


def start_writer(results: Results, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "harness.recording.writer", "--results", str(results.folder), "--grid", "demo"]
    return subprocess.Popen([*command, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_the_writer_follows_the_records_until_its_input_closes(memory: Results) -> None:
    trials = [spec(0), spec(1)]
    submit(memory, trials)
    train(memory, trials[0])
    process = start_writer(memory)
    until(lambda: rows(memory)["metrics"] > 0, PATIENCE)  # it is nice: it waits while others need the machine
    first = shown(memory)
    assert first["parent"]["info"][2] == "RUNNING"
    train(memory, trials[1])
    until(lambda: rows(memory)["runs"] == 3, PATIENCE)
    assert process.communicate(timeout=PATIENCE) == (b"", b"")
    assert process.returncode == 0
    last = shown(memory)
    assert last["parent"]["info"][2] == "FINISHED"
    assert {run["info"][2] for run in last.values()} == {"FINISHED"}
    submissions(memory, "demo")[-1].close("finished")
    assert sync(memory, "demo").changed == 0
    assert shown(memory) == last


def test_a_server_that_is_not_there_costs_the_grid_nothing_and_is_named_at_the_end(memory: Results) -> None:
    submit(memory, [spec(0), spec(1)])
    train(memory, spec(0))
    uri = f"http://127.0.0.1:{free_port()}"
    process = start_writer(memory, "--tracking", uri)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert told.decode().startswith("MLflow: 1 trials are not, or not fully, projected (")
    assert told.decode().endswith(f"Next: harness sync demo --results {memory.folder} --tracking {uri}\n")
    assert told.count(b"\n") == 1
    assert sync(memory, "demo").changed == 1


@contextmanager
def faulty_server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    faulty = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=faulty.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{faulty.server_port}"
    finally:
        faulty.shutdown()
        faulty.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda request: request.send_error(500), "500"),
        (lambda request: request.send_error(403), "403"),
        (lambda request: time.sleep(2), "127.0.0.1"),
    ],
    ids=["errors", "forbidden", "silence"],
)
@pytest.mark.chaos
def test_a_server_that_is_no_good_is_let_go(
    memory: Results, monkeypatch: pytest.MonkeyPatch, answer: Callable[[BaseHTTPRequestHandler], None], problem: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    submit(memory, [spec(0), spec(1)])
    train(memory, spec(0))
    with faulty_server(answer) as uri:
        ended = threading.Event()
        ended.set()
        began = time.monotonic()
        report = Writer(memory, "demo", uri, ended).follow()
        assert time.monotonic() - began < 10
    assert (report.pending, report.changed) == (1, 0)
    assert problem in report.problem


def test_a_server_that_forbids_all_but_its_health_check_is_not_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As MLflow does with a host name that it was not told of: what the head asks before a grid is a real request."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path in ("/health", "/version"):
            request.send_response(200)
            request.end_headers()
        else:
            request.send_error(403, "Invalid Host header")

    with faulty_server(answer) as uri, pytest.raises(TrackingError, match="403"):
        reachable(uri)


@pytest.mark.parametrize(
    ("tracking", "seconds"),
    [
        (None, 600),
        ("sqlite:////shared/runs.db", 600),
        ("http://mlflow:5000", 60),
        ("https://mlflow", 60),
        ("postgresql://database/mlflow", 60),
        ("postgresql+psycopg2://database/mlflow", 60),
        ("mysql+pymysql://database/mlflow", 60),
    ],
)
def test_the_last_pass_waits_longer_for_a_file_than_for_a_server(
    memory: Results, tracking: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server, be it a database, gets one minute: what runs for a grid ends within two."""
    ended, limits = threading.Event(), []
    ended.set()
    writer = Writer(memory, "demo", tracking, ended)

    def pass_(go_on: Callable[[], bool], *, everything: bool, driven: bool) -> Report:
        began = time.monotonic()
        with monkeypatch.context() as later:
            for limit in (60, 600):
                later.setattr("harness.recording.writer.time.monotonic", lambda limit=limit: began + limit - 5)
                limits.append(go_on())
                later.setattr("harness.recording.writer.time.monotonic", lambda limit=limit: began + limit + 5)
                limits.append(go_on())
        return Report()

    monkeypatch.setattr(writer, "_pass", pass_)
    writer.follow()
    assert limits == [True, seconds == 600, seconds == 600, False]


def test_the_writer_of_a_dead_driver_waits_for_its_workers_and_ends(memory: Results) -> None:
    trial = spec()
    submit(memory, [trial])
    with Attempt(memory.folder, trial.hash, trial.to_json(), "code") as attempt:
        record(attempt, trial, range(10, 30, 10))
        attempt.commit(20, b"checkpoint")
        writer = Writer(memory, "demo", None, threading.Event(), orphaned=lambda: True)
        thread = threading.Thread(target=writer.follow)
        thread.start()
        until(lambda: writer.ended.is_set())
        thread.join(1.5)
        assert thread.is_alive()
    thread.join(20)
    assert not thread.is_alive()
    run = shown(memory)[trial.hash]
    assert (run["tags"]["status"], run["info"][2]) == ("unfinished", "KILLED")


@contextmanager
def server(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server of MLflow that answers; it is stopped at the end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: answers(port) or process.poll() is not None, PATIENCE)
        assert process.poll() is None
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=PATIENCE)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.chaos
def test_a_server_that_goes_away_in_the_middle_is_caught_up_with(
    memory: Results, results: Path, tmp_path: Path
) -> None:
    """And the pages that `harness ui` shows, which the same server brings."""
    trials = [spec(seed) for seed in range(4)]
    submit(memory, trials)
    for trial in trials:
        train(memory, trial)
    port = free_port()
    elsewhere = Results(tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    shutil.copy(memory.folder / "mlflow.db", elsewhere.folder / "mlflow.db")
    command, uri = ui_command(elsewhere, None, port), f"http://127.0.0.1:{port}"
    with server(command, port) as process:
        projection = Projection(memory, "demo", uri)
        asked = 0

        def stop_after_two() -> bool:
            nonlocal asked
            asked += 1
            if asked == 3:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=PATIENCE)
            return True

        with pytest.raises(TrackingError):
            projection.bring_up_to_date(stop_after_two)
        projection.close()
    with server(command, port):
        report = sync(memory, "demo", uri)
        assert (report.runs, report.changed, report.pending) == (4, 2, 0)
        assert sync(memory, "demo", uri).changed == 0
        remote = shown(memory, uri=uri)
        query = f"{uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name=demo"
        with urllib.request.urlopen(query, timeout=10) as answer:
            assert json.load(answer)["experiment"]["name"] == "demo"
        parent = remote["parent"]["id"]
        with urllib.request.urlopen(f"{uri}/get-artifact?path=grid.yaml&run_id={parent}", timeout=10) as answer:
            assert answer.read() == b"name: demo\n"
    sync(memory, "demo")
    assert without_ids(shown(memory)) == without_ids(remote)


def test_workers_import_no_mlflow() -> None:
    code = "import sys, harness.recording.grids, harness.recording.writer; print('mlflow' in sys.modules)"
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert told.stdout == "False\n"


def test_a_report_says_what_is_missing() -> None:
    report = Report(runs=3, changed=1, pending=2, problem="no answer")
    assert str(report) == "3 runs in MLflow, 1 of them brought up to date; 2 not projected (no answer)"
