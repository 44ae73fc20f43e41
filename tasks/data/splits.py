"""Parts of a data set, honest splits and the order of the data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

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

    def first(self, size: int | None) -> Split:
        """The first `size` samples; all of them for None."""
        return self if size is None else Split(self.inputs[:size], self.labels[:size])

    def to(self, device: torch.device) -> Split:
        """The same on a device."""
        return Split(self.inputs.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Standardiser:
    """Shifts and scales inputs by a mean and a deviation that were taken from the training part alone."""

    mean: Tensor
    deviation: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """(inputs - mean) / deviation, as floating-point numbers of the default precision."""
        return (inputs.to(self.mean.dtype) - self.mean) / self.deviation

    def to(self, device: torch.device) -> Standardiser:
        """The same on a device."""
        return Standardiser(self.mean.to(device), self.deviation.to(device))

    @staticmethod
    def of(inputs: Tensor) -> Standardiser:
        """By channel for images of bytes (n, c, h, w), by feature for tables (n, d), one number for all else.

        A feature that does not vary is only shifted.
        """
        if inputs.dtype == torch.uint8:
            return _of_bytes(inputs)
        if inputs.ndim == 2:
            deviation = inputs.std(dim=0)
            return Standardiser(inputs.mean(dim=0), torch.where(deviation > 0, deviation, 1.0))
        return Standardiser(inputs.mean(), inputs.std())


def _of_bytes(images: Tensor) -> Standardiser:
    """From the histogram of each channel: exact, whatever the number of threads, and without a copy in floating point."""
    values = torch.arange(256, dtype=torch.float64)
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].reshape(-1), minlength=256).double().cpu()
        mean = (counts * values).sum() / counts.sum()
        means.append(mean)
        deviations.append(((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt())
    stacked = torch.stack([torch.stack(means), torch.stack(deviations)]).to(torch.get_default_dtype())
    mean, deviation = stacked.reshape(2, -1, 1, 1)
    return Standardiser(mean, torch.where(deviation > 0, deviation, 1.0))


@dataclass(frozen=True)
class Splits:
    """Training, validation and test parts; no sample is in two of them, unless selection on test was asked for."""

    train: Split
    val: Split
    test: Split

    def __getitem__(self, name: str) -> Split:
        split: Split = getattr(self, name)
        return split

    def first(self, train: int | None, val: int | None = None, test: int | None = None) -> Splits:
        """At most so many samples of each part."""
        return Splits(self.train.first(train), self.val.first(val), self.test.first(test))

    def standardised(self) -> Splits:
        """Inputs shifted and scaled by the mean and deviation of the training part."""
        scale = Standardiser.of(self.train.inputs)
        return Splits(*(replace(part, inputs=scale(part.inputs)) for part in (self.train, self.val, self.test)))

    def to(self, device: torch.device) -> Splits:
        """The same on a device."""
        return Splits(self.train.to(device), self.val.to(device), self.test.to(device))


def random_splits(samples: Split, streams: Streams, shares: tuple[float, float]) -> Splits:
    """Random train and validation parts of these shares and the rest for testing, drawn from the stream `split`."""
    order = torch.randperm(len(samples), generator=streams.fresh("split"))
    first, second = int(shares[0] * len(samples)), int(sum(shares) * len(samples))
    return Splits(*(samples.take(part) for part in order.tensor_split([first, second])))


def hold_out(samples: Split, streams: Streams, share: float) -> tuple[Split, Split]:
    """Random training and validation parts of a training set, drawn from the stream `split`."""
    order = torch.randperm(len(samples), generator=streams.fresh("split"))
    train, val = order.tensor_split([len(samples) - int(share * len(samples))])
    return samples.take(train), samples.take(val)


class EpochOrder:
    """Indices of batches: every epoch a new permutation, batches of one size, a rest smaller than that is dropped.

    A data set smaller than the batch is one batch.

    Raises:
        ValueError: if there are no samples.
    """

    def __init__(self, samples: int, batch: int, generator: torch.Generator) -> None:
        if samples < 1:
            raise ValueError(f"training part: found {samples} samples, must have 1 at least")
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
