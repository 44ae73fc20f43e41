"""What a report says of trials that chose or were chosen: what screening stopped, and what tuning took."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.judging import figures
from harness.judging.drawing import SERIES
from harness.judging.evidence import WORST
from harness.judging.figures import Figure, Line
from harness.judging.report_data import Findings, Table, number, text
from harness.planning.plan import TUNED, PlannedTrial
from harness.planning.taking import differing
from harness.recording.records import Result, Status

STOPPED = re.compile(r"(.+?) at step \d+(?: of \d+)?: (.+?), (?:its neighbours allow|allowed:) (.+)", re.DOTALL)
"""Why a trial was stopped: the rule, the value, the threshold."""


def stopped(findings: Findings) -> list[Table]:
    """What a grid's screening stopped: by task with the share of the training saved, and trial by trial."""
    if findings.plan.screening is None:
        return []
    by_task: dict[str, list[tuple[PlannedTrial, Result]]] = defaultdict(list)
    for trial in findings.plan.trials:
        if result := findings.results.get(trial.hash):
            by_task[trial.task_label].append((trial, result))
    if not by_task:
        return []
    rows, each = [], []
    for task, ended in by_task.items():
        screened = [(trial, result) for trial, result in ended if result.status is Status.SCREENED]
        left = sum(trial.spec.length - result.steps for trial, result in screened)
        saved = left / sum(trial.spec.length for trial, _ in ended)
        rows.append([task, f"{len(screened)}/{len(ended)}", f"{saved:.1%}"])
        each += [_stop(trial, result) for trial, result in screened]
    note = "Saved: the steps, or rounds, that stopped trials did not take, of those that all trials that ended would have taken."
    tables = [Table("Stopped trials by task", ["task", "stopped", "saved"], rows, note)]
    if each:
        columns = ["trial", "seed", "rule", "value", "allowed", "step"]
        tables.append(Table(f"All {len(each)} stopped trials", columns, each, names=5))
    return tables


def _stop(trial: PlannedTrial, result: Result) -> list[str]:
    found = STOPPED.fullmatch(result.reason)
    told = found.groups() if found else ("", result.reason, "")
    return [trial.cell, trial.spec.seed_label, *told, f"{result.steps} of {trial.spec.length}"]


@dataclass(frozen=True)
class Tried:
    """A point that tuning tried for one cell."""

    values: dict[str, Any]
    """By the name of the tuned field."""
    score: float | None
    """The mean validation score over the seeds of tuning; None if a trial of it failed or is missing."""
    taken: bool
    """Whether the seeds of the grid were run with it."""


@dataclass(frozen=True)
class Tuned:
    """The points of one cell."""

    task: str
    method: str
    cell: str
    points: list[Tried]


def tunings(findings: Findings) -> list[Tuned]:
    """All cells whose fields tuning chose."""
    first = {trial.cell: trial for trial in findings.plan.reported}
    found = [Tuned(t.task_label, t.method_label, cell, _points(findings, t)) for cell, t in first.items()]
    return [tuned for tuned in found if tuned.points]


def _points(findings: Findings, trial: PlannedTrial) -> list[Tried]:
    plan, results = findings.plan, findings.results
    metric, result = plan.metrics[trial.spec.task][0], results.get(trial.hash)
    sources = [plan.by_hash[required.hash] for required in trial.spec.requires if required.path == TUNED]
    by_point: dict[int | None, list[PlannedTrial]] = defaultdict(list)
    for source in sources:
        by_point[source.tuning].append(source)
    points = []
    for tried in by_point.values():
        paths = differing(trial, tried[0])
        known = [
            results[t.hash].metrics.get(metric) for t in tried if t.hash in results and _went_well(results[t.hash])
        ]
        scores = [score for score in known if score is not None]
        score = float(np.mean(scores)) if len(scores) == len(tried) else None
        taken = result is not None and all(result.values.get(path) == value for path, value in paths.items())
        points.append(Tried({_name(trial, path): value for path, value in paths.items()}, score, taken))
    return points


def _went_well(result: Result) -> bool:
    return result.status not in (*WORST, Status.SCREENED)


def _name(trial: PlannedTrial, path: str) -> str:
    """`recipe.lr` as `lr`, `methods.0.beta` as `adam.beta`."""
    kind, _, rest = path.partition(".")
    if kind == "recipe":
        return rest
    index, _, option = rest.partition(".")
    return f"{trial.spec.methods[int(index)].name}.{option}"


def tuning_table(tuned: Sequence[Tuned]) -> Table:
    """What was chosen for each cell, its validation score, and those of all points."""
    rows = []
    for one in tuned:
        taken = next((point for point in one.points if point.taken), None)
        chosen = ", ".join(f"{name}={value}" for name, value in taken.values.items()) if taken else "not yet"
        scores = [point.score for point in one.points if point.score is not None]
        spread = f"{number(min(scores))} to {number(max(scores))}" if scores else "none"
        rows.append(
            [one.cell, chosen, number(taken.score if taken else None), spread, f"{len(scores)}/{len(one.points)}"]
        )
    note = (
        "The mean validation score over the seeds of tuning, which are no seeds of the grid. The best point was chosen; its "
        "score is too good for having been the best, so nothing above rests on it."
    )
    return Table(
        "Tuning", ["cell", "chosen", "its score", "scores of all points", "points that went well"], rows, note, 2
    )


def tuning_figures(findings: Findings, tuned: Sequence[Tuned]) -> Iterator[Figure]:
    """The validation score over each tuned field, task by task; the other fields vary along."""
    for index, task in enumerate(findings.plan.tasks):
        own = [one for one in tuned if one.task == task]
        for place, name in enumerate(dict.fromkeys(n for one in own for n in one.points[0].values)):
            if figure := _over(findings, own, name, f"u{index}f{place}"):
                yield figure


def _over(findings: Findings, tuned: Sequence[Tuned], name: str, key: str) -> Figure | None:
    data = [
        [one.cell.partition(" · ")[2], text(point.values[name]), point.score, "yes" if point.taken else ""]
        for one in tuned
        for point in one.points
        if name in point.values and point.score is not None
    ]
    every = list(dict.fromkeys(value for _, value, _, _ in data))
    if len(every) < 2:
        return None
    task = tuned[0].task
    numeric = all(isinstance(value, int | float) for value in every)
    metric = findings.evidence.own(task)[0]
    labels = list(dict.fromkeys(label for label, *_ in data))[:SERIES]
    lines = []
    for colour, label in enumerate(labels):
        points = sorted((v if numeric else every.index(v), score) for own, v, score, _ in data if own == label)
        lines.append(Line(label, [x for x, _ in points], [y for _, y in points], colour=colour))
    told = "; ".join(f"{label} at {number(v) if numeric else v}: {number(s)}" for label, v, s, _ in data[:24])
    words = f"{metric} on {task} over the tuned {name}, other fields varying along: {told}."
    svg = figures.sensitivity(lines, (name, metric), [] if numeric else [str(v) for v in every], words, key)
    columns = ["cell", name, metric, "taken"]
    return Figure(f"Tuned {name}: {task}", words, [svg], columns, data, [(line.colour, line.label) for line in lines])
