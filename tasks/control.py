"""Control: PPO on Gymnasium environments with discrete actions."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from harness import Batch, Recipe, Task, Workload, register_task
from harness.activations import observe
from harness.streams import Streams
from harness.task import Objective
from tasks.models import Activation
from tasks.ppo import ActorCritic, Array, PPORecipe, generalized_advantages, ppo_objective

PROBE_SAMPLES = 256
RECENT_EPISODES = 100


class Episode:
    """The present episode of one environment, from a reset with a seed of its own.

    Seed and actions are its whole state: a deterministic environment is brought back by replaying them, whatever it
    keeps inside.
    """

    def __init__(self, environment: str) -> None:
        self.env = gymnasium.make(environment, disable_env_checker=True)

    def reset(self, seed: int) -> None:
        """Begins a new episode."""
        self.seed = seed
        self.actions: list[int] = []
        self.total = 0.0
        self.observation: Array = self.env.reset(seed=seed)[0]

    def step(self, action: int) -> tuple[float, bool, bool]:
        """Reward, terminated, truncated; the observation is kept."""
        self.observation, reward, terminated, truncated, _ = self.env.step(action)
        self.actions.append(action)
        self.total += float(reward)
        return float(reward), terminated, truncated

    def state_dict(self) -> dict[str, Any]:
        """The seed of the reset and the actions since."""
        return {"seed": self.seed, "actions": list(self.actions)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replays the episode."""
        self.reset(state["seed"])
        for action in state["actions"]:
            self.step(action)


def random_observations(environment: str, seed: int, samples: int) -> Array:
    """Consecutive observations under a uniformly random policy: (samples, *observation)."""
    rng, episode = np.random.default_rng(seed), Episode(environment)
    actions = int(episode.env.action_space.n)  # type: ignore[attr-defined]
    over, observations = True, []
    for _ in range(samples):
        if over:
            episode.reset(_seed(rng))
        observations.append(episode.observation)
        _, terminated, truncated = episode.step(int(rng.integers(actions)))
        over = terminated or truncated
    return np.stack(observations)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def actor_of(model: nn.Module) -> nn.Module:
    """What gives the logits alone where that can be told apart: the critic costs as much again at every step."""
    return model.actor if type(model) is ActorCritic else _Logits(model)


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, observations: Tensor) -> Tensor:
        logits: Tensor = self.model(observations)[0]
        return logits


class PPO(Workload):
    """Minibatches of rollouts that the present model collects; a new rollout when one is used up."""

    def __init__(self, task: ControlTask, recipe: PPORecipe, streams: Streams, device: torch.device) -> None:
        self._recipe, self._device = recipe, device
        self._dtype = torch.get_default_dtype()
        self._resets, self._draws = streams.numpy("environment"), streams.numpy("data")
        self._episodes = [Episode(task.environment) for _ in range(recipe.envs)]
        for episode in self._episodes:
            episode.reset(_seed(self._resets))
        space = self._episodes[0].env.action_space
        if not isinstance(space, gymnasium.spaces.Discrete):
            raise ValueError(f"environment: found {task.environment!r} with actions {space}, allowed: discrete actions")
        self._actions = int(space.n)
        probe = random_observations(task.environment, streams.seed("probe"), PROBE_SAMPLES)
        self.probe_inputs = self._tensor(probe)
        with streams.default("init"):
            model = ActorCritic(probe.shape[1], self._actions, list(task.hidden), task.activation)
        self.model = model.to(device)
        self._evaluations = [Episode(task.environment) for _ in range(task.evaluation_episodes)]
        self._evaluation_seeds = {
            split: [_seed(rng) for _ in self._evaluations]
            for split in ("val", "test")
            for rng in [np.random.default_rng(streams.seed(f"evaluation/{split}"))]
        }
        self._rollout: Batch = {}
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0
        self._env_steps = 0
        self._returns: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._explained_variance = float("nan")

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self._device, self._dtype)

    def next_batch(self) -> Batch:
        if self._position == len(self._order):
            self._rollout = self._collect()
            samples = self._recipe.envs * self._recipe.rollout
            order = np.concatenate([self._draws.permutation(samples) for _ in range(self._recipe.epochs)])
            self._order, self._position = torch.from_numpy(order).to(self._device), 0
        indices = self._order[self._position : self._position + self._recipe.batch]
        self._position += self._recipe.batch
        batch = {name: tensor[indices] for name, tensor in self._rollout.items()}
        if self._recipe.normalize_advantages:
            # Here and not in the objective, so that ranks that share a minibatch normalise it as one.
            advantages = batch["advantages"]
            batch["advantages"] = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        return batch

    def _collect(self) -> Batch:
        """Acts in every environment for a rollout, and estimates advantages and returns."""
        recipe = self._recipe
        shape = (recipe.rollout, recipe.envs)
        observations = np.empty((recipe.rollout + 1, recipe.envs, self.probe_inputs.shape[1]))
        actions = np.empty(shape, dtype=np.int64)
        rewards = np.empty(shape)
        terminated, ended = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        truncated: dict[tuple[int, int], Array] = {}
        # The largest of logits plus Gumbel noise is a sample of their softmax.
        noise = self._draws.gumbel(size=(*shape, self._actions))
        with observe(self.model):
            actor = actor_of(self.model)
            for step in range(recipe.rollout):
                observations[step] = [episode.observation for episode in self._episodes]
                logits = actor(self._tensor(observations[step])).cpu().numpy()
                actions[step] = (logits + noise[step]).argmax(axis=1)
                for index, action in enumerate(actions[step].tolist()):
                    episode = self._episodes[index]
                    rewards[step, index], over, cut = episode.step(action)
                    if over or cut:
                        terminated[step, index], ended[step, index] = over, True
                        if not over:
                            truncated[step, index] = episode.observation
                        self._returns.append(episode.total)
                        episode.reset(_seed(self._resets))
            observations[-1] = [episode.observation for episode in self._episodes]
            self._env_steps += actions.size
            logits, values = self.model(self._tensor(observations.reshape(-1, observations.shape[-1])))
