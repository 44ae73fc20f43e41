"""What a report says, as plain data: verdicts, tables, scores over tasks, ends that were no success, every trial."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.claim import ClaimError
from harness.judging.evidence import Curves, Evidence
from harness.judging.history import history
from harness.judging.report_tasks import TaskTable, task_table
from harness.judging.scores import Scores
from harness.judging.verdicts import Verdict, judge
from harness.planning.plan import Plan
from harness.planning.survey import seconds_of
from harness.recording.grids import submissions
from harness.recording.records import Result, Status
from harness.recording.results import Results
from harness.registry import Registry
from harness.seconds import amount


@dataclass(frozen=True)
class Table:
    """Texts in rows, for the page and for Markdown."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    names: int = 1
    """How many of the first columns are names; the others are numbers."""


@dataclass(frozen=True)
class Trouble:
    """Trials that ended in the same way."""

    status: str
    reason: str
    error: str
    trials: list[str]


@dataclass(frozen=True)
class Findings:
    """What a grid has found, with all that a report needs."""

    plan: Plan
    results: dict[str, Result]
    evidence: Evidence
    verdicts: list[Verdict]
    tables: list[TaskTable]
    trouble: list[Trouble]
    counts: dict[str, int]
    facts: dict[str, str] = field(default_factory=dict)
    """Environment: what the numbers rest on."""


def gather(plan: Plan, memory: Results, registry: Registry) -> Findings:
    """All that a report says in numbers, from a plan and its results folder."""
    results = memory.results(trial.hash for trial in plan.trials)
    curves: Curves = lambda hash: memory.trial(hash).records()  # noqa: E731
    evidence = Evidence(plan, results, curves)
    counts = Counter(str(results[trial.hash].status) if trial.hash in results else "not run" for trial in plan.trials)
    return Findings(
        plan=plan,
        results=results,
        evidence=evidence,
        verdicts=judge(plan, results, registry, curves=curves, past=history(memory, plan.name)),
        tables=[task_table(evidence, task) for task in evidence.tasks("*")],
        trouble=troubles(plan, results),
        counts=dict(counts.most_common()),
        facts=facts(plan, memory, results),
    )


@dataclass(frozen=True)
class ScoreMatrix:
    """Scores from 0 (the worst run of a task) to 1 (the best) of the methods that share most tasks; a failure is `-inf`."""

    tasks: list[str]
    scores: dict[str, np.ndarray[Any, Any]]
    """For each method (seeds, tasks); seeds that chose a cell are not in it."""
    missing: list[str]
    """Methods that are left aside because trials of theirs are missing."""
    fewer: list[str]
    """Methods that are left aside because they run on fewer tasks."""


def score_matrix(evidence: Evidence) -> ScoreMatrix:
    """The scores of all methods over tasks, normalised task by task."""
    places: dict[str, dict[str, Scores]] = defaultdict(dict)
    for task in evidence.tasks("*"):
        for method in evidence.plan.methods:
            with suppress(ClaimError):  # left out of this task
                chosen = evidence.best(task, evidence.cells(task, method), evidence.metric(task, ""))
                places[method][task] = chosen.scores
    known = {
        name: found
        for name, found in places.items()
        if all(s.complete and (s.low == s.high).all() for s in found.values())
    }
    most = max((len(found) for found in known.values()), default=0)
    methods = {name: found for name, found in known.items() if len(found) == most}
    tasks = [task for task in evidence.tasks("*") if methods and all(task in found for found in methods.values())]
    every = [found[task] for found in methods.values() for task in tasks]
    judged = np.all([scores.judged for scores in every], axis=0) if every else np.zeros(0, dtype=bool)
    table = {name: np.array([found[task].low[judged] for task in tasks]).T for name, found in methods.items()}
    for column in range(len(tasks)):
        values = np.concatenate([found[:, column] for found in table.values()])
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
        for found in table.values():
            found[:, column] = (found[:, column] - low) / ((high - low) or 1.0)
    missing, fewer = ([name for name in all_ if name not in kept] for all_, kept in ((places, known), (known, methods)))
    return ScoreMatrix(tasks, table, missing, fewer)


def troubles(plan: Plan, results: dict[str, Result]) -> list[Trouble]:
    """Trials that did not finish, those with the same end and traceback together; the most frequent first."""
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for trial in plan.trials:
        result = results.get(trial.hash)
        if result is not None and result.status is not Status.FINISHED:
            name = f"{trial.cell}, seed {trial.spec.seed_label} ({trial.hash})"
            groups[str(result.status), result.reason, result.error[-6000:]].append(name)
    found = [Trouble(*key, trials) for key, trials in groups.items()]
    return sorted(found, key=lambda trouble: -len(trouble.trials))


def facts(plan: Plan, memory: Results, results: dict[str, Result]) -> dict[str, str]:
    """What the numbers rest on: command, commit, machine, versions, how many trials, of which code."""
    found: dict[str, str] = {}
    past = submissions(memory, plan.name)
    environment: dict[str, Any] = past[-1].read("environment.json") if past else {}
    if past:
        found["Command"] = str(past[-1].about["command"])
        found["Submissions"] = str(len(past))
    git = environment.get("git") or {}
    found["Commit"] = f"{git.get('commit', '')}{' with changes' if git.get('dirty') else ''}"
    found["Machine"] = f"{environment.get('cpu', '')}, {environment.get('cores', '?')} cores" if environment else ""
    gpus = Counter(str(result.environment["gpu"]) for result in results.values() if "gpu" in result.environment)
    found["GPUs"] = ", ".join(f"{name} ({amount(count, 'trial')})" for name, count in gpus.most_common())
    found["System"] = str(environment.get("system", ""))
    packages = environment.get("packages") or {}
    found["Versions"] = ", ".join(
        [f"python {environment.get('python', '?')}"] + [f"{name} {number}" for name, number in packages.items()]
    )
    stale = sum(trial.hash in results and results[trial.hash].code != trial.code for trial in plan.trials)
    found["Results of other code"] = f"{stale} of {len(results)}" if stale else ""
    stacked = {trial.hash: trial.spec.stacked for trial in plan.trials}
    seconds = sum(max(0.0, seconds_of(result, stacked[hash])) for hash, result in results.items())
    found["Time of all trials"] = f"{seconds / 3600:.2f} hours"
    tuned = sum(trial.tuning is not None for trial in plan.trials)
    found["Trials of tuning, not reported"] = str(tuned) if tuned else ""
    return {name: value for name, value in found.items() if value}


def trial_table(findings: Findings) -> tuple[list[str], list[list[Any]]]:
    """One row for each trial that is reported: what it is, how it ended, and every final metric."""
    trials = findings.plan.reported
    axes = sorted({name for trial in trials for name in trial.axes})
    streams = sorted({name for trial in trials for name in trial.spec.seed})
    known = [findings.results.get(trial.hash) for trial in trials]
    metrics = sorted({name for result in known if result for name in result.metrics})
    columns = [
        "task",
        "method",
        "cell",
        "hash",
        *(f"seed.{name}" for name in streams),
        *axes,
        "status",
        "reason",
        *metrics,
    ]
    rows: list[list[Any]] = []
    for trial, result in zip(trials, known, strict=True):
        about = [trial.task_label, trial.method_label, trial.cell, trial.hash]
        varied = [trial.spec.seed.get(name) for name in streams] + [text(trial.axes.get(name)) for name in axes]
        end = [str(result.status), result.reason] if result else ["not run", ""]
        scores = [result.metrics.get(name) if result else None for name in metrics]
        rows.append([*about, *varied, *end, *scores])
    return columns, rows


def text(value: Any) -> Any:
    """A value of an axis for a table: numbers stay, everything else becomes a text."""
    return value if value is None or (isinstance(value, int | float) and not isinstance(value, bool)) else str(value)


def numbers(values: Sequence[float | None], digits: int = 4) -> str:
    """Numbers for a reader.

    >>> numbers([0.123456, None, 1234.56])
    '0.1235, none, 1235'
    """
    return ", ".join(number(value, digits) for value in values)


def number(value: float | None, digits: int = 4) -> str:
    """A number for a reader, with so many significant digits, and all those before the point.

    >>> number(0.00012345), number(462.7333), number(float("-inf")), number(None)
    ('0.0001234', '462.7', 'failed', 'none')
    """
    if value is None or math.isnan(value):
        return "none"
    if math.isinf(value):
        return "failed" if value < 0 else "unbounded"
    plain = f"{value + 0.0:.{digits}g}"  # no negative zero
    return f"{value:.0f}" if "e+" in plain and abs(value) < 1e9 else plain
