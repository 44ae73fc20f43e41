"""Is the accuracy curve of the harness's federated averaging equivalent to Flower's?

Both train digits (MLP 64-64-10, 20 clients by Dirichlet(0.5), 10 per round, SGD, one local epoch) from the same partitions
and initial weights; Flower draws its own participants and batches. The margin was fixed before anything was run: the mean
test accuracy over rounds 11 to 20 may differ by at most 0.02. By two one-sided tests the curves are equivalent if the 90 %
interval of the mean paired difference over the seeds lies within it.

    python benchmarks/flower_equivalence.py --peers PEERS --seeds 5     # PEERS as in federated_speed.py
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from federated_speed import sides, write_task

MARGIN, ROUNDS, LAST = 0.02, 20, 10


def main() -> None:
    from scipy import stats

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="folder with the environment flower")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    differences = []
    for seed in range(options.seeds):
        ends = {}
        with tempfile.TemporaryDirectory() as folder:
            task = Path(folder) / "task.npz"
            write_task(task, seed)
            for side in sides(options.peers, task, ("harness", "flower")):
                curve = side.ask("score", ROUNDS)["accuracy"]
                side.close()
                ends[side.name] = sum(curve[-LAST:]) / LAST
        differences.append(ends["harness"] - ends["flower"])
        print(f"seed {seed}: harness {ends['harness']:.4f}, flower {ends['flower']:.4f}", flush=True)
    mean = sum(differences) / len(differences)
    low, high = stats.t.interval(0.9, len(differences) - 1, mean, stats.sem(differences))
    verdict = "equivalent" if low > -MARGIN and high < MARGIN else "not shown to be equivalent"
    print(f"difference {mean:+.4f}, 90 % interval [{low:+.4f}, {high:+.4f}], margin ±{MARGIN}: {verdict}")


if __name__ == "__main__":
    main()
