"""Pictures of a field as SVG text."""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn

from tasks.equations import Equation

SIDE = 101
"""Grid points along each side of a picture."""


def field_picture(model: nn.Module, equation: Equation) -> str:
    """What was predicted, the reference and the error, one row for each output; a flow in time at its last moment.

    The same field gives the same text.
    """
    points, extent = _grid(equation)
    parameter = next(model.parameters())
    with torch.no_grad():
        predicted = model(points.to(parameter)).double().cpu()
    return render(predicted, equation.reference(points.double()), extent, equation.coordinates[:2])


def _grid(equation: Equation) -> tuple[Tensor, tuple[float, ...]]:
    (left, right), (bottom, top) = equation.domain[:2]
    x, y = torch.linspace(left, right, SIDE), torch.linspace(bottom, top, SIDE)
    points = torch.cartesian_prod(x, y)
    if len(equation.domain) > 2:
        points = torch.cat([points, torch.full((len(points), 1), equation.domain[2][1])], dim=1)
    return points, (left, right, bottom, top)


def render(predicted: Tensor, reference: Tensor, extent: tuple[float, ...], axes: str) -> str:
    """Three panels for each output; `predicted` and `reference` are (SIDE², outputs)."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    outputs = predicted.shape[1]
    figure = Figure(figsize=(10, 2.8 * outputs), layout="constrained")
    panels = figure.subplots(outputs, 3, squeeze=False)
    for row in range(outputs):
        error = (predicted - reference)[:, row].abs()
        scale = {"vmin": float(reference[:, row].min()), "vmax": float(reference[:, row].max())}
        fields = {"predicted": predicted[:, row], "reference": reference[:, row], "|error|": error}
        for panel, (title, field) in zip(panels[row], fields.items(), strict=True):
            limits = {} if field is error else scale
            image = panel.imshow(
                field.reshape(SIDE, SIDE).T, origin="lower", extent=extent, aspect="auto", cmap="viridis", **limits
            )
            figure.colorbar(image, ax=panel)
            panel.set(title=title, xlabel=axes[0], ylabel=axes[1])
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "field", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    return text.getvalue()
