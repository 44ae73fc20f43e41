"""Which figures a report has by claim and by task; those over all tasks are in `harness.judging.report_overall`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from harness.judging import figures
from harness.judging.drawing import SERIES
from harness.judging.evidence import Evidence
from harness.judging.figures import Figure, Line, Strip
from harness.judging.report_curves import Curve, Track, curve, layered, seed_tracks, thinned
from harness.judging.report_data import Findings, number
from harness.judging.report_tasks import Row, TaskTable, row
from harness.judging.telling import difference
from harness.judging.verdicts import Part, Verdict
from harness.recording.results import Results

MAPS = 24
"""Maps by layer that a report draws, four for each task at most."""

MEASURES = 3
"""Measures without layers that are drawn for each task."""

CLAIM_ROWS = 24
"""Contrasts of a claim that one figure shows."""


def legend(rows: Sequence[Row]) -> list[tuple[int, str]]:
    """Colours of the methods that a figure tells apart."""
    return [(row.colour, row.label) for row in rows[:SERIES]]


def verdict_figure(verdict: Verdict, key: str) -> Figure | None:
    """Every difference of a claim by seed, with the interval of each contrast's centre.

    Contrasts in several units are shown in standard deviations of their differences.
    """
    units = {part.unit for part in verdict.parts}
    unit = f"difference in {units.pop()}" if len(units) == 1 else "standard deviations"
    rows = [_strip(part, len(units) > 1) for part in verdict.parts[:CLAIM_ROWS]]
    rows = [strip for strip in rows if strip.values]
    if not rows:
        return None
    told = [part for part in verdict.parts[:CLAIM_ROWS] if part.paired]
    text = "; ".join(f"{part.label}: mean [interval] {difference(part)}" for part in told)
    text = f"Numbers by seed, above zero where the statement holds. {text}."
    data = [
        [part.label, seed, value]
        for part in verdict.parts
        for seed, value in zip(part.seeds, part.differences, strict=True)
    ]
    svg = figures.strips(rows, f"{unit} (above 0: holds)", verdict.sentence, text, key)
    return Figure("Every difference by seed", text, [svg], ["contrast", "seed", "difference"], data, [])


def _strip(part: Part, scaled: bool) -> Strip:
    low, high = part.paired.interval if part.paired else (None, None)
    mean, deviation = (part.paired.mean, part.paired.deviation) if part.paired else (None, None)
    size = (deviation or 1.0) if scaled else 1.0
    bounds = (None if number is None else number / size for number in (mean, low, high))
    return Strip(part.label, [value / size for value in part.differences if value is not None], *bounds)


def task_figures(findings: Findings, table: TaskTable, memory: Results, key: str) -> list[Figure]:
    """Learning curves, cost, sensitivity and probes of one task."""
    evidence, task = findings.evidence, table.task
    own = evidence.own(task)[0]
    unit = "rounds" if evidence.trial(task, table.rows[0].cell).spec.recipe.get("rounds") else "steps"
    shown = [row for row in table.rows if row.finished or row.worst][:SERIES]
    tracks = {r.label: seed_tracks(memory, evidence, task, r.cell, (own, "probe/")) for r in shown}
    found = [
        learning_curves(
            shown, {name: [t.get(own, {}) for t in all_] for name, all_ in tracks.items()}, (own, unit), f"{key}c"
        ),
        cost_figure(table, f"{key}q"),
        *sensitivities(evidence, task, shown, f"{key}s"),
        *probe_figures(shown, tracks, (unit, min(4, max(1, MAPS // len(findings.tables)))), f"{key}p"),
    ]
    return [figure for figure in found if figure is not None]


def learning_curves(
    rows: Sequence[Row],
    tracks: dict[str, list[Track]],
    names: tuple[str, str],
    key: str,
    title: str = "Learning curves",
) -> Figure | None:
    """A metric over steps (or rounds) and over seconds, with 95 % bands over seeds. `names` are the metric's and the unit's."""
    metric, unit = names
    found = {index: curve(tracks[row.label]) for index, row in enumerate(rows)}
    known: dict[int, Curve] = {index: c for index, c in found.items() if c is not None and len(c.steps) > 1}
    if not known:
        return None
    ends = "; ".join(f"{rows[i].label} ends at {number(c.mean[-1])}" for i, c in known.items())
    text = f"{metric}, mean over seeds with Student's 95 % interval: {ends}."
    svgs = []
    for axis in ("steps", "seconds"):
        lines = []
        for index, c in known.items():
            x, band = getattr(c, axis), max(c.seeds) > 1
            low, high = (c.low, c.high) if band else ([], [])
            lines.append(Line(rows[index].label, x, c.mean, low, high, rows[index].colour))
        name = unit if axis == "steps" else "seconds of training"
        svgs.append(figures.curves(lines, (name, metric), f"{metric} over {axis}", text, f"{key}{axis[1]}"))
    data = [
        [rows[index].label, *values]
        for index, c in known.items()
        for values in zip(c.steps, c.seconds, c.mean, c.low, c.high, c.seeds, strict=True)
    ]
    columns = ["method", "step", "seconds", metric, "low", "high", "seeds"]
    return Figure(title, text, svgs, columns, data, legend([rows[index] for index in known]))


def cost_figure(table: TaskTable, key: str) -> Figure | None:
    """What each method reaches, and the seconds of training that it takes."""
    rows = [row for row in table.rows if row.mean is not None and row.seconds is not None]
    if len(rows) < 2:
        return None
    points = []
    for r in rows[:SERIES]:
        assert r.seconds is not None and r.mean is not None
        bounds = ([r.low], [r.high]) if r.low is not None and r.high is not None else ((), ())
        points.append(Line(r.label, [r.seconds], [r.mean], bounds[0], bounds[1], r.colour))
    told = "; ".join(f"{r.label}: {number(r.mean)} in {number(r.seconds, 3)} s" for r in rows)
    text = f"{table.metric} ({table.better} is better) against seconds of training. {told}."
    svg = figures.scatter(points, ("seconds of training", table.metric), "Cost against quality", text, key)
    data = [[r.label, r.seconds, r.mean, r.low, r.high] for r in rows]
    columns = ["method", "seconds", table.metric, "low", "high"]
    return Figure("Cost against quality", text, [svg], columns, data, legend(rows))


def sensitivities(evidence: Evidence, task: str, rows: Sequence[Row], key: str) -> Iterator[Figure]:
    """The score over each axis that a method has several values on; other axes are averaged over."""
    metric = evidence.metric(task, "")
    values: dict[str, dict[int, dict[Any, list[Row]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for index, method in enumerate(rows):
        for cell in evidence.cells(task, method.method):
            for name, value in evidence.trial(task, cell).axes.items():
                place = value if isinstance(value, int | float | str) else str(value)
                values[name][index][place].append(row(evidence, task, cell, method.label))
    for number_, (name, methods) in enumerate(values.items()):
        every = list(dict.fromkeys(place for places in methods.values() for place in places))
        if len(every) < 2:
            continue
        numeric = all(isinstance(place, int | float) and not isinstance(place, bool) for place in every)
        every = sorted(every) if numeric else every
        lines, data = [], []
        for index, places in methods.items():
            points = []
            for place in sorted(places, key=every.index):
                known = [cell for cell in places[place] if cell.mean is not None]
                if known:
                    points.append(_point(place if numeric else every.index(place), known))
                    data.append([rows[index].label, place, *points[-1][1:]])
            if points:
                x, y, low, high = map(list, zip(*points, strict=True))
                lines.append(Line(rows[index].label, x, y, low, high, rows[index].colour))
        if not lines:
            continue
        short = name.partition(".")[2]
        text = f"{metric} over {short}: " + "; ".join(f"{d[0]} at {d[1]}: {number(d[2])}" for d in data[:24]) + "."
        names = [] if numeric else [str(place) for place in every]
        svg = figures.sensitivity(lines, (short, metric), names, text, f"{key}{number_}")
        marks = [(line.colour, line.label) for line in lines]
        yield Figure(f"Sensitivity to {short}", text, [svg], ["method", short, metric, "low", "high"], data, marks)


def _point(x: Any, cells: Sequence[Row]) -> tuple[Any, float, float, float]:
    """A mean with its interval; a mean of several cells, or of one seed, has none."""
    mean = float(np.mean([cell.mean for cell in cells if cell.mean is not None]))
    if len(cells) == 1 and cells[0].low is not None and cells[0].high is not None:
        return x, mean, cells[0].low, cells[0].high
    return x, mean, math.nan, math.nan


def probe_figures(
    rows: Sequence[Row], tracks: dict[str, list[dict[str, Track]]], limits: tuple[str, int], key: str
) -> Iterator[Figure]:
    """Maps by layer over training for measures that have layers, curves for those that have not.

    Args:
        limits: the unit of the curves, and how many maps to draw at most.
    """
    unit, most = limits
    names = list(dict.fromkeys(n for all_ in tracks.values() for t in all_ for n in t if n.startswith("probe/")))
    maps, single = layered(names)
    for place, name in enumerate(single[:MEASURES]):
        each = {label: [track.get(name, {}) for track in all_] for label, all_ in tracks.items()}
        if figure := learning_curves(rows, each, (name, unit), f"{key}n{place}", title=name.removeprefix("probe/")):
            yield figure
    drawn = 0
    for index, method in enumerate(rows):
        for measure in maps:
            own = [name for name in maps[measure] if any(name in track for track in tracks[method.label])]
            if (
                drawn < most
                and len(own) > 1
                and (figure := layer_map(method, measure, own, tracks, f"{key}{index}m{drawn}"))
            ):
                yield figure
                drawn += 1


def layer_map(
    method: Row, measure: str, names: Sequence[str], tracks: dict[str, list[dict[str, Track]]], key: str
) -> Figure | None:
    """A measure by layer over training, the mean over seeds."""
    columns: list[dict[float, float]] = []
    for name in names:
        by_step: dict[float, list[float]] = defaultdict(list)
        for track in tracks[method.label]:
            for step, (_, value) in track.get(name, {}).items():
                by_step[step].append(value)
        columns.append({step: float(np.mean(values)) for step, values in by_step.items()})
    steps = sorted(set().union(*columns))
    if len(steps) < 2:
        return None
    steps = [steps[index] for index in thinned(len(steps))]
    table = np.array([[column.get(step, math.nan) for step in steps] for column in columns])
    layers = [name.removeprefix(f"{measure}/") for name in names]
    told = "; ".join(
        f"{layer} from {number(r[0])} to {number(r[-1])}" for layer, r in zip(layers[:24], table, strict=False)
    )
    title = f"{measure.removeprefix('probe/')} by layer: {method.label}"
    text = f"{title}, mean over seeds; the first layer is on top. {told}."
    svg = figures.heat_map(layers, steps, table, text, key)
    data = [[layer, step, float(table[i, j])] for i, layer in enumerate(layers) for j, step in enumerate(steps)]
    return Figure(title, text, [svg], ["layer", "step", measure], data, [])
