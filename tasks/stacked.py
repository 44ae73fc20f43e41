"""Layers of several networks of one shape as one: the parameters of K seeds lie in tensors (K, ...)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tasks.models import ACTIVATIONS

ELEMENTWISE = tuple(ACTIVATIONS.values())

Parameters = dict[str, Tensor]


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Each seed's linear layer: (K, samples, in) to (K, samples, out) under weights (K, out, in) and biases (K, out).

    A seed alone is computed beside its double: for a single matrix other kernels are taken, which round otherwise.
    """
    if len(inputs) == 1:
        double = linear(*(None if each is None else torch.cat([each, each]) for each in (inputs, weight, bias)))  # type: ignore[arg-type]
        return double[:1]
    if bias is None:
        return torch.bmm(inputs, weight.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), inputs, weight.transpose(1, 2))


def is_plain(network: nn.Module) -> bool:
    """Whether a network is a row of linear layers and activations without hooks, which `forward` can stand for."""
    return type(network) is nn.Sequential and all(
        type(layer) in (nn.Linear, *ELEMENTWISE) and not layer._forward_hooks and not layer._forward_pre_hooks
        for layer in network
    )


def forward(network: nn.Sequential, prefix: str) -> Callable[[Parameters, Tensor], Tensor]:
    """The plain networks of K seeds as a function of their parameters and of inputs (K, samples, in).

    Args:
        network: one of them.
        prefix: what stands before the names of its parameters in the model.

    >>> net = nn.Sequential(nn.Linear(2, 1), nn.Tanh())
    >>> parameters = {f"net.{name}": torch.stack([p.detach(), 0 * p.detach()]) for name, p in net.named_parameters()}
    >>> forward(net, "net.")(parameters, torch.ones(2, 5, 2)).shape
    torch.Size([2, 5, 1])
    """
    layers = [(prefix + name, layer) for name, layer in network.named_children()]

    def run(parameters: Parameters, x: Tensor) -> Tensor:
        for name, layer in layers:
            if isinstance(layer, nn.Linear):
                x = linear(x, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))
            else:
                x = layer.forward(x)
        return x

    return run
