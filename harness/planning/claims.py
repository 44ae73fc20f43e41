"""The claims of a grid: read, checked against its tasks and methods, and frozen by hash. The statistics come later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from harness.claim import Claim, ClaimError
from harness.options import Schema
from harness.planning.entries import Choice
from harness.planning.errors import Where, listed
from harness.planning.reading import Draft
from harness.planning.schema import GridFile, Sequential
from harness.registry import Registry

LESS_IS_BETTER = frozenset({"loss", "error", "regret", "perplexity", "relative_l2", "rmse", "mse", "seconds", "steps"})
MORE_IS_BETTER = frozenset({"accuracy", "return", "reward", "auc", "f1", "r2", "precision", "recall"})


@dataclass(frozen=True)
class PlannedClaim:
    """A claim as the plan holds it."""

    kind: str
    fields: dict[str, Any]
    """What the grid says of it."""
    sentence: str
    hash: str


@dataclass(frozen=True)
class Claims:
    """All claims of a grid and the rule by which they are decided."""

    listed: tuple[PlannedClaim, ...] = ()
    level: float = 0.05
    """The chance of any wrong "supported" among all of them, and the same for "contradicted"."""
    looks: tuple[int, ...] = ()
    """Seeds at which a sequential grid is judged; none: once, with all seeds."""


def better_when(metric: str, own: Sequence[str]) -> str:
    """`max` or `min`, the direction in which a metric is better, or nothing if neither the task nor the name says so.

    >>> better_when("val/loss", ["val/accuracy", "max"]), better_when("probe/oui", ["val/accuracy", "max"])
    ('min', '')
    """
    last = metric.rpartition("/")[2]
    if own and last == own[0].rpartition("/")[2]:
        return own[1]
    words = {last, last.rpartition("_")[2]}
    return "min" if words & LESS_IS_BETTER else "max" if words & MORE_IS_BETTER else ""


def claim_hash(content: Mapping[str, Any], level: float, looks: Sequence[int]) -> str:
    """The identity of a claim: what was written, and the rule by which it is decided."""
    text = json.dumps([content, float(level), list(looks)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def looks_of(sequential: Sequential | None, seeds: int) -> tuple[int, ...]:
    """The looks of a sequential grid, in seeds; a number of looks stands for as many equal steps."""
    if sequential is None:
        return ()
    if isinstance(sequential.looks, list):
        return tuple(sequential.looks)
    count = min(sequential.looks, seeds)
    return tuple(-(-seeds * (look + 1) // count) for look in range(count))


def check_claims(
    parsed: GridFile, draft: Draft, tasks: Sequence[Choice], methods: Sequence[Choice], registry: Registry, seeds: int
) -> Claims:
    """The claims of a grid.

    Raises:
        GridError: for a claim of no kind, a field that its kind does not have or that does not fit, or a name that matches
            nothing in the grid.
    """
    looks = looks_of(parsed.sequential, seeds)
    claims: list[PlannedClaim] = []
    for index, content in enumerate(parsed.claims):
        where = draft.where(["claims", index])
        claim = _Reader(where, tasks, methods, registry).read(content)
        hash = claim_hash(content, parsed.level, looks)
        if hash in [other.hash for other in claims]:
            raise where.error("found the same claim again, allowed: each once")
        claims.append(PlannedClaim(claim.name, dict(content), claim.statement(), hash))
    return Claims(tuple(claims), parsed.level, looks)


@dataclass(frozen=True)
class _Reader:
    """Reads one claim."""

    where: Where
    tasks: Sequence[Choice]
    methods: Sequence[Choice]
    registry: Registry

    def read(self, content: Mapping[str, Any]) -> Claim:
        kind = self._kind(content)
        item = self.registry.item("claim", kind)
        fields = {name: self._field(name, value, item.options, kind) for name, value in content.items()}
        for name in [kind, *item.needs]:
            if fields.get(name) in (None, "", []):
                raise self.where.at(name).error(f"found nothing, allowed: a value; {kind!r} needs it")
        claim = self.registry.build_claim(kind, fields)
        try:
            claim.check()
        except ClaimError as error:
            field, _, message = str(error).partition(": ")
            raise self.where.at(field).error(message) from None
        for field, globs in claim.methods().items():
            for glob in globs:
                self._match(glob, self.methods, "method", self.where.at(field))
        for field, glob in claim.tasks().items():
            self._direction(claim, self._match(glob, self.tasks, "task", self.where.at(field)))
        return claim

    def _kind(self, content: Mapping[str, Any]) -> str:
        kinds = [item.name for item in self.registry.items("claim")]
        found = [name for name in content if name in kinds]
        if len(found) > 1:
            raise self.where.error(f"found {listed(found)}, allowed: one kind of claim")
        if not found:
            first = next(iter(content), "")
            raise self.where.unknown(first, "kind of claim", kinds)
        return found[0]

    def _field(self, name: str, value: Any, schemas: Mapping[str, Schema], kind: str) -> Any:
        if name not in schemas:
            raise self.where.at(str(name)).unknown(name, f"field of a claim {kind!r}", schemas)
        return self.where.at(name).check(value, schemas[name])

    def _match(self, glob: str, choices: Sequence[Choice], kind: str, where: Where) -> list[Choice]:
        found = [c for c in choices if c.label == glob]
        if not found:
            names = fnmatchcase if kind == "task" else str.__eq__
            found = [c for c in choices if names(c.name, glob) or fnmatchcase(c.label, glob)]
        if not found:
            raise where.unknown(glob, f"{kind} of this grid", [choice.label for choice in choices])
        return found

    def _direction(self, claim: Claim, tasks: Sequence[Choice]) -> None:
        if not claim.directed or not claim.by or claim.direction:
            return
        for task in tasks:
            item = self.registry.item("task", task.name)
            if not better_when(claim.by, [item.metric, item.direction]):
                raise self.where.at("by").error(
                    f"found {claim.by!r}, of which it is not known whether more is better, allowed: with direction: min or max"
                )
