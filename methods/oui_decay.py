"""OUIDecay: weight decay by layer, steered by the layers' activation patterns while training goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness import Client, Method, Recipe, Server, State, Workload, register_method
from harness.activations import channels_apart, on_forward, one_position, oui
from methods.fixed_decay import Groups, decays, split

WINDOW = 5
"""Forward passes that a layer's OUI is averaged over."""


def decay_rates(oui: Sequence[float], base: float, s1: float, s2: float) -> list[float]:
    r"""The decay of each layer: the one with the lowest OUI gets `s1` times the base, the one with the highest `s2` times.

    .. math:: \lambda_l = \lambda_0 \left[ s_1 + (s_2 - s_1)
              \frac{o_l - \min_m o_m}{\max_m o_m - \min_m o_m + 10^{-8}} \right]

    Where all layers have the same OUI, every one gets `s1` times the base.

    Source: arXiv 2605.10161 and its released code.

    >>> [round(rate, 6) for rate in decay_rates([0.2, 0.5, 0.8], base=0.05, s1=0.6666, s2=5)]
    [0.03333, 0.141665, 0.25]
    """
    low, high = min(oui), max(oui)
    return [base * (s1 + (s2 - s1) * (o - low) / (high - low + 1e-8)) for o in oui]


@register_method("oui_decay")
class OUIDecay(Method):
    """Stronger decay for layers whose units are on for about half of the samples, anew every `gap` steps.

    A layer is a convolution or linear layer; the first and the last keep the recipe's decay, as in the paper's runs, and so
    does a model that has no others. A layer's OUI (batch form) is that of its outputs, before normalisation, at one random
    position per sample; the mean over the last five forward passes of training counts. Biases and normalisation
    parameters do not decay. In a federated task `gap` counts a client's own steps.

    The action is `decay`: the rate of each layer, at the start (the recipe's) and at every update. The released runs decay
    two to four times more on average than the fixed decay beside them, so a comparison needs `mean_of(oui_decay)`.
    """

    owns = frozenset({"decay"})
    source = "arXiv 2605.10161"
    disabled = ({"s1": 1.0, "s2": 1.0}, "fixed_decay", {})

    gap: int = 500
    s1: float = 0.6666
    s2: float = 5.0

    def __post_init__(self) -> None:
        if self.gap < 1:
            raise ValueError(f"gap: found {self.gap}, must be positive")
        if not 0 <= self.s1 <= self.s2:
            raise ValueError(f"s1, s2: found {self.s1}, {self.s2}, must satisfy 0 <= s1 <= s2")
        self._layers: dict[str, nn.Module] = {}
        self._queues: dict[str, deque[float]] = {}
        self._rates: dict[str, float] = {}
        self._step = 0
        self._passes = 1

    def adapt(self, model: nn.Module, workload: Workload) -> nn.Module:
        self._model = model
        return model

    def parameter_groups(self, groups: Groups, recipe: Recipe) -> Groups:
        layers = [(n, m) for n, m in self._model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        own = {id(parameter) for parameter in self._model.parameters() if parameter.requires_grad}
        # A weight that a parametrisation computes is no parameter: an optimizer cannot decay it.
        self._layers = {name: layer for name, layer in layers[1:-1] if id(layer.weight) in own}
        names = {layer.weight: name for name, layer in self._layers.items()}

        def options(parameter: nn.Parameter) -> dict[str, Any]:
            rate = {"weight_decay": recipe.weight_decay if decays(parameter) else 0.0}
            return rate | ({"layer": names[parameter]} if parameter in names else {})

        return split(groups, options)

    def start(self, state: State) -> None:
        self._generator = state.streams.torch("method")
        self._passes = state.recipe.accumulate
        if not self._layers:  # a federated task builds its optimizers later
            self.parameter_groups([], state.recipe)
        self._queues = {name: deque(maxlen=WINDOW) for name in self._layers}
        for name, layer in self._layers.items():
            on_forward(layer, self._listen(name))

    def _listen(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Tensor, output: Tensor) -> None:
            # Only the last passes before an update count: the others cost nothing.
            if -(self._step + 1) % self.gap * self._passes < WINDOW:
                units = channels_apart(output.detach(), module)
                self._queues[name].append(oui(one_position(units, self._generator)))

        return hook

    def start_client(self, client: Client, server: Server) -> None:
        self._step = 0
        self._rates = {}
        for queue in self._queues.values():
            queue.clear()

    def before_step(self, state: State) -> None:
        if not self._rates and self._layers:
            self._rates = state.act("decay", dict.fromkeys(self._layers, state.recipe.weight_decay))
        assert state.optimizer is not None
        # In each step, as a phase of the recipe begins with groups of its own.
        for group in state.optimizer.param_groups:
            if group.get("layer") in self._rates:
                group["weight_decay"] = self._rates[group["layer"]]

    def after_step(self, state: State) -> None:
        self._step = state.step
        # A layer may be used without being called, as the output of torch's attention is: it keeps the recipe's decay.
        heard = {name: sum(queue) / len(queue) for name, queue in self._queues.items() if queue}
        if heard and state.step % self.gap == 0 and state.step < state.horizon:
            means = state.reduce(torch.tensor(list(heard.values()), dtype=torch.float64))
            rates = decay_rates(means.tolist(), state.recipe.weight_decay, self.s1, self.s2)
            self._rates |= state.act("decay", dict(zip(heard, rates, strict=True)))

    def state_dict(self) -> dict[str, Any]:
        queues = {name: list(queue) for name, queue in self._queues.items()}
        return {"step": self._step, "rates": self._rates, "queues": queues}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step, self._rates = state["step"], state["rates"]
        for name, values in state["queues"].items():
            self._queues[name].extend(values)
