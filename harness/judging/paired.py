r"""Comparisons by seed: is the centre of the differences above zero? Exact at every n.

Two methods under one seed share the initial weights and the data, so what is judged is the difference of each seed. If
the methods differ by a shift or not at all, these differences are symmetric about their centre, and flipping the sign of
any of them changes nothing: the level then holds for every shape of the distribution, for ties and for two values, at
every n. Student's interval holds it for Gaussian differences alone (two clusters at n = 3: wrong in a quarter of all
cases), a percentile bootstrap not even there.

The test and its interval come from one list, the means of all subsets of the differences: the centre is equally likely
to lie in each of the gaps between them (Hartigan 1969, "Using subsample values as typical values", JASA 64). What it
cannot do is decide with few seeds: with n of them no p-value is below :math:`2^{-n}`.

No method holds its level for the *mean* of differences of any shape (Bahadur and Savage 1956). Where the arms differ in
shape the statement is about the centre, and docs/claims.md gives the error that was measured.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its parts load where they are first used: `stats` takes longer than most reports
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

BITS = 13
"""Subsets of more than this many differences are those of a subgroup with 2^13 members: exact too, and fast."""

POWER = 0.8
"""The power at which an effect counts as detectable."""


@functools.lru_cache(maxsize=64)
def subsets(n: int) -> Array:
    """The subsets of n differences as rows of zeros and ones, without the empty one.

    All of them up to n = 13. Beyond, a group of 2^13 subsets that is closed under symmetric differences, so that the test
    stays exact: the code spanned by 13 rows, the first 13 columns of which are the identity.

    >>> subsets(2).astype(int).tolist()
    [[1, 0], [0, 1], [1, 1]]
    """
    bits = min(n, BITS)
    words = (np.arange(1, 2**bits)[:, None] >> np.arange(bits)) & 1
    if n == bits:
        return words.astype(np.float64)
    columns = np.random.default_rng(0).integers(0, 2, size=(bits, n - bits))
    return np.hstack([words, words @ columns % 2]).astype(np.float64)


@functools.lru_cache(maxsize=64)
def _weights(n: int) -> Array:
    chosen = subsets(n)
    return (chosen / chosen.sum(axis=1, keepdims=True)).T


def subset_means(differences: ArrayLike) -> Array:
    """The mean of each of the `subsets`, over the last axis."""
    values = np.asarray(differences, dtype=np.float64)
    means: Array = values @ _weights(values.shape[-1])
    return means


def sign_flip_p(differences: ArrayLike, threshold: float = 0.0) -> tuple[Array, Array]:
    """One-sided p-values of a centre that is not above, and not below, a threshold; over the last axis.

    Ties count for the null. The same numbers as `scipy.stats.permutation_test` with `permutation_type="samples"`.

    >>> above, below = sign_flip_p([1.0, 2.0, 3.0])
    >>> float(above), float(below)
    (0.125, 1.0)
    """
    values = np.asarray(differences, dtype=np.float64)
    means = subset_means(values)
    slack = 1e-12 * np.maximum(np.abs(values).max(axis=-1, keepdims=True), abs(threshold))
    total = means.shape[-1] + 1
    above = (1 + (means <= threshold + slack).sum(axis=-1)) / total
    below = (1 + (means >= threshold - slack).sum(axis=-1)) / total
    return above, below


def smallest_p(n: int) -> float:
    """The smallest one-sided p-value that n differences can give."""
    return 2.0 ** -min(n, BITS) if n else 1.0


def exact_interval(differences: ArrayLike, level: float = 0.05) -> tuple[Array, Array, float]:
    """Bounds of the centre, each wrong with probability `level` at most, over the last axis; and the confidence reached.

    Where n is too small for the level the bounds are the widest that there are, the smallest and the largest difference, and
    the confidence says how much that is: 75 % at n = 3.

    >>> low, high, confidence = exact_interval([1.0, 2.0, 6.0])
    >>> float(low), float(high), confidence
    (1.0, 6.0, 0.75)
    """
    means = np.sort(subset_means(differences), axis=-1)
    total = means.shape[-1] + 1
    rank = max(1, int(level * total + 1e-9))
    return means[..., rank - 1], means[..., total - 1 - rank], 1 - 2 * rank / total


def student_p(differences: ArrayLike, threshold: float = 0.0) -> tuple[Array, Array]:
    """One-sided p-values of Student's test over the last axis; where nothing varies, those of `sign_flip_p`."""
    values = np.asarray(differences, dtype=np.float64)
    n = values.shape[-1]
    above, below = sign_flip_p(values, threshold)
    error = values.std(axis=-1, ddof=1) / math.sqrt(n) if n > 1 else np.zeros(values.shape[:-1])
    varies = error > 1e-12 * np.abs(values).max(axis=-1)
    t = (values.mean(axis=-1) - threshold) / np.where(varies, error, 1.0)
    return (
        np.where(varies, scipy.special.stdtr(n - 1, -t), above),
        np.where(varies, scipy.special.stdtr(n - 1, t), below),
    )


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: rejecting those at most α errs anywhere in the family with probability α at most.

    Source: Holm 1979, Scandinavian Journal of Statistics 6.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [1.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def at_least(p: Sequence[float], count: int) -> float:
    """A p-value of "fewer than `count` of these statements are true", however they depend on each other.

    Bonferroni's partial conjunction, (n - count + 1) times the count-th smallest (Benjamini and Heller 2008, Biometrics 64);
    for all of them it is the largest, for one of them n times the smallest.

    >>> at_least([0.01, 0.2, 0.02], 2)
    0.04
    """
    if not 1 <= count <= len(p):
        raise ValueError(f"count: found {count}, allowed: 1 to {len(p)}")
    return min(1.0, (len(p) - count + 1) * sorted(p)[count - 1])


def detectable_effect(n: int, level: float = 0.05, *, normal: bool = False) -> float | None:
    """The smallest effect, in standard deviations of the differences, that is found in 80 % of all grids like this one.

    That of Student's one-sided test for Gaussian differences, at the level that n differences can reach.

    Args:
        n: how many differences.
        level: one-sided, after any correction.
        normal: for Student's test, which reaches every level.

    Returns:
        The effect; None if no outcome whatever is found at this level.

    >>> round(detectable_effect(10), 2), detectable_effect(4)
    (0.85, None)
    """
    if not normal:
        total = 2 ** min(n, BITS)
        level = int(level * total + 1e-9) / total
    if level <= 0 or n < 2:
        return None
    bound = scipy.stats.t.isf(level, n - 1)

    def missing(effect: float) -> float:
        return float(scipy.stats.nct.sf(bound, n - 1, effect * math.sqrt(n))) - POWER

    return float(scipy.optimize.brentq(missing, 0.0, 30.0 * bound, xtol=1e-6))


@dataclass(frozen=True)
class Paired:
    """Differences by seed, described. What is unbounded or unknown is None."""

    n: int
    mean: float | None
    """Over the seeds where both are finite."""
    median: float | None
    deviation: float | None
    finite: int
    interval: tuple[float | None, float | None]
    """Of the centre; None where a failure makes it unbounded."""
    confidence: float
    """Of the interval: 1 - 2·level, or what n allows."""
    student: tuple[float, float] | None
    """Student's 95 % interval of the mean, which takes the differences to be Gaussian."""
    effect_size: float | None
    """Hedges' g of paired differences: mean over deviation, corrected for its bias at small n."""
    wins: int
    ties: int
    losses: int


def ranked_failures(differences: ArrayLike) -> Array:
    """Differences in which an infinite one, a failure of one side, outweighs all finite ones together.

    The stand-in depends on absolute values alone, so a sign-flip test stays exact.
    """
    values = np.asarray(differences, dtype=np.float64)
    finite = np.where(np.isfinite(values), np.abs(values), 0.0)
    largest = finite.max(axis=-1, keepdims=True)
    stand_in = 4 * values.shape[-1] * np.where(largest > 0, largest, 1.0)
    return np.where(np.isinf(values), np.sign(values) * stand_in, values)


def describe(differences: ArrayLike, level: float = 0.05) -> Paired:
    """Differences by seed, described; ±inf where one side failed.

    >>> described = describe([0.1, 0.2, 0.4, 0.3, 0.2])
    >>> round(described.mean, 3), described.interval, described.confidence, described.wins
    (0.24, (0.1, 0.4), 0.9375, 5)
    """
    values = np.asarray(differences, dtype=np.float64)
    finite = values[np.isfinite(values)]
    size, n = len(values), len(finite)
    mean = float(finite.mean()) if n else None
    deviation = float(finite.std(ddof=1)) if n > 1 else None
    low, high, confidence = exact_interval(ranked_failures(values), level)
    limit = float(np.abs(finite).max()) * (1 + 1e-9) if n else 0.0
    half = float(scipy.special.stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n) if deviation is not None else None
    size_of_effect = None
    if mean is not None and deviation and deviation > 1e-12 * abs(mean):
        size_of_effect = mean / deviation * (math.exp(_log_bias(n - 1)))
    return Paired(
        n=size,
        mean=mean,
        median=float(np.median(finite)) if n else None,
        deviation=deviation,
        finite=n,
        interval=(_bounded(float(low), limit), _bounded(float(high), limit)),
        confidence=confidence,
        student=None if half is None or mean is None else (mean - half, mean + half),
        effect_size=size_of_effect,
        wins=int((values > 0).sum()),
        ties=int((values == 0).sum()),
        losses=int((values < 0).sum()),
    )


def _bounded(bound: float, limit: float) -> float | None:
    return bound if abs(bound) <= limit else None


def _log_bias(degrees: int) -> float:
    """The logarithm of Hedges' correction, Γ(m/2) / (√(m/2) Γ((m-1)/2)); 0 for one degree, where it does not exist."""
    if degrees < 2:
        return 0.0
    return math.lgamma(degrees / 2) - math.lgamma((degrees - 1) / 2) - 0.5 * math.log(degrees / 2)
