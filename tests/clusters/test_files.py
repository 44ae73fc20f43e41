"""Every file in `clusters/`, by what reads it; and a copy with one wrong field, which the same check must refuse."""

import copy
import importlib.util
import inspect
import json
import re
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from slurm import slurm

from clusters.kuberay import RayCluster, RayJob

PROJECT = Path(__file__).resolve().parents[2]
CLUSTERS = PROJECT / "clusters"
LAUNCHER = ["launcher/aws.yaml", "launcher/gcp.yaml"]
KUBERAY: dict[str, type[BaseModel]] = {"kuberay/raycluster.yaml": RayCluster, "kuberay/rayjob.yaml": RayJob}


def load(name: str) -> Any:
    return YAML(typ="safe", pure=True).load(CLUSTERS / name)


def spoilt(content: Any, path: str, value: Any) -> Any:
    """A copy with one field written otherwise; `None` takes the field away."""
    content = copy.deepcopy(content)
    place, keys = content, [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return content


# The cluster launcher: Ray's own schema.


def launcher_schema() -> dict[str, Any]:
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema: dict[str, Any] = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    return schema


def check_launcher(content: Any) -> None:
    """Ray's schema, and what this project promises beyond it."""
    jsonschema.validate(content, launcher_schema())
    types = content["available_node_types"]
    head = types[content["head_node_type"]]
    assert head["resources"]["CPU"] == 0, "no trials on the head"
    assert not _spot(head), "the head is on demand"
    workers = [types[name] for name in types if name != content["head_node_type"]]
    assert all(_spot(worker) for worker in workers)
    assert any(worker["min_workers"] >= 1 for worker in workers), "a grid fits on no node of an empty cluster"
    assert any("RAY_AUTH_MODE=token" in option for option in content["docker"]["run_options"])
    assert "chmod 600 /home/ray/.ray/auth_token" in content["setup_commands"]
    (start,) = [line for line in content["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start
    lines = content["head_start_ray_commands"] + content["worker_start_ray_commands"]
    assert not any("--force" in line for line in lines)


def _spot(node: dict[str, Any]) -> bool:
    return "spot" in json.dumps(node["node_config"]).lower()


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_launcher_takes_its_files(name: str) -> None:
    check_launcher(load(name))


@pytest.mark.parametrize("name", LAUNCHER)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("max_wokers", 3),
        ("max_workers", "three"),
        ("cluster_name", None),
        ("provider.type", None),
        ("idle_timeout_minutes", "ten"),
        ("available_node_types.spot.min_workers", "none"),
        ("available_node_types.spot.min_workers", 0),
        ("available_node_types.spot.labels", ["spot"]),
        ("available_node_types.head.resources.CPU", 4),
        ("docker.run_options", []),
        ("setup_commands", []),
        ("head_start_ray_commands", ["ray start --head --dashboard-host=0.0.0.0"]),
    ],
)
def test_the_launcher_refuses_a_wrong_field(name: str, path: str, value: Any) -> None:
    with pytest.raises((jsonschema.ValidationError, AssertionError)):
        check_launcher(spoilt(load(name), path, value))


# KubeRay: a strict model of its fields.


def check_kuberay(name: str, content: Any) -> None:
    read = KUBERAY[name].model_validate(content)
    spec = read.spec if isinstance(read, RayCluster) else read.spec.rayClusterSpec  # type: ignore[attr-defined]
    assert spec.rayVersion == metadata.version("ray")
    assert spec.authOptions.mode == "token"
    assert spec.headGroupSpec.rayStartParams["num-cpus"] == "0"
    assert any(group.minReplicas >= 1 for group in spec.workerGroupSpecs), "a grid fits on no node of an empty cluster"
    for group in [spec.headGroupSpec, *spec.workerGroupSpecs]:
        security = group.template.spec.securityContext
        assert security is not None and security.fsGroup == image_user(), "the image's user may write the volumes"
        mounts = {mount.mountPath for mount in group.template.spec.containers[0].volumeMounts}
        assert {"/results", "/dev/shm"} <= mounts
    if isinstance(read, RayJob):
        assert read.spec.backoffLimit >= 1, "a lost head is a new cluster that goes on"
        assert read.spec.runtimeEnvYAML is not None
        env = YAML(typ="safe", pure=True).load(read.spec.runtimeEnvYAML)["env_vars"]
        assert env["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
        check_entrypoint(read.spec.entrypoint)


def image_user() -> int:
    """The number of the image's user, which useradd gives its group, too."""
    (number,) = re.findall(r"useradd .*--uid (\d+) ray", (CLUSTERS / "Dockerfile").read_text())
    return int(number)


def check_entrypoint(entrypoint: str) -> None:
    """The command is one that `harness` takes."""
    from typer.main import get_command

    from harness.cli import app

    program, name, *arguments = entrypoint.split()
    assert program == "harness"
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    try:
        context = command.make_context(name, arguments)
    except Exception as error:  # typer brings a click of its own, with exceptions of its own
        raise AssertionError(str(error)) from error
    assert context.params["address"] == "auto"
    assert str(context.params["results"]) == "/results"


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_takes_its_files(name: str) -> None:
    check_kuberay(name, load(name))


CLUSTER_FAULTS: list[tuple[str, Any]] = [
    ("rayVersion", "2.0.0"),
    ("authOptions.mode", "none"),
    ("authOptions.mode", "disabled"),
    ("authOptions", None),
    ("autoscalerOptions.idleTimeout", 60),
    ("networkPolicy.mode", "Open"),
    ("headGroupSpec.template", None),
    ("headGroupSpec.rayStartParams.num-cpus", 0),
    ("headGroupSpec.rayStartParams.num-cpus", "4"),
    ("headGroupSpec.template.spec.volumes", []),
    ("headGroupSpec.template.spec.securityContext", None),
    ("headGroupSpec.template.spec.securityContext.fsGroups", 1000),
    ("workerGroupSpecs.0.template.spec.securityContext.fsGroup", 0),
    ("workerGroupSpecs.0.minReplicas", 0),
    ("workerGroupSpecs.0.maxReplica", 8),
    ("workerGroupSpecs.0.maxReplicas", 1),
    ("workerGroupSpecs.0.template.spec.containers.0.resources.limits.memory", "lots"),
    ("workerGroupSpecs.0.template.spec.containers.0.resources.limits.nvidia.com/gpu", "2"),
]


@pytest.mark.parametrize(("path", "value"), CLUSTER_FAULTS)
def test_kuberay_refuses_a_wrong_field(path: str, value: Any) -> None:
    for name, inside in (("kuberay/raycluster.yaml", "spec"), ("kuberay/rayjob.yaml", "spec.rayClusterSpec")):
        content = load(name)
        if "nvidia" in path:
            wrong = copy.deepcopy(content)
            group = wrong["spec"].get("rayClusterSpec", wrong["spec"])["workerGroupSpecs"][0]
            group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = value
        else:
            wrong = spoilt(content, f"{inside}.{path}", value)
        with pytest.raises((ValidationError, AssertionError)):
            check_kuberay(name, wrong)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("apiVersion", "ray.io/v1alpha1"),
        ("spec.submissionMode", "Kubernetes"),
        ("spec.backoffLimit", 0),
        ("spec.entryPoint", "x"),
        ("spec.entrypoint", "harness run grid.yaml --addres auto --results /results"),
        ("spec.deletionStrategy", {"deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED"}}]}),
    ],
)
def test_a_wrong_job_is_refused(path: str, value: Any) -> None:
    import click

    with pytest.raises((ValidationError, AssertionError, click.UsageError)):
        check_kuberay("kuberay/rayjob.yaml", spoilt(load("kuberay/rayjob.yaml"), path, value))


# MLflow on Kubernetes.


def check_mlflow(documents: list[Any]) -> None:
    kinds = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    assert all(d["spec"]["type"] == "ClusterIP" for (kind, _), d in kinds.items() if kind == "Service")
    for (kind, name), document in kinds.items():
        if kind in ("Deployment", "StatefulSet"):
            labels = document["spec"]["template"]["metadata"]["labels"]
            assert document["spec"]["selector"]["matchLabels"] == labels
            assert any(d["spec"]["selector"] == labels for (k, _), d in kinds.items() if k == "Service"), name
            check_no_secret(document)
    pod = kinds["Deployment", "mlflow"]["spec"]["template"]["spec"]
    assert pod.get("securityContext") == {"fsGroup": image_user()}, "the image's user may write the volume"
    server = pod["containers"][0]
    check_mlflow_server(server["args"], "mlflow")


def check_mlflow_server(command: list[str], name: str) -> None:
    """The options are the server's, and the name that workers use is allowed with and without its port."""
    from mlflow.cli import server

    assert command[:2] == ["mlflow", "server"]
    context = server.make_context("server", [word.replace("*", "5000") for word in command[2:]])
    assert int(context.params["workers"]) == 1, "several stall kept-alive connections"
    (allowed,) = [word for word in command if word.startswith("--allowed-hosts=")]
    hosts = allowed.partition("=")[2].split(",")
    assert {name, f"{name}:*"} <= set(hosts)
    assert "*" not in hosts


def check_no_secret(document: Any) -> None:
    """No password is written down: each comes from a secret or a variable."""
    for name, value in re.findall(r'"name": "(\w*PASSWORD\w*|\w*TOKEN\w*)", "value": "([^"]*)"', json.dumps(document)):
        raise AssertionError(f"{name} is written down: {value}")


def documents() -> list[Any]:
    return list(YAML(typ="safe", pure=True).load_all(CLUSTERS / "kuberay" / "mlflow.yaml"))


def test_mlflow_on_kubernetes() -> None:
    check_mlflow(documents())


@pytest.mark.parametrize("what", ["public", "selector", "hosts", "option", "secret", "group"])
def test_a_wrong_mlflow_is_refused(what: str) -> None:
    import click

    found = documents()
    server = next(d for d in found if d["kind"] == "Deployment")
    container = server["spec"]["template"]["spec"]["containers"][0]
    if what == "public":
        found[0]["spec"]["type"] = "LoadBalancer"
    elif what == "selector":
        server["spec"]["selector"]["matchLabels"] = {"app": "other"}
    elif what == "hosts":
        container["args"] = [word.replace("mlflow:*,", "") for word in container["args"]]
    elif what == "group":
        del server["spec"]["template"]["spec"]["securityContext"]
    elif what == "option":
        container["args"].append("--artifact-destination=/x")
    else:
        container["env"].append({"name": "POSTGRES_PASSWORD", "value": "hidden"})
    with pytest.raises((AssertionError, click.UsageError)):
        check_mlflow(found)


# Docker compose.

SERVICE = {"image", "environment", "shm_size", "restart", "volumes", "networks", "command", "ports", "healthcheck"}
SERVICE |= {"deploy", "depends_on", "entrypoint"}


def check_compose(content: Any) -> None:
    assert set(content) <= {"name", "services", "networks", "volumes", "x-ray"}
    services = content["services"]
    for name, service in services.items():
        assert set(service) <= SERVICE, f"{name}: {set(service) - SERVICE}"
        assert "image" in service
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), f"{name} is public"
        assert set(service["networks"]) <= set(content["networks"])
        assert {v.split(":")[0] for v in service.get("volumes", [])} <= set(content["volumes"])
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] in ("service_healthy", "service_completed_successfully")
            assert how["condition"] != "service_healthy" or "healthcheck" in services[other]
        for variable, value in service.get("environment", {}).items():
            secret = any(word in variable for word in ("PASSWORD", "TOKEN", "SECRET"))
            assert not secret or re.fullmatch(r"\$\{\w+:\?.*\}", value), f"{name}: {variable} is written down"
    for name in ("head", "worker"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
        check_ray_start(services[name]["command"])
    assert "--num-cpus=0" in services["head"]["command"]
    assert services["worker"]["deploy"]["replicas"] == 2
    check_mlflow_server(services["mlflow"]["command"], "mlflow")


def check_ray_start(command: list[str]) -> None:
    """The options are those of `ray start`."""
    from ray.scripts.scripts import start

    assert command[:2] == ["ray", "start"]
    start.make_context("start", command[2:])


def test_compose() -> None:
    check_compose(load("docker-compose.yaml"))
    names = set(re.findall(r"\$\{(\w+):", (CLUSTERS / "docker-compose.yaml").read_text()))
    example = (CLUSTERS / "compose.env.example").read_text()
    given = {name: value for name, _, value in (line.partition("=") for line in example.splitlines()) if name[0] != "#"}
    assert given == dict.fromkeys(names, "") | {"COMPOSE_PROJECT_NAME": "training-harness"}, "and no secret"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("services.head.ports", ["8265:8265"]),
        ("services.head.comand", []),
        ("services.head.command", ["ray", "start", "--head", "--num-cpu=0"]),
        ("services.worker.networks", ["other"]),
        ("services.worker.environment", {"RAY_AUTH_MODE": "disabled"}),
        ("services.postgres.environment.POSTGRES_PASSWORD", "hidden"),
        ("services.postgres.healthcheck", None),
        ("services.mlflow.command", ["mlflow", "server", "--workers=1", "--allowed-hosts=*"]),
    ],
)
def test_a_wrong_compose_file_is_refused(path: str, value: Any) -> None:
    import click

    with pytest.raises((AssertionError, click.UsageError)):
        check_compose(spoilt(load("docker-compose.yaml"), path, value))


def compose() -> list[str]:
    """Docker compose, if it is there."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    pytest.skip("docker compose is not installed")


@pytest.mark.slow  # so that it runs where `.ci/run` has installed what it needs
@pytest.mark.parametrize("wrong", [False, True])
def test_compose_reads_its_file(wrong: bool, tmp_path: Path) -> None:
    program = compose()
    text = (CLUSTERS / "docker-compose.yaml").read_text()
    file = tmp_path / "docker-compose.yaml"
    file.write_text(text.replace("healthcheck:", "heathcheck:") if wrong else text)
    names = set(re.findall(r"\$\{(\w+):", text))
    (tmp_path / "env").write_text("".join(f"{name}=x\n" for name in names))
    asked = [*program, "-f", str(file), "--env-file", str(tmp_path / "env"), "config", "--quiet"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=600)
    assert (done.returncode != 0) == wrong, done.stderr


# The image.


def check_dockerfile(text: str) -> None:
    steps = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    words = [line.split(maxsplit=1) for line in steps.splitlines() if line.strip()]
    known = {"FROM", "RUN", "COPY", "WORKDIR", "ENV", "USER", "ENTRYPOINT"}
    assert {word for word, _ in words} <= known
    for word, rest in words:
        if word == "COPY":
            *given, _ = rest.split()
            assert all((PROJECT / name).exists() for name in given), f"COPY {rest}: not there"
    assert any(word == "RUN" and "--require-hashes -r requirements.lock" in rest for word, rest in words)
    assert any(word == "ENV" and "RAY_AUTH_MODE=token" in rest for word, rest in words)
    owned = re.search(r"install --directory --owner ray --group ray (.*)", steps)
    assert owned and {"/results", "/data"} <= set(owned[1].split()), "the user may write the volumes"
    assert not re.search(r"(TOKEN|PASSWORD|SECRET)\w*=", steps), "no secret in an image"
    assert words[-1][0] == "ENTRYPOINT"
    assert next(rest for word, rest in reversed(words) if word == "USER") != "root"


def test_the_image() -> None:
    check_dockerfile((CLUSTERS / "Dockerfile").read_text())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("COPY methods", "COPY method"),
        ("--require-hashes ", ""),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN=abc"),
        ("USER ray", "USER root"),
        ("--owner ray", "--owner root"),
        ("/results /data", "/results"),
        ("WORKDIR /opt", "WORKDIRS /opt"),
    ],
)
def test_a_wrong_image_is_refused(old: str, new: str) -> None:
    text = (CLUSTERS / "Dockerfile").read_text()
    assert old in text
    with pytest.raises(AssertionError):
        check_dockerfile(text.replace(old, new))


# Slurm.

SBATCH = CLUSTERS / "slurm" / "grid.sbatch"
SBATCH_OPTIONS = {"job-name", "nodes", "ntasks-per-node", "cpus-per-task", "mem", "time", "requeue", "open-mode"}
SBATCH_OPTIONS |= {"output", "signal"}


def check_sbatch(text: str, folder: Path) -> None:
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert len(options) == text.count("\n#SBATCH "), "an option that is not understood"
    assert set(options) <= SBATCH_OPTIONS
    assert options["ntasks-per-node"] == "1", "one Ray per node"
    assert options["signal"].startswith("B:USR1@")
    assert "ray stop" not in text
    file = folder / "grid.sbatch"
    file.write_text(text)
    done = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_symmetric_run(text)


def check_symmetric_run(text: str) -> None:
    """The options before `--` are those of `ray symmetric-run` and `ray start`, and it waits longer than Ray would."""
    from ray.scripts import symmetric_run
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    ((variable, seconds),) = re.findall(r"^ *export (\w+_WAIT_TIMEOUT)=(\d+)$", text, re.MULTILINE)
    assert f'CLUSTER_WAIT_TIMEOUT = env_integer("{variable}", 30)' in inspect.getsource(symmetric_run)
    assert int(seconds) == 300

    found = re.search(r"ray symmetric-run (.*?) -- harness run", text.replace("\\\n", " "), re.DOTALL)
    assert found
    words = re.sub(r'"?\$\w+:\$\w+"?', "head:20000", found[1])
    arguments = re.sub(r'"?\$\{?\w+\}?"?', "2", words).split()
    forbidden = ("--head", "--node-ip-address", "--port", "--block")  # Ray looks for these words alone
    assert not any(word.partition("=")[0] in forbidden for word in arguments)
    rest = curate_and_validate_ray_start_args(arguments)
    assert "--address" not in rest, rest
    start.make_context("start", ["--head", *rest])


def test_the_slurm_script(tmp_path: Path) -> None:
    check_sbatch(SBATCH.read_text(), tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--ntasks-per-node=1\n#SBATCH --cpus", "--ntask-per-node=1\n#SBATCH --cpus"),
        ("--signal=B:USR1@120", "--signal=USR1@120"),
        ("\nfi\n", "\n"),
        ("--num-gpus=", "--gpus="),
        ("--temp-dir=", "--port="),
        ("_CLUSTER_WAIT_TIMEOUT=300", "_WAIT_TIMEOUT=300"),
        ("_WAIT_TIMEOUT=300", "_WAIT_TIMEOUT=30"),
    ],
)
def test_a_wrong_slurm_script_is_refused(old: str, new: str, tmp_path: Path) -> None:
    import click

    text = SBATCH.read_text()
    assert old in text
    with pytest.raises((AssertionError, click.ClickException)):
        check_sbatch(text.replace(old, new), tmp_path)


@pytest.mark.slow
def test_the_slurm_script_runs_several_grids_on_one_machine(tmp_path: Path) -> None:
    """As Slurm would start it on one node, twice at the same time: other ports, the same numbers."""
    from support import timeless, write_grid

    from harness.planning.grid import load_grid
    from harness.planning.plan import build_plan
    from harness.recording.results import Results
    from harness.registry import Registry

    grid = write_grid(
        tmp_path, "name: slurm\ntasks: [digits/mlp]\nmethods: [adamw]\nseeds: 2\nrecipes: [{set: {steps: 40}}]\n"
    )
    jobs = [start_script(tmp_path, grid, number) for number in (71001, 71002)]
    for job in jobs:
        shown = job.communicate(timeout=600)[0]
        assert job.returncode == 0, shown
    registry = Registry()
    for trial in build_plan(load_grid(grid, [], registry), registry).trials:
        one, two = (Results(tmp_path / str(number)).trial(trial.hash).result() for number in (71001, 71002))
        assert one is not None
        assert two is not None
        assert timeless(one.metrics) == timeless(two.metrics)
        assert one.weights == two.weights
    assert not list(Path("/tmp").glob("ray-7100[12]")), "nothing stays behind"


def start_script(folder: Path, grid: Path, number: int) -> "subprocess.Popen[str]":
    import os

    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    slurm = {"SLURM_JOB_ID": str(number), "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "1", "PATH": path}
    command = ["bash", str(SBATCH), str(grid), str(folder / str(number))]
    return subprocess.Popen(
        command, env=os.environ | slurm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_slurm_reads_its_script(tmp_path: Path) -> None:
    text = SBATCH.read_text()
    wrong = tmp_path / "wrong.sbatch"
    wrong.write_text(text.replace("--ntasks-per-node", "--ntask-per-node"))
    with slurm(tmp_path) as environment:

        def check(file: Path) -> int:
            asked = ["sbatch", "--test-only", "--cpus-per-task=1", "--mem=1G", str(file), "grid", "results"]
            return subprocess.run(asked, capture_output=True, env=environment).returncode

        assert check(SBATCH) == 0
        assert check(wrong) != 0


# Nothing in these files is of this machine, and the README's checklist names tests that exist.


def test_no_file_names_this_machine() -> None:
    for file in CLUSTERS.rglob("*"):
        if file.is_file():
            text = file.read_text()
            assert socket.gethostname() not in text
            assert str(PROJECT) not in text


def test_every_line_of_the_checklist_is_answered() -> None:
    rows = re.findall(r"^\| *(\d+) *\|(.*)\|(.*)\|$", (CLUSTERS / "README.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 33))
    for number, _, answer in rows:
        assert answer.strip(), number
        check_names(answer)


def check_names(answer: str) -> None:
    """Every test named as `file.py::test_name` exists."""
    for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", answer):
        source = PROJECT / "tests" / file
        assert source.is_file(), file
        assert re.search(rf"^def {name}\(", source.read_text(), re.MULTILINE), f"{file}::{name}"


def test_every_row_of_the_fault_table_is_a_test_that_make_chaos_runs() -> None:
    text = (PROJECT / "docs" / "faults.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) >= 18
    run = re.search(r"^CHAOS := (.*)$", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    assert run
    for file in {f"tests/{file}" for file, _ in named}:
        assert file.startswith(tuple(run[1].split())), f"make chaos does not look into {file}"
    for file, name in named:
        check_names(f"`{file}::{name}`")
        source = (PROJECT / "tests" / file).read_text()
        marked = re.search(rf"((?:^@.*\n(?:^[ \)\]].*\n)*)*)^def {name}\(", source, re.MULTILINE)
        whole = re.search(r"^pytestmark = .*mark\.chaos", source, re.MULTILINE)
        assert whole or (marked and "mark.chaos" in marked[1]), f"{file}::{name}"


def test_the_dashboard_shows_what_is_exported() -> None:
    """Every number that a panel asks for is one that the driver exports, and the other way round."""
    source = (PROJECT / "harness" / "running" / "metrics.py").read_text()
    exported = set(re.findall(r'(?:Counter|Gauge)\("(harness_\w+)"', source))
    dashboard = json.loads((CLUSTERS / "grafana" / "harness.json").read_text())
    asked = {
        name.removesuffix("_total")
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_(harness_\w+)", target["expr"])
    }
    assert asked == exported
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
