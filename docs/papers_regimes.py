"""The regimes of weight decay as grids/proxies/weight_decay_sweep.yaml defines them before its run, and OUI by regime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from papers_observables import told_by_seed

from harness.judging.evidence import Evidence
from harness.judging.observing import regimes_of
from harness.judging.report_data import Findings
from harness.judging.report_tasks import cell_trials
from harness.planning.plan import PlannedTrial

REGIMES = {"under": "under-regularised", "well": "well-regularised", "over": "over-regularised"}


@dataclass(frozen=True)
class Regimes:
    """The cells of one task by regime."""

    best: float
    """w*: the value with the lowest mean validation loss over the seeds."""
    cells: dict[str, list[str]]


def regimes(evidence: Evidence, task: str) -> Regimes | None:
    """The regimes of a task; None as long as no cell has all its seeds."""
    found = regimes_of(evidence, task, evidence.cells(task, "*"), "weight_decay", "val/loss")
    if found is None:
        return None
    named = {title: [cell for cell, each in found.named.items() if each == name] for name, title in REGIMES.items()}
    return Regimes(found.best, named)


def section(findings: Findings) -> Iterator[str]:
    """Loss and OUI by regime, a row for each task and regime."""
    evidence = findings.evidence
    yield "## Regimes"
    yield ""
    yield "Defined in the grid before its run: with w* the weight decay whose mean validation loss is lowest, below w\\* / 5 is"
    yield "under-regularised, from w\\* / 5 to 5 w\\* well-regularised, above over-regularised. Means over all trials of a regime"
    yield "with Student's 95 % interval of the seeds' means."
    yield ""
    yield "| task | w* | regime | values | validation loss | OUI at 10 % | OUI at the end |"
    yield "|---|---|---|---|---|---|---|"
    for task in evidence.tasks("*"):
        found = regimes(evidence, task)
        if found is None:
            continue
        for name, cells in found.cells.items():
            if not cells:
                yield f"| {task} | {found.best:g} | {name} | none of the grid's | | | |"
                continue
            decays = sorted(float(evidence.trial(task, cell).spec.recipe["weight_decay"]) for cell in cells)
            told = [
                by_seed(evidence, task, cells, lambda trial: evidence.value(trial, "val/loss")),
                by_seed(evidence, task, cells, lambda trial: evidence.early(trial, "probe/oui/mean", 0.1)),
                by_seed(evidence, task, cells, lambda trial: evidence.value(trial, "probe/oui/mean")),
            ]
            span = f"{decays[0]:g} to {decays[-1]:g} ({len(decays)})" if len(decays) > 1 else f"{decays[0]:g}"
            yield f"| {task} | {found.best:g} | {name} | {span} | {' | '.join(told)} |"
    yield ""


def by_seed(evidence: Evidence, task: str, cells: list[str], read: Callable[[PlannedTrial], float | None]) -> str:
    """The mean over some cells, with the interval over the seeds."""
    seeds: dict[str, list[float]] = {}
    for cell in cells:
        for trial in cell_trials(evidence, task, cell):
            if (value := read(trial)) is not None:
                seeds.setdefault(trial.spec.seed_label, []).append(value)
    if not seeds:
        return "none"
    return told_by_seed([sum(values) / len(values) for values in seeds.values()])
