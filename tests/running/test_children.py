"""Trials in children of a warm process: every way to end gets its status, and the next trial is untouched."""

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from machines import PATIENCE, until
from support import TROUBLE, plugin, run, seeded, together, told

from harness.conformance import short_spec
from harness.identity import Part, TrialSpec, code_digest
from harness.recording.attempts import Attempt
from harness.recording.log import MOST, last, tell
from harness.recording.records import Result, Status, TrialRecords
from harness.registry import Registry
from harness.resources import Resources
from harness.running import child as running_child
from harness.running import children
from harness.running.child import ENDINGS, TOLD, Child, _take_share
from harness.running.children import (
    LEAST,
    WarmDied,
    WarmHandle,
    child_environment,
    fair_memory,
    node_cpus,
    usable,
)
from harness.running.units import Unit, UnitTrial
from harness.running.warm import Limits, Warm, _ending, _kill

LIMITS = Resources(memory=1 << 30, time=120.0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("children")


@pytest.fixture(scope="module")
def plugins(place: Path) -> Registry:
    return Registry([plugin(place, TROUBLE)])


@pytest.fixture(scope="module")
def warm(place: Path, plugins: Registry) -> Iterator[WarmHandle]:
    handle = WarmHandle(place / "results", plugins.plugins, LIMITS, commit_every=0.2)
    yield handle
    handle.stop()


def unit_trial(registry: Registry, spec: TrialSpec) -> UnitTrial:
    return UnitTrial(spec.hash, spec.to_json(), code_digest(registry, spec))


def wait_for(warm: WarmHandle, kind: str, seconds: float = PATIENCE) -> dict[str, object]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for event in warm.events(0.5):
            if event["event"] == kind:
                return event
    raise AssertionError(f"no {kind!r} within {seconds} s")


def finish(warm: WarmHandle, registry: Registry, spec: TrialSpec, place: Path) -> Result | None:
    warm.start([unit_trial(registry, spec)])
    wait_for(warm, "ended")
    return TrialRecords(place / "results", spec.hash).result()


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("method", "status", "reason"),
    [
        (Part("nan"), "diverged", "the objective is nan at step 1"),
        (Part("raises"), "failed", "KeyError: 'mistake'"),
        (Part("eats"), "out-of-memory", "took more than its memory limit"),
        (Part("exits"), "failed", "its process ended itself with exit code 0 and left no result"),
        (Part("exits", {"code": 75}), "failed", "its process ended itself with exit code 75 and left no result"),
        (Part("crashes"), "failed", "its process was ended by SIGSEGV"),
    ],
)
def test_every_end_has_a_status(
    warm: WarmHandle, plugins: Registry, place: Path, method: Part, status: str, reason: str
) -> None:
    ended = finish(warm, plugins, short_spec(plugins, "digits/mlp", [method]), place)
    assert ended is not None
    assert (ended.status, ended.reason) == (status, reason)


@pytest.mark.chaos
def test_what_hangs_runs_out_of_time(plugins: Registry, tmp_path: Path) -> None:
    impatient = WarmHandle(tmp_path / "results", plugins.plugins, Resources(time=2.0))
    ended = finish(impatient, plugins, short_spec(plugins, "digits/mlp", [Part("hangs")]), tmp_path)
    impatient.stop()
    assert ended is not None
    assert (ended.status, ended.reason) == ("timed-out", "ran past its time limit")


def test_the_next_trial_is_untouched(warm: WarmHandle, plugins: Registry, place: Path, tmp_path: Path) -> None:
    spec = short_spec(plugins, "digits/mlp", [Part("adamw")])
    expected = run(plugins, spec, tmp_path)
    finish(warm, plugins, short_spec(plugins, "digits/mlp", [Part("spoils")]), place)
    ended = finish(warm, plugins, spec, place)
    assert ended is not None
    assert timeless(ended) == timeless(expected), "the foreground and the child give the same numbers"


def timeless(result: Result) -> dict[str, float]:
    return {name: value for name, value in result.metrics.items() if not name.startswith(("time/", "system/"))}


def test_records_that_are_of_no_use_are_named(warm: WarmHandle, plugins: Registry, place: Path) -> None:
    spec = replace(short_spec(plugins, "digits/mlp", [Part("adamw")]), seed={"init": 77})
    order = unit_trial(plugins, spec)
    with Attempt(place / "results", spec.hash, spec.to_json(), order.code) as attempt:
        attempt.commit(1, b"checkpoint")
    file = attempt.folder / "commit.json"
    file.write_text("{")
    warm.start([order])
    event = wait_for(warm, "ended")
    assert event["status"] is None
    assert str(event["reason"]).startswith(f"unwritable: {file}: found damaged content (")
    assert str(event["reason"]).endswith("and the next run computes this trial anew")


@pytest.mark.chaos
def test_a_log_that_cannot_be_opened_is_no_failure_of_the_trial(
    plugins: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = unit_trial(plugins, short_spec(plugins, "digits/mlp", [Part("adamw")]))
    monkeypatch.setattr(running_child, "OUTPUT", ".")  # a folder, which no process can write to
    with mmap.mmap(-1, mmap.PAGESIZE) as shared:
        Child(tmp_path, plugins, 1.0, shared, None)._trials([trial], lambda: False)
        assert ENDINGS[shared[8]] == "unwritable"
        assert shared[TOLD:].startswith(f"{tmp_path / 'trials' / trial.hash / '1'}: cannot be used (".encode())
    assert TrialRecords(tmp_path, trial.hash).result() is None


def child_of(warm: WarmHandle) -> psutil.Process:
    """The process of its trial: what it asks of other programs while it starts is none."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process(warm.pid).children():
            with suppress(ProcessLookupError):
                if os.getpgid(child.pid) == child.pid:  # it alone leads a group
                    return child
        time.sleep(0.01)
    raise AssertionError("no child")


@pytest.mark.chaos
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_from_outside_is_lost(warm: WarmHandle, plugins: Registry, place: Path, number: signal.Signals) -> None:
    """So it is taken up again: a stop is what the worker asks for, whatever else asks its process to end."""
    spec = short_spec(plugins, "digits/mlp", [Part("slow")], steps=400)
    warm.start([unit_trial(plugins, spec)])
    while int(str(wait_for(warm, "progress")["step"])) < 1:
        pass
    child_of(warm).send_signal(number)
    ended = wait_for(warm, "ended")
    assert (ended["status"], number.name in str(ended["reason"])) == ("lost", True)


@pytest.mark.chaos
def test_a_process_that_wakes_up_after_another_has_taken_over(plugins: Registry, place: Path, tmp_path: Path) -> None:
    """A trial and its warm process stand still, and the file system forgets their lock, as when a node is cut off.

    Another process takes the trial to its end. What then wakes up changes nothing of it.
    """
    spec = short_spec(plugins, "digits/mlp", [Part("slow"), Part("adamw")])
    expected = told(tmp_path / "alone", run(plugins, spec, tmp_path / "alone", commit_every=0.2))
    results, unit = tmp_path / "results", unit_trial(plugins, spec)
    records = TrialRecords(results, spec.hash)
    first, second = (WarmHandle(results, plugins.plugins, Resources(), commit_every=0.2) for _ in range(2))
    pace = place / "pace"
    pace.write_text("0.5")
    try:
        first.start([unit])
        until(lambda: (commit := records.commit()) and commit.checkpoint, PATIENCE, "a commit")
        asleep = [child_of(first), psutil.Process(first.pid)]
        for process in asleep:
            process.suspend()
        assert records.result() is None, "in mid-trial"
        (records.folder / "lock").unlink()
        pace.unlink()
        second.start([unit])
        assert wait_for(second, "ended", PATIENCE)["status"] == "finished"
        before = written(records.folder)
        for process in reversed(asleep):
            process.resume()
        ended = wait_for(first, "ended", PATIENCE)
        assert (ended["status"], ended["reason"]) == (None, "locked")
    finally:
        pace.unlink(missing_ok=True)
        first.stop()
        second.stop()
    assert written(records.folder) == before
    result = records.result()
    assert result is not None
    assert result.attempt == 2
    assert told(results, result) == expected


def written(folder: Path) -> dict[str, bytes]:
    """What a trial's folder holds, but for that of the first attempt, of which later ones read what they name themselves."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent != folder / "1")
    return {str(path): path.read_bytes() for path in files}


def test_what_another_grid_finishes_meanwhile_stays(warm: WarmHandle, plugins: Registry, place: Path) -> None:
    """Another process holds the trial and finishes it while this one waits: that is the result, and nothing is run."""
    trial = replace(unit_trial(plugins, short_spec(plugins, "digits/mlp", [Part("adamw")], lr=0.07)), since=time.time())
    with Attempt(place / "results", trial.hash, trial.spec_json, trial.code) as other:
        warm.start([trial])
        wait_for(warm, "progress")
        given = Result(trial.hash, Status.FINISHED, trial.code, weights="theirs", ended=time.time())
        other.finish(given)
    assert wait_for(warm, "ended")["status"] == "finished"
    records = TrialRecords(place / "results", trial.hash)
    assert (records.result(), records.attempts()) == (given, [1])


def test_a_trial_that_dies_and_that_another_grid_takes_up_at_once_is_locked(
    warm: WarmHandle, plugins: Registry, place: Path
) -> None:
    """The results folder is well: the grid goes on, and tries this trial again."""
    trial = unit_trial(plugins, short_spec(plugins, "digits/mlp", [Part("hangs"), Part("adamw")]))
    warm.start([trial])
    child, above = child_of(warm), psutil.Process(warm.pid)
    holder = place / "results" / "trials" / trial.hash / "holder"
    until(holder.exists, PATIENCE, "the trial's lock")
    above.suspend()  # as where the other process is the faster one
    child.kill()
    with Attempt(place / "results", trial.hash, trial.spec_json, trial.code):
        above.resume()
        ended = wait_for(warm, "ended")
    assert (ended["status"], ended["reason"]) == (None, "locked")


def test_what_a_trial_prints_is_kept(warm: WarmHandle, plugins: Registry, place: Path) -> None:
    spec = short_spec(plugins, "digits/mlp", [Part("raises")], lr=0.123)
    finish(warm, plugins, spec, place)
    log = place / "results" / "trials" / spec.hash / "1" / "log.txt"
    assert "about to raise" in log.read_text()


def events(results: Path, spec: TrialSpec) -> list[tuple[object, ...]]:
    """The structured log over all attempts as MLflow gets it: event, level, step, and what there is to say."""
    told = last(sorted((results / "trials" / spec.hash).glob("*/log.jsonl")))
    lines = [json.loads(line) for line in told.splitlines()]
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    return [
        (line["event"], line["level"], line.get("step"), line.get("message") or line.get("reason")) for line in lines
    ]


def test_the_log_of_a_trial_that_warns(warm: WarmHandle, plugins: Registry, place: Path) -> None:
    spec = short_spec(plugins, "digits/mlp", [Part("warns"), Part("adamw")], lr=0.0123)
    result = finish(warm, plugins, spec, place)
    assert result is not None
    started, warned, ended = events(place / "results", spec)
    assert started == ("started", "info", None, None)
    assert warned[:2] == ("warning", "warning")
    assert str(warned[3]).startswith("UserWarning: careful (plugin.py:")
    assert ended == ("ended", "info", result.steps, "")
    first = json.loads((place / "results" / "trials" / spec.hash / "1" / "log.jsonl").read_text().splitlines()[0])
    assert (first["seed"], first["device"], first["attempt"]) == (spec.seed_label, "cpu", 1)
    assert first["packages"] == result.environment["packages"]


def test_the_log_of_a_trial_whose_process_ends(warm: WarmHandle, plugins: Registry, place: Path) -> None:
    """The process above it says how."""
    spec = short_spec(plugins, "digits/mlp", [Part("crashes")], lr=0.0123)
    finish(warm, plugins, spec, place)
    started, ended = events(place / "results", spec)
    assert started[0] == "started"
    assert ended == ("ended", "error", None, "its process was ended by SIGSEGV")


def test_a_log_has_its_size(tmp_path: Path) -> None:
    """Events are let go beyond it but for the end; of what is printed, the last whole lines are shown."""
    for number in range(MOST // 1000):
        tell(tmp_path, "warning", step=number, message="x" * 3000)
    tell(tmp_path, "ended")
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert sum(len(line) + 1 for line in lines[:-1]) <= MOST
    assert len(lines[0]) < 2100
    assert json.loads(lines[-1])["event"] == "ended"
    first, second = tmp_path / "1.txt", tmp_path / "2.txt"
    first.write_text("a\n" * MOST)
    second.write_text("b\n" * 10)
    shown = last([first, second, tmp_path / "none.txt"])
    assert MOST - 2 <= len(shown) <= MOST
    assert set(shown.splitlines()) == {"a", "b"}
    assert shown.endswith("a\n" + "b\n" * 10)
    second.write_text("c" * 2 * MOST)
    assert last([second]) == "c" * MOST


def test_a_stop_commits_and_the_trial_goes_on(plugins: Registry, place: Path, tmp_path: Path) -> None:
    spec = short_spec(plugins, "digits/mlp", [Part("slow"), Part("adamw")], steps=40)
    expected = run(plugins, spec, tmp_path / "undisturbed")
    results = tmp_path / "results"
    warm = WarmHandle(results, plugins.plugins, LIMITS, commit_every=100.0)
    (place / "pace").write_text("0.5")
    warm.start([unit_trial(plugins, spec)])
    while int(str(wait_for(warm, "progress")["step"])) < 3:
        pass
    warm.stop()
    (place / "pace").unlink()
    records = TrialRecords(results, spec.hash)
    commit = records.commit()
    assert records.result() is None
    assert commit is not None
    assert 3 <= commit.step < 40
    again = WarmHandle(results, plugins.plugins, LIMITS, commit_every=100.0)
    again.start([unit_trial(plugins, spec)])
    wait_for(again, "ended")
    again.stop()
    ended = records.result()
    assert ended is not None
    assert timeless(ended) == timeless(expected)
    steps = [record["step"] for record in records.records()]
    assert steps == sorted(set(steps))
    logged = events(results, spec)
    assert [event[0] for event in logged] == ["started", "interrupted", "started", "resumed", "ended"]
    assert logged[1][2] == logged[3][2] == commit.step


SOME = """
import os, signal

@register_method("some")
class Some(Method):
    stackable = True
    crash: bool = False

    def after_step(self, state):
        seed = state.streams._seeds["init"]
        if seed == 1 and state.step == 6:
            if self.crash:
                os.kill(os.getpid(), signal.SIGSEGV)
            raise KeyError("mistake")
"""
"""A method that raises under one seed, or takes the whole process with it."""


def ends(warm: WarmHandle, count: int) -> dict[str, object]:
    """The statuses that are told, by hash."""
    told: dict[str, object] = {}
    deadline = time.monotonic() + 120
    while len(told) < count and time.monotonic() < deadline:
        told |= {event["hash"]: event["status"] for event in warm.events(0.5) if event["event"] == "ended"}
    return told


@pytest.mark.parametrize(("crash", "others", "culprit"), [(False, "finished", "failed"), (True, "apart", "apart")])
def test_a_stack_runs_in_one_child(tmp_path: Path, crash: bool, others: str, culprit: str) -> None:
    registry = Registry([plugin(tmp_path, SOME)])
    spec = short_spec(registry, "digits/mlp", [Part("adamw"), Part("some", {"crash": crash})])
    specs = [seeded(spec, seed) for seed in range(3)]
    warm = WarmHandle(tmp_path / "results", registry.plugins, LIMITS, commit_every=0.0)
    warm.start([unit_trial(registry, one) for one in specs])
    assert ends(warm, 3) == {one.hash: culprit if seed == 1 else others for seed, one in enumerate(specs)}
    if crash:  # whose fault it was is unknown: each goes on by itself, from its last commit
        assert TrialRecords(tmp_path / "results", specs[0].hash).result() is None
        for seed, one in enumerate(specs):
            warm.start([unit_trial(registry, one)])
            assert ends(warm, 1) == {one.hash: "failed" if seed == 1 else "finished"}
    warm.stop()
    (expected,) = together(registry, tmp_path / "alone", spec, [2])
    result = TrialRecords(tmp_path / "results", specs[2].hash).result()
    assert result is not None
    assert expected is not None
    assert (result.weights, timeless(result)) == (expected.weights, timeless(expected))


def test_a_worker_takes_a_stack_apart_that_crashes(tmp_path: Path) -> None:
    from harness.running.worker import Worker

    registry = Registry([plugin(tmp_path, SOME)])
    spec = short_spec(registry, "digits/mlp", [Part("adamw"), Part("some", {"crash": True})])
    specs = [seeded(spec, seed) for seed in range(3)]
    unit = Unit([unit_trial(registry, one) for one in specs], LIMITS, "cell", stacked=True)
    settings = {"results": str(tmp_path / "results"), "plugins": registry.plugins, "commit_every": 0.0}
    worker = Worker.__new__(Worker)
    worker.setup({"units": [unit.name]}, {unit.name: unit.to_json()}, settings | {"report_every": 1.0})
    begun = worker.step()["running"]
    deadline = time.monotonic() + 200
    while not (report := worker.step())["done"]:
        assert time.monotonic() < deadline
    worker.cleanup()
    assert begun == [one.hash for one in specs]
    assert {hash: status for hash, (status, _) in report["ended"].items()} == {
        one.hash: "failed" if seed == 1 else "finished" for seed, one in enumerate(specs)
    }


def test_a_worker_reports_twice_a_second_whatever_a_trial_records(plugins: Registry, tmp_path: Path) -> None:
    from harness.running.worker import Worker

    spec = short_spec(plugins, "digits/mlp", [Part("slow"), Part("adamw")], steps=60, record_every=1)
    unit = Unit([unit_trial(plugins, spec)], LIMITS, "cell")
    settings = {"results": str(tmp_path / "results"), "plugins": plugins.plugins, "commit_every": 100.0}
    worker = Worker.__new__(Worker)
    worker.setup({"units": [unit.name]}, {unit.name: unit.to_json()}, settings | {"report_every": 1.0, "since": 0.0})
    began, reports = time.monotonic(), 1
    while not worker.step()["done"]:
        reports += 1
    took = time.monotonic() - began
    worker.cleanup()
    records = [r for r in TrialRecords(tmp_path / "results", spec.hash).records() if "metrics" in r]
    assert len(records) >= 60
    assert reports <= 2 * took + 2, "and two more: that its process is ready, and the end"


def test_a_stop_that_comes_with_the_order(plugins: Registry, place: Path, tmp_path: Path) -> None:
    """In one breath, so that the warm process reads both at once: the trial is not left to run."""
    spec = short_spec(plugins, "digits/mlp", [Part("slow"), Part("adamw")], steps=40)
    warm = WarmHandle(tmp_path, plugins.plugins, LIMITS)
    pid = warm.pid
    (place / "pace").write_text("0.5")
    process = psutil.Process(pid)
    process.suspend()
    warm.start([unit_trial(plugins, spec)])
    threading.Timer(0.5, process.resume).start()
    warm.stop(wait=PATIENCE)
    (place / "pace").unlink()
    until(lambda: not psutil.pid_exists(pid), 5, "its end")
    assert TrialRecords(tmp_path, spec.hash).result() is None


def test_a_stop_may_come_before_the_child_listens_to_it() -> None:
    """As where it starts CUDA for its share of a GPU first. Whoever else ends it so early makes it a lost one."""
    assert _ending(signal.SIGTERM, None, "", True) == (None, "interrupted")
    assert _ending(signal.SIGTERM, None, "", False) == (Status.LOST, "its process was ended by SIGTERM")
    assert _ending(signal.SIGSEGV, None, "", True) == (Status.FAILED, "its process was ended by SIGSEGV")


def test_a_stack_stops_and_goes_on(plugins: Registry, tmp_path: Path) -> None:
    registry = Registry([plugin(tmp_path, SLOW)])
    spec = short_spec(registry, "digits/mlp", [Part("adamw"), Part("slower")], steps=40)
    specs = [seeded(spec, seed) for seed in range(2)]
    results = tmp_path / "results"
    warm = WarmHandle(results, registry.plugins, LIMITS, commit_every=100.0)
    (tmp_path / "pace").write_text("0.5")
    warm.start([unit_trial(registry, one) for one in specs])
    while int(str(wait_for(warm, "progress")["step"])) < 3:
        pass
    warm.stop()
    (tmp_path / "pace").unlink()
    assert [TrialRecords(results, one.hash).result() for one in specs] == [None, None]
    steps = {commit.step for one in specs if (commit := TrialRecords(results, one.hash).commit())}
    assert len(steps) == 1
    assert 3 <= steps.pop() < 40
    again = WarmHandle(results, registry.plugins, LIMITS, commit_every=100.0)
    again.start([unit_trial(registry, one) for one in specs])
    assert set(ends(again, 2).values()) == {"finished"}
    again.stop()
    for seed, expected in enumerate(together(registry, tmp_path / "undisturbed", spec, [0, 1])):
        assert told(results, TrialRecords(results, specs[seed].hash).result()) == told(
            tmp_path / "undisturbed", expected
        )


SLOW = """
import time
from pathlib import Path

@register_method("slower")
class Slower(Method):
    stackable = True

    def after_step(self, state):
        file = Path(__file__).with_name("pace")
        time.sleep(float(file.read_text()) if file.exists() else 0.05)
"""


@pytest.mark.chaos
def test_nothing_outlives_the_worker(plugins: Registry, tmp_path: Path) -> None:
    """The worker dies: the warm process and the trial go with it, at once, also a trial that would not stop by itself.

    What has killed the worker may want the memory. Nothing is written of the trial: it goes on elsewhere.
    """
    pid = os.fork()
    if pid == 0:
        warm = WarmHandle(tmp_path / "results", plugins.plugins, LIMITS)
        warm.start([unit_trial(plugins, short_spec(plugins, "digits/mlp", [Part("hangs")]))])
        wait_for(warm, "progress")
        child = child_of(warm)
        (tmp_path / "pids").write_text(f"{warm.pid} {child.pid}")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    pids = [int(text) for text in (tmp_path / "pids").read_text().split()]
    until(
        lambda: not any(psutil.pid_exists(pid) for pid in pids), 8, "the end of both, sooner than after a stop's grace"
    )
    records = TrialRecords(tmp_path / "results", short_spec(plugins, "digits/mlp", [Part("hangs")]).hash)
    assert (records.result(), records.attempts()) == (None, [1])


def test_a_dead_warm_process_is_noticed(plugins: Registry, tmp_path: Path) -> None:
    warm = WarmHandle(tmp_path / "results", plugins.plugins, LIMITS)
    os.kill(warm.pid, signal.SIGKILL)
    with pytest.raises(WarmDied):
        wait_for(warm, "progress")
    warm.stop()


def test_what_is_killed_before_it_leads_a_group_ends(tmp_path: Path) -> None:
    """As a child just after the fork."""
    process = subprocess.Popen(["sleep", "600"])
    _kill(process.pid, signal.SIGKILL)
    assert process.wait(PATIENCE) == -signal.SIGKILL


def test_the_end_of_a_child_is_noticed_where_there_are_no_pidfds(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    ours, theirs = socket.socketpair()
    settings = {"results": str(tmp_path), "plugins": [], "commit_every": 1.0}
    began = time.monotonic()
    process = subprocess.Popen(["sleep", "0.3"])
    with ours, theirs:
        assert (
            Warm(theirs, settings, registry).watch(process.pid, UnitTrial("a", "{}", "code"), Limits(None, None, 0.0))
            is None
        )
    assert time.monotonic() - began > 0.2
    assert process.wait(0) == 0, "it is left to be waited for"


LEAVES = """
import subprocess
from pathlib import Path
from types import SimpleNamespace

@register_method("leaves")
class Leaves(Method):
    def after_step(self, state):
        file = Path(__file__).with_name("left")
        if not file.exists():
            file.write_text(str(subprocess.Popen(["sleep", "300"]).pid))
"""
"""A method that starts a process and does not end it."""


def test_what_a_trial_starts_ends_with_it(tmp_path: Path) -> None:
    registry = Registry([plugin(tmp_path, LEAVES)])
    warm = WarmHandle(tmp_path / "results", registry.plugins, LIMITS)
    ended = finish(warm, registry, short_spec(registry, "digits/mlp", [Part("leaves"), Part("adamw")]), tmp_path)
    left = int((tmp_path / "left").read_text())
    try:
        assert ended is not None
        assert ended.status == "finished"
        assert running(left, 10.0) is False
    finally:
        warm.stop()
        with suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)


def running(pid: int, seconds: float) -> bool:
    """Whether a process still runs after so long; one that nobody waits for has ended all the same."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(
    ("names", "secret"),
    [
        ("RAY_AUTH_TOKEN HF_TOKEN NGROK_AUTHTOKEN github_token AWS_SESSION_TOKEN RAY_AUTH_TOKEN_PATH", True),
        ("AWS_SECRET_ACCESS_KEY CLIENT_SECRET SECRETS_FILE DJANGO_SECRET_KEY", True),
        ("MLFLOW_TRACKING_PASSWORD PGPASSWORD MYSQL_PWD DB_PASS DB_PASSWD SSHPASS GPG_PASSPHRASE", True),
        ("GOOGLE_APPLICATION_CREDENTIALS AZURE_CREDENTIAL", True),
        ("WANDB_API_KEY APIKEY OPENAI_KEY AZURE_STORAGE_KEY AWS_ACCESS_KEY_ID SSH_PRIVATE_KEY ACCESSKEY", True),
        ("GITHUB_PAT AZURE_DEVOPS_EXT_PAT CI_PAT_READ SLURM_JWT SENTRY_DSN AZURE_STORAGE_SAS", True),
        ("AZURE_STORAGE_CONNECTION_STRING DOCKER_AUTH_CONFIG NPM_CONFIG__AUTH BASIC_AUTH", True),
        ("PATH PYTHONPATH LD_LIBRARY_PATH PWD OLDPWD HOME USER LANG TZ TERM SHLVL", False),
        ("OMP_NUM_THREADS KMP_AFFINITY CUDA_HOME CUDA_LAUNCH_BLOCKING NVIDIA_VISIBLE_DEVICES", False),
        ("HARNESS_DATA HARNESS_CACHE HARNESS_RESULTS RAY_AUTH_MODE RAY_TMPDIR TOKENIZERS_PARALLELISM", False),
        ("SLURM_JOB_ID SSL_CERT_FILE HTTPS_PROXY KEYBOARD_LAYOUT MONKEYTYPE DISPATCH PATTERN PASSIVE_MODE", False),
    ],
)
def test_names_that_are_secrets_and_names_that_are_not(
    names: str, secret: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names.split():
        monkeypatch.setenv(name, "value")
    kept = child_environment(Resources())
    assert [name for name in names.split() if (name not in kept) != secret] == []


@pytest.mark.parametrize(
    ("value", "secret"),
    [
        ("postgresql://me:hidden@db:5432/runs", True),
        ("redis://:hidden@cache", True),
        ("--proxy http://me:hidden@proxy:3128 --other", True),
        ("postgresql://me:hid/den@db/runs", True),
        ("postgresql://db/runs?user=me&password=hidden", True),
        ("https://hidden@github.com/me/it", True),
        ("http://proxy:3128", False),
        ("http://proxy:3128/?user=me", False),
        ("http://host:80/me:you@x", False),
        ("me@host:folder", False),
        ("sqlite:///runs.db", False),
    ],
)
def test_addresses_with_passwords_are_secrets(value: str, secret: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMETHING", value)
    assert ("SOMETHING" not in child_environment(Resources())) == secret


@pytest.mark.skipif(sys.platform != "linux", reason="macOS binds no process to CPUs")
def test_limits_of_containers_and_batch_jobs_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux shows them: a job's step in its job, which has a quarter of the memory and one and a half CPUs."""
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 4, 5, 6})
    total, cpus = usable(tmp_path / "none")
    assert total == psutil.virtual_memory().total and cpus == 4.0
    group = tmp_path / "sys/fs/cgroup/job/step"
    for file, text in {
        tmp_path / "proc/self/cgroup": "0::/job/step\n",
        group / "memory.max": "max\n",
        group / "cpu.max": "max 100000\n",
        group.parent / "memory.max": f"{total // 4}\n",
        group.parent / "cpu.max": "150000 100000\n",
    }.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert usable(tmp_path) == (total // 4, min(1.5, cpus))


@pytest.mark.parametrize(
    ("given", "asked", "share"),
    [(0.0, 16.0, 0.125), (4.0, 1.0, 0.25), (4.0, 8.0, 1.0), (0.0, 1.0, None)],
    ids=["of the machine's CPUs", "of those that Ray was given", "not more than all", "at least what torch takes"],
)
def test_a_trial_that_asks_for_no_memory_has_its_share(
    given: float, asked: float, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = 64 << 30
    monkeypatch.setattr(children, "usable", lambda: (memory, 128.0))
    monkeypatch.setattr(children, "node_cpus", lambda: given)
    expected = LEAST if share is None else int(0.85 * memory * share)
    assert fair_memory(Resources(cpus=asked)) == expected


def test_the_cpus_that_ray_was_given_are_those_of_this_node(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    assert node_cpus() == 0.0, "no Ray runs here"
    nodes = [{"NodeID": "there", "Resources": {"CPU": 64.0}}, {"NodeID": "here", "Resources": {"CPU": 4.0}}]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert node_cpus() == 4.0


def test_a_part_of_a_gpu_leaves_room_for_what_cuda_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=8 << 30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", asked.append)
    for share in (0.5, 0.25, 0.03):
        _take_share(share)
    assert asked == [0.390625, 0.140625, 0.0]


def test_the_environment_of_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hidden")
    monkeypatch.setenv("MY_PASSWORD", "hidden")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    environment = child_environment(Resources(cpus=2.5))
    assert "hidden" not in environment.values()
    libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    assert {environment[name] for name in (*libraries, "VECLIB_MAXIMUM_THREADS")} == {"2"}
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    with_gpu = child_environment(Resources(gpus=1.0))
    assert with_gpu.get("CUDA_VISIBLE_DEVICES") != ""
    assert with_gpu["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8", "set before CUDA is: kernels are deterministic"
