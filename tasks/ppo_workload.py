"""PPO as a workload: rollouts of the present model, minibatches of them, and greedy episodes as evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from harness import Batch, Objective, Workload, WorkloadStack
from harness.activations import observe
from harness.streams import Streams
from tasks.environments import Array, Episode, evaluation_limit, random_observations
from tasks.normalisation import ObservationNorm, RewardScale
from tasks.ppo import ActorCritic, PPORecipe, Trajectory, acting, explained_variance, ppo_objective, rollout_batch
from tasks.signals import PatternSignals, Returns

PROBE_SAMPLES = 256
PROBE_SEED = 0
"""Of the random policy that the probe batch is collected with: one batch for all runs of an environment."""


@dataclass(frozen=True)
class Setting:
    """What is played, and what plays: of a task, as far as a workload needs it."""

    environment: str
    hidden: tuple[int, ...]
    activation: str
    evaluation_episodes: int
    time_limit: int | None


def greedy_episodes(model: nn.Module, episodes: list[Episode], device: torch.device) -> None:
    """Plays every episode to its end with the most probable actions."""
    observations = np.stack([episode.observation for episode in episodes])
    actor, running = acting(model), list(range(len(episodes)))
    while running:
        actions = actor(_tensor(observations, device)).argmax(dim=1).tolist()
        still = []
        for index in running:
            _, terminated, truncated = episodes[index].step(actions[index])
            observations[index] = episodes[index].observation
            if not (terminated or truncated):
                still.append(index)
        running = still


def _tensor(observations: Array, device: torch.device) -> Tensor:
    return torch.as_tensor(observations, dtype=torch.get_default_dtype(), device=device)


def play(seeds: Sequence[PPO], actors: Callable[[Tensor], Tensor]) -> Trajectory:
    """Acts in every environment of every seed for one rollout; an episode that ends is followed by a new one at once.

    All that is random is drawn from each seed's own streams, in the order in which it would draw them alone.

    Args:
        seeds: of one cell.
        actors: (K, environments, features) to logits (K, environments, actions).

    Returns:
        What happened, (time, K × environments): the environments of the first seed come first.
    """
    recipe, count = seeds[0].recipe, len(seeds)
    steps, envs = recipe.rollout, recipe.envs
    episodes = [episode for seed in seeds for episode in seed.episodes]
    features, shape = seeds[0].probe_inputs.shape[1:], (steps, count * envs)
    observations = np.empty((steps + 1, count * envs, *features), dtype=np.float32)
    actions, rewards = np.empty(shape, dtype=np.int64), np.empty(shape)
    terminated, ended = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    truncated: dict[tuple[int, int], Array] = {}
    # The place of the largest of logits plus Gumbel noise is a sample of their softmax.
    noise = np.stack([seed.draws.gumbel(size=(steps, envs, episodes[0].choices)) for seed in seeds], axis=1)
    for step in range(steps):
        observations[step] = [episode.observation for episode in episodes]
        logits = actors(seeds[0].tensor(observations[step].reshape(count, envs, *features))).cpu().numpy()
        actions[step] = (logits + noise[step]).argmax(axis=-1).reshape(-1)
        gained = []
        for index, (episode, action) in enumerate(zip(episodes, actions[step].tolist(), strict=True)):
            reward, over, cut = episode.step(action)
            gained.append(reward)
            if over or cut:
                seed = seeds[index // envs]
                terminated[step, index], ended[step, index] = over, True
                if not over:
                    truncated[step, index] = episode.observation
                seed.returns.add(seed.env_steps + (step + 1) * envs, episode.total)
                episode.reset(seed.resets)
        rewards[step] = gained
    observations[steps] = [episode.observation for episode in episodes]
    for number, seed in enumerate(seeds):
        own = slice(number * envs, (number + 1) * envs)
        rewards[:, own] = seed.count(rewards[:, own], ended[:, own])
    return Trajectory(observations, actions, rewards, terminated, ended, truncated)


class PPO(Workload):
    """Minibatches of a rollout that the present model collected; a new rollout when it is used up."""

    def __init__(self, setting: Setting, recipe: PPORecipe, streams: Streams, device: torch.device) -> None:
        self.recipe, self._device, self._streams = recipe, device, streams
        self.resets, self.draws = streams.numpy("environment"), streams.numpy("data")
        limit = evaluation_limit(setting.environment, setting.time_limit)
        self.episodes = [Episode(setting.environment, setting.time_limit) for _ in range(recipe.envs)]
        self._evaluations = [Episode(setting.environment, limit) for _ in range(setting.evaluation_episodes)]
        for episode in self.episodes:
            episode.reset(self.resets)
        observations = random_observations(setting.environment, PROBE_SEED, PROBE_SAMPLES)
        self.probe_inputs = _tensor(observations, device)
        sizes = observations.shape[1], self.episodes[0].choices
        with streams.default("init"):
            model = ActorCritic(*sizes, list(setting.hidden), setting.activation, recipe.normalize_observations)
        if model.normalize is not None:
            model.normalize.update(observations)
        self.model = model.to(device)
        self.rollout: Batch = {}
        self.order = torch.empty(0, dtype=torch.int64)
        self._position = 0
        self.env_steps = 0
        self._measured = -1
        self._signals, self.returns = PatternSignals(self.probe_inputs), Returns()
        self._scale = RewardScale(recipe.envs, recipe.gamma) if recipe.normalize_rewards else None

    @property
    def used_up(self) -> bool:
        """Whether the next batch needs a new rollout."""
        return self._position == len(self.order)

    def next_batch(self) -> Batch:
        if self.used_up:
            self._collect()
        place = self.pass_over()
        indices = self.order[place * self.recipe.batch : self._position].to(self._device)
        batch = {name: tensor[indices] for name, tensor in self.rollout.items()}
        if self.recipe.normalize_advantages:
            # Here and not in the objective: ranks that share a minibatch must normalise it as a whole.
            advantages = batch["advantages"]
            batch["advantages"] = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        return batch

    def pass_over(self) -> int:
        """Counts the next minibatch of the rollout as used, and returns its number."""
        self._position += self.recipe.batch
        return self._position // self.recipe.batch - 1

    def stack(self, peers: Sequence[Workload]) -> WorkloadStack | None:
        from tasks.ppo_stack import PPOStack, plain  # which builds on this module

        seeds = [peer for peer in peers if isinstance(peer, PPO)]
        return PPOStack(seeds) if all(map(plain, seeds)) else None

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """One group, or two where the critic has a learning rate of its own."""
        if self.recipe.critic_lr is None:
            return super().parameter_groups(model)
        groups: dict[str, list[nn.Parameter]] = {"actor": [], "critic": []}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups["critic" if "critic" in name.split(".") else "actor"].append(parameter)
        return [{"params": groups["actor"]}, {"params": groups["critic"], "lr": self.recipe.critic_lr}]

    def _collect(self) -> None:
        """A new rollout of the present model."""
        self.before_rollout()
        actor = acting(self.model)
        with observe(self.model):
            trajectory = play([self], lambda observations: actor(observations[0]).unsqueeze(0))
            self.take(rollout_batch(self.model, trajectory, self.recipe, self._device))

    def before_rollout(self) -> None:
        """What is due between two rollouts: signals, and the moments of observations."""
        self._measure()
        if self.rollout:
            for module in self.model.modules():
                if isinstance(module, ObservationNorm):
                    module.update(self.rollout["observations"].cpu().numpy())

    def take(self, rollout: Batch) -> None:
        """Takes up a rollout, and draws the order of its samples."""
        self.rollout = rollout
        size = self.recipe.envs * self.recipe.rollout
        order = np.concatenate([self.draws.permutation(size) for _ in range(self.recipe.epochs)])
        self.order, self._position = torch.from_numpy(order), 0

    def count(self, rewards: Array, ended: Array) -> Array:
        """Counts the steps of a rollout, and scales its rewards if the recipe says so: (time, environments)."""
        self.env_steps += rewards.size
        return rewards if self._scale is None else self._scale(rewards, ended)

    def tensor(self, observations: Array) -> Tensor:
        """Observations as the model takes them."""
        return _tensor(observations, self._device)

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        return ppo_objective(model, batch, self.recipe)

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
        """`env_steps`; `return` over the last 100 finished episodes, `return_last_fifth` and `return_last_tenth` over that
        part of the steps so far; `oui_actor`, `oui_critic` and `flip_rate` of the last update; `explained_variance` of its
        rollout.
        """
        if self.rollout and self._position == len(self.order):
            self._measure()
        progress = {"env_steps": float(self.env_steps)} | self.returns.values(self.env_steps) | self._signals.values
        if self.rollout:
            progress["explained_variance"] = explained_variance(self.rollout)
        return progress

    def _measure(self) -> None:
        """Once an update, before its rollout is collected or where the one before is reported."""
        if self._measured < self.env_steps:
            self._signals.measure(self.model)
            self._measured = self.env_steps

    def state_dict(self) -> dict[str, Any]:
        return {
            "rollout": self.rollout,
            "order": self.order,
            "position": self._position,
            "episodes": [episode.state_dict() for episode in self.episodes],
            "env_steps": self.env_steps,
            "measured": self._measured,
            "returns": self.returns.state_dict(),
            "signals": self._signals.state_dict(),
            "scale": self._scale.state_dict() if self._scale else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rollout = {name: tensor.to(self._device) for name, tensor in state["rollout"].items()}
        self.order, self._position = state["order"], state["position"]
        for episode, saved in zip(self.episodes, state["episodes"], strict=True):
            episode.load_state_dict(saved)
        self.env_steps, self._measured = state["env_steps"], state["measured"]
        self.returns.load_state_dict(state["returns"])
        self._signals.load_state_dict(state["signals"])
        if self._scale is not None:
            self._scale.load_state_dict(state["scale"])
