"""Claims with the contrasts that their evidence comes to, and the looks at which they are judged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.claim import Claim, ClaimError
from harness.judging.evidence import Evidence, units
from harness.judging.paired import at_least, holm, ranked_failures, sign_flip_p, smallest_p, student_p
from harness.judging.scores import Contrast
from harness.planning.claims import PlannedClaim
from harness.planning.plan import Plan
from harness.registry import Registry


@dataclass(frozen=True)
class Read:
    """A claim with the contrasts that its evidence comes to."""

    planned: PlannedClaim
    claim: Claim
    contrasts: tuple[Contrast, ...] = ()
    required: int = 1
    trouble: str = ""
    """Why there are none."""

    @property
    def held(self) -> list[str]:
        """What is missing."""
        return sorted(set().union(*(contrast.scores.held for contrast in self.contrasts)))

    @property
    def trials(self) -> set[str]:
        """The trials that it rests on."""
        return set().union(*(contrast.scores.trials for contrast in self.contrasts))

    def p(self) -> tuple[float, float]:
        """P-values of the claim being false, and of its being true; 1 while something is missing."""
        if self.trouble or not all(contrast.scores.complete for contrast in self.contrasts):
            return 1.0, 1.0
        pairs = [[contrast_p(contrast, self.claim) for contrast in group] for group in self.groups]
        above = [at_least([p for p, _ in group], len(group)) for group in pairs]
        below = [at_least([p for _, p in group], 1) for group in pairs]
        return at_least(above, self.required), at_least(below, len(pairs) - self.required + 1)

    @property
    def groups(self) -> list[list[Contrast]]:
        """Contrasts that count as one."""
        found: dict[str, list[Contrast]] = {}
        for index, contrast in enumerate(self.contrasts):
            found.setdefault(contrast.group or f"alone {index}", []).append(contrast)
        return list(found.values())

    @property
    def seeds(self) -> int:
        """How many seeds judge it, those aside that were spent on choosing cells."""
        return min((int(contrast.scores.judged.sum()) for contrast in self.contrasts), default=0)

    def smallest(self, n: int) -> tuple[float, float]:
        """The smallest p-values that any outcome could give with n seeds to judge."""
        if self.trouble or not self.contrasts:
            return 1.0, 1.0
        if self.claim.assume == "normal" and n > 1:
            return 0.0, 0.0
        groups, least = self.groups, smallest_p(n)
        wrong = self.required * min(map(len, groups))
        return min(1.0, (len(groups) - self.required + 1) * least), min(1.0, wrong * least)


def contrast_p(contrast: Contrast, claim: Claim) -> tuple[float, float]:
    """One-sided p-values of a contrast; what is censored counts against either."""
    bounds = contrast.scores.bounds()
    if not len(bounds[0]):
        return 1.0, 1.0
    low, high = map(ranked_failures, bounds)
    finite = np.isfinite(bounds).all()
    test = student_p if claim.assume == "normal" and finite else sign_flip_p
    return float(test(low)[0]), float(test(high)[1])


def read_claims(evidence: Evidence, registry: Registry) -> list[Read]:
    """The claims of a plan with their contrasts."""
    found = []
    for planned in evidence.plan.claims.listed:
        claim = registry.build_claim(planned.kind, planned.fields)
        try:
            contrasts = tuple(claim.contrasts(evidence))
            if not contrasts:
                raise ClaimError("found no trials for it, allowed: tasks and methods that can run together")
            count = len(Read(planned, claim, contrasts).groups)
            found.append(Read(planned, claim, contrasts, claim.required(count)))
        except ClaimError as error:
            found.append(Read(planned, claim, trouble=str(error)))
    return found


@dataclass(frozen=True)
class Look:
    """One time at which a grid is judged."""

    number: int
    of: int
    seeds: int
    level: float


def looks(plan: Plan) -> list[Look]:
    """When a grid is judged, and with which part of the level: in proportion to the seeds since the look before.

    The parts add up to the level, so that the chance of any wrong verdict at any look stays below it, whatever the data.
    """
    seeds = plan.claims.looks or (len(units(plan)[1]),)
    steps = [now - before for before, now in zip((0, *seeds), seeds, strict=False)]
    return [
        Look(index + 1, len(seeds), n, plan.claims.level * step / seeds[-1])
        for index, (n, step) in enumerate(zip(seeds, steps, strict=True))
    ]


def undecidable(plan: Plan, registry: Registry | None = None) -> dict[str, str]:
    """Claims that no outcome of this grid could decide, by hash, and why: for `plan`.

    The best that can happen is that every claim has the smallest p-value that its seeds allow.
    """
    found: dict[str, str] = {}
    possible: set[str] = set()
    for look in looks(plan):
        evidence = Evidence(plan, {}, lambda hash: (), look.seeds)
        reads = read_claims(evidence, registry or Registry())
        smallest = [read.smallest(read.seeds) for read in reads]
        for side in (0, 1):
            for read, p in zip(reads, holm([pair[side] for pair in smallest]), strict=True):
                if p <= look.level:
                    possible.add(read.planned.hash)
        for read in reads:
            enough = f"{read.seeds} seeds are too few at {look.level:.3g}, corrected for {len(reads)} claims"
            found[read.planned.hash] = read.trouble or f"{enough}: {_needed(read, look.level, len(reads))} would do"
    return {hash: reason for hash, reason in found.items() if hash not in possible}


def _needed(read: Read, level: float, family: int) -> str:
    n = next((n for n in range(1, 14) if min(read.smallest(n)) * family <= level), None)
    return "no number" if n is None else str(n)
