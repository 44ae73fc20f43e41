"""Environments as PPO sees them: Gymnasium's, and three of them computed in plain floats with the same numbers to the bit."""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar, Protocol

import gymnasium
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Step = tuple[Array, float, bool, bool]
"""Observation, reward, terminated, truncated."""

EVALUATION_LIMIT = 10_000
"""Steps after which an evaluation episode is cut off where the environment has no limit of its own."""

EXTRAS = {"LunarLander": "Box2D", "BipedalWalker": "Box2D", "CarRacing": "Box2D"}
"""Modules that environments need beside Gymnasium, by the beginning of their ids."""


class Simulator(Protocol):
    """One environment with discrete actions and flat observations."""

    @property
    def choices(self) -> int:
        """How many actions there are."""

    def reset(self, seed: int) -> Array:
        """Begins an episode; returns its first observation, (features,) of float32."""

    def step(self, action: int) -> Step:
        """Takes one action."""


class Registered:
    """An environment that Gymnasium knows by id, with observations made flat.

    Raises:
        ValueError: as `check_environment`.
    """

    def __init__(self, environment: str, limit: int | None = None) -> None:
        check_environment(environment)
        env: gymnasium.Env[Any, Any] = gymnasium.make(environment, max_episode_steps=limit, disable_env_checker=True)
        actions = env.action_space
        assert isinstance(actions, gymnasium.spaces.Discrete)
        if not (isinstance(env.observation_space, gymnasium.spaces.Box) and len(env.observation_space.shape) == 1):
            env = gymnasium.wrappers.FlattenObservation(env)
        self.env, self.choices, self._first = env, int(actions.n), int(actions.start)

    def reset(self, seed: int) -> Array:
        observation: Array = self.env.reset(seed=seed)[0]
        return observation

    def step(self, action: int) -> Step:
        observation, reward, terminated, truncated, _ = self.env.step(action + self._first)
        return observation, float(reward), terminated, truncated


@cache
def check_environment(environment: str) -> None:
    """Says what is wrong with an environment.

    Raises:
        ValueError: if Gymnasium does not know its id or cannot make it, a module that it needs is not installed, or its
            actions are not discrete.
    """
    try:
        gymnasium.spec(environment)
    except gymnasium.error.Error as error:
        raise ValueError(f"environment: found {environment!r}, allowed: an id that Gymnasium knows ({error})") from None
    for name, module in EXTRAS.items():
        if environment.startswith(name) and find_spec(module) is None:
            raise ValueError(
                f"environment: found {environment!r}, which needs {module}, which is not installed; "
                "get it with: pip install 'training-harness[box2d]'"
            )
    if environment in NATIVE:
        return
    try:
        env: gymnasium.Env[Any, Any] = gymnasium.make(environment, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"environment: found {environment!r}, which cannot be made here: {error}") from None
    env.close()
    if not isinstance(env.action_space, gymnasium.spaces.Discrete):
        raise ValueError(
            f"environment: found {environment!r}, whose actions are {env.action_space}, allowed: discrete actions"
        )


class Native:
    """An environment in plain floats: a step of NumPy scalars takes Gymnasium several times as long.

    Gymnasium 1.x is the source, and a test compares 10⁵ steps of each, bit for bit. Squares are written as there: `x ** 2`
    is the C library's `pow`, which now and then rounds otherwise than `x * x`.
    """

    choices: int
    limit: ClassVar[int]

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit or self.limit

    def reset(self, seed: int) -> Array:
        self._elapsed = 0
        return self._begin(np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))))

    def step(self, action: int) -> Step:
        observation, reward, terminated = self._move(action)
        self._elapsed += 1
        return observation, reward, terminated, self._elapsed >= self._limit

    def _begin(self, rng: np.random.Generator) -> Array:
        raise NotImplementedError

    def _move(self, action: int) -> tuple[Array, float, bool]:
        raise NotImplementedError


class CartPole(Native):
    """CartPole-v1: a pole on a cart (Barto, Sutton & Anderson 1983), explicit Euler."""

    choices, limit = 2, 500
    angle = 12 * 2 * math.pi / 360

    def _begin(self, rng: np.random.Generator) -> Array:
        state = rng.uniform(low=-0.05, high=0.05, size=(4,))
        self._state = tuple(state.tolist())
        return state.astype(np.float32)

    def _move(self, action: int) -> tuple[Array, float, bool]:
        x, x_dot, theta, theta_dot = self._state
        force = 10.0 if action == 1 else -10.0
        cos, sin = math.cos(theta), math.sin(theta)
        temp = (force + 0.05 * (theta_dot * theta_dot) * sin) / 1.1
        theta_acc = (9.8 * sin - cos * temp) / (0.5 * (4.0 / 3.0 - 0.1 * (cos * cos) / 1.1))
        x_acc = temp - 0.05 * theta_acc * cos / 1.1
        x, x_dot = x + 0.02 * x_dot, x_dot + 0.02 * x_acc
        theta, theta_dot = theta + 0.02 * theta_dot, theta_dot + 0.02 * theta_acc
        self._state = x, x_dot, theta, theta_dot
        over = x < -2.4 or x > 2.4 or theta < -self.angle or theta > self.angle
        return np.array(self._state, dtype=np.float32), 1.0, over


SIXTH = 0.2 / 6.0
"""Acrobot's time step over six."""


class Acrobot(Native):
    """Acrobot-v1: two links, swung up by the joint between them (Sutton 1996), fourth-order Runge-Kutta."""

    choices, limit = 3, 500

    def _begin(self, rng: np.random.Generator) -> Array:
        state = rng.uniform(low=-0.1, high=0.1, size=(4,)).astype(np.float32)
        self._state = tuple(state.tolist())
        # The first observation is computed in single precision, as there.
        cos, sin = np.cos(state), np.sin(state)
        return np.array([cos[0], sin[0], cos[1], sin[1], state[2], state[3]], dtype=np.float32)

    def _move(self, action: int) -> tuple[Array, float, bool]:
        torque, (a, b, c, d) = float(action - 1), self._state
        # Four slopes of the angles (p, q) and velocities (r, s), unrolled: a loop over tuples takes twice as long.
        p1, q1, r1, s1 = _slope(a, b, c, d, torque)
        p2, q2, r2, s2 = _slope(a + 0.1 * p1, b + 0.1 * q1, c + 0.1 * r1, d + 0.1 * s1, torque)
        p3, q3, r3, s3 = _slope(a + 0.1 * p2, b + 0.1 * q2, c + 0.1 * r2, d + 0.1 * s2, torque)
        p4, q4, r4, s4 = _slope(a + 0.2 * p3, b + 0.2 * q3, c + 0.2 * r3, d + 0.2 * s3, torque)
        one = _wrap(a + SIXTH * (p1 + 2 * p2 + 2 * p3 + p4))
        two = _wrap(b + SIXTH * (q1 + 2 * q2 + 2 * q3 + q4))
        v_one = min(max(c + SIXTH * (r1 + 2 * r2 + 2 * r3 + r4), -4 * math.pi), 4 * math.pi)
        v_two = min(max(d + SIXTH * (s1 + 2 * s2 + 2 * s3 + s4), -9 * math.pi), 9 * math.pi)
        self._state = one, two, v_one, v_two
        cos = math.cos(one)
        over = -cos - math.cos(two + one) > 1.0
        observation = [cos, math.sin(one), math.cos(two), math.sin(two), v_one, v_two]
        return np.array(observation, dtype=np.float32), 0.0 if over else -1.0, over


def _slope(one: float, two: float, v_one: float, v_two: float, torque: float) -> tuple[float, float, float, float]:
    """The derivative of Acrobot's state: the angles of the links and their velocities."""
    cos, sin = math.cos(two), math.sin(two)
    d1 = 0.25 + (1.25 + cos) + 1.0 + 1.0
    d2 = (0.25 + 0.5 * cos) + 1.0
    phi2 = 4.9 * math.cos(one + two - math.pi / 2.0)
    phi1 = -0.5 * v_two**2 * sin - v_two * v_one * sin + 1.5 * 9.8 * math.cos(one - math.pi / 2) + phi2
    a_two = (torque + d2 / d1 * phi1 - 0.5 * v_one**2 * sin - phi2) / (1.25 - d2**2 / d1)
    return v_one, v_two, -(d2 * a_two + phi1) / d1, a_two


def _wrap(angle: float) -> float:
    while angle > math.pi:
        angle -= 2 * math.pi
    while angle < -math.pi:
        angle += 2 * math.pi
    return angle


class MountainCar(Native):
    """MountainCar-v0: a car too weak for the hill (Moore 1990)."""

    choices, limit = 3, 200

    def _begin(self, rng: np.random.Generator) -> Array:
        self._state = float(rng.uniform(low=-0.6, high=-0.4)), 0.0
        return np.array(self._state, dtype=np.float32)

    def _move(self, action: int) -> tuple[Array, float, bool]:
        position, velocity = self._state
        velocity += (action - 1) * 0.001 + math.cos(3 * position) * (-0.0025)
        velocity = min(max(velocity, -0.07), 0.07)
        position = min(max(position + velocity, -1.2), 0.6)
        if position == -1.2 and velocity < 0:
            velocity = 0.0
        self._state = position, velocity
        return np.array(self._state, dtype=np.float32), -1.0, position >= 0.5 and velocity >= 0.0


NATIVE: dict[str, type[Native]] = {"CartPole-v1": CartPole, "Acrobot-v1": Acrobot, "MountainCar-v0": MountainCar}


def simulator(environment: str, limit: int | None = None) -> Simulator:
    """An environment by its Gymnasium id.

    Args:
        environment: the id.
        limit: steps after which an episode is cut off; the environment's own limit unless given.
    """
    if environment in NATIVE:
        return NATIVE[environment](limit)
    return Registered(environment, limit)


def evaluation_limit(environment: str, limit: int | None) -> int | None:
    """The limit of evaluation episodes: never none, for a policy may never come to an end."""
    if limit is None and gymnasium.spec(environment).max_episode_steps is None:
        return EVALUATION_LIMIT
    return limit


class Episode:
    """The present episode of one environment, begun by a reset with a seed of its own.

    Seed and actions are its whole state: a deterministic environment is brought back by replaying them, whatever it
    keeps inside.
    """

    def __init__(self, environment: str, limit: int | None = None) -> None:
        self.simulator = simulator(environment, limit)
        self.choices = self.simulator.choices

    def reset(self, rng: np.random.Generator) -> None:
        """Begins a new episode under a seed drawn from a stream."""
        self._begin(int(rng.integers(2**31)))

    def _begin(self, seed: int) -> None:
        self.seed = seed
        self.actions: list[int] = []
        self.total = 0.0
        self.observation = self.simulator.reset(seed)

    def step(self, action: int) -> tuple[float, bool, bool]:
        """Reward, terminated, truncated; the observation and the sum of rewards are kept."""
        self.observation, reward, terminated, truncated = self.simulator.step(action)
        self.actions.append(action)
        self.total += reward
        return reward, terminated, truncated

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "actions": list(self.actions)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._begin(state["seed"])
        for action in state["actions"]:
            self.step(action)


def random_observations(environment: str, seed: int, samples: int) -> Array:
    """Consecutive observations under a uniformly random policy: (samples, features)."""
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
