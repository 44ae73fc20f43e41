"""A grid whose rest fits on no node of the cluster any more: it ends and says so."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from machines import PATIENCE, token

from harness.resources import Resources
from harness.running import stalling
from harness.running.stalling import Stall


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(stalling, "time", SimpleNamespace(monotonic=lambda: self.now))

    def minutes(self, number: int, stall: Stall, running: bool = False) -> str:
        """What is told last, looking every minute."""
        told = ""
        for _ in range(number):
            self.now += 60
            told = stall.look(lambda: running)
        return told


def test_what_fits_on_no_node_is_waited_for_half_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, nodes = Clock(monkeypatch), [{"CPU": 4.0}]
    waiting = {"a": Resources(gpus=1), "b": Resources(cpus=4), "c": Resources(cpus=2, ranks=3)}
    stall = Stall(lambda: waiting, lambda: nodes)
    assert clock.minutes(60, stall, running=True) == ""
    assert clock.minutes(30, stall) == ""
    told = clock.minutes(1, stall)
    assert told.startswith("nothing has run for 31 min, and no node has come for a (resources.gpus: found 1, ")
    assert "c (resources.ranks: found 3, allowed: at most 2 " in told
    assert "b (" not in told


def test_a_node_that_comes_or_a_unit_that_runs_begins_the_wait_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, nodes = Clock(monkeypatch), [{"CPU": 4.0}]
    stall = Stall(lambda: {"a": Resources(gpus=1)}, lambda: nodes)
    assert clock.minutes(29, stall) == ""
    nodes.append({"CPU": 1.0, "GPU": 1.0})
    assert clock.minutes(600, stall) == "", "others have the GPU, and may have it for long"
    nodes.pop()
    assert clock.minutes(29, stall) == ""
    assert clock.minutes(1, stall, running=True) == ""
    assert clock.minutes(30, stall) == ""
    assert clock.minutes(1, stall)


SCRIPT = """
import sys
from harness.resources import Resources
from harness.running import stalling
from harness.running.scheduling import Infrastructure, cluster, run_units
from harness.running.units import Unit, UnitTrial

class Deaf:
    def __getattr__(self, name):
        return lambda *arguments: None

stalling.PATIENCE = 3.0
settings = {"results": sys.argv[1], "plugins": [], "commit_every": 1.0, "report_every": 0.2, "slots": 1}
with cluster(None, 1):
    try:
        run_units([Unit([UnitTrial("a", "{}", "code")], Resources(gpus=1), "the cell")], settings, Deaf())
    except Infrastructure as error:
        print(error)
"""


@pytest.mark.chaos
@pytest.mark.slow
def test_tune_does_not_wait_for_ever(tmp_path: Path) -> None:
    """As where the only node with a GPU has been lost."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | token() | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "no node has come for the cell (resources.gpus: found 1, allowed: at most 0" in done.stdout
    assert "a rerun goes on once there is one" in done.stdout
    assert not list(tmp_path.iterdir()), "Tune's own folder is gone"
