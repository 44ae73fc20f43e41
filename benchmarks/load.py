"""Load: what a grid of many short trials costs, and a plan of very many.

    python benchmarks/load.py [--trials 2000] [--planned 100000] [--cpus 2]

Prints one `name value` line per measurement. A trial is a few steps of digits/mlp; the grid runs on a local cluster, is run
again, and once more at a tenth of its size; the large grid is only planned. Each measurement has a process of its own.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from bisect import bisect
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression

import psutil

GRID = """
name: load
tasks: [digits/mlp]
methods: [adamw, sgd]
seeds: {seeds}
recipes: [{{set: {{steps: 3, lr: {{each: {rates}}}}}}}]
"""

CELLS = 10
"""Cells of the grid that is run."""


def write(folder: Path, trials: int, cells: int = CELLS) -> Path:
    """A grid of so many trials."""
    rates = [round(1e-4 * 1.01**number, 10) for number in range(cells // 2)]
    grid = folder / f"{trials}.yaml"
    grid.write_text(GRID.format(seeds=trials // cells, rates=rates))
    return grid


PLAN = """
import json, resource, sys, time
from pathlib import Path
began = time.process_time()
from harness.planning.grid import load_grid
from harness.planning.plan import build_plan
from harness.registry import Registry
registry = Registry()
plan = build_plan(load_grid(Path(sys.argv[1]), [], registry), registry)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([len(plan.trials), time.process_time() - began, peak]))
"""


def plan(grid: Path, cache: Path) -> tuple[int, float, float]:
    """Trials, CPU seconds and peak MiB of planning in a process of its own, with an empty cache of plans."""
    environment = os.environ | {"HARNESS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PLAN, str(grid)], capture_output=True, text=True, check=True, env=environment
    )
    trials, seconds, peak = json.loads(done.stdout)
    return trials, seconds, peak


IMPORT = "import torch, resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"


def import_torch() -> float:
    """Peak MiB of a process that imports torch and does nothing: what planning needs before it begins."""
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    return float(done.stdout)


@dataclass
class Measured:
    """One run of a grid."""

    trials: int
    seconds: float
    driver_seconds: float
    """CPU seconds of the driver."""
    memory: list[tuple[float, float]]
    """Its resident MiB every half second, each with the time."""
    ended: list[float]
    """When each trial ended, in order."""

    @property
    def each(self) -> float:
        """Seconds per trial once all is under way: without the first and the last twentieth."""
        under_way = self.under_way
        return (under_way[-1] - under_way[0]) / (len(under_way) - 1)

    @property
    def under_way(self) -> list[float]:
        """Ends of trials without the first and the last twentieth."""
        edge = len(self.ended) // 20
        return self.ended[edge : len(self.ended) - edge]

    @property
    def growth(self) -> float:
        """MiB by which the driver grows with each 1,000 trials that end, by least squares while all is under way."""
        first, last = self.under_way[0], self.under_way[-1]
        kept = [(bisect(self.ended, at), size) for at, size in self.memory if first <= at <= last]
        return 1000 * linear_regression(*zip(*kept, strict=True)).slope


INTERVAL = 0.5
"""Seconds between two looks at the driver."""


def run(grid: Path, results: Path, cpus: int) -> Measured:
    """Runs a grid and watches its driver."""
    command = [sys.executable, "-m", "harness.cli", "run", str(grid), "--results", str(results), "--cpus", str(cpus)]
    began, memory, used = time.monotonic(), [], 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    driver = psutil.Process(process.pid)
    while True:
        with contextlib.suppress(psutil.Error):
            memory.append((time.time(), driver.memory_info().rss / 2**20))
            used = sum(driver.cpu_times()[:2])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(INTERVAL)
            break
    assert process.returncode == 0, f"exit status {process.returncode}"
    seconds = time.monotonic() - began
    ended = sorted(json.loads(file.read_text())["ended"] for file in results.glob("trials/*/result.json"))
    return Measured(len(ended), seconds, used, memory, ended)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--planned", type=int, default=100_000)
    parser.add_argument("--cpus", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if options.planned:
            _, _, few = plan(write(folder, 20), folder / "cache")  # the index of the registry, and byte-code
            trials, seconds, peak = plan(write(folder, options.planned, 100), folder / "cache")
            print(f"plan/trials {trials}\nplan/cpu_seconds {seconds:.2f}\nplan/peak_mib {peak:.0f}")
            print(
                f"plan/peak_mib_of_20_trials {few:.0f}\nplan/peak_mib_of_import_torch {import_torch():.0f}", flush=True
            )
        if not options.trials:
            return
        small = run(write(folder, max(CELLS, options.trials // 10)), folder / "small", options.cpus)
        large = run(write(folder, options.trials), folder / "results", options.cpus)
        again = run(write(folder, options.trials), folder / "results", options.cpus)
        for one in (small, large):
            print(
                f"run/seconds_at_{one.trials} {one.seconds:.1f}\nrun/ms_per_trial_at_{one.trials} {1000 * one.each:.1f}"
            )
            print(f"run/driver_cpu_ms_per_trial_at_{one.trials} {1000 * one.driver_seconds / one.trials:.1f}")
        print(f"run/per_trial_ratio {large.each / small.each:.3f}")
        print(f"run/driver_mib_per_1000_trials {large.growth:.1f}")
        print(f"rerun/seconds {again.seconds:.2f}\nrerun/cpu_seconds {again.driver_seconds:.2f}")
        assert again.ended == large.ended, "the rerun launches nothing"


if __name__ == "__main__":
    main()
