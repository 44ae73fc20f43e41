"""What a trial asks for, and the places of its ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

REPEATABLE_CUBLAS = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
"""The variable by which products of matrices have the same bits every time; cuBLAS reads it when it begins."""


@dataclass(frozen=True)
class Resources:
    """What each trial of a cell asks for, and what its unit gets."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int | None = None
    """Bytes that the processes of a trial may take together."""
    time: float | None = None
    """Seconds that a trial may take."""
    ranks: int = 1
    """Processes that share each step of a trial, data-parallel. Each gets the CPUs, GPUs and memory above."""
    custom: tuple[tuple[str, float], ...] = ()
    """Resources that the nodes of a cluster were given by name, and how much of each."""
    expected: int | None = None
    """Bytes that earlier trials of the cell took: a node is asked for them, and nothing is limited to them."""

    def __post_init__(self) -> None:
        custom = self.custom.items() if isinstance(self.custom, dict) else self.custom
        object.__setattr__(self, "custom", tuple(sorted((str(name), float(amount)) for name, amount in custom)))

    @property
    def bundle(self) -> dict[str, float]:
        """What one rank asks of a node, in Ray's names."""
        asked = {
            "CPU": self.cpus,
            "GPU": self.gpus,
            "memory": float(self.memory or self.expected or 0),
            **dict(self.custom),
        }
        return {name: float(amount) for name, amount in asked.items() if amount}

    def at_once(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """How many such trials run at a time on nodes that have nothing else to do; 1 at least.

        Args:
            nodes: the resources of each node, by Ray's names.

        >>> Resources(cpus=2, gpus=0.5).at_once([{"CPU": 16, "GPU": 2}, {"CPU": 8}])
        4
        """
        return int(max(1, self.room(nodes) // self.ranks))

    def room(self, nodes: Sequence[Mapping[str, float]]) -> float:
        """How many ranks of this size nodes hold that have nothing else to do."""
        asked = self.bundle.items()
        return sum(min(node.get(name, 0) / amount for name, amount in asked) // 1 for node in nodes)

    @property
    def threads(self) -> int:
        """Threads that a trial computes with."""
        return max(1, int(self.cpus))

    @property
    def device(self) -> str:
        """The kind of device that a trial computes on."""
        return "cuda" if self.gpus > 0 else "cpu"


def this_machine() -> dict[str, float]:
    """What this machine has, by Ray's names. GPUs are counted by their device files: asking their driver takes seconds."""
    gpus = list(Path("/dev").glob("nvidia[0-9]*"))
    return {"CPU": os.cpu_count() or 1, "GPU": len(gpus), "memory": psutil.virtual_memory().total}


def devices() -> list[str]:
    """The devices that a trial in this process may compute on, as torch sees them."""
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def thread_variables(threads: int) -> dict[str, str]:
    """What tells every library that computes how many threads it may start; read when it is loaded."""
    libraries = ("OMP_NUM", "MKL_NUM", "OPENBLAS_NUM", "NUMEXPR_NUM", "VECLIB_MAXIMUM")
    return dict.fromkeys([f"{library}_THREADS" for library in libraries], str(threads))


@dataclass(frozen=True)
class Seat:
    """A rank's place in a trial.

    Args:
        index: of the rank; the first one, 0, writes the records.
        world: the number of ranks.
        address: where the first rank listens, as `host:port`.
        device: `cpu`, whose ranks talk through gloo, or `cuda`, through NCCL.
    """

    index: int
    world: int
    address: str
    device: str
