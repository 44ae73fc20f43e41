"""What the figures of a page are drawn on and with: the page's ink and palette, and SVG that the page can hold.

Drawn by matplotlib, then freed of everything that a strict content policy forbids or that would clash with another figure in
the same page: style attributes become presentation attributes and classes, ids get a prefix. Nothing in it is a script.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

SERIES = 8
"""Methods that one figure tells apart; the others are in its data."""

INK = "#0a0b0c"
"""What becomes the colour of the text."""

COLOURS = [f"#c0ffe{index}" for index in range(SERIES)]
"""What becomes the colours of the page's palette."""

DASHES: list[Any] = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 2))]
DASH_ARRAYS = ["none", "4 2", "6 2 1 2", "1 1.5", "5 1", "3 1 1 1", "1 1", "7 2"]
"""The same for a legend, in SVG's words."""
MARKERS = "osD^vPX*"

SVG = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"

WIDTH, HEIGHT = 4.7, 2.9
"""Inches at 72 to the inch: readable on a phone without zooming."""


def plain(text: str, limit: int = 30) -> str:
    """A label without characters that XML has no place for, shortened in the middle.

    >>> plain("a\\x00b" + "c" * 40, 12)
    'abccc…cccccc'
    """
    kept = "".join(c for c in " ".join(text.split()) if c.isprintable() and c not in "\ufffe\uffff")
    half = limit // 2
    return kept if len(kept) <= limit else f"{kept[: half - 1]}…{kept[-(limit - half) :]}"


@contextmanager
def drawing() -> Iterator[None]:
    """The page's ink and type, for as long."""
    import matplotlib

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "report",
        "text.parse_math": False,
        "font.size": 9,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 9,
        "path.simplify": False,
        "axes.formatter.use_mathtext": False,
        "axes.unicode_minus": True,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs that matplotlib's own font lacks: the page's has them
        yield


def blank(width: float = WIDTH, height: float = HEIGHT, left: float = 0.13) -> tuple[Canvas, Axes]:
    """An empty figure with one pair of axes, made while `drawing`."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width, height), dpi=72)
    axes = figure.add_axes((left, 0.17, 0.98 - left, 0.79))
    axes.set_facecolor("none")
    figure.patch.set_visible(False)
    axes.grid(True, color=INK, alpha=0.12, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(bottom=False, left=False)  # the grid is there
    axes.locator_params(nbins=5)
    return figure, axes


@contextmanager
def canvas(width: float = WIDTH, height: float = HEIGHT, left: float = 0.13) -> Iterator[tuple[Canvas, Axes]]:
    """An empty figure with one pair of axes in the page's ink."""
    with drawing():
        yield blank(width, height, left)


@functools.cache
def _sheet() -> tuple[Canvas, Axes]:
    figure, axes = blank()
    # Labels where there is always room: to find out how wide the ticks' are takes as long as drawing those.
    axes.xaxis.set_label_coords(0.555, 0.075, transform=figure.transFigure)
    axes.yaxis.set_label_coords(0.035, 0.565, transform=figure.transFigure)
    return figure, axes


@contextmanager
def sheet() -> Iterator[tuple[Canvas, Axes]]:
    """The same as `canvas`, one figure for all that ask: what a page has most of is curves, and axes with their ticks cost more
    than what is drawn into them."""
    from matplotlib.transforms import Bbox

    with drawing():
        figure, axes = _sheet()
        try:
            yield figure, axes
        finally:
            for artist in (*axes.lines, *axes.collections):
                artist.remove()
            if axes.get_yscale() != "linear":
                axes.set_yscale("linear")
                axes.locator_params(axis="y", nbins=5)
            axes.dataLim.set(Bbox.null())
            axes.ignore_existing_data_limits = True


COUNTER = re.compile(r"-?\d+\.\d{2,}")


def svg(figure: Canvas, title: str, text: str, key: str) -> str:
    """The figure as an SVG element for a page.

    Args:
        figure: what to draw.
        title: its short name, read out by a screen reader.
        text: its description.
        key: unlike that of every other figure in the page; ids begin with it.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(re.sub(r"<!DOCTYPE[^>]*>", "", stream.getvalue()))
    parents = {child: parent for parent in root.iter() for child in parent}
    for element in list(root.iter()):
        if element.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
            parents[element].remove(element)
    used = {match for element in root.iter() for match in _references(element)}
    for element in root.iter():
        _clean(element, key, used)
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{key}-t {key}-d"}
    for index, (tag, content) in enumerate((("title", title), ("desc", text))):
        element = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{key}-{tag[0]}"})
        element.text = plain(content, 4000)
        root.insert(index, element)
    ElementTree.register_namespace("", SVG)
    return ElementTree.tostring(root, encoding="unicode").replace("\n", " ")


def _references(element: ElementTree.Element) -> Iterator[str]:
    if LINK in element.attrib:
        yield element.attrib[LINK].removeprefix("#")
    if match := re.match(r"url\(#(.+)\)", element.get("clip-path", "")):
        yield match[1]


def _clean(element: ElementTree.Element, key: str, used: set[str]) -> None:
    attributes = element.attrib
    if "id" in attributes:
        name = attributes.pop("id")
        if name in used:
            attributes["id"] = f"{key}-{name}"
    if LINK in attributes:
        link = attributes.pop(LINK)
        attributes["href"] = f"#{key}-{link[1:]}" if link.startswith("#") else link
    if "clip-path" in attributes:
        attributes["clip-path"] = attributes["clip-path"].replace("url(#", f"url(#{key}-")
    for name in ("d", "x", "y", "transform"):
        if name in attributes:
            attributes[name] = COUNTER.sub(lambda found: f"{float(found[0]):.1f}", " ".join(attributes[name].split()))
    classes = []
    for part in attributes.pop("style", "").split(";"):
        name, _, value = (piece.strip() for piece in part.partition(":"))
        if name in ("fill", "stroke") and value in COLOURS:
            classes.append(f"{name[0]}{COLOURS.index(value)}")
        elif name == "font":
            attributes["font-size"] = re.search(r"[\d.]+px", value)[0] if "px" in value else "9px"  # type: ignore[index]
        elif name and name not in ("font-family", "stroke-miterlimit"):
            attributes[name] = "currentColor" if value == INK else value
    if element.tag == f"{{{SVG}}}text" and "fill" not in attributes:
        attributes["fill"] = "currentColor"
    if classes:
        attributes["class"] = " ".join(classes)
