"""Gates and activation patterns of any model; every measure on patterns is computed from here.

A gate is a place where an activation function is called. A task that offers `gates` has one activation module per place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

GATES: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Softplus,
    nn.Sigmoid,
    nn.Tanh,
)
"""Activation modules of torch that count as gates. A module of another class is one if its `is_gate` is true."""

_muted = False


def is_gate(module: nn.Module) -> bool:
    """Whether a module is an activation."""
    return isinstance(module, GATES) or bool(getattr(module, "is_gate", False))


def gates(model: nn.Module) -> dict[str, nn.Module]:
    """The activation modules of a model by name, in the order of definition.

    >>> list(gates(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))))
    ['1']
    """
    return {name: module for name, module in model.named_modules() if is_gate(module)}


def replace_gates(model: nn.Module, build: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """Replaces each gate by `build(name, gate)`, in place, and returns the model.

    >>> replace_gates(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), lambda name, gate: nn.Tanh())[1]
    Tanh()
    """
    for name, gate in gates(model).items():
        if name == "":
            return build(name, gate)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, build(name, gate))
    return model


def on_forward(module: nn.Module, hook: Callable[[nn.Module, Tensor, Tensor], None]) -> None:
    """Calls `hook(module, input, output)` after each forward pass of training; muted while anything observes the model."""

    def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not _muted:
            hook(module, inputs[0], output)

    module.register_forward_hook(forward)


@contextmanager
def observe(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Lets one look at a model without leaving a trace in its training.

    Inside, the model is in evaluation mode without gradients and hooks of methods are muted; afterwards the modes, the
    buffers and torch's random state are what they were. The dictionary holds, by gate, the pre-activations of the last
    forward pass: the tensors that went into it.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with observe(model) as pre_activations:
    ...     _ = model(torch.ones(5, 2))
    >>> pre_activations["1"].shape
    torch.Size([5, 3])
    """
    global _muted
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: seen.__setitem__(name, inputs[0].detach())

    handles = [gate.register_forward_pre_hook(keep(name)) for name, gate in gates(model).items()]
    outer, _muted = _muted, True
    try:
        with torch.random.fork_rng(devices=_cuda_devices(model)), torch.no_grad():
            model.eval()
            yield seen
    finally:
        _muted = outer
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


def pre_activations(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """The pre-activations of every gate on `inputs`, each flattened to (samples, units)."""
    with observe(model) as seen:
        model(inputs)
    return {name: z.reshape(z.shape[0], -1) for name, z in seen.items()}


def oui(pre_activations: Tensor) -> float:
    r"""The Overfitting-Underfitting Indicator of a layer on a probe batch, in its batch form.

    With :math:`s_j` the number of the :math:`B` samples for which unit :math:`j` of :math:`d` has a positive
    pre-activation,

    .. math:: \mathrm{OUI} = \frac1d \sum_j \frac{\min(s_j, B - s_j)}{\lfloor B/2 \rfloor}

    It is 0 where every unit is always on or always off, and 1 where each is on for half of the samples. A layer of fair
    coins has :math:`1 - \binom{B}{B/2} 2^{-B}`, so values compare only at equal :math:`B`.

    Source: arXiv 2605.10161 and 2605.11571, their released code.

    Args:
        pre_activations: (samples, units).

    Returns:
        A number in [0, 1]; 0 for fewer than two samples.

    Raises:
        ValueError: for a tensor that is not two-dimensional.

    >>> oui(torch.tensor([[-1.0, 1, 1], [-1, 1, -1], [-1, -1, -1], [-1, -1, -1]]))
    0.5
    """
    if pre_activations.ndim != 2:
        raise ValueError(f"pre_activations: found shape {tuple(pre_activations.shape)}, must be (samples, units)")
    samples = pre_activations.shape[0]
    if samples < 2:
        return 0.0
    on = (pre_activations > 0).sum(dim=0)
    balanced = torch.minimum(on, samples - on).double().mean()
    return float(balanced / (samples // 2))
