"""What the time of a PPO trial goes into, part by part: CPU seconds of one process, each part without what it calls of the others.

    python benchmarks/ppo_parts.py [--environment CartPole-v1] [--steps 40000] [--rounds 5]

Shares are medians over the rounds. A clock around each call costs about half a microsecond, most where parts are small: games
and the actor's forward pass, which are called once for each environment step, and once for each moment of a rollout.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from ppo_speed import TASKS, run_harness
from torch import nn

from tasks import environments, ppo_workload, signals

PARTS: tuple[tuple[str, Any, str], ...] = (
    ("playing, but for the two below", ppo_workload, "play"),
    ("games", environments.Episode, "step"),
    ("games", environments.Episode, "reset"),
    ("advantages and batches of a rollout", ppo_workload, "rollout_batch"),
    ("minibatches", ppo_workload.PPO, "next_batch"),
    ("objective", ppo_workload, "ppo_objective"),
    ("backward pass", torch.autograd, "backward"),
    ("clipping of gradients", nn.utils, "clip_grad_norm_"),
    ("optimizer", torch.optim.Adam, "step"),
    ("signals", signals.PatternSignals, "measure"),
    ("signals", ppo_workload.PPO, "progress"),
)


class Clock:
    """CPU seconds by part: while one part calls another, only the inner one's clock runs."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = time.process_time()

    def _turn(self) -> None:
        now = time.process_time()
        if self._running:
            self.spent[self._running[-1]] += now - self._since
        self._since = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with a clock around each call."""

        def call(*arguments: Any, **named: Any) -> Any:
            self._turn()
            self._running.append(name)
            try:
                return function(*arguments, **named)
            finally:
                self._turn()
                self._running.pop()

        return call


def shares(environment: str, steps: int, seed: int) -> tuple[float, dict[str, float]]:
    """CPU microseconds of an environment step, and the share of each part in it."""
    clock = Clock()
    saved = [(place, name, getattr(place, name)) for _, place, name in PARTS]
    acting = ppo_workload.acting
    try:
        for (part, place, name), (_, _, function) in zip(PARTS, saved, strict=True):
            setattr(place, name, clock.timed(part, function))
        ppo_workload.acting = lambda model: clock.timed("forward passes of the actor", acting(model))
        metrics = run_harness(environment, steps, seed)
    finally:
        for place, name, function in saved:
            setattr(place, name, function)
        ppo_workload.acting = acting
    whole = (
        steps / metrics["time/env_steps_per_second"] + clock.spent["signals"]
    )  # whose time is the records', not training's
    found = {name: seconds / whole for name, seconds in clock.spent.items()}
    return 1e6 * whole / steps, found | {"the loop and the rest": 1 - sum(found.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", default="CartPole-v1", choices=sorted(TASKS))
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rounds = [shares(given.environment, given.steps, seed) for seed in range(given.rounds)]
    each = statistics.median(micro for micro, _ in rounds)
    print(f"{given.environment}: {each:.0f} microseconds of CPU for an environment step, the clocks included")
    names = {name: statistics.median(found.get(name, 0.0) for _, found in rounds) for name in rounds[0][1]}
    for name, share in sorted(names.items(), key=lambda pair: -pair[1]):
        print(f"{share:6.1%}  {share * each:5.1f}  {name}")


if __name__ == "__main__":
    main()
