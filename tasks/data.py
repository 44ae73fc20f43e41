"""Data sets, honest splits and the order of the data."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.streams import Streams


@dataclass(frozen=True)
class Split:
    """Inputs and labels of one part of a data set."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Split:
        """The samples at `indices`."""
        return Split(self.inputs[indices], self.labels[indices])

    def to(self, device: torch.device) -> Split:
        """The same on a device."""
        return Split(self.inputs.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Splits:
    """Training, validation and test parts; no sample is in two of them."""

    train: Split
    val: Split
    test: Split

    def __getitem__(self, name: str) -> Split:
        split: Split = getattr(self, name)
        return split

    def to(self, device: torch.device) -> Splits:
        """The same on a device."""
        return Splits(self.train.to(device), self.val.to(device), self.test.to(device))


def digits_file() -> Path:
    """The file that scikit-learn ships. Reading it ourselves saves importing scikit-learn: seconds for every worker."""
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"


def digest(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def digits(streams: Streams, device: torch.device) -> Splits:
    """scikit-learn's digits, 1,797 images of 8×8: 60 % train, 20 % validation, 20 % test, drawn from the stream `split`.

    Inputs are (samples, 1, 8, 8), shifted and scaled by the mean and deviation of the training part.
    """
    table = torch.from_numpy(np.loadtxt(digits_file(), delimiter=","))
    inputs = table[:, :-1].to(torch.get_default_dtype()).reshape(-1, 1, 8, 8)
    return honest_splits(Split(inputs, table[:, -1].long()), streams, (0.6, 0.2)).to(device)


def honest_splits(samples: Split, streams: Streams, shares: tuple[float, float]) -> Splits:
    """Random train, validation and test parts, standardised by the training part alone."""
    order = torch.randperm(len(samples), generator=streams.fresh("split"))
    first, second = int(shares[0] * len(samples)), int(sum(shares) * len(samples))
    train, val, test = (samples.take(part) for part in order.tensor_split([first, second]))
    mean, deviation = train.inputs.mean(), train.inputs.std()
    return Splits(*(Split((part.inputs - mean) / deviation, part.labels) for part in (train, val, test)))


class EpochOrder:
    """Indices of batches: every epoch a new permutation, batches of one size, a rest smaller than that is dropped.

    A data set smaller than the batch is one batch.
    """

    def __init__(self, samples: int, batch: int, generator: torch.Generator) -> None:
        self._samples, self._batch = samples, min(batch, samples)
        self._generator = generator
        self._position = samples
        self._start: Tensor | None = None
        self._order = torch.empty(0, dtype=torch.int64)

    def next(self) -> Tensor:
        """The indices of the next batch."""
        if self._position + self._batch > self._samples:
            self._shuffle()
        batch = self._order[self._position : self._position + self._batch]
        self._position += self._batch
        return batch

    def _shuffle(self) -> None:
        self._start = self._generator.get_state()
        self._order = torch.randperm(self._samples, generator=self._generator)
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the present permutation starts in the stream, and the position in it."""
        return {"start": self._start, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        if state["start"] is not None:
            self._generator.set_state(state["start"])
            self._shuffle()
        self._position = state["position"]
