"""Relative L2 error on Burgers beside DeepXDE: same net, points, iterations and published reference, seed by seed.

DeepXDE draws the weights (20x3 tanh net, Glorot normal) and the points once: a Hammersley set of 2,540 in the domain, 80 on the
boundary and 160 at the start, with the residual asked at all 2,780. Ours starts from the very same ones, so that each seed is
a pair. Then both take Adam at 1e-3 for `--adam` iterations, and L-BFGS for `--lbfgs` steps of 20 iterations (DeepXDE counts
them by the thousand); float32, one thread. With `--alone` ours also starts from what the task itself draws. The error is
over the grid of Burgers.npz (x, t, usol), of github.com/lululxvi/deepxde, examples/dataset.

    python benchmarks/pinn_accuracy.py --deepxde deepxde-venv/bin/python --data Burgers.npz
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from harness.composition import Composition
from harness.method import State
from harness.streams import Streams
from harness.training import stepping
from harness.training.trial import build_recipe
from tasks.informed import relative_l2
from tasks.physics import BurgersPINN
from tasks.references import load_reference

DEEPXDE = """
import os, sys
os.environ["DDE_BACKEND"] = "pytorch"
import numpy as np, torch
torch.set_num_threads(1)
import deepxde as dde
file, start, seed, adam, lbfgs = *sys.argv[1:3], *map(int, sys.argv[3:])
dde.config.set_random_seed(seed)
space_time = dde.geometry.GeometryXTime(dde.geometry.Interval(-1, 1), dde.geometry.TimeDomain(0, 1))
def pde(x, y):
    y_x, y_t = dde.grad.jacobian(y, x, i=0, j=0), dde.grad.jacobian(y, x, i=0, j=1)
    return y_t + y * y_x - 0.01 / np.pi * dde.grad.hessian(y, x, i=0, j=0)
bc = dde.icbc.DirichletBC(space_time, lambda x: 0, lambda _, on: on)
ic = dde.icbc.IC(space_time, lambda x: -np.sin(np.pi * x[:, 0:1]), lambda _, on: on)
data = dde.data.TimePDE(space_time, pde, [bc, ic], num_domain=2540, num_boundary=80, num_initial=160)
net = dde.nn.FNN([2] + [20] * 3 + [1], "tanh", "Glorot normal")
model = dde.Model(data, net)
ends = np.cumsum(data.num_bcs)
points = dict(zip(("boundary", "initial", "interior"), np.split(data.train_x, ends)))
weights = {f"weight{i}": each.detach().numpy() for i, each in enumerate(net.parameters())}
np.savez(start, **points, **weights)
d = np.load(file)
x, t = np.meshgrid(d["x"].ravel(), d["t"].ravel(), indexing="ij")
points, field = np.stack([x.ravel(), t.ravel()], 1), d["usol"].reshape(-1, 1)
def told(name):
    print("error", name, np.linalg.norm(model.predict(points) - field) / np.linalg.norm(field), flush=True)
model.compile("adam", lr=1e-3, verbose=0)
model.train(iterations=adam, display_every=10**9, verbose=0)
told("adam")
if lbfgs:
    dde.optimizers.config.set_LBFGS_options(maxiter=20 * lbfgs)
    model.compile("L-BFGS", verbose=0)
    model.train(display_every=10**9, verbose=0)
    told("lbfgs")
"""


def deepxde(python: str, data: Path, start: Path, seed: int, adam: int, lbfgs: int) -> dict[str, float]:
    """The errors after each phase; leaves what it started from in the file `start`."""
    command = [python, "-c", DEEPXDE, str(data), str(start), str(seed), str(adam), str(lbfgs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("error ")]
    return {name: float(value) for _, name, value in lines}


def take_start(state: State, start: Path) -> None:
    """The weights and the points of a file that `deepxde` left; they stay, for the task's recipe draws them once."""
    content = {name: torch.from_numpy(each) for name, each in np.load(start).items()}
    names = list(state.model.state_dict())
    state.model.load_state_dict({name: content[f"weight{index}"] for index, name in enumerate(names)})
    batch = {name: content[name] for name in ("interior", "boundary", "initial")}
    state.workload.load_state_dict(state.workload.state_dict() | {"batch": batch, "used": 1})


def ours(data: Path, start: Path | None, seed: int, adam: int, lbfgs: int) -> dict[str, float]:
    task = BurgersPINN()
    phases = ["adam " + str(adam)] + ["lbfgs " + str(lbfgs)] * bool(lbfgs)
    recipe = build_recipe(task, {"steps": adam + lbfgs, "phases": phases})
    streams = Streams(seed)
    workload = task.workload(recipe, streams, torch.device("cpu"))
    state, method = State(workload.model, workload, recipe, streams, recipe.length), Composition([])
    if start:
        take_start(state, start)
    points, field = (torch.tensor(each, dtype=torch.float32) for each in load_reference(data))
    errors = {}
    for step in range(recipe.length):
        if step in (0, *recipe.switches):
            state.optimizer = stepping.build_optimizer(method, state)
        stepping.take_step(state, method)
        if step + 1 in (adam, recipe.length):
            with torch.no_grad():
                errors[recipe.phase(step)] = relative_l2(state.model(points), field)
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deepxde", required=True, help="the interpreter of an environment with DeepXDE")
    parser.add_argument("--data", required=True, type=Path, help="Burgers.npz")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--adam", type=int, default=15000)
    parser.add_argument("--lbfgs", type=int, default=250)
    parser.add_argument("--alone", action="store_true", help="ours from its own start too")
    given = parser.parse_args()
    if given.lbfgs % 50:
        parser.error(
            f"--lbfgs: found {given.lbfgs}, must be a multiple of 50: DeepXDE takes 1,000 iterations at a time"
        )
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            start, lengths = Path(folder) / "start.npz", (seed, given.adam, given.lbfgs)
            sides = {"deepxde": deepxde(given.deepxde, given.data, start, *lengths)}
            sides["ours"] = ours(given.data, start, *lengths)
        if given.alone:
            sides["alone"] = ours(given.data, None, *lengths)
        for side, errors in sides.items():
            for phase, error in errors.items():
                found.setdefault(f"{phase:6} {side}", []).append(error)
                print(f"seed {seed} {side:8} {phase:6} {error:.5f}", flush=True)
    for name, values in sorted(found.items()):
        print(f"{name:16} median {statistics.median(values):.5f}, {min(values):.5f} to {max(values):.5f}")


if __name__ == "__main__":
    main()
