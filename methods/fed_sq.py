"""FedSQ: gates from a frozen structural copy, weights from a quantitative copy, so that averages stay in one regime."""

from __future__ import annotations

import copy
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness import Method, Workload, register_method
from harness.activations import gates, is_gate

PIECEWISE_LINEAR = (nn.ReLU, nn.LeakyReLU)
POOLS: dict[type[nn.Module], Any] = {
    nn.MaxPool1d: functional.max_pool1d,
    nn.MaxPool2d: functional.max_pool2d,
    nn.MaxPool3d: functional.max_pool3d,
}
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
NORMS = nn.modules.batchnorm._BatchNorm


class StructuralGate(nn.Module):
    """The structural copy's gate: keeps the mask, 1 where its pre-activation was positive and the slope elsewhere."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.mask: Tensor | None = None

    def forward(self, z: Tensor) -> Tensor:
        self.mask = (
            (z > 0).to(z.dtype).clamp_(min=self.slope)
        )  # a product with it takes a sixth of `torch.where`'s time
        return z * self.mask


class FixedGate(nn.Module):
    """The quantitative copy's gate: open where the structural one was, whatever its own pre-activation."""

    is_gate = True

    def __init__(self, structural: StructuralGate) -> None:
        super().__init__()
        self._structural = (structural,)  # in a tuple it is no submodule: its state is the structural copy's

    def forward(self, z: Tensor) -> Tensor:
        (gate,) = self._structural
        assert gate.mask is not None
        return z * gate.mask


class StructuralPool(nn.Module):
    """The structural copy's max-pooling: keeps where the largest value was."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self._pool = POOLS[type(pool)]
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        self._options = {name: getattr(pool, name) for name in names}
        self.indices: Tensor | None = None

    def forward(self, h: Tensor) -> Tensor:
        pooled, self.indices = self._pool(h, **self._options, return_indices=True)
        return pooled


class FixedPool(nn.Module):
    """The quantitative copy's pooling: takes the value at the structural copy's place."""

    def __init__(self, structural: StructuralPool) -> None:
        super().__init__()
        self._structural = (structural,)

    def forward(self, h: Tensor) -> Tensor:
        (pool,) = self._structural
        assert pool.indices is not None
        if h.dim() == 4 and h.is_contiguous(memory_format=torch.channels_last):
            rows, places = (tensor.permute(0, 2, 3, 1) for tensor in (h, pool.indices))
            taken = rows.flatten(1, 2).gather(1, places.flatten(1, 2))
            return taken.view(places.shape).permute(0, 3, 1, 2)
        return h.flatten(2).gather(2, pool.indices.flatten(2)).view(pool.indices.shape)


class DualCopy(nn.Module):
    r"""A network as two copies: the frozen one opens the gates, the trained one carries the values.

    .. math:: z^s_l = W^s_l h^s_{l-1} + b^s_l,\; M_l = 1[z^s_l > 0],\; h^s_l = M_l \odot z^s_l; \qquad
              h^q_l = M_l \odot (W^q_l h^q_{l-1} + b^q_l)

    The output is that of the quantitative copy, and affine in the weights of each single layer of it. Max-pooling takes
    the structural argmax in both copies; BatchNorm uses its running statistics, which stay what they are; dropout is off.
    With equal copies the output is the network's own. LayerNorm and attention are not affine and stay so.

    Source: arXiv 2604.02990 (details derived from its abstract); gates from another network: Lakshminarayanan & Singh 2020.

    Args:
        model: changed in place; its gates must be ReLU or LeakyReLU.
        batch_norm: whether the quantitative BatchNorm's scale and shift are trained (`affine`) or not (`frozen`).

    Raises:
        ValueError: for another gate or slope, or none.

    >>> network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> inputs = torch.randn(5, 3)
    >>> expected = network(inputs)
    >>> torch.equal(DualCopy(network)(inputs), expected)
    True
    """

    def __init__(self, model: nn.Module, batch_norm: Literal["affine", "frozen"] = "affine") -> None:
        super().__init__()
        found = gates(model)
        if not found:
            raise ValueError("fed_sq: found a model without gates, must have one or more")
        for name, gate in found.items():
            if not isinstance(gate, PIECEWISE_LINEAR):
                raise ValueError(f"fed_sq: found {type(gate).__name__} at {name}, allowed: ReLU, LeakyReLU")
            if not 0 <= (slope := getattr(gate, "negative_slope", 0.0)) <= 1:
                raise ValueError(f"fed_sq: found slope {slope:g} at {name}, allowed: 0 to 1")
        self.structural = copy.deepcopy(model).requires_grad_(False)
        self.quantitative = model
        for name, module in list(model.named_modules()):
            if is_gate(module):
                gate = StructuralGate(getattr(module, "negative_slope", 0.0))
                self._place(name, gate, FixedGate(gate))
            elif type(module) in POOLS:
                pool = StructuralPool(module)
                self._place(name, pool, FixedPool(pool))
            elif isinstance(module, NORMS) and batch_norm == "frozen":
                module.requires_grad_(False)
        self.train(model.training)

    def _place(self, name: str, structural: nn.Module, quantitative: nn.Module) -> None:
        parent, _, attribute = name.rpartition(".")
        setattr(self.structural.get_submodule(parent), attribute, structural)
        setattr(self.quantitative.get_submodule(parent), attribute, quantitative)

    def train(self, mode: bool = True) -> Self:
        """Training mode for the quantitative copy, without what would not be affine: batch statistics and dropout."""
        super().train(mode)
        self.structural.eval()
        for module in self.quantitative.modules():
            if isinstance(module, (*DROPOUTS, NORMS)):
                module.eval()
        return self

    def forward(self, *inputs: Any) -> Any:
        with torch.no_grad():
            self.structural(*inputs)
        return self.quantitative(*inputs)


@register_method("fed_sq")
class FedSQ(Method):
    """Trains and aggregates the quantitative copy of a `DualCopy` alone; its gates stay those of the initial network.

    Meant for a pretrained start. Two forward passes and one backward; what travels is what federated averaging sends
    (BatchNorm's running statistics, which stay fixed, do not).
    """

    needs = frozenset({"clients", "gates"})
    owns = frozenset({"gates"})
    source = "arXiv 2604.02990"

    batch_norm: Literal["affine", "frozen"] = "affine"

    def adapt(self, model: nn.Module, workload: Workload) -> nn.Module:
        return DualCopy(model, self.batch_norm)

    def travels(self, name: str) -> bool:
        return "structural." not in name and not name.endswith((".running_mean", ".running_var"))
