"""Data sets whose samples come from people: writers of digits, speakers of a play."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.streams import Streams
from tasks.data import place
from tasks.data.splits import Split, Splits

FILES = {
    "mnist_writers": ("mnist_100_writers.npz", "images (n, 28, 28) of bytes, labels (n,) and writer (n,) of MNIST, by numpy.savez"),
    "shakespeare": ("tinyshakespeare_by_speaker.json", "user_data: speaker to speeches, of Tiny Shakespeare, as JSON"),
}  # fmt: skip


def file(name: str) -> Path:
    """The file of a data set, in `federated` of the data folder.

    Raises:
        MissingData: if it is not there.
    """
    path, content = FILES[name]
    return place.require(name, [place.folder() / "federated" / path], f"put a file there with {content}")[0]


def digest(name: str) -> str:
    """A digest of its contents."""
    return place.digest([file(name)])


def writers(streams: Streams) -> tuple[Splits, Tensor]:
    """Images of bytes (n, 1, 28, 28), 80 % train, 10 % validation, 10 % test, and the writer of each training image."""
    content = np.load(file("mnist_writers"))
    images, labels, writer = (torch.from_numpy(content[name].copy()) for name in ("images", "labels", "writer"))
    samples = Split(images.unsqueeze(1), labels.long())
    order = torch.randperm(len(samples), generator=streams.fresh("split"))
    parts = order.tensor_split([8 * len(order) // 10, 9 * len(order) // 10])
    return Splits(*(samples.take(part) for part in parts)), writer.long()[parts[0]]


@cache
def _speeches(path: Path, stamp: int) -> tuple[list[str], str]:
    users: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))["user_data"]
    texts = ["\n".join(users[name]) for name in sorted(users)]
    return texts, "".join(sorted(set("".join(texts))))


def _read() -> tuple[list[str], str]:
    path = file("shakespeare")
    return _speeches(path, path.stat().st_mtime_ns)


def vocabulary_size() -> int:
    """Distinct characters."""
    return len(_read()[1])


def speakers(context: int) -> tuple[Splits, Tensor]:
    """Samples of `context` characters and the characters that follow each: (n, context), (n, context).

    Of each speaker's text the first 80 % train, the next 10 % validate and the last 10 % test; what is left behind the last
    whole sample of a part is dropped. Nothing is drawn. The second tensor is the speaker of each training sample.
    """
    texts, alphabet = _read()
    codes = {character: code for code, character in enumerate(alphabet)}
    found: list[list[Tensor]] = [[], [], []]
    owners = []
    for speaker, text in enumerate(texts):
        encoded = torch.tensor([codes[character] for character in text])
        for index, part in enumerate(encoded.tensor_split([8 * len(text) // 10, 9 * len(text) // 10])):
            count = max(0, (len(part) - 1) // context)
            rows = (
                part[: count * context + 1].unfold(0, context + 1, context) if count else part.new_empty(0, context + 1)
            )
            found[index].append(rows)
            owners += [speaker] * count if index == 0 else []
    samples = [torch.cat(rows) for rows in found]
    return Splits(*(Split(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in samples)), torch.tensor(
        owners
    )
