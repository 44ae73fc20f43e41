"""PPO under several seeds as one: rollouts side by side, one forward pass of all actors, one objective."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness import Batch, Objective, WorkloadStack
from tasks.environments import Array
from tasks.ppo import ActorCritic, Trajectory, advantages_of, clipped_objective, samples
from tasks.ppo_workload import PPO, play
from tasks.stacked import Parameters, forward, is_plain


def plain(workload: PPO) -> bool:
    """Whether a workload's model is what this stack computes: no method has changed it, and nothing has hooked into it."""
    model = workload.model
    return type(model) is ActorCritic and model.normalize is None and is_plain(model.actor) and is_plain(model.critic)


class PPOStack(WorkloadStack):
    """K seeds of one cell. They stand at one step, so that all of them need a new rollout at the same time."""

    def __init__(self, seeds: Sequence[PPO]) -> None:
        self._seeds, self._recipe = list(seeds), seeds[0].recipe
        model = seeds[0].model
        assert isinstance(model, ActorCritic)
        self._actor, self._critic = forward(model.actor, "actor."), forward(model.critic, "critic.")
        self._minibatches: Batch = {}
        if not seeds[0].used_up:
            rollouts = [seed.rollout for seed in seeds]
            self._shuffle({name: torch.stack([rollout[name] for rollout in rollouts]) for name in rollouts[0]})

    def next_batch(self) -> Batch:
        if self._seeds[0].used_up:
            rollout = self._collect()
            for number, seed in enumerate(self._seeds):
                seed.take({name: tensor[number] for name, tensor in rollout.items()})
            self._shuffle(rollout)
        for seed in self._seeds:
            place = seed.pass_over()
        return {name: tensor[place] for name, tensor in self._minibatches.items()}

    def _shuffle(self, rollout: Batch) -> None:
        """The minibatches of a rollout in the order in which they are used: (minibatches, K, samples, ...)."""
        batch, count = self._recipe.batch, len(self._seeds)
        size = self._recipe.envs * self._recipe.rollout
        orders = torch.stack([seed.order + number * size for number, seed in enumerate(self._seeds)])
        places = orders.view(count, -1, batch).transpose(0, 1).reshape(-1)
        self._minibatches = {
            name: tensor.flatten(0, 1)[places].view(-1, count, batch, *tensor.shape[2:])
            for name, tensor in rollout.items()
        }
        if self._recipe.normalize_advantages:
            advantages = self._minibatches["advantages"]
            mean, deviation = (each.unsqueeze(-1) for each in (advantages.mean(dim=-1), advantages.std(dim=-1)))
            self._minibatches["advantages"] = (advantages - mean) / (deviation + 1e-8)

    @torch.no_grad()
    def _collect(self) -> Batch:
        """The next rollouts of all seeds: (K, time × environments, ...)."""
        for seed in self._seeds:
            seed.before_rollout()
        parameters = self._parameters()
        trajectory = play(self._seeds, lambda observations: self._actor(parameters, observations))
        return self._batch(parameters, trajectory)

    def _parameters(self) -> Parameters:
        """Those of the seeds' models, which are views into the tensors of the stack."""
        models = [dict(seed.model.named_parameters()) for seed in self._seeds]
        return {name: torch.stack([model[name] for model in models]) for name in models[0]}

    def _batch(self, parameters: Parameters, trajectory: Trajectory) -> Batch:
        count, recipe = len(self._seeds), self._recipe
        steps, envs = recipe.rollout, recipe.envs

        def by_seed(array: Array) -> Array:
            """(time, K × environments, ...) as (K, time, environments, ...)."""
            return np.ascontiguousarray(np.moveaxis(array.reshape(len(array), count, envs, *array.shape[2:]), 1, 0))

        observations = by_seed(trajectory.observations)
        inputs = self._seeds[0].tensor(observations.reshape(count, (steps + 1) * envs, -1))
        logits, estimates = self._actor(parameters, inputs), self._critic(parameters, inputs).squeeze(-1)
        estimated = estimates.cpu().numpy().reshape(count, steps + 1, envs)
        values = np.moveaxis(estimated, 0, 1).reshape(steps + 1, count * envs)
        next_values = values[1:].copy()
        for (step, env), observation in trajectory.truncated.items():
            seed = self._seeds[env // envs]
            next_values[step, env] = float(seed.model(seed.tensor(observation[np.newaxis]))[1])
        advantages = advantages_of(trajectory, values[:-1], next_values, recipe)
        size = steps * envs
        return samples(
            inputs[:, :size],
            torch.as_tensor(by_seed(trajectory.actions).reshape(count, size), device=inputs.device),
            logits[:, :size],
            estimates[:, :size],
            torch.as_tensor(by_seed(advantages).reshape(count, size), dtype=inputs.dtype, device=inputs.device),
        )

    def objective(self, parameters: dict[str, Tensor], batch: Batch) -> Objective:
        observations = batch["observations"]
        logits, values = self._actor(parameters, observations), self._critic(parameters, observations).squeeze(-1)
        return clipped_objective(logits, values, batch, self._recipe)
