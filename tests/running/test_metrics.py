"""What a grid counts, with stand-ins for Ray's counters; `test_four_ways.py` reads the pages that real nodes show."""

import os
from pathlib import Path
from typing import Any, ClassVar

import pytest

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
