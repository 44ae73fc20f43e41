"""A trial that is under way: everything that a checkpoint must hold, and checkpoints as bytes."""

from __future__ import annotations

import hashlib
import io
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from harness.composition import Composition
from harness.method import State
from harness.probe import Probe
from harness.recording.attempts import Attempt
from harness.screening import Screen
from harness.task import Task, Workload
from harness.training.stepping import Means, build_optimizer


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

    def add(self, recorded: list[Means]) -> None:
        """Adds what a step's micro-batches left."""
        for means in recorded:
            self.merge(means, 1)

    def merge(self, sums: dict[str, torch.Tensor], count: int) -> None:
        """Adds sums over so many further steps."""
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += count

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
    cpu_since: float = 0.0
    """The process's CPU time when this attempt began."""
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
    clients: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    """Federated: what each client keeps from visit to visit, where it keeps anything."""
    screen: Screen | None = None
    """The rule that may stop the trial early: no part of its identity, for it changes no number of a trial that goes on."""
    width: int = 1
    """How many trials its process began with: its CPU time counts for each of them by its share."""
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
                "clients": self.clients,
            }
        )

    def stand_behind(self, step: int) -> None:
        """Sets the step, with an optimizer of the phase of the last step taken."""
        self.state.step = max(0, step - 1)
        if self.state.recipe.phase(self.state.step) != self.state.recipe.phase(0):
            self.state.optimizer = build_optimizer(self.method, self.state)
        self.state.step = step

    def load_checkpoint(self, content: bytes, best: bytes | None) -> None:
        """The reverse of `checkpoint`."""
        saved = unpack(content)
        self.state.model.load_state_dict(saved["model"])
        self.stand_behind(saved["step"])
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
        self.clients = mapped(saved["clients"], lambda tensor: tensor.to(device))
        self.clock.seconds, self.samples = saved["seconds"], saved["samples"]
        self.best_score, self.best_step = saved["best"]
        self.trajectory, self.acted, self.probed = saved["trajectory"], saved["acted"], saved["probed"]
        self.scores, self.reached = saved["scores"], saved["reached"]
        self.best_weights = unpack(best) if best else None


def pack(content: dict[str, Any]) -> bytes:
    """A checkpoint as bytes. Of a tensor that is a part of a larger one, the part."""
    buffer = io.BytesIO()
    torch.save(mapped(content, _apart), buffer)
    return buffer.getvalue()


def mapped(content: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same with `change` of each tensor in its place, in order, however deep it lies in dicts, lists and tuples."""
    if isinstance(content, torch.Tensor):
        return change(content)
    if isinstance(content, dict):
        return type(content)((name, mapped(value, change)) for name, value in content.items())
    if isinstance(content, list | tuple):
        return type(content)(mapped(value, change) for value in content)
    return content


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of its own in the place of a view: with a view, `torch.save` writes all that lies behind it."""
    return tensor.detach().clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


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
