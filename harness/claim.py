"""The contract of claims: statements that a grid decides, written before it runs.

A kind of claim is a dataclass whose fields are what a grid may say of it, one of them named like the kind. It turns
evidence into contrasts: numbers by seed that are above zero where the statement holds. Everything else is common to all
kinds: the test, its correction over the family, failures, looks, what the grid could have detected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from harness.judging.evidence import Contrast, Evidence


class ClaimError(ValueError):
    """A claim that makes no sense: the text is `field: found X, allowed: Y`."""


@dataclass
class Claim:
    """A statement that a grid decides."""

    on: str = "*"
    """A glob over the tasks, by label or by name."""
    by: str = ""
    """The metric; unless given, the task's own on the test split."""
    direction: Literal["", "min", "max"] = ""
    """In which direction the metric is better, where neither the task nor its name says so."""
    at: Literal["best", "each"] = "best"
    """Axes: each method at its validation-best cell, or method against method at each point of the axes that they share."""
    where: str = "*"
    """A glob over what a cell says of its axes: `lr=0.001`."""
    ties: float = 0.0
    """Differences that are not larger count as none."""
    assume: Literal["symmetric", "normal"] = "symmetric"
    """Of the differences by seed: `normal` decides with fewer seeds, and is wrong where they are not."""

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Fields that a grid must give."""
    directed: ClassVar[bool] = True
    """Whether the metric has a better direction."""

    def check(self) -> None:
        """Checks fields against each other.

        Raises:
            ClaimError: naming the field.
        """

    def methods(self) -> dict[str, Sequence[str]]:
        """The globs over methods that the claim names, by field."""
        return {}

    def tasks(self) -> dict[str, str]:
        """The globs over tasks that the claim names, by field."""
        return {"on": self.on}

    def contrasts(self, evidence: Evidence) -> list[Contrast]:
        """What must be above zero, one by one: on every task, for every pair."""
        raise NotImplementedError

    def required(self, total: int) -> int:
        """How many of the contrasts, or groups of them, must be above zero."""
        return total

    def sentence(self) -> str:
        """The claim in words."""
        raise NotImplementedError

    def statement(self) -> str:
        """The sentence with the cells that the claim is restricted to."""
        return self.sentence() if self.where == "*" else f"{self.sentence()}, where {self.where}"

    def measure(self) -> str:
        """How the sentence names the metric and the tasks."""
        return f"by {self.by or 'the test metric'} on {self.scope()}"

    def scope(self) -> str:
        """How the sentence names the tasks."""
        return "all tasks" if self.on == "*" else self.on


@dataclass
class OverCells(Claim):
    """A statement about the cells of some methods taken together: one contrast for each task."""

    of: str = "*"
    """A glob over the methods."""

    directed: ClassVar[bool] = False

    def methods(self) -> dict[str, Sequence[str]]:
        return {"of": [self.of]}

    def contrasts(self, evidence: Evidence) -> list[Contrast]:
        return [self.contrast(evidence, task) for task in evidence.tasks(self.on)]

    def contrast(self, evidence: Evidence, task: str) -> Contrast:
        """What must be above zero on one task."""
        raise NotImplementedError
