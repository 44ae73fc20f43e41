"""Load: what a grid of many short trials costs, and a plan of very many.

    python benchmarks/load.py [--trials 2000] [--planned 100000] [--cpus 2]

Prints one `name value` line per measurement. A trial is a few steps of digits/mlp; the grid runs on a local cluster, is run
again, and once more at a tenth of its size; the large grid is only planned. Each measurement has a process of its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

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


def run(grid: Path, results: Path, cpus: int) -> tuple[float, list[float]]:
    """Wall seconds of a run, and its driver's resident MiB every half second."""
    command = [sys.executable, "-m", "harness.cli", "run", str(grid), "--results", str(results), "--cpus", str(cpus)]
    began, memory = time.monotonic(), []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def watch() -> None:
        while process.poll() is None:
            try:
                memory.append(psutil.Process(process.pid).memory_info().rss / 2**20)
            except psutil.Error:
                return
            time.sleep(0.5)

    threading.Thread(target=watch, daemon=True).start()
    status = process.wait()
    assert status == 0, f"exit status {status}"
    return time.monotonic() - began, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--planned", type=int, default=100_000)
    parser.add_argument("--cpus", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if options.planned:
            plan(write(folder, 20), folder / "cache")  # the index of the registry, and byte-code
            trials, seconds, peak = plan(write(folder, options.planned, 100), folder / "cache")
            print(f"plan/trials {trials}\nplan/cpu_seconds {seconds:.2f}\nplan/peak_mib {peak:.0f}", flush=True)
        small = max(CELLS, options.trials // 10)
        few, _ = run(write(folder, small), folder / "small", options.cpus)
        many, memory = run(write(folder, options.trials), folder / "results", options.cpus)
        again, _ = run(write(folder, options.trials), folder / "results", options.cpus)
        marginal = (many - few) / (options.trials - small)
        quarter = memory[len(memory) // 4 :]
        growth = (quarter[-1] - quarter[0]) / (0.75 * options.trials) * 1000 if len(quarter) > 1 else 0.0
        print(f"run/seconds_at_{small} {few:.1f}\nrun/seconds_at_{options.trials} {many:.1f}")
        print(f"run/ms_per_further_trial {1000 * marginal:.1f}")
        print(f"run/per_trial_ratio {many / options.trials / (few / small):.3f}")
        print(f"run/driver_mib_per_1000_trials {growth:.1f}")
        print(f"rerun/seconds {again:.2f}")
        print(f"benchmark/peak_mib {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")


if __name__ == "__main__":
    main()
