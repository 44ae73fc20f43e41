"""What a trial asks for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """What each trial of a cell asks for, and what its unit gets."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int | None = None
    """Bytes that the processes of a trial may take together."""
    time: float | None = None
    """Seconds that a trial may take."""

    @property
    def threads(self) -> int:
        """Threads that a trial computes with."""
        return max(1, int(self.cpus))

    @property
    def device(self) -> str:
        """The kind of device that a trial computes on."""
        return "cuda" if self.gpus > 0 else "cpu"
