"""What fits beside what: units that ask for two GPUs, one and a quarter, on a cluster of fake GPUs, without a deadlock and with no
placement group left; and trials of which it is known how much memory they take.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from machines import PATIENCE, Machines, machines, until
from running.test_faults import SLOW, Place
from support import results_of

from harness.planning.grid import load_grid
from harness.planning.plan import PlannedTrial, build_plan
from harness.recording.records import Status
from harness.recording.results import Results
from harness.registry import Registry
from harness.resources import Resources
from harness.running.driver import unit_of
from harness.running.scheduling import Outcome, cluster, run_units
from harness.running.units import MEMORY_STEP, Unit, packed

GRID = """
name: packed
tasks: [digits/mlp]
methods: [adamw]
seeds: 18
recipes: [{set: {steps: 20}}]
"""

SHARES = (2.0, 1.0, 0.25)
"""GPUs of a unit, in turn."""


class Deaf:
    """A listener that does not listen."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


@pytest.fixture(scope="module")
def gpus() -> Iterator[Machines]:
    """Two nodes with two GPUs each, which only Ray believes in: the trials compute on CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # Ray gives no more GPUs than this names
        with machines(2, num_cpus=3, num_gpus=2) as started:
            yield started


def planned(folder: Path) -> list[PlannedTrial]:
    grid, registry = folder / "grid.yaml", Registry()
    grid.write_text(GRID)
    return build_plan(load_grid(grid, [], registry), registry).trials


def units(trials: list[PlannedTrial]) -> list[Unit]:
    """A unit for each trial, of three sizes in turn."""
    shares = [SHARES[number % len(SHARES)] for number in range(len(trials))]
    made = [unit_of(trial, {}, []) for trial in trials]
    return [Unit(unit.trials, Resources(gpus=gpus), f"{gpus}") for unit, gpus in zip(made, shares, strict=True)]


def run(ray: Any, given: list[Unit], folder: Path, scheduler: Any = None) -> Outcome:
    """Runs units on the cluster, and checks that it has its GPUs back."""
    settings = {"results": str(folder / "results"), "plugins": [], "commit_every": 1.0, "report_every": 0.2}
    outcome = run_units(given, settings | {"slots": 6}, Deaf(), scheduler)
    from ray.util import placement_group_table

    def returned() -> bool:
        left = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
        return not left and ray.available_resources().get("GPU") == 4

    until(returned, PATIENCE, "the return of every GPU")
    return outcome


@pytest.mark.slow
def test_units_of_three_sizes_share_the_gpus(gpus: Machines, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    trials = planned(tmp_path)
    with cluster(gpus.address) as ray:
        outcome = run(ray, units(trials), tmp_path)
    assert outcome.ended == {trial.hash: Status.FINISHED for trial in trials}


@pytest.mark.slow
def test_a_scheduler_stops_some_of_them(gpus: Machines, tmp_path: Path) -> None:
    """What it stops is interrupted and gives its GPUs back; the others finish, and a rerun finishes all."""
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    (tmp_path / "results").mkdir()
    trials = planned(tmp_path)
    chosen = {trial.hash for trial in trials[::4]}
    stopped: set[str] = set()

    class Stops(FIFOScheduler):  # type: ignore[misc]  # Ray has no types
        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if trial.trial_id not in chosen or result.get("done"):
                return TrialScheduler.CONTINUE
            stopped.add(trial.trial_id)
            return TrialScheduler.STOP

    with cluster(gpus.address) as ray:
        run(ray, units(trials), tmp_path, Stops())
        assert stopped, "some were stopped in the middle"
        results = {trial.hash: Results(tmp_path / "results").trial(trial.hash).result() for trial in trials}
        assert {hash for hash, result in results.items() if result is None} <= stopped
        left = [unit for unit in units(trials) if results[unit.name] is None]
        run(ray, left, tmp_path)
    assert all(Results(tmp_path / "results").trial(trial.hash).result() for trial in trials)


GIB = 2**30


@pytest.mark.parametrize(
    ("peak", "limit", "nodes", "expected"),
    [
        (0, None, [(4, 2)], None),  # nothing is known
        (GIB // 2, None, [(4, 2)], None),  # four fit
        (GIB // 2 + 1, None, [(4, 2)], GIB * 3 // 4),  # three quarters after rounding: four do not
        (GIB // 2 + 1, None, [(4, 64), (4, 2)], GIB * 3 // 4),
        (GIB, 3 * GIB, [(4, 2)], None),  # the grid says how much
        (9 * GIB, None, [(4, 2)], 2 * GIB),  # never more than a node has, or it would never run
    ],
)
def test_an_expected_memory_is_asked_for_where_a_node_would_run_out(
    tmp_path: Path, peak: int, limit: int | None, nodes: list[tuple[int, int]], expected: int | None
) -> None:
    unit = Unit(unit_of(planned(tmp_path)[0], {}, []).trials, Resources(memory=limit))
    asked = packed(unit, peak, [{"CPU": cpus, "memory": gib * GIB} for cpus, gib in nodes]).resources
    assert (asked.expected, asked.memory) == (expected, limit)
    assert asked.bundle.get("memory", 0) == (limit or expected or 0)


@pytest.mark.slow
def test_what_a_trial_took_is_what_the_next_one_is_given_room_for(tmp_path: Path) -> None:
    """A node of four CPUs with the memory of two such trials runs two at a time."""
    text = GRID.replace("[adamw]", "[slow + adamw]").replace("seeds: 18", "seeds: 1")
    place = Place(tmp_path, text, SLOW)
    place.run()
    (first,) = place.hashes
    memory = Results(place.results)
    known = memory.trial(first).result()
    assert known
    place.pace(0.1)
    taken = int(known.metrics["system/peak_memory_mb"] * 2**20)
    with machines(1, num_cpus=4, memory=int(2.5 * taken) + MEMORY_STEP) as started:
        place.run("--set", "seeds=7", "--address", started.address)
    ended = results_of(place.results)
    times = [(result.started, result.ended) for hash, result in ended.items() if hash != first]
    assert len(times) == 6
    beside = [sum(begun <= start < end for begun, end in times) for start, _ in times]
    assert max(beside) == 2
