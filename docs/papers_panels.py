"""What the papers' figures are drawn with: panels of lines over an axis, and strips of numbers by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.judging import figures
from harness.judging.drawing import SERIES
from harness.judging.evidence import Evidence
from harness.judging.figures import Figure, Line, Strip
from harness.judging.report_curves import Track, cell_tracks
from harness.judging.report_data import number
from harness.judging.report_tasks import cell_trials
from harness.judging.statistics import mean_interval
from harness.planning.plan import PlannedTrial
from harness.recording.results import Results

Read = Callable[[PlannedTrial], float | None]
Points = dict[Any, list[float]]
"""Numbers, one for each seed, by their place on an axis."""


@dataclass(frozen=True)
class Panel:
    """One picture of a figure."""

    title: str
    labels: tuple[str, str]
    lines: Sequence[Line]
    names: Sequence[str] = ()
    """Of the places on the horizontal axis, where they are no numbers."""


def drawn(title: str, panels: Iterable[Panel], key: str, curves: bool = False) -> Iterator[Figure]:
    """Panels as one figure; none if there is nothing in them. `curves` are lines with bands instead of points with bars."""
    panels = [panel for panel in panels if panel.lines]
    if not panels:
        return
    svgs, told, rows = [], [], []
    legend: dict[str, int] = {}
    for index, panel in enumerate(panels):
        text = f"{panel.title}: " + "; ".join(f"{one.label}: {ends(one, panel.names)}" for one in panel.lines)
        if curves:
            svgs.append(figures.curves(panel.lines, panel.labels, panel.title, text, f"{key}{index}"))
        else:
            svgs.append(figures.sensitivity(panel.lines, panel.labels, panel.names, text, f"{key}{index}"))
        told.append(text)
        legend |= {one.label: one.colour for one in panel.lines}
        rows += [[panel.title, one.label, x, y] for one in panel.lines for x, y in zip(one.x, one.y, strict=True)]
    marks = [(colour, name) for name, colour in legend.items()]
    yield Figure(title, ". ".join(told) + ".", svgs, ["panel", "series", "x", "y"], rows, marks)


def ends(line: Line, names: Sequence[str]) -> str:
    """Where a line begins and ends, in words."""
    places = [names[int(x)] if names else f"{x:g}" for x in (line.x[0], line.x[-1])]
    return f"{number(line.y[0], 3)} at {places[0]}, {number(line.y[-1], 3)} at {places[1]}"


def line(name: str, colour: int, points: Points, places: Sequence[Any] = ()) -> Line | None:
    """Means over seeds with Student's 95 % interval; `places` numbers what is not a number by its place among them."""
    x, y, low, high = [], [], [], []
    for place in sorted(points, key=places.index if places else None):
        if points[place]:
            mean, half = mean_interval(points[place])
            x.append(float(places.index(place) if places else place))
            y.append(mean)
            low.append(mean - (half or 0.0))
            high.append(mean + (half or 0.0))
    return Line(name, x, y, low, high, colour % SERIES) if x else None


def known(lines: Iterable[Line | None]) -> list[Line]:
    """Those that have a point."""
    return [one for one in lines if one is not None]


def over(evidence: Evidence, task: str, cells: Sequence[str], axis: str, read: Read) -> Points:
    """A number of every trial of some cells, by their value on an axis."""
    found: Points = defaultdict(list)
    for cell in cells:
        axes = evidence.trial(task, cell).axes
        value = next((value for name, value in axes.items() if name.partition(".")[2] == axis), None)
        if value is not None:
            numbers = (read(trial) for trial in cell_trials(evidence, task, cell))
            found[value] += [one for one in numbers if one is not None]
    return dict(found)


def final(evidence: Evidence, metric: str) -> Read:
    """Reads a final metric."""
    return lambda trial: evidence.value(trial, metric)


def early(evidence: Evidence, metric: str, fraction: float = 0.1) -> Read:
    """Reads a metric as it stood early in the training."""
    return lambda trial: evidence.early(trial, metric, fraction)


def tracks_of(memory: Results, evidence: Evidence, task: str, cell: str, metric: str) -> list[Track]:
    """One metric of every trial of a cell, over its training."""
    return [found.get(metric, {}) for found in cell_tracks(memory, evidence, task, cell, (metric,))]


def values(evidence: Evidence, task: str, cell: str, metric: str) -> list[float]:
    """A final metric of every trial of a cell that has it."""
    found = (evidence.value(trial, metric) for trial in cell_trials(evidence, task, cell))
    return [value for value in found if value is not None]


def strip(name: str, numbers: Sequence[float]) -> Strip:
    """Numbers by seed with Student's 95 % interval."""
    mean, half = mean_interval(list(numbers)) if numbers else (None, None)
    bounds = (None, None) if mean is None or half is None else (mean - half, mean + half)
    return Strip(name, numbers, mean, *bounds)


def strips_figure(title: str, rows: Sequence[Strip], unit: str, key: str) -> Iterator[Figure]:
    """Numbers by seed on both sides of zero; nothing if there are none."""
    rows = [row for row in rows if row.values]
    if not rows:
        return
    text = f"{title}. " + "; ".join(f"{row.label}: mean {number(row.mean, 3)}" for row in rows) + "."
    data = [[row.label, seed, value] for row in rows for seed, value in enumerate(row.values)]
    yield Figure(title, text, [figures.strips(rows, unit, title, text, key)], ["row", "seed", unit], data, [])
