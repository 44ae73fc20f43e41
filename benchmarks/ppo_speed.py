"""Environment steps per CPU second of PPO: this harness, CleanRL's ppo.py and Stable-Baselines3, interleaved.

    python benchmarks/ppo_speed.py --cleanrl PATH/TO/cleanrl/ppo.py --environment CartPole-v1 --steps 40000 --rounds 5

The same hyper-parameters (CleanRL's defaults, 4 environments), one thread; evaluations are left out of all three, and
so are our records and the signals in them (`ppo_parts.py` says what those cost). CleanRL's file is run as it is from a
checkout of your own, with its logging to TensorBoard replaced by nothing. With `--stacked K`, K seeds of ours as one
are measured too: environment steps of all of them per CPU second. Stable-Baselines3 is measured where --sb3-python
names an interpreter that has it. CPU seconds, so that what else the machine does hardly matters; each side has a
process of its own. The mean return of the last 100 episodes is printed beside.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

TASKS = {"CartPole-v1": "cartpole/ppo", "Acrobot-v1": "acrobot/ppo", "MountainCar-v0": "mountaincar/ppo"}


class Nothing:
    """Stands for a writer to TensorBoard."""

    def __init__(self, *arguments: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **settings: None


def run_cleanrl(file: Path, environment: str, steps: int, seed: int) -> list[str]:
    """The lines that CleanRL's script prints; its clock is the process's CPU time."""
    tyro, board = types.ModuleType("tyro"), types.ModuleType("torch.utils.tensorboard")
    tyro.cli = lambda cls: cls(total_timesteps=steps, env_id=environment, seed=seed, cuda=False)  # type: ignore[attr-defined]
    board.SummaryWriter = Nothing  # type: ignore[attr-defined]
    sys.modules |= {"tyro": tyro, "torch.utils.tensorboard": board}
    import torch

    torch.set_num_threads(1)
    time.time = time.process_time
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(file.read_text(), str(file), "exec"), {"__name__": "__main__", "__file__": str(file)})
    return printed.getvalue().splitlines()


Measured = tuple[float, float]
"""Environment steps per CPU second, and the mean return of the last 100 episodes."""


def cleanrl(file: Path, environment: str, steps: int, seed: int) -> Measured:
    lines = run_cleanrl(file, environment, steps, seed)
    speeds = [line for line in lines if line.startswith("SPS")]
    returns = [float(found[1]) for line in lines if (found := re.search(r"episodic_return=\[?([-\d.e+]+)", line))]
    return float(speeds[-1].split()[1]), statistics.fmean(returns[-100:])


def ours(environment: str, steps: int, seed: int, width: int = 0) -> Measured:
    metrics = run_harness(environment, steps, seed, width)
    return metrics["time/env_steps_per_second"], metrics["train/return"]


def run_harness(environment: str, steps: int, seed: int, width: int = 0) -> dict[str, float]:
    """The final metrics of a trial of ours, its clock the process's CPU time; of `width` seeds as one, those of the first.

    A seed of a stack has its share of the time, so its speed is that of the whole stack.
    """
    from harness.identity import Part, TrialSpec
    from harness.recording.attempts import Attempt
    from harness.registry import Registry
    from harness.training import state, together
    from harness.training.trial import Course, run_trial

    clock = types.SimpleNamespace(**vars(time))
    clock.perf_counter = time.process_time
    state.time = together.time = clock  # type: ignore[assignment]
    recipe = {"env_steps": steps, "evaluate_every": 10**9}
    registry = Registry()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as held:
        courses = []
        for number in range(max(1, width)):
            seeds = {"init": seed + 1000 * number}
            spec = TrialSpec(
                TASKS[environment], {"evaluation_episodes": 1}, 1, [Part("adam")], recipe, seeds, stacked=width > 0
            )
            attempt = held.enter_context(Attempt(Path(folder), spec.hash, spec.to_json(), "b"))
            courses.append(Course(spec, attempt, {}))
        if width:
            together.run_stack(courses, registry)
            result = courses[0].result
        else:
            result = run_trial(courses[0].spec, registry, courses[0].attempt)
    assert result is not None
    assert result.status == "finished", result.error
    return result.metrics


def stable_baselines(environment: str, steps: int, seed: int) -> Measured:
    """CleanRL's value loss is half the squared error, Stable-Baselines3's is all of it: hence half the coefficient."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    settings = {
        "n_steps": 128,
        "batch_size": 128,
        "n_epochs": 4,
        "ent_coef": 0.01,
        "clip_range_vf": 0.2,
        "vf_coef": 0.25,
    }
    envs = make_vec_env(environment, n_envs=4, seed=seed)
    model = PPO("MlpPolicy", envs, learning_rate=lambda left: 2.5e-4 * left, seed=seed, device="cpu", **settings)
    started = time.process_time()
    model.learn(steps)
    speed = steps / (time.process_time() - started)
    return speed, statistics.fmean(float(info["r"]) for info in model.ep_info_buffer or [])


def one(side: str, arguments: argparse.Namespace, seed: int) -> Measured:
    """What one side measures, in a process of its own."""
    pythons = {"cleanrl": arguments.cleanrl_python, "sb3": arguments.sb3_python}
    command = [
        pythons.get(side) or sys.executable,
        __file__,
        "--side",
        side,
        "--stacked",
        str(arguments.stacked),
        "--environment",
        arguments.environment,
    ]
    command += ["--steps", str(arguments.steps), "--seed", str(seed), "--cleanrl", str(arguments.cleanrl or "")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    found = re.search(r"^speed (\S+) return (\S+)$", done.stdout, re.MULTILINE)
    if not found:
        raise SystemExit(f"{side}: {done.stderr[-2000:]}")
    return float(found[1]), float(found[2])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cleanrl", help="CleanRL's ppo.py, of a checkout of your own")
    parser.add_argument("--cleanrl-python", help="the interpreter of an environment with CleanRL's own requirements")
    parser.add_argument("--sb3-python", help="the interpreter of an environment with stable-baselines3")
    parser.add_argument("--stacked", type=int, default=0, metavar="K", help="also K seeds of ours as one")
    parser.add_argument("--environment", default="CartPole-v1", choices=sorted(TASKS))
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=["harness", "stacked", "cleanrl", "sb3"])
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    size = arguments.environment, arguments.steps, arguments.seed
    if arguments.side:
        measure: dict[str, Callable[[], Measured]] = {
            "harness": lambda: ours(*size),
            "stacked": lambda: ours(*size, arguments.stacked),
            "cleanrl": lambda: cleanrl(Path(arguments.cleanrl), *size),
            "sb3": lambda: stable_baselines(*size),
        }
        print("speed {} return {}".format(*measure[arguments.side]()))
        return
    given = {"stacked": arguments.stacked, "cleanrl": arguments.cleanrl, "sb3": arguments.sb3_python}
    sides = ["harness", *(side for side, there in given.items() if there)]
    measured: dict[str, list[Measured]] = {side: [] for side in sides}
    for seed in range(arguments.rounds):
        for side in sides:
            measured[side].append(one(side, arguments, seed))
    speeds = {side: [speed for speed, _ in found] for side, found in measured.items()}
    for side in sides:
        shown = ", ".join(f"{speed:.0f}" for speed in speeds[side])
        print(f"{side:8} {statistics.median(speeds[side]):7.0f} steps per CPU second ({shown})", end="")
        for mine in ("harness", "stacked"):
            if mine in speeds and mine != side:
                ratios = [one / other for one, other in zip(speeds[mine], speeds[side], strict=True)]
                print(f"; {mine} has {statistics.median(ratios):.2f} of its speed", end="")
        returns = [total for _, total in measured[side]]
        print(f"; return {statistics.fmean(returns):.1f} ± {statistics.stdev(returns) if len(returns) > 1 else 0:.1f}")


if __name__ == "__main__":
    main()
