"""The early-stopping rules of a grid's runs at matched recall: the table and the picture, for the report and for the pages."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.judging import figures
from harness.judging.calibration import Run, compare_rules, curve
from harness.judging.calibration_runs import COLUMNS, FINAL, cells, label, runs_of_grid
from harness.judging.figures import Figure, Line
from harness.judging.report_data import Findings
from harness.recording.results import Results

AT = 0.1
"""The share of the training after which rules are asked."""

COMPARED = ("oui", "early_return", "early_return + oui", "clip_fraction", "kl", "flips", "lr")


@dataclass(frozen=True)
class Rules:
    """What the rules would have kept, had they been asked."""

    columns: Sequence[str]
    rows: list[list[str]]
    """Where a success is a run near those of the best learning rate."""
    solved: list[list[str]]
    """Where a success is a run that solves its task, of the tasks of which some run does."""
    note: str
    """What counts as solved, and the tasks without an answer."""
    figures: list[Figure]


def rules(findings: Findings, memory: Results) -> Rules | None:
    """The rules on a grid's runs in full; None for runs without their signals, or that a rule has stopped.

    Only runs of several learning rates are compared: that is what the rules choose among.
    """
    plan = findings.plan
    signalled = any(FINAL in result.metrics for result in findings.results.values())
    rates = {trial.spec.recipe.get("lr") for trial in plan.trials if trial.method_label == plan.methods[0]}
    if plan.screening or not signalled or len(rates) < 2:
        return None
    runs = runs_of_grid(memory, plan.name, AT)
    by_task = {task: [run for run in runs if run.task == task] for task in plan.tasks}
    drawn = [
        figure
        for index, (task, own) in enumerate(by_task.items())
        for figure in precision_over_recall(task, own, f"r{index}")
    ]
    bars = plan.solved
    ended = label([run for run in runs if run.task in bars], bars)
    reached = {run.task for run in ended if run.success}
    solving = _rows([run for run in ended if run.task in reached]) if reached else []
    return Rules(COLUMNS, _rows(runs), solving, solved_note(plan.tasks, bars, reached), drawn)


def _rows(runs: Sequence[Run]) -> list[list[str]]:
    return [cells(one) for one in compare_rules(runs, COMPARED, at=AT)]


def solved_note(tasks: Sequence[str], bars: Mapping[str, float], reached: Collection[str]) -> str:
    """What counts as solved, and why a task has no numbers.

    >>> solved_note(["a", "b", "c"], {"a": 475.0, "b": -100.0}, {"a"})
    'Solved is a final return of at least 475 on a, -100 on b. Undefined on b: no run solves it. c has no such threshold.'
    """
    told = []
    if known := [f"{bars[task]:g} on {task}" for task in tasks if task in bars]:
        told.append(f"Solved is a final return of at least {', '.join(known)}.")
    told += [f"Undefined on {task}: no run solves it." for task in tasks if task in bars and task not in reached]
    told += [f"{task} has no such threshold." for task in tasks if task not in bars]
    return " ".join(told)


def precision_over_recall(task: str, runs: Sequence[Run], key: str) -> Iterator[Figure]:
    """What each rule's precision is at each recall, its thresholds fitted on the same runs; none without a success."""
    runs = label(runs)
    lines = []
    for place, rule in enumerate(COMPARED):
        if points := curve(rule, runs):
            recalls, precisions = zip(*points, strict=True)
            lines.append(Line(rule, recalls, precisions, colour=place))
    if not lines:
        return
    ends = "; ".join(f"{one.label} falls from {one.y[0]:.3g} to {one.y[-1]:.3g}" for one in lines)
    title = f"Precision over recall of what is accepted at {100 * AT:g} %, in sample: {task}"
    text = f"Share of successes among what a rule keeps, over the share of successes that it keeps: {ends}."
    svg = figures.curves(lines, ("recall", "precision"), title, text, key)
    rows = [[one.label, x, y] for one in lines for x, y in zip(one.x, one.y, strict=True)]
    yield Figure(title, text, [svg], ["rule", "recall", "precision"], rows, [(one.colour, one.label) for one in lines])
