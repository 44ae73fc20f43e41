"""Differences by seed without a shift, of every shape that a test of them should survive."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from harness.judging.paired import ranked_failures, sign_flip_p

Array = NDArray[np.float64]
Shape = Callable[[np.random.Generator, tuple[int, ...]], Array]
CHUNK = 500


def two_clusters(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Differences that are ±1 but for a little noise: Student's test is wrong in a quarter of all cases at n = 3."""
    return rng.choice([-1.0, 1.0], shape) + rng.normal(0, 0.01, shape)


def arms(draw: Shape) -> Shape:
    """Differences of two arms with one distribution, on top of what the seed does to both."""

    def differences(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        shared = rng.normal(0, 1, shape)
        return (shared + draw(rng, shape)) - (shared + draw(rng, shape))

    return differences


def failing(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Differences of arms that fail in a fifth of all cases: infinite where one did, zero where both did."""
    return with_failures(rng.gamma(1.0, 1.0, shape) - rng.gamma(1.0, 1.0, shape), rng)


def with_failures(differences: Array, rng: np.random.Generator) -> Array:
    """The same where either arm fails in a fifth of all cases."""
    one, other = (rng.random(differences.shape) < 0.2 for _ in range(2))
    return np.where(one & other, 0.0, np.where(one, -np.inf, np.where(other, np.inf, differences)))


CONTINUOUS: dict[str, Shape] = {
    "Gaussian": arms(lambda rng, shape: rng.normal(0, 1, shape)),
    "skewed": arms(lambda rng, shape: rng.lognormal(0, 1, shape)),
    "bimodal": arms(lambda rng, shape: rng.choice([-3.0, 3.0], shape) + rng.normal(0, 0.5, shape)),
    "two clusters": two_clusters,
}
DISCRETE: dict[str, Shape] = {
    "tied": arms(lambda rng, shape: np.round(rng.normal(0, 1, shape))),
    "three values": lambda rng, shape: rng.choice([-1.0, 0.0, 1.0], shape, p=[0.4, 0.2, 0.4]),
    "failing": failing,
}


def p_values(differences: Array) -> tuple[Array, Array]:
    """Of many samples, some at a time."""
    parts = [sign_flip_p(ranked_failures(part)) for part in np.array_split(differences, len(differences) // CHUNK)]
    return np.concatenate([above for above, _ in parts]), np.concatenate([below for _, below in parts])


def at_most(count: int, draws: int, rate: float) -> bool:
    """Whether a count is no more than a rate allows, within the 99 % binomial bound."""
    return bool(count <= stats.binom.ppf(0.99, draws, rate))
