"""How hard the gates are, layer by layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from harness.activations import gates, pre_activations
from harness.method import State
from harness.probe import Probe
from harness.registry import register_probe


def profile_correlation(profiles: Sequence[Sequence[float]]) -> float:
    """The mean Spearman correlation over all pairs of layer-wise profiles, such as those learned from other initial values.

    Args:
        profiles: at least two, each with a value for every layer, in one order.

    >>> profile_correlation([[1, 2, 3], [10, 20, 30], [3, 2, 1]])
    -0.3333333333333333
    """
    from scipy.stats import spearmanr

    pairs = list(itertools.combinations(profiles, 2))
    return float(sum(spearmanr(one, other).statistic for one, other in pairs) / len(pairs))


@register_probe("gate_hardness")
class GateHardness(Probe):
    r"""Hardness λ of each gate that has one, λ·std(x), the size of ∂L/∂λ in the last step, and std(x) of every gate.

    `probe/gate_hardness/lambda/<gate>`, `…/effective/<gate>`, `…/gradient/<gate>` and `…/std/<gate>`, with x the
    pre-activations on the task's probe batch; `…/lambda_range` from the softest gate to the hardest, and
    `…/gradient_mean` over the gates. λ alone is not identifiable beside free weights, for f(x; λ) is
    GELU(λx)/λ; λ·std(x) is what it comes to. A GELU has λ = 1. The gradient is that after clipping.
    """

    needs = frozenset({"gates"})
    source = "arXiv 2603.21991"

    def after_step(self, state: State) -> dict[str, float]:
        modules, values = gates(state.model), {}
        for name, z in pre_activations(state.model, state.workload.probe_inputs).items():
            gate, spread = modules[name], float(z.std())
            values[f"std/{name}"] = spread
            hardness = torch.ones(()) if isinstance(gate, nn.GELU) else getattr(gate, "hardness", None)
            if hardness is not None:
                values[f"lambda/{name}"] = float(hardness.detach())
                values[f"effective/{name}"] = float(hardness.detach()) * spread
            gradient = getattr(gate, "hardness_gradient", None)
            if gradient is not None:
                values[f"gradient/{name}"] = abs(float(gradient))
        hardness_by_gate = [value for name, value in values.items() if name.startswith("lambda/")]
        gradients = [value for name, value in values.items() if name.startswith("gradient/")]
        if hardness_by_gate:
            values["lambda_range"] = max(hardness_by_gate) - min(hardness_by_gate)
        if gradients:
            values["gradient_mean"] = sum(gradients) / len(gradients)
        return {f"gate_hardness/{name}": value for name, value in values.items()}
