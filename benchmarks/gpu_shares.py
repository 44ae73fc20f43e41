"""What sharing a GPU gives: sixteen small trials, each with all of it, a quarter, or a sixteenth.

Small networks leave most of a GPU idle. Each share runs the same grid from nothing; what is compared is the time from the start of
its first trial to the end of its last, which the CPUs limit where there are fewer than trials at once. The numbers of the trials
must not differ, and are compared to the bit.

    python benchmarks/gpu_shares.py --steps 1000
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from harness.recording.records import Result
from harness.recording.results import Results

GRID = """
name: shares
tasks: [digits/cnn]
methods: [adamw]
seeds: 16
recipes: [{{set: {{steps: {steps}, evaluate_every: {steps}, record_every: 100}}}}]
resources: {{cpus: 1, gpus: {share}}}
"""


def trials(folder: Path, steps: int, share: float) -> dict[str, Result]:
    """Runs the grid in a folder of its own."""
    folder.mkdir()
    grid = folder / "grid.yaml"
    grid.write_text(GRID.format(steps=steps, share=share))
    command = [sys.executable, "-m", "harness.cli", "run", str(grid), "--results", str(folder / "results")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Results(folder / "results").results(path.name for path in (folder / "results" / "trials").iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.25, 0.0625])
    options = parser.parse_args()
    print(torch.cuda.get_device_name(0))
    first: dict[str, str] = {}
    whole = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for share in options.shares:
            results = trials(Path(folder) / str(share), options.steps, share)
            seconds = max(r.ended for r in results.values()) - min(r.started for r in results.values())
            weights = {hash: result.weights for hash, result in results.items()}
            first, whole = first or weights, whole or seconds
            alike = "the same bits" if weights == first else "OTHER BITS"
            print(
                f"{share:6g} of the GPU each: {seconds:6.1f} s, {whole / seconds:4.1f} times as fast, {alike}",
                flush=True,
            )


if __name__ == "__main__":
    main()
