"""What a trial is scored by: evaluations on validation, the selected checkpoint, and the one read of the test split."""

from __future__ import annotations

import math
import resource
import sys
import time
from typing import Literal

import torch
from torch import nn

from harness.activations import observe
from harness.recording.records import WEIGHTS, finite
from harness.training.horizon import steps_to_best
from harness.training.state import Training, pack
from harness.training.stepping import Diverged


def evaluate(training: Training) -> dict[str, float]:
    """The validation metrics, and the model kept if it is the best that may be selected so far."""
    state, task = training.state, training.task
    training.method.before_evaluation(state)
    metrics = {f"val/{name}": value for name, value in _scores(training, state.model, "val").items()}
    training.method.after_evaluation(state, metrics)
    score = metrics.get(task.metric, math.nan)
    cost = score if task.direction == "min" else -score
    training.trajectory.append((state.step, metrics.get("val/loss", cost)))
    if not math.isfinite(score):
        return metrics
    training.scores.append((state.step, score))
    target = state.recipe.target
    if target is not None and not training.reached and not _better(target, score, task.direction):
        training.reached = {"steps_to_target": float(state.step), "time/to_target": training.clock.seconds}
    if task.select == "best" and training.method.selectable(state):
        _keep_best(training, score)
    return metrics


def _scores(training: Training, model: nn.Module, split: Literal["val", "test"]) -> dict[str, float]:
    """What a workload says of a model: the first rank asks it, for all of them see the same numbers so.

    Ranks may differ in a model's buffers (BatchNorm's statistics are those of each rank's own part of a batch) and in the
    last bits of a sum; what they select by its score, or do in `after_evaluation`, must not.
    """
    ranks = training.state.ranks
    scores: dict[str, float] = {}
    if ranks.index == 0:
        with observe(model):
            found = training.workload.evaluate(model, split)
        scores = {name: float(value) for name, value in found.items()}
    return ranks.share(0, scores)


def _better(score: float, other: float, direction: str) -> bool:
    return score > other if direction == "max" else score < other


def _keep_best(training: Training, score: float) -> None:
    if training.best_score is None or _better(score, training.best_score, training.task.direction):
        weights = training.state.model.state_dict()
        training.best_score, training.best_step = score, training.state.step
        training.best_weights = {name: value.detach().clone() for name, value in weights.items()}


def test(training: Training) -> dict[str, float]:
    """The one read of the test split, at the selected checkpoint, with validation and training metrics beside it.

    Raises:
        Diverged: if the loss or the score is not finite, as after a last step that no objective follows.
    """
    state, workload = training.state, training.workload
    if training.best_weights is not None:
        state.model.load_state_dict(training.best_weights)
    if WEIGHTS in training.keep:
        training.attempt.keep(f"kept/{WEIGHTS}.pt", pack(state.model.state_dict()))
    selected = training.best_step if training.best_weights is not None else state.step
    metrics = {"selected_step": float(selected), **named(workload.progress()), **times(training)}
    metrics |= _summary(training)
    variants = training.method.variants(state.model)
    if any(method.saves_variants for method in training.method.methods):
        for name, model in variants.items():
            training.attempt.keep(f"{name}.pt", pack(model.state_dict()))
    models = {"": state.model, **{f"{name}/": model for name, model in variants.items()}}
    for prefix, model in models.items():
        for split in ("val", "test"):
            scores = _scores(training, model, split)
            if not prefix:
                _check_finite(training, split, scores)
            metrics |= {f"{split}/{prefix}{name}": value for name, value in scores.items()}
            if prefix:
                metrics |= {
                    f"{split}/{prefix}{name}_change": value - metrics[f"{split}/{name}"]
                    for name, value in scores.items()
                }
    return finite(metrics)


def _check_finite(training: Training, split: str, scores: dict[str, float]) -> None:
    for name in ("loss", training.task.metric.removeprefix("val/")):
        if not math.isfinite(scores.get(name, 0.0)):
            raise Diverged(f"{split}/{name} is {scores[name]} after step {training.state.step}, the last one")


def _summary(training: Training) -> dict[str, float]:
    """What the way here comes to: steps to the best validation, the mean of what each method did, the probes."""
    summary = {f"actions/{name}": total / count for name, (total, count) in training.acted.items()}
    probed = {name: value for probe in training.probes.values() for name, value in probe.finish(training.state).items()}
    summary |= training.probed | {f"probe/{name}": value for name, value in probed.items()}
    return (
        summary | training.reached | steps_to_best(training.trajectory) | training.workload.summarize(training.scores)
    )


def named(progress: dict[str, float]) -> dict[str, float]:
    """What a workload says of its progress, under `train/` unless it names another family."""
    return {name if "/" in name else f"train/{name}": value for name, value in progress.items()}


def peak_memory() -> int:
    """Resident bytes of this process at their most. macOS tells them in bytes, Linux in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * {"darwin": 1}.get(sys.platform, 1024)


def times(training: Training) -> dict[str, float]:
    """Seconds, speeds and memory up to now: all that may differ between two runs of one trial."""
    seconds = training.clock.seconds
    measured = {
        "time/train_seconds": seconds,
        "time/steps_per_second": training.state.step / seconds,
        "time/samples_per_second": training.samples / seconds,
        # Of this attempt, with setting up, evaluations and probes; every rank taken to be as busy as this one.
        "time/cpu_seconds": (time.process_time() - training.cpu_since) * training.state.ranks.world / training.width,
        "system/peak_memory_mb": peak_memory() / 2**20,
    }
    env_steps = training.workload.progress().get("env_steps")
    if env_steps:
        measured["time/env_steps_per_second"] = env_steps / seconds
    if torch.cuda.is_initialized():
        measured["system/peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return measured
