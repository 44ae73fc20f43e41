"""Every test has a results folder of its own; nothing is read from or written to the user's."""

import os
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


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"
