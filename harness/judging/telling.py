"""Verdicts for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table

from harness.judging.history import Written, asked_before
from harness.judging.reading import corrected, one_sided, undecidable
from harness.judging.verdicts import Part, Verdict
from harness.planning.plan import Plan
from harness.registry import Registry
from harness.seconds import amount


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
    bases = [basis(verdict) for verdict in found]
    if len(set(bases)) > 1:
        yield from (f"{verdict.sentence}: {base}" for verdict, base in zip(found, bases, strict=True))
    else:
        yield from bases[:1]


def basis(verdict: Verdict) -> str:
    """The randomness that a verdict rests on: `rests on 5 seeds that vary init, order; 1 split of the data`."""
    rest = verdict.rests_on
    varied, splits = ", ".join(rest["varied"]) or "nothing", rest["splits"]
    return f"rests on {amount(rest['seeds'], 'seed')} that vary {varied}; {amount(splits, 'split')} of the data"


def rests(verdict: Verdict) -> str:
    """All that a verdict rests on, in a paragraph."""
    rest = verdict.rests_on
    told = [
        basis(verdict),
        f"{rest['trials']} trials, {rest['worst']} of them failures, {rest['screened']} screened, {rest['stale']} of other code",
        f"cells of each method: {_counts(rest['cells'])}",
    ]
    if rest["tuning"]:
        told.append(f"points of tuning: {_counts(rest['tuning'])}")
    look = f" at look {verdict.look}" if verdict.look else ""
    judged = f"judged with {verdict.seeds} seeds{look}, {corrected(verdict.family)}"
    return "; ".join([*told, judged, f"claim {verdict.hash}"])


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def difference(part: Part) -> str:
    """The mean difference with the interval of its centre: `0.012 [0.004, 0.021] 93.75%`."""
    if part.paired is None:
        return "none yet"
    low, high = (("…" if bound is None else f"{bound:.3g}") for bound in part.paired.interval)
    mean = "none" if part.paired.mean is None else f"{part.paired.mean:.3g}"
    return f"{mean} [{low}, {high}] {100 * part.paired.confidence:.4g}%"


def doubts(plan: Plan, registry: Registry, past: Sequence[Written] = ()) -> list[str]:
    """A line for each claim that no outcome of the grid could decide, or that it could decide one way only.

    Args:
        plan: what the grid comes to.
        registry: all kinds of claims.
        past: the submissions of the grid so far; what they asked and the grid asks no more stays in the family.
    """
    gone = asked_before(plan, past)
    never, one_way = undecidable(plan, registry, gone), one_sided(plan, registry, gone)
    said = {hash: f"cannot be decided by this grid: {reason}" for hash, reason in never.items()}
    said |= {hash: f"can be decided one way only by this grid: {reason}" for hash, reason in one_way.items()}
    return [f"{claim.sentence}: {said[claim.hash]}" for claim in plan.claims.listed if claim.hash in said]
