"""What the loop of Tuners does with what it hears, without Ray: faults that would take minutes to bring about."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.recording.records import Attempt, Result, Status
from harness.resources import Resources
from harness.running import scheduling
from harness.running.scheduling import TRIES_TO_LOCK, Infrastructure, Watch, run_units
from harness.running.units import Unit, UnitTrial
from harness.running.worker import Worker

pytestmark = pytest.mark.chaos


class Deaf:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


def units(*names: str) -> list[Unit]:
    return [Unit([UnitTrial(name, "{}", "code")], Resources()) for name in names]


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


def test_a_trial_that_another_process_is_at_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = Tuner(ended({"a": "finished", "b": "locked"}), ended({"b": "locked"}), ended({"b": "finished"}))
    monkeypatch.setattr(scheduling, "_fit", tuner)
    outcome = run_units(units("a", "b"), {}, Deaf())
    assert tuner.given == [["a", "b"], ["b"], ["b"]]
    assert outcome.ended == {"a": "finished", "b": "finished"}
    assert not outcome.interrupted


def test_a_trial_that_stays_locked_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = Tuner(*[ended({"a": "locked"})] * TRIES_TO_LOCK)
    monkeypatch.setattr(scheduling, "_fit", tuner)
    assert run_units(units("a"), {}, Deaf()).ended == {"a": "locked"}
    assert not tuner.parts


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


def test_a_unit_that_is_tried_again_keeps_what_it_has_finished(tmp_path: Path) -> None:
    carried = units("a", "b", "c")
    for name, status, ended in (
        ("a", Status.FINISHED, 3.0),
        ("b", Status.LOST, 3.0),
        ("c", Status.FINISHED, 1.5),  # by an earlier run, which this one does again
    ):
        with Attempt(tmp_path, name, "{}", "code") as attempt:
            attempt.finish(Result(name, status, "code", started=1.0, ended=ended))
    worker = Worker.__new__(Worker)
    worker._table, worker._settings = (
        {unit.name: unit.to_json() for unit in carried},
        {"results": str(tmp_path), "since": 2.0},
    )
    worker._begin(["a", "b", "c"])
    worker._pass_over_done()
    assert [trial.hash for trials in worker._waiting for trial in trials] == ["b", "c"], (
        "lost ones and those of other code are run"
    )
    assert worker._ended == {"a": ("finished", 2.0)}
