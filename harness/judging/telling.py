"""Verdicts for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table

from harness.judging.reading import one_sided, undecidable
from harness.judging.verdicts import Part, Verdict
from harness.planning.plan import Plan
from harness.registry import Registry


def verdicts(found: Sequence[Verdict]) -> Iterator[RenderableType]:
    """One row for each claim, and under it what it rests on."""
    table = Table(title="claims", title_justify="left", box=None, pad_edge=False)
    table.add_column("verdict", no_wrap=True)
    table.add_column("claim")
    table.add_column("difference", justify="right")
    table.add_column("because")
    for verdict in found:
        mark = " (exploratory)" if verdict.exploratory else ""
        because = "; ".join([verdict.reason, *verdict.exploratory])
        table.add_row(f"{verdict.outcome}{mark}", verdict.sentence, "\n".join(map(difference, verdict.parts)), because)
    yield table
    for verdict in found[:1]:
        rest = verdict.rests_on
        varied = ", ".join(rest["varied"]) or "nothing"
        yield f"Rests on {rest['seeds']} seeds that vary {varied}; {rest['splits']} splits of the data."


def difference(part: Part) -> str:
    """The mean difference with the interval of its centre: `0.012 [0.004, 0.021] 90 %`."""
    if part.paired is None:
        return "none yet"
    low, high = (("…" if bound is None else f"{bound:.3g}") for bound in part.paired.interval)
    mean = "none" if part.paired.mean is None else f"{part.paired.mean:.3g}"
    return f"{mean} [{low}, {high}] {part.paired.confidence:.0%}"


def doubts(plan: Plan, registry: Registry) -> list[str]:
    """A line for each claim that no outcome of the grid could decide, or that it could decide one way only."""
    never, one_way = undecidable(plan, registry), one_sided(plan, registry)
    said = {hash: f"cannot be decided by this grid: {reason}" for hash, reason in never.items()}
    said |= {hash: f"can be decided one way only by this grid: {reason}" for hash, reason in one_way.items()}
    return [f"{claim.sentence}: {said[claim.hash]}" for claim in plan.claims.listed if claim.hash in said]
