"""FedProx: clients are held near the server's weights."""

from __future__ import annotations

import torch
from torch import Tensor

from harness import Client, Method, Server, State, register_method


@register_method("fed_prox")
class FedProx(Method):
    r"""Adds to each client's objective the squared distance from the server's weights, times μ/2.

    That is :math:`\frac{\mu}{2} \lVert\theta - \theta_\mathrm{server}\rVert^2`.
    Its gradient :math:`\mu (\theta - \theta_\mathrm{server})` joins the batch's before clipping; the recorded loss is the
    batch's alone. `mu: 0` is federated averaging to the bit.
    """

    needs = frozenset({"clients"})
    source = "Li et al. 2020, arXiv 1812.06127"
    disabled = ({"mu": 0.0}, "fed_avg", {})

    mu: float = 0.01

    def __post_init__(self) -> None:
        if self.mu < 0:
            raise ValueError(f"mu: found {self.mu}, must not be negative")
        self._parameters: list[Tensor] = []
        self._anchors: list[Tensor] = []

    def start_client(self, client: Client, server: Server) -> None:
        named = {name: p for name, p in client.state.model.named_parameters() if p.requires_grad}
        self._parameters = list(named.values())
        self._anchors = [server.weights[name] for name in named]

    def after_backward(self, state: State) -> None:
        if self.mu == 0:
            return
        with torch.no_grad():
            for parameter, anchor in zip(self._parameters, self._anchors, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - anchor, alpha=self.mu)
