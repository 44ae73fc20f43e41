"""Spends seeds where claims are open, look by look, until every claim is decided or the budget is spent."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from rich.console import Console

from harness.judging.history import history
from harness.judging.lookahead import Batch, next_batch
from harness.planning.plan import Plan
from harness.planning.survey import survey
from harness.recording.results import Results
from harness.registry import Registry
from harness.running.driver import Options, run_plan
from harness.running.scheduling import Outcome
from harness.seconds import amount, duration


@dataclass
class Decided:
    """How far it went."""

    outcome: Outcome = field(default_factory=Outcome)
    """Of all batches together; `interrupted` is the user's doing, never the budget's."""
    batches: int = 0
    reason: str = ""
    """Why it ended, in one line."""


def run_until_decided(
    plan: Plan, results: Results, options: Options, console: Console, registry: Registry, budget: float | None = None
) -> Decided:
    """Runs the trials of the next look that open claims need, judges, and goes on to the next look.

    A look is judged once all of its trials have ended, at its part of the level, and at no other time: wherever the budget ends,
    the chance of a wrong verdict is that of the grid.

    Args:
        plan: of a grid that declares `sequential`.
        budget: seconds of wall time; what is running when they are over is stopped as by Ctrl-C, and goes on in the next run.

    Raises:
        ValueError: if the grid has no claims or no sequential rule.
        Infeasible, Infrastructure: as `run_plan`.
    """
    if not plan.claims.listed:
        raise ValueError("claims: found none, allowed: at least one claim to be decided")
    if not plan.claims.looks:
        raise ValueError(
            "sequential: found nothing, allowed: looks declared before the run, such as sequential: {looks: 3}"
        )
    done, last = Decided(), Batch([], [], [], "", "")
    deadline = None if budget is None else time.monotonic() + budget
    while True:
        batch = _open(plan, results, options, registry)
        if not batch.trials:
            done.reason = batch.reason
            return done
        if batch.trials == last.trials:
            done.reason = f"look {batch.look}: {amount(len(batch.trials), 'trial')} ended without a result"
            return done
        last = batch
        told = f"{amount(len(batch.open), 'claim')} open, {amount(len(batch.trials), 'trial')}"
        console.print(f"look {batch.look}: {told}", highlight=False)
        spent = _run_batch(plan, results, options, console, batch, done, deadline)
        if spent:
            done.reason = f"the budget of {duration(budget or 0)} is spent at look {batch.look}"
            return done
        if done.outcome.interrupted:
            return done


def _open(plan: Plan, results: Results, options: Options, registry: Registry) -> Batch:
    """What to run next. A result that the next run would not keep counts as missing."""
    again = {trial.hash for trial in survey(plan, results, keep_stale=options.keep_stale).to_run}
    found = results.results(trial.hash for trial in plan.trials)
    kept = {hash: result for hash, result in found.items() if hash not in again}
    past = history(results, plan.name)
    return next_batch(plan, kept, registry, curves=lambda hash: results.trial(hash).records(), past=past)


def _run_batch(
    plan: Plan,
    results: Results,
    options: Options,
    console: Console,
    batch: Batch,
    done: Decided,
    deadline: float | None,
) -> bool:
    """Runs a batch and what it requires; whether the budget ended it."""
    outcome, rung = None, threading.Event()
    with suppress(KeyboardInterrupt), alarm(deadline, rung):  # in this order: it may ring before anything runs
        outcome = run_plan(plan, results, options, console, only=with_required(plan, set(batch.trials)))
    done.batches += 1
    if outcome is not None:
        done.outcome.ended |= outcome.ended
    interrupted = outcome is None or outcome.interrupted
    done.outcome.interrupted = interrupted and not rung.is_set()
    return interrupted and rung.is_set()


def with_required(plan: Plan, hashes: set[str]) -> set[str]:
    """Trials with all those that they take something from."""
    found: set[str] = set()
    open_ = set(hashes)
    while open_:
        found |= open_
        trials = (plan.by_hash[hash] for hash in open_)
        open_ = {required.hash for trial in trials for required in trial.spec.requires} - found
    return found


@contextmanager
def alarm(deadline: float | None, rung: threading.Event) -> Iterator[None]:
    """Interrupts this process at a time, as Ctrl-C does, here and nowhere after; the event says whether it did."""
    if deadline is None:
        yield
        return

    def ring() -> None:
        rung.set()
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), ring)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # one that is about to ring does so in here
