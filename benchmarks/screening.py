"""What screening saves and loses on seeds that no threshold was fitted on: wall-clock, CPU time, successes, the best return.

    harness run grids/proxies/oui_screening.yaml --results RESULTS
    python benchmarks/screening.py --calibration RESULTS --results screening

Each grid under grids/screening runs in a results folder of its own, so no arm takes a trial over from another; the calibration
grid's runs are linked there for the thresholds. An arm that is done is not run again, and one that was interrupted goes on.

CPU seconds are those of the trials' processes; the wall-clock is that of the whole command, beside whatever else the machine
does. A run is a success if, unscreened, its return over the last tenth is at least 90 % of the best learning rate's mean. What was
lost is the best final return of a seed's runs minus the best of those that were not stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from harness.judging.calibration import Run, regret
from harness.judging.calibration_runs import JUDGED, runs_of_grid
from harness.recording.grids import submissions
from harness.recording.records import Result
from harness.recording.results import Results

GRIDS = Path(__file__).parents[1] / "grids" / "screening"
ARMS = {
    "none": "screening-none",
    "lr": "screening-lr",
    "oui": "screening-oui",
    "early_return_oui": "screening-early-return-oui",
}
CALIBRATION = "oui-screening"

Key = tuple[str, float, str]
"""Task, learning rate, seed."""


def link(calibration: Path, folder: Path) -> None:
    """Makes the calibration grid's runs readable in a results folder."""
    known = submissions(Results(calibration), CALIBRATION)
    if not known:
        raise SystemExit(f"--calibration: found {calibration}, which has no runs of {CALIBRATION}; run that grid first")
    names = [f"grids/{CALIBRATION}", *(f"trials/{trial.hash}" for trial in known[-1].trials())]
    for name in names:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to((calibration / name).resolve())


def run(arm: str, arguments: argparse.Namespace) -> float:
    """Runs an arm to its end; the seconds that its commands have taken so far."""
    folder = Path(arguments.results) / arm
    link(Path(arguments.calibration), folder)
    note = folder / "wall.json"
    before = json.loads(note.read_text()) if note.exists() else {"seconds": 0.0, "done": False}
    if not before["done"]:
        command = [sys.executable, "-m", "harness.cli", "run", str(GRIDS / f"{arm}.yaml"), "--results", str(folder)]
        command += [part for one in arguments.set for part in ("--set", one)]
        command += ["--cpus", str(arguments.cpus)] if arguments.cpus else []
        started = time.perf_counter()
        status = subprocess.run(command).returncode
        before = {"seconds": before["seconds"] + time.perf_counter() - started, "done": status == 0}
        note.write_text(json.dumps(before))
        if status:
            raise SystemExit(f"{arm}: harness run ended with {status}; this command goes on from there")
    return float(before["seconds"])


def ended(arm: str, results: Path) -> dict[Key, Result]:
    """The results of an arm's trials."""
    memory = Results(results / arm)
    found = {}
    for trial in submissions(memory, ARMS[arm])[-1].trials():
        result = memory.trial(trial.hash).result()
        assert result is not None, trial.cell
        found[trial.task_label, float(trial.spec["recipe"]["lr"]), trial.seed] = result
    return found


def spent(result: Result) -> float:
    """The CPU seconds of a trial; one that diverged has no final metrics, and its wall-clock stands for them."""
    return result.metrics.get("time/cpu_seconds", result.ended - result.started)


def row(arm: str, task: str, runs: list[Run], results: dict[Key, Result], whole: dict[Key, Result]) -> str:
    """One line of the table: what an arm kept, spent and lost on a task."""
    kept = [results[run.task, run.lr, run.seed].status in JUDGED for run in runs]
    cpu, all_cpu = (sum(spent(found[run.task, run.lr, run.seed]) for run in runs) for found in (results, whole))
    successes = sum(run.success for run in runs)
    lost = sum(run.success and not taken for run, taken in zip(runs, kept, strict=True))
    by_seed = []
    for seed in sorted({run.seed for run in runs}):
        own = [(run, taken) for run, taken in zip(runs, kept, strict=True) if run.seed == seed]
        by_seed.append(regret([run for run, _ in own], [taken for _, taken in own]))
    cells = [arm, task, f"{len(runs) - sum(kept)} of {len(runs)}", f"{cpu:.0f}", f"{cpu / all_cpu:.0%}"]
    cells += [f"{lost} of {successes}", f"{sum(by_seed) / len(by_seed):.1f}", f"{max(by_seed):.1f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--calibration", required=True, help="the results folder with the calibration grid's runs")
    parser.add_argument("--results", default="screening")
    parser.add_argument("--cpus", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="passed on to each grid")
    arguments = parser.parse_args()
    walls = {arm: run(arm, arguments) for arm in ARMS}
    folder = Path(arguments.results)
    runs = runs_of_grid(Results(folder / "none"), ARMS["none"], at=0.1)
    whole = ended("none", folder)
    print("\n| rule | wall-clock, s | share |\n|---|---|---|")
    for arm, seconds in walls.items():
        print(f"| {arm} | {seconds:.0f} | {seconds / walls['none']:.0%} |")
    print("\n| rule | task | stopped | CPU, s | share | successes lost | best return lost, mean | worst seed |")
    print("|---|---|---|---|---|---|---|---|")
    for task in sorted({run.task for run in runs}):
        for arm in ARMS:
            print(row(arm, task, [run for run in runs if run.task == task], ended(arm, folder), whole))


if __name__ == "__main__":
    main()
