"""Which claims are open, and which trials may be spent on them next: what `run --until-decided` asks after each batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.judging.evidence import Curves, Evidence, units
from harness.judging.history import Written
from harness.judging.reading import looks, read_claims
from harness.judging.verdicts import Outcome, judge
from harness.planning.plan import Plan
from harness.recording.records import Result
from harness.registry import Registry


@dataclass(frozen=True)
class Batch:
    """What to run next."""

    decided: list[str]
    """Claims by hash; what one look decides, later ones leave."""
    open: list[str]
    trials: list[str]
    """Trials without a result that an open claim needs at the next look, by hash in the order of the plan."""
    look: str
    """`2 of 3`: the look that they are for."""
    reason: str
    """Why nothing more may be spent, where that is so."""


def next_batch(
    plan: Plan,
    results: Mapping[str, Result],
    registry: Registry | None = None,
    *,
    curves: Curves | None = None,
    past: Sequence[Written] | None = None,
) -> Batch:
    """The trials that may be run next, at the error level that the grid has fixed.

    A sequential grid is judged at its looks alone, each with its part of the level, so spending goes from look to look and
    only on claims that are still open. A grid without a sequential rule has one look, with all of its seeds.

    Args:
        past: the submissions of the grid, as in `judge`: what they asked before stays in the family.
    """
    known = registry or Registry()
    verdicts = judge(plan, results, known, curves=curves, past=past)
    decided = [verdict.hash for verdict in verdicts if verdict.outcome is not Outcome.UNDECIDED]
    undecided = [verdict.hash for verdict in verdicts if verdict.outcome is Outcome.UNDECIDED]
    if not undecided:
        return Batch(decided, [], [], "", "every claim is decided")
    available = len(units(plan)[1])
    for look in looks(plan):
        name = f"{look.number} of {look.of}"
        if look.seeds > available:
            reason = f"the grid has {available} seeds; look {name} has {look.seeds}: harness run GRID --set seeds={look.seeds}"
            return Batch(decided, undecided, [], name, reason)
        evidence = Evidence(plan, {}, lambda hash: (), look.seeds)
        needed = set().union(*(read.trials for read in read_claims(evidence, known) if read.planned.hash in undecided))
        missing = [trial.hash for trial in plan.trials if trial.hash in needed and trial.hash not in results]
        if missing:
            return Batch(decided, undecided, missing, name, "")
    return Batch(decided, undecided, [], "", "every look has been taken")
