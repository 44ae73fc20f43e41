"""Tune experiments of someone who takes only the scheduler, for `test_screening.py`: each is run in a process of its own.

    python experiments.py NAME FOLDER

Leaves in FOLDER/ended.json what became of its trials: Ray is started once in a process, and keeps what it was first told.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune

from harness.running.screening import ScreeningScheduler

REPORTS = 6
"""Of each trial that is restored; it decides at the fourth, and the experiment breaks after the second."""


@contextmanager
def local() -> Iterator[None]:
    """Ray with one CPU, for as long."""
    ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def anyones(folder: Path) -> list[Any]:
    """The step at which each trial ended, by its signal."""

    def train(config: dict[str, Any]) -> None:
        for step in range(1, 11):
            tune.report({"step": step, "oui/critic": config["x"], "oui/actor": 0.9})

    scheduler = ScreeningScheduler(
        "oui",
        {"critic": (0.3, 0.7), "actor": 0.5},
        at=2,
        time_attr="step",
        metrics={"critic": "oui/critic", "actor": "oui/actor"},
    )
    with local():
        found = tune.Tuner(
            train,
            param_space={"x": tune.grid_search([0.1, 0.5, 0.9])},
            tune_config=tune.TuneConfig(scheduler=scheduler),
            run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
        ).fit()
        return [[r.config["x"], r.metrics["step"]] for r in found if r.config and r.metrics]


def restored(folder: Path) -> list[Any]:
    """The step at which each trial ended, by its number, of an experiment that broke and that Tune restored."""
    broken = folder / "broken"

    def train(config: dict[str, Any]) -> None:
        checkpoint = tune.get_checkpoint()
        done = int((Path(checkpoint.path) / "step").read_text()) if checkpoint else 0
        for step in range(done + 1, REPORTS + 1):
            if step == 3 and not (broken / str(config["x"])).exists():
                (broken / str(config["x"])).mkdir(parents=True)
                raise RuntimeError("the machine goes away")
            place = folder / f"{config['x']}-{step}"
            place.mkdir(exist_ok=True)
            (place / "step").write_text(str(step))
            kl = config["kl"][step - 1]
            tune.report({"step": step, "approx_kl": kl}, checkpoint=tune.Checkpoint.from_directory(place))

    scheduler = ScreeningScheduler(
        "kl", {"approx_kl": (None, 0.25)}, at=4, time_attr="step", state_file=folder / "state.json"
    )
    kls = [[0.5, 0.1, 0.1, 0.1, 9.0, 9.0], [0.5, 0.5, 0.1, 0.1, 0.0, 0.0]]
    space = tune.grid_search([{"x": x, "kl": kl} for x, kl in enumerate(kls)])
    with local():
        first = tune.Tuner(
            lambda config: train(config["run"]),
            param_space={"run": space},
            tune_config=tune.TuneConfig(scheduler=scheduler),
            run_config=tune.RunConfig(name="e", storage_path=str(folder / "tune"), verbose=0),
        ).fit()
        assert first.num_errors == len(kls)
        found = tune.Tuner.restore(
            str(folder / "tune" / "e"),
            lambda config: train(config["run"]),
            resume_errored=True,
            param_space={"run": space},
        ).fit()
        return [[r.config["run"]["x"], r.metrics["step"]] for r in found if r.config and r.metrics]


if __name__ == "__main__":
    ended = {"anyones": anyones, "restored": restored}[sys.argv[1]](Path(sys.argv[2]))
    (Path(sys.argv[2]) / "ended.json").write_text(json.dumps(ended))
