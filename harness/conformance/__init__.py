"""What every registered task, method and probe must pass: `harness describe NAME --check`, and the project's own tests.

Each check runs short trials of real tasks and compares bits, so a plugin's author gets these tests for free.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.conformance.methods import method_checks
from harness.conformance.probes import probe_checks
from harness.conformance.runs import Bench, Ran, run_short, same, short_spec
from harness.conformance.tasks import task_checks
from harness.registry import Item, Registry

__all__ = ["Ran", "Verdict", "check_item", "run_short", "same", "short_spec"]


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check."""

    name: str
    ok: bool
    detail: str = ""


def check_item(item: Item, registry: Registry, device: str = "cpu") -> Iterator[Verdict]:
    """All checks of one item on a device, `cpu` or `cuda`. A check that raises has failed, with what it raised."""
    bench = Bench(registry, device)
    checks = {"task": task_checks, "method": method_checks, "probe": probe_checks}[item.kind]
    for name, check in [("has a docstring", lambda: bool(item.summary)), *checks(item, bench)]:
        try:
            yield Verdict(name, bool(check()))
        except Exception as error:
            yield Verdict(name, False, f" ({type(error).__name__}: {error})")
