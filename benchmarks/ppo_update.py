"""Whether an update of PPO here is CleanRL's: the same rollouts, minibatches and initial weights, compared weight by weight.

    python benchmarks/ppo_update.py --cleanrl PATH/TO/cleanrl/ppo.py --cleanrl-python A/bin/python

CleanRL's file is run as it is (see ppo_equivalence.py for A), and everything that its updates are made from is written down: the
rollouts, the order of the samples, the weights. The trial's own code then takes the same steps: advantages, normalisation,
clipped objective, entropy, value clipping, gradient clipping, Adam, annealed rate. Where CleanRL takes an episode that
a time limit cuts off as over, so does this script; in a trial its last value counts on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ppo_speed import TASKS, run_cleanrl

UPDATES = 20
STEPS = 512
"""Environment steps of an update: 4 environments, 128 each."""

ROLLOUT = ("obs", "actions", "rewards", "dones", "next_obs", "next_done")


def record(file: Path, environment: str, seed: int, target: Path) -> None:
    """Runs CleanRL and writes down what its updates are made from. Its script is told apart at the shuffle of each epoch."""
    import torch

    kept: dict[str, Any] = {}
    shuffle, epochs = np.random.shuffle, 0

    def weights(scope: dict[str, Any]) -> list[np.ndarray]:
        layers = [m for part in (scope["agent"].actor, scope["agent"].critic) for m in part if hasattr(m, "weight")]
        return [each.detach().numpy().copy() for layer in layers for each in (layer.weight, layer.bias)]

    scopes: list[dict[str, Any]] = []

    def listening(order: np.ndarray) -> None:
        nonlocal epochs
        scope = sys._getframe(1).f_globals
        update, epoch = divmod(epochs, scope["args"].update_epochs)
        if epoch == 0:
            kept.update({f"w{update}.{n}": each for n, each in enumerate(weights(scope))})
            kept.update({f"{name}{update}": scope[name].numpy().copy() for name in ROLLOUT})
        shuffle(order)
        kept[f"order{update}.{epoch}"] = order.copy()
        epochs += 1
        scopes[:] = [scope]

    np.random.shuffle = listening  # type: ignore[assignment]
    torch.set_num_threads(1)
    run_cleanrl(file, environment, UPDATES * STEPS, seed)
    kept.update({f"w{UPDATES}.{n}": each for n, each in enumerate(weights(scopes[0]))})
    np.savez(target, **kept)


def follow(found: Any, environment: str) -> list[float]:
    """Takes CleanRL's updates with the trial's own code; the largest difference of a weight after each."""
    import torch
    from torch import nn

    from harness.composition import Composition
    from harness.method import State
    from harness.registry import Registry
    from harness.streams import Streams
    from harness.training import stepping
    from harness.training.trial import build_recipe
    from tasks.ppo import Trajectory, rollout_batch

    torch.set_num_threads(1)
    registry = Registry()
    task = registry.build_task(TASKS[environment], {})
    recipe = build_recipe(task, {"env_steps": UPDATES * STEPS})
    streams, device = Streams({"init": 0}), torch.device("cpu")
    workload: Any = task.workload(recipe, streams, device)
    model = workload.model
    method = Composition([registry.build_method("adam", {})])
    state = State(model, workload, recipe, streams, horizon=recipe.length)
    state.optimizer = stepping.build_optimizer(method, state)
    layers = [m for part in (model.actor, model.critic) for m in part.modules() if isinstance(m, nn.Linear)]
    parameters = [each for layer in layers for each in (layer.weight, layer.bias)]
    with torch.no_grad():
        for n, parameter in enumerate(parameters):
            parameter.copy_(torch.from_numpy(found[f"w0.{n}"]))
    differences = []
    for update in range(UPDATES):
        obs, actions, rewards, dones, after, done = (found[f"{name}{update}"] for name in ROLLOUT)
        ended = np.concatenate([dones[1:], done[None]]).astype(bool)
        seen = np.concatenate([obs, after[None]])
        trajectory = Trajectory(seen, actions.astype(np.int64), rewards, ended, ended, {})
        workload.take(rollout_batch(model, trajectory, recipe, device))
        order = np.concatenate([found[f"order{update}.{epoch}"] for epoch in range(recipe.epochs)])
        workload.order = torch.from_numpy(order)
        for _ in range(len(order) // recipe.batch):
            stepping.set_rate(state, recipe.rate_factor(state.step))
            stepping.take_step(state, method)
        pairs = ((p.detach().numpy(), found[f"w{update + 1}.{n}"]) for n, p in enumerate(parameters))
        differences.append(max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs))
    return differences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cleanrl", required=True, type=Path, help="CleanRL's ppo.py, of a checkout of your own")
    parser.add_argument("--cleanrl-python", default=sys.executable)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--environment", choices=sorted(TASKS), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.record:
        return record(arguments.cleanrl, arguments.environment, arguments.seed, arguments.record)
    for environment in ("CartPole-v1", "Acrobot-v1"):
        for seed in range(1, arguments.seeds + 1):
            with tempfile.TemporaryDirectory() as folder:
                target = Path(folder) / "updates.npz"
                command = [
                    arguments.cleanrl_python,
                    __file__,
                    "--cleanrl",
                    str(arguments.cleanrl),
                    "--record",
                    str(target),
                ]
                command += ["--environment", environment, "--seed", str(seed)]
                subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
                differences = follow(np.load(target), environment)
            shown = ", ".join(f"{n}: {differences[n - 1]:.1e}" for n in (1, 2, 5, 10, UPDATES))
            print(
                f"{environment}, seed {seed}: largest difference of a weight after so many updates: {shown}", flush=True
            )


if __name__ == "__main__":
    main()
