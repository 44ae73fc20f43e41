"""What PPO shows of itself, and the formulas behind: flips and the step size, probe batches, returns, normalisation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.activations import hamming, oui, pack, pre_activations
from harness.identity import Part, TrialSpec
from harness.recording.attempts import Attempt
from harness.registry import Registry
from harness.streams import Streams
from harness.training.loop import Interrupted
from harness.training.state import unpack
from harness.training.trial import build_recipe, run_trial
from tasks.control import CartPole
from tasks.normalisation import ObservationNorm, RewardScale, merge
from tasks.ppo_workload import PPO
from tasks.signals import PatternSignals, Returns

CPU = torch.device("cpu")
SMALL = {"env_steps": 512, "envs": 2, "rollout": 64, "batch": 32, "evaluate_every": 1000}  # 16 steps per update


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Registry()


def workload(seed: int = 0, **recipe: Any) -> PPO:
    built = CartPole().workload(build_recipe(CartPole(), SMALL | recipe), Streams(seed), CPU)
    assert isinstance(built, PPO)
    return built


def checkpoint(folder: Path, registry: Registry, halt: int, **recipe: Any) -> dict[str, Any]:
    """The checkpoint of a trial that is halted after a step; run again it goes on from there."""
    spec = TrialSpec("cartpole/ppo", {"evaluation_episodes": 2}, 1, [Part("adam")], SMALL | recipe, {"init": 0}, [])
    with Attempt(folder, spec.hash, spec.to_json(), "code") as attempt:
        with pytest.raises(Interrupted):
            run_trial(spec, registry, attempt, halt=lambda step: step == halt)
        path = attempt.path(attempt.state.checkpoint)
        assert path is not None
        return unpack(path.read_bytes())


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left if key != "seconds")
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


# --- flips and the step size


def flips_after_sgd(rate: float) -> float:
    """The share of first-layer signs that one SGD step flips on a random network."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1)).double()
    probe, x = torch.randn(20_000, 8, dtype=torch.float64), torch.randn(256, 8, dtype=torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    before = pack(net[0](probe).detach())
    (net(x) - x[:, :1].sin()).square().sum().backward()
    optimizer.step()
    return float(hamming(pack(net[0](probe).detach()), before).sum()) / (20_000 * 64)


def test_flip_rate_is_linear_in_the_step_size() -> None:
    rates = np.logspace(-6, -4, 9)
    slope = np.polyfit(np.log(rates), np.log([flips_after_sgd(rate) for rate in rates]), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.05)
    assert flips_after_sgd(0.0) == 0.0


@pytest.mark.parametrize(("betas", "constant"), [((0.9, 0.9), 1.0), ((0.9, 0.999), 7.270), ((0.9, 0.95), 1.165)])
def test_no_sign_flips_below_the_bound_under_adam(betas: tuple[float, float], constant: float) -> None:
    # eta < min |z| / (C (|x|_1 + 1)), C the largest step of Adam in units of eta.
    beta1, beta2 = betas
    assert (1 - beta1) / math.sqrt((1 - beta2) * (1 - beta1**2 / beta2)) == pytest.approx(constant, abs=1e-3)
    generator = torch.Generator().manual_seed(1)
    closest = 0.0
    for _ in range(40):
        layer = nn.Linear(5, 7).double()
        x = torch.randn(1, 5, generator=generator, dtype=torch.float64)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1.0, betas=betas)
        for _ in range(8):
            z = layer(x).detach()
            rate = 0.999 * float(z.abs().min()) / (constant * 1.0001 * (float(x.abs().sum()) + 1))
            optimizer.param_groups[0]["lr"] = rate
            target = 100 * torch.randn(1, 7, generator=generator, dtype=torch.float64)
            optimizer.zero_grad()
            (layer(x) - target).square().sum().backward()
            optimizer.step()
            moved = layer(x).detach()
            assert torch.equal(z > 0, moved > 0)
            closest = max(closest, float(((moved - z).abs() / z.abs()).max()))
    assert closest * constant > 0.5  # the bound is not an idle one: usual steps are of size eta


# --- signals


def test_probe_batch_is_one_for_all_runs_of_an_environment() -> None:
    probes = [workload(lr=1e-5), workload(lr=3e-2), workload(seed=7)]
    assert all(torch.equal(probes[0].probe_inputs, other.probe_inputs) for other in probes)
    assert not torch.equal(probes[0].model.actor[0].weight, probes[2].model.actor[0].weight)  # type: ignore[index, union-attr]


def test_signals_are_those_of_the_definitions() -> None:
    control = workload()
    signals = PatternSignals(control.probe_inputs)
    signals.measure(control.model)
    before = pre_activations(control.model, control.probe_inputs)
    assert signals.values["oui_actor"] == pytest.approx((oui(before["actor.act1"]) + oui(before["actor.act2"])) / 2)
    assert "flip_rate" not in signals.values
    signals.measure(control.model)
    assert signals.values["flip_rate"] == 0.0
    with torch.no_grad():
        for parameter in control.model.parameters():
            parameter.add_(0.05)
    signals.measure(control.model)
    after = pre_activations(control.model, control.probe_inputs)
    flipped = sum(int(((before[g] > 0) != (after[g] > 0)).sum()) for g in before)
    assert signals.values["flip_rate"] == flipped / (4 * 256 * 64) > 0
    critic = (oui(after["critic.act1"]) + oui(after["critic.act2"])) / 2
    assert signals.values["oui_critic"] == pytest.approx(critic)


def test_monitoring_leaves_the_trajectory(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = checkpoint(tmp_path / "a", registry, 40, record_every=1)
    monkeypatch.setattr(PatternSignals, "measure", lambda self, model: None)
    alone = checkpoint(tmp_path / "b", registry, 40)
    for part in ("model", "optimizer", "streams", "default_stream"):
        assert same(watched[part], alone[part]), part
    assert watched["workload"]["signals"]["values"]["flip_rate"] > 0


def test_returns_of_the_last_part() -> None:
    returns = Returns()
    for step in range(10, 1001, 10):
        returns.add(step, float(step))
    values = returns.values(1000)
    assert values["return"] == pytest.approx(505.0)
    assert values["return_last_fifth"] == pytest.approx(np.mean(np.arange(810, 1001, 10)))
    assert values["return_last_tenth"] == pytest.approx(np.mean(np.arange(910, 1001, 10)))


# --- normalisation and learning rates


def test_moments_are_those_of_all_samples() -> None:
    parts = np.split(np.random.default_rng(0).normal(3, 2, size=(90, 4)), [10, 35])
    moments = 0.0, np.zeros(4), np.ones(4)
    for part in parts:
        moments = merge(*moments, part)
    whole = np.concatenate(parts)
    assert moments[0] == 90
    np.testing.assert_allclose(moments[1], whole.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments[2], whole.var(axis=0), rtol=1e-12)


def test_observations_are_normalised_and_clipped() -> None:
    norm, seen = ObservationNorm(2), np.random.default_rng(1).normal([5, -1], [2, 0.1], size=(500, 2))
    norm.update(seen)
    normal = norm(torch.from_numpy(seen).float())
    torch.testing.assert_close(normal.mean(dim=0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.var(dim=0, unbiased=False), torch.ones(2), atol=1e-3, rtol=0)
    assert norm(torch.tensor([[1e6, 0.0]])).max() == 10


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return() -> None:
    rng = np.random.default_rng(2)
    rewards, ended, gamma = rng.normal(1, 3, size=(40, 2)), rng.random((40, 2)) < 0.1, 0.9
    scale = RewardScale(2, gamma)
    scaled = np.concatenate([scale(rewards[:15], ended[:15]), scale(rewards[15:], ended[15:])])
    seen, running = [], [0.0, 0.0]
    for t in range(40):
        for env in range(2):
            running[env] = gamma * running[env] + rewards[t, env]
            seen.append(running[env])
            running[env] *= not ended[t, env]
    np.testing.assert_allclose(scaled[:15], np.clip(rewards[:15] / np.std(seen[:30]), -10, 10), rtol=1e-6)
    np.testing.assert_allclose(scaled[15:], np.clip(rewards[15:] / np.std(seen), -10, 10), rtol=1e-6)


def test_resume_is_exact_under_normalisation(tmp_path: Path, registry: Registry) -> None:
    options: dict[str, Any] = {"normalize_observations": True, "normalize_rewards": True, "critic_lr": 1e-3}
    undisturbed = checkpoint(tmp_path / "a", registry, 45, **options)
    checkpoint(tmp_path / "b", registry, 21, **options)
    assert same(checkpoint(tmp_path / "b", registry, 45, **options), undisturbed)
    assert float(undisturbed["model"]["normalize.count"]) == 256 + 2 * 128  # the probe batch and two rollouts


def test_critic_has_a_learning_rate_of_its_own(tmp_path: Path, registry: Registry) -> None:
    one = checkpoint(tmp_path / "a", registry, 20)
    equal = checkpoint(tmp_path / "b", registry, 20, critic_lr=2.5e-4)
    other = checkpoint(tmp_path / "c", registry, 20, critic_lr=1e-2)
    assert same(one["model"], equal["model"])
    assert [group["base_lr"] for group in other["optimizer"]["param_groups"]] == [2.5e-4, 1e-2]
    with pytest.raises(ValueError, match="critic_lr: found"):
        workload(critic_lr=-1.0)
