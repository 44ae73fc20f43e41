"""A Slurm of one node for a test: munged, slurmctld and slurmd with a configuration of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from machines import PATIENCE, free_port, until

DAEMONS = ("munged", "slurmctld", "slurmd")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=2048 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Starts Slurm and ends it; yields the environment in which `sbatch` finds it. Skips where it cannot be had.

    Args:
        folder: for its keys, state and logs.
    """
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    missing = [name for name in (*DAEMONS, "sbatch") if not shutil.which(name, path=path)]
    if missing:
        pytest.skip(f"{missing[0]} is not installed (apt-get install slurm-wlm)")
    if os.getuid() != 0:
        pytest.skip("slurmd starts as root alone")
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    file, key = folder / "slurm.conf", folder / "munge.key"
    settings = {"host": host, "folder": folder, "cpus": os.cpu_count(), "control": free_port(), "node": free_port()}
    file.write_text(CONFIGURATION.format(**settings))
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    environment = os.environ | {"PATH": path, "SLURM_CONF": str(file)}
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munged += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "seed", "log")]
    with ExitStack() as running:
        running.enter_context(daemon(munged, environment))
        until(lambda: (folder / "munge.socket").exists(), PATIENCE, "munged")
        running.enter_context(daemon(["slurmctld", "-D", "-f", str(file)], environment))
        running.enter_context(daemon(["slurmd", "-D", "-f", str(file)], environment))
        asked = ["sinfo", "--noheader", "--format=%T"]

        def idle() -> bool:
            return "idle" in subprocess.run(asked, capture_output=True, text=True, env=environment).stdout

        try:
            until(idle, PATIENCE, "an idle node")
        except AssertionError as error:
            logs = [log.read_text()[-2000:] for log in sorted(folder.glob("*.log"))]
            raise AssertionError("\n".join([str(error), *logs])) from error
        yield environment


@contextmanager
def daemon(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
