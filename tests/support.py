"""What several tests need: a plugin file, a trial run to its end, a bare training loop."""

import textwrap
from collections.abc import Callable
from pathlib import Path

import torch

from harness.identity import TrialSpec
from harness.recording.records import Attempt, Result
from harness.registry import Registry
from harness.training.trial import run_trial

def plugin(folder: Path, source: str) -> Path:
    """A plugin file."""
    path = folder / "plugin.py"
    path.write_text("from harness import *\nfrom harness import Method, register_method\n" + textwrap.dedent(source))
    return path


def run(
    registry: Registry,
    spec: TrialSpec,
    results: Path,
    halt: Callable[[int], bool] = lambda step: False,
    commit_every: float = 15.0,
) -> Result:
    """One attempt at a trial."""
    with Attempt(results, spec.hash, spec.to_json(), "test") as attempt:
        return run_trial(spec, registry, attempt, halt=halt, commit_every=commit_every)


def bare_digits(spec: TrialSpec) -> dict[str, torch.Tensor]:
    """digits/mlp with AdamW as anybody would write it, on the harness's data and initial weights."""
    from harness.streams import Streams
    from tasks.data import digits
    from tasks.models import mlp

    torch.set_num_threads(1)
    streams = Streams(spec.seed)
    train = digits(streams, torch.device("cpu")).train
    with streams.default("init"):
        model = torch.nn.Sequential(torch.nn.Flatten(), mlp(64, [64, 64], 10))
    recipe = spec.recipe
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe["lr"], weight_decay=recipe["weight_decay"], fused=True)
    generator, step = streams.torch("data"), 0
    while step < recipe["steps"]:
        order = torch.randperm(len(train), generator=generator)
        for batch in order.split(recipe["batch"]):
            if len(batch) < recipe["batch"] or step == recipe["steps"]:
                break
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(train.inputs[batch]), train.labels[batch])
            loss.backward()
            optimizer.step()
            step += 1
    return model.state_dict()
