"""Time per iteration of the Burgers PINN beside DeepXDE's, interleaved: same net, points, precision and one thread.

DeepXDE goes into an environment of its own:

    uv venv deepxde-venv && uv pip install --python deepxde-venv/bin/python deepxde torch
    python benchmarks/pinn_speed.py --deepxde deepxde-venv/bin/python [--compiled] [--rounds 5]

Both sides draw 2,540 interior, 80 boundary and 160 initial points once; DeepXDE then evaluates 3,020 (it takes derivatives
at all of them), ours the same 2,780 with derivatives and 240 without. Each round measures one side, then the other, as
processor time of the one thread; the ratio is that of the medians. With `--stacked K` it also measures K seeds of one cell
as one, beside one after another.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from typing import cast

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from harness.composition import Composition
from harness.method import State
from harness.recording.attempts import Attempt
from harness.streams import Streams
from harness.training import stepping
from harness.training.stacking import Stack
from harness.training.state import Training
from harness.training.trial import build_recipe
from tasks.physics import BurgersPINN, PhysicsTask, PoissonPINN

NETS = {"20x3": (20, 3, 200), "64x8": (64, 8, 20)}
DEEPXDE = """
import os, sys, time
os.environ["DDE_BACKEND"] = "pytorch"
import numpy as np, torch
torch.set_num_threads(1)
import deepxde as dde
width, depth, steps = map(int, sys.argv[1:])
space_time = dde.geometry.GeometryXTime(dde.geometry.Interval(-1, 1), dde.geometry.TimeDomain(0, 1))
def pde(x, y):
    y_x, y_t = dde.grad.jacobian(y, x, i=0, j=0), dde.grad.jacobian(y, x, i=0, j=1)
    return y_t + y * y_x - 0.01 / np.pi * dde.grad.hessian(y, x, i=0, j=0)
bc = dde.icbc.DirichletBC(space_time, lambda x: 0, lambda _, on: on)
ic = dde.icbc.IC(space_time, lambda x: -np.sin(np.pi * x[:, 0:1]), lambda _, on: on)
data = dde.data.TimePDE(space_time, pde, [bc, ic], num_domain=2540, num_boundary=80, num_initial=160)
model = dde.Model(data, dde.nn.FNN([2] + [width] * depth + [1], "tanh", "Glorot normal"))
model.compile("adam", lr=1e-3, verbose=0)
model.train(iterations=steps // 4 + 2, display_every=10**9, verbose=0)
for _ in sys.stdin:
    start = time.process_time()
    model.train(iterations=steps, display_every=10**9, verbose=0)
    print("ms", (time.process_time() - start) / steps * 1e3, flush=True)
"""


class DeepXDE:
    """A process that measures whenever it is asked."""

    def __init__(self, python: str, width: int, depth: int, steps: int) -> None:
        command = [python, "-c", DEEPXDE, str(width), str(depth), str(steps)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def measure(self) -> float:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("ms "):
                return float(line.split()[1])
        raise RuntimeError("DeepXDE ended; run its script by itself to see why")

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def set_up(task: PhysicsTask, seed: int = 0, **recipe: object) -> tuple[State, Composition]:
    resolved = build_recipe(task, recipe)
    streams = Streams(seed)
    workload = task.workload(resolved, streams, torch.device("cpu"))
    state, method = State(workload.model, workload, resolved, streams, resolved.length), Composition([])
    state.optimizer = stepping.build_optimizer(method, state)
    return state, method


def ours(state: State, method: Composition, steps: int) -> float:
    start = time.process_time()
    for _ in range(steps):
        stepping.take_step(state, method)
    return (time.process_time() - start) / steps * 1e3


def beside_deepxde(name: str, python: str, rounds: int, compiled: bool) -> None:
    width, depth, steps = NETS[name]
    state, method = set_up(
        BurgersPINN(width=width, depth=depth, compiled=compiled), batch=2780, boundary=80, initial=160
    )
    start = time.perf_counter()
    stepping.take_step(state, method)
    first = time.perf_counter() - start
    ours(state, method, steps // 4 + 2)
    theirs = DeepXDE(python, width, depth, steps)
    pairs = [(ours(state, method, steps), theirs.measure()) for _ in range(rounds)]
    theirs.close()
    mine, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = " ".join(f"{one / two:.2f}" for one, two in pairs)
    kind = f"compiled, first step {first:.0f} s" if compiled else "eager"
    print(f"{name} ({kind}): {mine:.2f} ms, DeepXDE {other:.2f} ms, ratio {mine / other:.2f} (each round: {ratios})")


def stacked(task: PhysicsTask, count: int, rounds: int, **recipe: object) -> None:
    alone = set_up(task, 0, **recipe)
    pairs = [set_up(task, seed, **recipe) for seed in range(count)]
    trainings = [
        Training(task, state, method, {}, cast(Attempt, None)) for state, method in pairs
    ]  # nothing is recorded
    stack = Stack(trainings, lambda seed, call: call())
    plain, together = [], []
    for _ in range(rounds):
        plain.append(ours(*alone, 20))
        start = time.process_time()
        for _ in range(20):
            stack.advance(measured=False)
        together.append((time.process_time() - start) / 20 * 1e3)
    one, all_of_them = statistics.median(plain), statistics.median(together)
    name = f"{task.depth}x{task.width} {recipe or ''}"
    print(f"{type(task).__name__} {name}: one {one:.2f} ms, {count} stacked {all_of_them:.2f} ms, "
          f"{count * one / all_of_them:.2f}x per core")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deepxde", help="the interpreter of an environment with DeepXDE")
    parser.add_argument("--compiled", action="store_true", help="our derivatives through torch.compile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stacked", type=int, default=0, metavar="K")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.deepxde:
        for name in NETS:
            beside_deepxde(name, given.deepxde, given.rounds, given.compiled)
    if given.stacked:
        stacked(PoissonPINN(), given.stacked, given.rounds)
        stacked(BurgersPINN(), given.stacked, given.rounds, batch=256, boundary=32, initial=64)
        stacked(BurgersPINN(), given.stacked, given.rounds)


if __name__ == "__main__":
    main()
