"""Gates and activation patterns of any model; every measure on patterns is computed from here.

A gate is a place where an activation function is called. A task that offers `gates` has one activation module per place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

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


def feeding(model: nn.Module) -> dict[str, nn.Module | None]:
    """By gate, the module with parameters that is defined last before it: the one that makes what goes into it.

    >>> feeding(nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.ReLU()))
    {'2': Linear(in_features=2, out_features=3, bias=True)}
    """
    last: nn.Module | None = None
    found: dict[str, nn.Module | None] = {}
    for name, module in model.named_modules():
        if is_gate(module):
            found[name] = last
        elif next(module.parameters(recurse=False), None) is not None:
            last = module
    return found


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


def one_position(activations: Tensor, generator: torch.Generator) -> Tensor:
    """All channels of one random position per sample: (samples, channels), the sampling of OUIDecay's released code.

    Args:
        activations: (samples, channels, height, width), (samples, positions, channels), or (samples, units), which has
            one position and is returned as it is, without a draw.
        generator: on the CPU, so that the positions are the same on every device.
    """
    if activations.ndim <= 2:
        return activations.reshape(len(activations), -1)
    places = activations.flatten(1, -2) if activations.ndim == 3 else activations.flatten(2).transpose(1, 2)
    chosen = torch.randint(places.shape[1], (len(places),), generator=generator).to(places.device)
    return places[torch.arange(len(places), device=places.device), chosen]


def channels_apart(activations: Tensor, layer: nn.Module | None) -> Tensor:
    """What a layer made, as `one_position` reads it: of a linear layer on a map, as in Swin, the channels lie last.

    >>> channels_apart(torch.ones(2, 7, 7, 96), nn.Linear(3, 96)).shape
    torch.Size([2, 49, 96])
    >>> channels_apart(torch.ones(2, 96, 7, 7), nn.Conv2d(3, 96, 3)).shape
    torch.Size([2, 96, 7, 7])
    """
    return activations.flatten(1, -2) if isinstance(layer, nn.Linear) and activations.ndim > 3 else activations


def oui_pair(pre_activations: Tensor, pairs: Tensor) -> float:
    r"""The OUI of a layer in its pair form: how differently pairs of samples are gated.

    With :math:`h_{ik}` the Hamming distance of the patterns of samples :math:`i` and :math:`k` over :math:`d` units,

    .. math:: \mathrm{OUI}_\mathrm{pair} = \mathrm{mean}_{(i,k)} \frac{\min(h_{ik}, \lfloor d/2 \rfloor)}{\lfloor d/2 \rfloor}

    It is not the batch form (`oui`): on uniformly distributed rates of activity one is .652 and the other .478.

    Source: arXiv 2504.17160 and its released code.

    Args:
        pre_activations: (samples, units).
        pairs: (pairs, 2), indices of samples.

    Returns:
        A number in [0, 1]; 0 for fewer than two units.

    >>> oui_pair(torch.tensor([[-1.0, 1, 1, 1], [-1, 1, -1, 1]]), torch.tensor([[0, 1]]))
    0.5
    """
    half = pre_activations.shape[1] // 2
    if half == 0:
        return 0.0
    needed, inverse = pairs.unique(return_inverse=True)
    packed = pack(pre_activations[needed.to(pre_activations.device)])
    inverse = inverse.to(packed.device)
    distance = hamming(packed[inverse[:, 0]], packed[inverse[:, 1]])
    return float((distance.clamp(max=half).double() / half).mean())


def mean_hamming(pre_activations: Tensor) -> float:
    r"""The mean normalised Hamming distance over all pairs of samples, in linear time.

    .. math:: \bar H = \frac1d \sum_j \frac{2 s_j (B - s_j)}{B (B - 1)}

    Args:
        pre_activations: (samples, units), at least two samples.
    """
    samples = pre_activations.shape[0]
    on = (pre_activations > 0).sum(dim=0).double()
    return float((2 * on * (samples - on)).mean() / (samples * (samples - 1)))


def pack(pre_activations: Tensor) -> Tensor:
    """The activation patterns, eight units to a byte.

    Args:
        pre_activations: (samples, ...); all that is not a sample counts as a unit.

    Returns:
        (samples, bytes), uint8: bit k of byte i is unit 8i + k, on where its pre-activation is positive.

    >>> pack(torch.tensor([[1.0, -1, 1, 0, 0, 0, 0, 0, 2]])).tolist()
    [[5, 1]]
    """
    on = (pre_activations.reshape(len(pre_activations), -1) > 0).to(torch.uint8)
    bits = functional.pad(on, (0, -on.shape[1] % 8)).reshape(len(on), -1, 8)
    places = torch.tensor([1 << place for place in range(8)], dtype=torch.uint8, device=bits.device)
    return (bits * places).sum(dim=-1, dtype=torch.uint8)


def hamming(one: Tensor, other: Tensor) -> Tensor:
    """In how many units two sets of packed patterns differ: (..., bytes) twice to (...).

    >>> hamming(torch.tensor([5, 1], dtype=torch.uint8), torch.tensor([4, 3], dtype=torch.uint8)).item()
    2
    """
    bits = one ^ other
    bits = bits - ((bits >> 1) & 0x55)
    bits = (bits & 0x33) + ((bits >> 2) & 0x33)
    return ((bits + (bits >> 4)) & 0x0F).sum(dim=-1)


@cache
def coin_flips(samples: int) -> float:
    r"""What `oui` is expected to be where every unit is a fair coin; :math:`1 - \binom{B}{B/2} 2^{-B}` for even B.

    >>> [round(coin_flips(samples), 5) for samples in (2, 8, 256)]
    [0.5, 0.72656, 0.95018]
    """
    return _expected(samples, lambda on: min(on, samples - on))


@cache
def coin_flips_pair(units: int) -> float:
    r"""What `oui_pair` is expected to be where every unit is a fair coin; :math:`1 - \frac12 \binom{d}{d/2} 2^{-d}` for even d.

    >>> round(coin_flips_pair(2), 12)
    0.75
    """
    return _expected(units, lambda differing: min(differing, units // 2))


def _expected(coins: int, capped: Callable[[int], int]) -> float:
    """The mean of `capped(heads)` over half the coins. Outside of ten standard deviations there is nothing to add."""
    if coins < 2:
        return 0.0
    reach = 5 * math.isqrt(coins) + 5
    total = 0.0
    for heads in range(max(0, coins // 2 - reach), min(coins, coins // 2 + reach) + 1):
        log = math.lgamma(coins + 1) - math.lgamma(heads + 1) - math.lgamma(coins - heads + 1) - coins * math.log(2)
        total += math.exp(log) * capped(heads)
    return total / (coins // 2)
