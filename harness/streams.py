"""Named random streams: what is random in a trial depends on its seed and the stream's name alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from harness.seeds import NAMES, derive


class Streams:
    """The random streams of one trial.

    Two methods under one seed share initial weights and batches, because each purpose draws from a stream of its own.

    Args:
        seed: one seed for every stream, or a seed for `init` with others by stream name
            (`{"init": 3, "split": 0}`: streams that are not named follow `init`).
    """

    def __init__(self, seed: int | Mapping[str, int]) -> None:
        self._seeds = dict(seed) if isinstance(seed, Mapping) else {"init": seed}
        self._torch: dict[str, torch.Generator] = {}
        self._numpy: dict[str, np.random.Generator] = {}

    def seed(self, name: str) -> int:
        """The derived seed of a stream; `data/3/7` is a stream of its own under the seed of `data`."""
        family = name.split("/")[0]
        if family not in NAMES:
            raise ValueError(f"stream: found {name!r}, allowed: {', '.join(NAMES)}")
        return derive(self._seeds.get(family, self._seeds["init"]), name)

    def fresh(self, name: str) -> torch.Generator:
        """A new generator at the start of the stream, not shared and not part of the state."""
        return torch.Generator().manual_seed(self.seed(name))

    def torch(self, name: str) -> torch.Generator:
        """The stream as a torch generator on the CPU, so that draws are the same on every device."""
        if name not in self._torch:
            self._torch[name] = self.fresh(name)
        return self._torch[name]

    def numpy(self, name: str) -> np.random.Generator:
        """The stream as a NumPy generator."""
        if name not in self._numpy:
            self._numpy[name] = np.random.default_rng(self.seed(name))
        return self._numpy[name]

    @contextmanager
    def default(self, name: str) -> Iterator[None]:
        """Makes a stream torch's default generator for a while: for code, such as `nn.init`, that takes no generator."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed(name))
            yield

    def state_dict(self) -> dict[str, Any]:
        """The position of every stream drawn from so far."""
        return {
            "torch": {name: generator.get_state() for name, generator in self._torch.items()},
            "numpy": {name: generator.bit_generator.state for name, generator in self._numpy.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts every stream back to a saved position."""
        for name, position in state["torch"].items():
            self.torch(name).set_state(position)
        for name, position in state["numpy"].items():
            self.numpy(name).bit_generator.state = position
