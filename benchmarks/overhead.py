"""What the harness adds to a trial: 100 trials of digits/mlp against the same loop written bare, and against stock Ray Tune.

Every side trains the same trials to the same bits on the same number of processes, and is timed from the start of its
first trial to the end of its last: workers are up, data sets lie in memory or are read by each trial as its author would.

    python benchmarks/overhead.py                  # bare, harness, stock Tune with and without reused actors
    python benchmarks/overhead.py --skip-stock     # bare and harness alone
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0"}
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(16).hex()}

GRID = """
name: overhead
tasks: [digits/mlp]
methods: [adamw]
seeds: {seeds}
recipes: [{{set: {{steps: {steps}}}}}]
"""


def bare_trial(seed: int, recipe: dict[str, Any], report: Any = None) -> str:
    """The trial as one would write it in plain torch, with the validation scores and the final test score."""
    import torch
    from torch.nn import functional

    from harness.streams import Streams
    from harness.training.state import weights_digest
    from tasks import data, models

    torch.set_num_threads(1)
    streams = Streams(seed)
    splits = data.digits(streams, torch.device("cpu"))
    with streams.default("init"):
        model = torch.nn.Sequential(torch.nn.Flatten(), models.mlp(64, [64, 64], 10))
    options = {"lr": recipe["lr"], "weight_decay": recipe["weight_decay"], "fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    generator, step, best, kept = streams.torch("data"), 0, -1.0, {}
    while step < recipe["steps"]:
        order = torch.randperm(len(splits.train), generator=generator)
        for batch in order.split(recipe["batch"]):
            if len(batch) < recipe["batch"] or step == recipe["steps"]:
                break
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(splits.train.inputs[batch]), splits.train.labels[batch])
            loss.backward()
            optimizer.step()
            step += 1
            if step % recipe["evaluate_every"] == 0:
                accuracy = score(model, splits.val)
                if accuracy > best:
                    best, kept = accuracy, {name: value.clone() for name, value in model.state_dict().items()}
                if report:
                    report({"val_accuracy": accuracy, "loss": loss.item()})
    digest = weights_digest(model)
    model.load_state_dict(kept)
    score(model, splits.test)
    return digest


def score(model: Any, split: Any) -> float:
    import torch

    model.eval()
    with torch.no_grad():
        accuracy = (model(split.inputs).argmax(1) == split.labels).double().mean().item()
    model.train()
    return accuracy


def bare_worker(seeds: list[int], recipe: dict[str, Any], ready: Any, go: Any, queue: Any) -> None:
    import torch

    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    ready.release()
    go.wait()
    queue.put({seed: bare_trial(seed, recipe) for seed in seeds})


def bare(seeds: int, recipe: dict[str, Any], workers: int) -> tuple[float, dict[int, str]]:
    """The bare loop, its seeds divided over processes that have imported torch."""
    context = multiprocessing.get_context("spawn")
    ready, go, queue = context.Semaphore(0), context.Event(), context.Queue()
    parts = [list(range(part, seeds, workers)) for part in range(workers)]
    processes = [context.Process(target=bare_worker, args=(part, recipe, ready, go, queue)) for part in parts]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    started = time.perf_counter()
    go.set()
    digests = {seed: digest for _ in processes for seed, digest in queue.get().items()}
    seconds = time.perf_counter() - started
    for process in processes:
        process.join()
    return seconds, digests


def harness(seeds: int, steps: int, workers: int) -> tuple[dict[str, float], dict[int, str]]:
    """`harness run` on the grid: everything recorded and in MLflow."""
    from harness.recording.results import Results

    with tempfile.TemporaryDirectory() as folder:
        grid = Path(folder) / "grid.yaml"
        grid.write_text(GRID.format(seeds=seeds, steps=steps))
        results = Path(folder) / "results"
        command = [sys.executable, "-m", "harness.cli", "run", str(grid), "--results", str(results)]
        started = time.time()
        subprocess.run([*command, "--cpus", str(workers)], check=True, stdout=subprocess.DEVNULL)
        whole = time.time() - started
        ended = [Results(results).trial(path.name).result() for path in (results / "trials").iterdir()]
        specs = [json.loads((results / "trials" / r.hash / "trial.json").read_text()) for r in ended if r]
        digests = {spec["seed"]["init"]: r.weights for spec, r in zip(specs, ended, strict=True) if r}
        first, last = min(r.started for r in ended if r), max(r.ended for r in ended if r)
        return {"trials": last - first, "command": whole}, digests


def stock(seeds: int, recipe: dict[str, Any], workers: int, reuse: bool) -> float:
    """Stock Ray Tune with its MLflow callback on SQLite, the loop above as the trainable."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    sys.path.insert(0, str(Path(__file__).parent))

    def trainable(config: dict[str, Any]) -> None:
        begun = time.time()
        bare_trial(config["seed"], recipe, tune.report)
        tune.report({"began": begun, "ended": time.time(), "val_accuracy": 0.0})

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=40)
    with tempfile.TemporaryDirectory() as folder:
        callback = MLflowLoggerCallback(f"sqlite:///{folder}/mlflow.db", experiment_name="stock")
        grid = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={"seed": tune.grid_search(list(range(seeds)))},
            tune_config=tune.TuneConfig(reuse_actors=reuse),
            run_config=tune.RunConfig(storage_path=folder, callbacks=[callback], verbose=0),
        ).fit()
        times = [(result.metrics["began"], result.metrics["ended"]) for result in grid]
    ray.shutdown()
    return max(end for _, end in times) - min(start for start, _ in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-stock", action="store_true")
    asked = parser.parse_args()
    from harness.registry import Registry
    from harness.training.trial import build_recipe

    recipe = asdict(build_recipe(Registry().build_task("digits/mlp", {}), {"steps": asked.steps}))
    ratios, commands = [], []
    for number in range(asked.rounds):
        plain, expected = bare(asked.seeds, recipe, asked.workers)
        ours, digests = harness(asked.seeds, asked.steps, asked.workers)
        assert digests == expected, "the two sides must train to the same bits"
        ratios.append(ours["trials"] / plain)
        commands.append(ours["command"])
        each = 1000 * plain * asked.workers / asked.seeds
        print(
            f"round {number + 1}: bare {plain:.1f} s ({each:.0f} ms a trial), harness {ours['trials']:.1f} s,"
            f" ratio {ratios[-1]:.2f}; the whole command {ours['command']:.1f} s",
            flush=True,
        )
    print(f"harness over bare: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f};")
    print(f"equal final weights on all {asked.seeds} seeds; {asked.workers} workers, {os.cpu_count()} cores")
    if not asked.skip_stock:
        for reuse in (True, False):
            few = asked.seeds if reuse else min(asked.seeds, 20)
            seconds = stock(few, recipe, asked.workers, reuse)
            plain, _ = bare(few, recipe, asked.workers)
            name = "reused actors" if reuse else "new actors"
            print(
                f"stock Tune + MLflow callback, {name}: {few} trials {seconds:.1f} s, {seconds / plain:.2f} times bare"
            )


if __name__ == "__main__":
    main()
