"""Every test has a results folder of its own; nothing is read from or written to the user's."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_AUTH_MODE"] = "token"  # Ray reads it when it is imported

from harness.registry import Registry

settings.register_profile("here", deadline=None)  # how long an example takes is the machine's matter
settings.load_profile("here")


def pytest_configure(config: pytest.Config) -> None:
    """A process that sees a GPU cannot fork ranks that train: tests see one where they ask for it alone."""
    if config.getoption("markexpr") != "gpu" and torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many slow tests come first: what is short fills the end, when processors would wait for one another."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"
