"""OUI against exact values and a brute-force count; observing leaves no trace."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models.swin_transformer import SwinTransformer

from harness.activations import (
    channels_apart,
    feeding,
    gates,
    observe,
    on_forward,
    one_position,
    oui,
    pre_activations,
    replace_gates,
)


def test_constant_patterns_have_none() -> None:
    assert oui(torch.tensor([[1.0, -1.0]] * 5)) == 0.0


@pytest.mark.parametrize("samples", [4, 5, 8, 9])
def test_half_on_is_one(samples: int) -> None:
    z = -torch.ones(samples, 3)
    z[: samples // 2] = 1.0
    assert oui(z) == 1.0


def test_the_worked_example() -> None:
    # B = 4 and s = (0, 2, 1): (0 + 2 + 1) / (3 · 2)
    z = -torch.ones(4, 3)
    z[:2, 1] = 1
    z[:1, 2] = 1
    assert oui(z) == 0.5


def test_one_sample_has_none() -> None:
    assert oui(torch.ones(1, 7)) == 0.0


def test_the_shape_is_checked() -> None:
    with pytest.raises(ValueError, match=r"found shape \(2, 3, 4\)"):
        oui(torch.zeros(2, 3, 4))


@given(st.integers(2, 9), st.integers(1, 6), st.integers(0, 10**6))
def test_properties(samples: int, units: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(samples, units, generator=generator)
    value = oui(z)
    by_hand = sum(
        min(sum(float(z[i, j]) > 0 for i in range(samples)), sum(float(z[i, j]) <= 0 for i in range(samples)))
        for j in range(units)
    ) / (units * (samples // 2))
    assert value == pytest.approx(by_hand, abs=1e-15)
    assert 0 <= value <= 1
    assert oui(z[torch.randperm(samples, generator=generator)][:, torch.randperm(units, generator=generator)]) == value
    assert oui(z * torch.rand(units, generator=generator).add(0.1)) == value
    flipped = z.clone()
    flipped[:, 0] *= -1
    assert oui(flipped) == value
    steps = value * units * (samples // 2)
    assert steps == pytest.approx(round(steps), abs=1e-9)


@pytest.mark.parametrize(("samples", "null"), [(2, 0.5), (4, 0.625), (8, 0.7265625), (32, 0.86005), (256, 0.95018)])
def test_fair_coins_have_the_published_value(samples: int, null: float) -> None:
    """E[OUI] of fair coins is 1 − C(B, B/2)/2^B; the values are those of the specification."""
    assert 1 - math.comb(samples, samples // 2) / 2**samples == pytest.approx(null, abs=5e-6)
    if samples <= 8:
        rows = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=samples))).T
        assert oui(rows) == pytest.approx(null, abs=1e-12)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.first, self.second = nn.ReLU(), nn.Tanh()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.second(self.first(self.norm(x)) - 1))


def test_observing_leaves_no_trace() -> None:
    model, x = Twice().train(), torch.randn(6, 3)
    heard: list[torch.Tensor] = []
    on_forward(model.first, lambda module, inputs, output: heard.append(output))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = torch.get_rng_state()
    with observe(model) as seen:
        torch.rand(3)
        model(x)
        assert not model.training
    assert set(seen) == {"first", "second"}
    assert model.training
    assert model.drop.training
    assert not heard, "hooks of methods are muted"
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    model(x)
    assert len(heard) == 1


def test_pre_activations_are_flat() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    assert pre_activations(model, torch.zeros(4, 1, 5, 5))["1"].shape == (4, 18)


def test_one_position_of_a_swin_transformer_has_its_channels() -> None:
    """Its maps have their channels last; a unit of a gate is a channel there too."""
    model = SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=3)
    with observe(model) as seen:
        model(torch.randn(5, 3, 16, 16))
    makers, generator = feeding(model), torch.Generator().manual_seed(0)
    for gate, z in seen.items():
        width = makers[gate].out_features  # type: ignore[union-attr]
        chosen = one_position(channels_apart(z, makers[gate]), generator)
        assert chosen.shape == (5, width)
        assert all((z[sample] == chosen[sample]).all(-1).any() for sample in range(5)), "the channels of a position"


def test_replacing_gates() -> None:
    class Marked(nn.Identity):
        is_gate = True

    model = replace_gates(Twice(), lambda name, gate: Marked())
    assert list(gates(model)) == ["first", "second"]
    assert all(isinstance(gate, Marked) for gate in gates(model).values())
