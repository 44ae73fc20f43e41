"""The runs of a grid as calibration takes them, thresholds for another grid, and the table of rules."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.table import Table

from harness.identity import length_of
from harness.judging.calibration import Judgement, Run, fit
from harness.recording.grids import submissions
from harness.recording.records import Result, Status
from harness.recording.results import Results
from harness.screening import RULES, Bounds, Screening, read

EVERY_RULE = " + ".join(RULES)
FINAL = "train/return_last_tenth"
"""The final return: the mean over episodes of the last tenth of the steps."""

SECONDS = "time/train_seconds"

JUDGED = (Status.FINISHED, Status.DIVERGED)
"""The ends of runs that say whether a rule was right."""


def runs_of_grid(results: Results, grid: str, at: float) -> list[Run]:
    """The finished and diverged runs of a grid's last submission, of its first method: the others are its controls.

    Successes are relative to the best learning rate; `label` marks them otherwise.

    Args:
        results: the results folder.
        grid: the grid's name.
        at: the share of training after which early values are read.

    Raises:
        ValueError: if the grid was never run here.
    """
    found = submissions(results, grid)
    if not found:
        raise ValueError(f"thresholds.from: found {grid!r}, which has no runs in {results.folder}; run that grid first")
    trials = found[-1].trials()
    runs = []
    for trial in trials:
        records = results.trial(trial.hash)
        result = records.result()
        if trial.method_label == trials[0].method_label and result is not None and result.status in JUDGED:
            runs.append(run_of(trial.task_label, trial.seed, trial.spec["recipe"], records.records(), result, at))
    return label(runs)


def run_of(
    task: str, seed: str, recipe: Mapping[str, Any], records: Iterable[Mapping[str, Any]], result: Result, at: float
) -> Run:
    """A finished or diverged trial as a run: its early values after a share of the training, its final return and its cost.

    One that diverged has no final metrics: it cost what its last record says.
    """
    recorded = list(records)
    until = max(1, round(at * length_of(recipe)))
    values = read(EVERY_RULE, recorded, until, float(recipe["lr"]))
    seconds = [r["metrics"][SECONDS] for r in recorded if SECONDS in r.get("metrics", {})]
    cost = result.metrics.get(SECONDS, seconds[-1] if seconds else 1.0)
    return Run(task, float(recipe["lr"]), seed, values, result.metrics.get(FINAL, -math.inf), False, cost)


def label(runs: Sequence[Run], solved: Mapping[str, float] | None = None) -> list[Run]:
    """The runs with their successes marked: those whose final return reaches a bar.

    Args:
        runs: of any tasks.
        solved: the bar of each task; the best mean over seeds of a learning rate less a tenth of its size unless given.
    """
    bars = relative_bars(runs) if solved is None else solved
    return [replace(run, success=run.final >= bars[run.task]) for run in runs]


def relative_bars(runs: Sequence[Run]) -> dict[str, float]:
    """By task, the best mean over seeds of a learning rate less a tenth of its size."""
    finals: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        finals[run.task][run.lr].append(run.final)
    best = {task: max(sum(own) / len(own) for own in by_lr.values()) for task, by_lr in finals.items()}
    return {task: mean - 0.1 * abs(mean) if math.isfinite(mean) else math.inf for task, mean in best.items()}


def fitted(screening: Screening, tasks: Sequence[str], results: Results) -> Screening:
    """A grid's screening with its thresholds: fitted on the runs of the grid that it names, by task.

    Raises:
        ValueError: if that grid has no successful run of a task.
    """
    if not screening.source:
        return screening
    runs = runs_of_grid(results, screening.source, screening.at)
    thresholds: dict[str, Bounds] = {}
    for task in tasks:
        bounds = fit(screening.rule, [run for run in runs if run.task == task], screening.recall)
        if bounds is None:
            raise ValueError(
                f"thresholds.from: found {screening.source!r}, which has no successful run of {task} to fit thresholds on"
            )
        thresholds[_literal(task)] = bounds
    return replace(screening, thresholds=thresholds)


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


COLUMNS = ("rule", "recall at least", "held out", "precision", "recall", "saved", "regret", "kept")
"""Of the table of rules: four of them are numbers with their intervals."""


def cells(one: Judgement, form: str = "{} [{}]") -> list[str]:
    """A row of the table of rules; `form` puts a number and its interval together."""
    held_out = "nothing" if one.protocol == "in sample" else one.protocol
    numbers = [_told(one, name, form) for name in ("precision", "recall", "saved", "regret")]
    return [one.rule, f"{one.target:g}", held_out, *numbers, f"{one.accepted}/{one.runs}"]


def table(judgements: Sequence[Judgement]) -> Table:
    """The rules at matched recall, in 80 columns: each interval stands below its number."""
    title = "Early-stopping rules at matched recall, 95 % intervals"
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column in ("rule", "held out") else "right", overflow="fold")
    shown.columns[0].min_width = max((len(part) for one in judgements for part in one.rule.split()), default=0)
    shown.columns[1].max_width = len("recall")
    for one in judgements:
        shown.add_row(*cells(one, "{}\n{}"))
    return shown


def _told(one: Judgement, name: str, form: str) -> str:
    value = getattr(one, name)
    if value is None:
        return "undefined"
    low, high = (f"{end:.2f}" if end < 10 else f"{end:.0f}" for end in one.intervals[name])
    return form.format(f"{value:.3g}", f"{low}–{high}")
