"""SCAFFOLD: control variates correct the drift of the clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness import Client, Method, Server, State, Update, register_method

Tensors = dict[str, Tensor]


@register_method("scaffold")
class Scaffold(Method):
    r"""Each client's gradient is corrected by its own and the server's control variate.

    It steps along :math:`g - c_k + c`.
    After the visit :math:`c_k^+` is the mean of the gradients that it saw. With plain SGD of a constant rate that is the
    paper's option II, :math:`c_k - c + (\theta_\mathrm{server} - \theta_k) / (\tau\eta)`; taken from the gradients it holds
    for every optimizer. The server's is :math:`c \leftarrow c + \sum_{k \in S} \frac{n_k}{n} (c_k^+ - c_k)`, with n the samples of
    all clients. Updates are weighted by size too: the method minimises what federated averaging does, and composes with
    factors. The paper weights both evenly, which is the same where clients are of one size.

    The change of a control variate travels up beside each update, and :math:`c` down beside the weights: twice the bytes.
    """

    needs = frozenset({"clients"})
    source = "Karimireddy et al. 2020, arXiv 1910.06378"

    def __post_init__(self) -> None:
        self._server: Tensors = {}
        self._sums: Tensors = {}
        self._corrections: list[tuple[Tensor, Tensor, Tensor]] = []
        self._samples = 0

    def start_client(self, client: Client, server: Server) -> None:
        named = {name: p for name, p in client.state.model.named_parameters() if p.requires_grad}
        zeros = {name: torch.zeros_like(p) for name, p in named.items()}
        self._server = {name: self._server.get(name, zero).to(zero.device) for name, zero in zeros.items()}
        self._samples = sum(client.state.workload.sizes)  # type: ignore[attr-defined]
        own = client.memory
        self._sums = {name: torch.zeros_like(p) for name, p in named.items()}
        self._corrections = [
            (p, self._sums[name], control - own[key] if (key := f"control/{name}") in own else control.clone())
            for (name, p), control in zip(named.items(), self._server.values(), strict=True)
        ]
        server.payload |= {f"control/{name}": control for name, control in self._server.items()}

    def after_backward(self, state: State) -> None:
        for parameter, total, correction in self._corrections:
            if parameter.grad is not None:
                total.add_(parameter.grad)
                parameter.grad.add_(correction)

    def finish_client(self, client: Client) -> Tensors:
        before = dict(client.memory)
        own = {f"control/{name}": total / client.state.step for name, total in self._sums.items()}
        client.memory |= own
        return {name: c - before[name] if name in before else c.clone() for name, c in own.items()}

    def after_aggregate(self, server: Server, updates: Sequence[Update]) -> None:
        for update in updates:
            for name, control in self._server.items():
                control.add_(update.payload[f"control/{name}"], alpha=update.size / self._samples)

    def state_dict(self) -> dict[str, Any]:
        return {"server": self._server}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._server = state["server"]
