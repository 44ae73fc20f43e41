"""Flips and decay times against closed forms; the pair form of OUI; profiles of hardness."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from support import run
from torch import nn

from harness.activations import coin_flips, coin_flips_pair, hamming, mean_hamming, oui, oui_pair, pack, pre_activations
from harness.conformance import short_spec
from harness.identity import Part
from harness.probes.activation_flips import pattern_is_stable, patterns
from harness.probes.curves import center, decay_time, ema, speed_up
from harness.probes.gate_hardness import profile_correlation
from harness.recording.records import TrialRecords
from harness.registry import Registry

SLOW = [math.exp(-t / 300) for t in range(5000)]
FAST = [math.exp(-t / 100) for t in range(5000)]


@pytest.mark.parametrize("q", [0.5, 0.25, 0.1])
def test_exponentials_decay_three_times_earlier(q: float) -> None:
    assert decay_time(SLOW, q) == pytest.approx(300 * math.log(1 / q), abs=1e-9)
    assert speed_up(SLOW, FAST, q) == pytest.approx(3, abs=1e-9)
    whole = math.ceil(decay_time(SLOW, q)) / math.ceil(decay_time(FAST, q))
    assert whole == pytest.approx(3, abs=0.05)
    assert round(speed_up(ema(SLOW, 25), ema(FAST, 25), q), 1) in (2.7, 2.8, 2.9), (
        "smoothing costs the faster curve more"
    )
    assert center(SLOW, range(5000)) / center(FAST, range(5000)) == pytest.approx(3, rel=5e-3)


def test_a_curve_that_rises_again_has_not_decayed() -> None:
    assert decay_time([1, 0.1, 0.6, 0.1, 0.1], 0.5) == pytest.approx(2 + math.log(1.2) / math.log(6))
    assert math.isnan(decay_time([1, 0.1, 0.6], 0.5))
    assert decay_time([1, 0, 0], 0.5) == 1
    assert decay_time([1.0, 0.25, 0.1], 0.5, steps=[10, 20, 30]) == pytest.approx(15)


def net(generator: torch.Generator, sizes: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return [(draw(b, a) / a**0.5, 0.1 * draw(b)) for a, b in itertools.pairwise(sizes)]


def signs(layers: list[tuple[torch.Tensor, torch.Tensor]], x: torch.Tensor) -> list[list[bool]]:
    found = []
    for weight, bias in layers:
        x = weight @ x + bias
        found.append((x > 0).tolist())
        x = x.relu()
    return found


def test_the_local_stability_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    proven = changed = 0
    for trial in range(600):
        layers = net(generator, [4, 6, 6, 5])
        size = 10 ** -(0.5 + 3 * trial / 600)
        changes = [(size * w, size * b) for w, b in net(generator, [4, 6, 6, 5])]
        x = torch.randn(4, generator=generator, dtype=torch.float64)
        moved = [(w + dw, b + db) for (w, b), (dw, db) in zip(layers, changes, strict=True)]
        same = signs(layers, x) == signs(moved, x)
        stable = pattern_is_stable(layers, changes, x)
        assert same or not stable
        proven, changed = proven + stable, changed + (not same)
    assert proven > 50
    assert changed > 50


def test_within_a_region_a_net_is_affine() -> None:
    generator = torch.Generator().manual_seed(1)
    layers = net(generator, [4, 6, 6, 5])
    out = torch.randn(5, generator=generator, dtype=torch.float64)

    def f(x: torch.Tensor) -> torch.Tensor:
        for weight, bias in layers:
            x = (weight @ x + bias).relu()
        return out @ x

    found = 0
    for _ in range(100):
        x = torch.randn(4, generator=generator, dtype=torch.float64)
        y = x + 0.05 * torch.randn(4, generator=generator, dtype=torch.float64)
        if signs(layers, x) == signs(layers, y):
            assert float(f((x + y) / 2)) == pytest.approx(float((f(x) + f(y)) / 2), abs=1e-14)
            found += 1
    assert found > 30


def test_packed_patterns() -> None:
    generator = torch.Generator().manual_seed(0)
    for units in (1, 7, 8, 9, 64, 77):
        a, b, c = (torch.randn(5, units, generator=generator) for _ in range(3))
        packed = [pack(z) for z in (a, b, c)]
        assert packed[0].shape == (5, -(-units // 8))
        assert packed[0].dtype == torch.uint8
        expected = ((a > 0) != (b > 0)).sum(dim=1)
        assert torch.equal(hamming(packed[0], packed[1]), expected)
        assert torch.equal(hamming(packed[0], packed[1]), hamming(packed[1], packed[0]))
        assert bool((hamming(packed[0], packed[2]) <= expected + hamming(packed[1], packed[2])).all())
        assert int(hamming(packed[0], packed[0]).sum()) == 0


def test_turning_the_weights_around_flips_everything() -> None:
    model, x = nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU()), torch.randn(20, 6)
    before, units = patterns(model, x)["1"]
    with torch.no_grad():
        model[0].weight.neg_()
    assert units == 9
    assert int(hamming(before, patterns(model, x)["1"][0]).sum()) == 20 * 9
    assert patterns(model, x, only="0*") == {}


def all_pairs(samples: int) -> torch.Tensor:
    return torch.combinations(torch.arange(samples), 2)


def test_the_two_forms_of_oui() -> None:
    generator = torch.Generator().manual_seed(0)
    for samples, units in ((8, 10), (9, 11), (32, 64)):
        rates = torch.rand(units, generator=generator)
        z = rates - torch.rand(samples, units, generator=generator)
        distances = [
            sum(float(a > 0) != float(b > 0) for a, b in zip(z[i].tolist(), z[k].tolist(), strict=True))
            for i, k in itertools.combinations(range(samples), 2)
        ]
        half = units // 2
        by_hand = sum(min(d, half) / half for d in distances) / len(distances)
        assert oui_pair(z, all_pairs(samples)) == pytest.approx(by_hand, abs=1e-15)
        exact = sum(distances) / len(distances) / units
        assert mean_hamming(z) == pytest.approx(exact, abs=1e-15)
        if units % 2 == 0:
            assert oui_pair(z, all_pairs(samples)) <= min(1, 2 * exact) + 1e-15
        if samples % 2 == 0:
            assert oui(z) <= 2 * exact * (samples - 1) / samples + 1e-15


def test_the_forms_differ_by_the_published_example() -> None:
    """Rates of activity uniform on (0, 1): the batch form has 0.478, twice the mean distance 0.652 (any seed is near)."""
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(4000, generator=generator) - torch.rand(64, 4000, generator=generator)
    assert oui(z) == pytest.approx(0.478, abs=0.03)
    assert oui_pair(z, all_pairs(64)) == pytest.approx(0.652, abs=0.03)


def test_where_the_forms_agree() -> None:
    z = torch.ones(4, 6)
    z[:2, :4] = -1
    assert oui(z) == pytest.approx(2 * mean_hamming(z) * 3 / 4, abs=1e-15)
    assert oui_pair(torch.ones(4, 6), all_pairs(4)) == 0


@pytest.mark.parametrize(
    ("samples", "null"),
    [(2, 0.5), (4, 0.625), (8, 0.7266), (32, 0.86005), (64, 0.90065), (128, 0.92961), (256, 0.95018)],
)
def test_fair_coins(samples: int, null: float) -> None:
    assert coin_flips(samples) == pytest.approx(null, abs=5e-5)
    assert coin_flips(samples) == pytest.approx(1 - math.comb(samples, samples // 2) / 2**samples, rel=1e-9)
    assert coin_flips_pair(samples) == pytest.approx(1 - math.comb(samples, samples // 2) / 2**samples / 2, rel=1e-9)


def test_fair_coins_of_odd_numbers_and_many() -> None:
    rows = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=5))).T
    assert coin_flips(5) == pytest.approx(oui(rows), abs=1e-12)
    assert coin_flips_pair(100_000) == pytest.approx(1 - 1 / math.sqrt(2 * math.pi * 100_000), rel=1e-6)
    assert coin_flips(1) == 0


def test_profiles() -> None:
    assert profile_correlation([[1, 2, 3], [10, 20, 30], [0.1, 0.2, 0.9]]) == 1
    assert profile_correlation([[1, 2, 3], [3, 2, 1]]) == -1


def probed(
    registry: Registry, folder: Path, probe: Part, **overrides: object
) -> tuple[dict[str, float], list[dict[str, float]]]:
    spec = short_spec(registry, "digits/mlp", [Part("adam")], [probe], **overrides)
    metrics = run(registry, spec, folder).metrics
    return metrics, [r["metrics"] for r in TrialRecords(folder, spec.hash).records() if "metrics" in r]


def test_the_flips_of_a_trial(tmp_path: Path, registry: Registry) -> None:
    metrics, records = probed(registry, tmp_path, Part("activation_flips", {"every": 1}), steps=60)
    rates = [r["probe/activation_flips/rate"] for r in records if "probe/activation_flips/rate" in r]
    assert len(rates) == 60
    assert all(0 <= rate <= 1 for rate in rates)
    assert sum(rates) > 0
    last = records[-1]
    assert last["probe/activation_flips/rate_per_lr"] == pytest.approx(last["probe/activation_flips/rate"] / 3e-3)
    assert last["probe/activation_flips/rate"] == pytest.approx(
        (last["probe/activation_flips/gate/1.act1"] + last["probe/activation_flips/gate/1.act2"]) / 2
    )
    assert "probe/activation_flips/speed_up_center" in metrics


def test_no_step_no_flips(tmp_path: Path, registry: Registry) -> None:
    _, records = probed(registry, tmp_path, Part("activation_flips", {"every": 1}), lr=1e-30, steps=3, weight_decay=0.0)
    assert {r["probe/activation_flips/rate"] for r in records if "probe/activation_flips/rate" in r} == {0.0}


def test_the_oui_of_a_trial_is_named_by_its_form(tmp_path: Path, registry: Registry) -> None:
    batch, _ = probed(registry, tmp_path, Part("oui", {"every": 0, "samples": 32}))
    assert batch["probe/oui/null"] == pytest.approx(0.86005, abs=1e-5)
    assert batch["probe/oui/mean"] == pytest.approx((batch["probe/oui/1.act1"] + batch["probe/oui/1.act2"]) / 2)
    pair, _ = probed(registry, tmp_path, Part("oui", {"every": 10, "form": "pair", "on": "train"}))
    assert pair["probe/oui_pair/null"] == pytest.approx(coin_flips_pair(64), rel=1e-12)
    assert not any(name.startswith("probe/oui/") for name in pair)


def test_the_probe_measures_what_the_function_does(registry: Registry) -> None:
    from harness.conformance import run_short

    spec = short_spec(registry, "digits/mlp", [Part("adam")], [Part("oui", {"every": 0})])
    ran = run_short(registry, spec)
    state = ran.training.state
    z = pre_activations(state.model, state.workload.probe_inputs)
    assert ran.records[-1]["metrics"]["probe/oui/1.act1"] == oui(z["1.act1"])
