"""Data-parallel trials of a grid: the curve of one rank on two and four, and what comes after a rank that was killed."""

import json
import subprocess
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import psutil
import pytest
from machines import PATIENCE, machines, until
from running.test_faults import SLOW, Place, worker_processes
from support import harness, results_of, timeless, write_grid

from harness.recording.results import Results
from harness.resources import Resources
from harness.running.scheduling import Infeasible, check_feasible

pytestmark = pytest.mark.slow

CURVES = """
name: ranks
tasks: [digits/mlp]
methods: [adamw, stable_grad + adamw, oui_decay + adamw]
seeds: 1
recipes: [{set: {steps: 50, precision: float64, record_every: 1, evaluate_every: 10}}]
"""

CLIENTS = """
name: clients
tasks: [digits/federated]
methods: [scaffold + adamw, fed_oui + sgd]
seeds: 1
recipes: [{set: {rounds: 4, clients_per_round: 5, evaluate_every: 1}}]
"""

FAULTS = """
name: rank-faults
tasks: [digits/mlp]
methods: [slow + adamw]
seeds: 1
resources: {cpus: 0.5, ranks: 2}
recipes: [{set: {steps: 60, record_every: 10}}]
"""

Curves = dict[str, list[tuple[int, dict[str, float]]]]


def curves(folder: Path, ranks: int, *more: object, grid_text: str = CURVES) -> Curves:
    """The metrics of every record of a grid's trials, on so many ranks."""
    folder.mkdir()
    grid = write_grid(folder, grid_text)
    asked = "resources={cpus: " + str(1 / ranks) + f", ranks: {ranks}}}"
    harness("run", grid, "--results", folder / "results", "--set", asked, *more)
    shown: Curves = {}
    for hash, result in results_of(folder / "results").items():
        assert result.environment["ranks"] == ranks
        records = Results(folder / "results").trial(hash).records()
        shown[hash] = [(r["step"], timeless(r["metrics"])) for r in records if "metrics" in r]
        shown[hash].append((result.steps, timeless(result.metrics)))
    return shown


TOLERANCES = {"float64": 1e-9, "float32": 1e-5}


def test_one_two_and_four_ranks_give_one_curve(tmp_path: Path) -> None:
    """Without BatchNorm or dropout: 50 steps within a tolerance of what one rank gives."""
    text = CURVES.replace("float64", f"{{each: [{', '.join(TOLERANCES)}]}}")
    alone = curves(tmp_path / "1", 1, "--cpus", 1, grid_text=text)
    memory = Results(tmp_path / "1" / "results")
    precisions = {hash: json.loads(memory.trial(hash).spec_json() or "")["recipe"]["precision"] for hash in alone}
    assert sorted(precisions.values()) == sorted([*TOLERANCES] * 3), "three methods in each precision"
    for ranks in (2, 4):
        together = curves(tmp_path / str(ranks), ranks, "--cpus", 1, grid_text=text)
        assert together.keys() == alone.keys(), "the number of ranks is no part of a trial's identity"
        for hash, records in alone.items():
            tolerance = TOLERANCES[precisions[hash]]
            assert [step for step, _ in together[hash]] == [step for step, _ in records]
            for (_, mine), (_, expected) in zip(together[hash], records, strict=True):
                assert mine == pytest.approx(expected, rel=tolerance, abs=1e-12)


def test_ranks_share_the_clients_of_a_round(tmp_path: Path) -> None:
    """Five clients over two ranks, one of which has the last wave alone: to the bit what one rank gives."""
    alone, together = (curves(tmp_path / str(n), n, "--cpus", 1, grid_text=CLIENTS) for n in (1, 2))
    assert together == alone


def test_ranks_on_several_nodes(tmp_path: Path) -> None:
    """Each rank on a node of its own: these have one CPU each."""
    alone = curves(tmp_path / "1", 1, "--cpus", 1)
    with machines(2, num_cpus=1) as started:
        together = curves(tmp_path / "2", 2, "--set", "resources.cpus=1", "--address", started.address)
    for hash, records in alone.items():
        for (_, mine), (_, expected) in zip(together[hash], records, strict=True):
            assert mine == pytest.approx(expected, rel=1e-9, abs=1e-12)


def rank_process(place: Place, index: int) -> psutil.Process | None:
    """The process of a rank: each but the first prints to a file that has its number."""

    def follows(process: psutil.Process) -> bool:
        return Path(f"/proc/{process.pid}/fd/1").resolve().name.startswith("rank-")

    with suppress(psutil.NoSuchProcess):  # one of them ended while it was looked at: whoever waits looks again
        found = (process for process in worker_processes(place, "trial") if follows(process) == bool(index))
        return max(found, key=psutil.Process.create_time, default=None)  # of the newest attempt
    return None


@pytest.mark.chaos
def test_a_rank_is_killed(tmp_path: Path) -> None:
    """Whichever rank it is, the trial goes on from its last commit, and its numbers are those of an undisturbed run."""
    undisturbed, place = (Place(tmp_path / name, FAULTS, SLOW) for name in ("undisturbed", "place"))
    undisturbed.run()
    place.pace(2)
    driver: subprocess.Popen[str] = place.start()

    for index in (0, 1):
        until(partial(place.committed, index + 1), PATIENCE, f"a commit of attempt {index + 1}")
        until(partial(rank_process, place, index), PATIENCE, f"rank {index}").kill()
    until(partial(place.committed, 3), PATIENCE, "a commit of attempt 3")
    place.pace(0)
    shown = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 0, shown
    place.as_undisturbed(undisturbed)
    (result,) = results_of(place.results).values()
    assert result.attempt > 1
    place.nothing_runs()


def test_more_ranks_than_the_nodes_hold_are_refused() -> None:
    nodes = [{"Resources": {"CPU": 4.0, "GPU": 2.0}}, {"Resources": {"CPU": 2.0, "GPU": 0.0}}]
    check_feasible([Resources(cpus=2, ranks=3), Resources(gpus=1, ranks=2)], nodes)
    with pytest.raises(Infeasible, match=r"resources\.ranks: found 4, allowed: at most 3 of this size"):
        check_feasible([Resources(cpus=2, ranks=4)], nodes)
    with pytest.raises(Infeasible, match=r"resources\.ranks: found 3, allowed: at most 2"):
        check_feasible([Resources(gpus=1, ranks=3)], nodes)


def test_resources_by_name() -> None:
    asked = Resources(custom={"fast_disk": 2})  # type: ignore[arg-type]  # as a grid has it
    assert asked.bundle == {"CPU": 1, "fast_disk": 2}
    assert Resources(**json.loads(json.dumps(asdict(asked)))) == asked
    check_feasible([asked], [{"Resources": {"CPU": 4.0, "fast_disk": 2.0}}])
    with pytest.raises(Infeasible, match=r"resources\.custom\.fast_disk: found 2, allowed: at most 0"):
        check_feasible([asked], [{"Resources": {"CPU": 4.0}}])
