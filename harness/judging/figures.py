"""The figures of a report, by kind: each with a text alternative and the data behind it."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.judging.drawing import COLOURS, DASHES, INK, MARKERS, SERIES, canvas, plain, sheet, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Line:
    """One method in a figure, with the bounds of its band where there are any."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    colour: int = 0


@dataclass(frozen=True)
class Figure:
    """What the page shows: pictures with their text, and the data that they were drawn from."""

    title: str
    text: str
    """What a reader who does not see it is told."""
    svgs: list[str]
    columns: list[str]
    rows: list[list[Any]]
    legend: list[tuple[int, str]]
    """Colour and label of each series."""

    @property
    def data_uri(self) -> str:
        """The data as a CSV file inside a link, with six digits: a page has many."""
        text = csv_text(self.columns, [[_rounded(cell) for cell in row] for row in self.rows])
        return "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode()).decode()


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows as CSV. A text that a spreadsheet would take for a formula has an apostrophe in front.

    >>> csv_text(["a"], [["=1+1"], [-0.5]])
    "a\\r\\n'=1+1\\r\\n-0.5\\r\\n"
    """
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow([harmless(name) for name in columns])
    writer.writerows([harmless(cell) for cell in row] for row in rows)
    return stream.getvalue()


def _rounded(cell: Any) -> Any:
    return float(f"{cell:.6g}") if isinstance(cell, float) else cell


def harmless(cell: Any) -> Any:
    """A cell as a spreadsheet may have it: no text is a formula, also not behind white space.

    >>> harmless("@SUM(A1)"), harmless(" =1"), harmless(-1.5), harmless("adamw")
    ("'@SUM(A1)", "' =1", -1.5, 'adamw')
    """
    if isinstance(cell, float):
        return "" if math.isnan(cell) else cell
    if not isinstance(cell, str):
        return cell
    text = cell.replace("\x00", "")
    starts = text.lstrip(" \t\r\n\v\f\xa0\ufeff")[:1]
    return f"'{text}" if starts in tuple("=+-@|%＝＋－＠") or text[:1] in ("\t", "\r", "\n") else text


def scale(axes: Axes, values: Sequence[float], which: str, bounds: Sequence[float] = (), factor: float = 50.0) -> None:
    """Limits for some values, on a logarithmic axis if they span a factor; bounds of intervals count as far as they are near."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    known = sorted(value for value in values if math.isfinite(value))
    if not known:
        return
    low, high = known[0], known[-1]
    if low > 0 and high / low > factor:
        getattr(axes, f"set_{which}scale")("log")
        axis = getattr(axes, f"{which}axis")
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        low, high = low / 1.3, high * 1.3
    else:
        span = (high - low) or abs(high) * 0.5 or 1.0
        bounds = [bound for bound in bounds if math.isfinite(bound)]
        low = max([low - 1.5 * span, min([low, *bounds])])
        high = min([high + 1.5 * span, max([high, *bounds])])
        room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
        low, high = low - room, high + room
    getattr(axes, f"set_{which}lim")(low, high)


def curves(lines: Sequence[Line], labels: tuple[str, str], title: str, text: str, key: str) -> str:
    """Lines with their bands; the axes follow the lines, not the bands."""
    from matplotlib.collections import PolyCollection

    with sheet() as (figure, axes):
        axes.autoscale(False)  # the limits are looked for once, not anew for each line
        bands = [(band, COLOURS[line.colour % SERIES]) for line in lines for band in _bands(line)]
        if bands:
            areas, colours = zip(*bands, strict=True)
            axes.add_collection(PolyCollection(areas, facecolors=colours, edgecolors="none", alpha=0.16))
        for line in lines:
            colour = COLOURS[line.colour % SERIES]
            marker = MARKERS[line.colour % SERIES] if len(line.x) < 12 else ""
            dashes = DASHES[line.colour % SERIES]
            axes.plot(line.x, line.y, color=colour, linewidth=1.4, linestyle=dashes, marker=marker, markersize=3)
        axes.autoscale()
        scale(axes, [y for line in lines for y in line.y], "y")
        axes.set_xlabel(labels[0])
        axes.set_ylabel(plain(labels[1]))
        return svg(figure, title, text, key)


def _bands(line: Line) -> Iterator[NDArray[np.float64]]:
    """The areas between a line's bounds as polygons, (points, 2) each: one for each stretch on which both are known."""
    if not len(line.low):
        return
    x, low, high = (np.asarray(values, dtype=np.float64) for values in (line.x, line.low, line.high))
    for stretch in np.ma.clump_unmasked(np.ma.masked_invalid(low + high)):
        there = np.column_stack([x[stretch], low[stretch]])
        yield np.concatenate([there, np.column_stack([x[stretch], high[stretch]])[::-1]])


def sensitivity(lines: Sequence[Line], labels: tuple[str, str], names: Sequence[str], text: str, key: str) -> str:
    """A score over the values of an axis; their places are equal where they are no numbers."""
    with canvas() as (figure, axes):
        for line in lines:
            colour = COLOURS[line.colour % SERIES]
            bars = [[y - low for y, low in zip(line.y, line.low, strict=True)]] if len(line.low) else []
            bars += [[high - y for y, high in zip(line.y, line.high, strict=True)]] if bars else []
            style = {"color": colour, "linewidth": 1.2, "marker": MARKERS[line.colour % SERIES], "markersize": 4}
            axes.errorbar(line.x, line.y, yerr=bars or None, capsize=2, elinewidth=0.8, **style)  # type: ignore[arg-type]
        bounds = [bound for line in lines for bound in (*line.low, *line.high)]
        scale(axes, [y for line in lines for y in line.y], "y", bounds)
        if names:
            axes.set_xticks(range(len(names)), [plain(name, 12) for name in names])
        else:
            places = sorted({x for line in lines for x in line.x})
            scale(axes, places, "x", factor=8.0)
            if len(places) < 7:
                axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.set_xlabel(plain(labels[0]))
        axes.set_ylabel(plain(labels[1]))
        return svg(figure, f"{labels[1]} over {labels[0]}", text, key)


def scatter(points: Sequence[Line], labels: tuple[str, str], title: str, text: str, key: str) -> str:
    """One mark for each method: what it costs, and what it reaches."""
    with canvas() as (figure, axes):
        for point in points:
            bar = [[point.y[0] - point.low[0]], [point.high[0] - point.y[0]]] if len(point.low) else None
            colour = COLOURS[point.colour % SERIES]
            marker = MARKERS[point.colour % SERIES]
            axes.errorbar(point.x, point.y, yerr=bar, color=colour, marker=marker, markersize=6, elinewidth=0.8)
        bounds = [bound for point in points for bound in (*point.low, *point.high)]
        scale(axes, [point.y[0] for point in points], "y", bounds)
        scale(axes, [point.x[0] for point in points], "x")
        axes.set_xlabel(labels[0])
        axes.set_ylabel(plain(labels[1]))
        return svg(figure, title, text, key)


@dataclass(frozen=True)
class Strip:
    """The differences by seed of one contrast, with the interval of their centre."""

    label: str
    values: Sequence[float]
    mean: float | None
    low: float | None
    high: float | None


def strips(rows: Sequence[Strip], unit: str, title: str, text: str, key: str) -> str:
    """Every difference as a mark, and the interval of their centre as a bar, on both sides of zero."""
    height = 0.75 + 0.3 * len(rows)
    with canvas(height=height, left=0.36) as (figure, axes):
        axes.set_position((0.36, 0.5 / height, 0.61, 1 - 0.6 / height))
        axes.axvline(0, color=INK, linewidth=0.8)
        finite = [value for row in rows for value in row.values if math.isfinite(value)] or [0.0]
        edges = min([0.0, *finite]), max([0.0, *finite])
        for place, row in enumerate(rows):
            known = [value for value in row.values if math.isfinite(value)]
            axes.plot(known, [place] * len(known), "o", color=COLOURS[0], markersize=4, alpha=0.55)
            low = edges[0] if row.low is None else row.low
            high = edges[1] if row.high is None else row.high
            axes.plot([low, high], [place, place], color=INK, linewidth=1.6)
            if row.mean is not None:
                axes.plot([row.mean], [place], "|", color=INK, markersize=10)
        axes.set_yticks(range(len(rows)), [plain(row.label, 20) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(plain(unit, 44))
        axes.locator_params(axis="x", nbins=5)
        return svg(figure, title, text, key)


def ranks(means: dict[str, float], groups: Sequence[Sequence[str]], title: str, text: str, key: str) -> str:
    """Methods by mean rank; a bar joins those that cannot be told apart."""
    height = 0.75 + 0.24 * len(means)
    with canvas(height=height, left=0.36) as (figure, axes):
        axes.set_position((0.36, 0.5 / height, 0.61, 1 - 0.6 / height))
        for place, rank in enumerate(means.values()):
            axes.plot([rank], [place], MARKERS[place % SERIES], color=COLOURS[0], markersize=6)
        names = list(means)
        for group in groups:
            places = [names.index(name) for name in group]
            rank = max(means[name] for name in group)
            axes.plot([rank + 0.08] * 2, [min(places), max(places)], color=INK, linewidth=2.2, alpha=0.6)
        axes.set_yticks(range(len(names)), [plain(name, 20) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0.8, len(names) + 0.3)
        axes.set_xlabel("mean rank over tasks (1 is the best)")
        return svg(figure, title, text, key)


def heat_map(layers: Sequence[str], steps: Sequence[float], table: NDArray[np.float64], text: str, key: str) -> str:
    """A measure by layer (rows, the first on top) and step (columns); the axis says which values are dark and light."""
    height = 0.95 + 0.22 * max(3, min(len(layers), 24))
    with canvas(height=height, left=0.3) as (figure, axes):
        axes.set_position((0.3, 0.5 / height, 0.66, 1 - 0.65 / height))
        axes.grid(False)
        axes.imshow(table, aspect="auto", interpolation="none", cmap="viridis")
        every = max(1, -(-len(layers) // 24))
        axes.set_yticks(range(0, len(layers), every), [plain(layer, 18) for layer in layers[::every]])
        places = sorted({0, (len(steps) - 1) // 2, len(steps) - 1})
        axes.set_xticks(places, [f"{steps[place]:,.0f}" for place in places])
        known = table[np.isfinite(table)]
        ends = f"; dark {known.min():.3g}, light {known.max():.3g}" if known.size else ""
        axes.set_xlabel(f"step{ends}")
        return svg(figure, "by layer over training", text, key)
