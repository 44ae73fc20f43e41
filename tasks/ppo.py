"""Proximal policy optimization: recipe, actor-critic, advantages and objective. Source: arXiv 1707.06347, 1506.02438."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness import Batch, Objective, Recipe
from tasks import models
from tasks.normalisation import ObservationNorm


@dataclass(frozen=True, kw_only=True)
class PPORecipe(Recipe):
    """Hyper-parameters of PPO; the defaults are those of CleanRL's `ppo.py`, at 200,000 environment steps.

    The budget is given as `env_steps`, or as `steps`, optimizer steps; `resolve` fills in the other one.
    An update collects `envs` × `rollout` environment steps and takes `epochs` passes over them in minibatches of
    `batch`; every one is recorded unless `record_every` says otherwise. As in CleanRL, the learning rate is annealed from update
    to update and is constant within one; a phase that begins within an update begins with its own rate.

    >>> recipe = PPORecipe(env_steps=100_000).resolve()
    >>> recipe.updates, recipe.steps, recipe.env_steps
    (195, 3120, 99840)
    """

    budget: ClassVar[int] = 200_000
    """Environment steps where neither `env_steps` nor `steps` is given."""

    steps: int = 0  # 0: as many as env_steps make
    env_steps: int | None = None  # whole updates only; the rest is dropped
    batch: int = 128  # samples of a minibatch: a quarter of 4 environments × 128 steps
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: float = 2.5e-4
    eps: float = 1e-5
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    clip: float | None = 0.5
    envs: int = 4
    rollout: int = 128  # steps of each environment per update
    epochs: int = 4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    clip_values: bool = True
    normalize_advantages: bool = True
    normalize_observations: bool = False
    normalize_rewards: bool = False
    critic_lr: float | None = None  # that of the critic's weights; lr unless given
    entropy_coefficient: float = 0.01
    value_coefficient: float = 0.5

    def __post_init__(self) -> None:
        for name in ("envs", "rollout", "epochs", "clip_range", "batch", "accumulate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, must be positive")
        if self.critic_lr is not None and not self.critic_lr > 0:
            raise ValueError(f"critic_lr: found {self.critic_lr}, must be positive")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, must lie in [0, 1]")
        for name in ("steps", "entropy_coefficient", "value_coefficient"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, must not be negative")
        self._check_sizes()
        super().__post_init__()

    def _check_sizes(self) -> None:
        size = self.envs * self.rollout
        if size % self.batch or self.batch < 2:
            raise ValueError(f"batch: found {self.batch}, must be at least 2 and divide envs × rollout = {size}")
        if self.epochs * size % (self.batch * self.accumulate):
            minibatches = self.epochs * size // self.batch
            raise ValueError(
                f"accumulate: found {self.accumulate}, must divide the {minibatches} minibatches of an update"
            )
        if self.env_steps is not None and self.env_steps < size:
            raise ValueError(f"env_steps: found {self.env_steps}, must be at least one update, envs × rollout = {size}")
        if self.steps and self.env_steps and self.updates != self.env_steps // size:
            raise ValueError(
                f"steps: found {self.steps}, which is {self.updates * size} environment steps, and env_steps: "
                f"{self.env_steps}; give one of the two"
            )

    @property
    def steps_per_update(self) -> int:
        """Optimizer steps between two collections."""
        return self.epochs * self.envs * self.rollout // (self.batch * self.accumulate)

    @property
    def updates(self) -> int:
        """Collections of the whole run."""
        return math.ceil(self.length / self.steps_per_update)

    @property
    def length(self) -> int:
        updates = (self.env_steps or self.budget) // (self.envs * self.rollout)
        return self.steps or updates * self.steps_per_update

    def resolve(self) -> Self:
        every = self.record_every or self.steps_per_update  # signals are measured once an update
        env_steps = self.updates * self.envs * self.rollout
        return replace(super().resolve(), steps=self.length, env_steps=env_steps, record_every=every)

    def rate_factor(self, step: int) -> float:
        phase = max((start for start in self.switches if start <= step), default=0)
        return super().rate_factor(max(phase, step - step % self.steps_per_update))


class ActorCritic(nn.Module):
    """Actor and critic without shared weights: (samples, observations) to logits (samples, actions) and values (samples,).

    Weights are orthogonal with gain √2 in hidden layers, 0.01 in the actor's and 1 in the critic's last one; biases are 0.
    """

    def __init__(
        self, observations: int, actions: int, hidden: list[int], activation: str, normalize: bool = False
    ) -> None:
        super().__init__()
        self.normalize = ObservationNorm(observations) if normalize else None
        self.actor = _orthogonal(models.mlp(observations, hidden, actions, activation), 0.01)
        self.critic = _orthogonal(models.mlp(observations, hidden, 1, activation), 1.0)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        if self.normalize is not None:
            observations = self.normalize(observations)
        return self.actor(observations), self.critic(observations).squeeze(-1)


PLAIN = (nn.Linear, *models.ACTIVATIONS.values())


def acting(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Observations to logits, the critic left out where it can be told apart: it would double the cost of acting.

    The layers of a plain actor without hooks are called as functions, past the machinery of modules: the same numbers in
    two thirds of the time.
    """
    if type(model) is not ActorCritic:
        return lambda observations: model(observations)[0]
    if model.normalize is not None or not all(_plain(layer) for layer in model.actor):
        return lambda observations: model.actor(model.normalize(observations) if model.normalize else observations)
    layers = [layer.forward for layer in model.actor]

    def act(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return act


def _plain(layer: nn.Module) -> bool:
    return type(layer) in PLAIN and not layer._forward_hooks and not layer._forward_pre_hooks


def _orthogonal(network: nn.Sequential, last_gain: float) -> nn.Sequential:
    layers = [module for module in network if isinstance(module, nn.Linear)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, last_gain if layer is layers[-1] else math.sqrt(2))
        nn.init.zeros_(layer.bias)
    return network


Array = np.ndarray[Any, np.dtype[Any]]


def generalized_advantages(
    rewards: Array, values: Array, next_values: Array, terminated: Array, ended: Array, gamma: float, gae_lambda: float
) -> Array:
    r"""Generalized advantage estimates.

    .. math:: \delta_t = r_t + \gamma (1 - \mathrm{terminated}_t) V(s'_t) - V(s_t), \qquad
              A_t = \delta_t + \gamma \lambda (1 - \mathrm{ended}_t) A_{t+1}

    An episode that ends by truncation is cut off, not over: its last step still counts the value of the observation that
    it led to.

    Source: Schulman et al. 2016, arXiv 1506.02438; truncation: Pardo et al. 2018, arXiv 1712.00378.

    Args:
        rewards: (time, environments), as all that follow.
        values: :math:`V(s_t)`.
        next_values: :math:`V(s'_t)`, of the observation that step t led to, before any reset.
        terminated: whether the episode ended in a terminal state at step t.
        ended: whether it ended at step t for any reason.

    >>> one = np.ones((1, 1))
    >>> generalized_advantages(one, 0 * one, 10 * one, terminated=one == 0, ended=one == 1, gamma=0.9, gae_lambda=1).item()
    10.0
    """
    deltas = rewards + gamma * next_values * ~terminated - values
    carry = gamma * gae_lambda * ~ended
    advantages = np.empty_like(deltas)
    following = np.zeros_like(deltas[0])
    for step in reversed(range(len(deltas))):
        following = advantages[step] = deltas[step] + carry[step] * following
    return advantages


@dataclass(frozen=True)
class Trajectory:
    """What the environments answered during one rollout. Arrays are (time, environments), observations have more behind."""

    observations: Array
    """(time + 1, environments, ...): the one acted on at each step, and those that the rollout ended at."""
    actions: Array
    rewards: Array
    terminated: Array
    ended: Array
    truncated: dict[tuple[int, int], Array]
    """The last observation of each episode that was cut off, by the step and the environment of its end."""


def advantages_of(trajectory: Trajectory, values: Array, next_values: Array, recipe: PPORecipe) -> Array:
    """The generalized advantages of a rollout, (time, environments), under a recipe's discounts."""
    ends = trajectory.terminated, trajectory.ended
    return generalized_advantages(trajectory.rewards, values, next_values, *ends, recipe.gamma, recipe.gae_lambda)


@torch.no_grad()
def rollout_batch(model: nn.Module, trajectory: Trajectory, recipe: PPORecipe, device: torch.device) -> Batch:
    """A rollout as training samples: (time × environments, ...), with `log_probs` and `values` of the model that acted.

    One forward pass serves all of them: log-probabilities, values, and the values that truncated episodes and the
    rollout's end are continued with.
    """
    steps, envs = trajectory.actions.shape
    shape = trajectory.observations.shape[2:]
    observations = np.concatenate([trajectory.observations.reshape(-1, *shape), *_rows(trajectory.truncated)])
    inputs = torch.as_tensor(observations, dtype=torch.get_default_dtype(), device=device)
    logits, estimates = model(inputs)
    estimated = estimates.cpu().numpy()
    values = estimated[: (steps + 1) * envs].reshape(steps + 1, envs)
    next_values = values[1:].copy()
    for place, value in zip(trajectory.truncated, estimated[(steps + 1) * envs :], strict=True):
        next_values[place] = value
    advantages = advantages_of(trajectory, values[:-1], next_values, recipe)
    size = steps * envs
    actions = torch.as_tensor(trajectory.actions.reshape(-1), device=device)
    flat = torch.as_tensor(advantages.reshape(-1), dtype=inputs.dtype, device=device)
    return samples(inputs[:size], actions, logits[:size], estimates[:size], flat)


def samples(observations: Tensor, actions: Tensor, logits: Tensor, values: Tensor, advantages: Tensor) -> Batch:
    """Training samples of what the model saw, did and expected: (..., samples), observations and logits have more behind."""
    log_policy = functional.log_softmax(logits, dim=-1)
    return {
        "observations": observations,
        "actions": actions,
        "log_probs": log_policy.gather(-1, actions.unsqueeze(-1)).squeeze(-1),
        "values": values,
        "advantages": advantages,
        "returns": advantages + values,
    }


def _rows(observations: dict[tuple[int, int], Array]) -> list[Array]:
    return [observation[np.newaxis] for observation in observations.values()]


def explained_variance(rollout: Batch) -> float:
    """The share of the returns' variance that the values explained: 1 - Var(R - V) / Var(R), undefined for constant returns."""
    returns = rollout["returns"]
    return float(1 - (returns - rollout["values"]).var() / returns.var())


def ppo_objective(model: nn.Module, batch: Batch, recipe: PPORecipe) -> Objective:
    """The clipped objective of a model on a minibatch."""
    logits, values = model(batch["observations"])
    return clipped_objective(logits, values, batch, recipe)


def clipped_objective(logits: Tensor, values: Tensor, batch: Batch, recipe: PPORecipe) -> Objective:
    r"""The clipped surrogate, the entropy bonus and the value loss of a minibatch, or of one for each of K seeds.

    With the ratio :math:`\rho = \pi(a|s) / \pi_\mathrm{old}(a|s)` and the clip range :math:`\epsilon`,

    .. math:: L = -\overline{\min(\rho A, \mathrm{clip}(\rho, 1-\epsilon, 1+\epsilon) A)} - c_e \overline{H(\pi)}
              + c_v \tfrac12 \overline{\max((V - R)^2, (V_c - R)^2)}, \qquad
              V_c = V_\mathrm{old} + \mathrm{clip}(V - V_\mathrm{old}, -\epsilon, \epsilon)

    (without `clip_values` the first square alone). `approx_kl` is the estimator :math:`\overline{(\rho - 1) - \log\rho}`,
    `clip_fraction` the share of samples with :math:`|\rho - 1| > \epsilon`.

    Source: Schulman et al. 2017, arXiv 1707.06347; the value clipping as in CleanRL's `ppo.py`.

    Args:
        logits: (samples, actions), or (K, samples, actions).
        values: (samples,), or (K, samples), as all that is in the batch.
    """
    log_policy = functional.log_softmax(logits, dim=-1)
    log_ratio = log_policy.gather(-1, batch["actions"].unsqueeze(-1)).squeeze(-1) - batch["log_probs"]
    ratio, advantages, clip = log_ratio.exp(), batch["advantages"], recipe.clip_range
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    policy_loss = -surrogate.mean(dim=-1)
    entropy = -(log_policy.exp() * log_policy).sum(dim=-1).mean(dim=-1)
    errors = (values - batch["returns"]).square()
    if recipe.clip_values:
        clipped = batch["values"] + (values - batch["values"]).clamp(-clip, clip)
        errors = torch.maximum(errors, (clipped - batch["returns"]).square())
    value_loss = 0.5 * errors.mean(dim=-1)
    loss = policy_loss - recipe.entropy_coefficient * entropy + recipe.value_coefficient * value_loss
    with torch.no_grad():
        metrics = {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy.detach(),
            "approx_kl": (ratio - 1 - log_ratio).mean(dim=-1),
            "clip_fraction": ((ratio - 1).abs() > clip).to(ratio.dtype).mean(dim=-1),
        }
    return Objective(loss, {"logits": logits, "values": values}, advantages.shape[-1], metrics)
