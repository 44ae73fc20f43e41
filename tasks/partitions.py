"""How the samples of a data set are spread over the clients of a federated task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

TRIES = 10_000
Kind = Literal["iid", "dirichlet", "shards", "quantity", "natural"]


@dataclass(frozen=True)
class Partition:
    """Which samples lie with which client, and which clients were made hard."""

    parts: list[Tensor]
    """The indices of each client's samples, ascending; no sample is with two clients."""
    rare: tuple[int, ...] = ()
    """Clients of whose samples only a few were kept."""
    noisy: tuple[int, ...] = ()
    """Clients some of whose labels are wrong."""

    @property
    def sizes(self) -> list[int]:
        """Samples of each client."""
        return [len(part) for part in self.parts]


def iid(samples: int, clients: int, generator: np.random.Generator) -> list[Tensor]:
    """A random part for each client, of sizes that differ by one at most.

    >>> [len(part) for part in iid(10, 4, np.random.default_rng(0))]
    [3, 3, 2, 2]
    """
    enough(samples, clients, 1)
    return _ascending(torch.from_numpy(generator.permutation(samples)).tensor_split(clients))


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
    enough(len(labels), clients, min_size)
    classes = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    sizes = np.array([len(members) for members in classes])
    best = 0
    for _ in range(TRIES):
        cuts = _cuts(sizes, generator.dirichlet(np.full(clients, alpha), len(classes)))
        smallest = int(np.diff(cuts, axis=1).sum(axis=0).min())
        if smallest >= min_size:
            return _parts(classes, cuts, generator)
        best = max(best, smallest)
    raise _unmet(min_size, alpha, clients, len(labels), best)


def quantity(samples: int, clients: int, alpha: float, min_size: int, generator: np.random.Generator) -> list[Tensor]:
    r"""Quantity skew: random samples, in parts whose shares of the whole are drawn from :math:`\mathrm{Dir}(\alpha, …, \alpha)`.

    Drawn again until every client has at least `min_size` samples. Source: Li et al. 2022, arXiv 2102.02079.

    >>> sizes = [len(part) for part in quantity(1000, 5, 0.5, 10, np.random.default_rng(0))]
    >>> sum(sizes), min(sizes) >= 10
    (1000, True)
    """
    return dirichlet(torch.zeros(samples, dtype=torch.int64), clients, alpha, min_size, generator)


def shards(labels: Tensor, clients: int, classes_per_client: int, generator: np.random.Generator) -> list[Tensor]:
    """Each client gets `classes_per_client` shards, each of one class; a class is cut into shards in proportion to its size.

    A client has that many classes at most: two of its shards may be of one class. After McMahan et al. 2017, arXiv
    1602.05629, whose shards are cut from the sorted data and may straddle two classes.

    Raises:
        ValueError: if there are fewer shards than classes, or fewer samples of a class than its shards.

    >>> labels = torch.arange(100) % 10
    >>> parts = shards(labels, 10, 2, np.random.default_rng(0))
    >>> max(len(labels[part].unique()) for part in parts), {len(part) for part in parts}
    (2, {10})
    """
    classes = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    total = clients * classes_per_client
    if total < len(classes):
        raise ValueError(
            f"classes_per_client: found {classes_per_client} for {clients} clients, allowed: at least "
            f"{-(-len(classes) // clients)}, since there are {len(classes)} classes"
        )
    cut: list[Tensor] = []
    for members, count in zip(classes, _shares([len(members) for members in classes], total), strict=True):
        if count > len(members):
            raise ValueError(f"classes_per_client: found {count} shards of a class with {len(members)} samples")
        cut += members[torch.from_numpy(generator.permutation(len(members)))].tensor_split(count)
    dealt = generator.permutation(total).reshape(clients, classes_per_client)
    return _ascending([torch.cat([cut[index] for index in hand]) for hand in dealt])


def natural(groups: Tensor, clients: int, min_size: int, generator: np.random.Generator) -> list[Tensor]:
    """One client per group (a writer, a speaker) of at least `min_size` samples; `clients` of them, drawn at random.

    Raises:
        ValueError: if there are not so many groups.

    >>> [part.tolist() for part in natural(torch.tensor([7, 3, 7, 3, 9]), 2, 2, np.random.default_rng(0))]
    [[1, 3], [0, 2]]
    """
    found = [torch.nonzero(groups == group).flatten() for group in groups.unique()]
    found = [part for part in found if len(part) >= min_size]
    if clients > len(found):
        raise ValueError(
            f"clients: found {clients}, allowed: at most the {len(found)} natural clients with at least {min_size} samples"
        )
    return [found[index] for index in sorted(generator.choice(len(found), clients, replace=False))]


def thin_out(
    parts: list[Tensor], share: float, size: int, generator: np.random.Generator
) -> tuple[list[Tensor], tuple[int, ...]]:
    """Keeps `size` random samples at most of a share of the clients; returns all parts, and who they are."""
    rare = chosen(len(parts), share, generator)
    kept = list(parts)
    for index in rare:
        places = generator.permutation(len(parts[index]))[:size]
        kept[index] = parts[index][torch.from_numpy(places)].sort().values
    return kept, rare


def flip_labels(labels: Tensor, places: Tensor, share: float, classes: int, generator: np.random.Generator) -> Tensor:
    """A copy of the labels with a share of those at `places` replaced by another class, uniformly.

    >>> labels = torch.zeros(10, dtype=torch.int64)
    >>> (flip_labels(labels, torch.arange(5), 0.4, 3, np.random.default_rng(0)) != labels).sum().item()
    2
    """
    wrong = places[torch.from_numpy(generator.permutation(len(places))[: round(share * len(places))])]
    noisy = labels.clone()
    noisy[wrong] = (labels[wrong] + torch.from_numpy(generator.integers(1, classes, len(wrong)))) % classes
    return noisy


def chosen(clients: int, share: float, generator: np.random.Generator) -> tuple[int, ...]:
    """A share of the clients, drawn at random."""
    return tuple(sorted(generator.permutation(clients)[: round(share * clients)].tolist()))


def enough(samples: int, clients: int, min_size: int) -> None:
    """Whether samples can be spread over clients so that each has at least `min_size`.

    Raises:
        ValueError: if there are too few.
    """
    if clients > samples:
        raise ValueError(f"clients: found {clients}, allowed: at most {samples}, as many as there are samples")
    if clients * min_size > samples:
        raise ValueError(
            f"min_size: found {min_size} for {clients} clients, allowed: at most {samples // clients}, "
            f"since there are {samples} samples"
        )


def _unmet(min_size: int, alpha: float, clients: int, samples: int, best: int) -> ValueError:
    return ValueError(
        f"min_size: found {min_size}, which none of {TRIES} draws met with alpha={alpha} and {clients} clients of "
        f"{samples} samples; the best left a client with {best}: lower min_size or clients, or raise alpha"
    )


def _shares(sizes: list[int], total: int) -> list[int]:
    """`total` shards over classes in proportion to their sizes, one at least: by largest remainder."""
    exact = np.array(sizes) * total / sum(sizes)
    counts = np.maximum(1, np.floor(exact)).astype(int)
    while counts.sum() != total:
        short = counts.sum() < total
        gap = np.where((counts > 1) | short, exact - counts, np.inf)
        counts[np.argmax(gap) if short else np.argmin(gap)] += 1 if short else -1
    return counts.tolist()


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
    return _ascending([torch.cat(part) for part in zip(*pieces, strict=True)])


def _ascending(parts: list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    return [part.sort().values for part in parts]
