"""λ-GELU: gates that learn how hard they are, harden into ReLU while training goes on, and are replaced by it after."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness import Client, FederatedWorkload, Method, Recipe, Server, State, Update, Workload, register_method
from harness.activations import replace_gates

Groups = list[dict[str, Any]]


class _LambdaGELU(torch.autograd.Function):
    """The function in the fewest passes over the data: λ's gradient needs no more than two inner products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, hardness: Tensor) -> Tensor:
        output = functional.gelu(x * hardness).div_(hardness)
        ctx.save_for_backward(x, hardness, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        (gradient,) = gradients
        x, hardness, output = ctx.saved_tensors
        by_x = torch.ops.aten.gelu_backward(gradient, x * hardness)
        if not ctx.needs_input_grad[1]:
            return by_x, None
        # ∂f/∂λ = (x ∂f/∂x − f) / λ, because f is GELU(λx) / λ.
        return by_x, ((_inner(by_x, x) - _inner(gradient, output)) / hardness).to(hardness.dtype)


def _gate(x: Tensor, hardness: Tensor) -> Tensor:
    if torch._C._are_functorch_transforms_active():
        # Nested forward mode over a function of one's own is silently wrong; plain operations are right, and slower.
        return functional.gelu(x * hardness) / hardness
    return _LambdaGELU.apply(x, hardness)


def _inner(one: Tensor, other: Tensor) -> Tensor:
    if one.is_cuda or one.dtype in (torch.float16, torch.bfloat16):  # cuBLAS gives `dot` few of a GPU's processors
        wide = torch.promote_types(one.dtype, torch.float32)
        return (one.to(wide) * other.to(wide)).sum()
    return torch.dot(one.reshape(-1), other.reshape(-1))


def lambda_gelu(x: Tensor, hardness: float | Tensor) -> Tensor:
    r"""A gate of a given hardness: GELU at λ = 1, ReLU in the limit.

    .. math:: f(x; \lambda) = x\,\Phi(\lambda x) = \mathrm{GELU}(\lambda x) / \lambda

    Its largest distance from ReLU is 0.16998 / λ, and the integral of the gate's is :math:`2 / (\lambda \sqrt{2\pi})`.
    Differentiable any number of times by both arguments. Source: arXiv 2603.21991.

    Args:
        x: of any shape.
        hardness: λ, one number above 0.

    >>> lambda_gelu(torch.ones(()), 1.0).item()
    0.8413447141647339
    """
    return _gate(x, torch.as_tensor(hardness, dtype=x.dtype, device=x.device).reshape(()))


def target_hardness(tolerance: float = 0.005) -> float:
    r"""The hardness at which the gate's integral distance from a step falls to a tolerance: :math:`2/(\epsilon\sqrt{2\pi})`.

    >>> round(target_hardness(), 3)
    159.577
    """
    return 2 / (tolerance * math.sqrt(2 * math.pi))


def hardened(learned: float, progress: float, target: float = 160.0) -> float:
    r"""Hardness on the way from the learned one to the target, geometric: :math:`\lambda^{1-u} \lambda_\mathrm{target}^u`.

    >>> hardened(2.5, 0.0), round(hardened(2.5, 0.5), 9), hardened(2.5, 1.0)
    (2.5, 20.0, 160.0)
    """
    return learned ** (1 - progress) * target**progress


def substitute(model: nn.Module, gate: type[nn.Module] = nn.ReLU) -> nn.Module:
    """A copy of a model with a plain module in the place of every λ-GELU: its weights are those of a model built so."""
    return replace_gates(
        copy.deepcopy(model), lambda name, old: gate() if isinstance(old, LambdaGate | nn.GELU) else old
    )


class LambdaGate(nn.Module):
    """One activation with a hardness of its own: λ = 1 + softplus(s / t), or λ = s where it is raw, until it is held."""

    is_gate = True

    def __init__(self, hardness: float, temperature: float, raw: bool) -> None:
        super().__init__()
        start = hardness if raw or hardness == 1 else temperature * math.log(math.expm1(hardness - 1))
        self.s = nn.Parameter(torch.tensor(start))
        self.held = nn.Buffer(torch.zeros(()))
        self.holds = False
        self.temperature, self.raw = temperature, raw
        self.register_load_state_dict_post_hook(_hold_as_loaded)

    @property
    def hardness(self) -> Tensor:
        """λ as it is now."""
        if self.holds:
            return self.held
        return self.s if self.raw else 1 + functional.softplus(self.s / self.temperature)

    @property
    def hardness_gradient(self) -> Tensor | None:
        """∂L/∂λ behind the gradient of s that the last backward pass left."""
        if self.s.grad is None:
            return None
        slope = 1.0 if self.raw else torch.sigmoid(self.s.detach() / self.temperature) / self.temperature
        return self.s.grad / slope

    def hold(self, hardness: float) -> None:
        """Fixes λ and freezes s."""
        self.held.fill_(hardness)
        self.holds = True
        self.s.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return _gate(x, self.hardness)


def _hold_as_loaded(gate: nn.Module, keys: Any) -> None:
    assert isinstance(gate, LambdaGate)
    gate.holds = bool(gate.held > 0)
    if gate.holds:  # before an optimizer is built for the phase that a checkpoint was taken in
        gate.s.requires_grad_(False)


@register_method("lambda_gelu")
class LambdaGELU(Method):
    """Every gate becomes a λ-GELU with a hardness of its own, learned, then hardened into ReLU.

    λ = 1 + softplus(s / t) lies in a parameter group without decay. What is `learn`-ed, and how:

    - `aware`, the method: a step on s is scaled so that it moves λ as a step of that size would, by t/σ under Adam and by
      t²/σ² under SGD and LARS, with σ = sigmoid(s/t), at least 0.01; L-BFGS, which searches its step, is left as it is;
    - `softplus`: the plain step on s;
    - `raw`: λ itself is the parameter, without a bound;
    - `fixed`: λ stays as it was initialised (at 1 without hardening this is GELU).

    With `harden`, learning of λ ends at `switch` (a fraction of the run) and λ goes geometrically to `target` at the run's
    end; only that point may be the selected checkpoint. The abstract's "25 %" has two readings: 0.25, the default, hardens
    over the last three quarters, 0.75 over the last one. The model with ReLU in the gates' place is scored beside it as
    `relu`, and kept with `save`. Sigmoid gates, which scale channels, stay. Federated tasks count rounds.

    The action is `hardness`, once, at the switch: the learned profile that hardening starts from.
    """

    needs = frozenset({"gates"})
    owns = frozenset({"gates"})
    source = "arXiv 2603.21991"
    disabled = ({"learn": "fixed", "hardness": 1.0, "harden": False}, "gelu", {})

    hardness: float = 1 + math.log(2)  # at the start
    learn: Literal["aware", "softplus", "raw", "fixed"] = "aware"
    rate: float = 1.0  # times the recipe's learning rate
    temperature: float = 0.1
    harden: bool = True
    switch: float = 0.25
    target: float = 160.0
    save: bool = False  # the substituted model's weights, beside the result

    def __post_init__(self) -> None:
        if self.hardness < 1 or (self.hardness == 1 and self.learn in ("aware", "softplus")):
            raise ValueError(f"hardness: found {self.hardness}, must be above 1 (1 itself for learn: raw or fixed)")
        if not 0 <= self.switch < 1:
            raise ValueError(f"switch: found {self.switch}, must lie in [0, 1)")
        for name in ("rate", "temperature", "target"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, must be positive")
        self.saves_variants = self.save  # type: ignore[misc]
        self._gates: dict[str, LambdaGate] = {}
        self._before: Tensor | None = None
        self._start: dict[str, float] = {}
        self._rounds = 0

    def adapt(self, model: nn.Module, workload: Workload) -> nn.Module:
        device = next(model.parameters()).device

        def build(name: str, old: nn.Module) -> nn.Module:
            if isinstance(old, nn.Sigmoid):
                return old
            self._gates[name] = LambdaGate(self.hardness, self.temperature, self.learn in ("raw", "fixed")).to(device)
            self._gates[name].s.requires_grad_(self.learn != "fixed")
            return self._gates[name]

        return replace_gates(model, build)

    def parameter_groups(self, groups: Groups, recipe: Recipe) -> Groups:
        own = {gate.s for gate in self._gates.values() if gate.s.requires_grad}
        rest = [{**group, "params": [p for p in group["params"] if p not in own]} for group in groups]
        gates = [
            {**group, "params": found, "weight_decay": 0.0, "lr_factor": self.rate * group.get("lr_factor", 1.0)}
            for group in groups
            if (found := [p for p in group["params"] if p in own])
        ]
        return [*rest, *gates]

    def before_step(self, state: State) -> None:
        # L-BFGS chose its step by the loss: another one would undo that.
        searched = isinstance(state.optimizer, torch.optim.LBFGS)
        if self.learn == "aware" and not self._start and self._gates and not searched:
            self._before = self._stacked()

    @torch.no_grad()
    def after_step(self, state: State) -> None:
        if self._before is not None:
            slope = torch.sigmoid(self._before / self.temperature).clamp(min=1e-2) / self.temperature
            assert state.optimizer is not None
            if isinstance(state.optimizer, torch.optim.SGD) or "trust" in state.optimizer.defaults:  # LARS
                slope = slope.square()
            moved = self._before + (self._stacked() - self._before) / slope
            torch._foreach_copy_([gate.s for gate in self._gates.values()], list(moved.unbind()))
            self._before = None
        if not isinstance(state.workload, FederatedWorkload):
            self._harden(state, state.step / state.horizon)

    def _stacked(self) -> Tensor:
        return torch.stack([gate.s.detach() for gate in self._gates.values()])

    def _harden(self, state: State, done: float) -> None:
        if not self.harden or done < self.switch:
            return
        if not self._start:
            learned = {name: max(float(gate.hardness.detach()), 1e-3) for name, gate in self._gates.items()}
            self._start = state.act("hardness", learned)
        self._hold(done)

    def _hold(self, done: float) -> None:
        progress = (done - self.switch) / (1 - self.switch)
        for name, gate in self._gates.items():
            gate.hold(hardened(self._start[name], progress, self.target))

    def start_client(self, client: Client, server: Server) -> None:
        self._rounds = client.state.recipe.length
        if server.round + 1 > self.switch * self._rounds:  # from the round in which the switch lies
            self._harden(client.state, max(self.switch, server.round / self._rounds))

    @torch.no_grad()
    def after_aggregate(self, server: Server, updates: Sequence[Update]) -> None:
        if self._start:  # the server holds λ of the coming round: what clients send of it is an average, so rounded
            self._hold((server.round + 1) / self._rounds)
            for name, gate in self._gates.items():
                server.weights[f"{name}.held"].copy_(gate.held)

    def selectable(self, state: State) -> bool:
        return not self.harden or state.step >= state.recipe.length

    def variants(self, model: nn.Module) -> dict[str, nn.Module]:
        return {"relu": substitute(model)}

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._start = state["start"]


@register_method("gelu")
class GELU(Method):
    """Every gate a GELU, with ReLU substituted after training and scored beside it: the drop without any hardening."""

    needs = frozenset({"gates"})
    owns = frozenset({"gates"})
    source = "Hendrycks & Gimpel 2016, arXiv 1606.08415"

    def adapt(self, model: nn.Module, workload: Workload) -> nn.Module:
        return replace_gates(model, lambda name, old: old if isinstance(old, nn.Sigmoid) else nn.GELU())

    def variants(self, model: nn.Module) -> dict[str, nn.Module]:
        return {"relu": substitute(model)}


@register_method("relu")
class ReLU(Method):
    """Every gate a ReLU from the start: what a substituted model is compared with."""

    needs = frozenset({"gates"})
    owns = frozenset({"gates"})

    def adapt(self, model: nn.Module, workload: Workload) -> nn.Module:
        return replace_gates(model, lambda name, old: old if isinstance(old, nn.Sigmoid) else nn.ReLU())
