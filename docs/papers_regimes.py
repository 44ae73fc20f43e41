"""The regimes of weight decay as grids/proxies/weight_decay_sweep.yaml defines them before its run, and OUI by regime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from harness.judging.evidence import Evidence
from harness.judging.report_data import Findings, cell_trials, number
from harness.judging.statistics import mean_interval
from harness.planning.plan import PlannedTrial

REGIMES = ("under-regularised", "well-regularised", "over-regularised")
FACTOR = 5.0
"""How far from the best value the middle regime reaches, on both sides."""


@dataclass(frozen=True)
class Regimes:
    """The cells of one task by regime."""

    best: float
    """w*: the value with the lowest mean validation loss over the seeds."""
    cells: dict[str, list[str]]


def regimes(evidence: Evidence, task: str) -> Regimes | None:
    """The regimes of a task; None as long as no cell has all its seeds.

    Under-regularised below w* / 5, well-regularised from w* / 5 to 5 w*, over-regularised above. A cell of which a seed has no
    loss is not the best.
    """
    decays, losses = {}, {}
    for cell in evidence.cells(task, "*"):
        decays[cell] = float(evidence.trial(task, cell).spec.recipe["weight_decay"])
        found = [evidence.value(trial, "val/loss") for trial in cell_trials(evidence, task, cell)]
        known = [loss for loss in found if loss is not None]
        if len(known) == len(found):
            losses[cell] = sum(known) / len(known)
    if not losses:
        return None
    best = decays[min(losses, key=losses.__getitem__)]
    return Regimes(best, {name: [c for c in decays if regime(decays[c], best) == name] for name in REGIMES})


def regime(decay: float, best: float) -> str:
    """The regime of a value.

    >>> [regime(decay, 1e-3) for decay in (1e-4, 2e-4, 1e-3, 5e-3, 1e-2)]
    ['under-regularised', 'well-regularised', 'well-regularised', 'well-regularised', 'over-regularised']
    """
    tolerance = 1e-9
    if decay < best / FACTOR * (1 - tolerance):
        return REGIMES[0]
    return REGIMES[2] if decay > best * FACTOR * (1 + tolerance) else REGIMES[1]


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
    mean, half = mean_interval([sum(values) / len(values) for values in seeds.values()])
    return number(mean, 3) + (f" ± {number(half, 2)}" if half is not None else "")
