"""Running normalisation of observations and rewards for PPO."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray[Any, np.dtype[Any]]

CLIP = 10.0
"""Normalised observations and rewards are clipped here, as is customary."""


def merge(count: float, mean: Array, variance: Array, samples: Array) -> tuple[float, Array, Array]:
    """Count, mean and variance of samples seen so far and new ones together: (features,) and (samples, features).

    Source: Chan, Golub & LeVeque 1979, the parallel update of moments.

    >>> merge(2.0, np.array([1.0]), np.array([1.0]), np.array([[4.0]]))[1:]
    (array([2.]), array([2.66666667]))
    """
    new = len(samples)
    total, shift = count + new, samples.mean(axis=0) - mean
    squares = variance * count + samples.var(axis=0) * new + shift**2 * count * new / total
    return total, mean + shift * new / total, squares / total


class ObservationNorm(nn.Module):
    """Observations with mean 0 and variance 1 over those of all rollouts so far: (samples, features) to the same.

    The moments start with those of the first observations given, and move between rollouts only, so that a rollout and
    all epochs over it see one and the same policy.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(features, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def update(self, observations: Array) -> None:
        """Takes observations in: (samples, features)."""
        moments = merge(
            float(self.count), self.mean.cpu().numpy(), self.variance.cpu().numpy(), observations.astype(np.float64)
        )
        for buffer, value in zip((self.count, self.mean, self.variance), moments, strict=True):
            buffer.copy_(torch.as_tensor(value))

    def forward(self, observations: Tensor) -> Tensor:
        scale = (self.variance + 1e-8).rsqrt().to(observations.dtype)
        return ((observations - self.mean.to(observations.dtype)) * scale).clamp(-CLIP, CLIP)


class RewardScale:
    """Rewards divided by the standard deviation of the discounted return so far.

    With :math:`G_t = \\gamma G_{t-1} + r_t`, begun anew with each episode, over all environments and rollouts so far.

    Source: Engstrom et al. 2020, arXiv 2005.12729, section 3.
    """

    def __init__(self, envs: int, gamma: float) -> None:
        self._gamma = gamma
        self._returns = np.zeros(envs)
        self._moments = 0.0, np.zeros(1), np.ones(1)

    def __call__(self, rewards: Array, ended: Array) -> Array:
        """Takes in the rewards of a rollout, (time, environments), and scales them."""
        seen = np.empty_like(rewards)
        for step in range(len(rewards)):
            seen[step] = self._returns = self._gamma * self._returns + rewards[step]
            self._returns = self._returns * ~ended[step]
        self._moments = merge(*self._moments, seen.reshape(-1, 1))
        return np.clip(rewards / np.sqrt(self._moments[2] + 1e-8), -CLIP, CLIP)

    def state_dict(self) -> dict[str, Any]:
        count, mean, variance = self._moments
        return {"returns": self._returns.tolist(), "moments": [count, float(mean[0]), float(variance[0])]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        count, mean, variance = state["moments"]
        self._returns = np.array(state["returns"])
        self._moments = count, np.array([mean]), np.array([variance])
