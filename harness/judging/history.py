"""What was written down when: whether a claim, and the seeds behind it, were fixed before the results were there."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.planning.claims import Claims, claim_hash, looks_of
from harness.planning.errors import GridError, Where
from harness.planning.plan import Plan
from harness.planning.reading import parse
from harness.planning.schema import Sequential
from harness.planning.tuning import SEEDS_FROM
from harness.recording.grids import Submission, submissions
from harness.recording.records import Result
from harness.recording.results import Results


@dataclass(frozen=True)
class Written:
    """What one submission of a grid had fixed before its first trial started."""

    started: float
    claims: frozenset[str]
    """Hashes of its claims."""
    trials: frozenset[str]
    """Hashes of its trials."""
    ended: Mapping[str, float]
    """When those of its trials ended that have a result."""


def history(results: Results, grid: str) -> list[Written]:
    """All submissions of a grid, in order."""
    found = submissions(results, grid)
    hashes = {trial.hash for submission in found for trial in submission.trials()}
    ended = {hash: result.ended for hash, result in results.results(sorted(hashes)).items()}
    return [_written(submission, ended) for submission in found]


def _written(submission: Submission, ended: Mapping[str, float]) -> Written:
    content: dict[str, Any] = {}
    with contextlib.suppress(OSError, GridError):  # a submission whose grid cannot be read has fixed no claims
        content = parse((submission.folder / "grid.yaml").read_text(encoding="utf-8"), Where("grid.yaml"))
    trials = submission.trials()
    seeds: dict[str, set[int]] = {}
    end = SEEDS_FROM if content.get("tuning") else math.inf  # looks do not count the seeds of tuning
    for trial in trials:
        for stream, value in trial.spec["seed"].items():
            if value < end:
                seeds.setdefault(stream, set()).add(value)
    most = max((len(values) for values in seeds.values()), default=1)
    declared = content.get("sequential")
    looks = looks_of(Sequential(**declared) if declared else None, most)
    level = content.get("level", Claims.level)
    hashes = frozenset(claim_hash(claim, level, looks) for claim in content.get("claims", []))
    own = frozenset(trial.hash for trial in trials)
    return Written(submission.about["started"], hashes, own, {hash: ended[hash] for hash in own & ended.keys()})


def exploratory(
    claim: str, trials: Iterable[str], looks: bool, past: Iterable[Written], results: Mapping[str, Result]
) -> list[str]:
    """Why a claim is not confirmatory: nothing if it and its trials were fixed before any result.

    Args:
        claim: its hash.
        trials: the trials that it rests on.
        looks: whether a sequential rule was declared; it says itself when more seeds may be run.
        past: the submissions of the grid, in order.
        results: what came of the trials.
    """
    resting = set(trials)
    carrying = [written for written in past if claim in written.claims]
    if not carrying:
        return ["it was added or changed after the last run of the grid"]
    first = carrying[0]
    ended = {hash: results[hash].ended for hash in resting if hash in results}
    reasons = []
    if before := [hash for hash, end in ended.items() if end < first.started]:
        reasons.append(f"{len(before)} of its {len(resting)} trials had ended before it was written down")
    added = resting - first.trials
    if added and not looks:
        later = [written for written in carrying if added & written.trials]
        seen = [
            hash for hash in resting & first.trials if later and ended.get(hash, later[0].started) < later[0].started
        ]
        if seen or not later:
            reasons.append(f"{len(added)} of its {len(resting)} trials were added when results were there")
    return reasons


def asked_before(plan: Plan, past: Sequence[Written]) -> int:
    """How many claims the submissions of a grid asked that its plan asks no more."""
    return forgone([claim.hash for claim in plan.claims.listed], {trial.hash for trial in plan.trials}, past)


def forgone(claims: Collection[str], trials: Collection[str], past: Sequence[Written]) -> int:
    """How many claims were asked of results and are asked no more, or of other trials alone. They stay in the family.

    Else a grid could drop the claims that failed, or draw new seeds until one holds.

    Args:
        claims: hashes of the claims that are asked now.
        trials: hashes of the trials that there are now.
        past: the submissions of the grid, in order.
    """
    count = 0
    for number, written in enumerate(past):
        later = past[number + 1 :]
        dropped = min((other.started for other in later), default=math.inf)
        if not any(end < dropped for end in written.ended.values()):
            continue
        asked = [other.claims for other in later if not other.trials.isdisjoint(written.trials)]
        if not written.trials.isdisjoint(trials):
            asked.append(frozenset(claims))
        count += len(written.claims.difference(*asked))
    return count
