"""What the loop of Tuners does with what it hears, without Ray: faults that would take minutes to bring about."""

import io
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from support import write_grid

from harness.planning.grid import load_grid
from harness.planning.plan import PlannedTrial, build_plan
from harness.recording import attempts
from harness.recording.attempts import Attempt, hold
from harness.recording.records import Result, Status
from harness.recording.results import Results
from harness.registry import Registry
from harness.resources import Resources
from harness.running import driver, scheduling
from harness.running.scheduling import TRIES_TO_LOCK, Infrastructure, Outcome, Watch, run_units
from harness.running.units import Unit, UnitTrial
from harness.running.worker import Worker

pytestmark = pytest.mark.chaos


class Deaf:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


def units(*names: str, since: float = math.inf) -> list[Unit]:
    return [Unit([UnitTrial(name, "{}", "code", since=since)], Resources()) for name in names]


class Tuner:
    """Stands in for one Tuner after the other: each call plays the next part."""

    def __init__(self, *parts: Callable[[list[str], Watch], bool]) -> None:
        self.parts = list(parts)
        self.given: list[list[str]] = []

    def __call__(
        self, batch: Sequence[Unit], settings: dict[str, Any], watch: Watch, attempt: int, scheduler: Any
    ) -> bool:
        names = [unit.name for unit in batch]
        self.given.append(names)
        for name in names:
            watch.carry(name, [name])
            watch.start(name)
        return self.parts.pop(0)(names, watch)


def ended(outcomes: dict[str, str], crashed: bool = False) -> Callable[[list[str], Watch], bool]:
    def play(names: list[str], watch: Watch) -> bool:
        told = {name: (outcome, 0.1) for name, outcome in outcomes.items()}
        watch.report({"ended": told, "running": [], "at": 0})
        return crashed

    return play


def test_a_trial_that_another_process_is_at_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = Tuner(ended({"a": "finished", "b": "locked"}), ended({"b": "locked"}), ended({"b": "finished"}))
    monkeypatch.setattr(scheduling, "_fit", tuner)
    outcome = run_units(units("a", "b"), {"results": tmp_path}, Deaf())
    assert tuner.given == [["a", "b"], ["b"], ["b"]]
    assert outcome.ended == {"a": "finished", "b": "finished"}
    assert not outcome.interrupted


def test_a_trial_that_stays_locked_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = Tuner(*[ended({"a": "locked"})] * TRIES_TO_LOCK)
    monkeypatch.setattr(scheduling, "_fit", tuner)
    assert run_units(units("a"), {"results": tmp_path}, Deaf()).ended == {"a": "locked"}
    assert not tuner.parts


def test_a_trial_that_another_process_gets_on_with_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes: it is computed once."""
    with Attempt(tmp_path, "a", "{}", "code") as other:

        def locked(names: list[str], watch: Watch) -> bool:
            other.commit(other.state.step + 1)
            return ended({"a": "locked"})(names, watch)

        tuner = Tuner(*[locked] * 3 * TRIES_TO_LOCK, ended({"a": "finished"}))
        monkeypatch.setattr(scheduling, "_fit", tuner)
        assert run_units(units("a"), {"results": tmp_path}, Deaf()).ended == {"a": "finished"}


def test_a_trial_that_is_busy_does_not_end_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another grid is at what this one has lost: it leaves the result, and the others go on."""
    registry = Registry()
    text = "name: shared\ntasks: [digits/mlp]\nmethods: [adamw]\nseeds: 2\nrecipes: [{set: {steps: 20}}]\n"
    plan = build_plan(load_grid(write_grid(tmp_path, text), [], registry), registry)
    run = driver.Run(plan, Results(tmp_path), driver.Options(), Console(), time.time())
    busy, free = plan.trials
    told: list[tuple[str, str]] = []
    listener = SimpleNamespace(ended=lambda hash, outcome: told.append((hash, outcome)))
    monkeypatch.setattr(attempts, "hold", lambda folder, wait: hold(folder, 0.1))
    with Attempt(tmp_path, busy.hash, busy.spec.to_json(), busy.code) as other:
        run._take(Outcome(lost=[driver.unit_of(trial, {}, []) for trial in (busy, free)]), listener)  # type: ignore[arg-type]
        assert other.trial.result() is None
    assert told == [(busy.hash, "locked"), (free.hash, "lost")]


def test_a_writer_that_hangs_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow lacks what it had not written: the grid's end says so, and the grid is done all the same."""
    hung: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def hang(command: list[str], stdin: int) -> subprocess.Popen[bytes]:
        hung.append(start([sys.executable, "-c", "import time; time.sleep(600)"], stdin=stdin))
        return hung[0]

    monkeypatch.setattr(subprocess, "Popen", hang)
    monkeypatch.setattr(driver, "patience", lambda tracking: 0.1)
    monkeypatch.setattr(driver, "MARGIN", 0.1)
    plan: Any = SimpleNamespace(name="shared")
    run = driver.Run(plan, Results(tmp_path), driver.Options(), Console(file=io.StringIO(), width=200), time.time())
    with run._writer():
        pass
    assert hung[0].wait(60) == -signal.SIGKILL
    assert isinstance(run.console.file, io.StringIO)
    again = f"harness sync shared --results {tmp_path}"
    assert run.console.file.getvalue() == f"MLflow: the writer hangs and was ended. Next: {again}\n"


def test_three_ends_and_one_alone_are_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial that was there at three unexpected ends runs alone; the others finish."""
    monkeypatch.setattr(scheduling, "_check_alive", lambda: None)
    tuner = Tuner(*[ended({}, crashed=True)] * 3, ended({}, crashed=True), ended({"b": "finished"}))
    monkeypatch.setattr(scheduling, "_fit", tuner)
    outcome = run_units(units("a", "b"), {}, Deaf())
    assert tuner.given == [["a", "b"], ["a", "b"], ["a", "b"], ["a"], ["b"]]
    assert [unit.name for unit in outcome.out_of_memory] == ["a"]
    assert outcome.ended == {"b": "finished"}


def test_a_cluster_that_is_gone_is_no_memory_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    """No trial is called out of memory because the head went away."""
    monkeypatch.setattr(scheduling, "_fit", Tuner(ended({}, crashed=True)))
    with pytest.raises(Infrastructure, match="the cluster is gone"):
        run_units(units("a"), {}, Deaf())


def test_a_tuner_that_ends_before_anything_starts_is_not_started_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three such ends in a row are the cluster's trouble; one with a start or an end of a trial between them is not."""

    def nothing_starts(names: list[str], watch: Watch) -> bool:
        watch._started.clear()
        return True

    monkeypatch.setattr(scheduling, "_check_alive", lambda: None)
    tuner = Tuner(*[nothing_starts] * 2, ended({"a": "finished"}, crashed=True), *[nothing_starts] * 3)
    monkeypatch.setattr(scheduling, "_fit", tuner)
    with pytest.raises(Infrastructure, match="ended 3 times in a row before anything started"):
        run_units(units("a", "b"), {}, Deaf())
    assert tuner.given == [["a", "b"]] * 3 + [["b"]] * 3


def test_a_unit_that_is_tried_again_keeps_what_it_has_finished(tmp_path: Path) -> None:
    for name, status, code, ended in (
        ("a", Status.FINISHED, "code", 3.0),
        ("b", Status.LOST, "code", 3.0),
        ("c", Status.FINISHED, "code", 1.5),  # by an earlier run, which this one does again
        ("d", Status.FINISHED, "other code", 3.0),
    ):
        with Attempt(tmp_path, name, "{}", code) as attempt:
            attempt.finish(Result(name, status, code, started=1.0, ended=ended))
    left, passed_over = taken_up(tmp_path, units("a", "b", "c", "d", since=2.0))
    assert left == ["b", "c", "d"], "lost ones and those of other code are run"
    assert passed_over == {"a": ("finished", 2.0)}


def taken_up(results: Path, carried: list[Unit]) -> tuple[list[str], dict[str, tuple[str, float]]]:
    """What a worker would run of units, and what it passes over."""
    worker = Worker.__new__(Worker)
    worker._table, worker._settings = {unit.name: unit.to_json() for unit in carried}, {"results": str(results)}
    worker._begin([unit.name for unit in carried])
    worker._pass_over_done()
    return [trial.hash for trials in worker._waiting for trial in trials], worker._ended


def test_what_another_grid_finishes_after_the_look_at_the_results_is_there_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grid that shares trials finishes one while this run is on its way to its first stage."""
    registry, given = Registry(), []
    text = "name: shared\ntasks: [digits/mlp]\nmethods: [adamw]\nseeds: 2\nrecipes: [{set: {steps: 20}}]\n"
    plan = build_plan(load_grid(write_grid(tmp_path, text), [], registry), registry)
    first, second = plan.trials

    def execute(run: driver.Run, waiting: Sequence[PlannedTrial]) -> None:
        assert list(waiting) == [first, second]
        with Attempt(tmp_path, first.hash, first.spec.to_json(), first.code) as other:
            now = time.time()
            other.finish(Result(first.hash, Status.FINISHED, first.code, started=now, ended=now))
        run._stages(waiting, SimpleNamespace(slots=1), [{"CPU": 1.0}])  # type: ignore[arg-type]

    def run_them(units: Sequence[Unit], settings: dict[str, Any], listener: Any, scheduler: Any) -> Outcome:
        given.extend(units)
        return Outcome()

    monkeypatch.setattr(driver.Run, "execute", execute)
    monkeypatch.setattr(driver, "Metrics", lambda *arguments: Deaf())
    monkeypatch.setattr(driver, "run_units", run_them)
    driver.run_plan(plan, Results(tmp_path), driver.Options(), Console())
    left, passed_over = taken_up(tmp_path, given)
    assert (left, list(passed_over)) == ([second.hash], [first.hash])
