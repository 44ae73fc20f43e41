"""Initial weights by name, for the linear and convolutional layers of any model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Init = Literal["native", "sinusoidal", "he", "glorot", "orthogonal"]
"""`native` is what the library gives."""


def sinusoidal(weight: Tensor) -> Tensor:
    r"""Fills a weight, in place, with

    .. math:: W_{ij} = A \sin\left((i+1)\left(\frac{2\pi j}{n_{in}} + \frac{2\pi}{n_{out}}\right)\right),
              \quad A = \sqrt{\frac{2}{\mathrm{Var}\, n_{in}}}

    with Var the variance of the sines, so that the weights have the variance :math:`2/n_{in}` of He's. Nothing is random.
    A convolution's :math:`n_{in}` counts its input channels times the kernel. Source: the code that accompanies arXiv
    2601.21739.

    Args:
        weight: (n_out, ...), at least two-dimensional.

    >>> w = sinusoidal(torch.empty(8, 16, dtype=torch.float64))
    >>> round(float(w.var(correction=0) * 16), 12)
    2.0
    """
    rows = weight.shape[0]
    columns = weight[0].numel()
    i = torch.arange(1, rows + 1, dtype=torch.float64).unsqueeze(1)
    j = torch.arange(columns, dtype=torch.float64)
    sines = torch.sin(i * (2 * math.pi * j / columns + 2 * math.pi / rows))
    sines *= (2 / (float(sines.var(correction=0)) * columns)) ** 0.5
    with torch.no_grad():
        return weight.copy_(sines.reshape(weight.shape))


INITS: dict[str, Callable[[Tensor], Tensor]] = {
    "sinusoidal": sinusoidal,
    "he": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "glorot": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
}


def initialise(model: nn.Module, init: str) -> nn.Module:
    """Initialises every linear and convolutional layer of a model and sets their biases to 0; `native` changes nothing.

    What draws does so from torch's default generator.
    """
    if init == "native":
        return model
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            INITS[init](module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
