"""Synthetic data of the real shape in place of a data set, and one training step on it."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from harness import Task
from harness.activations import gates
from harness.composition import Composition
from harness.method import State
from harness.registry import Registry
from harness.streams import Streams
from harness.training import stepping
from harness.training.trial import build_recipe
from tasks.data import DATA_SETS, Raw, Split
from tasks.data.text_prepare import write_tokens

VOCABULARIES = {"gpt2": 50_257, "t5": 32_100, "llama": 32_000}


def stand_in(name: str, monkeypatch: pytest.MonkeyPatch, samples: int = 40) -> None:
    """Replaces a data set of images by random images of its shape."""
    known = DATA_SETS[name]

    def part(seed: int) -> Split:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (samples, *known.shape), dtype=torch.uint8, generator=generator)
        return Split(images, torch.randint(0, known.classes, (samples,), generator=generator))

    def raw(self: object) -> Raw:
        return Raw(part(0), test=part(1))

    synthetic = dataclasses.replace(known, sizes=(samples, samples), kind="table", read=raw)
    monkeypatch.setitem(DATA_SETS, name, synthetic)


def write_images(root: Path, classes: int, each: int, size: tuple[int, int]) -> None:
    """Folders of random images, one per class."""
    rng = np.random.default_rng(len(str(root)))
    for label in range(classes):
        (root / f"class{label}").mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"class{label}" / f"{number}.png")


def write_corpus(folder: Path, name: str, tokens: str, size: int = 200_000) -> None:
    """A corpus of random tokens of a model's vocabulary, as `python -m tasks.data` writes it."""
    rng = np.random.default_rng(0)
    vocabulary = VOCABULARIES[tokens]
    documents = [SimpleNamespace(ids=rng.integers(1, vocabulary - 200, size).tolist()) for _ in range(3)]
    root = folder / "tokens" / f"{name}-{tokens}"
    write_tokens([["0"], ["1"], ["2"]], lambda batch: [documents[int(text)] for text in batch], vocabulary, root)


def write_answers(folder: Path, name: str) -> None:
    """Random pairs of texts, as `python -m tasks.data squad` writes them."""
    rng = np.random.default_rng(0)
    root = folder / "tokens" / f"{name}-t5"
    root.mkdir(parents=True)
    for part in ("train", "test"):
        source = rng.integers(1, 32_000, (20, 384), dtype=np.uint16)
        target = rng.integers(1, 32_000, (20, 32), dtype=np.uint16)
        target[:, 20:] = 0
        np.savez(root / f"{part}.npz", vocabulary=32_100, source=source, target=target)


def take_one_step(registry: Registry, name: str, batch: int = 2, **options: object) -> tuple[Task, nn.Module]:
    """One step of a task under its own recipe but for the batch and bfloat16, which most CPUs only emulate.

    Every gate is called once and the weights move.
    """
    task = registry.build_task(name, dict(options))
    recipe = build_recipe(task, {"batch": batch, "accumulate": 1, "steps": 1, "warmup": 0, "autocast": False})
    streams = Streams(0)
    workload = task.workload(recipe, streams, torch.device("cpu"))
    state = State(workload.model, workload, recipe, streams, horizon=1)
    method = Composition([])
    state.optimizer = stepping.build_optimizer(method, state)
    calls = dict.fromkeys(gates(state.model), 0)
    handles = []
    for gate_name, gate in gates(state.model).items():
        handles.append(gate.register_forward_hook(lambda *_, key=gate_name: calls.__setitem__(key, calls[key] + 1)))
    before = {key: value.detach().clone() for key, value in state.model.named_parameters()}
    for _ in range(2 if "vit_b_16" in name else 1):  # its classifier starts from zeros, which no gradient passes
        stepping.take_step(state, method)
        taken = dict(calls)
        calls.update(dict.fromkeys(calls, 0))
    assert taken == dict.fromkeys(calls, 1)
    still = [key for key, value in state.model.named_parameters() if torch.equal(value, before[key])]
    # biases in front of a normalisation have no gradient, and Adam leaves exact zeros alone
    assert len(still) <= len(before) / 4, still
    assert all(bool(torch.isfinite(value).all()) for value in state.model.parameters())
    for handle in handles:
        handle.remove()
    return task, state.model
