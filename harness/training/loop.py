"""The training loop: one for supervised learning, PINNs and PPO; a federated client takes the same step."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from harness.activations import observe
from harness.composition import Composition
from harness.method import State
from harness.probe import Probe
from harness.recording.records import CHECKPOINT, WEIGHTS, Attempt, finite
from harness.screening import Screen
from harness.task import Objective, Task, Workload
from harness.training.horizon import steps_to_best


class Diverged(Exception):
    """The objective is no longer a finite number."""


class Interrupted(Exception):
    """The trial was asked to stop: it has committed and goes on from there another time."""


class Screened(Exception):
    """An early-stopping rule does not accept the trial: it has committed and could go on from there."""


@dataclass
class Clock:
    """Seconds of training, the clock stopped in evaluations, probes and commits."""

    seconds: float = 0.0
    _since: float = 0.0

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._since


@dataclass
class Interval:
    """Sums over the steps since the last record. They stay on the device: reading them once per record waits once."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    count: int = 0

    def add(self, objectives: list[Objective]) -> None:
        for objective in objectives:
            for name, value in {"loss": objective.value, **(objective.metrics or {})}.items():
                value = value.detach()
                self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += len(objectives)

    def take(self) -> dict[str, float]:
        means = {f"train/{name}": float(total) / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


@dataclass
class Training:
    """A trial that is under way: everything that a checkpoint must hold."""

    task: Task
    state: State
    method: Composition
    probes: dict[str, Probe]
    attempt: Attempt
    clock: Clock = field(default_factory=Clock)
    interval: Interval = field(default_factory=Interval)
    samples: int = 0
    best_score: float | None = None
    best_step: int = 0
    best_weights: dict[str, torch.Tensor] | None = None
    trajectory: list[tuple[int, float]] = field(default_factory=list)
    """Step and validation loss of every evaluation (where a task has none, its metric with the sign that falls)."""
    scores: list[tuple[int, float]] = field(default_factory=list)
    """Step and metric of every evaluation."""
    reached: dict[str, float] = field(default_factory=dict)
    """Steps and seconds of training until an evaluation first reached the recipe's target."""
    acted: dict[str, list[float]] = field(default_factory=dict)
    """By kind of action: the sum of the actions' means over names, and their number."""
    probed: dict[str, float] = field(default_factory=dict)
    """What the probes measured last."""
    keep: Sequence[str] = ()
    """Checkpoints that stay for trials that start from them."""
    screen: Screen | None = None
    """The rule that may stop the trial early: no part of its identity, for it changes no number of a trial that goes on."""
    digest: str = ""
    """Of the weights after the last step: equal digests are equal bits."""

    @property
    def workload(self) -> Workload:
        return self.state.workload

    def checkpoint(self) -> bytes:
        """All of it as plain tensors, numbers, texts, lists and dicts."""
        optimizer = self.state.optimizer
        return pack(
            {
                "step": self.state.step,
                "model": self.state.model.state_dict(),
                "optimizer": optimizer.state_dict() if optimizer else {},
                "method": self.method.state_dict(),
                "probes": {name: probe.state_dict() for name, probe in self.probes.items()},
                "streams": self.state.streams.state_dict(),
                "default_stream": torch.get_rng_state(),
                "gpu_streams": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
                "workload": self.workload.state_dict(),
                "sums": self.interval.sums,
                "count": self.interval.count,
                "seconds": self.clock.seconds,
                "samples": self.samples,
                "best": [self.best_score, self.best_step],
                "trajectory": self.trajectory,
                "scores": self.scores,
                "reached": self.reached,
                "acted": self.acted,
                "probed": self.probed,
            }
        )

    def load_checkpoint(self, content: bytes, best: bytes | None) -> None:
        """The reverse of `checkpoint`."""
        saved = unpack(content)
        self.state.model.load_state_dict(saved["model"])
        self.state.step = max(0, saved["step"] - 1)
        if self.state.recipe.phase(self.state.step) != self.state.recipe.phase(0):
            self.state.optimizer = build_optimizer(self.method, self.state)  # of the phase of the last step taken
        self.state.step = saved["step"]
        if self.state.optimizer:
            self.state.optimizer.load_state_dict(saved["optimizer"])
        self.method.load_state_dict(saved["method"])
        for name, probe in self.probes.items():
            probe.load_state_dict(saved["probes"][name])
        self.state.streams.load_state_dict(saved["streams"])
        torch.set_rng_state(saved["default_stream"])
        if saved["gpu_streams"]:
            torch.cuda.set_rng_state_all(saved["gpu_streams"])
        self.workload.load_state_dict(saved["workload"])
        device = next(self.state.model.parameters()).device
        sums = {name: total.to(device) for name, total in saved["sums"].items()}
        self.interval = Interval(sums, saved["count"])
        self.clock.seconds, self.samples = saved["seconds"], saved["samples"]
        self.best_score, self.best_step = saved["best"]
        self.trajectory, self.acted, self.probed = saved["trajectory"], saved["acted"], saved["probed"]
        self.scores, self.reached = saved["scores"], saved["reached"]
        self.best_weights = unpack(best) if best else None


def pack(content: dict[str, Any]) -> bytes:
    """A checkpoint as bytes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def unpack(content: bytes) -> dict[str, Any]:
    """A checkpoint from bytes, on the CPU: plain tensors and numbers only."""
    try:
        loaded: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError("the checkpoint is refused: found something else than plain tensors and numbers") from error
    return loaded


def weights_digest(model: nn.Module) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all parameters and buffers."""
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha.update(name.encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def build_optimizer(method: Composition, state: State) -> torch.optim.Optimizer:
    """The optimizer of a trial in its present phase, or of a client's visit.

    Raises:
        ValueError: if the phase names an optimizer that a method owns.
    """
    groups = method.parameter_groups(state.workload.parameter_groups(state.model), state.recipe)
    phase = state.recipe.phase(state.step)
    if phase != "method":
        owners = [getattr(part, "name", type(part).__name__) for part in method.methods if "optimizer" in part.owns]
        if owners and phase != "lbfgs":
            raise ValueError(f"phases: found {phase!r}, but {owners[0]} owns the optimizer; write 'method' for it")
        return state.recipe.build_optimizer(groups, phase)
    optimizer = method.optimizer(groups, state.recipe, state.horizon)
    return optimizer or state.recipe.build_optimizer(groups)


def set_rate(state: State, factor: float) -> None:
    """Sets the learning rate of every group: the recipe's, or the group's own, times the schedule."""
    assert state.optimizer is not None
    for group in state.optimizer.param_groups:
        base = group.setdefault("base_lr", group["lr"])
        group["lr"] = base * group.get("lr_factor", 1.0) * factor


def take_step(state: State, method: Composition) -> int:
    """One optimizer step, the same in every family. Returns the number of samples that this rank saw.

    Raises:
        Diverged: if an objective is not finite.
    """
    assert state.optimizer is not None
    recipe, ranks = state.recipe, state.ranks
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None  # `zero_grad` opens a profiler record: a fourteenth of a small step
    state.objectives.clear()
    state.batches = [ranks.shard(state.workload.next_batch()) for _ in range(recipe.accumulate)]
    for batch in state.batches:
        objective = state.workload.objective(state.model, batch)
        state.objectives.append(objective)
        value = float(objective.value.detach())
        if not math.isfinite(value):
            raise Diverged(f"the objective is {value} at step {state.step}")
        method.before_backward(state)
        torch.autograd.backward(objective.value if recipe.accumulate == 1 else objective.value / recipe.accumulate)
    ranks.average_gradients(state.model, 1 / ranks.world)
    method.after_backward(state)
    if recipe.clip is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip)
    method.before_step(state)
    if isinstance(state.optimizer, torch.optim.LBFGS):
        state.optimizer.step(state.closure)
    else:
        state.optimizer.step()
    state.step += 1
    method.after_step(state)
    return sum(objective.size for objective in state.objectives)


def advance(training: Training) -> None:
    """One step of supervised learning, of a PINN or of PPO."""
    state = training.state
    if state.step in state.recipe.switches:
        state.optimizer = build_optimizer(training.method, state)
    set_rate(state, state.recipe.rate_factor(state.step))
    training.samples += take_step(state, training.method)
    training.interval.add(state.objectives)


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
    committed = time.monotonic()
    if training.screen and state.step >= training.screen.step(length):
        _decide(training, training.screen)
    while state.step < length:
        probes = _due(training, state.step + 1)
        for probe in probes.values():
            probe.before_step(state)
        training.clock.start()
        advance(training)
        training.clock.stop()
        _report(training, probes)
        _keep(training)
        if training.screen and state.step == training.screen.step(length):
            _decide(training, training.screen)
        halted = halt(state.step)
        if halted or time.monotonic() - committed >= commit_every:
            commit(training)
            committed = time.monotonic()
        if halted and state.step < length:
            raise Interrupted(f"stopped at step {state.step} of {length}")
    training.digest = weights_digest(state.model)
    return _test(training)


def _decide(training: Training, screen: Screen) -> None:
    """Lets a rule judge the trial by its committed records."""
    commit(training)
    records = training.attempt.trial.records()
    if reason := screen.judge(records, training.state.recipe.length, training.state.recipe.lr):
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
        metrics |= training.interval.take() | _named(training.workload.progress())
        metrics |= _times(training)
    if last or state.step % (recipe.evaluate_every or 1) == 0:
        metrics |= _evaluate(training)
    for step, name, values in state.actions:
        training.attempt.record({"step": step, "action": name, "values": finite(values)})
        if values:
            total = training.acted.setdefault(name.split("/")[0], [0.0, 0.0])
            total[0] += sum(values.values()) / len(values)
            total[1] += 1
    state.actions.clear()
    if metrics:
        training.attempt.record({"step": state.step, "time": time.time(), "metrics": finite(metrics)})


def _named(progress: dict[str, float]) -> dict[str, float]:
    return {name if "/" in name else f"train/{name}": value for name, value in progress.items()}


def _times(training: Training) -> dict[str, float]:
    seconds = training.clock.seconds
    times = {
        "time/train_seconds": seconds,
        "time/steps_per_second": training.state.step / seconds,
        "time/samples_per_second": training.samples / seconds,
        "time/cpu_seconds": time.process_time(),  # of this attempt's process, evaluations and probes included
        "system/peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    env_steps = training.workload.progress().get("env_steps")
    if env_steps:
        times["time/env_steps_per_second"] = env_steps / seconds
    if torch.cuda.is_initialized():
        times["system/peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return times


def _evaluate(training: Training) -> dict[str, float]:
    state, task = training.state, training.task
    training.method.before_evaluation(state)
    with observe(state.model):
        metrics = {f"val/{name}": value for name, value in training.workload.evaluate(state.model, "val").items()}
    training.method.after_evaluation(state, metrics)
    score = metrics.get(task.metric, math.nan)
    cost = score if task.direction == "min" else -score
    if math.isfinite(score):
        training.scores.append((state.step, score))
    target = state.recipe.target
    if (
        target is not None
        and not training.reached
        and (score >= target if task.direction == "max" else score <= target)
    ):
        training.reached = {"steps_to_target": float(state.step), "time/to_target": training.clock.seconds}
    training.trajectory.append((state.step, metrics.get("val/loss", cost)))
    if task.select == "best" and math.isfinite(score) and training.method.selectable(state):
        better = training.best_score is None or (
            score > training.best_score if task.direction == "max" else score < training.best_score
        )
        if better:
            training.best_score, training.best_step = score, state.step
            training.best_weights = {name: value.detach().clone() for name, value in state.model.state_dict().items()}
    return metrics


def _test(training: Training) -> dict[str, float]:
    """The one read of the test split, at the selected checkpoint, with validation and training metrics beside it."""
    state, workload = training.state, training.workload
    if training.best_weights is not None:
        state.model.load_state_dict(training.best_weights)
    if WEIGHTS in training.keep:
        training.attempt.keep(f"kept/{WEIGHTS}.pt", pack(state.model.state_dict()))
    selected = training.best_step if training.best_weights is not None else state.step
    metrics = {"selected_step": float(selected), **_named(workload.progress()), **_times(training)}
    metrics |= _summary(training)
    variants = training.method.variants(state.model)
    if any(method.saves_variants for method in training.method.methods):
        for name, model in variants.items():
            training.attempt.keep(f"{name}.pt", pack(model.state_dict()))
    models = {"": state.model, **{f"{name}/": model for name, model in variants.items()}}
    for prefix, model in models.items():
        for split in ("val", "test"):
            with observe(model):
                scores = workload.evaluate(model, split)
            metrics |= {f"{split}/{prefix}{name}": value for name, value in scores.items()}
            if prefix:
                metrics |= {
                    f"{split}/{prefix}{name}_change": value - metrics[f"{split}/{name}"]
                    for name, value in scores.items()
                }
    return finite(metrics)


def _summary(training: Training) -> dict[str, float]:
    """What the way here comes to: steps to the best validation, the mean of what each method did, the probes."""
    summary = {f"actions/{name}": total / count for name, (total, count) in training.acted.items()}
    probed = {name: value for probe in training.probes.values() for name, value in probe.finish(training.state).items()}
    summary |= training.probed | {f"probe/{name}": value for name, value in probed.items()}
    return (
        summary | training.reached | steps_to_best(training.trajectory) | training.workload.summarize(training.scores)
    )
