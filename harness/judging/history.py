"""What was written down when: whether a claim, and the seeds behind it, were fixed before the results were there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.planning.claims import Claims, claim_hash, looks_of
from harness.planning.errors import GridError, Where
from harness.planning.reading import parse
from harness.planning.schema import Sequential
from harness.recording.grids import Submission, submissions
from harness.recording.records import Result, Results


@dataclass(frozen=True)
class Written:
    """What one submission of a grid had fixed before its first trial started."""

    started: float
    claims: frozenset[str]
    """Hashes of its claims."""
    trials: frozenset[str]
    """Hashes of its trials."""


def history(results: Results, grid: str) -> list[Written]:
    """All submissions of a grid, in order."""
    return [_written(submission) for submission in submissions(results, grid)]


def _written(submission: Submission) -> Written:
    content: dict[str, Any] = {}
    with contextlib.suppress(OSError, GridError):  # a submission whose grid cannot be read has fixed no claims
        content = parse((submission.folder / "grid.yaml").read_text(encoding="utf-8"), Where("grid.yaml"))
    trials = submission.trials()
    seeds: dict[str, set[int]] = {}
    for trial in trials:
        for stream, value in trial.spec["seed"].items():
            seeds.setdefault(stream, set()).add(value)
    most = max((len(values) for values in seeds.values()), default=1)
    declared = content.get("sequential")
    looks = looks_of(Sequential(**declared) if declared else None, most)
    level = content.get("level", Claims.level)
    hashes = frozenset(claim_hash(claim, level, looks) for claim in content.get("claims", []))
    return Written(submission.about["started"], hashes, frozenset(trial.hash for trial in trials))


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
