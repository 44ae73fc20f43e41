"""Figures of a report as files of their own: pictures side by side with their legend, on a light ground of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.sax.saxutils import escape

from harness.judging.drawing import DASH_ARRAYS, SERIES, plain
from harness.judging.figures import Figure
from harness.judging.report import TEMPLATES

SCALE = 1.42
"""Pixels to a unit of a picture, so that its letters are as large as the text beside it."""

ROW = 14
"""Height of a row of the legend."""

LETTER = 5.0
"""Width that a letter of the legend takes at most, on average."""


def palette() -> str:
    """The report's light colours, as the style sheet of a picture."""
    found = re.findall(r"--c(\d): (#\w+);", (TEMPLATES / "report.css").read_text(encoding="utf-8"))[:SERIES]
    rules = [f".s{number}{{stroke:{colour}}}.f{number}{{fill:{colour}}}" for number, colour in found]
    return "svg{color:#1b1f24;font-family:system-ui,sans-serif}" + "".join(rules)


def size(svg: str) -> tuple[float, float]:
    """Width and height of a picture, from its view box."""
    match = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert match is not None, "every picture of a report has a view box from 0 0"
    return float(match[1]), float(match[2])


def picture(figure: Figure) -> str:
    """A figure's pictures in rows of two, its legend under them.

    The light ground is part of the picture: a page shows it as an image, whose colours cannot follow the page's.
    """
    sizes = [size(svg) for svg in figure.svgs]
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
    columns = min(2, len(sizes))
    placed = [
        svg.replace("<svg ", f'<svg x="{index % columns * width:g}" y="{index // columns * height:g}" '
                    f'width="{w:g}" height="{h:g}" ', 1)
        for index, (svg, (w, h)) in enumerate(zip(figure.svgs, sizes, strict=True))
    ]  # fmt: skip
    top = -(-len(sizes) // columns) * height
    across = columns * width
    marks, rows = legend(figure.legend, across)
    total = top + rows * ROW + (6 if rows else 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across:g} {total:g}" width="{across * SCALE:.0f}" '
        f'height="{total * SCALE:.0f}"><style>{palette()}</style>'
        f'<rect width="100%" height="100%" rx="4" fill="#fff"/>{"".join(placed)}'
        f'<g transform="translate(8 {top + 8:g})" font-size="9">{"".join(marks)}</g></svg>\n'
    )


def legend(entries: Sequence[tuple[int, str]], width: float) -> tuple[list[str], int]:
    """A line and a name for each series, and how many rows they take."""
    marks: list[str] = []
    x, row = 0.0, 0
    for colour, label in entries:
        name = plain(label, 60)
        needed = 30 + LETTER * len(name)
        if x and x + needed > width - 16:
            x, row = 0.0, row + 1
        y = row * ROW
        marks.append(
            f'<path class="s{colour}" d="M{x:g} {y}h18" stroke-width="2" stroke-dasharray="{DASH_ARRAYS[colour]}"/>'
            f'<text x="{x + 22:g}" y="{y + 3}" fill="currentColor">{escape(name)}</text>'
        )
        x += needed
    return marks, row + 1 if entries else 0
