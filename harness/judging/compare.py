"""What changed between two grids, two results folders or two versions of the code: a verdict for every cell of both."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from harness.judging.evidence import WORST
from harness.judging.paired import Paired, describe, holm, ranked_failures, sign_flip_p
from harness.options import nearest, offered
from harness.planning.claims import better_when
from harness.planning.reading import is_folder
from harness.recording.grids import SubmittedTrial, some_submissions
from harness.recording.records import RecordsError, Result, Status
from harness.recording.results import Results
from harness.seconds import amount


class Change(StrEnum):
    """What became of a cell from the first side to the second."""

    IDENTICAL = "identical"
    BETTER = "better"
    WORSE = "worse"
    NO_CHANGE = "no change shown"
    HELD = "held back"


@dataclass(frozen=True)
class Side:
    """One of the two: the trials of a grid as last submitted, and their results."""

    name: str
    trials: Sequence[SubmittedTrial]
    results: Mapping[str, Result]
    place: str = ""
    """The grid and its results folder as options of the next command."""


@dataclass(frozen=True)
class Compared:
    """A cell that both sides have."""

    task: str
    cell: str
    metric: str
    change: Change
    p: float
    """Two-sided, after Holm over all cells."""
    paired: Paired | None
    """Second minus first by seed, oriented so that more is better."""
    fields: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """What differs in the trials' content, by path."""
    codes: int = 0
    """Seeds whose results were computed by other code."""
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two sides, cell by cell."""

    first: str
    second: str
    cells: list[Compared]
    only_first: list[str]
    only_second: list[str]
    level: float


Metric = Callable[[str], tuple[str, str]]
"""For a task by name, the metric to compare by and the direction in which that is better."""


def compare(first: Side, second: Side, metric: Metric, level: float = 0.05) -> Comparison:
    """A verdict for each cell that both sides have.

    Cells go together by what the grids call them, trials by their seed; of trials that share the seed of the stream that varies
    most, the mean is compared. A difference is one if a two-sided exact paired test at the level says so, after Holm over all
    cells that are not identical.

    >>> compare(Side("a", [], {}), Side("b", [], {}), lambda task: ("test/loss", "min")).cells
    []
    """
    ours, theirs = _by_cell(first), _by_cell(second)
    both = [cell for cell in ours if cell in theirs]
    found = [_compare(cell, (ours[cell], first.results), (theirs[cell], second.results), metric) for cell in both]
    open_ = [index for index, (cell, _) in enumerate(found) if cell.change is Change.NO_CHANGE]
    adjusted = dict(zip(open_, holm([found[index][0].p for index in open_]), strict=True))
    cells = []
    for index, (cell, sign) in enumerate(found):
        p = adjusted.get(index, cell.p)
        change = cell.change
        if index in adjusted and p <= level:
            change = Change.BETTER if sign > 0 else Change.WORSE
        cells.append(Compared(**vars(cell) | {"p": p, "change": change}))
    only = ([c for c in ours if c not in theirs], [c for c in theirs if c not in ours])
    return Comparison(first.name, second.name, cells, *only, level)


def _by_cell(side: Side) -> dict[str, dict[str, SubmittedTrial]]:
    cells: dict[str, dict[str, SubmittedTrial]] = {}
    for trial in side.trials:
        cells.setdefault(trial.cell, {})[trial.seed] = trial
    return cells


Half = tuple[dict[str, SubmittedTrial], Mapping[str, Result]]


def _compare(cell: str, one: Half, other: Half, metric: Metric) -> tuple[Compared, float]:
    seeds = [seed for seed in one[0] if seed in other[0]]
    example = next(iter(one[0].values()))
    name, better = metric(example.spec["task"])
    sign = 1.0 if better == "max" else -1.0
    pairs = [(one[1].get(one[0][seed].hash), other[1].get(other[0][seed].hash)) for seed in seeds]
    scores = {s: (_score(a, name, sign), _score(b, name, sign)) for s, (a, b) in zip(seeds, pairs, strict=True)}
    missing = sum(None in pair for pair in scores.values())
    content: dict[str, Any] = {
        "task": example.task_label,
        "cell": cell,
        "metric": name,
        "p": 1.0,
        "fields": _changed(example.spec, next(iter(other[0].values())).spec),
        "codes": sum(a.code != b.code for a, b in pairs if a and b),
    }
    differences = np.array(_differences(one[0], scores))
    paired = describe(differences) if len(differences) else None
    if missing or not seeds:
        why = f"{missing} of {len(seeds)} pairs have no score" if seeds else "no seed is on both sides"
        return Compared(**content, change=Change.HELD, paired=paired, reason=why), 0.0
    if all(a and b and a.weights == b.weights and a.metrics.get(name) == b.metrics.get(name) for a, b in pairs):
        return Compared(**content, change=Change.IDENTICAL, paired=paired), 0.0
    above, below = (float(p) for p in sign_flip_p(ranked_failures(differences)))
    content["p"] = min(1.0, 2 * min(above, below))
    return Compared(**content, change=Change.NO_CHANGE, paired=paired), 1.0 if above < below else -1.0


def _score(result: Result | None, metric: str, sign: float) -> float | None:
    if result is None:
        return None
    if result.status in WORST:
        return -math.inf
    value = result.metrics.get(metric) if result.status is Status.FINISHED else None
    return None if value is None else sign * value


def _differences(
    trials: Mapping[str, SubmittedTrial], scores: Mapping[str, tuple[float | None, float | None]]
) -> list[float]:
    """Of the two means over the trials that share a seed of the stream that varies most, for each of its seeds."""
    known = {name: (a, b) for name, (a, b) in scores.items() if a is not None and b is not None}
    seeds: dict[str, Mapping[str, int]] = {name: trials[name].spec["seed"] for name in known}
    varied = {stream: len({seed[stream] for seed in seeds.values()}) for seed in seeds.values() for stream in seed}
    units: dict[int, list[tuple[float, float]]] = {}
    for name, pair in known.items():
        units.setdefault(seeds[name][max(varied, key=varied.__getitem__)], []).append(pair)
    return [_difference(*np.mean(pairs, axis=0).tolist()) for pairs in units.values()]


def _difference(one: float, other: float) -> float:
    return 0.0 if one == other else other - one


def _changed(one: Mapping[str, Any], other: Mapping[str, Any], path: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields of two contents that differ, by path; seeds and requirements aside."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*one, *other} - ({"seed", "requires"} if not path else set())):
        a, b, place = one.get(name), other.get(name), f"{path}{name}"
        if isinstance(a, dict) and isinstance(b, dict):
            found |= _changed(a, b, f"{place}.")
        elif a != b:
            found[place] = (a, b)
    return found


def find_side(text: str, memory: Results) -> Side:
    """A side from what a user names: a grid of the results folder, a results folder with one grid, or FOLDER:GRID.

    Raises:
        RecordsError: if it is none of them, or a grid that holds no submission.
    """
    folder, grid = memory, text
    path, colon, name = text.rpartition(":")
    if colon and is_folder(Path(path)):
        folder, grid = Results(path), name
    elif is_folder(Path(text) / "grids"):
        folder = Results(text)
        known = folder.grids()
        if len(known) != 1:
            raise RecordsError(f"found {text!r} with {len(known)} grids, allowed: one of them, as {text}:GRID")
        grid = known[0]
    known = folder.grids()
    if grid not in known:
        listed = ", ".join(known) or "none yet"
        raise RecordsError(
            f"found {text!r}, allowed: a grid of {folder.folder} ({listed}), or FOLDER:GRID{nearest(grid, known)}"
        )
    trials = some_submissions(folder, grid)[-1].trials()
    results = folder.results(trial.hash for trial in trials)
    return Side(text, trials, results, shlex.join([grid, "--results", str(folder.folder)]))


def check_metric(by: str, sides: Iterable[Side]) -> None:
    """Refuses a metric that no trial has.

    Raises:
        RecordsError: with the nearest that some have.
    """
    known = sorted({name for side in sides for result in side.results.values() for name in result.metrics})
    if by and known and by not in known:
        raise RecordsError(f"--by: found {by!r}, allowed: {offered(by, known, 'harness report')}{nearest(by, known)}")


def metric_of(known: Mapping[str, tuple[str, str]], by: str = "", direction: str = "") -> Metric:
    """The metric to compare by: the task's own on the test split, or another.

    Args:
        known: for each task by name its own metric and direction.
        by: the metric, for every task.
        direction: `min` or `max`, where the name of the metric does not say.
    """

    def metric(task: str) -> tuple[str, str]:
        own = known.get(task)
        name = by or (own[0].replace("val/", "test/", 1) if own else "")
        better = direction or better_when(name, own or ())
        if not name or not better:
            raise RecordsError(f"--by: found {name!r} for {task}, allowed: a metric, with --direction min or max")
        return name, better

    return metric


def table(comparison: Comparison) -> Table:
    """A comparison for a terminal."""
    title = f"{comparison.second} against {comparison.first}"
    found = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("cell", "metric", "change"):
        found.add_column(name)
    found.add_column("difference", justify="right")
    found.add_column("p", justify="right")
    found.add_column("what differs")
    for cell in comparison.cells:
        paired = cell.paired
        mean = "" if paired is None or paired.mean is None else f"{paired.mean:+.3g}"
        differs = [f"{path}: {a} → {b}" for path, (a, b) in cell.fields.items()]
        differs += [f"code ({amount(cell.codes, 'seed')})"] if cell.codes else []
        differs += [cell.reason] if cell.reason else []
        p = "" if cell.change in (Change.IDENTICAL, Change.HELD) else f"{cell.p:.3g}"
        found.add_row(cell.cell, cell.metric, str(cell.change), mean, p, "; ".join(differs))
    return found
