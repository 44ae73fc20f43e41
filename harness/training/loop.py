"""The training loop: one for supervised learning, PINNs and PPO; a federated client takes the same step."""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.probe import Probe
from harness.recording.records import CHECKPOINT, finite
from harness.screening import Screen
from harness.training.evaluation import evaluate, named, test, times
from harness.training.state import Training, pack, weights_digest
from harness.training.stepping import build_optimizer, set_rate, take_step


class Interrupted(Exception):
    """The trial was asked to stop: it has committed and goes on from there another time."""


class Screened(Exception):
    """An early-stopping rule does not accept the trial: it has committed and could go on from there."""


def advance(training: Training) -> None:
    """One step of supervised learning, of a PINN or of PPO."""
    state = training.state
    if state.step in state.recipe.switches:
        state.optimizer = build_optimizer(training.method, state)
    set_rate(state, state.recipe.rate_factor(state.step))
    samples, recorded = take_step(state, training.method)
    training.samples += samples
    training.interval.add(recorded)


def train(
    training: Training,
    advance: Callable[[Training], None] = advance,
    *,
    commit_every: float = 15.0,
    halt: Callable[[int], bool] = lambda step: False,
) -> dict[str, float]:
    """Runs a trial to its end and returns its final metrics.

    `advance` moves the trial by one step (a federated trial: by one round). Everything else is the same in every family:
    probes, records, evaluations, the selected checkpoint, commits, and the one read of the test split.

    Raises:
        Diverged: if an objective is not finite.
        Interrupted: if `halt`, told of each step taken, answered true; everything so far is committed.
        Screened: if the trial has a rule that does not accept it; everything so far is committed.
    """
    state, length = training.state, training.state.recipe.length
    commits = Commits(commit_every)
    begin(training)
    while state.step < length:
        probes = before_step(training)
        training.clock.start()
        advance(training)
        training.clock.stop()
        after_step(training, probes)
        halted = halt(state.step)
        if commits.due(halted):
            commit(training)
        if halted and state.step < length:
            if training.screen and training.screen.compares:
                _decide(training, training.screen)
            raise Interrupted(f"stopped at step {state.step} of {length}")
    return finish(training)


class Commits:
    """When to commit: every so many seconds."""

    def __init__(self, every: float) -> None:
        self._every, self._last = every, time.monotonic()

    def due(self, halted: bool) -> bool:
        """Whether it is time, or the trial is to stop."""
        now = time.monotonic()
        if not halted and now - self._last < self._every:
            return False
        self._last = now
        return True


def begin(training: Training) -> None:
    """Judges a trial that goes on from behind the point of decision."""
    if training.screen and training.state.step >= training.screen.step(training.state.recipe.length):
        _decide(training, training.screen)


def before_step(training: Training) -> dict[str, Probe]:
    """The probes that measure the coming step, told of it."""
    probes = _due(training, training.state.step + 1)
    for probe in probes.values():
        probe.before_step(training.state)
    return probes


def after_step(training: Training, probes: dict[str, Probe]) -> None:
    """All that follows a step: measures, records, evaluation, kept checkpoints, the early-stopping rule."""
    _report(training, probes)
    _keep(training)
    step, recipe = training.state.step, training.state.recipe
    if training.screen and training.screen.due(step, recipe.length, recipe.evaluate_every or 1):
        _decide(training, training.screen)


def finish(training: Training) -> dict[str, float]:
    """The final metrics of a trial that has taken all of its steps."""
    training.digest = weights_digest(training.state.model)
    return test(training)


def _decide(training: Training, screen: Screen) -> None:
    """Lets a rule judge the trial by its committed records; one that compares trials reads them too, and leaves a verdict."""
    commit(training)
    trial, recipe = training.attempt.trial, training.state.recipe
    if screen.compares:
        reason = trial.verdict(screen.mark, training.attempt.code)
    else:
        reason = screen.judge(trial.records(), recipe.length, recipe.lr)
    if reason:
        raise Screened(reason)


def _keep(training: Training) -> None:
    """Keeps the checkpoint of this step, if another trial starts from it."""
    for name in training.keep:
        share = name.removeprefix(CHECKPOINT)
        if share != name and training.state.step == max(1, round(float(share) * training.state.recipe.length)):
            training.attempt.keep(f"kept/{name}.pt", training.checkpoint())


def commit(training: Training) -> None:
    """Commits the records so far with the checkpoint behind them."""
    best = pack(training.best_weights) if training.best_weights else None
    training.attempt.commit(training.state.step, training.checkpoint(), best)


def _due(training: Training, step: int) -> dict[str, Probe]:
    every = training.state.recipe.evaluate_every or 1
    last = step == training.state.recipe.length
    return {name: probe for name, probe in training.probes.items() if step % (probe.every or every) == 0 or last}


def _report(training: Training, probes: dict[str, Probe]) -> None:
    state, recipe = training.state, training.state.recipe
    last = state.step == recipe.length
    metrics: dict[str, float] = {}
    for probe in probes.values():
        metrics |= {f"probe/{name}": value for name, value in probe.after_step(state).items()}
    training.probed |= metrics
    if last or state.step % (recipe.record_every or 1) == 0:
        metrics |= training.interval.take() | named(training.workload.progress())
        metrics |= times(training)
    if last or state.step % (recipe.evaluate_every or 1) == 0:
        metrics |= evaluate(training)
    for step, name, values in state.actions:
        training.attempt.record({"step": step, "action": name, "values": finite(values)})
        if values:
            total = training.acted.setdefault(name.split("/")[0], [0.0, 0.0])
            total[0] += sum(values.values()) / len(values)
            total[1] += 1
    state.actions.clear()
    if metrics:
        training.attempt.record({"step": state.step, "time": time.time(), "metrics": finite(metrics)})
