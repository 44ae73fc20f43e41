"""What the results folder says of a plan."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from planning.malformed import grid

from harness.planning.plan import Plan, PlannedTrial
from harness.planning.survey import State, estimate, survey
from harness.recording.attempts import Attempt
from harness.recording.records import RecordsError, Result, Status, write_atomically
from harness.recording.results import Results

Planner = Callable[..., Plan]


@pytest.fixture
def memory(results: Path) -> Results:
    return Results(results)


def end(memory: Results, trial: PlannedTrial, status: Status = Status.FINISHED, **further: object) -> None:
    """Leaves a result as a trial does."""
    result = Result(trial.hash, status, trial.code, metrics={"val/loss": 0.5}, started=100.0, ended=103.0)
    content = json.dumps(asdict(replace(result, **further)))  # type: ignore[arg-type]
    write_atomically(memory.folder / "trials" / trial.hash / "result.json", content, durable=False)


def test_a_damaged_commit_is_told_before_anything_starts(planned: Planner, memory: Results) -> None:
    plan = planned(grid(seeds="2"))
    begun = plan.trials[1]
    with Attempt(memory.folder, begun.hash, begun.spec.to_json(), begun.code) as attempt:
        attempt.commit(1, b"checkpoint")
    assert survey(plan, memory).counts == {State.NEW: 1, State.UNFINISHED: 1}
    (memory.trial(begun.hash).folder / "1" / "commit.json").write_text("{")
    with pytest.raises(RecordsError, match=r"1/commit\.json: found damaged content"):
        survey(plan, memory)
    end(memory, begun)
    assert survey(plan, memory).to_run == plan.trials[:1], "of a trial that is done nobody reads it"


def test_without_results_everything_is_new(planned: Planner, memory: Results) -> None:
    plan = planned(grid(seeds="3"))
    view = survey(plan, memory)
    assert view.counts == {State.NEW: 3}
    assert view.to_run == plan.trials
    assert not memory.folder.exists()


@pytest.mark.parametrize(
    ("status", "again"),
    [
        (Status.FINISHED, False),
        (Status.DIVERGED, False),
        (Status.SCREENED, False),
        (Status.FAILED, False),
        (Status.OUT_OF_MEMORY, True),
        (Status.TIMED_OUT, True),
        (Status.LOST, True),
    ],
)
def test_done_trials_are_left_alone_and_others_tried_again(
    planned: Planner, memory: Results, status: Status, again: bool
) -> None:
    plan = planned(grid(seeds="2"))
    end(memory, plan.trials[0], status)
    view = survey(plan, memory)
    assert view.statuses == {plan.trials[0].hash: State(status), plan.trials[1].hash: State.NEW}
    assert view.to_run == plan.trials[0 if again else 1 :]
    retried = again or status is Status.FAILED
    assert survey(plan, memory, retry_failed=True).to_run == plan.trials[0 if retried else 1 :]


@pytest.mark.parametrize(
    ("status", "kept"), [(Status.FINISHED, True), (Status.DIVERGED, True), (Status.FAILED, False), (Status.LOST, False)]
)
def test_results_of_other_code_are_stale(planned: Planner, memory: Results, status: Status, kept: bool) -> None:
    plan = planned(grid())
    end(memory, plan.trials[0], status, code="another")
    for keep_stale in (False, True):
        view = survey(plan, memory, keep_stale)
        assert view.counts == {State.STALE: 1}
        assert view.to_run == ([] if keep_stale and kept else plan.trials)


def test_an_attempt_without_a_result_is_unfinished(planned: Planner, memory: Results) -> None:
    plan = planned(grid(seeds="2"))
    trial = plan.trials[1]
    with Attempt(memory.folder, trial.hash, trial.spec.to_json(), trial.code) as attempt:
        attempt.record({"step": 1})
        attempt.commit(1)
    assert survey(plan, memory).counts == {State.NEW: 1, State.UNFINISHED: 1}
    assert survey(plan, memory).to_run == plan.trials


CHAIN = grid(
    methods="[adamw, balanced_adam: {beta: {from: adamw, metric: val/loss}}, sgd]",
    recipes="[{method: sgd, set: {momentum: {from: balanced_adam, metric: val/loss}}}]",
)


def test_what_a_failure_upstream_holds_back_is_blocked_with_the_reason(planned: Planner, memory: Results) -> None:
    plan = planned(CHAIN)
    source, middle, last = plan.trials
    end(memory, source, Status.FAILED, metrics={})
    view = survey(plan, memory)
    assert [view.statuses[trial.hash] for trial in plan.trials] == [State.FAILED, State.BLOCKED, State.BLOCKED]
    assert view.reasons[middle.hash] == f"needs val/loss of trial {source.hash}, which is failed"
    assert view.reasons[last.hash] == f"needs val/loss of trial {middle.hash}, which is blocked"
    assert view.to_run == []
    assert survey(plan, memory, retry_failed=True).to_run == plan.trials, "with what waits for it"
    end(memory, source, metrics={"val/accuracy": 1.0})
    assert survey(plan, memory).reasons[middle.hash].endswith("which has no such metric")


def test_what_waits_for_a_trial_that_is_run_is_run_too(planned: Planner, memory: Results) -> None:
    plan = planned(CHAIN)
    source, middle, last = plan.trials
    end(memory, source, Status.LOST, metrics={})
    end(memory, middle, Status.BLOCKED, metrics={})
    view = survey(plan, memory)
    assert [view.statuses[trial.hash] for trial in plan.trials] == [State.LOST, State.BLOCKED, State.NEW]
    assert view.to_run == [source, middle, last]
    end(memory, source, Status.FAILED, metrics={}, code="another")
    assert survey(plan, memory).to_run == [source, middle, last]


def test_a_dependent_is_stale_when_its_value_has_changed(planned: Planner, memory: Results) -> None:
    plan = planned(CHAIN)
    source, middle, last = plan.trials
    end(memory, source, metrics={"val/loss": 0.25})
    end(memory, middle, values={"methods.0.beta": 0.25})
    end(memory, last, values={"recipe.momentum": 0.5})
    assert survey(plan, memory).counts == {State.FINISHED: 3}
    end(memory, source, metrics={"val/loss": 0.75})
    view = survey(plan, memory)
    assert [view.statuses[trial.hash] for trial in plan.trials] == [State.FINISHED, State.STALE, State.STALE]
    assert view.to_run == [middle, last]
    assert survey(plan, memory, keep_stale=True).to_run == []


def test_a_dependent_of_a_stale_trial_is_stale(planned: Planner, memory: Results) -> None:
    plan = planned(CHAIN)
    source, middle, last = plan.trials
    end(memory, source, code="another")
    end(memory, middle, values={"methods.0.beta": 0.5})
    end(memory, last, values={"recipe.momentum": 0.5})
    assert survey(plan, memory).to_run == [source, middle, last]
    assert survey(plan, memory, keep_stale=True).to_run == []


def test_the_estimate_is_the_mean_of_the_cell_over_the_slots(planned: Planner, memory: Results) -> None:
    plan = planned(grid(tasks="[digits/mlp, digits/cnn]", methods="[adamw, sgd]", seeds="3"))
    assert estimate(plan, survey(plan, memory), {"CPU": 1}) is None
    mlp, cnn = (
        [trial for trial in plan.trials if trial.task_label == task and trial.method_label == "adamw"]
        for task in ("digits/mlp", "digits/cnn")
    )
    end(memory, mlp[0], ended=102.0)
    end(memory, mlp[1], ended=104.0)
    # adamw on mlp: one at 3 s; sgd on mlp: three at the task's 3 s; on cnn: six at the plan's 3 s.
    assert estimate(plan, survey(plan, memory), {"CPU": 2}) == pytest.approx(10 * 3 / 2)
    end(memory, cnn[0], ended=110.0)
    # 1 + 3 on mlp at 3 s, 2 + 3 on cnn at 10 s.
    assert estimate(plan, survey(plan, memory), {"CPU": 1}) == pytest.approx(4 * 3 + 5 * 10)
    end(memory, cnn[0], ended=9000.0, attempt=2, metrics={"time/train_seconds": 10.0})
    assert estimate(plan, survey(plan, memory), {"CPU": 1}) == pytest.approx(4 * 3 + 5 * 10)


@pytest.mark.parametrize(
    ("asked", "at_once"),
    [("{cpus: 4}", 4), ("{gpus: 1}", 2), ("{gpus: 0.25}", 8), ("{memory: 4GiB}", 8), ("{cpus: 1}", 9)],
)
def test_the_estimate_counts_what_trials_wait_for(asked: str, at_once: int, planned: Planner, memory: Results) -> None:
    """Sixteen CPUs, two GPUs and 32 GiB; of nine trials at 10 s that are left."""
    plan = planned(grid(methods="[adamw]", seeds="10") + f"resources: {asked}\n")
    end(memory, plan.trials[0], ended=110.0)
    machine = {"CPU": 16, "GPU": 2, "memory": 32 << 30}
    assert estimate(plan, survey(plan, memory), machine) == pytest.approx(9 * 10 / at_once)


def test_two_thousand_finished_trials_are_looked_through_in_less_than_a_second(
    planned: Planner, memory: Results
) -> None:
    plan = planned(grid(methods="[adamw, sgd]", seeds="1000"))
    environment = {"packages": {f"package-{n}": "1.2.3" for n in range(20)}}
    for trial in plan.trials:
        end(memory, trial, environment=environment)
    started = time.process_time()
    view = survey(plan, memory)
    assert time.process_time() - started < 1.0
    assert view.counts == {State.FINISHED: 2000}
    assert view.to_run == []
