"""What a grid counts, with stand-ins for Ray's counters; and the pages that real nodes show Prometheus."""

import os
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any, ClassVar

import pytest
from machines import PATIENCE, machines, until
from prometheus_client.parser import text_string_to_metric_families
from support import command, write_grid

from harness.running.metrics import Metrics


class Heard:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments))


class Number:
    """A counter or gauge that keeps what it is told."""

    numbers: ClassVar[dict[str, dict[str, float]]] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.values = Number.numbers.setdefault(name, {})

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.tags = tags

    def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        key = (tags or {}).get("status", "")
        self.values[key] = self.values.get(key, 0) + value

    def set(self, value: float) -> None:
        self.values[""] = value


def test_what_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.util.metrics.Counter", Number)
    monkeypatch.setattr("ray.util.metrics.Gauge", Number)
    Number.numbers = {}
    heard = Heard()
    metrics = Metrics(heard, "grid", 3, tmp_path)  # type: ignore[arg-type]
    metrics.started("a")
    metrics.started("b")
    metrics.moved("a", 5)
    metrics.ended("a", "finished")
    metrics.ended("c", "blocked")
    metrics.ended("b", "unwritable: disk full")
    metrics.tick()
    assert Number.numbers["harness_trials"] == {"finished": 1, "blocked": 1, "unwritable": 1}
    assert Number.numbers["harness_waiting"] == {"": 0}
    assert Number.numbers["harness_running"] == {"": 0}
    assert [call[0] for call in heard.calls] == ["started", "started", "moved", "ended", "ended", "ended", "tick"]
    assert 0 <= Number.numbers["harness_writer_lag"][""] < 60
    mark = tmp_path / "tracking.mark"
    mark.touch()
    os.utime(mark, (metrics._since + 100, metrics._since + 100))
    assert metrics.lag() == 0.0, "a mark from the future is a clock that differs"


def test_what_is_taken_up_again_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker dies and the next one starts the same trial; another trial is locked three times and then finishes."""
    monkeypatch.setattr("ray.util.metrics.Counter", Number)
    monkeypatch.setattr("ray.util.metrics.Gauge", Number)
    Number.numbers = {}
    metrics = Metrics(Heard(), "grid", 4, tmp_path)  # type: ignore[arg-type]
    seen = []
    for call, *arguments in [
        ("started", "a"),
        ("started", "a"),  # by the next Tuner
        ("started", "b"),
        ("ended", "b", "locked"),
        ("ended", "b", "locked"),  # a trial that is locked may never have started
        ("started", "b"),
        ("ended", "b", "locked"),
        ("started", "b"),
        ("ended", "b", "finished"),
        ("ended", "a", "finished"),
        ("started", "c"),
    ]:
        getattr(metrics, call)(*arguments)
        seen.append((int(Number.numbers["harness_waiting"][""]), int(Number.numbers["harness_running"][""])))
    assert seen == [(3, 1), (3, 1), (2, 2), (3, 1), (3, 1), (2, 2), (3, 1), (2, 2), (2, 1), (2, 0), (1, 1)]
    assert Number.numbers["harness_trials"] == {"locked": 1, "finished": 2}


GRID = """
name: watched
tasks: [digits/mlp]
methods: [adamw]
seeds: 6
recipes: [{set: {steps: 6000}}]
"""
"""Long enough: Ray passes numbers on every ten seconds."""


@pytest.mark.slow
def test_a_cluster_shows_prometheus_what_the_dashboard_asks_for(tmp_path: Path) -> None:
    dashboard = Path(__file__).parents[2] / "clusters" / "grafana" / "harness.json"
    asked = set(re.findall(r"ray_harness_\w+", dashboard.read_text()))
    found: dict[str, float] = {}
    grid = write_grid(tmp_path, GRID)
    with machines(2, dashboard=True) as cluster:
        arguments = ["run", grid, "--address", cluster.address, "--results", tmp_path / "results"]
        driver = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

        def counted() -> bool:
            over = driver.poll() is not None
            found.update(scraped(cluster.metrics_port))
            return asked <= set(found) or over

        until(counted, PATIENCE, "what the dashboard asks for")
        shown = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 0, shown
    assert asked <= set(found)
    assert found["ray_harness_trials_total"] >= 1
    assert found["ray_harness_running"] <= 2


def scraped(port: int) -> dict[str, float]:
    """What a node shows of this grid: the last sample by name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    samples = [sample for family in families for sample in family.samples if sample.labels.get("grid") == "watched"]
    assert all(sample.labels["status"] == "finished" for sample in samples if sample.name == "ray_harness_trials_total")
    return {sample.name: sample.value for sample in samples}
