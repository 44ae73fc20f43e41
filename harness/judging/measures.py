"""Kinds of claims about measures, regret, screening and cost. docs/claims.md has an example of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from harness.claim import Claim, ClaimError, OverCells
from harness.judging.kinds import different, union
from harness.registry import register_claim

if TYPE_CHECKING:
    from harness.judging.evidence import Contrast, Evidence, Scores
    from harness.planning.plan import PlannedTrial


@register_claim("value")
class Value(Claim):
    """A metric, or one over another, lies above or below a number, for every method named, on every task.

    A method with several cells is asked at its validation-best one, with `at: each` at all of them.
    """

    value: str = ""
    of: str = ""
    per: str = ""
    above: float | None = None
    below: float | None = None

    needs = frozenset({"of"})
    directed: ClassVar[bool] = False

    def check(self) -> None:
        if (self.above is None) == (self.below is None):
            raise ClaimError("above: found both or none of above and below, allowed: one; a band is two claims")
        if self.by:
            raise ClaimError(f"by: found {self.by!r}, allowed: nothing; the metric is the value")

    def methods(self) -> dict[str, Sequence[str]]:
        return {"of": [self.of]}

    def contrasts(self, evidence: Evidence) -> list[Contrast]:
        from harness.judging.evidence import Contrast

        sign, bound = (1.0, self.above) if self.above is not None else (-1.0, self.below or 0.0)

        def distance(trial: PlannedTrial) -> float | None:
            top = evidence.value(trial, self.value)
            bottom = evidence.value(trial, self.per) if self.per else 1.0
            return None if top is None or not bottom else sign * (top / bottom - bound)

        found = []
        for task in evidence.tasks(self.on):
            for cells in self._compared(evidence, task):
                read = partial(evidence.collect, task, read=distance, name=self._name())
                chosen = evidence.choose(task, cells, read, *evidence.own(task))
                details = {"bound": bound} | (chosen.told() if len(cells) > 1 else {})
                found.append(Contrast(self._label(evidence, task, cells), chosen.scores, self._name(), details))
        return found

    def _compared(self, evidence: Evidence, task: str) -> list[list[str]]:
        """The cells by method, of which the validation-best counts; under `each` every cell by itself."""
        cells = evidence.matched(task, self.of, self.where)
        if self.at == "each":
            return [[cell] for cell in cells]
        by_method: dict[str, list[str]] = {}
        for cell in cells:
            by_method.setdefault(evidence.trial(task, cell).method_label, []).append(cell)
        return list(by_method.values())

    def _label(self, evidence: Evidence, task: str, cells: list[str]) -> str:
        """The cell, or the task and the method that has several."""
        return cells[0] if len(cells) == 1 else f"{task} · {evidence.trial(task, cells[0]).method_label}"

    def _name(self) -> str:
        return f"{self.value} / {self.per}" if self.per else self.value

    def sentence(self) -> str:
        side = f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"
        return f"{self._name()} of {self.of} is {side} on {self.scope()}"


@register_claim("regret")
class Regret(Claim):
    """How far a method is from the best cell of the grid: below a bound on every task, or less than another in the worst case.

    The best cell, the oracle, is that with the best mean of the metric, among all methods unless `among` names some. As wherever
    cells are chosen, the first third of the seeds chooses it and the others judge.
    With `chosen_on`, `than` is one fixed choice for all tasks: of the methods that it matches, that with the least mean regret
    over these tasks, development tasks say. Claims of other tasks then owe nothing to the choice.
    """

    regret: str = ""
    than: str = ""
    below: float | None = None
    among: tuple[str, ...] = ("*",)
    chosen_on: str = ""
    relative: bool = True

    def check(self) -> None:
        if bool(self.than) == (self.below is not None):
            raise ClaimError("than: found both or none of than and below, allowed: one")
        if self.chosen_on and not self.than:
            raise ClaimError(
                f"chosen_on: found {self.chosen_on!r}, allowed: nothing without than, which is what is chosen"
            )

    def methods(self) -> dict[str, Sequence[str]]:
        return {"regret": [self.regret], "among": self.among} | ({"than": [self.than]} if self.than else {})

    def tasks(self) -> dict[str, str]:
        return {"on": self.on} | ({"chosen_on": self.chosen_on} if self.chosen_on else {})

    def contrasts(self, evidence: Evidence) -> list[Contrast]:
        from harness.judging.evidence import Contrast, Scores

        tasks = evidence.tasks(self.on)
        ours = [self._gain(evidence, task, self.regret) for task in tasks]
        unit = "share of the oracle" if self.relative else "regret"
        if self.below is not None:
            bound = self.below
            return [Contrast(t, gain.plus(bound), unit, {"bound": bound}) for t, gain in zip(tasks, ours, strict=True)]
        choosing = self._choosing(evidence) if self.chosen_on else {}
        other = max(choosing, key=lambda label: _total(choosing[label])) if choosing else self.than
        theirs = [self._gain(evidence, task, other) for task in tasks]
        worst = Scores.combine(ours, "worst").minus(Scores.combine(theirs, "worst"))
        worst = worst.resting_on([gain for gains in choosing.values() for gain in gains])
        return [Contrast("worst case over tasks", worst, unit, {"tasks": tasks, "than": other})]

    def _choosing(self, evidence: Evidence) -> dict[str, list[Scores]]:
        """Minus the regrets of the methods that `than` matches on the tasks that choose among them, by label."""
        tasks = evidence.tasks(self.chosen_on)
        labels = evidence.methods(tasks[0], self.than) if tasks else []
        if not labels:
            raise ClaimError(
                f"chosen_on: found no trial of {self.than} on {self.chosen_on}, allowed: tasks that it ran on"
            )
        return {label: [self._gain(evidence, task, label) for task in tasks] for label in labels}

    def _gain(self, evidence: Evidence, task: str, method: str) -> Scores:
        """Minus the regret."""
        metric = evidence.metric(task, self.by)
        own = evidence.best(task, evidence.cells(task, method, self.where), metric, self.direction).scores
        oracle = evidence.oracle(task, union(evidence, task, self.among, "*"), metric, self.direction)
        gain = own.minus(oracle)
        return gain.over(oracle) if self.relative else gain

    def sentence(self) -> str:
        what = "relative regret" if self.relative else "regret"
        if self.below is not None:
            return f"the {what} of {self.regret} to the grid's oracle is below {self.below:g} {self.measure()}"
        return f"the worst-case {what} of {self.regret} is less than that of {self.than} {self.measure()}"


@register_claim("correlated")
class Correlated(OverCells):
    """Over the cells of a task, a metric goes with another by rank: each seed gives one correlation.

    `early: 0.1` takes the metric as it stood at a tenth of the training; the other one as it ended.
    """

    correlated: str = ""
    against: str = ""
    above: float = 0.0
    early: float = 1.0
    kind: Literal["spearman", "kendall"] = "spearman"
    inverse: bool = False

    needs = frozenset({"against"})

    def check(self) -> None:
        if self.by:
            raise ClaimError(f"by: found {self.by!r}, allowed: nothing; the metrics are `correlated` and `against`")
        fraction("early", self.early)
        if not -1 <= self.above < 1:
            raise ClaimError(f"above: found {self.above:g}, allowed: from -1 to below 1")

    def contrast(self, evidence: Evidence, task: str) -> Contrast:
        from harness.judging.screening import correlation_by_seed

        return correlation_by_seed(self, evidence, task)

    def sentence(self) -> str:
        how = "falls" if self.inverse else "rises"
        when = f" at {self.early:.0%} of training" if self.early < 1 else ""
        found = f"{self.correlated}{when} {how} with {self.against} over the cells of {self.of}"
        return f"{found} on {self.scope()} (above {self.above:g})"


@register_claim("precision")
class Precision(Claim):
    """A rule that accepts runs early has a precision above a bound, or above that of another rule, at a given recall.

    A rule accepts what lies on one side of a threshold, or in a band. Thresholds are set for the best precision at that
    recall on the other seeds, and judged on the seed left out.
    """

    precision: str = ""
    than: str = ""
    above: float | None = None
    recall: float = 0.8
    success: float | None = None
    accepts: Literal["high", "low", "band"] = "high"
    than_accepts: Literal["high", "low", "band"] = "high"
    early: float = 0.1
    of: str = "*"

    needs = frozenset({"success"})

    def check(self) -> None:
        if bool(self.than) == (self.above is not None):
            raise ClaimError("than: found both or none of than and above, allowed: one")
        fraction("recall", self.recall)
        fraction("early", self.early)

    def methods(self) -> dict[str, Sequence[str]]:
        return {"of": [self.of]}

    def contrasts(self, evidence: Evidence) -> list[Contrast]:
        from harness.judging.screening import precision_by_seed

        return [precision_by_seed(self, evidence, task) for task in evidence.tasks(self.on)]

    def sentence(self) -> str:
        sides = {"high": "high", "low": "low", "band": "a band of"}
        bound = f"that of {sides[self.than_accepts]} {self.than}" if self.than else f"{self.above:g}"
        rule = f"{self.precision} at {self.early:.0%} of training over the cells of {self.of}"
        return f"accepting {sides[self.accepts]} {rule} has a precision above {bound} at recall {self.recall:g} {self.measure()}"


@register_claim("screening")
class Screening(Claim):
    """A screening rule has a higher precision than each of others at the same recall, or than stopping nothing.

    Rules are those of `screening:` in a grid, conjunctions included, fitted as there. A run of a learning rate is a success
    if its return over the last tenth is at least the best mean of a learning rate less a tenth of its size. Thresholds are set
    on the other seeds and judged on the seed left out.
    """

    screening: str = ""
    than: tuple[str, ...] = ()
    recall: float = 0.8
    early: float = 0.1
    of: str = "*"

    needs = frozenset({"of"})

    def check(self) -> None:
        from harness.screening import quantities

        for field, rule in [("screening", self.screening), *(("than", rule) for rule in self.than)]:
            try:
                quantities(rule)
            except ValueError as error:
                raise ClaimError(str(error).replace("rule", field, 1)) from None
        if self.screening in self.than:
            raise ClaimError(f"than: found {self.screening!r} itself, allowed: other rules")
        if self.by or self.direction:
            raise ClaimError(f"by: found {self.by or self.direction!r}, allowed: nothing; the final return decides")
        fraction("recall", self.recall)
        fraction("early", self.early)

    def methods(self) -> dict[str, Sequence[str]]:
        return {"of": [self.of]}

    def contrasts(self, evidence: Evidence) -> list[Contrast]:
        from harness.judging.screening import rules_by_seed

        return [contrast for task in evidence.tasks(self.on) for contrast in rules_by_seed(self, evidence, task)]

    def sentence(self) -> str:
        others = f"screening by {', by '.join(self.than)}" if self.than else "stopping nothing"
        rule = f"screening by {self.screening} at {self.early:.0%} of training"
        return f"{rule} has a higher precision at recall {self.recall:g} than {others} on {self.scope()}"


@register_claim("saves")
class Saves(Claim):
    """One method needs less than another by a share at least: of a cost, or of the time to a target, on every task."""

    saves: str = ""
    than: str = ""
    at_least: float = 0.0
    to: float | None = None
    clock: Literal["steps", "seconds"] = "steps"

    needs = frozenset({"than"})
    directed: ClassVar[bool] = False

    def check(self) -> None:
        different("than", self.saves, self.than)
        if not 0 <= self.at_least < 1:
            raise ClaimError(f"at_least: found {self.at_least:g}, allowed: a share from 0 to below 1")

    def methods(self) -> dict[str, Sequence[str]]:
        return {"saves": [self.saves], "than": [self.than]}

    def contrasts(self, evidence: Evidence) -> list[Contrast]:
        from harness.judging.screening import saving

        return [saving(self, evidence, task) for task in evidence.tasks(self.on)]

    def sentence(self) -> str:
        metric = self.by or "the validation metric"
        what = f"{self.clock} to {metric} {self.to:g}" if self.to is not None else self.by or "time/train_seconds"
        return f"{self.saves} saves at least {self.at_least:.0%} of the {what} that {self.than} needs on {self.scope()}"


def _total(scores: Sequence[Scores]) -> float:
    """The sum of the means over the seeds that count and have a score; a failure outweighs all others."""
    known = [each.low[each.judged & each.present] for each in scores]
    if any(not len(low) or np.isneginf(low).any() for low in known):
        return -math.inf
    return sum(float(low.mean()) for low in known)


def fraction(field: str, value: float) -> None:
    """Refuses what is no share."""
    if not 0 < value <= 1:
        raise ClaimError(f"{field}: found {value:g}, allowed: more than 0, at most 1")
