"""How many gates one step flips, beside how far it moves the weights: two time scales of one training."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from harness.activations import hamming, observe, pack
from harness.method import State
from harness.probe import Probe
from harness.probes.curves import center, decay_time, ema, speed_up
from harness.registry import register_probe

QUANTILES = (0.5, 0.25, 0.1)


def patterns(model: nn.Module, inputs: Tensor, only: str = "*") -> dict[str, tuple[Tensor, int]]:
    """The packed patterns of the gates whose names match, each with its number of units."""
    with observe(model) as seen:
        model(inputs)
    return {gate: (pack(z), z[0].numel()) for gate, z in seen.items() if fnmatchcase(gate, only)}


def pattern_is_stable(
    layers: Sequence[tuple[Tensor, Tensor]], changes: Sequence[tuple[Tensor, Tensor]], x: Tensor
) -> bool:
    r"""Whether a bound proves that a change of the parameters leaves the ReLU pattern of `x` as it is.

    With :math:`e_0 = 0` and :math:`e_l = \lVert W_l + \Delta W_l \rVert_2\, e_{l-1} + \lVert \Delta W_l \rVert_2\,
    \lVert h_{l-1} \rVert_2 + \lVert \Delta b_l \rVert_2`, no sign changes if :math:`e_l < \min_j |z_{l,j}|` in every
    hidden layer.

    Args:
        layers: weight and bias of each hidden layer, (outputs, inputs) and (outputs,).
        changes: what is added to them.
        x: one input, (inputs,).
    """
    error, h = 0.0, x
    for (weight, bias), (by, shift) in zip(layers, changes, strict=True):
        z = weight @ h + bias
        norm = float(torch.linalg.matrix_norm(weight + by, 2))
        moved = float(torch.linalg.matrix_norm(by, 2) * torch.linalg.vector_norm(h) + torch.linalg.vector_norm(shift))
        error = norm * error + moved
        if error >= float(z.abs().min()):
            return False
        h = z.relu()
    return True


@register_probe("activation_flips")
class ActivationFlips(Probe):
    r"""The share of (sample, unit) signs that one step flips, A(t), and the norm W(t) of the step.

    `probe/activation_flips/rate` and `…/update_norm`, both also divided by the learning rate (`…_per_lr`), and the rate of
    each gate. At the end: the decay times `tau_…`, after an exponential moving average over max(20, n/200) of the n
    measurements; `speed_up_q`, how many times earlier the flips decay than the steps, for q = 0.5, 0.25 and 0.1, and the same
    of the curves per learning rate; `speed_up_center`, the ratio of the curves' centres, without threshold or smoothing.

    A measurement is of one step and costs two passes over the task's probe batch; at another cadence than `every: 1` the
    curves are sampled. `gates` restricts it to gates by name (`*.mlp.*`). In a federated task a step is a round.
    """

    needs = frozenset({"gates"})
    source = "arXiv 2602.08333; decay times and per-rate curves are this project's reading"

    every: int = 1
    gates: str = "*"

    def start(self, state: State) -> None:
        self._curves: dict[str, list[float]] = {name: [] for name in ("step", "rate", "update_norm", "lr")}
        if not patterns(state.model, state.workload.probe_inputs[:1], self.gates):
            raise ValueError(f"gates: found {self.gates!r}, which matches no gate of the model")

    def before_step(self, state: State) -> None:
        self._weights = [parameter.detach().clone() for parameter in state.model.parameters()]
        self._patterns = patterns(state.model, state.workload.probe_inputs, self.gates)

    def after_step(self, state: State) -> dict[str, float]:
        lr = learning_rate(state)
        if lr == 0:  # nothing moved, and there is no rate to divide by
            return {}
        moves = [p.detach() - before for p, before in zip(state.model.parameters(), self._weights, strict=True)]
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(move) for move in moves])))
        now = patterns(state.model, state.workload.probe_inputs, self.gates)
        flipped = {gate: int(hamming(packed, self._patterns[gate][0]).sum()) for gate, (packed, _) in now.items()}
        places = {gate: units * len(packed) for gate, (packed, units) in now.items()}
        rate = sum(flipped.values()) / sum(places.values())
        for name, value in (("step", state.step), ("rate", rate), ("update_norm", norm), ("lr", lr)):
            self._curves[name].append(float(value))
        values = {"rate": rate, "update_norm": norm, "rate_per_lr": rate / lr, "update_norm_per_lr": norm / lr}
        values |= {f"gate/{gate}": flipped[gate] / places[gate] for gate in now}
        return {f"activation_flips/{name}": value for name, value in values.items()}

    def finish(self, state: State) -> dict[str, float]:
        steps, lr = self._curves["step"], self._curves["lr"]
        if not steps:
            return {}
        found = {"speed_up_center": _ratio(*(center(self._curves[name], steps) for name in ("update_norm", "rate")))}
        for suffix, divisor in (("", [1.0] * len(lr)), ("_per_lr", lr)):
            smooth = {
                name: ema([v / d for v, d in zip(self._curves[name], divisor, strict=True)], max(20, len(steps) // 200))
                for name in ("rate", "update_norm")
            }
            for q in QUANTILES:
                found |= {f"tau_{q}/{name}{suffix}": decay_time(curve, q, steps) for name, curve in smooth.items()}
                found[f"speed_up_{q}{suffix}"] = speed_up(smooth["update_norm"], smooth["rate"], q, steps)
        return {f"activation_flips/{name}": value for name, value in found.items()}

    def state_dict(self) -> dict[str, Any]:
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in self._curves.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._curves = {name: values.tolist() for name, values in state.items()}


def _ratio(slow: float, fast: float) -> float:
    return slow / fast if fast else float("nan")


def learning_rate(state: State) -> float:
    """The learning rate of the step that was just taken: the optimizer's, or the recipe's where a client's is gone."""
    if state.optimizer is not None:
        return float(state.optimizer.param_groups[0]["lr"])
    return state.recipe.lr * state.recipe.rate_factor(state.step - 1)
