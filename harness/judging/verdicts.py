"""Verdicts: each claim of a grid as supported, contradicted or undecided, with what that rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from harness.claim import Claim
from harness.judging.evidence import WORST, Curves, Evidence, units
from harness.judging.history import Written, asked_before, exploratory, history
from harness.judging.paired import Paired, describe, detectable_effect, holm
from harness.judging.reading import Look, Read, contrast_p, corrected, looks, read_claims
from harness.judging.scores import Array, Contrast
from harness.planning.plan import Plan
from harness.recording.records import Result, Status
from harness.recording.results import Results
from harness.registry import Registry
from harness.seconds import amount
from harness.seeds import NAMES


class Outcome(StrEnum):
    """What a grid says of a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Part:
    """One contrast of a claim: a task, a pair, a cell."""

    label: str
    unit: str
    p_supported: float
    p_contradicted: float
    differences: list[float | None]
    """By seed, positive where the statement holds; None where a side failed, was screened or is missing."""
    seeds: list[int]
    """Of which seeds they are: those that did not choose a cell."""
    paired: Paired | None
    """Those numbers described, margin and all; None if nothing is there yet. The interval takes a screened seed for anything."""
    detectable: float | None
    """The effect, in the unit, that this grid finds in 80 % of cases, for Gaussian differences that vary as these do."""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """A claim and what became of it."""

    kind: str
    fields: dict[str, Any]
    """The claim as written."""
    sentence: str
    hash: str
    outcome: Outcome
    reason: str
    """One line."""
    exploratory: list[str]
    """Why it is not confirmatory; nothing if it is."""
    held: list[str]
    """Trials that failed, were lost or are missing: they hold the verdict back."""
    level: float
    """The chance of a wrong "supported" anywhere in the family."""
    family: int
    """Claims that it is corrected for (Holm), those included that were asked of this grid before and are asked no more."""
    p_supported: float
    """Of the statement being false, after Holm; at the deciding look, or the last one."""
    p_contradicted: float
    seeds: int
    """How many it was judged with, those aside that were spent on choosing cells."""
    look: str
    """`2 of 3` under a sequential rule."""
    detectable: float | None
    """In standard deviations of the differences; None if no outcome whatever would have been enough."""
    rests_on: dict[str, Any]
    parts: list[Part]

    def to_json(self) -> dict[str, Any]:
        """As plain data; what is not finite becomes None."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Stand:
    """Where a claim stands after a look."""

    read: Read
    look: Look
    outcome: Outcome
    p: tuple[float, float]
    """After Holm."""
    family: int
    forgone: int
    """How many of the family are asked no more."""


def judge(
    plan: Plan,
    results: Mapping[str, Result],
    registry: Registry | None = None,
    *,
    curves: Curves | None = None,
    past: Sequence[Written] | None = None,
) -> list[Verdict]:
    """A verdict on each claim of a grid.

    Args:
        plan: what the grid comes to.
        results: what came of its trials, by hash.
        registry: the kinds of claims.
        curves: reads the records of a trial, by hash; for claims about time to a target and early measures.
        past: the submissions of the grid; unless given, every claim counts as written before the run.
    """
    stands, reasons = _stands(plan, results, registry or Registry(), curves, past)
    return [_verdict(stand, plan, results, reasons[stand.read.planned.hash]) for stand in stands]


def _stands(
    plan: Plan,
    results: Mapping[str, Result],
    registry: Registry,
    curves: Curves | None,
    past: Sequence[Written] | None,
) -> tuple[list[Stand], dict[str, list[str]]]:
    decided: dict[str, Stand] = {}
    latest: dict[str, Stand] = {}
    available = len(units(plan)[1])
    reasons: dict[str, list[str]] = {}
    gone = asked_before(plan, past or [])
    for look in looks(plan):
        if look.seeds > available and look.number > 1:
            break
        reads = read_claims(Evidence(plan, results, curves, look.seeds), registry)
        for read in reads:
            if past is not None:
                reasons[read.planned.hash] = exploratory(
                    read.planned.hash, read.trials, bool(plan.claims.looks), past, results
                )
            else:
                reasons[read.planned.hash] = []
        enough = look.seeds <= available
        for stand in _judge_look(reads, look, reasons, enough, gone):
            latest[stand.read.planned.hash] = stand
            if stand.outcome is not Outcome.UNDECIDED:
                decided.setdefault(stand.read.planned.hash, stand)
    return [decided.get(claim.hash) or latest[claim.hash] for claim in plan.claims.listed], reasons


def _judge_look(
    reads: Sequence[Read], look: Look, reasons: Mapping[str, list[str]], enough: bool, gone: int
) -> list[Stand]:
    """All claims at one look: confirmatory ones corrected among themselves, exploratory ones among all.

    What is asked no more counts as a claim that failed.
    """
    found = [read.p() if enough else (1.0, 1.0) for read in reads]
    everyone = dict(enumerate(_adjusted(found, gone)))
    own = [index for index, read in enumerate(reads) if not reasons[read.planned.hash]]
    confirmatory = dict(zip(own, _adjusted([found[index] for index in own], gone), strict=True))
    stands = []
    for index, read in enumerate(reads):
        family = confirmatory if index in confirmatory else everyone
        p = family[index]
        outcome = Outcome.UNDECIDED
        if p[0] <= look.level:
            outcome = Outcome.SUPPORTED
        elif p[1] <= look.level:
            outcome = Outcome.CONTRADICTED
        stands.append(Stand(read, look, outcome, p, len(family) + gone, gone))
    return stands


def _adjusted(pairs: Sequence[tuple[float, float]], gone: int) -> list[tuple[float, float]]:
    supported, contradicted = (holm([*(pair[side] for pair in pairs), *[1.0] * gone]) for side in (0, 1))
    return list(zip(supported, contradicted, strict=True))[: len(pairs)]


def _verdict(stand: Stand, plan: Plan, results: Mapping[str, Result], reasons: list[str]) -> Verdict:
    read, planned = stand.read, stand.read.planned
    n = read.seeds
    share = stand.look.level / stand.family / max(1, len(read.groups) - read.required + 1)
    detectable = detectable_effect(n, share, normal=read.claim.assume == "normal")
    seeds = units(plan)[1]
    return Verdict(
        kind=planned.kind,
        fields=planned.fields,
        sentence=planned.sentence,
        hash=planned.hash,
        outcome=stand.outcome,
        reason=_reason(stand, n, detectable),
        exploratory=reasons,
        held=read.held,
        level=plan.claims.level,
        family=stand.family,
        p_supported=stand.p[0],
        p_contradicted=stand.p[1],
        seeds=n,
        look=f"{stand.look.number} of {stand.look.of}" if stand.look.of > 1 else "",
        detectable=detectable,
        rests_on=rests_on(plan, read.trials, results),
        parts=[_part(contrast, read.claim, plan.claims.level, detectable, seeds) for contrast in read.contrasts],
    )


def _part(contrast: Contrast, claim: Claim, level: float, detectable: float | None, seeds: Sequence[int]) -> Part:
    scores = contrast.scores
    known = scores.present & scores.judged & (scores.low == scores.high)
    values = np.where(known, scores.low, np.nan)
    p = contrast_p(contrast, claim) if scores.complete else (1.0, 1.0)
    there = scores.present & scores.judged
    paired = _described(scores.low[there], scores.high[there], level)
    deviation = paired.deviation if paired else None
    return Part(
        label=contrast.label,
        unit=contrast.unit,
        p_supported=p[0],
        p_contradicted=p[1],
        differences=[float(value) if math.isfinite(value) else None for value in values[scores.judged]],
        seeds=[seed for seed, judged in zip(seeds, scores.judged, strict=False) if judged],
        paired=paired,
        detectable=detectable * deviation if detectable is not None and deviation is not None else None,
        details=contrast.details,
    )


def _described(low: Array, high: Array, level: float) -> Paired | None:
    """What is known of differences, described, with the interval that their bounds allow; None where nothing is known."""
    known = low == high
    if not known.any():
        return None
    least, most = describe(low, level), describe(high, level)
    return replace(
        describe(low[known], level), interval=(least.interval[0], most.interval[1]), confidence=least.confidence
    )


def _reason(stand: Stand, n: int, detectable: float | None) -> str:
    read = stand.read
    family = corrected(stand.family) + (f", {stand.forgone} of them asked before" if stand.forgone else "")
    if read.trouble:
        return read.trouble
    if held := read.held:
        return f"held back by {amount(len(held), 'trial')}: {held[0]}" + (" and others" if len(held) > 1 else "")
    if stand.outcome is not Outcome.UNDECIDED:
        p = stand.p[0] if stand.outcome is Outcome.SUPPORTED else stand.p[1]
        return f"p = {p:.3g} at most {stand.look.level:.3g}, {amount(n, 'seed')}, {family}"
    if detectable is None:
        return f"{amount(n, 'seed')} cannot decide it at {stand.look.level:.3g}, {family}"
    return f"p = {stand.p[0]:.3g} and {stand.p[1]:.3g}; found would have been {detectable:.2g} standard deviations"


def rests_on(plan: Plan, hashes: set[str], results: Mapping[str, Result]) -> dict[str, Any]:
    """What a verdict rests on: seeds and the randomness that they vary, splits, tuning, failures, other code."""
    trials = [trial for trial in plan.trials if trial.hash in hashes]
    streams = {name: {trial.spec.seed.get(name, trial.spec.seed.get("init", 0)) for trial in trials} for name in NAMES}
    ended = [results[trial.hash] for trial in trials if trial.hash in results]
    counts: dict[str, dict[str, set[str]]] = {}
    for trial in trials:
        counts.setdefault(trial.spec.method, {}).setdefault(trial.task_label, set()).add(trial.cell)
    codes = {trial.hash: trial.code for trial in trials}
    tried: dict[str, dict[str, set[int]]] = {}
    for trial in plan.trials:
        if trial.tuning is not None and trial.spec.method in counts:
            tried.setdefault(trial.spec.method, {}).setdefault(trial.task_label, set()).add(trial.tuning)
    return {
        "seeds": max((len(values) for values in streams.values()), default=0),
        "varied": [name for name, values in streams.items() if len(values) > 1],
        "fixed": [name for name, values in streams.items() if len(values) <= 1],
        "splits": len(streams["split"]),
        "cells": {method: max(map(len, cells.values())) for method, cells in counts.items()},
        "tuning": {method: max(map(len, tasks.values())) for method, tasks in tried.items()},
        "tasks": sorted({trial.task_label for trial in trials}),
        "trials": len(trials),
        "worst": sum(result.status in WORST for result in ended),
        "screened": sum(result.status is Status.SCREENED for result in ended),
        "stale": sum(result.code != codes[result.hash] for result in ended),
    }


def judge_folder(plan: Plan, memory: Results, registry: Registry | None = None) -> list[Verdict]:
    """A verdict on each claim of a grid, from its results folder."""
    found = memory.results(trial.hash for trial in plan.trials)
    past = history(memory, plan.name)
    return judge(plan, found, registry, curves=lambda hash: memory.trial(hash).records(), past=past)
