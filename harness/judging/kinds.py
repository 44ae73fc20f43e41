"""Kinds of claims that compare methods. docs/claims.md has an example of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.claim import Claim, ClaimError
from harness.registry import register_claim

if TYPE_CHECKING:
    from harness.judging.evidence import Contrast, Evidence


@register_claim("better")
class Better(Claim):
    """One method is better than another, on every task: by more than the margin, where one is given."""

    better: str = ""
    than: str = ""
    margin: float = 0.0

    needs = frozenset({"than"})

    def check(self) -> None:
        different("than", self.better, self.than)
        not_negative(self.margin)

    def methods(self) -> dict[str, Sequence[str]]:
        return {"better": [self.better], "than": [self.than]}

    def contrasts(self, evidence: Evidence) -> list[Contrast]:
        return list(comparisons(self, evidence, self.better, self.than, -self.margin))

    def sentence(self) -> str:
        margin = f" by more than {self.margin:g}" if self.margin else ""
        return f"{self.better} is better than {self.than}{margin} {self.measure()}"


@register_claim("not_worse")
class NotWorse(Claim):
    """One method is worse than another by less than a margin, on every task (non-inferiority)."""

    not_worse: str = ""
    than: str = ""
    margin: float = 0.0

    needs = frozenset({"than", "margin"})

    def check(self) -> None:
        different("than", self.not_worse, self.than)
        if self.margin <= 0:
            raise ClaimError(f"margin: found {self.margin:g}, allowed: more than 0")

    def methods(self) -> dict[str, Sequence[str]]:
        return {"not_worse": [self.not_worse], "than": [self.than]}

    def contrasts(self, evidence: Evidence) -> list[Contrast]:
        return list(comparisons(self, evidence, self.not_worse, self.than, self.margin))

    def sentence(self) -> str:
        return f"{self.not_worse} is worse than {self.than} by less than {self.margin:g} {self.measure()}"


@register_claim("ordered")
class Ordered(Claim):
    """Methods in order, the best first: each is better than the next, on every task."""

    ordered: tuple[str, ...] = ()

    def check(self) -> None:
        if len(self.ordered) < 2 or len(set(self.ordered)) < len(self.ordered):
            raise ClaimError(f"ordered: found {list(self.ordered)}, allowed: at least two different methods")

    def methods(self) -> dict[str, Sequence[str]]:
        return {"ordered": self.ordered}

    def contrasts(self, evidence: Evidence) -> list[Contrast]:
        pairs = zip(self.ordered, self.ordered[1:], strict=False)
        return [found for one, other in pairs for found in comparisons(self, evidence, one, other)]

    def sentence(self) -> str:
        return f"{' > '.join(self.ordered)} (better first) {self.measure()}"


@register_claim("wins")
class Wins(Claim):
    """One method is better than each of the others on at least so many tasks; with `at: each`, points of the axes are counted."""

    wins: str = ""
    over: tuple[str, ...] = ()
    at_least: int = 1

    needs = frozenset({"over", "at_least"})

    def check(self) -> None:
        if self.wins in self.over:
            raise ClaimError(f"over: found {self.wins!r} itself, allowed: other methods")
        if self.at_least < 1:
            raise ClaimError(f"at_least: found {self.at_least}, allowed: at least 1")

    def methods(self) -> dict[str, Sequence[str]]:
        return {"wins": [self.wins], "over": self.over}

    def contrasts(self, evidence: Evidence) -> list[Contrast]:
        found = [
            replace(contrast, label=f"{contrast.label}: {other}", group=contrast.label)
            for task in evidence.tasks(self.on)
            for other in self.over
            for contrast in comparisons(self, evidence, self.wins, other, task=task)
        ]
        if any(count < len(self.over) for count in Counter(contrast.group for contrast in found).values()):
            raise ClaimError("at: found points of the axes that not all of `over` have, allowed: best")
        return found

    def required(self, total: int) -> int:
        if self.at_least > total:
            raise ClaimError(
                f"at_least: found {self.at_least}, allowed: 1 to {total}, the {self._counted()} that {self.on!r} matches"
            )
        return self.at_least

    def _counted(self) -> str:
        return "settings" if self.at == "each" else "tasks"

    def sentence(self) -> str:
        count = f"{self.at_least} {self._counted()}"
        return f"{self.wins} is better than {' and '.join(self.over)} on at least {count} {self.measure()}"


@register_claim("interaction")
class Interaction(Claim):
    """What one method gains over another is more on the one task than on the other."""

    interaction: str = ""
    than: str = ""
    more_on: str = ""
    than_on: str = ""
    margin: float = 0.0

    needs = frozenset({"than", "more_on", "than_on"})

    def check(self) -> None:
        different("than", self.interaction, self.than)
        different("than_on", self.more_on, self.than_on)
        not_negative(self.margin)
        if self.at == "each":
            raise ClaimError("at: found 'each', allowed: best")

    def methods(self) -> dict[str, Sequence[str]]:
        return {"interaction": [self.interaction], "than": [self.than]}

    def tasks(self) -> dict[str, str]:
        return {"more_on": self.more_on, "than_on": self.than_on}

    def contrasts(self, evidence: Evidence) -> list[Contrast]:
        from harness.judging.evidence import Contrast

        gains = []
        for field, glob in self.tasks().items():
            tasks = evidence.tasks(glob)
            if len(tasks) != 1:
                raise ClaimError(f"{field}: found {glob!r}, which is {len(tasks)} tasks, allowed: one")
            gains.append(next(iter(comparisons(self, evidence, self.interaction, self.than, task=tasks[0]))))
        more, less = gains
        difference = more.scores.minus_difference(less.scores).plus(-self.margin)
        details = {more.label: more.details, less.label: less.details}
        return [Contrast(f"{more.label} against {less.label}", difference, more.unit, details)]

    def sentence(self) -> str:
        gain = f"what {self.interaction} gains over {self.than} by {self.by or 'the test metric'}"
        margin = f" by more than {self.margin:g}" if self.margin else ""
        return f"{gain} is more on {self.more_on} than on {self.than_on}{margin}"


@register_claim("contrast")
class FactorContrast(Claim):
    """The mean over some cells is better than the mean over the others that `against` matches, on every task."""

    contrast: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    margin: float = 0.0

    needs = frozenset({"against"})

    def check(self) -> None:
        not_negative(self.margin)

    def methods(self) -> dict[str, Sequence[str]]:
        return {"contrast": self.contrast, "against": self.against}

    def contrasts(self, evidence: Evidence) -> list[Contrast]:
        from harness.judging.evidence import Contrast, Scores

        found = []
        for task in evidence.tasks(self.on):
            metric = evidence.metric(task, self.by)
            ours = union(evidence, task, self.contrast, self.where)
            rest = [cell for cell in union(evidence, task, self.against, self.where) if cell not in ours]
            if not ours or not rest:
                raise ClaimError(
                    f"against: found {len(ours)} cells against {len(rest)} on {task}, allowed: some on each side"
                )
            means = [
                Scores.combine([evidence.scores(task, cell, metric, self.direction) for cell in cells], "mean")
                for cells in (ours, rest)
            ]
            details = {"cells": ours, "against": rest}
            found.append(Contrast(task, means[0].minus(means[1]).plus(-self.margin), metric, details))
        return found

    def sentence(self) -> str:
        sides = [" and ".join(side) for side in (self.contrast, self.against)]
        margin = f" by more than {self.margin:g}" if self.margin else ""
        return f"{sides[0]} is better on average than the rest of {sides[1]}{margin} {self.measure()}"


def different(field: str, one: str, other: str) -> None:
    """Refuses a comparison of something with itself."""
    if one == other:
        raise ClaimError(f"{field}: found {other!r}, allowed: something else than {one!r}")


def not_negative(margin: float) -> None:
    """Refuses a margin that would let a statement hold where the opposite is true."""
    if margin < 0:
        raise ClaimError(f"margin: found {margin:g}, allowed: at least 0; `not_worse` has a margin the other way")


def union(evidence: Evidence, task: str, globs: Sequence[str], where: str) -> list[str]:
    """The cells of a task that any of some globs matches, each once."""
    return list(dict.fromkeys(cell for glob in globs for cell in evidence.cells(task, glob, where)))


def comparisons(
    claim: Claim, evidence: Evidence, one: str, other: str, margin: float = 0.0, task: str | None = None
) -> Iterator[Contrast]:
    """One method minus another plus the margin, on each task: at their best cells, or at each point of the axes."""
    for label in [task] if task else evidence.tasks(claim.on):
        metric = evidence.metric(label, claim.by)
        cells = [evidence.cells(label, glob, claim.where) for glob in (one, other)]
        if not all(cells):
            missing = one if not cells[0] else other
            raise ClaimError(
                f"found no trial of {missing} on {label}, allowed: tasks on which every method named can run"
            )
        if claim.at == "best":
            yield _against(claim, evidence, label, metric, (label, cells[0], cells[1]), margin)
            continue
        points = evidence.shared_points(label, *cells)
        if not points:
            raise ClaimError(f"at: found no point of the axes that {one} and {other} share on {label}, allowed: best")
        for point, (ours, theirs) in points.items():
            name = f"{label} · {point}" if point else label
            yield _against(claim, evidence, label, metric, (name, [ours], [theirs]), margin)


def _against(
    claim: Claim,
    evidence: Evidence,
    task: str,
    metric: str,
    sides: tuple[str, list[str], list[str]],
    margin: float = 0.0,
) -> Contrast:
    from harness.judging.evidence import Contrast

    label, ours, theirs = sides
    chosen = [evidence.best(task, cells, metric, claim.direction) for cells in (ours, theirs)]
    difference = chosen[0].scores.minus(chosen[1].scores).tied(claim.ties).plus(margin)
    details = {
        "metric": metric,
        "ours": chosen[0].told(),
        "theirs": chosen[1].told(),
        "margin": margin,
    }
    return Contrast(label, difference, metric, details)
