"""Control: PPO on Gymnasium environments with discrete actions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from harness import Batch, Objective, Recipe, Task, Workload, register_task
from harness.activations import observe
from harness.streams import Streams
from tasks.models import Activation
from tasks.ppo import ActorCritic, Array, PPORecipe, Trajectory, explained_variance, ppo_objective, rollout_batch

PROBE_SAMPLES = 256
RECENT_EPISODES = 100


class Episode:
    """The present episode of one environment, begun by a reset with a seed of its own.

    Seed and actions are its whole state: a deterministic environment is brought back by replaying them, whatever it
    keeps inside.

    Raises:
        ValueError: if the environment's actions are not discrete.
    """

    def __init__(self, environment: str) -> None:
        self.env: gymnasium.Env[Any, Any] = gymnasium.make(environment, disable_env_checker=True)
        space = self.env.action_space
        if not isinstance(space, gymnasium.spaces.Discrete):
            raise ValueError(f"environment: found {environment!r} with actions {space}, allowed: discrete actions")
        self.choices = int(space.n)

    def reset(self, rng: np.random.Generator) -> None:
        """Begins a new episode under a seed drawn from a stream."""
        self._begin(int(rng.integers(2**31)))

    def _begin(self, seed: int) -> None:
        self.seed = seed
        self.actions: list[int] = []
        self.total = 0.0
        self.observation: Array = self.env.reset(seed=seed)[0]

    def step(self, action: int) -> tuple[float, bool, bool]:
        """Reward, terminated, truncated; the observation and the sum of rewards are kept."""
        self.observation, reward, terminated, truncated, _ = self.env.step(action)
        self.actions.append(action)
        self.total += float(reward)
        return float(reward), terminated, truncated

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "actions": list(self.actions)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._begin(state["seed"])
        for action in state["actions"]:
            self.step(action)


def random_observations(environment: str, seed: int, samples: int) -> Array:
    """Consecutive observations under a uniformly random policy: (samples, ...)."""
    rng, episode = np.random.default_rng(seed), Episode(environment)
    observations: list[Array] = []
    over = True
    while len(observations) < samples:
        if over:
            episode.reset(rng)
        observations.append(episode.observation)
        _, terminated, truncated = episode.step(int(rng.integers(episode.choices)))
        over = terminated or truncated
    return np.stack(observations)


def greedy_episodes(model: nn.Module, episodes: list[Episode], device: torch.device) -> None:
    """Plays every episode to its end with the most probable actions."""
    observations = np.stack([episode.observation for episode in episodes])
    actor, running = _actor(model), list(range(len(episodes)))
    while running:
        actions = actor(_tensor(observations, device)).argmax(dim=1).tolist()
        still = []
        for index in running:
            _, terminated, truncated = episodes[index].step(actions[index])
            observations[index] = episodes[index].observation
            if not (terminated or truncated):
                still.append(index)
        running = still


def _actor(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """What gives the logits alone, where it can be told apart: the critic would double the cost of acting."""
    return model.actor if type(model) is ActorCritic else lambda observations: model(observations)[0]


def _tensor(observations: Array, device: torch.device) -> Tensor:
    return torch.as_tensor(observations, dtype=torch.get_default_dtype(), device=device)


class PPO(Workload):
    """Minibatches of a rollout that the present model collected; a new rollout when it is used up."""

    def __init__(self, task: ControlTask, recipe: PPORecipe, streams: Streams, device: torch.device) -> None:
        self._recipe, self._device, self._streams = recipe, device, streams
        self._resets, self._draws = streams.numpy("environment"), streams.numpy("data")
        self._episodes = [Episode(task.environment) for _ in range(recipe.envs)]
        self._evaluations = [Episode(task.environment) for _ in range(task.evaluation_episodes)]
        for episode in self._episodes:
            episode.reset(self._resets)
        self.probe_inputs = _tensor(random_observations(task.environment, streams.seed("probe"), PROBE_SAMPLES), device)
        with streams.default("init"):
            sizes = self.probe_inputs.shape[1], self._episodes[0].choices
            self.model = ActorCritic(*sizes, list(task.hidden), task.activation).to(device)
        self._rollout: Batch = {}
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0
        self._env_steps = 0
        self._returns: deque[float] = deque(maxlen=RECENT_EPISODES)

    def next_batch(self) -> Batch:
        if self._position == len(self._order):
            with observe(self.model):
                self._rollout = rollout_batch(self.model, self._act(), self._recipe, self._device)
            size = self._recipe.envs * self._recipe.rollout
            order = np.concatenate([self._draws.permutation(size) for _ in range(self._recipe.epochs)])
            self._order, self._position = torch.from_numpy(order), 0
        indices = self._order[self._position : self._position + self._recipe.batch].to(self._device)
        self._position += self._recipe.batch
        batch = {name: tensor[indices] for name, tensor in self._rollout.items()}
        if self._recipe.normalize_advantages:
            # Here and not in the objective: ranks that share a minibatch must normalise it as a whole.
            advantages = batch["advantages"]
            batch["advantages"] = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        return batch

    def _act(self) -> Trajectory:
        """Acts in every environment for one rollout; an episode that ends is followed by a new one at once."""
        steps, envs = shape = self._recipe.rollout, self._recipe.envs
        observations = np.empty((steps + 1, envs, *self.probe_inputs.shape[1:]), dtype=np.float32)
        actions, rewards = np.empty(shape, dtype=np.int64), np.empty(shape)
        terminated, ended = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        truncated: dict[tuple[int, int], Array] = {}
        # The place of the largest of logits plus Gumbel noise is a sample of their softmax.
        noise = self._draws.gumbel(size=(*shape, self._episodes[0].choices))
        actor = _actor(self.model)
        for step in range(steps):
            observations[step] = [episode.observation for episode in self._episodes]
            logits = actor(_tensor(observations[step], self._device)).cpu().numpy()
            actions[step] = (logits + noise[step]).argmax(axis=1)
            for index, action in enumerate(actions[step].tolist()):
                episode = self._episodes[index]
                rewards[step, index], over, cut = episode.step(action)
                if over or cut:
                    terminated[step, index], ended[step, index] = over, True
                    if not over:
                        truncated[step, index] = episode.observation
                    self._returns.append(episode.total)
                    episode.reset(self._resets)
        observations[steps] = [episode.observation for episode in self._episodes]
        self._env_steps += steps * envs
        return Trajectory(observations, actions, rewards, terminated, ended, truncated)

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        return ppo_objective(model, batch, self._recipe)

    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> dict[str, float]:
        rng = np.random.default_rng(self._streams.seed(f"evaluation/{split}"))
        for episode in self._evaluations:
            episode.reset(rng)
        greedy_episodes(model, self._evaluations, self._device)
        returns = [episode.total for episode in self._evaluations]
        lengths = [len(episode.actions) for episode in self._evaluations]
        return {
            "return": sum(returns) / len(returns),
            "return_min": min(returns),
            "length": sum(lengths) / len(lengths),
        }

    def progress(self) -> dict[str, float]:
        """`env_steps`; `return`, the mean over the last 100 finished episodes; `explained_variance` of the present rollout."""
        progress = {"env_steps": float(self._env_steps)}
        if self._returns:
            progress["return"] = sum(self._returns) / len(self._returns)
        if self._rollout:
            progress["explained_variance"] = explained_variance(self._rollout)
        return progress

    def state_dict(self) -> dict[str, Any]:
        return {
            "rollout": self._rollout,
            "order": self._order,
            "position": self._position,
            "episodes": [episode.state_dict() for episode in self._episodes],
            "env_steps": self._env_steps,
            "returns": list(self._returns),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rollout = {name: tensor.to(self._device) for name, tensor in state["rollout"].items()}
        self._order, self._position = state["order"], state["position"]
        for episode, saved in zip(self._episodes, state["episodes"], strict=True):
            episode.load_state_dict(saved)
        self._env_steps = state["env_steps"]
        self._returns = deque(state["returns"], maxlen=RECENT_EPISODES)


@dataclass
class ControlTask(Task):
    """PPO on one environment."""

    offers = frozenset({"gates", "policy"})
    metric = "val/return"
    select = "last"
    recipe_class = PPORecipe
    environment: ClassVar[str]

    hidden: tuple[int, ...] = (64, 64)
    activation: Activation = "tanh"
    evaluation_episodes: int = 20

    def __post_init__(self) -> None:
        if self.evaluation_episodes < 1:
            raise ValueError(f"evaluation_episodes: found {self.evaluation_episodes}, must be positive")

    def recipe(self) -> PPORecipe:
        return PPORecipe()

    def workload(self, recipe: Recipe, streams: Streams, device: torch.device) -> Workload:
        assert isinstance(recipe, PPORecipe)
        return PPO(self, recipe, streams, device)


@register_task("cartpole/ppo")
class CartPole(ControlTask):
    """PPO on CartPole-v1: keep the pole up for 500 steps; the validation return is that of the greedy policy."""

    environment = "CartPole-v1"
    source = "Gymnasium's CartPole-v1; Schulman et al. 2017, arXiv 1707.06347"
