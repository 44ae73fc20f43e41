"""What the results folder holds of a plan: the status of every trial, what is to be run, and how long that takes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import fmean

from harness.planning.plan import TUNED, Plan, PlannedTrial
from harness.planning.taking import WORST, Missing, take
from harness.recording.records import Result, Status
from harness.recording.results import Results


class State(StrEnum):
    """Where a planned trial stands: one of the statuses that a trial ends with, or on the way there."""

    NEW = "new"
    UNFINISHED = "unfinished"
    STALE = "stale"
    BLOCKED = "blocked"
    FINISHED = "finished"
    DIVERGED = "diverged"
    SCREENED = "screened"
    FAILED = "failed"
    OUT_OF_MEMORY = "out-of-memory"
    TIMED_OUT = "timed-out"
    LOST = "lost"


@dataclass
class Survey:
    """The states of a plan's trials."""

    statuses: dict[str, State] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    """Why a trial is stale or blocked, or what its result says of its end."""
    to_run: list[PlannedTrial] = field(default_factory=list)
    """In the order of the stages. What is blocked is not among them, what waits for one of them is."""
    found: dict[str, Result] = field(default_factory=dict)
    """The results that were there, by hash."""

    @property
    def counts(self) -> Counter[State]:
        """How many trials are in each state."""
        return Counter(self.statuses.values())


def survey(plan: Plan, results: Results, keep_stale: bool = False, retry_failed: bool = False) -> Survey:
    """Compares a plan with the results folder.

    A trial is stale if its result was computed by other code, or with another value from a trial that it requires than that
    trial has now. A failed one is run again once its code changes, and otherwise only where that is asked for.

    Args:
        plan: what the grid comes to.
        results: the results folder.
        keep_stale: leaves stale results as they are, unless they are failures.
        retry_failed: runs failed trials again: the cause was not in the code.

    Raises:
        RecordsError: if a result is damaged, or the commit that a trial to be run goes on from.
    """
    begun = _begun(results)
    view = Survey()
    found = view.found
    run: set[str] = set()
    for trial in sorted(plan.trials, key=lambda trial: trial.stage):
        records = results.trial(trial.hash)
        result = records.result() if trial.hash in begun else None
        if result is not None:
            found[trial.hash] = result
        state, reason = _state(trial, result, plan, found, run)
        if result is None and trial.hash in begun and records.attempts():
            state = State.UNFINISHED
        if not _settled(state, result, keep_stale, retry_failed):
            if obstacle := _obstacle(trial, plan, view, run):
                state, reason = State.BLOCKED, obstacle
            else:
                run.add(trial.hash)
                if trial.hash in begun:
                    records.commit()  # what it goes on from, should that be damaged, is told before anything starts
                view.to_run.append(trial)
        view.statuses[trial.hash] = state
        if reason:
            view.reasons[trial.hash] = reason
    return view


def _begun(results: Results) -> set[str]:
    """The trials that have a folder: one listing instead of one look for each trial."""
    try:
        with os.scandir(results.folder / "trials") as entries:
            return {entry.name for entry in entries}
    except FileNotFoundError:
        return set()


def _state(
    trial: PlannedTrial, result: Result | None, plan: Plan, found: dict[str, Result], run: set[str]
) -> tuple[State, str]:
    if result is None:
        return State.NEW, ""
    if result.code != trial.code:
        return State.STALE, "its code has changed"
    if result.status is Status.SCREENED and result.screening != (plan.screening.mark if plan.screening else ""):
        return State.UNFINISHED, "another screening stopped it, or this grid has none: it goes on from there"
    lacking = plan.kept.get(trial.hash, set()) - set(result.kept)
    if lacking and result.status is Status.FINISHED:
        return State.STALE, f"its {min(lacking)} was not kept, which another trial starts from"
    for required in trial.spec.requires:
        source = found.get(required.hash)
        if source and required.hash in run and source.status.done:
            return State.STALE, f"trial {required.hash}, which it takes {required.taken} from, is run again"
    with suppress(Missing):
        for path, value in take(trial, plan, found).items():
            if path in result.values and result.values[path] != value:
                return State.STALE, f"{_origin(path, trial)} has changed"
    return State(result.status), result.reason


def _origin(path: str, trial: PlannedTrial) -> str:
    source = next((r for r in trial.spec.requires if r.path == path), None)
    return f"{source.taken} of trial {source.hash}" if source else f"what tuning chooses for {path}"


def _settled(state: State, result: Result | None, keep_stale: bool, retry_failed: bool) -> bool:
    """Whether a trial is left as it is."""
    if result is None or state is State.UNFINISHED or (state is State.FAILED and retry_failed):
        return False
    return result.status.good and keep_stale if state is State.STALE else result.status.done


def _obstacle(trial: PlannedTrial, plan: Plan, view: Survey, run: set[str]) -> str:
    """Why what the trial requires will never come, as things stand."""
    waits = False
    for required in trial.spec.requires:
        if required.hash in run:
            waits = True
            continue
        state, source = view.statuses.get(required.hash), view.found.get(required.hash)
        if source and required.path == TUNED and source.status in WORST:
            continue
        if source is None or state is State.BLOCKED or source.taken(required.taken) is None:
            ended = f"is {state}" if state is not State.FINISHED else "has no such metric"
            return f"needs {required.taken} of trial {required.hash}, which {ended}"
    try:
        if not waits:
            take(trial, plan, view.found)
    except Missing as missing:
        return str(missing)
    return ""


def estimate(plan: Plan, view: Survey, machine: Mapping[str, float]) -> float | None:
    """Seconds that what is to be run takes on a machine with these resources, or None if no trial is finished yet.

    A trial is taken to last as long as the mean of its cell; where none of that is finished, of its task and method, of its
    task, of the plan.
    """
    if not view.to_run:
        return 0.0
    finished = {trial.hash: trial for trial in plan.trials if view.statuses[trial.hash] is State.FINISHED}
    known: dict[tuple[str, ...], list[float]] = {}
    for hash, trial in finished.items():
        for key in _levels(trial):
            known.setdefault(key, []).append(seconds_of(view.found[hash], trial.spec.stacked))
    if not known:
        return None
    means = {key: fmean(seconds) for key, seconds in known.items()}
    at_once = {asked: min(len(view.to_run), asked.at_once([machine])) for asked in {t.resources for t in view.to_run}}
    return sum(next(means[key] for key in _levels(t) if key in means) / at_once[t.resources] for t in view.to_run)


def peak_memory(plan: Plan, view: Survey) -> dict[str, int]:
    """Bytes that the largest trial of each cell that has a result took; where none of a cell has, of its task and method."""
    peaks: dict[tuple[str, ...], int] = {}
    by_hash = {trial.hash: trial for trial in plan.trials}
    for hash, result in view.found.items():
        taken = int(result.metrics.get("system/peak_memory_mb", 0) * 2**20)
        for key in _own_levels(by_hash[hash]):
            peaks[key] = max(taken, peaks.get(key, 0))
    known = {t.cell: next((peaks[key] for key in _own_levels(t) if peaks.get(key)), 0) for t in plan.trials}
    return {cell: peak for cell, peak in known.items() if peak}


def _own_levels(trial: PlannedTrial) -> tuple[tuple[str, ...], ...]:
    """Groups of trials that are expected to take as much memory, the closest first."""
    return (trial.cell,), (trial.task_label, trial.method_label)


def _levels(trial: PlannedTrial) -> Iterable[tuple[str, ...]]:
    """Groups of trials that are expected to take as long, the closest first."""
    yield from _own_levels(trial)
    yield "task", trial.task_label, ""
    yield ()


def seconds_of(result: Result, stacked: bool) -> float:
    """How long a trial took; one that was interrupted, or a seed of a stack, took its share of training time."""
    if (result.attempt > 1 or stacked) and "time/train_seconds" in result.metrics:
        return result.metrics["time/train_seconds"]
    return result.ended - result.started
