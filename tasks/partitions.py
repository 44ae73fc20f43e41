"""How the samples of a data set are spread over the clients of a federated task."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TRIES = 10_000


def dirichlet(
    labels: Tensor, clients: int, alpha: float, min_size: int, generator: np.random.Generator
) -> list[Tensor]:
    r"""Label skew: of each class, client :math:`k` gets the share :math:`p_k`, with :math:`p \sim \mathrm{Dir}(\alpha, …, \alpha)`.

    Drawn again until every client has at least `min_size` samples. Small :math:`\alpha` is strong skew;
    :math:`\alpha \to \infty` spreads every class evenly. Source: Li et al. 2022, arXiv 2102.02079.

    Args:
        labels: (samples,) class of each sample.
        clients: number of parts.
        alpha: concentration, positive.
        min_size: samples that each part has at least.
        generator: what all draws are made from.

    Returns:
        The indices of each part, ascending: every sample is in exactly one part.

    Raises:
        ValueError: if no draw gives every client `min_size` samples.

    >>> parts = dirichlet(torch.arange(100) % 10, 4, 0.5, 5, np.random.default_rng(0))
    >>> sorted(torch.cat(parts).tolist()) == list(range(100)), min(map(len, parts)) >= 5
    (True, True)
    """
    if clients * min_size > len(labels):
        raise ValueError(
            f"min_size: found {min_size} for {clients} clients, allowed: at most {len(labels) // clients}, "
            f"since there are {len(labels)} samples"
        )
    classes = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    sizes = np.array([len(members) for members in classes])
    best = 0
    for _ in range(TRIES):
        cuts = _cuts(sizes, generator.dirichlet(np.full(clients, alpha), len(classes)))
        smallest = int(np.diff(cuts, axis=1).sum(axis=0).min())
        if smallest >= min_size:
            return _parts(classes, cuts, generator)
        best = max(best, smallest)
    raise ValueError(
        f"min_size: found {min_size}, which none of {TRIES} draws met with alpha={alpha} and {clients} clients of "
        f"{len(labels)} samples; the best left a client with {best}: lower min_size or clients, or raise alpha"
    )


def _cuts(sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Where each class is cut: (classes, clients + 1) positions, from 0 to the size of the class."""
    ends = np.rint(np.cumsum(shares, axis=1) * sizes[:, None]).astype(int)
    ends[:, -1] = sizes
    return np.concatenate([np.zeros((len(sizes), 1), dtype=int), ends], axis=1)


def _parts(classes: list[Tensor], cuts: np.ndarray, generator: np.random.Generator) -> list[Tensor]:
    pieces = []
    for members, places in zip(classes, cuts, strict=True):
        shuffled = members[torch.from_numpy(generator.permutation(len(members)))]
        pieces.append(shuffled.tensor_split(torch.from_numpy(places[1:-1])))
    return [torch.cat(part).sort().values for part in zip(*pieces, strict=True)]
