"""Claims with the contrasts that their evidence comes to, and the looks at which they are judged."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from harness.claim import Claim, ClaimError
from harness.judging.evidence import Evidence, choosing_seeds, units
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

    @property
    def chooses(self) -> bool:
        """Whether seeds are spent on choosing cells."""
        return not all(contrast.scores.judged.all() for contrast in self.contrasts)

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
    above, below = test(low)
    if not np.array_equal(low, high):  # something is censored
        _, below = test(high)
    return float(above), float(below)


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


Outcomes = tuple[set[str], set[str]]
"""Claims by hash that could come out supported, and contradicted."""


def undecidable(plan: Plan, registry: Registry | None = None, gone: int = 0) -> dict[str, str]:
    """Claims that no outcome of this grid could decide, by hash, and why: for `plan`.

    The best that can happen is that every claim has the smallest p-value that its seeds allow; those that were asked before
    and are asked no more, `gone`, stay in the family as ones that failed.
    """
    reads, level, (supported, contradicted) = _possible(plan, registry or Registry(), gone)
    family = len(reads) + gone
    return {
        read.planned.hash: read.trouble
        or f"{_too_few(read, level, family)}: {_needed(read, level, family, (0, 1))} would do"
        for read in reads
        if read.planned.hash not in supported | contradicted
    }


def one_sided(plan: Plan, registry: Registry | None = None, gone: int = 0) -> dict[str, str]:
    """Claims that this grid could support but never contradict, or the other way round, by hash, and what would do."""
    reads, level, outcomes = _possible(plan, registry or Registry(), gone)
    family = len(reads) + gone
    return {
        read.planned.hash: f"{_too_few(read, level, family)} for {word}: {_needed(read, level, family, (side,))} would do"
        for read in reads
        for side, word in enumerate(("supported", "contradicted"))
        if read.planned.hash not in outcomes[side] and read.planned.hash in outcomes[1 - side]
    }


def _possible(plan: Plan, registry: Registry, gone: int) -> tuple[list[Read], float, Outcomes]:
    """The claims at the last look, its level, and what could come out of any look."""
    outcomes: Outcomes = (set(), set())
    reads: list[Read] = []
    for look in looks(plan):
        reads = read_claims(Evidence(plan, {}, lambda hash: (), look.seeds), registry)
        smallest = [read.smallest(read.seeds) for read in reads]
        for side, found in enumerate(outcomes):
            adjusted = holm([*(pair[side] for pair in smallest), *[1.0] * gone])
            found |= {read.planned.hash for read, p in zip(reads, adjusted, strict=False) if p <= look.level}
    return reads, looks(plan)[-1].level, outcomes


def corrected(family: int) -> str:
    """What the correction over a family of claims is told as.

    >>> corrected(1), corrected(2)
    ('corrected for 1 claim', 'corrected for 2 claims')
    """
    return f"corrected for {family} claim{'s' * (family != 1)}"


def _too_few(read: Read, level: float, family: int) -> str:
    total = max((len(contrast.scores.judged) for contrast in read.contrasts), default=0)
    spent = f", {total - read.seeds} of which choose a cell," if read.chooses else ""
    return f"{total} seeds{spent} are too few at {level:.3g}, {corrected(family)}"


def _needed(read: Read, level: float, family: int, sides: tuple[int, ...]) -> str:
    judging = (n for n in range(1, 14) if min(read.smallest(n)[side] for side in sides) * family <= level)
    least = next(judging, None)
    if least is None:
        return "no number"
    return str(next(m for m in itertools.count(least) if m - read.chooses * choosing_seeds(m) >= least))
