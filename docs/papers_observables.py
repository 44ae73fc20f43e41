"""Signals as observables of a sweep: how early they rank runs, how well they tell regimes apart, how soon they settle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from harness.judging.evidence import Evidence
from harness.judging.observing import auc_by_seed, earliness_by_seed, early_values, regimes_of, settling
from harness.judging.report_data import Findings, number
from harness.judging.statistics import mean_interval, rank_correlation

SIGNALS = (
    "probe/oui/mean",
    "train/loss",
    "val/loss",
    "val/accuracy",
    "probe/layer_gradients/spread",
)
SWEEPS = (("sgd", "weight_decay"), ("adamw", "lr"))
"""Methods, and the axis that each varies."""
BY = "val/loss"
"""What makes the regimes."""

INTRO = (
    "For each sweep and signal, means over the seeds with Student's 95 % interval. *Last correlation*: Spearman's, by size, of",
    "the signal at the end with the final test loss over the cells. *Earliness*: the share of the training after which that",
    "correlation first has nine tenths of its last size; it says little where the last one is small. *AUC*: at a tenth of the",
    "training, between the regimes of the axis by the validation loss, the direction from the other seeds; .5 says nothing.",
    "*Settling*: the share after which a run's signal stays within 5 % of its range of where it ends, over that of its",
    "validation loss.",
)


def section(findings: Findings) -> Iterator[str]:
    """A table for each sweep of each task, a row for each signal."""
    evidence = findings.evidence
    yield from ("## Signals as observables", "", *INTRO, "")
    for task in evidence.tasks("*"):
        for method, axis in SWEEPS:
            cells = evidence.cells(task, method)
            found = regimes_of(evidence, task, cells, axis, BY) if cells else None
            if found is None:
                continue
            sizes = ", ".join(f"{list(found.named.values()).count(name)} {name}" for name in ("under", "well", "over"))
            yield from (f"### {method} over {axis} on {task}", "")
            yield from (f"Best {axis}: {found.best:g}; cells by regime: {sizes}.", "")
            yield "| signal | last correlation | earliness | AUC at 10 % | settling, by validation loss |"
            yield "|---|---:|---:|---:|---:|"
            for signal in SIGNALS:
                if row := _row(evidence, task, cells, signal, [found.named[cell] for cell in cells]):
                    yield row
            yield ""


def _row(evidence: Evidence, task: str, cells: Sequence[str], signal: str, regimes: Sequence[str]) -> str:
    values = early_values(evidence, task, cells, signal, 0.1)
    if np.isnan(values).all():
        return ""
    told = [
        told_by_seed(last_by_seed(evidence, task, cells, signal)),
        told_by_seed(earliness_by_seed(evidence, task, cells, signal, "test/loss")),
        told_by_seed(auc_by_seed(values, regimes).tolist()),
        told_by_seed(settling_by_seed(evidence, task, cells, signal)),
    ]
    return f"| {signal} | {' | '.join(told)} |"


def last_by_seed(evidence: Evidence, task: str, cells: Sequence[str], signal: str) -> list[float | None]:
    """The size of the rank correlation at the end, by seed."""
    found = []
    for index in range(len(evidence.units)):
        trials = [evidence.by_unit(task, cell)[index] for cell in cells]
        pairs = [(evidence.points(trial, signal), evidence.value(trial, "test/loss")) for trial in trials]
        known = [(points[-1].score, end) for points, end in pairs if points and end is not None]
        size = rank_correlation([x for x, _ in known], [y for _, y in known])
        found.append(None if size is None else abs(size))
    return found


def settling_by_seed(evidence: Evidence, task: str, cells: Sequence[str], signal: str) -> list[float | None]:
    """The median over the runs of a seed of how long the signal takes to settle over how long the validation loss takes."""
    found = []
    for index in range(len(evidence.units)):
        ratios = []
        for cell in cells:
            trial = evidence.by_unit(task, cell)[index]
            ours, theirs = (
                settling([(point.step, point.score) for point in evidence.points(trial, name)]) for name in (signal, BY)
            )
            if ours is not None and theirs:
                ratios.append(ours / theirs)
        found.append(float(np.median(ratios)) if ratios else None)
    return found


def told_by_seed(values: Sequence[float | None]) -> str:
    """A mean over the seeds and the half-width of its interval.

    >>> told_by_seed([0.1, 0.2, 0.3]), told_by_seed([None])
    ('0.2 ± 0.25', 'undefined')
    """
    known = [value for value in values if value is not None]
    if not known:
        return "undefined"
    mean, half = mean_interval(known)
    return number(mean, 3) + (f" ± {number(round(half, 12), 2)}" if half is not None else "")
