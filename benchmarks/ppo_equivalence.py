"""Whether PPO here learns as CleanRL's ppo.py does: two one-sided tests on the area under the curve and the final return.

    python benchmarks/ppo_equivalence.py --cleanrl PATH/TO/cleanrl/ppo.py --environment CartPole-v1 --steps 200000 --seeds 10

Both sides: CleanRL's hyper-parameters, annealing over the same steps. The area is the mean over 20 equal parts of the steps of the
mean return of episodes that ended there; the final return is that of the last tenth. Margins were fixed before any run: 5 % of
the range of returns, 25 on CartPole and Acrobot (0 to 500, -500 to 0) and 10 on MountainCar.

The two differ on purpose in one thing: an episode that is cut off by a time limit is bootstrapped here, and taken as over there.
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

import numpy as np
from ppo_speed import TASKS, run_cleanrl, run_harness
from scipy import stats

MARGINS = {"CartPole-v1": 25.0, "Acrobot-v1": 25.0, "MountainCar-v0": 10.0}


def ours(environment: str, steps: int, seed: int) -> list[tuple[int, float]]:
    """Environment step and return of every training episode."""
    from tasks import control
    from tasks.signals import Returns

    episodes: list[tuple[int, float]] = []

    class Recording(Returns):
        def add(self, env_step: int, total: float) -> None:
            super().add(env_step, total)
            episodes.append((env_step, total))

    control.Returns = Recording  # type: ignore[misc]
    run_harness(environment, steps, seed)
    return episodes


def theirs(file: Path, environment: str, steps: int, seed: int) -> list[tuple[int, float]]:
    """The same from CleanRL's output."""
    pattern = re.compile(r"global_step=(\d+), episodic_return=\[?([-\d.e+]+)")
    found = [pattern.match(line) for line in run_cleanrl(file, environment, steps, seed)]
    return [(int(match[1]), float(match[2])) for match in found if match]


def scores(episodes: list[tuple[int, float]], steps: int) -> tuple[float, float]:
    """Area under the curve and final return; a part in which no episode ended has the value of the one before."""
    at, totals = np.array(episodes).T
    curve = []
    for low, high in pairwise(np.linspace(0, steps, 21)):
        inside = totals[(at > low) & (at <= high)]
        curve.append(inside.mean() if len(inside) else (curve[-1] if curve else totals[0]))
    return float(np.mean(curve)), float(totals[at > 0.9 * steps].mean())


def equivalent(first: np.ndarray, second: np.ndarray, margin: float) -> float:
    """The p value of two one-sided Welch tests: small means that the means differ by less than the margin."""
    above = stats.ttest_ind(first + margin, second, equal_var=False, alternative="greater").pvalue
    below = stats.ttest_ind(first - margin, second, equal_var=False, alternative="less").pvalue
    return float(max(above, below))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cleanrl", required=True)
    parser.add_argument("--environment", default="CartPole-v1", choices=sorted(TASKS))
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--side", choices=["harness", "cleanrl"])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.side:
        size = given.environment, given.steps, given.seed
        episodes = ours(*size) if given.side == "harness" else theirs(Path(given.cleanrl), *size)
        print("scores", json.dumps(scores(episodes, given.steps)))
        return
    found: dict[str, list[list[float]]] = {"harness": [], "cleanrl": []}
    for seed in range(given.seeds):
        for side, rows in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--seed", str(seed)]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            match = re.search(r"^scores (.*)$", done.stdout, re.MULTILINE)
            if not match:
                raise SystemExit(f"{side}, seed {seed}: {done.stderr[-2000:]}")
            rows.append(json.loads(match[1]))
            print(side, seed, [round(value, 1) for value in rows[-1]], flush=True)
    margin = MARGINS[given.environment]
    for index, name in enumerate(("area under the curve", "final return")):
        first, second = (np.array(found[side])[:, index] for side in ("harness", "cleanrl"))
        p = equivalent(first, second, margin)
        verdict = "equivalent" if p < 0.05 else "not shown to be equivalent"
        sides = [f"{side.mean():.1f} ± {side.std(ddof=1):.1f}" for side in (first, second)]
        print(f"{name}: {sides[0]} here, {sides[1]} there; {verdict} within {margin:g} (p = {p:.3g})")


if __name__ == "__main__":
    main()
