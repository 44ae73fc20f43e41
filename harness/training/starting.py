"""Trials that start where another one was: branches of a run, and networks that were trained on something else."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from harness.identity import TrialSpec
from harness.recording.attempts import Attempt
from harness.recording.records import TrialRecords
from harness.training.state import Training, unpack


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], exact: bool) -> None:
    """Gives a model the weights of another trial's.

    Args:
        exact: whether every tensor must fit. Otherwise those of other names or shapes, such as a head for other classes,
            keep their initial values.

    Raises:
        ValueError: if tensors do not fit that must, or none does.
    """
    own = model.state_dict()
    fitting = {n: value for n, value in weights.items() if n in own and own[n].shape == value.shape}
    odd = sorted((own.keys() | weights.keys()) - fitting.keys())
    if not fitting or (exact and odd):
        raise ValueError(f"start: found weights of another model (such as {odd[0]}), allowed: those of the same model")
    model.load_state_dict(own | fitting)


def branch(training: Training, saved: dict[str, Any]) -> None:
    """Puts a trial where another run of its task and seed was: at its step, in its data, with its streams.

    The optimizer goes on with that run's moments if it is of the same shape, and starts afresh otherwise. The checkpoint to
    be selected is one of the branch's own.
    """
    state = training.state
    training.stand_behind(saved["step"])
    training.samples, training.clock.seconds = saved["samples"], saved["seconds"]
    state.streams.load_state_dict(saved["streams"])
    torch.set_rng_state(saved["default_stream"])
    if saved["gpu_streams"]:
        torch.cuda.set_rng_state_all(saved["gpu_streams"])
    training.workload.load_state_dict(saved["workload"])
    if state.optimizer is not None and _alike(state.optimizer.state_dict(), saved["optimizer"]):
        groups = [dict(group) for group in state.optimizer.param_groups]
        state.optimizer.load_state_dict(saved["optimizer"])
        for group, own in zip(state.optimizer.param_groups, groups, strict=True):
            group.clear()  # the moments are the other run's, the settings this method's: no rate of that run stays behind
            group.update(own)


def taken_start(spec: TrialSpec, attempt: Attempt) -> tuple[str, dict[str, Any]] | None:
    """What a trial starts from, by name: a whole checkpoint, or weights."""
    for required in spec.requires:
        if required.path == "start":
            source = TrialRecords(attempt.trial.folder.parent.parent, required.hash)
            return required.taken, unpack(source.saved(source.kept(required.taken)))
    return None


def _alike(own: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two optimizers hold the same kind of state for the same parameters."""
    groups = [[group["params"] for group in optimizer.get("param_groups", [])] for optimizer in (own, other)]
    names = [{key for group in optimizer.get("param_groups", []) for key in group} for optimizer in (own, other)]
    return groups[0] == groups[1] and names[0] <= names[1] | {"base_lr", "lr_factor"}
