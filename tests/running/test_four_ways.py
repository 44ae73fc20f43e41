"""One grid on a laptop, on a cluster of three nodes through `submit`, under Slurm, and as KubeRay starts it: the same numbers."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from machines import PATIENCE, Machines, machines, until
from ruamel.yaml import YAML
from slurm import slurm
from support import harness, timeless, write_grid

from harness.recording.records import Result, Status
from harness.recording.results import Results
from harness.running import submission

pytestmark = pytest.mark.slow

CLUSTERS = Path(__file__).parents[2] / "clusters"

GRID = """
name: four-ways
tasks: [digits/mlp, cartpole/ppo]
methods: [adamw, stable_grad + adamw]
seeds: 2
recipes:
  - {task: digits/mlp, set: {steps: 60, record_every: 10}}
  - {task: cartpole/ppo, set: {env_steps: 4096}}
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_grid(tmp_path_factory.mktemp("grid"), GRID)


@pytest.fixture(scope="module")
def laptop(grid: Path) -> dict[str, Any]:
    harness("run", grid, "--results", grid.parent / "laptop")
    return shown(grid.parent / "laptop")


def shown(results: Path) -> dict[str, Any]:
    """What every trial came to: the weights, and every metric but times and memory, final and by step."""
    memory = Results(results)
    found: dict[str, Result] = memory.results(path.name for path in (results / "trials").iterdir())
    assert len(found) == 8
    assert {result.status for result in found.values()} == {Status.FINISHED}
    return {
        hash: [result.weights, timeless(result.metrics)]
        + [(r["step"], timeless(r["metrics"])) for r in memory.trial(hash).records() if "metrics" in r]
        for hash, result in found.items()
    }


def test_through_submit_to_three_nodes(grid: Path, laptop: dict[str, Any], tmp_path: Path) -> None:
    """The driver on a worker with a label."""
    tracking = f"sqlite:///{tmp_path / 'runs.db'}"
    place: list[object] = ["--results", tmp_path / "results", "--tracking", tracking, "--driver-label", "role=driver"]
    with machines(2, dashboard=True, labels={"role": "driver"}) as cluster:
        harness("submit", grid, "--address", cluster.dashboard, *place, timeout=PATIENCE)
        (job,) = submission.jobs(submission.connect(cluster.dashboard), "four-ways")
        assert job.driver_node_id in {node.node_id for node in cluster.nodes}, "not on the head"
    assert shown(tmp_path / "results") == laptop


def test_as_kuberay_starts_it(grid: Path, laptop: dict[str, Any], tmp_path: Path) -> None:
    """The entrypoint and the environment of `clusters/kuberay/rayjob.yaml`, with this test's paths in the place of the pods'."""
    job = YAML(typ="safe").load((CLUSTERS / "kuberay" / "rayjob.yaml").read_text())["spec"]
    places = {
        "/grid/grid.yaml": grid,
        "/results": tmp_path / "results",
        "http://mlflow:5000": f"sqlite:///{tmp_path / 'runs.db'}",
    }
    words = [str(places.get(word, word)) for word in job["entrypoint"].split()]
    assert not set(places) & set(words)
    runtime = YAML(typ="safe").load(job["runtimeEnvYAML"])
    with machines(2, dashboard=True) as cluster:
        run_job(cluster, shlex.join(words), runtime)
    assert shown(tmp_path / "results") == laptop


def run_job(cluster: Machines, entrypoint: str, runtime: dict[str, Any]) -> None:
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(cluster.dashboard)
    job = client.submit_job(entrypoint=entrypoint, runtime_env=runtime)
    until(lambda: client.get_job_status(job).is_terminal(), PATIENCE, "the end of the job")
    assert client.get_job_status(job).value == "SUCCEEDED", client.get_job_logs(job)


def test_under_slurm(grid: Path, laptop: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "output.txt"
    with slurm(tmp_path) as environment:
        asked = ["sbatch", "--wait", "--cpus-per-task=2", "--mem=2000M", f"--output={output}"]
        path = f"{Path(sys.executable).parent}:{environment['PATH']}"
        job = subprocess.run(
            [*asked, str(CLUSTERS / "slurm" / "grid.sbatch"), str(grid), str(tmp_path / "results")],
            env=environment | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert job.returncode == 0, job.stdout + job.stderr + (output.read_text() if output.exists() else "")
    assert shown(tmp_path / "results") == laptop
