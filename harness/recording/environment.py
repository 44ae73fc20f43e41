"""What a number rests on beside its content: versions, commit, hardware."""

from __future__ import annotations

import functools
import os
import platform
import socket
import subprocess
from importlib import metadata
from typing import Any

from harness.sources import PROJECT

PACKAGES = (
    "training-harness",
    "torch",
    "torchvision",
    "numpy",
    "scikit-learn",
    "gymnasium",
    "transformers",
    "ray",
    "mlflow",
)


def version(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def environment() -> dict[str, Any]:
    """Versions, git commit and hardware of this process, read once."""
    return {
        "python": platform.python_version(),
        "packages": {package: found for package in PACKAGES if (found := version(package))},
        "git": git_state(),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
    }


@functools.cache
def gpu() -> dict[str, Any]:
    """This process's first GPU, its memory, and the versions of CUDA and cuDNN, read once; empty where torch sees none."""
    import torch

    if not torch.cuda.is_available():
        return {}
    try:
        properties = torch.cuda.get_device_properties(0)
    except RuntimeError:  # one that cannot be used: the trial fails, and says so, at its first tensor
        return {}
    return {
        "gpu": properties.name,
        "gpu_memory": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the checkout that the code runs from; empty outside one."""
    if not (PROJECT / ".git").exists():
        return {}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PROJECT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {}
