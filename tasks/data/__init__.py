"""Data sets by name, honest splits and the order of the data.

>>> from harness.streams import Streams
>>> splits = load("digits", Streams(0))
>>> len(splits.train), len(splits.val), len(splits.test), splits.train.inputs.shape[1:]
(1078, 359, 360, torch.Size([1, 8, 8]))
"""

from __future__ import annotations

from typing import Literal

import torch

from harness.streams import Streams
from tasks.data.place import MissingData, folder
from tasks.data.sets import DATA_SETS, VAL_SHARE, DataSet, Raw, at_size, in_memory
from tasks.data.splits import EpochOrder, Split, Splits, Standardiser, hold_out, random_splits

__all__ = [
    "DATA_SETS",
    "DataSet",
    "EpochOrder",
    "MissingData",
    "Raw",
    "Selection",
    "Split",
    "Splits",
    "Standardiser",
    "at_size",
    "classes",
    "digest",
    "digits",
    "divide",
    "folder",
    "in_memory",
    "known",
    "load",
]

Selection = Literal["validation", "test"]
"""What the best checkpoint is selected on. `test` is the protocol of several papers: the validation part is the test part."""


def load(
    name: str,
    streams: Streams,
    *,
    train: int | None = None,
    val: int | None = None,
    test: int | None = None,
    selection: Selection = "validation",
) -> Splits:
    """A data set as it comes, in honest parts drawn from the stream `split`.

    Inputs are images of bytes (n, channels, height, width), tables of numbers (n, features), or numbers of files for data
    sets that do not fit in memory; `Splits.standardised` makes floating-point inputs of the first two.

    The makers' test part is the test part. A validation part is drawn from their training part (10 %) unless they made one;
    a data set without any parts is divided at random. A sample is a random one of its part, so the `train` first ones are a
    random subset.

    Args:
        train: training samples at most, for proxies of larger runs; `val` and `test` likewise.
        selection: on what the best checkpoint is selected.

    Raises:
        MissingData: if it is not in the data folder.
        ValueError: if there is no data set of this name, or a size is not positive.
    """
    return divide(known(name), known(name).raw(), streams, selection).first(train, val, test)


def divide(data: DataSet, raw: Raw, streams: Streams, selection: Selection = "validation") -> Splits:
    """The honest parts of a data set that has been read."""
    if raw.test is None:
        splits = random_splits(raw.train, streams, data.shares)
    else:
        train, val = (raw.train, raw.val) if raw.val else hold_out(raw.train, streams, VAL_SHARE)
        splits = Splits(*(_shuffled(part, streams) for part in (train, val, raw.test)))
    if selection == "validation":
        return splits
    train, val = splits.train, splits.val
    whole = Split(torch.cat([train.inputs, val.inputs]), torch.cat([train.labels, val.labels]))
    return Splits(whole, splits.test, splits.test)


def _shuffled(split: Split, streams: Streams) -> Split:
    """A part in random order, so that its first samples are a random subset: makers order theirs by class."""
    return split.take(torch.randperm(len(split), generator=streams.fresh("split")))


def known(name: str) -> DataSet:
    """The data set of a name."""
    if name not in DATA_SETS:
        raise ValueError(f"data set: found {name!r}, allowed: {', '.join(DATA_SETS)}")
    return DATA_SETS[name]


def digest(name: str) -> str:
    """A digest of the contents of a data set: cheap once computed, and computed anew when a file has changed."""
    return known(name).digest()


def classes(name: str) -> int:
    """The number of classes of a data set."""
    return known(name).classes


def digits(streams: Streams, device: torch.device) -> Splits:
    """scikit-learn's digits, 1,797 images of 8×8: 60 % train, 20 % validation, 20 % test, drawn from the stream `split`.

    Inputs are (samples, 1, 8, 8), shifted and scaled by the mean and deviation of the training part.
    """
    return load("digits", streams).standardised().to(device)
