"""Environments: ours against Gymnasium's to the bit, and what an id may be."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from support import write_grid

from harness.planning.errors import GridError
from harness.planning.grid import load_grid
from harness.planning.plan import build_plan
from harness.registry import Registry
from harness.streams import Streams
from harness.training.trial import build_recipe
from tasks.control import AnyEnvironment, CartPole, LunarLander
from tasks.environments import EVALUATION_LIMIT, NATIVE, evaluation_limit, simulator

SMALL = {"env_steps": 512, "envs": 2, "rollout": 64, "batch": 32}


def compare(name: str, steps: int) -> tuple[int, int]:
    """Steps both side by side under policies that see much of an environment; returns how many episodes ended in each way."""
    theirs: gymnasium.Env[Any, Any] = gymnasium.make(name, disable_env_checker=True)
    ours, rng = simulator(name), np.random.default_rng(1)
    terminations = truncations = seed = action = policy = 0
    over = True
    for _ in range(steps):
        if over:
            seed, policy = seed + 1, int(rng.integers(3))
            expected, found = theirs.reset(seed=seed)[0], ours.reset(seed)
            assert expected.tobytes() == found.tobytes() and found.dtype == np.float32
        if policy == 0 or rng.random() < 0.1:
            action = int(rng.integers(ours.choices))
        elif policy == 1:  # along with the velocity: swings up
            action = (ours.choices - 1) * int(found[-1] > 0)
        expected, reward, terminated, truncated, _ = theirs.step(action)
        found, *rest = ours.step(action)
        assert expected.tobytes() == found.tobytes() and rest == [reward, terminated, truncated]
        over = terminated or truncated
        terminations, truncations = terminations + terminated, truncations + truncated
    return terminations, truncations


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_native_environments_equal_gymnasium(name: str) -> None:
    terminations, _ = compare(name, 4000)
    assert terminations > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NATIVE))
def test_native_environments_equal_gymnasium_over_many_steps(name: str) -> None:
    terminations, truncations = compare(name, 100_000)
    assert terminations > 50 and (truncations > 50 or name == "CartPole-v1")


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_native_limits_are_gymnasiums(name: str) -> None:
    assert NATIVE[name].limit == gymnasium.spec(name).max_episode_steps


def test_a_limit_truncates() -> None:
    env = simulator("MountainCar-v0", 3)
    env.reset(0)
    assert [env.step(0)[3] for _ in range(3)] == [False, False, True]


def test_any_environment_with_discrete_actions() -> None:
    task = AnyEnvironment(environment="FrozenLake-v1")
    control = task.workload(build_recipe(task, SMALL), Streams(0), torch.device("cpu"))
    batch = control.next_batch()
    assert batch["observations"].shape == (32, 16)  # the state, one hot
    assert batch["observations"].sum(dim=1).eq(1).all() and batch["actions"].max() < 4


def test_what_an_environment_may_be() -> None:
    with pytest.raises(ValueError, match=r"environment: found 'CartPoll-v1'"):
        build_recipe(AnyEnvironment(environment="CartPoll-v1"), SMALL)
    with pytest.raises(ValueError, match=r"environment: found 'Pendulum-v1', .*Box.* allowed: discrete actions"):
        build_recipe(AnyEnvironment(environment="Pendulum-v1"), SMALL)
    with pytest.raises(ValueError, match="time_limit: found 0"):
        CartPole(time_limit=0)


@pytest.mark.parametrize(
    ("environment", "told"),
    [("CartPoll-v1", "allowed: an id that Gymnasium knows"), ("Pendulum-v1", "allowed: discrete actions")],
)
def test_a_plan_refuses_what_no_trial_could_play(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: str, told: str
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    registry = Registry()
    text = f"name: n\ntasks: [gymnasium/ppo: {{environment: {environment}}}]\nmethods: [adam]\nseeds: 1\n"
    with pytest.raises(GridError) as error:
        build_plan(load_grid(write_grid(tmp_path, text), [], registry), registry)
    assert f"grid.yaml: tasks[0]: environment: found '{environment}'" in str(error.value)
    assert told in str(error.value)


@pytest.mark.skipif(find_spec("Box2D") is not None, reason="Box2D is installed")
def test_what_is_not_installed_is_told() -> None:
    with pytest.raises(ValueError, match=r"needs Box2D, which is not installed.*training-harness\[box2d\]"):
        build_recipe(LunarLander(), {})


class Endless(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, dtype=np.float32), 0.0, False, False, {}


gymnasium.register("TestEndless-v0", Endless)


def test_evaluation_episodes_come_to_an_end() -> None:
    assert evaluation_limit("CartPole-v1", None) is None
    assert evaluation_limit("TestEndless-v0", None) == EVALUATION_LIMIT and evaluation_limit("TestEndless-v0", 7) == 7
    task = AnyEnvironment(environment="TestEndless-v0", evaluation_episodes=1)
    control = task.workload(build_recipe(task, SMALL), Streams(0), torch.device("cpu"))
    with torch.no_grad():
        assert control.evaluate(control.model, "val")["length"] == EVALUATION_LIMIT
