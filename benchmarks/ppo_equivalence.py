"""Whether PPO here learns as CleanRL's ppo.py does: two one-sided tests on the area under the curve and the final return.

    python benchmarks/ppo_equivalence.py --cleanrl PATH/TO/cleanrl/ppo.py --cleanrl-python A/bin/python --sb3-python B/bin/python

CleanRL's file is run as it is, from a checkout of your own, in an environment A with `torch`, `gymnasium==0.29.1` (under
Gymnasium 1 it reports no episodes) and `numpy<2` (for that Gymnasium's Acrobot); Stable-Baselines3, shown beside, in an
environment B with `stable-baselines3`, and left out unless given. Each run's episodes are kept in --runs, and a run that is
there is not run again.

All sides: CleanRL's hyper-parameters, annealing over the same steps, one thread. The area is the mean over 20 equal parts of
the steps of the mean return of episodes that ended there; the final return is that of the last tenth. Margins were fixed before any
run: 5 % of the range of returns, 25 on CartPole and Acrobot (0 to 500, -500 to 0). So were the sizes of each comparison: first
200,000 steps and seeds 1 to 10 (`--steps 200000 --seeds 10`), whose seeds differed too much to decide; then, as it stands here,
CleanRL's own 500,000 steps and seeds 1 to 20.

Two things differ on purpose: an episode that is cut off by a time limit is bootstrapped here and by Stable-Baselines3, and taken as
over by CleanRL; and the random numbers are each side's own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from ppo_speed import run_cleanrl, run_harness

MARGINS = {"CartPole-v1": 25.0, "Acrobot-v1": 25.0}
SIDES = ("harness", "cleanrl", "sb3")
NAMES = ("area under the curve", "final return")

Episodes = list[tuple[int, float]]
"""Environment step at which it ended, and return, of every training episode."""


def ours(environment: str, steps: int, seed: int) -> Episodes:
    from tasks import ppo_workload
    from tasks.signals import Returns

    episodes: Episodes = []

    class Recording(Returns):
        def add(self, env_step: int, total: float) -> None:
            super().add(env_step, total)
            episodes.append((env_step, total))

    ppo_workload.Returns = Recording  # type: ignore[misc]
    run_harness(environment, steps, seed)
    return episodes


def cleanrl(file: Path, environment: str, steps: int, seed: int) -> Episodes:
    """From the lines that CleanRL's script prints."""
    pattern = re.compile(r"global_step=(\d+), episodic_return=\[?([-\d.e+]+)")
    found = [pattern.match(line) for line in run_cleanrl(file, environment, steps, seed)]
    return [(int(match[1]), float(match[2])) for match in found if match]


def stable_baselines(environment: str, steps: int, seed: int) -> Episodes:
    """CleanRL's value loss is half the squared error, Stable-Baselines3's is all of it: hence half the coefficient."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    episodes: Episodes = []

    class Record(BaseCallback):
        def _on_step(self) -> bool:
            infos = self.locals["infos"]
            episodes.extend((self.num_timesteps, float(info["episode"]["r"])) for info in infos if "episode" in info)
            return True

    settings: dict[str, Any] = {"n_steps": 128, "batch_size": 128, "n_epochs": 4, "ent_coef": 0.01, "vf_coef": 0.25}
    envs = make_vec_env(environment, n_envs=4, seed=seed)
    model = PPO("MlpPolicy", envs, lambda left: 2.5e-4 * left, clip_range_vf=0.2, seed=seed, device="cpu", **settings)
    model.learn(steps, callback=Record())
    return episodes


def scores(episodes: Episodes, steps: int) -> tuple[float, float]:
    """Area under the curve and final return; a part in which no episode ended has the value of the one before."""
    at, totals = np.array(episodes).T
    curve: list[float] = []
    for low, high in pairwise(np.linspace(0, steps, 21)):
        inside = totals[(at > low) & (at <= high)]
        curve.append(float(inside.mean()) if len(inside) else (curve[-1] if curve else float(totals[0])))
    return float(np.mean(curve)), float(totals[at > 0.9 * steps].mean())


def told(name: str, first: np.ndarray, second: np.ndarray, margin: float) -> str:
    """Both sides, the 90 % interval of the difference of means, and the p value of two one-sided Welch tests."""
    from scipy import stats

    both = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.90)
    above = stats.ttest_ind(first + margin, second, equal_var=False, alternative="greater").pvalue
    below = stats.ttest_ind(first - margin, second, equal_var=False, alternative="less").pvalue
    p = float(max(above, below))
    verdict = "equivalent" if p < 0.05 else "not shown to be equivalent"
    sides = [f"{side.mean():.1f} ± {side.std(ddof=1):.1f}" for side in (first, second)]
    difference = f"difference {both.low:+.1f} to {both.high:+.1f}"
    return f"{name}: {sides[0]} here, {sides[1]} there; {difference}; {verdict} within {margin:g} (p = {p:.2g})"


def run(arguments: argparse.Namespace, environment: str, side: str, seed: int) -> tuple[float, float]:
    """The scores of one run, which is made in a process of its own unless its file is there."""
    steps = arguments.steps
    file = Path(arguments.runs) / f"{environment}-{steps}-{side}-{seed}.json"
    if not file.exists():
        python = {"harness": sys.executable, "cleanrl": arguments.cleanrl_python, "sb3": arguments.sb3_python}[side]
        command = [python, __file__, *sys.argv[1:], "--side", side, "--seed", str(seed), "--environment", environment]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        found = re.search(r"^episodes (.*)$", done.stdout, re.MULTILINE)
        if not found or found[1] == "[]":
            raise SystemExit(f"{environment}, {side}, seed {seed}: no episodes\n{done.stderr[-2000:]}")
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(found[1])
        partial.rename(file)
    return scores(json.loads(file.read_text()), steps)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cleanrl", required=True, help="CleanRL's ppo.py, of a checkout of your own")
    parser.add_argument("--cleanrl-python", default=sys.executable)
    parser.add_argument("--sb3-python")
    parser.add_argument("--environment", action="append", choices=sorted(MARGINS), help="both unless given")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=500_000)
    parser.add_argument("--runs", default="ppo_equivalence")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.side:
        environment = arguments.environment[-1]
        size = environment, arguments.steps, arguments.seed
        runners = {
            "harness": ours,
            "sb3": stable_baselines,
            "cleanrl": lambda *of: cleanrl(Path(arguments.cleanrl), *of),
        }
        print("episodes", json.dumps(runners[arguments.side](*size)))
        return
    sides = SIDES if arguments.sb3_python else SIDES[:2]
    for environment in arguments.environment or MARGINS:
        found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for seed in range(1, arguments.seeds + 1):
            for side in sides:
                found[side].append(run(arguments, environment, side, seed))
                print(environment, side, seed, [round(value, 1) for value in found[side][-1]], flush=True)
        if arguments.seeds < 2:
            continue
        for other in sides[1:]:
            for index, name in enumerate(NAMES):
                first, second = (np.array(found[side])[:, index] for side in ("harness", other))
                print(f"{environment} against {other}, {told(name, first, second, MARGINS[environment])}")


if __name__ == "__main__":
    main()
