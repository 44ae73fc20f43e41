"""The scale of gradients: how it differs from layer to layer, and how smoothly the update answers to its change."""

from __future__ import annotations

import io
import math
from typing import Any

import torch
from torch import Tensor, nn

from harness.method import State
from harness.probe import Probe
from harness.probes.activation_flips import learning_rate
from harness.probes.scale_response import LiteralDecomposition
from harness.registry import register_probe

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


@register_probe("layer_gradients")
class LayerGradients(Probe):
    r"""The standard deviation of each layer's weight gradient over training, and its picture.

    `probe/layer_gradients/LAYER`: :math:`\sigma(G_l)` over the entries of the weight gradient of a linear layer or a
    convolution, as the optimizer takes it: after what methods did to it and after clipping. `…/spread`: the largest over the
    smallest that is not zero, 1 where all layers are alike. The picture `layer_gradients.svg` shows all measurements of the
    trial, one line for each layer, the first layer dark.

    In a federated task, whose server has no gradients, it is that of the last step of the round's last client.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._history: list[tuple[int, dict[str, float]]] = []

    def start(self, state: State) -> None:
        self._layers = {name: layer for name, layer in state.model.named_modules() if isinstance(layer, LAYERS)}

    def after_step(self, state: State) -> dict[str, float]:
        gradients = {name: parameter.grad for name, parameter in self._weights() if parameter.grad is not None}
        stds = [gradient.double().std(correction=0) for gradient in gradients.values()]
        if not stds:
            return {}
        values = dict(zip(gradients, torch.stack(stds).tolist(), strict=True))
        self._history.append((state.step, dict(values)))
        positive = [value for value in values.values() if value > 0]
        if positive:
            values["spread"] = max(positive) / min(positive)
        return {f"layer_gradients/{name}": value for name, value in values.items()}

    def _weights(self) -> list[tuple[str, Tensor]]:
        """The weight of each layer; what a parametrisation computes it from, the one of most entries, stands for it."""
        return [
            (name, max(layer.parameters(), key=lambda p: (p.ndim, p.numel()))) for name, layer in self._layers.items()
        ]

    def pictures(self) -> dict[str, str]:
        return {"layer_gradients.svg": _drawn(self._history)} if self._history else {}

    def state_dict(self) -> dict[str, Any]:
        return {"history": self._history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._history = state["history"]


def _drawn(history: list[tuple[int, dict[str, float]]]) -> str:
    """One line for each layer over the steps, on a logarithmic scale, as SVG text. The same history gives the same text."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = list(history[0][1])
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    panel = figure.subplots()
    shades = matplotlib.colormaps["viridis"]
    for index, name in enumerate(names):
        steps, values = zip(*((step, each.get(name, math.nan)) for step, each in history), strict=True)
        positive = [value if value > 0 else math.nan for value in values]
        colour = shades(0.9 * index / max(1, len(names) - 1))
        panel.plot(steps, positive, marker="." if len(steps) < 30 else "", color=colour, label=name)
    panel.set(yscale="log", xlabel="step", ylabel="standard deviation of the weight gradient")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(names) <= 20:
        panel.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "layers", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    return text.getvalue()


@register_probe("gradient_scale")
class GradientScale(Probe):
    r"""The norm of the update over the learning rate, its roughness, and what a first-order theory says of it.

    `probe/gradient_scale/update_norm`: :math:`\lVert R \rVert = \lVert (\theta' - \theta) / \eta \rVert_2` over weights and
    biases of linear layers and convolutions, weight decay included. `…/omega1`: the mean size of the changes of its
    exponential moving average over `window` steps (:math:`\alpha = 2/(w+1)`, begun at the first value after `burn_in`
    steps, the paper's first three epochs). `…/first_order`, where the optimizer has betas: the relative deviation of the update
    from its invariant value, :math:`\mathrm{EMA}_{\beta_1}[\log \lVert g \rVert] - \mathrm{EMA}_{\beta_2}[\log \lVert g
    \rVert]`, which is 0 if they are equal.

    With `decompose`, `share/…` has the decomposition R = S + L + E over the coordinates of those layers, whose
    last `decompose` gradients have one sign: it takes memory for six double-precision numbers per parameter.

    A measure of every step: `every` is 1 unless only the norm matters. In a federated task a step is a round, and there
    is no `first_order`.
    """

    source = "arXiv 2601.21739"

    every: int = 1
    window: int = 200
    burn_in: int = 0
    decompose: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ValueError(f"window: found {self.window}, must be positive")
        for name in ("burn_in", "decompose"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, must not be negative")
        self._smooth: float | None = None
        self._changes: list[float] = [0.0, 0.0]
        self._logs = [0.0, 0.0, 0.0]
        self._literal: LiteralDecomposition | None = None

    def start(self, state: State) -> None:
        layers = [module for module in state.model.modules() if isinstance(module, LAYERS)]
        self._parameters = list(dict.fromkeys(p for layer in layers for p in layer.parameters() if p.requires_grad))
        if not self._parameters:
            raise ValueError(
                "gradient_scale: found a model without linear layers and convolutions, allowed: at least one"
            )

    def before_step(self, state: State) -> None:
        self._before = [parameter.detach().clone() for parameter in self._parameters]

    def after_step(self, state: State) -> dict[str, float]:
        lr = learning_rate(state)
        if lr == 0:
            return {}
        moved = [after.detach() - before for after, before in zip(self._parameters, self._before, strict=True)]
        values = {"update_norm": _norm(moved) / lr}
        if state.step > self.burn_in:
            self._smoothed(values["update_norm"])
        if self._changes[1]:
            values["omega1"] = self._changes[0] / self._changes[1]
        betas = state.optimizer.param_groups[0].get("betas") if state.optimizer else None
        if betas is not None:
            values |= self._first_order([p.grad for p in self._parameters if p.grad is not None], *betas)
        return {f"gradient_scale/{name}": value for name, value in values.items()}

    def _smoothed(self, norm: float) -> None:
        before, self._smooth = self._smooth, norm
        if before is not None:
            self._smooth = before + (norm - before) * 2 / (self.window + 1)
            self._changes[0] += abs(self._smooth - before)
            self._changes[1] += 1

    def _first_order(self, gradients: list[Tensor], beta1: float, beta2: float) -> dict[str, float]:
        if self.decompose and len(gradients) == len(self._parameters):
            self._literal = self._literal or LiteralDecomposition(beta1, beta2, self.decompose)
            self._literal.update(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        if not (norm := _norm(gradients)):
            return {}
        first, second, steps = self._logs
        steps += 1
        first, second = (b * x + (1 - b) * math.log(norm) for b, x in ((beta1, first), (beta2, second)))
        self._logs = [first, second, steps]
        return {"first_order": first / (1 - beta1**steps) - second / (1 - beta2**steps)}

    def finish(self, state: State) -> dict[str, float]:
        shares = self._literal.shares() if self._literal else {}
        return {f"gradient_scale/share/{name}": value for name, value in shares.items()}

    def state_dict(self) -> dict[str, Any]:
        literal = vars(self._literal) if self._literal else {}
        return {"smooth": self._smooth, "changes": self._changes, "logs": self._logs, "literal": dict(literal)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._smooth, self._changes, self._logs = state["smooth"], state["changes"], state["logs"]
        if literal := state["literal"]:
            beta1, beta2 = literal["betas"]
            self._literal = LiteralDecomposition(beta1, beta2, literal["window"])
            device = self._parameters[0].device  # a checkpoint comes back on the CPU
            averages = [average.to(device) for average in literal["averages"]]
            placed = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in literal.items()}
            vars(self._literal).update(placed | {"averages": averages})


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors])))
