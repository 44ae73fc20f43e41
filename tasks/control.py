"""Control: PPO on Gymnasium environments with discrete actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from harness import Batch, Objective, Recipe, Task, Workload, register_task
from harness.activations import observe
from harness.streams import Streams
from tasks.environments import Array, Episode, check_environment, evaluation_limit, random_observations
from tasks.models import Activation
from tasks.normalisation import ObservationNorm, RewardScale
from tasks.ppo import ActorCritic, PPORecipe, Trajectory, acting, explained_variance, ppo_objective, rollout_batch
from tasks.signals import PatternSignals, Returns

PROBE_SAMPLES = 256
PROBE_SEED = 0
"""Of the random policy that the probe batch is collected with: one batch for all runs of an environment."""


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


class PPO(Workload):
    """Minibatches of a rollout that the present model collected; a new rollout when it is used up."""

    def __init__(self, task: ControlTask, recipe: PPORecipe, streams: Streams, device: torch.device) -> None:
        self._recipe, self._device, self._streams = recipe, device, streams
        self._resets, self._draws = streams.numpy("environment"), streams.numpy("data")
        limit = evaluation_limit(task.environment, task.time_limit)
        self._episodes = [Episode(task.environment, task.time_limit) for _ in range(recipe.envs)]
        self._evaluations = [Episode(task.environment, limit) for _ in range(task.evaluation_episodes)]
        for episode in self._episodes:
            episode.reset(self._resets)
        observations = random_observations(task.environment, PROBE_SEED, PROBE_SAMPLES)
        self.probe_inputs = _tensor(observations, device)
        sizes = observations.shape[1], self._episodes[0].choices
        with streams.default("init"):
            model = ActorCritic(*sizes, list(task.hidden), task.activation, recipe.normalize_observations)
        if model.normalize is not None:
            model.normalize.update(observations)
        self.model = model.to(device)
        self._rollout: Batch = {}
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0
        self._env_steps = 0
        self._measured = -1
        self._signals, self._returns = PatternSignals(self.probe_inputs), Returns()
        self._scale = RewardScale(recipe.envs, recipe.gamma) if recipe.normalize_rewards else None

    def next_batch(self) -> Batch:
        if self._position == len(self._order):
            self._collect()
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

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """One group, or two where the critic has a learning rate of its own."""
        if self._recipe.critic_lr is None:
            return super().parameter_groups(model)
        groups: dict[str, list[nn.Parameter]] = {"actor": [], "critic": []}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups["critic" if "critic" in name.split(".") else "actor"].append(parameter)
        return [{"params": groups["actor"]}, {"params": groups["critic"], "lr": self._recipe.critic_lr}]

    def _collect(self) -> None:
        """A new rollout of the present model."""
        self._measure()
        if self._rollout:
            for module in self.model.modules():
                if isinstance(module, ObservationNorm):
                    module.update(self._rollout["observations"].cpu().numpy())
        actor = acting(self.model)
        with observe(self.model):
            trajectory = self._act(actor)
            if self._scale is not None:
                trajectory = replace(trajectory, rewards=self._scale(trajectory.rewards, trajectory.ended))
            self._rollout = rollout_batch(self.model, trajectory, self._recipe, self._device)

    def _act(self, actor: Callable[[Tensor], Tensor]) -> Trajectory:
        """Acts in every environment for one rollout; an episode that ends is followed by a new one at once."""
        steps, envs = shape = self._recipe.rollout, self._recipe.envs
        observations = np.empty((steps + 1, envs, *self.probe_inputs.shape[1:]), dtype=np.float32)
        actions, rewards = np.empty(shape, dtype=np.int64), np.empty(shape)
        terminated, ended = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        truncated: dict[tuple[int, int], Array] = {}
        # The place of the largest of logits plus Gumbel noise is a sample of their softmax.
        noise = self._draws.gumbel(size=(*shape, self._episodes[0].choices))
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
                    self._returns.add(self._env_steps + (step + 1) * envs, episode.total)
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
        """`env_steps`; `return` over the last 100 finished episodes, `return_last_fifth` and `return_last_tenth` over that
        part of the steps so far; `oui_actor`, `oui_critic` and `flip_rate` of the last update; `explained_variance` of its
        rollout.
        """
        if self._rollout and self._position == len(self._order):
            self._measure()
        progress = {"env_steps": float(self._env_steps)} | self._returns.values(self._env_steps) | self._signals.values
        if self._rollout:
            progress["explained_variance"] = explained_variance(self._rollout)
        return progress

    def _measure(self) -> None:
        """Once an update, before its rollout is collected or where the one before is reported."""
        if self._measured < self._env_steps:
            self._signals.measure(self.model)
            self._measured = self._env_steps

    def state_dict(self) -> dict[str, Any]:
        return {
            "rollout": self._rollout,
            "order": self._order,
            "position": self._position,
            "episodes": [episode.state_dict() for episode in self._episodes],
            "env_steps": self._env_steps,
            "measured": self._measured,
            "returns": self._returns.state_dict(),
            "signals": self._signals.state_dict(),
            "scale": self._scale.state_dict() if self._scale else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rollout = {name: tensor.to(self._device) for name, tensor in state["rollout"].items()}
        self._order, self._position = state["order"], state["position"]
        for episode, saved in zip(self._episodes, state["episodes"], strict=True):
            episode.load_state_dict(saved)
        self._env_steps, self._measured = state["env_steps"], state["measured"]
        self._returns.load_state_dict(state["returns"])
        self._signals.load_state_dict(state["signals"])
        if self._scale is not None:
            self._scale.load_state_dict(state["scale"])


@dataclass
class ControlTask(Task):
    """PPO on one environment."""

    offers = frozenset({"gates", "policy"})
    metric = "val/return"
    select = "last"
    recipe_class = PPORecipe
    environment = ""

    hidden: tuple[int, ...] = (64, 64)
    activation: Activation = "tanh"
    evaluation_episodes: int = 20
    time_limit: int | None = None

    def __post_init__(self) -> None:
        if self.evaluation_episodes < 1:
            raise ValueError(f"evaluation_episodes: found {self.evaluation_episodes}, must be positive")
        if self.time_limit is not None and self.time_limit < 1:
            raise ValueError(f"time_limit: found {self.time_limit}, must be positive")

    def recipe(self) -> Recipe:
        return self.recipe_class()

    def check(self, recipe: Recipe) -> None:
        check_environment(self.environment)

    def workload(self, recipe: Recipe, streams: Streams, device: torch.device) -> Workload:
        assert isinstance(recipe, PPORecipe)
        return PPO(self, recipe, streams, device)


SOURCE = "Gymnasium's {}; Schulman et al. 2017, arXiv 1707.06347"


@dataclass(frozen=True, kw_only=True)
class AcrobotRecipe(PPORecipe):
    """300,000 environment steps unless given."""

    budget: ClassVar[int] = 300_000


@dataclass(frozen=True, kw_only=True)
class LunarLanderRecipe(PPORecipe):
    """A million environment steps unless given."""

    budget: ClassVar[int] = 1_000_000


@register_task("cartpole/ppo")
class CartPole(ControlTask):
    """PPO on CartPole-v1: keep the pole up for 500 steps; the validation return is that of the greedy policy."""

    environment = "CartPole-v1"
    source = SOURCE.format("CartPole-v1")


@register_task("acrobot/ppo")
class Acrobot(ControlTask):
    """PPO on Acrobot-v1: swing the tip above the line; minus one for each step until then, 500 at most."""

    recipe_class = AcrobotRecipe
    environment = "Acrobot-v1"
    source = SOURCE.format("Acrobot-v1")


@register_task("lunarlander/ppo")
class LunarLander(ControlTask):
    """PPO on LunarLander-v3: land between two flags with four actions. Needs Box2D: the extra `box2d`."""

    recipe_class = LunarLanderRecipe
    environment = "LunarLander-v3"
    source = SOURCE.format("LunarLander-v3")


@register_task("mountaincar/ppo")
class MountainCar(ControlTask):
    """PPO on MountainCar-v0, whose reward says nothing before the goal: CleanRL's settings stay at -200."""

    environment = "MountainCar-v0"
    source = SOURCE.format("MountainCar-v0")


@register_task("gymnasium/ppo")
class AnyEnvironment(ControlTask):
    """PPO on any environment that Gymnasium knows by id and whose actions are discrete; observations are made flat."""

    source = "Schulman et al. 2017, arXiv 1707.06347"

    environment: str = "CartPole-v1"
