r"""Server optimizers: what the server does with the clients' averaged change :math:`\Delta`.

======== =================================================================================================
average  :math:`\theta \leftarrow \theta + \eta \Delta`; with :math:`\eta = 1` federated averaging
momentum :math:`m \leftarrow \beta_1 m + \Delta`, :math:`\theta \leftarrow \theta + \eta m`
adam     :math:`m \leftarrow \beta_1 m + (1 - \beta_1) \Delta`, :math:`v \leftarrow \beta_2 v + (1 - \beta_2) \Delta^2`,
         :math:`\theta \leftarrow \theta + \eta m / (\sqrt v + \tau)`
yogi     as adam, with :math:`v \leftarrow v - (1 - \beta_2) \Delta^2 \mathrm{sign}(v - \Delta^2)`
======== =================================================================================================

:math:`m` starts at 0, :math:`v` at :math:`\tau^2`, and neither is corrected for its start, as in the source.

Source: Reddi et al. 2021, arXiv 2003.00295; momentum: Hsu et al. 2019, arXiv 1909.06335.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Name = Literal["average", "momentum", "adam", "yogi"]


@dataclass
class ServerOptimizer:
    """One of them with its state. Running statistics (what is in no `trained` name) are averaged by all of them.

    >>> optimizer = ServerOptimizer("momentum", lr=0.5, beta1=0.9)
    >>> [optimizer({"w": torch.ones(1)}, {"w"})["w"].item() for _ in range(2)]
    [0.5, 0.949999988079071]
    """

    name: Name = "average"
    lr: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    first: dict[str, Tensor] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, change: dict[str, Tensor], trained: set[str]) -> dict[str, Tensor]:
        """What is added to the server's weights."""
        if self.name == "average" and self.lr == 1.0:
            return change
        return {name: self._step(name, delta) if name in trained else delta for name, delta in change.items()}

    def _step(self, name: str, delta: Tensor) -> Tensor:
        if self.name == "average":
            return self.lr * delta
        adaptive = self.name != "momentum"
        first = self.first[name] = self.first.get(name, torch.zeros_like(delta)).to(
            delta.device
        )  # it may come from a file
        first.mul_(self.beta1).add_(delta, alpha=1 - self.beta1 if adaptive else 1.0)
        if not adaptive:
            return self.lr * first
        second = self.second[name] = self.second.get(name, torch.full_like(delta, self.tau**2)).to(delta.device)
        square = delta.square()
        if self.name == "adam":
            second.mul_(self.beta2).add_(square, alpha=1 - self.beta2)
        else:
            second.sub_(square * (second - square).sign(), alpha=1 - self.beta2)
        return self.lr * first / (second.sqrt() + self.tau)

    def state_dict(self) -> dict[str, Any]:
        """Both moments."""
        return {"first": self.first, "second": self.second}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.first, self.second = state["first"], state["second"]
