"""Load: what a grid of many short trials costs, and a plan of very many.

    python benchmarks/load.py [--trials 2000] [--planned 100000] [--cpus 2]

Prints one `name value` line per measurement, with the aim beside it where there is one, and ends with status 1 if one is
missed. A trial is a few steps of digits/mlp; the grid runs on a local cluster, is run again, and once more at a tenth of its
size; the large grid is only planned. Each measurement has a process of its own.

The memory of planning is judged by a limit that the kernel enforces: in a control group of 500 MB, with none of the libraries
in the page cache yet, the plan must be finished. All that the process touches is charged to the group, files as well, and what
cannot be had ends it. What is resident at the peak without a limit stands beside: much of that is libraries' files, which the
system may drop and reads anew where they are needed; importing torch's CUDA build takes 544 MiB alone. Without a control group
of one's own (Linux, and the right to make one) that is judged instead.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, median

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


REPEATS = 5
"""Plans that are timed: the median counts."""

LIMIT = 500e6
"""Bytes that planning may take."""

AIMS = {
    "plan/cpu_seconds": 5.0,
    "plan/peak_mb": LIMIT / 1e6,
    "run/per_trial_ratio": 1.2,
    "run/driver_mb_per_1000_trials": 20.0,
    "rerun/seconds": 3.0,
    "rerun/launched": 0.0,
}
"""What each figure may be at most."""


def beside(name: str, value: float) -> str:
    """What is said beside a figure: its aim, and whether that is missed."""
    if name not in AIMS:
        return ""
    return f" (aim: at most {AIMS[name]:g}{', missed' if value > AIMS[name] else ''})"


def tell(figures: dict[str, float]) -> list[str]:
    """Prints figures beside their aims; returns those that miss them."""
    for name, value in figures.items():
        print(f"{name} {value:.6g}{beside(name, value)}", flush=True)
    return [name for name, value in figures.items() if value > AIMS.get(name, math.inf)]


MEMORY = """
import resource
from pathlib import Path
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
lines = Path("/proc/self/status").read_text().splitlines()
anonymous = next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("RssAnon:"))
"""

PLAN = f"""
import json, sys, time
from pathlib import Path
began = time.process_time()
from harness.planning.grid import load_grid
from harness.planning.plan import build_plan
from harness.registry import Registry
registry = Registry()
plan = build_plan(load_grid(Path(sys.argv[1]), [], registry), registry)
seconds = time.process_time() - began
{MEMORY}
print(json.dumps([len(plan.trials), seconds, peak, anonymous]))
"""


@dataclass(frozen=True)
class Planned:
    """Planning in a process of its own: trials, CPU seconds, and MB at the peak and, anonymous of them, at the end."""

    trials: int
    seconds: float
    peak: float
    anonymous: float


def plan(grid: Path, cache: Path, within: Path | None = None) -> Planned:
    """Plans with no plan in the cache, in a control group if one is named."""
    shutil.rmtree(cache / "plans", ignore_errors=True)
    environment = os.environ | {"HARNESS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    joining = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(within / "cgroup.procs")] if within else []
    done = subprocess.run(
        [*joining, sys.executable, "-c", PLAN, str(grid)], capture_output=True, text=True, check=True, env=environment
    )
    return Planned(*json.loads(done.stdout))


@contextlib.contextmanager
def limited() -> Iterator[Path | None]:
    """A control group of LIMIT bytes of memory; None where none can be made."""
    root = Path("/sys/fs/cgroup")
    for parent, limit in ((root / "memory" / own("memory"), "memory.limit_in_bytes"), (root / own(""), "memory.max")):
        group = parent / f"load-{os.getpid()}"
        try:
            group.mkdir()
            with (group / limit).open("r+") as file:  # it must be there: in a plain folder nothing is limited
                file.write(f"{LIMIT:.0f}")
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        try:
            yield group
        finally:
            group.rmdir()
        return
    yield None


def own(controllers: str) -> str:
    """The control group of this process: of a controller of version 1, or of version 2, which has no name there."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, found, group = line.split(":", 2)
            if found == controllers:
                return group.strip("/")
    return ""


def forget_libraries() -> None:
    """Has the system drop the installed libraries from memory, so that whoever reads them next is charged for them."""
    for file in Path(sysconfig.get_path("platlib")).rglob("*.so*"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_under_the_limit(grid: Path, cache: Path) -> float | None:
    """Resident MB at the peak of planning under the limit, infinite if the kernel ends it; None without a control group."""
    with limited() as group:
        if group is None:
            print("no control group can be made here: plan/peak_mb is what is resident without a limit", flush=True)
            return None
        forget_libraries()
        try:
            return plan(grid, cache, group).peak
        except subprocess.CalledProcessError as error:
            print(f"under the limit: exit status {error.returncode} {error.stderr}", flush=True)
            return math.inf


IMPORT = f"import time, torch\nseconds = time.process_time()\n{MEMORY}\nprint(seconds, peak, anonymous)"


def import_torch() -> tuple[float, float, float]:
    """CPU seconds and MB of a process that imports torch and does nothing, at the peak and, anonymous of them, at the end."""
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    seconds, peak, anonymous = map(float, done.stdout.split())
    return seconds, peak, anonymous


@dataclass
class Measured:
    """One run of a grid."""

    trials: int
    seconds: float
    driver_seconds: float
    """CPU seconds of the driver."""
    memory: list[tuple[float, float]]
    """Its resident MB every half second, each with the time."""
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
        """MB by which the driver grows with each 1,000 trials that end, by least squares while all is under way."""
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
            memory.append((time.time(), driver.memory_info().rss / 1e6))
            used = sum(driver.cpu_times()[:2])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(INTERVAL)
            break
    assert process.returncode == 0, f"exit status {process.returncode}"
    seconds = time.monotonic() - began
    ended = sorted(json.loads(file.read_text())["ended"] for file in results.glob("trials/*/result.json"))
    return Measured(len(ended), seconds, used, memory, ended)


def planning(folder: Path, trials: int) -> dict[str, float]:
    """What a plan of very many trials costs."""
    few = plan(write(folder, 20), folder / "cache")  # the index of the registry, and byte-code
    large = write(folder, trials, 100)
    times, times_of_torch = [], []
    for _ in range(REPEATS):  # one time alone says little on a machine that others use too
        many = plan(large, folder / "cache")
        torch_seconds, torch_peak, torch_anonymous = import_torch()
        times.append(many.seconds)
        times_of_torch.append(torch_seconds)
    peak = peak_under_the_limit(large, folder / "cache")
    return {
        "plan/trials": many.trials,
        "plan/cpu_seconds": median(times),
        "plan/cpu_seconds_at_least": min(times),
        "plan/cpu_seconds_at_most": max(times),
        "plan/cpu_seconds_of_import_torch": median(times_of_torch),
        "plan/peak_mb": many.peak if peak is None else peak,
        "plan/peak_mb_without_a_limit": many.peak,
        "plan/anonymous_mb": many.anonymous,
        "plan/peak_mb_of_20_trials": few.peak,
        "plan/anonymous_mb_of_20_trials": few.anonymous,
        "plan/peak_mb_of_import_torch": torch_peak,
        "plan/anonymous_mb_of_import_torch": torch_anonymous,
    }


def running(folder: Path, trials: int, cpus: int) -> dict[str, float]:
    """What a grid of many short trials costs, and running it again."""
    small = run(write(folder, max(CELLS, trials // 10)), folder / "small", cpus)
    large = run(write(folder, trials), folder / "results", cpus)
    again = run(write(folder, trials), folder / "results", cpus)
    figures = {}
    for one in (small, large):
        figures[f"run/seconds_at_{one.trials}"] = one.seconds
        figures[f"run/ms_per_trial_at_{one.trials}"] = 1000 * one.each
        figures[f"run/driver_cpu_ms_per_trial_at_{one.trials}"] = 1000 * one.driver_seconds / one.trials
    return figures | {
        "run/per_trial_ratio": large.each / small.each,
        "run/driver_mb_per_1000_trials": large.growth,
        "rerun/seconds": again.seconds,
        "rerun/cpu_seconds": again.driver_seconds,
        "rerun/launched": float(sum(time not in large.ended for time in again.ended)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--planned", type=int, default=100_000)
    parser.add_argument("--cpus", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        if options.planned:
            missed += tell(planning(Path(place), options.planned))
        if options.trials:
            missed += tell(running(Path(place), options.trials, options.cpus))
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
