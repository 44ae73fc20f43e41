"""The contract of a probe: what is measured on the way without touching it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from harness.method import State


@dataclass
class Probe:
    """Measures a run and never changes its trajectory: with and without the probe, every weight has the same bits.

    Subclasses are dataclasses (`register_probe` makes them so); their fields are options. A forward pass of the model
    runs inside `harness.activations.observe`.

    `every` is the cadence in steps; 0 means: at every evaluation.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = ""

    every: int = 0

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"every: found {self.every}, must not be negative")

    def start(self, state: State) -> None:
        """Called once, before the first step (and again after a resume, before `load_state_dict`)."""

    def before_step(self, state: State) -> None:
        """Called at the probe's cadence, before the optimizer moves the weights."""

    def after_step(self, state: State) -> dict[str, float]:
        """Called at the probe's cadence, after the step; the metrics are recorded under `probe/`."""
        return {}

    def finish(self, state: State) -> dict[str, float]:
        """Called once at the end: what the whole run comes to, among the final metrics under `probe/`.

        The values that were measured last are there already.
        """
        return {}

    def pictures(self) -> dict[str, str]:
        """What to look at once the trial is finished, as SVG texts by file name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
