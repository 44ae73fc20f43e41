"""StableGrad: every layer's weight gradient gets the standard deviation of the gradient at the prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from harness import Method, State, Workload, register_method
from harness.activations import on_forward

Layer = tuple[str, nn.Parameter, list[nn.Parameter]]
"""The name of a weight, the weight, and the other parameters that go with it."""
PARAMETRISED = ".parametrizations."
"""In the name of a parameter that a weight is computed from."""


def layers_of(model: nn.Module) -> list[Layer]:
    """The layers of a model: its trainable weights (two dimensions or more) in the order of definition.

    One-dimensional parameters go with the weight before them: a layer's own bias, and a normalisation that follows it. Of a
    weight that a parametrisation computes from several parameters, the largest stands for it and the others go with it.

    >>> [(name, len(rest)) for name, _, rest in layers_of(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))]
    [('0.weight', 3)]
    """
    by_module: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner = name.partition(PARAMETRISED)[0] if PARAMETRISED in name else name.rpartition(".")[0]
            by_module.setdefault(owner, []).append((name, parameter))
    layers: list[Layer] = []
    for members in by_module.values():
        if any(PARAMETRISED in name for name, _ in members):
            (name, weight), *others = sorted(members, key=lambda member: -member[1].numel())
            layers.append((name, weight, [parameter for _, parameter in others]))
            continue
        for name, parameter in members:
            if parameter.ndim > 1:
                layers.append((name, parameter, []))
            elif layers:
                layers[-1][2].append(parameter)
    return layers


def population_std(gradients: Sequence[Tensor]) -> Tensor:
    """The population standard deviation of the entries of each tensor, in float64: (tensors,).

    Sums are taken in float64, in which squares of any float32 number neither underflow nor overflow. What is then left of the
    variance of equal entries is their rounding, up to 4.4e-16 of the squared mean for each entry: so much counts as 0. Float64
    tensors are centred and divided by their largest entry first.
    """
    gradients = list(gradients)
    roots = [math.sqrt(gradient.numel()) for gradient in gradients]
    if gradients[0].dtype == torch.float64:
        largest = torch.stack(torch._foreach_norm(gradients, float("inf")))
        scale = torch.where(torch.isfinite(largest) & (largest > 0), largest, 1.0)
        units = torch._foreach_div(gradients, list(scale.unbind()))
        torch._foreach_sub_(units, [unit.mean() for unit in units])
        return scale * torch.stack(torch._foreach_div(torch._foreach_norm(units), roots))
    # Centred here too it would take a copy of all gradients: four hundredths of a step of ResNet-18.
    means = torch.stack([gradient.mean(dtype=torch.float64) for gradient in gradients]).square()
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float64)
    variances = torch.stack(torch._foreach_div(norms, roots)).square() - means
    rounding = torch._foreach_mul(means.unbind(), [max(1e-14, 4.4e-16 * gradient.numel()) for gradient in gradients])
    return torch.where(variances > torch.stack(rounding), variances, 0.0).sqrt()


def factors_for(gradients: Sequence[Tensor], reference_std: Tensor | float, eps: float = 0.0) -> Tensor:
    """What each gradient is multiplied with: reference_std / (std + eps); 1 where that is not a positive finite number."""
    factor = reference_std / (population_std(gradients) + eps)
    return torch.where(torch.isfinite(factor) & (factor > 0), factor, 1.0)


def rescale_(gradients: Sequence[Tensor], reference_std: Tensor | float, eps: float = 0.0) -> Tensor:
    r"""Gives each gradient the reference standard deviation, in place, and returns the factors (gradients,).

    .. math:: \tilde G_l = G_l \, \frac{\sigma_\mathrm{ref}}{\sigma(G_l) + \epsilon}

    The direction of each gradient is kept. A gradient of equal entries, zero or not, and one that is not finite, is left as
    it is. Nothing waits for the device. Source: StableGrad, arXiv 2605.19856; see docs/methods/stable_grad.md.

    Args:
        gradients: one tensor per layer, of one type and on one device.
        reference_std: the standard deviation that each shall have.
        eps: keeps the factor of a nearly constant gradient finite.

    >>> gradients = [torch.tensor([1e-9, -1e-9]), torch.tensor([[3.0, 5.0]])]
    >>> _ = rescale_(gradients, 2.0)
    >>> [g.std(correction=0).item() for g in gradients]
    [2.0, 2.0]
    """
    factors = factors_for(gradients, reference_std, eps)
    torch._foreach_mul_(list(gradients), list(factors.to(gradients[0].dtype).unbind()))
    return factors


@register_method("stable_grad")
class StableGrad(Method):
    r"""Rescales each layer's weight gradient to the standard deviation of a reference, before clipping and the optimizer.

    The forward pass, the residual and the loss stay as they are. `reference` says what the paper's abstract leaves open:

    - `predictions`: the gradient at what the loss consumes, :math:`\partial L / \partial \hat y`; for a PINN that is the
      residual and the conditions' misfits together
    - `outputs`: the gradient at the output of the last layer; a PINN whose equation has no term in u itself does not feel its
      residual there
    - `last_layer`: the last weight's own gradient
    - `rms`: the root mean square over all weights' gradients
    - `one`: the number 1
    """

    source = "StableGrad, arXiv 2605.19856; formulas as in docs/methods/stable_grad.md"

    reference: Literal["predictions", "outputs", "last_layer", "rms", "one"] = "predictions"
    biases: Literal["shared", "untouched"] = "shared"
    last_layer: Literal["rescaled", "untouched"] = "rescaled"
    eps: float = 0.0
    report_every: int = (
        0  # steps between records of the factors; 0: never, as reading them waits for the device; 1 for controls
    )

    def __post_init__(self) -> None:
        for name in ("eps", "report_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, must not be negative")
        self._sums: Tensor | None = None
        self._output: Tensor | None = None

    def adapt(self, model: nn.Module, workload: Workload) -> nn.Module:
        if self.reference == "outputs":
            last = [module for module in model.modules() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)][-1]
            on_forward(last, self._keep)
        return model

    def _keep(self, module: nn.Module, inputs: Tensor, output: Tensor) -> None:
        self._output = output

    def before_backward(self, state: State) -> None:
        if self.reference == "predictions":
            tensors = list(state.objectives[-1].predictions.values())
        elif self.reference == "outputs":
            if self._output is None:
                raise ValueError(
                    "reference: found 'outputs', which compiled derivatives do not show, allowed: predictions"
                )
            tensors, self._output = [self._output], None
        else:
            return
        sums = _sums_of_gradients(state.objectives[-1].value, tensors)
        self._sums = sums if self._sums is None else self._sums + sums

    def after_backward(self, state: State) -> None:
        layers = [layer for layer in layers_of(state.model) if layer[1].grad is not None]
        gradients = [_gradient(weight) for _, weight, _ in layers]
        reference = self._reference_std(state, gradients)
        factors = factors_for(gradients, reference, self.eps).to(gradients[0].dtype)
        if self.last_layer == "untouched":
            factors[-1] = 1.0
        asked = self.report_every and state.step % self.report_every == 0
        if asked or state.control is not None:  # a control replaces what is done in every step
            done = state.act("scale", dict(zip((name for name, _, _ in layers), factors.tolist(), strict=True)))
            factors = factors.new_tensor([done[name] for name, _, _ in layers])
        scaled, by = list(gradients), list(factors.unbind())
        if self.biases == "shared":
            for (_, _, rest), factor in zip(layers, factors.unbind(), strict=True):
                scaled += [parameter.grad for parameter in rest if parameter.grad is not None]
                by += [factor] * (len(scaled) - len(by))
        torch._foreach_mul_(scaled, by)

    def _reference_std(self, state: State, gradients: list[Tensor]) -> Tensor | float:
        if self.reference == "one":
            return 1.0
        if self.reference == "last_layer":
            return population_std(gradients[-1:])[0]
        if self.reference == "rms":
            squares = torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float64)).square()
            return (squares.sum() / sum(gradient.numel() for gradient in gradients)).sqrt()
        assert self._sums is not None
        count, total, squares = state.reduce(self._sums).unbind()
        self._sums = None
        # The step's loss is the mean over micro-batches and ranks, and so are its gradients at their predictions.
        share = 1 / (len(state.objectives) * state.ranks.world)
        return share * (squares / count - (total / count).square()).clamp(min=0).sqrt()


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _sums_of_gradients(value: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """The number of entries of the gradients of `value` by some tensors, their sum and the sum of their squares.

    Raises:
        ValueError: if `value` depends on none of them.
    """
    attached = [tensor for tensor in tensors if tensor.requires_grad]
    found = torch.autograd.grad(value, attached, retain_graph=True, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise ValueError(
            "reference: found an objective that does not depend on its predictions, allowed: last_layer, rms, one"
        )
    pairs = zip(found, attached, strict=True)
    flat = torch.cat([(t.new_zeros(t.shape) if g is None else g.detach()).reshape(-1).double() for g, t in pairs])
    return torch.stack([flat.new_full((), float(flat.numel())), flat.sum(), flat.square().sum()])
