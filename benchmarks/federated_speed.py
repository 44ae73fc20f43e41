"""Milliseconds per client on digits (MLP 64-64-10, 20 clients, 10 per round): the harness, a plain loop, pfl and Flower.

The sides take turns, a few rounds each, in processes of their own on one core (Flower, which is made of processes: two). Sides are
compared by the ratio of their times in the same turn.
The peers need environments of their own, since Flower fixes another version of Ray::

    uv venv --python 3.11 PEERS/flower && uv pip install --python PEERS/flower/bin/python "flwr[simulation]==1.41.0" torch
    uv venv --python 3.11 PEERS/pfl && uv pip install --python PEERS/pfl/bin/python "pfl[pytorch]==0.6.0" torch
    python benchmarks/federated_speed.py --peers PEERS
    python benchmarks/federated_speed.py                   # the harness, the plain loop and vectorised clients alone
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SIDES = Path(__file__).with_name("federated_sides.py")
PER_ROUND = 10
RATIOS = (
    ("harness", "plain", "at most 1.1"),
    ("pfl", "harness", "above 1"),
    ("flower", "harness", "at least 12"),
    ("plain", "vectorised", "none: what vectorised clients would add"),
)
"""Sides whose milliseconds are divided, and what should come out."""
Times = dict[str, dict[int, float]]
"""Milliseconds per client by side and turn."""


def write_task(path: Path, seed: int = 0, rounds: int = 100) -> None:
    """Digits by Dirichlet(0.5) over 20 clients, as the harness draws them."""
    import numpy as np
    import torch

    from harness.streams import Streams
    from harness.training.trial import build_recipe
    from tasks.federated import FederatedDigits

    task = FederatedDigits()
    built = task.workload(build_recipe(task, {"clients_per_round": PER_ROUND}), Streams(seed), torch.device("cpu"))
    content: dict[str, Any] = {"participants": np.array([built.participants(r) for r in range(rounds)])}
    for client in range(20):
        data = built.client_data(client)
        content |= {f"x{client}": data["inputs"].flatten(1).numpy(), f"y{client}": data["labels"].numpy()}
    content |= {"x": built.splits.test.inputs.flatten(1).numpy(), "y": built.splits.test.labels.numpy()}
    content |= {f"w{i}": parameter.detach().numpy() for i, parameter in enumerate(built.model.parameters())}
    np.savez(path, **content)


class Side:
    """A process of one side."""

    def __init__(self, name: str, python: str, task: Path) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [python, str(SIDES), name, str(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )

    def ask(self, command: str, rounds: int) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{command} {rounds}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with exit status {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def sides(peers: Path | None, task: Path, names: tuple[str, ...]) -> list[Side]:
    """A process per side; those of the peers only where their environments are."""
    found = []
    for name in names:
        python = ""
        if name in ("plain", "harness", "vectorised"):
            python = sys.executable
        elif peers is not None and (peers / name).is_dir():
            python = str(peers / name / "bin" / "python")
        if python:
            found.append(Side(name, python, task))
    return found


def measured(running: list[Side], turns: int) -> Times:
    """Each side's milliseconds per client in each of its turns."""
    times: Times = {side.name: {} for side in running}
    for side in running:
        side.ask("time", 2)
    for turn in range(turns):
        for side in running:
            if side.name == "flower" and turn % 10:  # each of its turns starts Ray
                continue
            seconds = side.ask("time", 5)["seconds"]
            times[side.name][turn] = 1e3 * seconds / PER_ROUND
    return times


def row(name: str, values: list[float], rest: str = "") -> str:
    return f"{name:22} {statistics.median(values):8.3f} {min(values):8.3f} {max(values):8.3f}  {rest}".rstrip()


def report(times: Times) -> str:
    """Milliseconds per client, and ratios of sides in the same turns beside what they should be."""
    rows = [f"{'ms per client':22} {'median':>8} {'least':>8} {'most':>8}"]
    rows += [row(name, list(values.values())) for name, values in times.items()]
    rows += ["", f"{'ratio, by turn':22} {'median':>8} {'least':>8} {'most':>8}  aim"]
    for over, under, aim in RATIOS:
        if over in times and under in times:
            both = times[over].keys() & times[under].keys()
            rows.append(row(f"{over} / {under}", [times[over][turn] / times[under][turn] for turn in both], aim))
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder with the environments flower and pfl")
    parser.add_argument("--turns", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task.npz"
        write_task(task)
        running = sides(options.peers, task, ("plain", "harness", "vectorised", "pfl", "flower"))
        times = measured(running, options.turns)
        for side in running:
            side.close()
    print(report(times))


if __name__ == "__main__":
    main()
