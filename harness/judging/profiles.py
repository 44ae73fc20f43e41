"""A kind of claim about profiles over layers. docs/claims.md has an example."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from harness.claim import ClaimError, OverCells
from harness.registry import register_claim

if TYPE_CHECKING:
    from harness.judging.evidence import Contrast, Evidence


@register_claim("profile")
class Profile(OverCells):
    """The layers are in the same order in several cells, on every task: the mean rank correlation over all pairs of cells.

    A profile is all final metrics under a name: `probe/gate_hardness/lambda` has one value for each gate.
    """

    profile: str = ""
    of: str = ""
    above: float = 0.0

    needs = frozenset({"of"})

    def check(self) -> None:
        if self.by:
            raise ClaimError(f"by: found {self.by!r}, allowed: nothing; the metrics are those of the profile")
        if not -1 <= self.above < 1:
            raise ClaimError(f"above: found {self.above:g}, allowed: from -1 to below 1")

    def contrast(self, evidence: Evidence, task: str) -> Contrast:
        from harness.judging.evidence import Contrast, Scores

        cells = evidence.matched(task, self.of, self.where)
        if len(cells) < 2:
            raise ClaimError(
                f"of: found {len(cells)} cells on {task}, allowed: at least two, whose profiles are compared"
            )
        whole = Scores.combine(
            [evidence.collect(task, cell, lambda trial: 0.0, self.profile) for cell in cells], "mean"
        )
        trials = [evidence.by_unit(task, cell) for cell in cells]
        found = [
            self._correlation(evidence, [of_cell[seed] for of_cell in trials]) for seed in range(len(evidence.units))
        ]
        known = np.array([value is not None for value in found]) | np.isinf(whole.low)
        numbers = np.array([0.0 if value is None else value - self.above for value in found])
        present = whole.present & known
        missing = frozenset() if known.all() else frozenset({f"{task}: without {self.profile}, or one of equal values"})
        scores = replace(
            whole, low=whole.low + numbers, high=whole.high + numbers, present=present, held=whole.held | missing
        )
        return Contrast(task, scores, "rank correlation", {"cells": len(cells)})

    def _correlation(self, evidence: Evidence, trials: Sequence[object]) -> float | None:
        from harness.judging.statistics import rank_correlation

        profiles = []
        for trial in trials:
            result = evidence.results.get(trial.hash)  # type: ignore[attr-defined]
            own = result.metrics if result else {}
            profiles.append({name: value for name, value in own.items() if name.startswith(self.profile + "/")})
        pairs = []
        for one, other in itertools.combinations(profiles, 2):
            shared = sorted(one.keys() & other.keys())
            pairs.append(rank_correlation([one[n] for n in shared], [other[n] for n in shared]) if shared else None)
        known = [pair for pair in pairs if pair is not None]
        return sum(known) / len(known) if known and len(known) == len(pairs) else None

    def sentence(self) -> str:
        return f"the profiles {self.profile} of {self.of} agree by rank above {self.above:g} on {self.scope()}"
